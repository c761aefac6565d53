"""32 questions at once and the first token, for every engine: our face, the bare engine, others.

    .venv-vllm/bin/python tests/benchmarks/engines.py [--engine llamacpp] [--rounds 5]

In every round all ways answer the same questions greedily, each after a first word of its own,
taking turns. Printed are medians and, for each way, the median of its ratio to the bare engine in
the same turn, with the standard error of that median. Engines whose libraries are not
installed are left out. The model is SmolLM2-135M: its GGUF for llama.cpp, the same weights in
float32 for the others.
"""

import argparse
import asyncio
import atexit
import contextlib
import importlib.util
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from decode import AFTER, BEFORE, same_layout, small_model

from mixtral_rag import ChatChineseMixtral, Message
from mixtral_rag.engines.llama_library import release_team

N_TOKENS, N_CTX, FIRSTS = 48, 2048, 4
VLLM = {"enforce_eager": True, "gpu_memory_utilization": 0.3}
FIRST_WORDS = itertools.cycle(["apple", "bird", "cat", "dog", "egg", "fish", "girl", "hat", "ice"])
# Engines that answer one after another take turns within a round too, so that changes of the
# machine's speed fall on all ways alike; the others need all questions at once.
PARTS = {"llamacpp": 16, "transformers": 8, "remote": 2}
Batch = Callable[[list[str]], int]  # answers questions, returns how many tokens it made
Stream = Callable[[str], Iterator[Any]]
Ways = dict[str, tuple[Batch, Stream | None]]


def questions(round_: int, n: int) -> list[str]:
    return [f"{round_}.{i} Tell me a long story about {i} foxes and a river." for i in range(n)]


def begun(text: str) -> str:
    """`text` after a word that is not the last one's: nobody finds a beginning computed."""
    return f"{next(FIRST_WORDS)} {text}"


def chat(model: Path, engine: str, **options: Any) -> ChatChineseMixtral:
    return ChatChineseMixtral(
        model=str(model), engine=engine, n_ctx=N_CTX, temperature=0, repeat_penalty=1.0,
        max_tokens=N_TOKENS, **options,
    )  # fmt: skip


def ours(model: ChatChineseMixtral) -> tuple[Batch, Stream]:
    def batch(texts: list[str]) -> int:
        return sum(m.usage_metadata["output_tokens"] for m in model.batch(texts))

    return batch, model.stream


def ours_async(model: ChatChineseMixtral) -> tuple[Batch, Stream]:
    """The same from an event loop, where the engine computes in a thread beside the main one."""

    def batch(texts: list[str]) -> int:
        answers = asyncio.run(model.abatch(texts))
        return sum(m.usage_metadata["output_tokens"] for m in answers)

    async def first(text: str) -> Any:
        return await anext(model.astream(text))

    def stream(text: str) -> Iterator[Any]:
        yield asyncio.run(first(text))

    return batch, stream


def ids_of(model: ChatChineseMixtral, text: str) -> list[int]:
    return model.render_messages([Message("user", text)])


def llamacpp(_: Path) -> Ways:
    from langchain_community.llms import LlamaCpp
    from llama_cpp import Llama

    from mixtral_rag.engines.llamacpp import default_threads

    same_layout()
    model, threads = chat(small_model(), "llamacpp"), default_threads()
    shared = {"n_ctx": N_CTX, "n_batch": 512, "n_threads": threads}
    bare = Llama(
        str(small_model()), flash_attn=True, n_threads_batch=threads, verbose=False, **shared
    )
    community = LlamaCpp(
        model_path=str(small_model()), temperature=0.0, repeat_penalty=1.0, max_tokens=N_TOKENS,
        model_kwargs={"flash_attn": True, "n_threads_batch": threads}, verbose=False, **shared,
    )  # fmt: skip

    def loop(text: str) -> Iterator[bytes]:
        tokens = bare.generate(ids_of(model, text), temp=0.0, repeat_penalty=1.0)
        for n, token in enumerate(tokens, start=1):
            if token == bare.token_eos():
                return
            yield bare.detokenize([token])
            if n == N_TOKENS:
                return

    def batch(texts: list[str]) -> int:
        return sum(1 for text in texts for _ in loop(text))

    def community_batch(texts: list[str]) -> int:  # one at a time: it crashes when used at once
        answers = [community.invoke(BEFORE + text + AFTER) for text in texts]
        return sum(len(model.get_token_ids(a)) for a in answers)

    return {
        "bare llama-cpp-python loop": (batch, loop),
        "ChatChineseMixtral": ours(model),
        "ChatChineseMixtral, abatch": ours_async(model),
        "langchain-community LlamaCpp": (
            community_batch,
            lambda text: community.stream(BEFORE + text + AFTER),
        ),
    }


def transformers(folder: Path) -> Ways:
    import torch
    from langchain_community.llms import HuggingFacePipeline
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextGenerationPipeline
    from transformers.generation.streamers import BaseStreamer

    model = chat(folder, "transformers", device="cpu")
    bare = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    greedy = {"do_sample": False, "max_new_tokens": N_TOKENS}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pipeline = TextGenerationPipeline(
        model=bare, tokenizer=tokenizer, task="text-generation", **greedy
    )
    community = HuggingFacePipeline(pipeline=pipeline)

    def batch(texts: list[str]) -> int:
        n = 0
        for text in texts:
            ids = torch.tensor([ids_of(model, text)])
            n += bare.generate(ids, **greedy).shape[1] - ids.shape[1]
        return n

    class First(BaseStreamer):
        """Ends the generation at its first token."""

        seen = 0

        def put(self, _: Any) -> None:
            self.seen += 1
            if self.seen == 2:  # the prompt comes first
                raise StopIteration

        def end(self) -> None:
            pass

    def stream(text: str) -> Iterator[None]:
        with contextlib.suppress(StopIteration):
            bare.generate(torch.tensor([ids_of(model, text)]), streamer=First(), **greedy)
        yield None

    def community_batch(texts: list[str]) -> int:
        answers = [community.invoke(BEFORE + text + AFTER) for text in texts]
        prompts = [BEFORE + text + AFTER for text in texts]
        made = [a.removeprefix(p) for a, p in zip(answers, prompts, strict=True)]
        return sum(len(model.get_token_ids(a)) for a in made)

    return {
        "bare model.generate": (batch, stream),
        "ChatChineseMixtral": ours(model),
        "langchain-community HuggingFacePipeline": (community_batch, None),
    }


def vllm(folder: Path) -> Ways:
    from langchain_community.llms import VLLM as CommunityVLLM
    from vllm import LLM, SamplingParams

    model = chat(folder, "vllm", dtype="float32", engine_options=VLLM)
    model.invoke("x")
    bare = LLM(
        str(folder), dtype="float32", max_model_len=N_CTX, enable_prefix_caching=True, **VLLM
    )
    atexit.register(bare.llm_engine.engine_core.shutdown)  # or the script never ends
    greedy = SamplingParams(temperature=0, max_tokens=N_TOKENS)

    def batch(texts: list[str]) -> int:
        prompts = [{"prompt_token_ids": ids_of(model, text)} for text in texts]
        outputs = bare.generate(prompts, greedy, use_tqdm=False)
        return sum(len(o.outputs[0].token_ids) for o in outputs)

    def first(text: str) -> Iterator[None]:
        one = SamplingParams(temperature=0, max_tokens=1)
        bare.generate([{"prompt_token_ids": ids_of(model, text)}], one, use_tqdm=False)
        yield None

    ways: Ways = {"bare LLM.generate": (batch, first), "ChatChineseMixtral": ours(model)}
    try:
        community = CommunityVLLM(
            model=str(folder), dtype="float32", temperature=0, max_new_tokens=N_TOKENS,
            vllm_kwargs={"max_model_len": N_CTX, **VLLM},
        )  # fmt: skip
        community.invoke("x")
        atexit.register(community.client.llm_engine.engine_core.shutdown)
    except Exception as error:  # noqa: BLE001 - its own fault is part of the comparison
        print(f"langchain-community VLLM does not run: {error}".splitlines()[0][:160])
        return ways

    def community_batch(texts: list[str]) -> int:
        answers = community.batch([BEFORE + text + AFTER for text in texts])
        return sum(len(model.get_token_ids(a)) for a in answers)

    return ways | {"langchain-community VLLM": (community_batch, None)}


def remote(folder: Path) -> Ways:
    """Over one vLLM server: the official client with the same IDs is the bare engine."""
    from concurrent.futures import ThreadPoolExecutor

    from langchain_community.llms import VLLMOpenAI
    from model_servers import vllm_server
    from openai import OpenAI

    log = folder.parent / "server.log"
    server = SERVERS.enter_context(vllm_server(folder, log))
    options = {"base_url": server.root, "tokenizer": str(folder)}
    model = chat(Path(folder.name), "remote", **options)
    client = OpenAI(base_url=f"{server.root}/v1", api_key="none")
    wanted = {"model": folder.name, "max_tokens": N_TOKENS, "temperature": 0}
    community = VLLMOpenAI(
        openai_api_key="none", openai_api_base=f"{server.root}/v1", model_name=folder.name,
        temperature=0, max_tokens=N_TOKENS,
    )  # fmt: skip

    def ask(text: str) -> int:
        answer = client.completions.create(prompt=ids_of(model, text), **wanted)
        return answer.usage.completion_tokens

    def batch(texts: list[str]) -> int:
        with ThreadPoolExecutor(len(texts)) as pool:
            return sum(pool.map(ask, texts))

    def stream(text: str) -> Iterator[Any]:
        return iter(client.completions.create(prompt=ids_of(model, text), stream=True, **wanted))

    def community_batch(texts: list[str]) -> int:
        answers = community.batch([BEFORE + text + AFTER for text in texts])
        return sum(len(model.get_token_ids(a)) for a in answers)

    return {
        "bare openai client": (batch, stream),
        "ChatChineseMixtral": ours(model),
        "langchain-community VLLMOpenAI": (
            community_batch,
            lambda text: community.stream(BEFORE + text + AFTER),
        ),
    }


SERVERS = contextlib.ExitStack()
MAKERS = {"llamacpp": llamacpp, "transformers": transformers, "vllm": vllm, "remote": remote}
NEEDS = {
    "llamacpp": "llama_cpp",
    "transformers": "transformers",
    "vllm": "vllm",
    "remote": "vllm",
}


def first_token(stream: Stream, text: str) -> float:
    started = time.perf_counter()
    pieces = iter(stream(text))
    next(pieces)
    took = time.perf_counter() - started
    close = getattr(pieces, "close", None)
    if close is not None:
        close()
    return took


def measure(name: str, ways: Ways, rounds: int, n: int) -> None:
    rates: dict[str, list[float]] = {way: [] for way in ways}
    firsts: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(-1, rounds):
        made = answer(ways, questions(round_, n if round_ >= 0 else 2), PARTS.get(name, 1))
        took = first_tokens(ways, round_)
        for way in ways if round_ >= 0 else ():  # the first round loads and warms up
            rates[way] += made[way]
            firsts[way] += took[way]
    report(name, rates, firsts)


def turns(ways: Ways, first: int) -> list[str]:
    """The ways in turn, another one first each time."""
    order = list(ways)
    return order[first % len(order) :] + order[: first % len(order)]


def answer(ways: Ways, texts: list[str], n_parts: int) -> dict[str, list[float]]:
    """Tokens a second of each way in each part; they take turns at every one."""
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for part in range(n_parts):
        for way in turns(ways, part) if texts[part::n_parts] else ():
            asked = [begun(text) for text in texts[part::n_parts]]
            started = time.perf_counter()
            made = ways[way][0](asked)
            rates[way].append(made / (time.perf_counter() - started))
            assert made > len(asked) * N_TOKENS * 0.3, f"{way} made {made} tokens only"
            # The bare loop and langchain-community leave this thread its OpenMP team, which would
            # slow down whatever computes in another thread of this process.
            release_team()
    return rates


def first_tokens(ways: Ways, round_: int) -> dict[str, list[float]]:
    """Seconds to the first token of each way that streams."""
    took: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(FIRSTS):
        for way in turns(ways, round_ + number):
            stream = ways[way][1]
            if stream:
                took[way].append(first_token(stream, begun(f"{round_}.{number} " + "a fox " * 200)))
                release_team()
    return took


def report(name: str, rates: dict[str, list[float]], firsts: dict[str, list[float]]) -> None:
    base = next(iter(rates))
    print(f"\n{name}\n{'':32} {'tokens/s':>9} {'ratio':>15} {'first token':>12} {'ratio':>15}")
    for way in rates:
        line = f"{way:32} {statistics.median(rates[way]):9.1f} {ratio(rates[way], rates[base])}"
        if firsts[way]:
            milliseconds = statistics.median(firsts[way]) * 1000
            line += f" {milliseconds:9.0f} ms {ratio(firsts[way], firsts[base])}"
        print(line, flush=True)


def ratio(of: list[float], to: list[float]) -> str:
    """The median ratio of what was measured in turn, with its standard error."""
    ratios = [a / b for a, b in zip(of, to, strict=True)]
    spread = statistics.stdev(ratios) if len(ratios) > 1 else 0.0
    return f"{statistics.median(ratios):7.3f} ± {1.25 * spread / len(ratios) ** 0.5:5.3f}"


def full_weights(folder: Path) -> Path:
    """SmolLM2's GGUF as full weights in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": small_model().name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(small_model().parent, **source)
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(small_model().parent, **source).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=MAKERS, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=32)
    arguments = parser.parse_args()
    chosen = [
        e for e in arguments.engine or MAKERS if importlib.util.find_spec(NEEDS[e]) is not None
    ]
    print(f"{arguments.questions} questions of {N_TOKENS} tokens, {os.cpu_count()} cores, "
          f"{arguments.rounds} rounds")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch, SERVERS:
        folder = Path(scratch)
        if set(chosen) - {"llamacpp"}:
            folder = full_weights(folder / "smollm2-instruct")
        for engine in chosen:
            measure(engine, MAKERS[engine](folder), arguments.rounds, arguments.questions)


if __name__ == "__main__":
    main()
