"""Hugging Face weights to GGUF: the logits of transformers, the tokens of SentencePiece."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from tiny_mixtral import tokenizer_model_file, write_tokenizer_json

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch", reason="the extra weights is not installed")
transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")
import gguf  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from sentencepiece import SentencePieceProcessor  # noqa: E402

from mixtral_rag import ChineseMixtral  # noqa: E402
from mixtral_rag.engines import llama_library  # noqa: E402
from mixtral_rag.engines.llama_vocab import LlamaVocabulary  # noqa: E402
from mixtral_rag.errors import ModelFileError, ModelNotFoundError, SettingsError  # noqa: E402
from mixtral_rag.weights.convert import convert  # noqa: E402
from mixtral_rag.weights.gguf import read_header  # noqa: E402
from mixtral_rag.weights.inspect import inspect  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = [1, 733, 16289, 28793, 28705, 29383, 29530, 733, 28748, 16289, 28793]  # [INST] 你好 [/INST]
TEXTS = [
    "你好，世界",
    "  two  spaces   and    more",
    "Hello world\n\n  code\tx = 1",
    "苏州园林 𠮷 😀 ﬁ ＡＢＣ①",
    "hello </s> [INST]",
]


def save(model, folder, **settings):
    """A model with values of a real one's size and the real vocabulary, in several shards."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(*((0, p.shape[-1] ** -0.5) if p.dim() > 1 else (1, 0.1)))
    model.save_pretrained(folder, max_shard_size="5MB")
    shutil.copy(tokenizer_model_file(), folder / "tokenizer.model")
    return folder


def config_of(kind, **settings):
    return kind(
        vocab_size=32_000, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def mixtral():
    return transformers.MixtralForCausalLM(config_of(transformers.MixtralConfig)).eval()


@pytest.fixture(scope="module")
def folder(mixtral, tmp_path_factory):
    return save(mixtral, tmp_path_factory.mktemp("hf") / "tiny-mixtral-instruct")


@pytest.fixture(scope="module")
def exact(folder, tmp_path_factory):
    """The model as GGUF in float32."""
    return convert(folder, tmp_path_factory.mktemp("gguf") / "f32-instruct.gguf", type="f32")


def logits(path, ids):
    """llama.cpp's logits for the last of `ids`, computed in float32."""
    lib, model = llama_library.load(), llama_library.load_model(read_header(path))
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_threads, params.type_k, params.type_v = 64, 1, 0, 0
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model.pointer, params)
    tokens = (lib.llama_token * len(ids))(*ids)
    assert lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(ids))) == 0
    n_vocab = read_header(path).vocabulary_size
    found = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n_vocab,)).copy()
    lib.llama_free(context)
    return found


def expected(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].float().numpy()


def stored(path):
    """What the header says of each tensor, and its bytes."""
    header, data = read_header(path), np.fromfile(path, np.uint8)
    return {
        t.name: (t, data[header.data_offset + t.offset :][: t.size].copy()) for t in header.tensors
    }


def test_logits_are_those_of_transformers(mixtral, exact):
    ours, theirs = logits(exact, IDS), expected(mixtral, IDS)
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(theirs).max() > 1


def test_greedy_tokens_are_those_of_transformers(mixtral, exact):
    wanted = mixtral.generate(torch.tensor([IDS]), max_new_tokens=12, do_sample=False)[0].tolist()
    ids = list(IDS)
    for _ in range(12):
        ids.append(int(logits(exact, ids).argmax()))
    assert ids == wanted
    llm = ChineseMixtral(model=str(exact), n_ctx=64, max_tokens=4, temperature=0)
    assert isinstance(llm.invoke("你好"), str)


@pytest.mark.parametrize(("kind", "tolerance"), [("f16", 0.02), ("bf16", 0.15), ("q8_0", 0.3)])
def test_smaller_types_stay_near(mixtral, folder, exact, tmp_path, kind, tolerance):
    path = convert(folder, tmp_path / "x.gguf", type=kind)
    assert np.abs(logits(path, IDS) - expected(mixtral, IDS)).max() < tolerance
    found = stored(path)
    for name, (_, data) in stored(exact).items():
        stays = name.endswith(("_norm.weight", "ffn_gate_inp.weight"))
        number = getattr(gguf.GGMLQuantizationType, "F32" if stays else kind.upper())
        assert found[name][0].type == number
        columns = found[name][0].shape[0]
        # The gguf package's own rounding.
        theirs = gguf.quants.quantize(data.view(np.float32).reshape(-1, columns), number)
        assert np.array_equal(found[name][1], theirs.reshape(-1).view(np.uint8)), name


def test_experts_are_stacked_in_order_and_nothing_else_moves(folder, exact):
    source = {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}
    found = {
        name: data.view(np.float32).reshape(info.shape[::-1])
        for name, (info, data) in stored(exact).items()
    }
    for layer in range(2):
        for new, old in {"gate": "w1", "down": "w2", "up": "w3"}.items():
            stem = f"model.layers.{layer}.block_sparse_moe.experts"
            stacked = np.stack([source[f"{stem}.{e}.{old}.weight"].numpy() for e in range(8)])
            assert np.array_equal(found[f"blk.{layer}.ffn_{new}_exps.weight"], stacked)
        value = source[f"model.layers.{layer}.self_attn.v_proj.weight"].numpy()
        assert np.array_equal(found[f"blk.{layer}.attn_v.weight"], value)
    assert len(found) == 3 + 2 * 10


def test_tokens_are_those_of_sentencepiece(exact):
    ours = LlamaVocabulary(read_header(exact))
    theirs = SentencePieceProcessor(model_file=str(tokenizer_model_file()))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
    assert (ours.bos_id, ours.eos_id, ours.adds_bos, ours.adds_space_prefix) == (1, 2, True, True)
    assert ours.special_tokens == {"<s>": 1, "</s>": 2}


def test_without_tokenizer_model_tokenizer_json_gives_the_same_tokens(folder, exact, tmp_path):
    own = shutil.copytree(folder, tmp_path / "own")
    (own / "tokenizer.model").unlink()
    write_tokenizer_json(own / "tokenizer.json")
    header = read_header(convert(own, tmp_path / "x.gguf"))
    ours, theirs = LlamaVocabulary(header), LlamaVocabulary(read_header(exact))
    for text in (*TEXTS, Path(__file__).read_text("utf-8")):
        assert ours.encode(text) == theirs.encode(text), text
    assert ours.special_tokens == theirs.special_tokens
    assert (ours.bos_id, ours.eos_id, ours.adds_bos, ours.adds_space_prefix) == (1, 2, True, True)


def test_a_tokenizer_json_of_transformers_5_is_followed(folder, tmp_path):
    """It merges spaces in another order than SentencePiece; trained so, it must run so."""
    own = shutil.copytree(folder, tmp_path / "own")
    tokenizer = transformers.LlamaTokenizer.from_pretrained(own)
    tokenizer.save_pretrained(own)
    (own / "tokenizer.model").unlink()
    vocabulary = LlamaVocabulary(read_header(convert(own, tmp_path / "x.gguf")))
    for text in TEXTS:
        text = text.strip().replace("</s>", "")  # to transformers that is the control token
        assert vocabulary.encode(text) == tokenizer.encode(text, add_special_tokens=False), text
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.adds_bos) == (1, 2, True)


def test_metadata_says_what_the_config_says(folder, exact):
    report, header = inspect(exact), read_header(exact)
    assert report.is_mixtral
    assert report.is_instruct
    assert (report.n_experts, report.n_experts_used, report.n_layers) == (8, 2, 2)
    config = json.loads((folder / "config.json").read_text())
    assert report.context_length == config["max_position_embeddings"]
    assert report.rope_base == config["rope_parameters"]["rope_theta"]
    assert report.name == "tiny-mixtral-instruct"
    assert header.metadata["general.file_type"] == 0
    assert header.chat_template is None


def changed(folder, target, **config):
    own = shutil.copytree(folder, target)
    settings = json.loads((own / "config.json").read_text()) | config
    (own / "config.json").write_text(json.dumps(settings))
    return own


def test_older_configs_added_tokens_and_templates(folder, tmp_path):
    own = changed(
        folder, tmp_path / "own", rope_parameters=None, rope_theta=5e5, vocab_size=32_002,
        rope_scaling={"type": "linear", "factor": 4.0},
    )  # fmt: skip
    for file in own.glob("*.safetensors"):
        tensors = load_file(file)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = torch.cat([tensors[name], torch.zeros(2, 64)])
        save_file(tensors, file)
    (own / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "added_tokens_decoder": {"32000": {"content": "<|im_end|>", "special": True}},
                "eos_token": {"content": "<|im_end|>"},
                "chat_template": [{"name": "default", "template": "{{ messages }}"}],
            }
        )
    )
    path = convert(own, tmp_path / "x.gguf")
    header, vocabulary = read_header(path), LlamaVocabulary(read_header(path))
    assert header.chat_template == "{{ messages }}"
    assert header.metadata["llama.rope.freq_base"] == 5e5
    assert header.metadata["llama.rope.scaling.factor"] == 4.0
    assert vocabulary.eos_id == 32_000
    assert len(vocabulary) == 32_002
    assert vocabulary.special_tokens["<|im_end|>"] == 32_000
    assert "<|im_end|>" in vocabulary.special_tokens
    assert len(logits(path, IDS)) == 32_002


@pytest.mark.parametrize("tied", [False, True])
def test_dense_models_of_the_family(tmp_path, tied):
    config = config_of(transformers.LlamaConfig, tie_word_embeddings=tied)
    model = transformers.LlamaForCausalLM(config).eval()
    path = convert(save(model, tmp_path / "llama"), type="f32")
    assert path == tmp_path / "llama-f32.gguf"
    assert np.abs(logits(path, IDS) - expected(model, IDS)).max() < 1e-4
    names = {t.name for t in read_header(path).tensors}
    assert ("output.weight" in names) is not tied


def test_the_type_of_the_weights_is_kept_by_default(mixtral, folder, tmp_path):
    half = transformers.MixtralForCausalLM(mixtral.config).bfloat16()
    path = convert(save(half, tmp_path / "half"))
    assert path == tmp_path / "half-bf16.gguf"
    assert inspect(path).types["BF16"] == 2 + 2 * 7
    assert convert(folder, tmp_path / "own.gguf").stat().st_size > 1.9 * path.stat().st_size


def test_what_cannot_be_converted_is_refused_by_name(folder, tmp_path):
    def refused(reason, **config):
        own = changed(folder, tmp_path / "own", **config)
        with pytest.raises(ModelFileError, match=reason):
            convert(own, tmp_path / "x.gguf")
        shutil.rmtree(own)

    refused("is a Qwen2ForCausalLM; only Mixtral", architectures=["Qwen2ForCausalLM"])
    refused("positions by yarn", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4})
    refused(r"blk.2.attn_norm.weight \(10 tensors", num_hidden_layers=3)
    refused(r"layers\.1\.[\w.]+ has no place", num_hidden_layers=1)
    refused("needs 16 experts of one size and 8", num_local_experts=16)
    refused("has 32,000 tokens and the model 100", vocab_size=100)
    refused("weights have 32,000 tokens and the vocabulary 32,100", vocab_size=32_100)
    with pytest.raises(SettingsError, match="choose one of: f32, f16, q8_0, bf16"):
        convert(folder, type="q4_0")
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        convert(tmp_path)
    own = changed(folder, tmp_path / "own")
    (own / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match="not a SentencePiece model"):
        convert(own)
    (own / "tokenizer.model").unlink()
    with pytest.raises(ModelNotFoundError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        convert(own)
    (own / "tokenizer.json").write_text('{"model": {"type": "BPE", "byte_fallback": true}}')
    with pytest.raises(ModelFileError, match=r"is damaged .*vocab"):
        convert(own)
    (own / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}}}')
    with pytest.raises(ModelFileError, match="not made from SentencePiece BPE"):
        convert(own)
    assert [p.name for p in tmp_path.iterdir()] == ["own"]


def test_values_beyond_float16_are_not_made_infinite(folder, tmp_path):
    own = changed(folder, tmp_path / "own")
    file = next(f for f in own.glob("*.safetensors") if "lm_head.weight" in load_file(f))
    tensors = load_file(file)
    tensors["lm_head.weight"][5, 5] = 1e5
    save_file(tensors, file)
    with pytest.raises(ModelFileError, match=r"lm_head\.weight has values beyond the range of F16"):
        convert(own, tmp_path / "x.gguf", type="f16")
    tensors["lm_head.weight"][5, 5] = float("nan")
    save_file(tensors, file)
    with pytest.raises(ModelFileError, match=r"lm_head\.weight has infinite values or none"):
        convert(own, tmp_path / "x.gguf", type="q8_0")
    assert [p.name for p in tmp_path.iterdir()] == ["own"]


def test_nothing_is_half_written_or_overwritten(folder, tmp_path, monkeypatch):
    goal = tmp_path / "x.gguf"
    goal.write_text("mine")
    with pytest.raises(ModelFileError, match="exists already"):
        convert(folder, goal)
    steps = []

    def stop(done, total):
        steps.append((done, total))
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(folder, goal, replace=True, on_progress=stop)
    assert goal.read_text() == "mine"
    convert(folder, goal, replace=True, on_progress=lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1]
    assert read_header(goal).is_mixtral
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(ModelFileError, match=r"GB free and .* takes \d+\.\d GB"):
        convert(folder, tmp_path / "y.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_memory_does_not_grow_with_the_weights(folder, tmp_path):
    own = tmp_path / "big"
    own.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "vocab_size": 32_000, "hidden_size": 1024,
        "num_hidden_layers": 1, "num_attention_heads": 8, "intermediate_size": 16_384,
    }  # fmt: skip
    (own / "config.json").write_text(json.dumps(config))
    shutil.copy(tokenizer_model_file(), own / "tokenizer.model")
    layer = {f"self_attn.{n}_proj": (1024, 1024) for n in "qkvo"}
    layer |= {"mlp.gate_proj": (16_384, 1024), "mlp.up_proj": (16_384, 1024)}
    layer |= {"mlp.down_proj": (1024, 16_384), "input_layernorm": (1024,)}
    layer |= {"post_attention_layernorm": (1024,)}
    tensors = {f"model.layers.0.{k}.weight": torch.ones(v) for k, v in layer.items()}
    tensors |= {"model.norm.weight": torch.ones(1024), "lm_head.weight": torch.ones(32_000, 1024)}
    tensors |= {"model.embed_tokens.weight": torch.ones(32_000, 1024)}
    save_file(tensors, own / "model.safetensors")
    code = (
        "import sys, resource, torch, gguf; from pathlib import Path\n"
        "from mixtral_rag.weights.convert import convert\n"
        "convert(Path(sys.argv[2]), Path(sys.argv[3]), type='f16')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "convert(Path(sys.argv[1]), Path(sys.argv[3]), type='f16', replace=True)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    arguments = [sys.executable, "-c", code, str(own), str(folder), str(tmp_path / "x.gguf")]
    out = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert (own / "model.safetensors").stat().st_size > 450_000_000
    assert int(out.stdout) < 200_000, "kilobytes"


def test_the_command_says_what_it_wrote_and_what_comes_next(folder, tmp_path):
    command = [str(Path(sys.executable).with_name("mixtral-rag")), "convert", str(folder)]
    command += ["--output", str(tmp_path / "x.gguf"), "--type", "f16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(9.6 MB)" in done.stdout
    assert f"mixtral-rag quantize {tmp_path / 'x.gguf'} --type Q4_K_M" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "exists already" in again.stderr
