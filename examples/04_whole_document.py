"""A whole document in one prompt: no search, nothing cut, every later question for its own tokens.

    python examples/04_whole_document.py MODEL.gguf DOCUMENT "question" ["another" ...]

With Chinese-Mixtral give --n-ctx 32768, some 40 pages of Chinese; the small models hold less.
"""

import argparse
import tempfile
import time

from mixtral_rag import open_qa


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("document")
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--n-ctx", type=int, default=32_768)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        qa = open_qa(
            store=store, model=given.model, n_ctx=given.n_ctx, context_tokens=given.n_ctx,
            max_tokens=80,
        )  # fmt: skip
        qa.ingest([given.document])
        for question in given.questions:
            started = time.perf_counter()
            answer = qa.ask(question)
            print(f"> {question}\n{answer.text}\n  {time.perf_counter() - started:.1f} s")
            if used := answer.usage:  # none where nothing fits the question
                print(f"  {used.cached_tokens} of {used.prompt_tokens} tokens were read before")


if __name__ == "__main__":
    main()
