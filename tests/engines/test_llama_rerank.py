"""Reranking by llama.cpp: a tiny BERT with random weights, beside the same in Transformers."""

import gguf
import pytest

from mixtral_rag import open_qa
from mixtral_rag.engines.llama_rerank import LlamaReranker
from mixtral_rag.errors import ModelFileError, ModelNotFoundError, SettingsError

pytest.importorskip("llama_cpp", reason="the extra llamacpp is not installed")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz?.",
         *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]  # fmt: skip
N_POSITIONS, CLS, SEP = 64, 2, 3


@pytest.fixture(scope="module")
def bert():
    torch = pytest.importorskip("torch", reason="the extra sentence-transformers is not installed")
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=N_POSITIONS, num_labels=1,
        initializer_range=0.5, type_vocab_size=2,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def file(bert, tmp_path_factory):
    return write(bert, tmp_path_factory.mktemp("rerank") / "tiny.gguf")


def write(bert, path, *, template=None, with_classifier=True):
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(N_POSITIONS)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(bert.config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_tokenizer_model("bert")
    # as llama.cpp's own converter writes them: a space before what begins a word
    tokens = [w[2:] if w.startswith("##") else w if w[0] == "[" else f"\u2581{w}" for w in WORDS]
    writer.add_token_list(tokens)
    special = gguf.TokenType.CONTROL
    writer.add_token_types([special if w[0] == "[" else gguf.TokenType.NORMAL for w in WORDS])
    writer.add_token_type_count(2)
    writer.add_bos_token_id(CLS)
    writer.add_sep_token_id(SEP)
    writer.add_add_bos_token(True)
    writer.add_add_sep_token(True)
    if template:
        writer.add_string("tokenizer.chat_template.rerank", template)
    for name, tensor in bert.state_dict().items():
        if (target := renamed(name)) and (with_classifier or not target.startswith("cls.")):
            writer.add_tensor(target, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def renamed(name):
    parts = {
        "bert.embeddings.word_embeddings": "token_embd",
        "bert.embeddings.position_embeddings": "position_embd",
        "bert.embeddings.token_type_embeddings": "token_types",
        "bert.embeddings.LayerNorm": "token_embd_norm",
        "bert.pooler.dense": "cls",
        "classifier": "cls.output",
    }
    layer = {
        "attention.self.query": "attn_q", "attention.self.key": "attn_k",
        "attention.self.value": "attn_v", "attention.output.dense": "attn_output",
        "attention.output.LayerNorm": "attn_output_norm", "intermediate.dense": "ffn_up",
        "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
    }  # fmt: skip
    stem, _, kind = name.rpartition(".")
    if stem.startswith("bert.encoder.layer."):
        number, _, rest = stem.removeprefix("bert.encoder.layer.").partition(".")
        return f"blk.{number}.{layer[rest]}.{kind}"
    return f"{parts[stem]}.{kind}" if stem in parts else None


def reference(bert, reranker, question, text):
    import torch

    encode = reranker._vocabulary.encode
    ids = [CLS, *encode(question), SEP, *encode(text)][:N_POSITIONS]
    with torch.no_grad():  # llama.cpp knows no second type of tokens
        found = bert(torch.tensor([ids]), token_type_ids=torch.zeros(1, len(ids), dtype=torch.long))
    return float(found.logits[0, 0])


TEXTS = ["cats sleep", "dogs bark at night.", "", "who sleeps?", "a b c " * 60]


def test_scores_are_those_of_the_same_weights_in_transformers(bert, file):
    reranker = LlamaReranker(file)
    scores = reranker.scores("who sleeps?", TEXTS)
    expected = [reference(bert, reranker, "who sleeps?", text) for text in TEXTS]
    assert scores == pytest.approx(expected, abs=2e-2)
    assert max(scores) - min(scores) > 0.2
    again = reranker.scores("who sleeps?", TEXTS[::-1])[::-1]
    assert scores == pytest.approx(again, abs=1e-4)
    assert reranker.scores("who sleeps?", []) == []


def test_a_template_of_the_file_is_followed_and_no_text_becomes_a_control_token(bert, tmp_path):
    template = "[CLS]{query}[SEP]{document}[SEP]"
    reranker = LlamaReranker(write(bert, tmp_path / "t.gguf", template=template))
    encode = reranker._vocabulary.encode
    asked, text = "who [SEP] sleeps?", "cats [CLS]"
    assert reranker._pair(asked, text) == [CLS, *encode(asked), SEP, *encode(text), SEP]
    assert SEP not in encode(asked)
    assert len(reranker._pair(asked, "a b c " * 60)) == N_POSITIONS
    assert reranker._pair(asked, "a b c " * 60)[-1] == SEP


def test_it_orders_the_passages_of_an_answer(file, tmp_path):
    for number, text in enumerate(TEXTS[:2]):
        (tmp_path / f"{number}.txt").write_text(text)
    qa = open_qa(store=tmp_path / "store", qa_options={"reranker": str(file)})
    qa.ingest([tmp_path])
    hits = qa.search("who sleeps?")
    assert [p.rerank_score for p in hits] == sorted((p.rerank_score for p in hits), reverse=True)
    assert len(hits) == 2
    qa.close()


def test_what_cannot_rank_is_refused(bert, file, tmp_path):
    plain = write(bert, tmp_path / "plain.gguf", with_classifier=False)
    with pytest.raises(ModelFileError, match=r"plain\.gguf is no reranking model"):
        LlamaReranker(plain).scores("q", ["x"])
    with pytest.raises(ModelNotFoundError, match=r"none\.gguf"):
        LlamaReranker(tmp_path / "none.gguf").scores("q", ["x"])
    with pytest.raises(SettingsError, match="the question takes"):
        LlamaReranker(file).scores("x y z " * 60, ["x"])
    with pytest.raises(SettingsError, match="at least 16"):
        LlamaReranker(file, max_tokens=2)
