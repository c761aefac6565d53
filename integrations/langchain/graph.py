"""A LangGraph: write the question anew, search, and answer, or say that nothing was found.

    python graph.py MODEL.gguf FOLDER "And who wrote it?" "What is bzip2?"

The last argument is an earlier question, so that the first one needs its context.
"""

import sys
import tempfile
from typing import TypedDict

from langchain_core.documents import Document
from langgraph.graph import END, START, StateGraph

from mixtral_rag import ChatChineseMixtral, DocumentRetriever, open_qa


class State(TypedDict, total=False):
    before: str
    question: str
    documents: list[Document]
    answer: str


def main(model: str, folder: str, question: str, before: str = "") -> None:
    store = tempfile.mkdtemp(prefix="store-")  # a real one is kept
    open_qa(store=store).ingest([folder])
    retriever = DocumentRetriever.open(store, k=2)
    chat = ChatChineseMixtral(model=model, temperature=0.0, max_tokens=80)

    def rewrite(state: State) -> State:
        if not state["before"]:
            return {}
        asked = f"Earlier: {state['before']}\nNow: {state['question']}\n"
        return {"question": chat.invoke(f"{asked}Write the last as one whole question.").text}

    def search(state: State) -> State:
        return {"documents": retriever.invoke(f"{state['before']} {state['question']}")}

    def answer(state: State) -> State:
        passages = "\n\n".join(d.page_content for d in state["documents"])
        return {"answer": chat.invoke(f"{passages}\n\nAnswer briefly: {state['question']}").text}

    def nothing(_: State) -> State:
        return {"answer": "The documents hold nothing about it."}

    graph = StateGraph(State)
    for node in (rewrite, search, answer, nothing):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "rewrite")
    graph.add_edge("rewrite", "search")
    graph.add_conditional_edges("search", lambda s: "answer" if s["documents"] else "nothing")
    graph.add_edge("answer", END)
    graph.add_edge("nothing", END)
    for step in graph.compile().stream({"question": question, "before": before}):
        for node, made in step.items():
            print(f"{node}: {made}"[:300])


if __name__ == "__main__":
    main(*sys.argv[1:5])
