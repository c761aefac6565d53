"""What is vLLM's own: batches, prefix caching, adapters, its process and its refusals.

What it shares with all engines is in test_conformance.py.
"""

import asyncio
import gc
import inspect
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from conftest import VLLM_OPTIONS
from langchain_core.messages import HumanMessage
from tiny_mixtral import tokenizer_model_file, write_adapter

from mixtral_rag import ChatChineseMixtral, ChineseMixtral
from mixtral_rag.engines.vllm import VllmEngine
from mixtral_rag.errors import (
    AdapterError,
    ModelError,
    ModelFileError,
    ModelNotFoundError,
    SettingsError,
)
from mixtral_rag.prompts import render
from mixtral_rag.types import Message, SamplingOptions

pytest.importorskip("vllm", reason="vllm is not installed; see `make test-vllm`")
pytestmark = [
    pytest.mark.enable_socket,
    pytest.mark.allow_hosts(["127.0.0.1", "localhost", "::1"]),
]
GREEDY = {"temperature": 0, "repeat_penalty": 1.0, "max_tokens": 24}


def options(folder, **more):
    return {
        "model": str(folder), "engine": "vllm", "n_ctx": 2048, "dtype": "float32",
        "engine_options": VLLM_OPTIONS, **GREEDY, **more,
    }  # fmt: skip


def run(engine, ids, **more):
    pieces = list(engine.generate(ids, SamplingOptions(**GREEDY | more)))
    return "".join(p.text for p in pieces), pieces[-1]


@pytest.fixture(scope="module")
def chat(weights):
    chat = ChatChineseMixtral(**options(weights.folder))
    yield chat
    chat._engine.close()


def settle(n):
    """Waits until what was stopped is gone."""
    for _ in range(500):
        if len(children()) <= n:
            return
        threading.Event().wait(0.02)


def children():
    """Processes of this one, without Python's own that tracks resources as long as it lives."""
    alive = [p for p in psutil.Process().children(recursive=True) if p.status() != "zombie"]
    return [p for p in alive if "resource_tracker" not in " ".join(p.cmdline())]


def test_a_batch_is_computed_together_and_gives_what_single_calls_give(chat):
    questions = [f"问题 {i}: " + "苏州 " * i for i in range(32)]
    alone = [chat.invoke(q).content for q in questions]
    most = watch(chat._engine)
    assert [m.content for m in chat.batch(questions)] == alone
    assert most() >= 16, "so many requests were in vLLM at one time"

    async def together():
        return [m.content for m in await chat.abatch(questions)]

    most = watch(chat._engine)
    assert asyncio.run(together()) == alone
    assert most() >= 16


def watch(engine):
    """Most unfinished requests seen until the result is called."""
    (vllm,) = engine._loaded
    seen, done = [0], threading.Event()

    def look():
        while not done.wait(0.002):
            seen.append(vllm.get_num_unfinished_requests())

    thread = threading.Thread(target=look)
    thread.start()

    def result():
        done.set()
        thread.join()
        return max(seen)

    return result


def test_the_llm_sends_its_prompts_together_too(weights, chat):
    llm = ChineseMixtral(**options(weights.folder))
    assert llm._engine is chat._engine
    prompts = [f"prompt {i}" for i in range(24)]
    alone = [llm.invoke(p) for p in prompts]
    most = watch(llm._engine)
    assert [g[0].text for g in llm.generate(prompts).generations] == alone
    assert most() >= 12


def test_several_answers_to_one_prompt(chat):
    hot = {"temperature": 1.5, "top_p": 1.0, "top_k": 0}
    a, b = (chat.generate([[HumanMessage("hi")]], n=3, seed=7, **hot) for _ in range(2))
    texts = [g.text for g in a.generations[0]]
    assert len(set(texts)) == 3
    assert texts == [g.text for g in b.generations[0]]


def test_what_prompts_begin_with_is_computed_once(chat):
    document = "苏州园林里都有假山和池沼。" * 40
    first = chat.invoke(f"{document}\n\n问题：甲？").usage_metadata
    second = chat.invoke(f"{document}\n\n问题：乙？").usage_metadata
    assert first["input_token_details"]["cache_read"] == 0
    assert second["input_token_details"]["cache_read"] > second["input_tokens"] * 0.8


def test_leaving_a_stream_ends_the_request(chat):
    (vllm,) = chat._engine._loaded
    stream = chat.stream("Count to a thousand.", max_tokens=1500)
    next(stream)
    stream.close()
    for _ in range(500):
        if vllm.get_num_unfinished_requests() == 0:
            return
        threading.Event().wait(0.02)
    pytest.fail("vLLM still computes what nobody reads")


def write_llama(folder):
    """A model without experts: to those vLLM applies LoRA weights by Triton, which needs a GPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=128, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
        model.lm_head.weight.mul_(4)
    model.save_pretrained(folder)
    shutil.copy(tokenizer_model_file(), folder / "tokenizer.model")
    return folder


def test_lora_weights_are_applied(tmp_path):
    from mixtral_rag.weights.merge import merge

    base = write_llama(tmp_path / "base")
    adapter = write_adapter(tmp_path / "lora", base, experts=False)
    merge(base, [adapter], tmp_path / "merged")
    ids = [1, 733, 16289, 28793, 28705, 29383, 29530, 733, 28748, 16289, 28793]
    texts = {}
    for name, folder, lora in (
        ("plain", base, None),
        ("adapted", base, str(adapter)),
        ("merged", tmp_path / "merged", None),
    ):
        engine = VllmEngine(
            str(folder), n_ctx=256, dtype="float32", adapter=lora, engine_options=VLLM_OPTIONS
        )
        texts[name] = run(engine, ids)[0]
        engine.close()
    assert texts["adapted"] == texts["merged"] != texts["plain"]


def test_lora_weights_of_a_rank_vllm_lacks_are_refused(weights, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 1000}')
    engine = VllmEngine(str(weights.folder), n_ctx=256, adapter=str(tmp_path))
    with pytest.raises(AdapterError, match="rank 1 to 512, not 1000"):
        run(engine, [1, 2])


def test_closing_ends_the_process_and_the_next_use_starts_it_again(weights):
    before = len(children())
    engine = VllmEngine(
        str(weights.folder), n_ctx=256, dtype="float32", engine_options=VLLM_OPTIONS
    )
    text, _ = run(engine, [1, 1000, 2000])
    assert len(children()) > before
    engine.close()
    settle(before)  # a killed process is seen for a moment longer
    assert len(children()) == before
    assert not engine.is_loaded
    assert run(engine, [1, 1000, 2000])[0] == text
    del engine
    gc.collect()
    settle(before)
    assert len(children()) == before, "an engine that nobody holds is stopped"


@pytest.mark.parametrize(
    ("more", "error", "match"),
    [
        ({"dtype": "float31"}, SettingsError, "float31"),
        ({"quantization": "nonsense"}, SettingsError, "nonsense"),
        ({"engine_options": {"no_such_option": 1}}, SettingsError, "no_such_option"),
        ({"tensor_parallel_size": 0}, SettingsError, "tensor_parallel_size is 0"),
        ({"n_ctx": 10**7}, SettingsError, "n_ctx"),
        ({"kv_memory": -1}, SettingsError, "kv_memory is -1"),
        ({"kv_memory": 32}, SettingsError, "kv_memory is 32 bytes"),
        (
            {"kv_memory": 1 << 30, "engine_options": {"kv_offloading_size": 1}},
            SettingsError,
            "leave it and kv_offloading_size out",
        ),
    ],
)
def test_options_vllm_refuses_are_named(weights, more, error, match):
    with pytest.raises(error, match=match) as caught:
        run(VllmEngine(str(weights.folder), **{"n_ctx": 256} | more), [1, 2])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", [{"kv_memory": 1 << 30}, {"kv_folder": "kept"}])
def test_keeping_prompts_beside_the_gpu_needs_a_gpu(weights, tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="are for vLLM on a GPU"):
        run(VllmEngine(str(weights.folder), n_ctx=256, **more), [1, 2])
    assert not list(tmp_path.iterdir())


def test_vllm_takes_what_keeps_prompts_in_memory_and_on_the_disk(weights, tmp_path, monkeypatch):
    """vLLM's own parts, made from the arguments as far as they go without a GPU."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.kv_offload.factory import OffloadingSpecFactory
    from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

    monkeypatch.setattr("mixtral_rag.engines.vllm.check_platform", lambda: None)
    copy = tmp_path / "model"
    shutil.copytree(weights.folder, copy)
    roots = []
    for change in (None, copy / "model.safetensors"):
        if change is not None:  # other weights under the same path
            data = bytearray(change.read_bytes())
            data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
            change.write_bytes(data)
        engine = VllmEngine(
            str(copy), n_ctx=256, kv_memory=1 << 30, kv_folder=str(tmp_path / "kept"),
            engine_options=VLLM_OPTIONS,
        )  # fmt: skip
        config = AsyncEngineArgs(
            **engine._arguments(), **engine._offloading()
        ).create_engine_config()
        transfer = config.kv_transfer_config
        extra = transfer.kv_connector_extra_config
        assert (transfer.kv_connector, transfer.kv_role) == ("OffloadingConnector", "kv_both")
        assert extra["cpu_bytes_to_use"] == 1 << 30
        assert OffloadingSpecFactory.get_spec_cls(extra).__name__ == "TieringOffloadingSpec"
        (tier,) = extra["secondary_tiers"]
        made = SecondaryTierFactory.get_tier_class(tier)
        inspect.signature(made).bind(None, None, tier["type"], root_dir=tier["root_dir"])
        roots.append(tier["root_dir"])
    assert len(set(roots)) == 2, "what other weights computed is not taken"
    assert {p.stat().st_mode & 0o777 for p in map(Path, roots)} == {0o700}


def test_wrong_models_are_explained(weights, tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        run(VllmEngine(str(tmp_path / "none")), [1])
    with pytest.raises(ModelFileError, match="llamacpp"):
        run(VllmEngine(str(weights.gguf)), [1])
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    with pytest.raises(ModelError, match="no weights"):
        run(VllmEngine(str(tmp_path), n_ctx=64), [1])


def test_a_script_without_its_guard_is_told(weights, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
from mixtral_rag import ChineseMixtral
llm = ChineseMixtral(**{options(weights.folder)!r})
print(llm.invoke("hi"))
""")
    out = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert out.returncode != 0
    assert 'if __name__ == "__main__"' in out.stderr


@pytest.mark.parametrize("first", ["", "import tempfile; tempfile.TemporaryDirectory()"])
def test_a_script_ends_quietly(first, weights, tmp_path):
    """Also where something made a finalizer before vLLM was imported."""
    script = tmp_path / "script.py"
    script.write_text(f"""
{first}
from mixtral_rag import ChineseMixtral
if __name__ == "__main__":
    llm = ChineseMixtral(**{options(weights.folder)!r})
    print("answer:", len(llm.invoke("hi")) > 0)
""")
    out = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False,
                         timeout=240)  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert "answer: True" in out.stdout
    assert "Error" not in out.stderr
    assert "Traceback" not in out.stderr


def test_prompts_of_many_turns_are_the_reference_ids(chat):
    turns = [Message("system", "S"), Message("user", "你好"), Message("assistant", "b"),
             Message("user", "c")]  # fmt: skip
    sent = chat.invoke([(m.role, m.content) for m in turns]).usage_metadata["input_tokens"]
    assert sent == len(render(turns, chat._engine.tokenizer))
