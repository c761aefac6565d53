"""One ingest as a process of its own, so that answers go on beside it and a stop is a stop.

Run as `python -m mixtral_rag.server.ingesting`: a JSON line on standard input says what to ingest;
lines of JSON on standard output say how far it is, and at last what was done. It ends when standard
input does, as it does when the server is gone.
"""

import contextlib
import dataclasses
import json
import os
import sys
import threading
from pathlib import Path
from typing import IO, Any

from mixtral_rag.errors import MixtralRagError
from mixtral_rag.ingest.report import IngestReport, Progress

_answers: IO[str] = sys.stdout


def main() -> None:
    """Ingest what standard input says."""
    # What a library prints must not come between our lines.
    global _answers
    _answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from mixtral_rag.qa import open_qa

    try:
        with contextlib.closing(
            open_qa(store=asked["store"], collection=asked["collection"],
                    embedder=asked["embedder"])
        ) as qa:  # fmt: skip
            report = qa.ingest(
                asked["paths"], ocr=asked["ocr"], retry_failed=True, on_progress=_show
            )
    except MixtralRagError as error:
        _tell({"error": {"kind": type(error).__name__, "message": str(error)}})
    except Exception as error:  # noqa: BLE001 - its text may hold what documents say
        message = f"the ingest failed: {type(error).__name__}"
        _tell({"error": {"kind": type(error).__name__, "message": message}})
    else:
        _tell({"report": report_body(report)})


def report_body(report: IngestReport) -> dict[str, Any]:
    """What an ingest did, by names of files."""
    return {
        "added": [p.name for p in report.added],
        "updated": [p.name for p in report.updated],
        "unchanged": [p.name for p in report.unchanged],
        "failed": {p.name: why for p, why in (report.failed | report.still_failed).items()},
        "lost_pages": {p.name: pages for p, pages in report.lost_pages.items()},
        "problems": {p.name: list(what) for p, what in report.problems.items()},
        "n_passages": report.n_passages,
        "n_pages": report.n_pages,
        "seconds": round(report.seconds, 2),
    }


def _show(progress: Progress) -> None:
    body = dataclasses.asdict(progress) | {"seconds_left": progress.seconds_left}
    body["path"] = progress.path.name if progress.path else None
    _tell({"progress": body})


def _tell(what: dict[str, Any]) -> None:
    _answers.write(json.dumps(what) + "\n")
    _answers.flush()


def _end_with_parent() -> None:
    while sys.stdin.readline():
        pass
    os._exit(1)  # an ingest may end at any moment; the next one goes on


def request_line(
    store: Path, collection: str | None, embedder: str | None, paths: list[Path], ocr: str | None
) -> bytes:
    """The line that `main` reads."""
    asked = {"store": str(store), "collection": collection, "embedder": embedder,
             "paths": [str(p) for p in paths], "ocr": ocr}  # fmt: skip
    return json.dumps(asked).encode() + b"\n"


if __name__ == "__main__":
    main()
