"""What the server serves: the model, and the documents of each collection."""

import contextlib
import hashlib
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from mixtral_rag.chat import ChatChineseMixtral
from mixtral_rag.embeddings import Embedder, open_embedder
from mixtral_rag.engines import Cancellation
from mixtral_rag.errors import ModelError, ModelFileError, ModelNotFoundError, SettingsError
from mixtral_rag.qa import DocumentQA, answering_chat, open_qa
from mixtral_rag.server import uploads
from mixtral_rag.server.failures import NotFoundError, RefusedError
from mixtral_rag.server.gate import Gate
from mixtral_rag.server.metrics import Metrics
from mixtral_rag.server.options import ServerOptions
from mixtral_rag.settings import Settings, answering_model
from mixtral_rag.store import lock
from mixtral_rag.store.database import Database
from mixtral_rag.store.documents import (
    LEDGER,
    DocumentStore,
    collection_folder,
    collections,
    embedder_of,
)
from mixtral_rag.store.ledger import Document, Ledger
from mixtral_rag.types import SamplingOptions
from mixtral_rag.weights.check import damaged_files
from mixtral_rag.weights.library import pulled_models

MAIN = "default"  # the store itself, as a collection
DOCUMENTS = "documents"  # the model that answers from them
_SERVED_TOKENS = 1024  # of an answer, unless the settings or a request say


class Service:
    """The model and the documents that `settings` name; weights load on first use.

    Args:
        settings: as of the command line.
        options: of the server.

    Raises:
        SettingsError: an option is wrong.
        ModelNotFoundError: there is no model of that name.
    """

    def __init__(self, settings: Settings, options: ServerOptions) -> None:
        self.settings, self.options = settings, options
        self._chat: ChatChineseMixtral | None = None
        self._fault: str | None = None  # why the model cannot be used
        self.is_demo, self.name = False, ""
        try:
            model, self.is_demo = answering_model(settings)
        except ModelNotFoundError:
            if settings.model is not None:
                raise  # without any model documents can still be searched
        else:
            given = {"max_tokens": _SERVED_TOKENS} | settings.model_options()
            self._chat = ChatChineseMixtral(model=model, **given)
            self.name = _short(settings.model or model)
        slots = self._chat.concurrency if self._chat else 1
        self.gate = Gate(
            slots,
            most_waiting=options.most_waiting,
            most_waiting_each=options.most_waiting_each,
            wait_seconds=options.wait_seconds,
        )
        self.embed_gate = Gate(1, most_waiting=64, most_waiting_each=32, wait_seconds=60)
        self.search_gate = Gate(2, most_waiting=64, most_waiting_each=32, wait_seconds=60)
        self.metrics = Metrics(self.gate)
        self._lock = threading.Lock()
        self._opened: dict[str, DocumentQA] = {}
        self._embedder: Embedder | None = None
        self.is_ready = self.is_stopping = False

    @property
    def has_model(self) -> bool:
        """Whether there is a model to answer."""
        return self._chat is not None

    @property
    def chat(self) -> ChatChineseMixtral:
        """The model.

        Raises:
            RefusedError: there is none.
        """
        if self._chat is None:
            raise RefusedError("there is no model; documents can only be searched", status=503)
        if self._fault is not None:
            raise RefusedError(f"the model cannot be used: {self._fault}", status=503)
        return self._chat

    def load(self, cancel: Cancellation) -> None:
        """Load the weights, by generating a token; a pulled file is first held to its checksum.

        A server elsewhere is not asked before there is a question.

        Raises:
            ModelError: it cannot be loaded, or is not what was pulled.
        """
        if self._chat is not None and self._chat.engine != "remote":
            try:
                self._check_pulled(Path(self._chat.model))
                options = SamplingOptions(max_tokens=1, temperature=0.0)
                prompt = self._chat.vocabulary.encode("1")
                for _ in self._chat.pieces(prompt, options, cancel=cancel, is_turn=False):
                    pass
            except ModelError as error:
                self._fault = str(error)
                raise
        self.is_ready = True

    def _check_pulled(self, file: Path) -> None:
        for model in pulled_models(self.settings.models):
            if model.gguf == file and (damaged := damaged_files(model)):
                raise ModelFileError(
                    f"{damaged[0]} is not the file that was pulled; remove it and pull it again"
                )

    def models(self) -> list[str]:
        """Names under which there are answers."""
        if not self.has_model:
            return []
        names = [name if name != MAIN else "" for name in self.collections()]
        return [self.name, *(f"{DOCUMENTS}/{n}" if n else DOCUMENTS for n in names)]

    def collection_of(self, model: str | None, collection: str | None) -> str | None:
        """The collection a request is to be answered from; None for the model alone.

        Raises:
            NotFoundError: there is no model or collection of that name.
        """
        if model in (None, "", self.name):
            named = collection
        elif model == DOCUMENTS or str(model).startswith(f"{DOCUMENTS}/"):
            named = collection or str(model).partition("/")[2] or MAIN
        else:
            raise NotFoundError(
                f"there is no model {model!r}; there are: {', '.join(self.models())}"
            )
        if named is not None:
            self.folder(named)
        return named

    def collections(self) -> list[str]:
        """Every collection, the main one first."""
        return [MAIN, *collections(self.settings.store)]

    def folder(self, collection: str, *, must_exist: bool = True) -> Path:
        """Where a collection is.

        Raises:
            NotFoundError: nowhere.
            SettingsError: the name cannot be that of a collection.
        """
        store = self.settings.store
        folder = collection_folder(store, None if collection == MAIN else collection)
        if must_exist and collection != MAIN and not (folder / LEDGER).is_file():
            raise NotFoundError(f"there is no collection {collection!r}")
        return folder

    def qa(self, collection: str) -> DocumentQA:
        """The documents of a collection with the model, opened once.

        Raises:
            NotFoundError: there is no such collection.
        """
        self.folder(collection)
        with self._lock:
            if collection not in self._opened:
                self._opened[collection] = self._open(collection)
            return self._opened[collection]

    def _open(self, collection: str) -> DocumentQA:
        settings = self.settings
        qa = open_qa(
            store=settings.store,
            collection=None if collection == MAIN else collection,
            embedder=settings.embedder,
            context_tokens=settings.context_tokens,
            qa_options=settings.qa_options(),
        )
        if self._chat is not None:
            given = {"max_tokens": _SERVED_TOKENS} | settings.model_options()
            qa.chat = answering_chat(self._chat.model, **given)
        return qa

    def drop(self, collection: str) -> None:
        """Delete a collection; who still reads it reads on, and its files go with the last.

        Raises:
            LockedError: an ingest is under way.
        """
        folder = self.folder(collection)
        aside = self.settings.store / f".deleted-{secrets.token_hex(8)}"
        with lock.writing(folder), self._lock:
            folder.rename(aside)  # in one step: nobody opens half of it
            self._opened.pop(collection, None)
        shutil.rmtree(aside)

    @property
    def embedder(self) -> Embedder:
        """What `/v1/embeddings` answers with: the embedder of the main collection."""
        with self._lock:
            if self._embedder is None:
                name = self.settings.embedder or embedder_of(self.settings.store)
                self._embedder = open_embedder(name)
            return self._embedder

    @contextlib.contextmanager
    def writing(self, collection: str) -> Iterator[DocumentStore]:
        """The store of a collection, to change it; searching goes on beside.

        Raises:
            LockedError: an ingest is under way.
        """
        folder = self.folder(collection)
        embedder = open_embedder(self.settings.embedder or embedder_of(folder))
        with contextlib.closing(DocumentStore(folder, embedder)) as store, store.writing():
            yield store

    def documents(self, collection: str) -> list[Document]:
        """Every document of a collection."""
        folder = self.folder(collection)
        if not (folder / LEDGER).is_file():
            return []
        with contextlib.closing(Database(folder / LEDGER)) as db:
            return Ledger(db).documents()

    def document(self, collection: str, key: str) -> Document:
        """The document with this key; see `key_of`.

        Raises:
            NotFoundError: there is none.
        """
        for document in self.documents(collection):
            if key_of(document.path) == key:
                return document
        raise NotFoundError(f"there is no document {key[:64]!r} in the collection {collection!r}")

    def tidy(self, collection: str, paths: Iterable[Path]) -> None:
        """Delete uploads that an ingest left without a document, as when it was stopped."""
        with contextlib.suppress(NotFoundError):
            folder = self.folder(collection, must_exist=False)
            known = set()
            if (folder / LEDGER).is_file():
                known = {d.path for d in self.documents(collection)}
            for path in set(paths) - known:
                uploads.discard(folder, path)

    def close(self) -> None:
        """Let go of every store; each closes once no thread reads it."""
        self._opened.clear()


def key_of(path: Path | str) -> str:
    """The name of a document in addresses: a hash of its path, which they need not tell."""
    return hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _short(model: str) -> str:
    if not model:
        raise SettingsError("name the server's model with --model")
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else path.name
