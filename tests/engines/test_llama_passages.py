"""Prompts of passages that were computed each on its own."""

import random
import threading

import pytest
from tiny_mixtral import write_tiny_folder

from mixtral_rag.engines import Cancellation, PassagePrompt
from mixtral_rag.engines.llama_passages import Composer
from mixtral_rag.engines.llamacpp import LlamaCppEngine
from mixtral_rag.types import SamplingOptions
from mixtral_rag.weights.convert import convert

pytest.importorskip("llama_cpp", reason="the extra llamacpp is not installed")
GREEDY = SamplingOptions(temperature=0, repeat_penalty=1, max_tokens=12)
PREFIX = "Answer from the passages.\n\n"
QUESTION = "\n\nQuestion: who founded the company, and in which year?\nAnswer:"
PASSAGES = (
    "\n\n[7] The company was founded by Zhang Wei, a mechanic from the north, and his brother.",
    "\n\n[3] In the year 1998 the first shop was opened in Hangzhou, near the lake.",
    "\n\n[5] The most popular product is the Model B bicycle, which costs 300 yuan.",
)


def composed(engine, passages, question=QUESTION, before=()):
    ids, spans = engine.tokenizer.encode(PREFIX), []
    for text in passages:
        start = len(ids)
        ids += engine.tokenizer.encode(text)
        spans.append((start, len(ids)))
    ids += list(before) + engine.tokenizer.encode(question)
    return PassagePrompt(ids, spans)


def answer(engine, prompt):
    last = list(engine.generate(prompt, GREEDY, whole=True))[-1]
    for thread in threading.enumerate():
        if thread.name == "kv-save":
            thread.join()
    return last.text, last.usage.cached_tokens


def make(smollm, **options):
    return LlamaCppEngine(str(smollm), n_ctx=1024, **options)


def test_one_passage_alone_is_an_ordinary_prompt(smollm):
    engine, plain = (make(smollm, kv_type="f32") for _ in range(2))
    prompt = composed(engine, PASSAGES[:1])
    assert answer(engine, prompt)[0] == answer(plain, list(prompt))[0]


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """One tiny Mixtral in float32: a GGUF file, and a model of torch."""
    pytest.importorskip("torch", reason="the extra transformers is not installed")
    transformers = pytest.importorskip(
        "transformers", reason="the extra transformers is not installed"
    )
    pytest.importorskip("gguf", reason="the extra weights is not installed")
    folder = write_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")
    model = transformers.MixtralForCausalLM.from_pretrained(folder)
    return convert(folder, type="f32"), model


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2)])
def test_passages_do_not_see_each_other_and_the_question_sees_all(order, twins):
    """As torch computes it: each passage after the beginning, its keys turned to its place."""
    import torch

    file, model = twins
    engine = LlamaCppEngine(str(file), n_ctx=1024, kv_type="f32")
    prompt = composed(engine, [PASSAGES[i] for i in order])
    said, _ = answer(engine, prompt)
    with torch.no_grad():
        cache, made = _placed(model, prompt), []
        new = list(prompt[prompt.spans[-1][1] :])
        for _ in range(GREEDY.max_tokens):
            logits = model(torch.tensor([new]), past_key_values=cache).logits[0, -1]
            new = [int(logits.argmax())]
            made += new
            if new[0] in engine.tokenizer.end_ids:
                break
    assert said == b"".join(map(engine.tokenizer.piece, made)).decode(errors="replace")


def _placed(model, prompt):
    """A cache of torch with the beginning and every passage."""
    import torch
    import transformers

    n_prefix, rotary = prompt.spans[0][0], model.model.rotary_emb
    layers = [([], []) for _ in range(model.config.num_hidden_layers)]
    for number, (start, end) in enumerate(prompt.spans):
        ids = [*prompt[:n_prefix], *prompt[start:end]]
        cache = model(torch.tensor([ids])).past_key_values
        cos, sin = rotary(torch.zeros(1), torch.tensor([[start - n_prefix]]))
        for (keys, values), layer in zip(layers, cache.layers, strict=True):
            if number == 0:
                keys.append(layer.keys[:, :, :n_prefix])
                values.append(layer.values[:, :, :n_prefix])
            key = layer.keys[:, :, n_prefix:]
            one, two = key.chunk(2, dim=-1)
            keys.append(key * cos + torch.cat((-two, one), dim=-1) * sin)
            values.append(layer.values[:, :, n_prefix:])
    placed = transformers.DynamicCache()
    for number, (keys, values) in enumerate(layers):
        placed.update(torch.cat(keys, dim=2), torch.cat(values, dim=2), number)
    return placed


def test_known_passages_are_not_computed_in_any_order(smollm, tmp_path):
    one = make(smollm, kv_folder=tmp_path / "kv")
    first = composed(one, PASSAGES)
    n_question = len(first) - first.spans[-1][1]
    assert answer(one, first)[1] == 0
    for engine in (one, make(smollm, kv_folder=tmp_path / "kv")):
        for order in ((2, 1, 0), (1, 0), (0, 1, 2)):
            prompt = composed(engine, [PASSAGES[i] for i in order])
            assert answer(engine, prompt)[1] == len(prompt) - n_question
    again = make(smollm, kv_folder=tmp_path / "kv")
    assert answer(again, first)[0] == answer(make(smollm), first)[0]


def test_tokens_computed_again_see_the_passages_before_them(smollm):
    """All of them: then it is the ordinary prompt, but for the last token of each passage."""
    engine, plain = make(smollm), make(smollm)
    prompt = composed(engine, PASSAGES)
    apart = answer(engine, prompt)[0]
    expected = answer(plain, list(prompt))[0]
    assert apart != expected
    engine.n_again = len(prompt)
    answer(engine, engine.tokenizer.encode("Something else."))
    text, cached = answer(engine, prompt)
    assert text == expected
    first, *others = prompt.spans
    assert cached == first[1] + len(others)


def test_without_a_folder_passages_stay_in_memory(smollm):
    engine = make(smollm)
    answer(engine, composed(engine, PASSAGES))
    prompt = composed(engine, PASSAGES[::-1])
    assert answer(engine, prompt)[1] == prompt.spans[-1][1]
    small = make(smollm, kv_memory=0)
    answer(small, composed(small, PASSAGES))
    assert answer(small, composed(small, PASSAGES[::-1]))[1] < 20


def test_new_passages_mix_with_known_ones(smollm, tmp_path):
    engine = make(smollm, kv_folder=tmp_path / "kv")
    answer(engine, composed(engine, PASSAGES[:2]))
    prompt = composed(engine, (PASSAGES[2], PASSAGES[0]))
    new = prompt.spans[0][1] - prompt.spans[0][0]
    n_question = len(prompt) - prompt.spans[-1][1]
    assert answer(engine, prompt)[1] == len(prompt) - new - n_question


def test_ordinary_prompts_take_nothing_that_was_placed(smollm, tmp_path):
    engine = make(smollm, kv_type="f32", kv_folder=tmp_path / "kv")
    cold = make(smollm, kv_type="f32", kv_memory=0)
    prompt = composed(engine, PASSAGES)
    answer(engine, prompt)
    answer(engine, prompt)
    assert answer(engine, list(prompt))[0] == answer(cold, list(prompt))[0]
    other = engine.tokenizer.encode("Something else. " * 40)
    answer(engine, prompt)
    answer(engine, other)  # puts aside what was held
    assert answer(engine, list(prompt))[0] == answer(cold, list(prompt))[0]


def test_a_conversation_goes_on_from_placed_passages(smollm):
    engine = make(smollm)
    first = composed(engine, PASSAGES)
    said, _ = answer(engine, first)
    more = PassagePrompt(
        [*first, *engine.tokenizer.encode(f"{said}\n\nQuestion: where?\nAnswer:")], first.spans
    )
    assert answer(engine, more)[1] >= len(first)


def test_damage_to_a_passage_means_that_it_is_computed_again(smollm, tmp_path):
    engine = make(smollm, kv_folder=tmp_path / "kv")
    prompt = composed(engine, PASSAGES)
    said = answer(engine, prompt)[0]
    for path in (tmp_path / "kv").glob("*.state"):
        data = bytearray(path.read_bytes())
        data[random.Random(0).randrange(len(data))] ^= 4
        path.write_bytes(data)
    again = make(smollm, kv_folder=tmp_path / "kv")
    assert answer(again, prompt)[0]
    assert answer(again, prompt)[0] == said


def test_stopping_while_passages_are_put_in_place_leaves_nothing_half_turned(smollm, monkeypatch):
    engine = make(smollm)
    prompt = composed(engine, PASSAGES)
    said = answer(engine, prompt)[0]
    place, cancel = Composer._place, Cancellation()
    monkeypatch.setattr(
        Composer, "_place", lambda self, *parts: (place(self, *parts), cancel.cancel())[0]
    )
    other = composed(engine, PASSAGES[::-1])
    assert list(engine.generate(other, GREEDY, cancel=cancel))[-1].finish_reason == "cancelled"
    monkeypatch.undo()
    again = answer(engine, other)[0]
    assert again == answer(make(smollm), other)[0]
    assert answer(engine, prompt)[0] == said
