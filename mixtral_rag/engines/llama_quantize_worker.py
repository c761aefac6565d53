"""The child process that quantises: a job as JSON in, what happens as JSON lines out."""

import ctypes
import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

from mixtral_rag.weights.imatrix import read_imatrix

_TENSOR = re.compile(r"^\[\s*\d+/\s*\d+\]\s+(\S+)")
_SIZE = re.compile(r"quant size\s*=\s*([\d.]+) MiB")
_FAILED = "failed to quantize: "
_ROWS_IN_MEMORY = 1 << 30  # bytes of float32; llama.cpp's own default is 8 GiB


def main() -> None:
    """Do the job in the last argument; end early when standard input is closed."""
    job = json.loads(sys.argv[-1])
    # The parent may be killed with no chance to end this process.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries may print; only messages may reach the pipe
    lock = threading.Lock()
    last: dict[str, Any] = {}

    def say(message: dict[str, Any]) -> None:
        with lock:
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()

    def log(_level: int, text: bytes, _data: object) -> None:
        line = text.decode("utf-8", errors="replace")
        if match := _TENSOR.match(line):
            say({"tensor": match[1]})
        if match := _SIZE.search(line):
            last["mib"] = float(match[1])
        if "will require an imatrix" in line:
            last["needs_imatrix"] = True
        if _FAILED in line:
            last["error"] = line.partition(_FAILED)[2].strip()

    last["code"] = _quantize(job, log)
    say(last)
    pipe.close()


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


def _quantize(job: dict[str, Any], log: Any) -> int:
    import llama_cpp

    callback = llama_cpp.llama_log_callback(log)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = job["type"], job["threads"]
    params.allow_requantize = job["requantize"]
    params.dry_run = job.get("dry_run", False)
    params.max_buf_size = _ROWS_IN_MEMORY
    kept = []  # what the C side points to
    if job["imatrix"]:
        kept = list(read_imatrix(Path(job["imatrix"])).items())
        params.imatrix = _imatrix(llama_cpp, kept)
    code = llama_cpp.llama_model_quantize(
        job["source"].encode(), job["target"].encode(), ctypes.byref(params)
    )
    del kept
    return int(code)


def _imatrix(llama_cpp: Any, entries: list[tuple[str, Any]]) -> Any:
    """The C array of names, values and sizes; an entry without a name ends it."""
    kind = llama_cpp.llama_model_imatrix_data
    array = (kind * (len(entries) + 1))()
    for slot, (name, values) in zip(array, entries, strict=False):
        slot.name = name.encode()
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        slot.size = len(values)
    return array
