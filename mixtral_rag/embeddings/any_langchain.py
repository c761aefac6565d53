"""Any LangChain embeddings as an embedder."""

from collections.abc import Sequence

import numpy as np
from langchain_core.embeddings import Embeddings

from mixtral_rag.embeddings.base import Vectors, unit


class AnyEmbeddings:
    """LangChain's `Embeddings`, of which no more is known than that they embed.

    Args:
        embeddings: makes the vectors; they are brought to length 1.
        max_tokens: longest text that is seen whole.
        relevant: cosine below which a passage has nothing to do with a question.
    """

    def __init__(
        self, embeddings: Embeddings, *, max_tokens: int = 512, relevant: float = 0.3
    ) -> None:
        self.embeddings, self.max_tokens, self.relevant = embeddings, max_tokens, relevant
        self.batch_tokens = 8 * max_tokens

    @property
    def fingerprint(self) -> str:
        """The class and what it calls its model."""
        kind = type(self.embeddings)
        names = (getattr(self.embeddings, name, None) for name in ("model", "model_name"))
        model = next((n for n in names if isinstance(n, str)), "")
        return f"langchain:{kind.__module__}.{kind.__qualname__}:{model}"

    def count(self, text: str) -> int:
        """About as many tokens as any tokenizer makes: one for two bytes of UTF-8."""
        return len(text.encode("utf-8", "replace")) // 2

    def passages(self, texts: Sequence[str]) -> Vectors:
        """One row of float32 for each text."""
        return unit(np.asarray(self.embeddings.embed_documents(list(texts)), np.float32))

    def query(self, text: str) -> Vectors:
        """One row of float32 for a question."""
        return unit(np.asarray([self.embeddings.embed_query(text)], np.float32))
