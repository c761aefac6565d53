"""What every engine must do, in the same way, on the same weights.

The reference for tokens is transformers' own `generate` over the float32 weights. Engines are made
in conftest.py, which also lists what one of them may lack.
"""

import json
import math
import re
import threading
from collections import namedtuple
from pathlib import Path

import jsonschema
import psutil
import pytest

from mixtral_rag.engines import Cancellation
from mixtral_rag.engines.constraint import Constraint
from mixtral_rag.errors import ContextError, SettingsError
from mixtral_rag.prompts import render
from mixtral_rag.tokenizer import decode
from mixtral_rag.types import Message, SamplingOptions

pytestmark = pytest.mark.usefixtures("applies")

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "prompts.json").read_text("utf-8"))
N = 24
GREEDY = {"temperature": 0, "repeat_penalty": 1.0, "max_tokens": N}
HOT = {"temperature": 1.5, "top_p": 1.0, "top_k": 0, "repeat_penalty": 1.0}
LONG_EN = "The cache keeps the keys and values of every token that was computed. " * 60
LONG_ZH = "苏州园林里都有假山和池沼。假山的堆叠，可以说是一项艺术而不仅是技术。" * 14
PROMPTS = {
    "zh": [Message("user", "你好，世界")],
    "en": [Message("user", "Hello, who are you?")],
    "turns": [Message("user", "a"), Message("assistant", "b"), Message("user", "苏州在哪里？")],
    "long zh": [Message("user", LONG_ZH)],
    "long en": [Message("user", LONG_EN)],
}
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["园林", "temple", "bridge"]},
        "year": {"type": "integer", "minimum": -500, "maximum": 2100},
        "open": {"type": "boolean"},
        "name": {"type": "string", "maxLength": 8},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
        "place": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}, "east": {"type": "boolean"}},
            "required": ["city", "east"],
            "additionalProperties": False,
        },
    },
    "required": ["kind", "year", "open", "name", "tags", "place"],
    "additionalProperties": False,
}
Result = namedtuple("Result", "text finish usage logprobs pieces")
Reference = namedtuple("Reference", "ids new text logprobs")


def run(engine, ids, *, cancel=None, **options):
    pieces = list(engine.generate(ids, SamplingOptions(**options), cancel=cancel))
    assert all(p.finish_reason is None for p in pieces[:-1])
    text, last = "".join(p.text for p in pieces), pieces[-1]
    logprobs = [x for p in pieces for x in p.logprobs]
    return Result(text, last.finish_reason, last.usage, logprobs, pieces)


def prompt(engine, text="你好，世界"):
    return render([Message("user", text)], engine.tokenizer)


@pytest.fixture(scope="session")
def reference(weights):
    """Computes with transformers: token IDs in, and the log-probabilities of each step out."""
    import torch
    from transformers import MixtralForCausalLM

    from mixtral_rag.engines.hf_vocab import FolderVocabulary

    model = MixtralForCausalLM.from_pretrained(weights.folder).eval()
    tokenizer = FolderVocabulary(weights.folder)

    def compute(ids, processor=None):
        out = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=N, output_logits=True,
            output_scores=True, return_dict_in_generate=True,
            logits_processor=[processor] if processor else None,
        )  # fmt: skip
        new = out.sequences[0, len(ids) :].tolist()
        best = [score[0].topk(2).values.tolist() for score in out.scores]
        assert min(a - b for a, b in best) > 2e-4, "too near to a tie to be compared"
        assert tokenizer.eos_id not in new[:-1]
        logprobs = [step[0].double().log_softmax(0) for step in out.logits]
        return Reference(ids, new, decode_raw(tokenizer, new), logprobs)

    def decode_raw(tokenizer, new):
        return b"".join(tokenizer.piece(i) for i in new).decode("utf-8", "replace")

    return compute


@pytest.fixture(scope="session", params=PROMPTS)
def greedy(request, reference, weights):
    from mixtral_rag.engines.hf_vocab import FolderVocabulary

    return reference(render(PROMPTS[request.param], FolderVocabulary(weights.folder)))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: c["name"])
def test_golden_prompts_give_the_same_ids(engine, case):
    messages = [Message(**m) for m in case["messages"]]
    assert render(messages, engine.tokenizer, keep_markers=True) == case["ids"]
    assert decode(engine.tokenizer, case["ids"][1:2]) in "[INST]"


def test_what_is_said_of_the_model(engine):
    assert engine.is_mixtral
    assert engine.is_instruct
    assert engine.model_name == "tiny-mixtral-instruct"
    assert engine.n_ctx == 2048
    assert engine.concurrency >= 1
    tokenizer = engine.tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, len(tokenizer)) == (1, 2, 32_000)
    assert tokenizer.end_ids == {2}
    assert tokenizer.special_tokens == {"<s>": 1, "</s>": 2}
    assert (tokenizer.adds_bos, tokenizer.adds_space_prefix) == (True, True)


def test_greedy_text_is_that_of_the_reference(engine, greedy):
    result = run(engine, greedy.ids, **GREEDY)
    assert result.text == greedy.text
    assert result.finish == "length"
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (len(greedy.ids), N)
    assert 0 <= result.usage.cached_tokens < len(greedy.ids)
    again = run(engine, greedy.ids, **GREEDY)  # from what was cached
    assert (again.text, again.finish) == (result.text, "length")


def test_log_probabilities_are_those_of_the_reference(engine, greedy):
    result = run(engine, greedy.ids, **GREEDY, logprobs=True, top_logprobs=5)
    assert len(result.logprobs) == len(greedy.new) == result.usage.completion_tokens
    for step, token, found in zip(greedy.logprobs, greedy.new, result.logprobs, strict=True):
        assert found.data == engine.tokenizer.piece(token)
        assert found.logprob == pytest.approx(float(step[token]), abs=1e-3)
        top = [x.logprob for x in found.top]
        assert top == sorted(top, reverse=True)
        assert top == pytest.approx(step.topk(5).values.tolist(), abs=1e-3)
        assert found.top[0].data == found.data
        assert not found.top[0].top
    assert not run(engine, greedy.ids, **GREEDY).logprobs


def test_log_probabilities_are_from_before_sampling(engine, greedy):
    result = run(engine, greedy.ids, **GREEDY | {"temperature": 2, "top_k": 1}, logprobs=True)
    assert result.text == greedy.text
    assert result.logprobs[0].logprob == pytest.approx(
        float(greedy.logprobs[0][greedy.new[0]]), abs=1e-3
    )
    assert result.logprobs[0].top == ()


def test_the_repeat_penalty_counts_the_last_tokens_prompt_included(engine, greedy, reference):
    from transformers import LogitsProcessor, RepetitionPenaltyLogitsProcessor

    penalty = RepetitionPenaltyLogitsProcessor(1.3)

    class Windowed(LogitsProcessor):
        def __call__(self, ids, scores):
            return penalty(ids[:, -64:], scores)

    expected = reference(greedy.ids, Windowed())
    options = GREEDY | {"repeat_penalty": 1.3, "repeat_last_n": 64}
    assert run(engine, greedy.ids, **options).text == expected.text


def test_a_repeat_penalty_over_no_tokens_does_nothing(engine, greedy):
    options = GREEDY | {"repeat_penalty": 2.0, "repeat_last_n": 0}
    assert run(engine, greedy.ids, **options).text == greedy.text


def test_streaming_gives_whole_characters(engine):
    result = run(engine, prompt(engine), **HOT | {"max_tokens": 200, "seed": 7}, logprobs=True)
    assert len(result.pieces) > 60
    assert all(p.text for p in result.pieces[:-1])
    data = b"".join(x.data for x in result.logprobs)
    assert result.text == data.decode("utf-8", "replace")
    assert any(ord(c) > 0x2E80 for c in result.text), "a random model should write some CJK"


def test_characters_of_several_tokens_come_whole(engine):
    wanted = "𠮷野家😀龘"
    schema = json.dumps({"enum": [wanted]})
    result = run(engine, prompt(engine), **GREEDY | {"max_tokens": 60}, json_schema=schema)
    assert json.loads(result.text) == wanted
    assert result.usage.completion_tokens > len(wanted) + 2
    assert "�" not in "".join(p.text for p in result.pieces)


def test_a_stop_text_ends_the_answer_before_it(engine, greedy):
    stop = greedy.text[9:12]
    result = run(engine, greedy.ids, **GREEDY, stop=["never said", stop])
    assert result.text == greedy.text[: greedy.text.index(stop)]
    assert result.finish == "stop"
    assert result.usage.completion_tokens < N


def test_a_stop_text_may_span_tokens(engine, greedy):
    whole = [engine.tokenizer.piece(i) for i in greedy.new]
    starts = [len(b"".join(whole[:i]).decode("utf-8", "replace")) for i in range(len(whole))]
    border = starts[8]
    stop = greedy.text[border - 1 : border + 1]
    result = run(engine, greedy.ids, **GREEDY, stop=[stop])
    assert result.text == greedy.text[: greedy.text.index(stop)]
    assert result.finish == "stop"


def test_a_stop_text_that_never_comes_costs_nothing_of_the_text(engine, greedy):
    result = run(engine, greedy.ids, **GREEDY, stop=[greedy.text[-2:] + "?"])
    assert (result.text, result.finish) == (greedy.text, "length")


def test_a_seed_repeats_a_sample_and_another_changes_it(engine):
    ids = prompt(engine)
    run(engine, ids, **GREEDY)  # so that all start from the same cached prompt
    a, b, c = (run(engine, ids, **HOT, max_tokens=N, seed=s).text for s in (1, 1, 2))
    assert a == b != c
    assert run(engine, ids, **HOT, max_tokens=N).text != run(engine, ids, **HOT, max_tokens=N).text


def test_top_k_top_p_and_min_p_narrow_the_choice(engine, greedy):
    hot = HOT | {"max_tokens": N, "temperature": 2.0}
    narrow = [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 0.99999}]
    for option in narrow:
        assert run(engine, greedy.ids, **hot | option).text == greedy.text, option
    three = run(engine, greedy.ids, **hot | {"top_k": 3}, logprobs=True, top_logprobs=3)
    assert all(x.data in [t.data for t in x.top] for x in three.logprobs)
    assert three.text != greedy.text


@pytest.mark.parametrize("limit", [1, 5])
def test_max_tokens_is_kept(engine, limit):
    result = run(engine, prompt(engine), **GREEDY | {"max_tokens": limit})
    assert (result.usage.completion_tokens, result.finish) == (limit, "length")


def test_no_limit_fills_the_context(engine):
    ids = [*prompt(engine, "x"), *range(1000, 1000 + 2048 - 40)]
    result = run(engine, ids, **GREEDY | {"max_tokens": None})
    assert result.usage.total_tokens == 2048 or result.finish == "stop"


def test_what_does_not_fit_is_refused(engine):
    ids = [1, *range(1000, 3500)]
    with pytest.raises(ContextError) as caught:
        run(engine, ids, **GREEDY)
    assert (caught.value.prompt_tokens, caught.value.n_ctx) == (len(ids), 2048)
    with pytest.raises(ContextError):
        run(engine, prompt(engine), **GREEDY | {"max_tokens": 2048})


def test_an_empty_prompt_is_refused(engine):
    with pytest.raises(SettingsError, match="empty"):
        run(engine, [], **GREEDY)


def test_another_thread_can_stop_a_generation(engine):
    cancel, pieces, begun = Cancellation(), [], threading.Event()
    options = SamplingOptions(**HOT | {"max_tokens": 1900, "seed": 3})

    def read():
        for piece in engine.generate(prompt(engine), options, cancel=cancel):
            pieces.append(piece)
            begun.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(60)
    cancel.cancel()
    seen = len(pieces)
    thread.join(60)
    assert pieces[-1].finish_reason == "cancelled"
    assert len(pieces) <= seen + 3
    assert pieces[-1].usage.completion_tokens < 1000


def test_a_generation_cancelled_before_it_starts_computes_nothing(engine, greedy):
    cancel = Cancellation()
    cancel.cancel()
    result = run(engine, greedy.ids, cancel=cancel, **GREEDY)
    assert (result.text, result.finish, result.usage.completion_tokens) == ("", "cancelled", 0)
    assert run(engine, greedy.ids, **GREEDY).text == greedy.text


def test_eight_threads_get_what_one_gets(engine):
    questions = [prompt(engine, f"问题 {i} " * (i + 1)) for i in range(8)]
    alone = [run(engine, ids, **GREEDY).text for ids in questions]
    together = [None] * 8

    def work(i):
        together[i] = run(engine, questions[i], **GREEDY).text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_half_read_streams_do_not_block_others(engine, greedy):
    options = SamplingOptions(**GREEDY)
    stream = engine.generate(greedy.ids, options)
    start = next(stream).text + next(stream).text
    second = engine.generate(prompt(engine, "second"), options)
    next(second)
    run(engine, prompt(engine, "third"), **GREEDY)
    assert start + "".join(p.text for p in stream) == greedy.text
    abandoned = engine.generate(prompt(engine), options)
    next(abandoned)
    assert run(engine, greedy.ids, **GREEDY).text == greedy.text


def test_asking_for_the_whole_text_changes_nothing(engine, greedy):
    pieces = list(engine.generate(greedy.ids, SamplingOptions(**GREEDY), whole=True))
    assert "".join(p.text for p in pieces) == greedy.text
    assert pieces[-1].usage.completion_tokens == N


def test_random_weights_held_to_a_schema_write_valid_json(engine):
    seen = set()
    for seed in range(12):
        options = HOT | {"max_tokens": 400, "seed": seed}
        result = run(engine, prompt(engine), **options, json_schema=json.dumps(SCHEMA))
        assert result.finish == "stop"
        jsonschema.validate(json.loads(result.text), SCHEMA)
        seen.add(result.text)
    assert len(seen) > 6


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 10, "maximum": 99_999},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
        {"type": "string", "maxLength": 3},
        {"anyOf": [{"type": "null"}, {"const": "no"}]},
    ],
    ids=json.dumps,
)
def test_the_end_of_an_answer_is_part_of_the_schema(engine, schema):
    for seed in range(4):
        options = HOT | {"max_tokens": 60, "seed": seed}
        result = run(engine, prompt(engine), **options, json_schema=json.dumps(schema))
        assert result.finish == "stop"
        jsonschema.validate(json.loads(result.text), schema)


def test_greedy_text_under_a_schema_is_that_of_the_reference(engine, greedy, reference):
    from transformers import LogitsProcessor

    schema = json.dumps({"type": "array", "items": {"type": "string"}, "minItems": 9})

    class Constrained(LogitsProcessor):
        def __init__(self):
            options = SamplingOptions(json_schema=schema)
            self.constraint = Constraint(options, engine.tokenizer)
            self.seen = len(greedy.ids)

        def __call__(self, ids, scores):
            for token in ids[0, self.seen :].tolist():
                self.constraint.accept(token)
            self.seen = ids.shape[1]
            scores = scores.clone()
            scores[0, ~self.constraint.allowed()] = -math.inf
            return scores

    expected = reference(greedy.ids, Constrained())
    assert expected.text.startswith('["')
    result = run(engine, greedy.ids, **GREEDY, json_schema=schema)
    assert (result.text, result.finish) == (expected.text, "length")


def test_text_is_held_to_a_pattern_until_it_matches(engine):
    pattern = r"(?:[a-z]{1,9}|北京|[\[［](?:1|2)[\]］])(?: (?:[a-z]{1,9}|北京)){2}\."
    seen = set()
    for seed in range(6):
        options = HOT | {"max_tokens": 90, "seed": seed}
        result = run(engine, prompt(engine), **options, pattern=pattern)
        assert result.finish == "stop"
        assert re.fullmatch(pattern, result.text)
        seen.add(result.text)
    assert len(seen) > 3


def test_a_pattern_that_is_none_is_refused(engine):
    with pytest.raises(SettingsError, match="pattern"):
        run(engine, prompt(engine), **GREEDY, pattern="(a")
    with pytest.raises(SettingsError, match="together"):
        run(engine, prompt(engine), **GREEDY, pattern="a", json_schema="{}")


def test_a_schema_that_is_none_is_refused(engine):
    with pytest.raises(SettingsError, match="JSON"):
        run(engine, prompt(engine), **GREEDY, json_schema="{")
    with pytest.raises(SettingsError, match="schema"):
        run(engine, prompt(engine), **GREEDY, json_schema='{"type": "no such type"}')


def test_two_hundred_calls_leave_nothing_behind(engine):
    process = psutil.Process()

    def calls(n):
        for i in range(n):
            run(engine, prompt(engine, f"{i} " * 20), **GREEDY | {"max_tokens": 4}, logprobs=i % 2)
        return process.memory_info().rss, process.num_fds(), process.num_threads()

    memory, files, threads = calls(40)
    memory_after, files_after, threads_after = calls(200)
    assert memory_after - memory < 24 << 20
    assert files_after <= files
    assert threads_after <= threads + 1
