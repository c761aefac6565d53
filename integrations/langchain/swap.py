"""Our parts in another chain, and other parts in ours.

    python swap.py MODEL.gguf "How many days of leave?"

1. A chain that somebody wrote for any retriever and any chat model takes ours.
2. Our chat model answers from somebody else's store, with our embedder in it.
3. Our store takes somebody else's embedder.
"""

import sys
import tempfile

from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import BaseChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from mixtral_rag import ChatChineseMixtral, DocumentVectorStore
from mixtral_rag.embeddings import open_embedder

TEXTS = ["Employees have fifteen days of leave a year.", "The office is open from nine to six."]
PROMPT = ChatPromptTemplate.from_template("{context}\n\nAnswer in one sentence: {question}")


def somebodys_chain(retriever: BaseRetriever, chat: BaseChatModel) -> Runnable:
    joined = retriever | (lambda found: "\n".join(d.page_content for d in found))
    return {"context": joined, "question": RunnablePassthrough()} | PROMPT | chat


def main(model: str, question: str) -> None:
    chat = ChatChineseMixtral(model=model, temperature=0.0, max_tokens=60)
    with tempfile.TemporaryDirectory() as folder:
        ours = DocumentVectorStore(f"{folder}/ours")
        ours.add_texts(TEXTS)
        theirs = InMemoryVectorStore.from_texts(TEXTS, open_embedder())
        for name, store in (("our store", ours), ("their store", theirs)):
            chain = somebodys_chain(store.as_retriever(search_kwargs={"k": 1}), chat)
            print(f"{name}: {chain.invoke(question).text}")
        mixed = DocumentVectorStore(f"{folder}/mixed", DeterministicFakeEmbedding(size=64))
        mixed.add_texts(TEXTS)
        print("their embedder:", mixed.similarity_search(TEXTS[1], k=1)[0].page_content)


if __name__ == "__main__":
    main(*sys.argv[1:3])
