"""Ingests that run one after another, with progress for whoever looks."""

import asyncio
import contextlib
import json
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixtral_rag.server.failures import NotFoundError, RefusedError, unexpected
from mixtral_rag.server.ingesting import request_line

_MOST_KEPT = 100
_MOST_FILES = 10_000  # that wait
_LONGEST_LINE = 16 << 20
_LOCKED_TRIES, _LOCKED_SECONDS = 60, 2.0


@dataclass(slots=True)
class Job:
    """One ingest: files of one collection.

    `state` is waiting, running, done, failed or stopped.
    """

    collection: str
    paths: list[Path]
    ocr: bool
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: str = "waiting"
    progress: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    error: str | None = None
    made_at: float = field(default_factory=time.time)
    version: int = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self.state in ("done", "failed", "stopped")

    def told(self) -> dict[str, Any]:
        """As the API tells it."""
        return {
            "id": self.id, "collection": self.collection, "state": self.state,
            "files": [p.name for p in self.paths[:1000]], "n_files": len(self.paths),
            "progress": self.progress, "report": self.report, "error": self.error,
            "made_at": self.made_at,
        }  # fmt: skip


class Jobs:
    """Runs ingests one at a time; files for a collection that waits already join it.

    Args:
        request: the line that tells the process about a job.
        tidy: called when a job is over, with its collection and files.
    """

    def __init__(
        self, request: Callable[[Job], bytes], tidy: Callable[[str, list[Path]], None]
    ) -> None:
        self._request, self._tidy = request, tidy
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._changed = asyncio.Condition()
        self._runner: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._running: Job | None = None

    def all(self) -> list[Job]:
        """The latest jobs, the newest first."""
        return list(reversed(self._jobs.values()))

    def get(self, key: str) -> Job:
        """The job with this id.

        Raises:
            NotFoundError: there is none.
        """
        if key not in self._jobs:
            raise NotFoundError(f"there is no job {key[:64]!r}")
        return self._jobs[key]

    def check_room(self) -> None:
        """Refuse a file where too many wait.

        Raises:
            RefusedError: they do.
        """
        waiting = (j for j in self._jobs.values() if j.state == "waiting")
        if sum(len(j.paths) for j in waiting) >= _MOST_FILES:
            raise RefusedError("too many files wait to be ingested", status=503)

    async def add(self, collection: str, path: Path, *, ocr: bool) -> Job:
        """Have a file ingested.

        Raises:
            RefusedError: too many files wait.
        """
        self.check_room()
        waiting = [j for j in self._jobs.values() if j.state == "waiting"]
        job = next((j for j in waiting if (j.collection, j.ocr) == (collection, ocr)), None)
        if job is None:
            job = Job(collection, [path], ocr)
            self._jobs[job.id] = job
        elif path not in job.paths:
            job.paths.append(path)
        self._trim()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        await self._note(job)
        return job

    def _trim(self) -> None:
        over = [j.id for j in self._jobs.values() if j.is_over]
        for key in over[: max(0, len(self._jobs) - _MOST_KEPT)]:
            del self._jobs[key]

    async def stop(self, job: Job) -> None:
        """End a job; documents that were finished stay."""
        if job.is_over:
            return
        was_waiting, job.state = job.state == "waiting", "stopped"
        if job is self._running and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._note(job)
        if was_waiting:
            await asyncio.to_thread(self._tidy, job.collection, job.paths)

    async def stop_all(self, collection: str) -> None:
        """End every job of a collection, and wait until nothing of them runs."""
        for job in list(self._jobs.values()):
            if job.collection == collection:
                await self.stop(job)
        running = self._running
        if running is not None and running.collection == collection:
            async with self._changed:
                await self._changed.wait_for(lambda: self._running is not running)

    async def watch(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        """The job whenever it changes, until it is over."""
        seen = -1
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: job.version != seen)  # noqa: B023
                seen = job.version
            yield job.told()
            if job.is_over:
                return

    async def close(self) -> None:
        """End what runs."""
        for job in list(self._jobs.values()):
            await self.stop(job)
        if self._runner is not None:
            self._runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._runner

    async def _note(self, job: Job) -> None:
        async with self._changed:
            job.version += 1
            self._changed.notify_all()

    async def _run(self) -> None:
        while job := next((j for j in self._jobs.values() if j.state == "waiting"), None):
            job.state = "running"
            self._running = job
            await self._note(job)
            try:
                await self._tried(job)
            except OSError as error:
                job.error = f"the ingest could not be started: {error}"
            except Exception as error:  # noqa: BLE001 - logged by place; the next job must run
                unexpected(error)
                job.error = "the ingest failed; the server's log says where"
            finally:
                await asyncio.to_thread(self._tidy, job.collection, job.paths)
                self._running = None
                if job.state == "running":
                    job.state = "done" if job.report is not None else "failed"
                await self._note(job)

    async def _tried(self, job: Job) -> None:
        """Run it; while another process writes to the store, again after a while."""
        for _ in range(_LOCKED_TRIES):
            if job.state != "running":
                return
            job.error = None
            kind = await self._one(job)
            if kind != "LockedError" or job.state != "running":
                return
            await asyncio.sleep(_LOCKED_SECONDS)

    async def _one(self, job: Job) -> str | None:
        """Run the process; returns the kind of its error."""
        pipe = asyncio.subprocess.PIPE
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "mixtral_rag.server.ingesting",
            stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, limit=_LONGEST_LINE,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        kind = None
        try:
            if job.state != "running":  # stopped while it was started
                return None
            process.stdin.write(self._request(job))
            await process.stdin.drain()
            async for line in process.stdout:
                told = json.loads(line)
                job.progress = told.get("progress", job.progress)
                job.report = told.get("report", job.report)
                if (error := told.get("error")) is not None:
                    kind, job.error = error["kind"], error["message"]
                await self._note(job)
            if await process.wait() and job.error is None and job.state == "running":
                job.error = f"the ingest ended with code {process.returncode}"
        finally:
            self._process = None
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return kind


def line_for(store: Path, embedder: str | None, ocr: str, main: str) -> Callable[[Job], bytes]:
    """Tells the process of `ingesting` about a job."""

    def line(job: Job) -> bytes:
        collection = None if job.collection == main else job.collection
        return request_line(store, collection, embedder, job.paths, ocr if job.ocr else None)

    return line
