"""An agent that searches the documents by itself, as often as it wants to.

    python agent.py MODEL.gguf FOLDER "Which flag makes bzip2 faster?"

A small model may answer without searching; Chinese-Mixtral-Instruct follows the tool's description.
"""

import sys
import tempfile

from langchain.agents import create_agent
from langchain_core.tools import tool

from mixtral_rag import ChatChineseMixtral, DocumentRetriever, open_qa


def main(model: str, folder: str, question: str) -> None:
    store = tempfile.mkdtemp(prefix="store-")  # a real one is kept
    open_qa(store=store).ingest([folder])
    retriever = DocumentRetriever.open(store, k=2)

    @tool(response_format="content_and_artifact")
    def search_documents(query: str) -> tuple[str, list]:
        """Search the company's documents for passages about something."""
        found = retriever.invoke(query)
        return "\n\n".join(f"{d.metadata['source']}:\n{d.page_content}" for d in found), found

    agent = create_agent(
        ChatChineseMixtral(model=model, temperature=0.0, max_tokens=100),
        [search_documents],
        system_prompt="Search the documents before you answer, and name the file you rely on.",
    )
    for message in agent.invoke({"messages": [("human", question)]})["messages"]:
        message.pretty_print()


if __name__ == "__main__":
    main(*sys.argv[1:4])
