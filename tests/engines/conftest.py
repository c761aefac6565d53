"""One set of weights for every engine, and the engines over it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import contextmanager

import httpx
import pytest
import pytest_socket
from tiny_mixtral import write_tiny_folder

from mixtral_rag.types import SamplingOptions

Weights = namedtuple("Weights", "folder gguf")
Server = namedtuple("Server", "root log")
N_CTX = 2048
VLLM_OPTIONS = {"enforce_eager": True, "gpu_memory_utilization": 0.3}


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A tiny random Mixtral in float32: a Hugging Face folder, and the same as GGUF."""
    torch = pytest.importorskip("torch", reason="the extra transformers is not installed")
    pytest.importorskip("transformers", reason="the extra transformers is not installed")
    from mixtral_rag.weights.convert import convert

    # A model of this size gains nothing from more threads, and where another process takes a core,
    # threads that wait for each other by spinning are a hundred times slower than one.
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("conformance")
    folder = write_tiny_folder(root / "tiny-mixtral-instruct")
    gguf = convert(folder, root / "tiny-mixtral-instruct.gguf", type="f32")
    return Weights(folder, gguf)


@contextmanager
def llamacpp(weights):
    from mixtral_rag.engines.llamacpp import LlamaCppEngine

    yield LlamaCppEngine(str(weights.gguf), n_ctx=N_CTX, kv_type="f32", n_threads=1)


@contextmanager
def transformers(weights):
    from mixtral_rag.engines.transformers import TransformersEngine

    yield TransformersEngine(str(weights.folder), n_ctx=N_CTX, device="cpu")


@contextmanager
def vllm(weights):
    pytest.importorskip("vllm", reason="vllm is not installed; see `make test-vllm`")
    from mixtral_rag.engines.vllm import VllmEngine

    pytest_socket.enable_socket()  # vLLM looks for a free port on this machine
    engine = VllmEngine(
        str(weights.folder), n_ctx=N_CTX, dtype="float32", engine_options=VLLM_OPTIONS
    )
    next(engine.generate([1, 2], SamplingOptions(max_tokens=1)))
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield engine
    engine.close()


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


@pytest.fixture(scope="session")
def vllm_server(weights, tmp_path_factory):
    """vLLM's own server over the weights, which it calls by the folder's name."""
    pytest.importorskip("vllm", reason="vllm is not installed; see `make test-vllm`")
    pytest_socket.enable_socket()
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(weights.folder),
               "--served-model-name", weights.folder.name, "--dtype", "float32",
               "--enforce-eager", "--max-model-len", str(N_CTX),
               "--gpu-memory-utilization", "0.3",
               "--structured-outputs-config", '{"backend": "guidance"}']  # fmt: skip
    with served(command, tmp_path_factory.mktemp("vllm") / "log") as server:
        yield server


@contextmanager
def remote(weights, server):
    from mixtral_rag.engines.remote import RemoteEngine

    yield RemoteEngine(weights.folder.name, base_url=server.root)


# Every engine is made once and must give the same answers. A maker may start what it needs, such as
# a server, and stop it after its `yield`.
MAKERS = {"llamacpp": llamacpp, "transformers": transformers, "vllm": vllm, "remote": remote}
SERVERS = {"remote": "vllm_server"}
LOCAL_HTTP = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1", "localhost", "::1"])]

# What an engine cannot do: the name of a test in test_conformance.py, and why it does not apply.
LACKS: dict[str, dict[str, str]] = {
    "remote": {
        "test_the_repeat_penalty_counts_the_last_tokens_prompt_included": (
            "the penalty of vLLM's server counts the whole text"
        ),
    }
}


@pytest.fixture(
    scope="session",
    params=[pytest.param(n, marks=LOCAL_HTTP if n in SERVERS else ()) for n in MAKERS],
)
def engine(request, weights):
    """Each engine in turn, over the same weights, with a context of 2,048 tokens."""
    needs = [request.getfixturevalue(SERVERS[request.param])] if request.param in SERVERS else []
    with MAKERS[request.param](weights, *needs) as engine:
        engine.name = request.param
        yield engine


@pytest.fixture
def applies(request, engine):
    """Skips what is known not to be offered by an engine."""
    lacks = LACKS.get(engine.name, {})
    if reason := lacks.get(request.node.originalname):
        pytest.skip(f"{engine.name}: {reason}")
