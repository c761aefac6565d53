"""LangChain's own suites for chat models, in full, over every engine."""

import importlib

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from model_servers import llama_cpp_server, vllm_server

from mixtral_rag import ChatChineseMixtral

# `langchain_core.load` is also the name of a function in it.
load = importlib.import_module("langchain_core.load.load")


class TestUnit(ChatModelUnitTests):
    """What can be asked without computing."""

    @pytest.fixture(autouse=True)
    def _here(self, tiny_mixtral, monkeypatch):
        """The model under a name that does not change, as the stored snapshot has it."""
        monkeypatch.chdir(tiny_mixtral.parent)

    @pytest.fixture(autouse=True)
    def _known(self, monkeypatch):
        """LangChain's test reads only classes on LangChain's own list of packages."""
        path = tuple(ChatChineseMixtral.lc_id())
        monkeypatch.setitem(load.ALL_SERIALIZABLE_MAPPINGS, path, path)
        monkeypatch.delitem(load._default_class_paths_cache, "all", raising=False)
        yield
        load._default_class_paths_cache.pop("all", None)

    @property
    def chat_model_class(self):
        return ChatChineseMixtral

    @property
    def chat_model_params(self):
        return {"model": "tiny-instruct.gguf", "n_ctx": 1024}

    @property
    def init_from_env_params(self):
        remote = {"model": "m", "engine": "remote", "base_url": "http://127.0.0.1:1/v1"}
        return {"MIXTRAL_RAG_API_KEY": "secret"}, remote, {"api_key": "secret"}


class Integration(ChatModelIntegrationTests):
    """The suite for a real model: SmolLM2, the smallest there is that was tuned to answer."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _models(cls, request):
        """Keeps the engines between the tests: some take half a minute to start."""
        if cls.options.get("engine") == "vllm":
            pytest.importorskip("vllm", reason="vllm is not installed; see `make test-vllm`")
        found = [request.getfixturevalue(name) for name in cls.fixtures]
        cls.models = [f if isinstance(f, dict) else {"model": str(f)} for f in found]
        held = [ChatChineseMixtral(**cls.options | model) for model in cls.models]
        yield
        held.clear()

    @pytest.fixture(autouse=True)
    def _which(self, request):
        """For an agent a model that wants to call tools; SmolLM2 is too small to think of it."""
        wants_calls = request.node.originalname == "test_agent_loop"
        type(self).model_options = self.models[1 if wants_calls else 0]

    @property
    def chat_model_class(self):
        return ChatChineseMixtral

    @property
    def chat_model_params(self):
        return self.options | self.model_options

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_anthropic_inputs(self):
        return True


COMMON = {"temperature": 0, "max_tokens": 200, "n_ctx": 2048}
FOLDERS = ("smollm_folder", "caller_folder")


class TestLlamaCpp(Integration):
    """Over GGUF files."""

    fixtures = ("smollm", "tiny_caller")
    options = COMMON

    @pytest.mark.xfail(reason="JSON mode holds to no keys, and SmolLM2 leaves out the punchline")
    def test_json_mode(self, model):
        super().test_json_mode(model)


class TestTransformers(Integration):
    """Over full weights, by transformers."""

    fixtures = FOLDERS
    options = COMMON | {"engine": "transformers", "device": "cpu"}


@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1", "localhost", "::1"])
class TestVllm(Integration):
    """Over full weights, by vLLM."""

    fixtures = FOLDERS
    options = COMMON | {
        "engine": "vllm",
        "dtype": "float32",
        "engine_options": {"enforce_eager": True, "gpu_memory_utilization": 0.3},
    }


@pytest.fixture(scope="module")
def smollm_by_llama_cpp(smollm, tmp_path_factory):
    log = tmp_path_factory.mktemp("servers") / "smollm.log"
    with llama_cpp_server(smollm, "smollm2-instruct", log) as server:
        yield {"model": "smollm2-instruct", "base_url": server.root, "tokenizer": str(smollm)}


@pytest.fixture(scope="module")
def caller_by_llama_cpp(tiny_caller, tmp_path_factory):
    log = tmp_path_factory.mktemp("servers") / "caller.log"
    with llama_cpp_server(tiny_caller, "mixtral-instruct", log) as server:
        yield {"model": "mixtral-instruct", "base_url": server.root}


@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1", "localhost", "::1"])
class TestRemoteByMessages(Integration):
    """Over a server that gets messages: llama-cpp-python's."""

    fixtures = ("smollm_by_llama_cpp", "caller_by_llama_cpp")
    options = COMMON | {"engine": "remote"}

    @pytest.mark.xfail(reason="with this server's grammars SmolLM2 nests its joke")
    def test_json_mode(self, model):
        super().test_json_mode(model)

    @pytest.mark.xfail(reason="with this server's prompt SmolLM2 describes without end")
    def test_unicode_tool_call_integration(self, model):
        super().test_unicode_tool_call_integration(model)


@pytest.fixture(scope="module")
def smollm_by_vllm(smollm_folder, tmp_path_factory):
    with vllm_server(smollm_folder, tmp_path_factory.mktemp("servers") / "smollm.log") as server:
        options = {"base_url": server.root, "tokenizer": str(smollm_folder)}
        yield options | {"model": smollm_folder.name}


@pytest.fixture(scope="module")
def caller_by_vllm(caller_folder, tmp_path_factory):
    with vllm_server(caller_folder, tmp_path_factory.mktemp("servers") / "caller.log") as server:
        options = {"base_url": server.root, "tokenizer": str(caller_folder)}
        yield options | {"model": caller_folder.name}


@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1", "localhost", "::1"])
class TestRemoteByIds(Integration):
    """Over a server that gets token IDs: vLLM's."""

    fixtures = ("smollm_by_vllm", "caller_by_vllm")
    options = COMMON | {"engine": "remote"}
