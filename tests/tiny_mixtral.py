"""Writes a tiny random Mixtral as GGUF: the real tokenizer, 8 experts of which 2 are active.

The shape is Mixtral's (arXiv:2401.04088) made small; the vocabulary is the 32,000-piece
SentencePiece model that ships inside `mistral-common`. Its answers are noise, but every step from
token IDs through expert routing to text is the real one.
"""

import itertools
import json
import shutil
from importlib.resources import files
from pathlib import Path

import gguf
import numpy as np
from sentencepiece import SentencePieceProcessor

N_VOCAB, N_EXPERT, N_EXPERT_USED = 32_000, 8, 2


def tokenizer_model_file() -> Path:
    """The Mixtral-8x7B SentencePiece model, as shipped by mistral-common."""
    return Path(str(files("mistral_common") / "data" / "tokenizer.model.v1"))


def write_tiny_mixtral(
    path: Path,
    *,
    name: str = "tiny-mixtral-instruct",
    n_layer: int = 2,
    n_embd: int = 64,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_ff: int = 96,
    n_ctx_train: int = 32_768,
    seed: int = 0,
    old_layout: bool = False,
    user_defined: dict[int, str] | None = None,
    calls_tools: bool = False,
) -> Path:
    """Write the model to `path` and return it.

    `old_layout` writes one tensor per expert; `user_defined` replaces tokens, as fine-tunes do;
    with `calls_tools` every answer begins with `<tool_call>` and else prefers quotation marks.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_rope_dimension_count(n_embd // n_head)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(N_EXPERT)
    writer.add_expert_used_count(N_EXPERT_USED)
    writer.add_vocab_size(N_VOCAB)
    _add_vocabulary(writer, user_defined or {})
    _add_tensors(
        writer, np.random.default_rng(seed), n_layer, n_embd, n_head, n_head_kv, n_ff, old_layout,
        calls_tools,
    )  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, user_defined: dict[int, str]) -> None:
    model = SentencePieceProcessor(model_file=str(tokenizer_model_file()))
    kind = gguf.TokenType
    types = []
    for i in range(N_VOCAB):
        if i in user_defined:
            types.append(kind.USER_DEFINED)
        elif model.IsUnknown(i):
            types.append(kind.UNKNOWN)
        elif model.IsControl(i):
            types.append(kind.CONTROL)
        elif model.IsByte(i):
            types.append(kind.BYTE)
        else:
            types.append(kind.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(
        [user_defined.get(i, model.IdToPiece(i)).encode() for i in range(N_VOCAB)]
    )
    writer.add_token_scores([model.GetScore(i) for i in range(N_VOCAB)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def habits(rng: np.random.Generator, n_embd: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and output rows of a model that looks at its last token alone.

    After the `]` of `[/INST]` come the tokens of `<tool_call>`, and after all others a quotation
    mark: whatever it is asked it wants to call a tool, and ends every string at once.
    """
    model = SentencePieceProcessor(model_file=str(tokenizer_model_file()))
    chain = [model.PieceToId("]"), *model.encode("<tool_call>")]
    embedding = rng.standard_normal((N_VOCAB, n_embd)).astype(np.float32)
    embedding[:, 0] = 2.0  # the same for all tokens
    output = (rng.standard_normal((N_VOCAB, n_embd)) * 0.02).astype(np.float32)
    output[model.PieceToId('"')] = 0
    output[model.PieceToId('"'), 0] = 3.0
    for token, follower in itertools.pairwise(chain):
        own = embedding[token] * (np.arange(n_embd) > 0)
        output[follower] = own / np.linalg.norm(own) * 1.5
    return embedding, output


def _add_tensors(  # type: ignore[no-untyped-def]
    writer, rng, n_layer, n_embd, n_head, n_head_kv, n_ff, old_layout, calls_tools
) -> None:
    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    head = n_embd // n_head
    embedding, output = random(N_VOCAB, n_embd), random(N_VOCAB, n_embd) * 4
    if calls_tools:
        embedding, output = habits(rng, n_embd)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", np.ones(n_embd, np.float32))
    writer.add_tensor("output.weight", output)
    for i in range(n_layer):
        blk = f"blk.{i}"
        writer.add_tensor(f"{blk}.attn_norm.weight", np.ones(n_embd, np.float32))
        writer.add_tensor(f"{blk}.ffn_norm.weight", np.ones(n_embd, np.float32))
        writer.add_tensor(f"{blk}.attn_q.weight", random(n_embd, n_embd))
        writer.add_tensor(f"{blk}.attn_k.weight", random(n_head_kv * head, n_embd))
        writer.add_tensor(f"{blk}.attn_v.weight", random(n_head_kv * head, n_embd))
        writer.add_tensor(f"{blk}.attn_output.weight", random(n_embd, n_embd) * (not calls_tools))
        writer.add_tensor(f"{blk}.ffn_gate_inp.weight", random(N_EXPERT, n_embd))
        for part, (rows, cols) in {
            "ffn_gate": (n_ff, n_embd),
            "ffn_down": (n_embd, n_ff),
            "ffn_up": (n_ff, n_embd),
        }.items():
            experts = random(N_EXPERT, rows, cols) * (not calls_tools)
            if old_layout:
                for e in range(N_EXPERT):
                    writer.add_tensor(f"{blk}.{part}.{e}.weight", experts[e].copy())
            else:
                writer.add_tensor(f"{blk}.{part}_exps.weight", experts)


def write_tiny_folder(
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    n_ff: int = 96,
    calls_tools: bool = False,
) -> Path:
    """The same kind of model as a Hugging Face folder of full weights, made by transformers.

    Logits are spread as a trained model's are, so that the likeliest token is clearly so.
    """
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=N_VOCAB, hidden_size=128, intermediate_size=n_ff, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=N_EXPERT,
        num_experts_per_tok=N_EXPERT_USED, rms_norm_eps=1e-5, max_position_embeddings=4096,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(1, 0.1, generator=generator)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        model.lm_head.weight.mul_(4)
        if calls_tools:
            tables = habits(np.random.default_rng(seed), 128)
            model.model.embed_tokens.weight.copy_(torch.from_numpy(tables[0]))
            model.lm_head.weight.copy_(torch.from_numpy(tables[1]))
            model.model.norm.weight.fill_(1)
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.experts.down_proj.zero_()
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    shutil.copy(tokenizer_model_file(), folder / "tokenizer.model")
    return folder


def write_tokenizer_json(path: Path) -> None:
    """SentencePiece as a tokenizer.json, made as those beside the published weights were."""
    model = SentencePieceProcessor(model_file=str(tokenizer_model_file()))
    pieces = [model.IdToPiece(i) for i in range(len(model))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [
        (model.GetScore(i), piece[:k], piece[k:])
        for i, piece in enumerate(pieces)
        for k in range(1, len(piece))
        if not model.IsByte(i) and piece[:k] in vocab and piece[k:] in vocab
    ]
    merges.sort(key=lambda merge: -merge[0])
    content = {
        "added_tokens": [{"id": i, "content": pieces[i], "special": True} for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": vocab,
                  "merges": [f"{a} {b}" for _, a, b in merges]},
    }  # fmt: skip
    path.write_text(json.dumps(content))


def write_adapter(folder, base, *, experts=True, dropout=0.05, seed=1):
    """LoRA weights as those of Chinese-Mixtral: for every linear layer, trained with dropout.

    With `experts` also the embeddings, in full.
    """
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    in_full = ["embed_tokens", "lm_head"] if experts else []
    targets = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        *(["gate", "w1", "w2", "w3"] if experts else []),
    ]
    tensors = {}
    for file in base.glob("*.safetensors"):
        for name, weight in load_file(file).items():
            module = name.removesuffix(".weight")
            if module.rpartition(".")[2] in in_full:
                noise = torch.randn(weight.shape, generator=generator)
                tensors[f"base_model.model.{name}"] = weight.float() + noise * 0.1
            elif module.rpartition(".")[2] in targets:
                rows, columns = weight.shape
                a = torch.randn(4, columns, generator=generator) * 0.2
                b = torch.randn(rows, 4, generator=generator) * 0.2
                tensors[f"base_model.model.{module}.lora_A.weight"] = a
                tensors[f"base_model.model.{module}.lora_B.weight"] = b
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "bias": "none",
        "lora_dropout": dropout, "target_modules": targets, "inference_mode": True,
        "base_model_name_or_path": "ymcui/no-such-place", "modules_to_save": in_full or None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
