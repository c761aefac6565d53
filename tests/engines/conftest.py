"""One set of weights for every engine, and the engines over it."""

import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_socket
from model_servers import LOCAL_HTTP, N_CTX
from model_servers import vllm_server as serve_by_vllm
from tiny_mixtral import write_tiny_folder

from mixtral_rag.types import SamplingOptions

Weights = namedtuple("Weights", "folder gguf")
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


@pytest.fixture(scope="session")
def vllm_server(weights, tmp_path_factory):
    """vLLM's own server over the weights, which it calls by the folder's name."""
    pytest_socket.enable_socket()
    root = tmp_path_factory.mktemp("vllm")
    folder = root / weights.folder.name
    shutil.copytree(weights.folder, folder)
    scripts = Path(__file__).parents[2] / "integrations" / "transformers"
    subprocess.run([sys.executable, scripts / "right_tokens.py", folder], check=True)
    with serve_by_vllm(folder, root / "log") as server:
        yield server


@contextmanager
def remote(weights, server):
    from mixtral_rag.engines.remote import RemoteEngine

    yield RemoteEngine(weights.folder.name, base_url=server.root)


# Every engine is made once and must give the same answers. A maker may start what it needs, such as
# a server, and stop it after its `yield`.
MAKERS = {"llamacpp": llamacpp, "transformers": transformers, "vllm": vllm, "remote": remote}
SERVERS = {"remote": "vllm_server"}

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
