"""The llama.cpp engine, with real llama.cpp over a real (random) Mixtral and SmolLM2."""

import gc
import subprocess
import sys
import threading
import time

import pytest

from mixtral_rag.engines import Cancellation, open_engine
from mixtral_rag.engines.llamacpp import LlamaCppEngine, default_threads
from mixtral_rag.errors import (
    ContextError,
    ModelFileError,
    ModelNotFoundError,
    SettingsError,
)
from mixtral_rag.prompts import render
from mixtral_rag.types import Message, SamplingOptions

GREEDY = SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=24)


@pytest.fixture(scope="module")
def engine(tiny_mixtral):
    return LlamaCppEngine(str(tiny_mixtral), n_ctx=2048)


def prompt(engine, text="你好，世界"):
    return render([Message("user", text)], engine.tokenizer)


def text_of(pieces):
    return "".join(p.text for p in pieces)


def run(engine, ids, options=GREEDY, **kwargs):
    pieces = list(engine.generate(ids, options, **kwargs))
    return text_of(pieces), pieces[-1]


@pytest.fixture(scope="module")
def bare(tiny_mixtral):
    """llama-cpp-python's own class over the same file, computing in the same way."""
    from llama_cpp import Llama

    n = default_threads()
    return Llama(
        str(tiny_mixtral), n_ctx=2048, n_batch=512, flash_attn=False, n_threads=n,
        n_threads_batch=n, verbose=False,
    )  # fmt: skip


def bare_greedy(bare, ids, n):
    bare.reset()
    out = []
    for token in bare.generate(ids, temp=0.0, repeat_penalty=1.0, top_k=1):
        if len(out) == n or token == bare.token_eos():
            break
        out.append(token)
    return out


@pytest.mark.parametrize("text", ["你好，世界", "Hello", "x" * 3000])
def test_greedy_text_equals_bare_llama_cpp(engine, bare, text):
    ids = prompt(engine, text)
    expected = b"".join(engine.tokenizer.piece(i) for i in bare_greedy(bare, ids, 24))
    assert run(engine, ids)[0] == expected.decode("utf-8", "replace")


def test_usage_counts_tokens_and_what_was_cached(engine):
    ids = prompt(engine, "a question nobody asked before " * 10)
    _, first = run(engine, ids)
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (len(ids), 24)
    assert first.finish_reason == "length"
    _, again = run(engine, ids)
    assert len(ids) - 12 <= again.usage.cached_tokens <= len(ids) - 8


def test_a_seed_repeats_a_sample_and_another_changes_it(engine):
    ids = prompt(engine)
    options = [SamplingOptions(temperature=1.5, top_p=1, max_tokens=24, seed=s) for s in (1, 1, 2)]
    run(engine, ids)  # so that all three start from the same cached prompt
    a, b, c = (run(engine, ids, o)[0] for o in options)
    assert a == b != c


def test_without_a_seed_samples_differ(engine):
    options = SamplingOptions(temperature=1.5, top_p=1, max_tokens=24)
    assert run(engine, prompt(engine), options)[0] != run(engine, prompt(engine), options)[0]


def test_the_repeat_penalty_changes_a_repetition(engine):
    plain = run(engine, prompt(engine), SamplingOptions(temperature=0, repeat_penalty=1.0))[0]
    penalised = run(engine, prompt(engine), SamplingOptions(temperature=0, repeat_penalty=1.5))[0]
    assert plain != penalised


def test_top_k_of_one_is_greedy(engine):
    one = SamplingOptions(temperature=2, top_k=1, repeat_penalty=1.0, max_tokens=24)
    assert run(engine, prompt(engine), one)[0] == run(engine, prompt(engine))[0]


def test_a_stop_text_ends_the_answer_before_it(engine):
    whole, _ = run(engine, prompt(engine))
    stop = whole[6:10]
    options = SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=24, stop=[stop])
    cut, last = run(engine, prompt(engine), options)
    assert cut == whole[: whole.index(stop)]
    assert last.finish_reason == "stop"
    assert last.usage.completion_tokens < 24


def test_streaming_gives_whole_characters_only(engine):
    options = SamplingOptions(temperature=2.0, top_p=1, top_k=0, max_tokens=300, seed=7)
    pieces = list(engine.generate(prompt(engine), options))
    assert len(pieces) > 100
    ids_text = text_of(pieces)
    assert all(p.text.encode() for p in pieces[:-1])
    assert any(ord(c) > 0x2E80 for c in ids_text), "a random model should write some CJK"


def test_no_limit_fills_the_context(tiny_mixtral):
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=256)
    ids = prompt(engine)
    options = SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=None)
    _, last = run(engine, ids, options)
    assert last.usage.total_tokens <= 256
    assert last.finish_reason == "stop" or last.usage.total_tokens == 256


def test_what_does_not_fit_is_refused_before_weights_load(tiny_mixtral):
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=128)
    ids = prompt(engine, "x " * 200)
    with pytest.raises(ContextError) as caught:
        engine.generate(ids, GREEDY)
    assert (caught.value.prompt_tokens, caught.value.n_ctx) == (len(ids), 128)
    assert f"{len(ids):,} tokens" in str(caught.value)
    with pytest.raises(ContextError):
        engine.generate(prompt(engine), SamplingOptions(max_tokens=128))
    assert not engine.is_loaded


def test_another_thread_can_stop_a_prefill(smollm):
    engine = LlamaCppEngine(str(smollm), n_batch=2048)
    ids = [*range(300, 8000)]
    run(engine, ids[:10])
    cancel = Cancellation()
    threading.Timer(0.5, cancel.cancel).start()
    started = time.monotonic()
    text, last = run(engine, ids, GREEDY, cancel=cancel)
    assert time.monotonic() - started < 8, "the whole prefill takes over 20 seconds"
    assert (text, last.finish_reason, last.usage.completion_tokens) == ("", "cancelled", 0)
    # and the engine is as good as new
    assert run(engine, ids[:40])[0] == run(LlamaCppEngine(str(smollm)), ids[:40])[0]


def test_a_cancelled_answer_ends_between_tokens(engine):
    cancel = Cancellation()
    pieces = []
    for piece in engine.generate(prompt(engine), GREEDY, cancel=cancel):
        pieces.append(piece)
        if len(pieces) == 3:
            cancel.cancel()
    assert pieces[-1].finish_reason == "cancelled"
    assert pieces[-1].usage.completion_tokens <= 4


def test_cancelling_one_generation_does_not_touch_the_next(engine):
    cancel = Cancellation()
    expected, _ = run(engine, prompt(engine))
    run(engine, prompt(engine), GREEDY, cancel=cancel)
    cancel.cancel()
    assert run(engine, prompt(engine))[0] == expected


def test_eight_threads_get_what_one_gets(tiny_mixtral):
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=512, kv_type="f32")  # without rounding
    questions = [prompt(engine, f"问题 {i} " * (i + 1)) for i in range(8)]
    alone = [run(engine, q)[0] for q in questions]
    together = [None] * 8

    def work(i):
        together[i] = run(engine, questions[i])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert together == alone


def test_a_half_read_stream_does_not_block_the_next_one(engine):
    whole, _ = run(engine, prompt(engine, "first"))
    stream = engine.generate(prompt(engine, "first"), GREEDY)
    start = next(stream).text + next(stream).text
    second = engine.generate(prompt(engine, "second"), GREEDY)
    next(second)
    run(engine, prompt(engine, "third"))
    assert start + text_of(stream) == whole
    assert text_of(second)
    abandoned = engine.generate(prompt(engine), GREEDY)
    next(abandoned)
    assert run(engine, prompt(engine, "first"))[0] == whole


def test_two_slow_readers_do_not_recompute_their_prompts_for_every_token(smollm, monkeypatch):
    from mixtral_rag.engines.llama_context import LlamaContext

    engine = LlamaCppEngine(str(smollm))
    run(engine, [*range(300, 310)])
    computed = []
    decode = LlamaContext._decode

    def counted(self, ids):
        computed.append(len(ids))
        decode(self, ids)

    monkeypatch.setattr(LlamaContext, "_decode", counted)

    def read(ids):
        options = SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=8)
        for _ in engine.generate(ids, options):
            time.sleep(0.1)

    prompts = [[n, *range(300, 700)] for n in (40, 41)]
    threads = [threading.Thread(target=read, args=(ids,)) for ids in prompts]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sum(computed) < 3 * 401


def test_more_ctrl_c_leaves_the_engine_in_order(smollm):
    code = """
import os, signal, sys, threading, time
from mixtral_rag.engines.llamacpp import LlamaCppEngine
from mixtral_rag.types import SamplingOptions

engine = LlamaCppEngine(sys.argv[1])
options = SamplingOptions(temperature=0, max_tokens=8)

def text(ids):
    return "".join(p.text for p in engine.generate(ids, options))

def interrupt():
    time.sleep(0.5)
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.002)

def on_sigint(signum, frame):
    # Only inside the engine: later ones would end this script, not test the engine.
    while frame is not None:
        if frame.f_code is text.__code__:
            raise KeyboardInterrupt
        frame = frame.f_back

signal.signal(signal.SIGINT, on_sigint)
good = text([*range(300, 340)])
interrupter = threading.Thread(target=interrupt)
interrupter.start()
try:
    text([*range(300, 6300)])
except KeyboardInterrupt:
    interrupter.join()
print(text([*range(300, 340)]) == good, [t.name for t in threading.enumerate()])
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(smollm)], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "True ['MainThread']"


def test_leaving_while_threads_generate_is_no_crash(tiny_mixtral):
    code = """
import sys, threading, time
from mixtral_rag.engines.llamacpp import LlamaCppEngine
from mixtral_rag.types import SamplingOptions

engine = LlamaCppEngine(sys.argv[1], n_ctx=512)

def work():
    while True:
        list(engine.generate([1, 2, 3] * 50, SamplingOptions(max_tokens=3)))

for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.7)
"""
    for _ in range(3):
        out = subprocess.run(
            [sys.executable, "-c", code, str(tiny_mixtral)], capture_output=True, check=False
        )
        assert out.returncode == 0, out.stderr


def test_contexts_of_other_sizes_share_the_weights(tiny_mixtral):
    small, large = (LlamaCppEngine(str(tiny_mixtral), n_ctx=n) for n in (256, 512))
    for engine in (small, large):
        run(engine, prompt(engine))
    assert small._loaded._model is large._loaded._model


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0", "f32"])
def test_other_kv_types_work(tiny_mixtral, kv_type):
    # A head of 32 values, as q8_0 needs; real Mixtral heads have 128.
    from tiny_mixtral import write_tiny_mixtral

    path = tiny_mixtral.parent / "wide-heads.gguf"
    if not path.exists():
        write_tiny_mixtral(path, n_head=2, n_head_kv=1)
    engine = LlamaCppEngine(str(path), n_ctx=512, kv_type=kv_type)
    assert run(engine, prompt(engine))[1].usage.completion_tokens == 24


def test_a_context_of_128k_can_be_opened(tiny_mixtral):
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=131_072)
    assert engine.n_ctx == 131_072
    assert run(engine, prompt(engine))[1].usage.completion_tokens == 24


def test_reading_the_file_instead_of_mapping_it_changes_nothing(engine, tiny_mixtral):
    unmapped = LlamaCppEngine(str(tiny_mixtral), n_ctx=2048, mmap=False)
    assert run(unmapped, prompt(engine))[0] == run(engine, prompt(engine))[0]


def test_equal_options_share_one_engine(tiny_mixtral):
    a = open_engine("llamacpp", str(tiny_mixtral), n_ctx=512)
    assert open_engine("llamacpp", str(tiny_mixtral), n_ctx=512) is a
    assert open_engine("llamacpp", str(tiny_mixtral), n_ctx=1024) is not a


def test_an_engine_is_freed_with_its_last_user(tiny_mixtral):
    import weakref

    engine = open_engine("llamacpp", str(tiny_mixtral), n_ctx=768)
    run(engine, prompt(engine))
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


def test_a_real_model_answers(smollm):
    from mixtral_rag.templates import render_template

    engine = LlamaCppEngine(str(smollm))
    question = [Message("user", "What is the capital of France? Answer in one word.")]
    ids = render_template(question, engine.tokenizer, engine.chat_template)
    text, last = run(engine, ids)
    assert "Paris" in text
    assert last.finish_reason == "stop"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_ctx": 0}, "n_ctx"),
        ({"n_ctx": 200_000}, "131,072"),
        ({"kv_type": "q3_k"}, "q8_0"),
        ({"n_batch": 0}, "n_batch"),
    ],
)
def test_bad_options_are_named(tiny_mixtral, options, match):
    with pytest.raises(SettingsError, match=match):
        LlamaCppEngine(str(tiny_mixtral), **options)


def test_an_unknown_engine_names_the_known_ones(tiny_mixtral):
    with pytest.raises(SettingsError, match="llamacpp"):
        open_engine("llama", str(tiny_mixtral))


def test_a_missing_file_is_named(tmp_path):
    engine = LlamaCppEngine(str(tmp_path / "no.gguf"))
    with pytest.raises(ModelNotFoundError, match=r"no\.gguf"):
        engine.generate([1], GREEDY)


def test_the_old_expert_layout_is_explained(tiny_old_layout):
    engine = LlamaCppEngine(str(tiny_old_layout))
    with pytest.raises(ModelFileError, match="April 2024"):
        list(engine.generate([1, 2, 3], GREEDY))


def test_a_file_llama_cpp_refuses_gives_its_reason(tiny_mixtral, tmp_path):
    data = tiny_mixtral.read_bytes().replace(b"blk.1.ffn_norm.weight", b"blk.1.ffn_nope.weight")
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="ffn_norm"):
        list(LlamaCppEngine(str(path), n_ctx=256).generate([1, 2], GREEDY))
