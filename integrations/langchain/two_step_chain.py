"""Retrieve, then answer: LangChain's two-step chain from public parts.

    python two_step_chain.py MODEL.gguf FOLDER "Who is the author of bzip2?"

Every part can be replaced: the retriever by any other, the prompt by yours, the chat model by one
on a server (engine="remote", base_url=...).
"""

import sys
import tempfile

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableParallel, RunnablePassthrough

from mixtral_rag import ChatChineseMixtral, DocumentRetriever, open_qa


def numbered(documents: list[Document]) -> str:
    return "\n\n".join(f"[{n}] {d.page_content}" for n, d in enumerate(documents, start=1))


def main(model: str, folder: str, question: str) -> None:
    store = tempfile.mkdtemp(prefix="store-")  # a real one is kept
    open_qa(store=store).ingest([folder])
    retriever = DocumentRetriever.open(store, k=2)
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", "Answer from the numbered passages and name their numbers.\n\n{passages}"),
            ("human", "{question}"),
        ]
    )
    chat = ChatChineseMixtral(model=model, temperature=0.0, max_tokens=100)
    chain = RunnableParallel(documents=retriever, question=RunnablePassthrough()).assign(
        answer={
            "passages": lambda found: numbered(found["documents"]),
            "question": lambda found: found["question"],
        }
        | prompt
        | chat
        | StrOutputParser()
    )
    result = chain.invoke(question)
    print(result["answer"])
    for document in result["documents"]:
        print(f"  {document.metadata['source']}, {document.metadata.get('section', '')}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
