"""An embedder of your own: any LangChain embeddings, here one that counts pairs of characters.

    python examples/09_own_embedder.py

It is remembered with the store: opening it with another one is refused, since vectors of two
embedders cannot be compared.
"""

import math
import tempfile
import zlib

from langchain_core.embeddings import Embeddings

from mixtral_rag import DocumentVectorStore, MixtralRagError
from mixtral_rag.embeddings import open_embedder

TEXTS = ["保修期为二十四个月。", "The office opens at nine.", "Pumps take 4.5 litres of oil."]


class PairCounts(Embeddings):
    """Texts that share pairs of characters are near each other; a toy, but a real embedder."""

    def embed_query(self, text: str) -> list[float]:
        vector = [0.0] * 256
        for pair in zip(text.lower(), text.lower()[1:], strict=False):
            vector[zlib.crc32("".join(pair).encode()) % 256] += 1.0
        length = math.hypot(*vector) or 1.0
        return [value / length for value in vector]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = DocumentVectorStore(folder, PairCounts())
        store.add_texts(TEXTS)
        for question in ("保修期多久？", "how much oil?"):
            [(found, score)] = store.similarity_search_with_score(question, k=1)
            print(f"{question} {found.page_content} ({score:.2f})")
        try:
            DocumentVectorStore(folder, open_embedder()).similarity_search("oil", k=1)
        except MixtralRagError as error:
            print("another embedder:", error)


if __name__ == "__main__":
    main()
