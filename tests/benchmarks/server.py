"""Our server beside llama-cpp-python's own: requests a second and time to first token.

    .venv/bin/python tests/benchmarks/server.py [model.gguf] [--clients 1 8 64] [--requests 48]
        [--documents 8]

Both serve the same GGUF with the same window and threads, and are asked in turn, `--rounds` times,
while the other has nothing to do. Every request streams, with a prompt of its own, so that no
prompt is known beforehand; with `--documents` each begins with one of so many texts of some 1,000
tokens, as questions of a team about its documents do. What is refused with 503 is asked again after
`Retry-After`, as a client should, and its waiting counts.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from model_servers import N_CTX, llama_cpp_server, served

from mixtral_rag.machine import usable_cpus
from mixtral_rag.settings import Settings, find_model

_WORDS = (
    "river", "stone", "lamp", "garden", "winter", "letter", "engine", "window", "tree", "market",
)  # fmt: skip
_NAMES = ("mixtral_rag", "llama-cpp-python")


@dataclass
class Figures:
    """What one server gave."""

    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: int = 0
    busy: int = 0

    @property
    def median_ms(self) -> float:
        return 1000 * statistics.median(self.first or [float("nan")])


def ours(model: Path, folder: Path):
    options = {"--model": model, "--store": folder / "store", "--n-ctx": N_CTX, "--kv-bytes": 0,
               "--n-threads": usable_cpus()}  # fmt: skip
    command = ["-m", "mixtral_rag", "serve", *(str(x) for pair in options.items() for x in pair)]
    return served(command, folder / "ours.log")


def theirs(model: Path, folder: Path):
    threads = str(usable_cpus())
    more = ["--n_threads", threads, "--n_threads_batch", threads]
    # Else it breaks off an answer when the next request comes.
    more += ["--interrupt_requests", "False"]
    return llama_cpp_server(model, "model", folder / "theirs.log", *more)


def words(number: int, n: int) -> str:
    return " ".join(_WORDS[(number * 7 + i * 3) % 10] + str(number) for i in range(n))


def prompt(number: int, documents: int) -> str:
    if not documents:
        return f"Write about: {words(number, 40)}"
    document = number // 1000 * 1000 + number % documents  # others for every number of clients
    return f"Read: {words(document, 200)}\n\nWrite about: {words(number, 8)}"


async def ask(
    http: httpx.AsyncClient, name: str, content: str, n_tokens: int, got: Figures
) -> None:
    body = {"model": name, "stream": True, "max_tokens": n_tokens, "temperature": 0,
            "messages": [{"role": "user", "content": content}]}  # fmt: skip
    started = time.perf_counter()
    while True:
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code in (429, 503):
                got.busy += 1
                await answer.aread()
                await asyncio.sleep(min(2.0, float(answer.headers["retry-after"])))
                continue
            if answer.status_code != 200:
                got.errors += 1
                return
            is_first = True
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                told = json.loads(line[6:])
                if "error" in told:
                    got.errors += 1
                    return
                if told["choices"] and told["choices"][0]["delta"].get("content"):
                    if is_first:
                        got.first.append(time.perf_counter() - started)
                        is_first = False
                    got.tokens += 1
            return


async def load(root: str, clients: int, contents: list[str], n_tokens: int, got: Figures) -> None:
    """Requests by so many clients, each the next as soon as its last is answered."""
    waiting = iter(contents)
    async with httpx.AsyncClient(base_url=root, timeout=900) as http:
        name = (await http.get("/v1/models")).json()["data"][0]["id"]

        async def client() -> None:
            for content in waiting:
                try:
                    await ask(http, name, content, n_tokens, got)
                except httpx.HTTPError:
                    got.errors += 1

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        got.seconds += time.perf_counter() - started


def compare(model: Path, options: argparse.Namespace) -> dict[tuple[str, int], Figures]:
    """Of each server by number of clients."""
    found = {(name, clients): Figures() for clients in options.clients for name in _NAMES}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        roots = {
            name: stack.enter_context(server(model, Path(scratch))).root
            for name, server in zip(_NAMES, (ours, theirs), strict=True)
        }
        for root in roots.values():  # loads the weights
            asyncio.run(load(root, 1, [prompt(n, 0) for n in (900, 901)], 8, Figures()))
        for (name, clients), (part, of) in parts(options):
            n = max(options.requests, clients)
            numbers = range(part * n // of, (part + 1) * n // of)
            first = 1000 * (1 + options.clients.index(clients))
            contents = [prompt(first + i, options.documents) for i in numbers]
            asyncio.run(load(roots[name], clients, contents, options.tokens, found[name, clients]))
    return found


def parts(options: argparse.Namespace) -> Iterator[tuple[tuple[str, int], tuple[int, int]]]:
    """Who is asked next, by how many clients, and which part of their requests."""
    for clients in options.clients:
        of = max(1, min(options.rounds, options.requests // clients))
        for part in range(of):
            for name in _NAMES:
                yield (name, clients), (part, of)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--documents", type=int, default=0)
    options = parser.parse_args()
    if min(*options.clients, options.requests, options.rounds) < 1:
        parser.error("--clients, --requests and --rounds take numbers from 1 up")
    model = options.model or find_model(Settings())[0]
    if not model.is_file():
        parser.error(f"{model} is not a file; give the path of a GGUF model")
    found = compare(model, options)
    print(f"{model.name}, {usable_cpus()} threads, answers of up to {options.tokens} tokens")
    print(f"{'clients':>8} {'server':18} {'requests/s':>10} {'tokens/s':>9} {'first token':>12} "
          f"{'busy':>5} {'errors':>6}")  # fmt: skip
    for clients in options.clients:
        for name in _NAMES:
            f = found[name, clients]
            rates = f"{len(f.first) / f.seconds:10.2f} {f.tokens / f.seconds:9.1f}"
            print(f"{clients:8} {name:18} {rates} {f.median_ms:9.0f} ms {f.busy:5} {f.errors:6}")
        a, b = found["mixtral_rag", clients], found["llama-cpp-python", clients]
        rate = (len(a.first) / a.seconds) / (len(b.first) / b.seconds)
        print(f"         ratio: requests/s {rate:.2f}, first token {a.median_ms / b.median_ms:.3f}")


if __name__ == "__main__":
    main()
