"""An agent with two tools: search in the documents, and arithmetic.

    python examples/06_agent_with_tools.py MODEL.gguf ["question"]

Needs the extra `langchain`. A small model may answer without a tool; Chinese-Mixtral-Instruct calls
them, and every call is held to the tool's schema.
"""

import sys
import tempfile
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.tools import tool

from mixtral_rag import ChatChineseMixtral, DocumentRetriever, open_qa

CONTRACTS = Path(__file__).parent / "contracts"
QUESTION = "What do twelve pumps cost at 8600 yuan each?"


@tool
def multiply(a: float, b: float) -> float:
    """Multiply two numbers."""
    return a * b


def main(model: str, question: str = QUESTION) -> None:
    with tempfile.TemporaryDirectory() as store:
        open_qa(store=store).ingest([CONTRACTS])
        retriever = DocumentRetriever.open(store, k=1)

        @tool
        def search_contracts(query: str) -> str:
            """Search the contracts for what they say about something."""
            found = retriever.invoke(query)
            return "\n\n".join(f"{d.metadata['source']}:\n{d.page_content}" for d in found)

        chat = ChatChineseMixtral(model=model, temperature=0.0, max_tokens=100)
        agent = create_agent(chat, [search_contracts, multiply])
        for message in agent.invoke({"messages": [("human", question)]})["messages"]:
            message.pretty_print()


if __name__ == "__main__":
    main(*sys.argv[1:3])
