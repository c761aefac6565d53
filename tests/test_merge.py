"""LoRA weights into full weights: the tensors that peft computes, and nothing half written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch", reason="the extra weights is not installed")
transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")
peft = pytest.importorskip("peft", reason="the extra transformers is not installed")
from safetensors.torch import load_file, save_file  # noqa: E402

from mixtral_rag.errors import (  # noqa: E402
    AdapterError,
    ModelFileError,
    ModelNotFoundError,
    SettingsError,
)
from mixtral_rag.weights.checkpoint import open_checkpoint  # noqa: E402
from mixtral_rag.weights.merge import merge  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers have much to say
IDS = torch.arange(3, 23)[None]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
UPSTREAM = [*ATTENTION, "gate", "w1", "w2", "w3"]  # what Chinese-Mixtral's LoRA weights change


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Mixtral in several shards, float32."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base") / "base"
    transformers.MixtralForCausalLM(config).save_pretrained(folder, max_shard_size="100KB")
    (folder / "tokenizer.model").write_bytes(b"the base's")
    (folder / "tokenizer_config.json").write_text("{}")
    assert len(list(folder.glob("*.safetensors"))) >= 5
    return folder


def write_adapter(folder, base, *, saved=("embed_tokens", "lm_head"), seed=1, dtype=None, **config):
    """LoRA weights as peft wrote them when every expert was a module: A and B for each."""
    torch.manual_seed(seed)
    r, targets = config.get("r", 4), config.setdefault("target_modules", UPSTREAM)
    tensors = {}
    for name, tensor in open_checkpoint(base).tensors.items():
        module = name.removesuffix(".weight")
        last = module.rpartition(".")[2]
        if last in saved:
            tensors[f"base_model.model.{name}"] = torch.randn(tensor.shape) * 0.3
        elif last in targets:
            rank = config.get("rank_pattern", {}).get(last, r)
            a, b = torch.randn(rank, tensor.shape[1]), torch.randn(tensor.shape[0], rank)
            tensors[f"base_model.model.{module}.lora_A.weight"] = a * 0.2
            tensors[f"base_model.model.{module}.lora_B.weight"] = b * 0.2
    folder.mkdir(exist_ok=True)
    if dtype:
        tensors = {k: v.to(dtype) for k, v in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": 16,
        "base_model_name_or_path": str(base), "modules_to_save": list(saved) or None,
        "bias": "none", "lora_dropout": 0.05, "inference_mode": True, "fan_in_fan_out": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


def trained(folder, base, **config):
    """LoRA weights as the installed peft writes them, made random."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    settings = {"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM"} | config
    peft.get_peft_model(model, peft.LoraConfig(**settings)).save_pretrained(folder)
    torch.manual_seed(2)
    file = folder / "adapter_model.safetensors"
    save_file({k: torch.randn_like(v) * 0.2 for k, v in load_file(file).items()}, file)
    return folder


def by_peft(base, folder, target, dtype=torch.float32):
    """peft's merge of `folder` into `base`, saved to `target`, and the logits before merging.

    Over Transformers 5 peft refuses adapters of experts that were trained with dropout.
    """
    folder = shutil.copytree(folder, target.with_name(f"{target.name}-lora"))
    configure(folder, lora_dropout=0.0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model = peft.PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        logits = model(IDS).logits.float()
    model.merge_and_unload().save_pretrained(target)
    return logits


def tensors_of(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def assert_same(ours, theirs, tolerance=1e-6):
    ours, theirs = tensors_of(ours), tensors_of(theirs)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        assert torch.allclose(ours[name], value, rtol=tolerance, atol=tolerance), name


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """LoRA weights of Chinese-Mixtral's shape: all linear layers, embeddings in full."""
    return write_adapter(tmp_path_factory.mktemp("lora") / "lora", base)


@pytest.fixture(scope="module")
def merged(base, adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged") / "merged"
    return merge(base, [adapter], folder)


def test_every_tensor_and_the_logits_are_those_of_peft(base, adapter, merged, tmp_path):
    logits = by_peft(base, adapter, tmp_path / "theirs")
    assert_same(merged.path, tmp_path / "theirs")
    model = transformers.AutoModelForCausalLM.from_pretrained(merged.path)
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, logits, atol=2e-5)
    before, after = tensors_of(base), tensors_of(merged.path)
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert len(changed) == merged.n_changed + merged.n_replaced == 2 * (4 + 1 + 3 * 8) + 2
    assert merged.n_replaced == 2


def test_shards_index_and_config_stay_as_they_were(base, merged):
    for name in (file.name for file in base.glob("*.safetensors")):
        assert load_file(base / name).keys() == load_file(merged.path / name).keys()
    index = "model.safetensors.index.json"
    before, after = (json.loads((folder / index).read_text()) for folder in (base, merged.path))
    assert before["weight_map"] == after["weight_map"]
    assert before["metadata"]["total_size"] == after["metadata"]["total_size"]
    assert (base / "config.json").read_text() == (merged.path / "config.json").read_text()
    assert (merged.path / "tokenizer.model").read_bytes() == b"the base's"


CONFIGS = {
    "experts fused, as over Transformers 5": {
        "target_modules": UPSTREAM,
        "modules_to_save": ["embed_tokens", "lm_head"],
    },
    "fused parameters by name": {"target_modules": [], "target_parameters": ["experts.down_proj"]},
    "rank-stabilised": {"target_modules": ATTENTION, "use_rslora": True},
    "patterns": {
        "target_modules": ATTENTION,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 6},
        "alpha_pattern": {"k_proj": 5, "o_proj": 3},
    },
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "fan_in_fan_out, which peft ignores here": {
        "target_modules": ["v_proj"],
        "fan_in_fan_out": True,
    },
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_peft_writes_today(base, tmp_path, config):
    folder = trained(tmp_path / "lora", base, **config)
    by_peft(base, folder, tmp_path / "theirs")
    merge(base, [folder], tmp_path / "ours")
    assert_same(tmp_path / "ours", tmp_path / "theirs")


def test_several_are_merged_in_order(base, adapter, tmp_path):
    """Chinese-Mixtral-Instruct's LoRA weights go on top of Chinese-Mixtral's."""
    second = write_adapter(tmp_path / "second", base, saved=("lm_head",), seed=5, r=8)
    by_peft(base, adapter, tmp_path / "one")
    by_peft(tmp_path / "one", second, tmp_path / "theirs")
    merge(base, [adapter, second], tmp_path / "ours")
    assert_same(tmp_path / "ours", tmp_path / "theirs", 3e-6)
    merge(base, [second, adapter], tmp_path / "other")
    heads = [tensors_of(tmp_path / name)["lm_head.weight"] for name in ("ours", "other")]
    assert not torch.equal(*heads)


def test_bfloat16_is_rounded_once(base, adapter, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16")
    wide = tmp_path / "wide"
    model.float().save_pretrained(wide)
    merge(tmp_path / "bf16", [adapter], tmp_path / "ours")
    merge(wide, [adapter], tmp_path / "exact")
    by_peft(tmp_path / "bf16", adapter, tmp_path / "theirs", torch.bfloat16)
    before, exact, theirs = (tensors_of(tmp_path / name) for name in ("wide", "exact", "theirs"))
    for name, value in tensors_of(tmp_path / "ours").items():
        assert torch.equal(value, exact[name].bfloat16()), name
        # For experts and router peft rounds the change too, before it adds it.
        change = (exact[name] - before[name]).abs() if ".block_sparse_moe." in name else 0
        bound = (exact[name].abs() + change) * 2**-7
        assert ((value.float() - theirs[name].float()).abs() <= bound).all(), name


def test_pytorch_archives_give_the_same(base, adapter, merged, tmp_path):
    old, lora = tmp_path / "old", tmp_path / "lora"
    old.mkdir()
    lora.mkdir()
    weight_map = {}
    for number, file in enumerate(sorted(base.glob("*.safetensors"))):
        name = f"pytorch_{file.stem}.bin"
        tensors = load_file(file)
        torch.save(tensors, old / name, _use_new_zipfile_serialization=number % 2 == 0)
        weight_map |= dict.fromkeys(tensors, name)
    (old / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    shutil.copy(base / "config.json", old)
    shutil.copy(adapter / "adapter_config.json", lora)
    torch.save(load_file(adapter / "adapter_model.safetensors"), lora / "adapter_model.bin")
    merge(old, [lora], tmp_path / "ours")
    assert_same(tmp_path / "ours", merged.path, 0)
    merge(old, [lora], tmp_path / "again")  # what was read is not what was changed
    assert_same(tmp_path / "again", merged.path, 0)
    names = sorted(file.name for file in merged.path.glob("*.safetensors"))
    assert sorted(file.name for file in (tmp_path / "ours").glob("*.safetensors")) == names


def test_a_pickle_that_runs_code_is_refused(base, adapter, tmp_path):
    lora, victim = tmp_path / "lora", tmp_path / "victim"
    lora.mkdir()
    shutil.copy(adapter / "adapter_config.json", lora)

    class Evil:
        def __reduce__(self):
            return (Path.touch, (victim,))

    torch.save({"x": Evil()}, lora / "adapter_model.bin")
    with pytest.raises(ModelFileError, match="not a PyTorch file of tensors"):
        merge(base, [lora], tmp_path / "out")
    assert not victim.exists()


def test_dtype_is_written_and_told_to_the_config(base, adapter, merged, tmp_path):
    merge(base, [adapter], tmp_path / "out", dtype="f16")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float16
    exact = tensors_of(merged.path)
    assert all(torch.equal(v, exact[n].half()) for n, v in tensors_of(tmp_path / "out").items())


def test_values_beyond_float16_are_not_made_infinite(base, adapter, tmp_path):
    lora = shutil.copytree(adapter, tmp_path / "lora")
    edit(
        lora, lambda t: t.update({k: v * 1e6 for k, v in t.items() if k.endswith("lm_head.weight")})
    )
    with pytest.raises(
        ModelFileError, match=r"lm_head.weight has values beyond .* F16; use --dtype bf16"
    ):
        merge(base, [lora], tmp_path / "out", dtype="f16")
    edit(lora, lambda t: next(iter(t.values())).fill_(float("nan")))
    with pytest.raises(ModelFileError, match="infinite or not a number"):
        merge(base, [lora], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["lora"]


def test_an_adapters_own_tokenizer_wins_as_a_whole(base, adapter, tmp_path):
    own = shutil.copytree(base, tmp_path / "base")
    (own / "tokenizer.json").write_text('{"base": 1}')
    lora = shutil.copytree(adapter, tmp_path / "lora")
    (lora / "chat_template.jinja").write_text("{{ messages }}")
    merge(own, [lora], tmp_path / "template")
    assert (tmp_path / "template" / "tokenizer.model").read_bytes() == b"the base's"
    assert (tmp_path / "template" / "chat_template.jinja").read_text() == "{{ messages }}"
    (lora / "tokenizer.model").write_bytes(b"the adapter's")
    merge(own, [lora], tmp_path / "whole")
    assert (tmp_path / "whole" / "tokenizer.model").read_bytes() == b"the adapter's"
    assert not (tmp_path / "whole" / "tokenizer.json").exists()


def edit(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def configure(folder, **settings):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


Q = "base_model.model.model.layers.0.self_attn.q_proj"
REFUSED = {
    "DoRA": (lambda f: configure(f, use_dora=True), "use_dora is set"),
    "layers replicated": (lambda f: configure(f, layer_replication=[[0, 2]]), "layer_replication"),
    "aLoRA": (lambda f: configure(f, alora_invocation_tokens=[1]), "alora_invocation_tokens"),
    "a later invention": (lambda f: configure(f, use_wonder=True), "use_wonder is set"),
    "PiSSA": (lambda f: configure(f, init_lora_weights="pissa"), "init_lora_weights is pissa"),
    "not LoRA": (lambda f: configure(f, peft_type="LOHA"), "peft_type is LOHA"),
    "another rank": (lambda f: configure(f, r=8), "has rank 4 and adapter_config.json says 8"),
    "a pattern": (lambda f: configure(f, alpha_pattern={"(": 3}), "alpha_pattern is not a table"),
    "a name alone": (lambda f: configure(f, modules_to_save="lm_head"), "not a list of names"),
    "no rank": (lambda f: configure(f, r=0), "r is 0"),
    "magnitudes": (
        lambda f: edit(f, lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(32)})),
        "q_proj.lora_magnitude_vector is not supported",
    ),
    "a bias of B": (
        lambda f: edit(f, lambda t: t.update({f"{Q}.lora_B.bias": torch.ones(32)})),
        "lora_B.bias is not supported",
    ),
    "a tensor left over": (
        lambda f: edit(
            f, lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(32)})
        ),
        "model.norm.weight would not be used",
    ),
    "no B": (lambda f: edit(f, lambda t: t.pop(f"{Q}.lora_B.weight")), "q_proj has lora_A alone"),
    "a part of A": (
        lambda f: edit(f, lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(0, 32)})),
        "cannot be multiplied; was the adapter saved whole",
    ),
    "no lm_head": (
        lambda f: edit(f, lambda t: t.pop("base_model.model.lm_head.weight")),
        "modules_to_save names lm_head, but the weights lack it",
    ),
    "a larger vocabulary": (
        lambda f: edit(
            f, lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(400, 32)})
        ),
        r"its lm_head is \(400, 32\) and the base's is \(320, 32\)",
    ),
    "a wider model": (
        lambda f: edit(f, lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 64)})),
        r"q_proj is \(32, 64\) and the base's is \(32, 32\); it was trained on some/model",
    ),
    "more layers": (
        lambda f: edit(
            f,
            lambda t: t.update(
                {
                    f"{Q.replace('.0.', '.7.')}.lora_A.weight": torch.ones(4, 32),
                    f"{Q.replace('.0.', '.7.')}.lora_B.weight": torch.ones(32, 4),
                }
            ),
        ),
        r"it changes model.layers.7.self_attn.q_proj, which the base does not have",
    ),
}


@pytest.mark.parametrize(("spoil", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(base, adapter, tmp_path, spoil, reason):
    lora = shutil.copytree(adapter, tmp_path / "lora")
    configure(lora, base_model_name_or_path="some/model")
    spoil(lora)
    with pytest.raises(AdapterError, match=reason):
        merge(base, [lora], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["lora"]


def test_a_base_that_is_not_full_weights_is_refused(base, adapter, tmp_path):
    own = shutil.copytree(base, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())

    def with_config(**settings):
        (own / "config.json").write_text(json.dumps(config | settings))

    with_config(quantization_config={"bits": 4})
    with pytest.raises(ModelFileError, match="quantised weights"):
        merge(own, [adapter], tmp_path / "out")
    with_config(model_type="gpt2")
    with pytest.raises(ModelFileError, match="is a gpt2"):
        merge(own, [adapter], tmp_path / "out")
    with_config(tie_word_embeddings=True)
    with pytest.raises(AdapterError, match="tie_word_embeddings"):
        merge(own, [adapter], tmp_path / "out")
    with_config()
    shard = sorted(own.glob("*.safetensors"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-10])
    with pytest.raises(ModelFileError, match=rf"{shard.name} is truncated"):
        merge(own, [adapter], tmp_path / "out")
    shard.write_bytes(data[:4])
    with pytest.raises(ModelFileError, match="not a safetensors file"):
        merge(own, [adapter], tmp_path / "out")
    shard.unlink()
    with pytest.raises(ModelFileError, match=rf"lacks {shard.name} \(1 of \d+ shards"):
        merge(own, [adapter], tmp_path / "out")
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        merge(tmp_path / "nowhere", [adapter], tmp_path / "out")
    with pytest.raises(ModelNotFoundError, match=r"no adapter_config\.json"):
        merge(base, [base], tmp_path / "out")
    with pytest.raises(SettingsError, match="choose one of: f32, f16, bf16"):
        merge(base, [adapter], tmp_path / "out", dtype="int4")


def test_an_existing_folder_is_not_touched(base, adapter, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ModelFileError, match="exists already"):
        merge(base, [adapter], tmp_path / "out")
    with pytest.raises(ModelFileError, match="there is no folder"):
        merge(base, [adapter], tmp_path / "nowhere" / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_full_disk_is_seen_before_anything_is_written(base, adapter, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(ModelFileError, match=r"GB free and .* takes \d+\.\d GB"):
        merge(base, [adapter], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_interrupted_it_leaves_nothing(base, adapter, tmp_path):
    seen = []

    def stop(done, total):
        seen.append((done, total))
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(base, [adapter], tmp_path / "out", on_progress=stop)
    assert not list(tmp_path.iterdir())
    assert seen == sorted(seen)
    merge(base, [adapter], tmp_path / "out", on_progress=lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1]


def test_killed_it_leaves_no_model_and_can_run_again(base, adapter, merged, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from mixtral_rag.weights.merge import merge\n"
        "def slow(done, total): print(done, flush=True); time.sleep(0.02)\n"
        "merge(Path(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3]), on_progress=slow)"
    )
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", code, str(base), str(adapter), str(out)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [p.name for p in tmp_path.iterdir()] == [".out.partial"]
    merge(base, [adapter], out)
    assert_same(out, merged.path, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_memory_does_not_grow_with_the_weights(tmp_path):
    """Half a gigabyte is merged with a few blocks of 32 MB beyond what torch itself takes."""
    base = tmp_path / "base"
    base.mkdir()
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)]
    save_file({n: torch.ones(4096, 16_384) for n in names}, base / "model.safetensors")
    (base / "config.json").write_text('{"model_type": "mistral"}')
    lora = write_adapter(tmp_path / "lora", base, saved=())
    code = (
        "import sys, resource, torch; from pathlib import Path\n"
        "from mixtral_rag.weights.merge import merge\n"
        "torch.ones(64, 64) @ torch.ones(64, 64)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "merge(Path(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    arguments = [sys.executable, "-c", code, str(base), str(lora), str(tmp_path / "out")]
    out = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert (base / "model.safetensors").stat().st_size > 500_000_000
    assert int(out.stdout) < 200_000, "kilobytes"


def test_the_command_says_what_it_did_and_what_comes_next(base, adapter, tmp_path):
    command = [str(Path(sys.executable).with_name("mixtral-rag")), "merge", str(base), str(adapter)]
    command += ["--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "58 changed, 2 replaced" in done.stdout
    assert f"mixtral-rag convert {tmp_path / 'out'}" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert again.stderr.strip().endswith("exists already; remove it or choose another name")
