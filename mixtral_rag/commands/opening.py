"""Opening what the settings name, for commands about documents."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtral_rag.console import say, warn
from mixtral_rag.errors import EmptyStoreError
from mixtral_rag.settings import Settings, answering_model

if TYPE_CHECKING:
    from mixtral_rag.chat import ChatChineseMixtral
    from mixtral_rag.qa import DocumentQA
    from mixtral_rag.store.ledger import Document


def open_documents(settings: Settings, *, with_model: bool, **qa_options: Any) -> "DocumentQA":
    """The store that is set, with the model that answers or without one.

    Args:
        settings: what is set.
        with_model: whether to open the model.
        qa_options: arguments of `DocumentQA`.
    """
    from mixtral_rag.qa import open_qa

    return open_qa(
        store=settings.store,
        collection=settings.collection,
        model=_model(settings) if with_model else None,
        embedder=settings.embedder,
        context_tokens=settings.context_tokens,
        qa_options=settings.qa_options() | qa_options,
        **(settings.model_options() if with_model else {}),
    )


def open_model(settings: Settings) -> "ChatChineseMixtral":
    """The model that answers, without documents."""
    from mixtral_rag.qa import answering_chat

    return answering_chat(_model(settings), **settings.model_options())


def _model(settings: Settings) -> str:
    model, is_demo = answering_model(settings)
    if is_demo:
        say(
            "Using SmolLM2-135M, a demonstration model: fine for trying the plumbing, too "
            "small to trust.\nFor real answers: mixtral-rag pull chinese-mixtral-instruct\n",
            file=sys.stderr,
        )
    if settings.engine_used == "llamacpp":
        _warn_of_memory(Path(model), settings)
    return model


def _warn_of_memory(model: Path, settings: Settings) -> None:
    """llama.cpp maps a file that does not fit and then crawls, or the system kills it."""
    from mixtral_rag.weights.inspect import inspect

    report = inspect(model, n_ctx=settings.n_ctx, kv_type=settings.kv_type or "f16")
    if report.memory_problem:
        warn(f"{model.name}: {report.memory_problem}")


def stored_documents(folder: Path) -> "list[Document]":
    """What is in the store at `folder`; makes no folder when there is none.

    Raises:
        EmptyStoreError: nothing is.
    """
    from mixtral_rag.store.database import Database
    from mixtral_rag.store.documents import LEDGER
    from mixtral_rag.store.ledger import Ledger

    documents: list[Document] = []
    if (folder / LEDGER).is_file():
        db = Database(folder / LEDGER)
        documents = Ledger(db).documents()
        db.close()
    if not documents:
        raise EmptyStoreError(folder)
    return documents
