"""The Transformers engine, with real torch over random weights; see also test_conformance.py."""

import ctypes
import gc
import json
import shutil
import signal
import subprocess
import sys
import weakref

import pytest
from tiny_mixtral import write_adapter, write_tiny_folder

torch = pytest.importorskip("torch", reason="the extra transformers is not installed")
transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")
from safetensors.torch import load_file, save_file  # noqa: E402

from mixtral_rag.engines import Cancellation, open_engine  # noqa: E402
from mixtral_rag.engines.torch_context import STEP, TorchContext  # noqa: E402
from mixtral_rag.engines.torch_sampler import TorchSampler  # noqa: E402
from mixtral_rag.engines.transformers import TransformersEngine  # noqa: E402
from mixtral_rag.errors import (  # noqa: E402
    AdapterError,
    ContextError,
    GenerationError,
    ModelFileError,
    ModelNotFoundError,
    SettingsError,
)
from mixtral_rag.types import SamplingOptions  # noqa: E402
from mixtral_rag.weights.merge import merge  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers have much to say
IDS = [1, 733, 16289, 28793, 28705, 29383, 29530, 733, 28748, 16289, 28793]  # [INST] 你好 [/INST]
GREEDY = SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=8)


@pytest.fixture(scope="module")
def folder(weights):
    return weights.folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory, weights):
    """With rows of 128 values in the experts: bitsandbytes wants multiples of 64."""
    return write_tiny_folder(tmp_path_factory.mktemp("wide") / "wide", n_ff=128)


def engine_of(folder, **options):
    return TransformersEngine(str(folder), **{"n_ctx": 2048, "device": "cpu"} | options)


def run(engine, ids=IDS, options=GREEDY, **kwargs):
    pieces = list(engine.generate(ids, options, **kwargs))
    return "".join(p.text for p in pieces), pieces[-1]


def logits(engine, ids=IDS):
    """What the engine computes for the token after `ids`."""
    list(engine.generate(ids, SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=1)))
    return engine._loaded.logits.clone()


def expected(folder, ids=IDS):
    model = transformers.MixtralForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


def near(a, b, tolerance=1e-4):
    return float((a - b).abs().max()) < tolerance


def test_logits_are_those_of_transformers(folder):
    assert near(logits(engine_of(folder)), expected(folder))


def test_weights_with_a_tensor_for_each_expert_load(folder, tmp_path):
    """The layout of all published checkpoints, which transformers 5 still writes."""
    names = [n for f in folder.glob("*.safetensors") for n in load_file(f)]
    assert "model.layers.0.block_sparse_moe.experts.7.w3.weight" in names
    old = tmp_path / "pytorch"
    old.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".safetensors":
            torch.save(load_file(file), old / "pytorch_model.bin")
        else:
            shutil.copy(file, old)
    assert near(logits(engine_of(old)), expected(folder))


def test_prompts_longer_than_a_step_and_cached_ones_give_the_same_logits(folder):
    engine = engine_of(folder)
    long = [1, *((i * 37) % 30_000 + 100 for i in range(STEP + 200))]
    assert near(logits(engine, long), expected(folder, long))
    other = [*long[:300], 5, 6, 7]
    _, last = run(engine, other)
    assert last.usage.cached_tokens == 300
    run(engine, long)
    assert near(logits(engine, other), expected(folder, other))
    assert near(logits(engine, long[:100]), expected(folder, long[:100]))


def test_an_answer_is_part_of_the_next_prompt_and_not_computed_again(folder):
    engine = engine_of(folder)
    options = SamplingOptions(temperature=0, repeat_penalty=1.0, max_tokens=8, logprobs=True)
    pieces = list(engine.generate(IDS, options))
    said = [x.data for p in pieces for x in p.logprobs]
    pieces_of = {engine.tokenizer.piece(i): i for i in reversed(range(len(engine.tokenizer)))}
    conversation = [*IDS, *(pieces_of[data] for data in said), 2, 733, 16289]
    _, last = run(engine, conversation)
    assert last.usage.cached_tokens == len(IDS) + len(said) - 1


def test_a_cache_that_cannot_forget_a_part_is_filled_anew(folder, tmp_path):
    """A sliding window has lost what lies before it."""
    narrow = shutil.copytree(folder, tmp_path / "narrow")
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps(config | {"sliding_window": 16}))
    engine = engine_of(narrow)
    long = [1, *range(1000, 1100)]
    run(engine, long)
    other = [*long[:50], 7, 8]
    assert near(logits(engine, other), expected(narrow, other))
    _, last = run(engine, [*long[:40], 9])
    assert last.usage.cached_tokens == 0


def test_another_thread_can_stop_a_prefill_between_steps(folder, monkeypatch):
    engine, cancel, computed = engine_of(folder), Cancellation(), []
    compute = TorchContext._compute

    def counted(self, ids):
        compute(self, ids)
        computed.append(len(ids))
        cancel.cancel()

    monkeypatch.setattr(TorchContext, "_compute", counted)
    text, last = run(engine, [1, *range(1000, 2700)], cancel=cancel)
    assert (text, last.finish_reason, last.usage.completion_tokens) == ("", "cancelled", 0)
    assert computed == [STEP]
    monkeypatch.undo()
    _, last = run(engine, [1, *range(1000, 2700)])
    assert last.usage.cached_tokens == STEP
    assert near(logits(engine), expected(folder))


def test_ctrl_c_in_the_middle_of_a_step_leaves_the_engine_in_order(folder):
    engine = engine_of(folder)
    run(engine)
    last_layer = engine._loaded._model.model.layers[-1]

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = last_layer.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(engine, [*IDS, 5, 6, 7])
    hook.remove()
    assert near(logits(engine), expected(folder))
    assert near(logits(engine, [*IDS, 5]), expected(folder, [*IDS, 5]))


def test_what_torch_cannot_compute_is_an_error_of_ours(folder):
    engine = engine_of(folder)
    run(engine)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    hook = engine._loaded._model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(GenerationError, match="out of memory"):
        run(engine, [*IDS, 5])
    hook.remove()
    assert near(logits(engine), expected(folder))


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 40, "top_p": 0.9},
        {"top_k": 0, "top_p": 0.5},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.05},
        {"top_k": 100, "top_p": 0.8, "min_p": 0.2},
        {"top_k": 1},
        {"top_k": 0, "top_p": 1.0, "repeat_penalty": 1.0},
    ],
    ids=str,
)
def test_tokens_are_drawn_from_those_that_llama_cpp_leaves(options):
    from mixtral_rag.engines import llama_library
    from mixtral_rag.engines.llama_sampler import Sampler

    lib = llama_library.load()
    n, prompt = 2000, [7, 8, 9, 7]
    logits = torch.randn(n, generator=torch.Generator().manual_seed(5)) * 4
    options = SamplingOptions(**{"temperature": 0.7, "repeat_penalty": 1.3, "seed": 1} | options)
    chain = Sampler(options, prompt, n)
    data = (lib.llama_token_data * n)(
        *(lib.llama_token_data(id=i, logit=x, p=0.0) for i, x in enumerate(logits.tolist()))
    )
    candidates = lib.llama_token_data_array(data=data, size=n, selected=-1, sorted=False)
    lib.llama_sampler_apply(chain._chain, ctypes.byref(candidates))
    theirs = {candidates.data[i].id: candidates.data[i].p for i in range(candidates.size)}

    sampler = TorchSampler(options, prompt)
    sampler.penalise(logits)
    ids, chances = sampler.chances(logits)
    ours = dict(zip(ids.tolist(), chances.tolist(), strict=True))
    assert ours.keys() == theirs.keys()
    assert all(ours[i] == pytest.approx(theirs[i], abs=1e-4) for i in ours)


def test_chat_and_text_through_langchain_are_those_of_llama_cpp(weights):
    from mixtral_rag import ChatChineseMixtral, ChineseMixtral

    same = {"temperature": 0, "max_tokens": 12, "n_ctx": 512}
    ours = {"model": str(weights.folder), "engine": "transformers", "device": "cpu"} | same
    theirs = {"model": str(weights.gguf), "kv_type": "f32", "n_threads": 1} | same
    for face in (ChatChineseMixtral, ChineseMixtral):
        a, b = face(**ours).invoke("你好，世界"), face(**theirs).invoke("你好，世界")
        assert getattr(a, "content", a) == getattr(b, "content", b)
    assert a.strip()


def test_the_global_generator_is_left_alone(folder):
    engine = engine_of(folder)
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    run(engine, options=SamplingOptions(temperature=1, max_tokens=8, seed=9))
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize(
    ("stored", "asked", "computed"),
    [
        ("float32", "auto", torch.float32),
        ("bfloat16", "auto", torch.bfloat16),
        ("float16", "auto", torch.bfloat16),
        ("float16", "float32", torch.float32),
        ("float32", "bfloat16", torch.bfloat16),
        ("float16", "float16", torch.float16),
    ],
)
def test_types_to_compute_in(tmp_path, stored, asked, computed):
    folder = write_tiny_folder(tmp_path / stored, dtype=stored)
    engine = engine_of(folder, dtype=asked)
    assert near(logits(engine), expected(folder).float(), 1.0)
    assert engine._loaded._model.dtype == computed


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_experts_and_attention_are_quantised(wide, quantization):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    engine = engine_of(wide, quantization=quantization)
    text, _ = run(engine)
    assert text
    model = engine._loaded._model
    layers = [type(m).__name__ for m in model.modules() if isinstance(m, torch.nn.Linear)]
    kind = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[quantization]
    assert layers.count(kind) == 2 * (4 + 3 * 8)
    assert layers.count("Linear") == 2 + 1  # the routers, and what gives the logits
    found, wanted = logits(engine), expected(wide)
    similarity = torch.nn.functional.cosine_similarity(found, wanted, dim=0)
    assert float(similarity) > {"8bit": 0.98, "4bit": 0.7}[quantization]


def test_experts_as_layers_of_their_own_give_the_same_logits(folder):
    from mixtral_rag.engines.torch_experts import mixtral_of_linear_layers

    model = mixtral_of_linear_layers().from_pretrained(folder)
    with torch.no_grad():
        assert near(model(torch.tensor([IDS])).logits[0, -1], expected(folder))


@pytest.mark.parametrize("experts", [False, True], ids=["attention", "all layers"])
def test_an_adapter_gives_the_logits_of_merged_weights(folder, tmp_path, experts):
    pytest.importorskip("peft", reason="the extra transformers is not installed")
    adapter = write_adapter(tmp_path / "lora", folder, experts=experts)
    merge(folder, [adapter], tmp_path / "merged")
    wanted = expected(tmp_path / "merged")
    assert near(logits(engine_of(folder, adapter=str(adapter))), wanted)
    assert not near(expected(folder), wanted, 0.5)
    assert near(logits(engine_of(folder)), expected(folder)), "the adapter stays with its engine"


@pytest.mark.parametrize("experts", [False, True], ids=["attention", "all layers"])
def test_an_adapter_over_quantised_weights(wide, tmp_path, experts):
    pytest.importorskip("peft", reason="the extra transformers is not installed")
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    adapter = write_adapter(tmp_path / "lora", wide, experts=experts)
    merge(wide, [adapter], tmp_path / "merged")
    found = logits(engine_of(wide, adapter=str(adapter), quantization="8bit"))
    wanted = expected(tmp_path / "merged")
    assert float(torch.nn.functional.cosine_similarity(found, wanted, dim=0)) > 0.95
    other = torch.nn.functional.cosine_similarity(found, expected(wide), dim=0)
    assert float(other) < 0.9


def test_an_adapter_that_does_not_fit_is_explained(folder, wide, tmp_path):
    pytest.importorskip("peft", reason="the extra transformers is not installed")
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        run(engine_of(folder, adapter=str(tmp_path / "none")))
    with pytest.raises(ModelNotFoundError, match=r"no adapter_config\.json"):
        run(engine_of(folder, adapter=str(tmp_path)))
    other = write_adapter(tmp_path / "lora", wide)
    with pytest.raises(AdapterError, match="do not fit") as caught:
        run(engine_of(folder, adapter=str(other)))
    assert "\n" not in str(caught.value)
    (other / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(AdapterError):
        run(engine_of(wide, adapter=str(other)))


def test_contexts_of_other_sizes_share_the_weights(folder):
    small, large = (engine_of(folder, n_ctx=n) for n in (256, 1024))
    run(small)
    run(large)
    assert small._loaded._model is large._loaded._model
    other = engine_of(folder, dtype="bfloat16")
    run(other)
    assert other._loaded._model is not small._loaded._model


def test_an_engine_is_freed_with_its_last_user(folder):
    engine = open_engine("transformers", str(folder), n_ctx=300, dtype="bfloat16")
    assert open_engine("transformers", str(folder), n_ctx=300, dtype="bfloat16") is engine
    run(engine)
    gone = weakref.ref(engine), weakref.ref(engine._loaded._model)
    del engine
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_what_does_not_fit_is_refused_before_weights_load(folder):
    engine = engine_of(folder, n_ctx=16)
    with pytest.raises(ContextError):
        engine.generate([*IDS] * 2, GREEDY)
    with pytest.raises(SettingsError, match="31,999"):
        engine.generate([1, 32_000], GREEDY)
    with pytest.raises(SettingsError, match="31,999"):
        engine.generate([1, -1], GREEDY)
    assert not engine.is_loaded


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_ctx": 0}, "n_ctx"),
        ({"n_ctx": 200_000}, "131,072"),
        ({"dtype": "float64"}, "bfloat16"),
        ({"quantization": "fp8"}, "8bit, 4bit"),
        ({"engine_options": {"trust_remote_code": True}}, "trust_remote_code"),
        ({"engine_options": {"local_files_only": False}}, "local_files_only"),
        ({"engine_options": {"key": object()}}, "plain values"),
    ],
)
def test_bad_options_are_named(folder, options, match):
    with pytest.raises(SettingsError, match=match):
        TransformersEngine(str(folder), **options)


def test_options_that_only_loading_shows_to_be_bad(folder):
    with pytest.raises(SettingsError, match="nonsense"):
        run(engine_of(folder, engine_options={"nonsense": 1}))
    with pytest.raises(SettingsError, match="device 'warp'"):
        run(engine_of(folder, device="warp"))
    eager = engine_of(folder, engine_options={"attn_implementation": "eager"})
    assert near(logits(eager), expected(folder))


def test_quantising_without_bitsandbytes_says_what_to_install(folder, monkeypatch):
    find_spec = "mixtral_rag.engines.torch_model.importlib.util.find_spec"
    monkeypatch.setattr(find_spec, lambda name: None)
    with pytest.raises(SettingsError, match="pip install bitsandbytes"):
        run(engine_of(folder, quantization="4bit"))


def broken(folder, target, change):
    """A copy of `folder` with its one file of weights changed."""
    shutil.copytree(folder, target)
    (file,) = target.glob("*.safetensors")
    change(file)
    return target


def drop(file):
    tensors = load_file(file)
    del tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    save_file(tensors, file, {"format": "pt"})


def drop_head(file):
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, {"format": "pt"})


def reshape(file):
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:100].clone()
    save_file(tensors, file, {"format": "pt"})


def cut(file):
    file.write_bytes(file.read_bytes()[:5000])


def pickled(file):
    """PyTorch's own format, with an object that would run code where it is unpickled."""
    torch.save({"model.norm.weight": Evil()}, file.with_name("pytorch_model.bin"))
    file.unlink()


class Evil:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    "change", [drop, drop_head, reshape, cut, pickled], ids=lambda c: c.__name__
)
def test_damaged_weights_are_refused_with_the_folder_and_a_reason(folder, tmp_path, change, capsys):
    bad = broken(folder, tmp_path / "bad", change)
    with pytest.raises(ModelFileError, match=str(bad)) as caught:
        run(engine_of(bad))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "ran" not in capsys.readouterr().out.split()


def test_folders_without_weights_or_of_unknown_models_are_refused(folder, tmp_path):
    bad = broken(folder, tmp_path / "bad", lambda file: file.unlink())
    with pytest.raises(ModelNotFoundError, match="no weights"):
        run(engine_of(bad))
    strange = shutil.copytree(folder, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))
    with pytest.raises(ModelFileError, match="no_such_model"):
        run(engine_of(strange))
    for wrong in ({"num_attention_heads": "four"}, {"num_local_experts": 5}, {"hidden_act": "?"}):
        (strange / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(ModelFileError, match=str(strange)):
            run(engine_of(strange))
    with pytest.raises(ModelFileError, match="engine llamacpp"):
        run(engine_of(folder / "model.gguf"))


def test_a_folder_never_runs_code_of_its_own(folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    code = {"auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}}
    (own / "config.json").write_text(json.dumps(config | code))
    (own / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    run(engine_of(own))
    assert not (tmp_path / "ran").exists()


def test_a_model_that_is_no_mixtral(tmp_path, weights):
    config = transformers.LlamaConfig(
        vocab_size=32_000, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    shutil.copy(weights.folder / "tokenizer.model", tmp_path)
    engine = TransformersEngine(str(tmp_path), device="cpu")
    assert (engine.is_mixtral, engine.n_ctx) == (False, 512)
    assert run(engine)[1].usage.completion_tokens == 8


def test_loading_and_generating_write_nothing_and_leave_no_thread_behind(folder):
    code = """
import sys, threading
from mixtral_rag.engines.transformers import TransformersEngine
from mixtral_rag.types import SamplingOptions

engine = TransformersEngine(sys.argv[1], device="cpu")
assert "torch" not in sys.modules and "transformers" not in sys.modules
assert engine.tokenizer.encode("x") and engine.n_ctx and engine.is_mixtral
assert "torch" not in sys.modules and "transformers" not in sys.modules
list(engine.generate([1, 2, 3], SamplingOptions(max_tokens=3)))
print([t.name for t in threading.enumerate()])
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert (out.returncode, out.stderr) == (0, "")
    assert out.stdout.strip() == "['MainThread']"


def test_ctrl_c_ends_a_generation(folder):
    code = """
import os, signal, sys, threading
import torch
from mixtral_rag.engines.transformers import TransformersEngine
from mixtral_rag.types import SamplingOptions

torch.set_num_threads(1)
engine = TransformersEngine(sys.argv[1], device="cpu")
options = SamplingOptions(temperature=0, max_tokens=2000)
small = SamplingOptions(temperature=0, max_tokens=8)

def text(options):
    return "".join(p.text for p in engine.generate([1, 2, 3], options))

good = text(small)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    text(options)
except KeyboardInterrupt:
    print("interrupted", text(small) == good)
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert out.stdout.strip() == "interrupted True", out.stderr
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
