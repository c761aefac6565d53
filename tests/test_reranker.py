"""Rerankers of sentence-transformers: a real one, tiny and with random weights."""

import pytest

from mixtral_rag.embeddings.reranker import CrossEncoderReranker
from mixtral_rag.errors import SettingsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    reason = "the extra sentence-transformers is not installed"
    pytest.importorskip("sentence_transformers", reason=reason)
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("reranker")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=512, num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def test_a_cross_encoder_scores_each_pair_by_itself(folder):
    reranker = CrossEncoderReranker(folder, batch_size=2)
    texts = ["cats sleep", "dogs bark at night and eat meat", "", "x " * 2000]
    scores = reranker.scores("who sleeps", texts)
    assert len(set(scores)) == len(texts)
    alone = [reranker.scores("who sleeps", [text])[0] for text in texts]
    assert scores == pytest.approx(alone, abs=1e-5)
    assert reranker.scores("who sleeps", []) == []
    assert reranker.scores("another", texts) != scores


def test_a_reranker_that_is_not_there_is_named(folder, tmp_path):
    reranker = CrossEncoderReranker(str(tmp_path))
    with pytest.raises(SettingsError, match=r"cannot load .*local folder"):
        reranker.scores("q", ["x"])
    with pytest.raises(SettingsError, match="name is empty"):
        CrossEncoderReranker(" ")
