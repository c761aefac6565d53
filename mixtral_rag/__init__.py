"""Private question answering over your own documents with a Mixtral model you run yourself.

Public names load on first use, so that `import mixtral_rag` stays quick.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixtral_rag.chat import ChatChineseMixtral
    from mixtral_rag.errors import MixtralRagError
    from mixtral_rag.llm import ChineseMixtral
    from mixtral_rag.qa import DocumentQA, open_qa
    from mixtral_rag.retriever import DocumentRetriever
    from mixtral_rag.store.filter import Filter
    from mixtral_rag.types import Answer, Citation, Message, Passage, SamplingOptions, Usage
    from mixtral_rag.vectorstore import DocumentVectorStore

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "ChatChineseMixtral",
    "ChineseMixtral",
    "Citation",
    "DocumentQA",
    "DocumentRetriever",
    "DocumentVectorStore",
    "Filter",
    "Message",
    "MixtralRagError",
    "Passage",
    "SamplingOptions",
    "Usage",
    "__version__",
    "open_qa",
]

_HOME = {
    "ChatChineseMixtral": "chat",
    "ChineseMixtral": "llm",
    "DocumentQA": "qa",
    "DocumentRetriever": "retriever",
    "DocumentVectorStore": "vectorstore",
    "Filter": "store.filter",
    "open_qa": "qa",
    "MixtralRagError": "errors",
}

logging.getLogger("mixtral_rag").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mixtral_rag' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mixtral_rag.{_HOME.get(name, 'types')}"), name)


def __dir__() -> list[str]:
    return __all__
