"""Real model servers on this machine, started for the tests of the engine remote."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

Server = namedtuple("Server", "root log")
N_CTX = 2048
LOCAL_HTTP = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1", "localhost", "::1"])]


def llama_cpp_server(model, alias, log, *more, key=None):
    """llama-cpp-python's own server over a GGUF file."""
    pytest.importorskip("starlette_context", reason="llama-cpp-python[server] is not installed")
    script = Path(__file__).with_name("llama_cpp_server.py")
    options = ["--model", str(model), "--model_alias", alias, "--n_ctx", str(N_CTX)]
    options += ["--api_key", key] if key else []
    return served([str(script), *options, "--n_threads", "1", *more], log, key=key)


def vllm_server(folder, log):
    """vLLM's own server over full weights, which it calls by the folder's name."""
    pytest.importorskip("vllm", reason="vllm is not installed; see `make test-vllm`")
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
               "--served-model-name", folder.name, "--dtype", "float32", "--enforce-eager",
               "--max-model-len", str(N_CTX), "--gpu-memory-utilization", "0.3",
               "--structured-outputs-config", '{"backend": "guidance"}']  # fmt: skip
    return served(command, log)


@contextmanager
def served(command, log, *, key=None, patience=300):
    """A server started by a command line, to which a free port is added, until it has models."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = f"http://127.0.0.1:{port}"
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command = [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=os.environ | settings, start_new_session=True
        )
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        for _ in range(patience * 5):
            assert process.poll() is None, f"the server ended:\n{log.read_text()[-4000:]}"
            try:
                httpx.get(f"{root}/v1/models", headers=headers).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        else:
            raise AssertionError(f"the server does not start:\n{log.read_text()[-4000:]}")
        yield Server(root, log)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
