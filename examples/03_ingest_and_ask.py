"""Ingest a folder, see what became of each file, ask, and check every sentence of the answer.

python examples/03_ingest_and_ask.py MODEL.gguf [FOLDER "question"]
"""

import sys
import tempfile
from pathlib import Path

from mixtral_rag import open_qa

CONTRACTS = Path(__file__).parent / "contracts"


def main(
    model: str, folder: str = str(CONTRACTS), question: str = "What is the fee a year?"
) -> None:
    with tempfile.TemporaryDirectory() as store:
        qa = open_qa(store=store, model=model, max_tokens=40, top_k=2)
        report = qa.ingest([folder])
        print(
            f"added: {', '.join(p.name for p in report.added)}; failed: {report.failed or 'none'}"
        )

        for passage in qa.search(question)[:2]:
            print(f"found: {passage.name}, {passage.where} ({passage.score:.2f})")

        answer = qa.ask(question)
        print(f"answer: {answer.text}")
        for citation in answer.citations:
            print(f"  [{citation.number}] {citation.passage.name}, {citation.passage.where}")
        for claim in answer.claims:
            print(f"  {'held by its source' if claim.is_supported else 'NOT held'}: {claim.text}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
