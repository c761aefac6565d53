"""Collections and documents: upload, ingest, list, search, ask, look up, delete."""

import asyncio
import functools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote as percent

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import Field

from mixtral_rag.engines import Cancellation
from mixtral_rag.ingest.page_image import PageImage, page_image
from mixtral_rag.server import uploads
from mixtral_rag.server.answers import answer_body, answer_parts, passage_body
from mixtral_rag.server.chat import client_of, usage_body
from mixtral_rag.server.failures import NotFoundError, RefusedError
from mixtral_rag.server.jobs import Jobs
from mixtral_rag.server.running import events, in_turn, one_in_turn, while_here
from mixtral_rag.server.schemas import Body
from mixtral_rag.server.service import MAIN, Service, key_of
from mixtral_rag.store.ledger import Document
from mixtral_rag.types import Answer, Message, Passage, Piece

router = APIRouter(prefix="/api")
_DRAWING = ThreadPoolExecutor(2, "drawing")  # of their own: a page may take 20 s
_LOGIN_BYTES = 4096
_SEARCH_SECONDS = 600.0  # the first one loads the embedder
_MOST_AROUND = 10  # passages on either side


class Turn(Body):
    """An earlier question or answer."""

    role: str = Field(pattern="^(user|assistant)$")
    content: str


class SearchRequest(Body):
    """What to search for."""

    question: str = Field(min_length=1, max_length=20_000)
    k: int = Field(8, ge=1, le=100, description="Passages to return.")


class AskRequest(Body):
    """A question, after the turns before it."""

    question: str = Field(min_length=1, max_length=20_000)
    history: list[Turn] = Field(default_factory=list, max_length=2000)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


@router.get("/collections")
async def collections(request: Request) -> dict[str, Any]:
    """Every collection with how much is in it."""
    service = _service(request)

    def read() -> list[dict[str, Any]]:
        found = []
        for name in service.collections():
            documents = service.documents(name)
            found.append({"name": name, "n_documents": len(documents),
                          "n_passages": sum(d.n_passages for d in documents)})  # fmt: skip
        return found

    return {"collections": await asyncio.to_thread(read)}


@router.delete("/collections/{collection}")
async def delete_collection(collection: str, request: Request) -> dict[str, Any]:
    """Delete a collection with all its documents; files that were not uploaded stay."""
    service = _service(request)
    if collection == MAIN:
        raise RefusedError("the main collection cannot be deleted; delete its documents")
    await _jobs(request).stop_all(collection)
    await asyncio.to_thread(service.drop, collection)
    return {"deleted": collection}


@router.get("/collections/{collection}/documents")
async def documents(collection: str, request: Request) -> dict[str, Any]:
    """Every document of a collection."""
    service = _service(request)
    found = await asyncio.to_thread(service.documents, collection)
    folder = service.folder(collection)
    return {"documents": [_document(d, folder) for d in found]}


def _document(document: Document, folder: Path) -> dict[str, Any]:
    return {
        "id": key_of(document.path),
        "name": document.path.name,
        "title": document.title,
        "size": document.size,
        "n_pages": document.n_pages,
        "n_passages": document.n_passages,
        "pages": document.pages,
        "problems": list(document.problems),
        "failure": document.failure.reason if document.failure else None,
        "ingested_at": document.ingested_at,
        "is_upload": uploads.is_upload(folder, document.path),
    }


@router.put("/collections/{collection}/files/{name}", status_code=202)
async def upload(collection: str, name: str, request: Request, ocr: bool = False) -> dict[str, Any]:
    """Upload a file, the body of the request, and ingest it; one of the same name is replaced."""
    service = _service(request)
    folder = service.folder(collection, must_exist=False)
    uploads.safe_name(name)  # before anything is received
    _jobs(request).check_room()
    place = await uploads.receive(folder, name, request.stream())
    job = await _jobs(request).add(collection, place, ocr=ocr)
    return {"document": key_of(place), "name": place.name, "job": job.id}


@router.delete("/collections/{collection}/documents/{key}")
async def delete(collection: str, key: str, request: Request) -> dict[str, Any]:
    """Delete a document, and its file if it was uploaded."""
    service = _service(request)

    def remove() -> str:
        document = service.document(collection, key)
        with service.writing(collection) as store:
            with store.step() as step:
                step.remove([document.path])
                step.sweep()
            uploads.delete(service.folder(collection), document)
        return document.path.name

    return {"deleted": await asyncio.to_thread(remove)}


@router.get("/collections/{collection}/documents/{key}/original", response_model=None)
async def original(collection: str, key: str, request: Request) -> Response:
    """The file itself, to be saved: it never opens in the browser."""
    document = await asyncio.to_thread(_service(request).document, collection, key)
    if not document.is_file or not document.path.is_file():
        raise NotFoundError(f"the file of {document.path.name!r} is gone")
    name = percent(document.path.name, safe="")
    return FileResponse(
        document.path,
        media_type="application/octet-stream",
        headers={
            "content-disposition": f"attachment; filename*=UTF-8''{name}",
            "content-security-policy": "sandbox; default-src 'none'",
        },
    )


@router.get("/collections/{collection}/documents/{key}/passages")
async def passages(
    collection: str,
    key: str,
    request: Request,
    position: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
    around: Annotated[int, Query(ge=0, le=_MOST_AROUND)] = 1,
) -> dict[str, Any]:
    """A passage of a document, by its place, with its neighbours."""
    service = _service(request)

    def read() -> list[dict[str, Any]]:
        document = service.document(collection, key)
        near = service.qa(collection).store.ledger.near(str(document.path), position, around)
        return [passage_body(p) for p in near]

    return {"passages": await asyncio.to_thread(read)}


@router.get("/collections/{collection}/documents/{key}/pages/{number}.png", response_model=None)
async def page_picture(collection: str, key: str, number: int, request: Request) -> Response:
    """A page of a PDF as a picture."""
    image = await _page(request, collection, key, number, "")
    return Response(image.png, media_type="image/png",
                    headers={"cache-control": "private, max-age=300"})  # fmt: skip


@router.get("/collections/{collection}/documents/{key}/pages/{number}")
async def page_marks(
    collection: str,
    key: str,
    number: int,
    request: Request,
    words: Annotated[str, Query(max_length=2000)] = "",
) -> dict[str, Any]:
    """Where words stand on a page of a PDF: left, top, width, height, as shares of the page."""
    image = await _page(request, collection, key, number, words)
    return {"page": number, "n_pages": image.n_pages, "marks": image.marks}


async def _page(request: Request, collection: str, key: str, number: int, words: str) -> PageImage:
    document = await asyncio.to_thread(_service(request).document, collection, key)
    if not document.is_file or document.path.suffix.lower() != ".pdf":
        raise RefusedError("only pages of PDF files can be shown")
    try:
        changed = document.path.stat().st_mtime_ns
    except OSError:
        raise NotFoundError(f"the file of {document.path.name!r} is gone") from None
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_DRAWING, _drawn, document.path, changed, number, words)


@functools.lru_cache(maxsize=32)
def _drawn(path: Path, _changed: int, number: int, words: str) -> PageImage:
    return page_image(path, number, words)


@router.post("/collections/{collection}/search")
async def search(collection: str, body: SearchRequest, request: Request) -> dict[str, Any]:
    """The passages nearest to a question, best first."""
    service = _service(request)

    def work(_: Cancellation) -> Iterator[list[Passage]]:
        yield service.qa(collection).search(body.question)

    client = client_of(request)
    found = await one_in_turn(request, service.search_gate, client, _SEARCH_SECONDS, work)
    return {"passages": [passage_body(p) for p in found[: body.k]]}


@router.post("/collections/{collection}/ask", response_model=None)
async def ask(collection: str, body: AskRequest, request: Request) -> Response:
    """Answer a question from the documents, with citations; streams go by `/v1`."""
    service = _service(request)
    history = [Message("user" if t.role == "user" else "assistant", t.content)
               for t in body.history]  # fmt: skip
    if any((t.role == "user") != (i % 2 == 0) for i, t in enumerate(history)) or len(history) % 2:
        raise RefusedError("history must be questions and answers in turn", param="history")
    times = service.metrics.answer()

    def work(_: Cancellation) -> Iterator[Piece | Answer]:
        return answer_parts(service, collection, body.question, history)

    async def run() -> Answer:
        parts = in_turn(service.gate, client_of(request), service.options.answer_seconds, work)
        async for part in parts:
            if isinstance(part, Answer):
                times.end(part.usage)
                return part
            times.piece()
        raise RefusedError("the answer was stopped", status=503)

    answer = await while_here(request, run())
    told = {"question": answer.question, "text": answer.text, "usage": usage_body(answer.usage),
            "finish_reason": answer.finish_reason}  # fmt: skip
    return JSONResponse(told | answer_body(answer))


@router.get("/jobs")
async def jobs(request: Request) -> dict[str, Any]:
    """The latest ingests, the newest first."""
    return {"jobs": [job.told() for job in _jobs(request).all()]}


@router.get("/jobs/{key}")
async def job(key: str, request: Request) -> dict[str, Any]:
    """One ingest."""
    return _jobs(request).get(key).told()


@router.get("/jobs/{key}/events", response_model=None)
async def job_events(key: str, request: Request) -> Response:
    """One ingest as it goes on, as server-sent events, until it is over."""
    found = _jobs(request).get(key)
    return await events(_jobs(request).watch(found), lambda told: json.dumps(told))


@router.delete("/jobs/{key}")
async def stop_job(key: str, request: Request) -> dict[str, Any]:
    """Stop an ingest; documents that were finished stay."""
    found = _jobs(request).get(key)
    await _jobs(request).stop(found)
    return found.told()


def limit_of(method: str, path: str, *, upload_bytes: int, body_bytes: int) -> int:
    """Most bytes that a request to this path may have."""
    if path in ("/login", "/logout"):
        return _LOGIN_BYTES
    is_upload = method == "PUT" and path.startswith("/api/collections/") and "/files/" in path
    return upload_bytes if is_upload else body_bytes
