"""A chat over documents that remembers: follow-ups are understood, and nothing is read twice.

python examples/02_chat_with_memory.py MODEL.gguf ["a question" "a follow-up" ...]
"""

import sys
import tempfile
from pathlib import Path

from mixtral_rag import open_qa
from mixtral_rag.qa import Conversation

HERE = Path(__file__).parent
QUESTIONS = ("Within how many hours does a repair start?", "And what is the fee a year?")


def main(model: str, *questions: str) -> None:
    with tempfile.TemporaryDirectory() as store:
        qa = open_qa(store=store, model=model, max_tokens=60)
        qa.ingest([HERE / "contracts"])
        conversation = Conversation(qa)
        for question in questions or QUESTIONS:
            print(f"\n> {question}")
            for text in conversation.stream(question):
                print(text, end="", flush=True)
            answer = conversation.last
            print()
            for citation in answer.citations:
                print(f"  [{citation.number}] {citation.passage.name}: {citation.quote}")
            if answer.usage:
                print(f"  {answer.usage.cached_tokens} of {answer.usage.prompt_tokens} tokens were"
                      " read before")  # fmt: skip
        qa.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
