"""The tokenizer of a Hugging Face folder: the tokens of SentencePiece and of llama.cpp."""

import json
import shutil
import sys
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tiny_mixtral import tokenizer_model_file, write_tokenizer_json

from mixtral_rag.engines.hf_folder import ModelFolder
from mixtral_rag.engines.hf_vocab import FolderVocabulary
from mixtral_rag.engines.llama_vocab import LlamaVocabulary
from mixtral_rag.errors import MissingExtraError, ModelFileError, ModelNotFoundError
from mixtral_rag.prompts import render
from mixtral_rag.tokenizer import decode
from mixtral_rag.types import Message
from mixtral_rag.weights.gguf import read_header

tokenizers = pytest.importorskip("tokenizers", reason="the extra transformers is not installed")
GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "prompts.json").read_text("utf-8"))
TRICKY = [
    "<s>", "</s>", "<unk>", "[INST]", "[/INST]", "[INST", "<0x0A>", "▁", "<|im_end|>", " ", "  ",
    "\n", "\n\n", "\t", "\r\n", "\x00", "\ufeff", "\u00a0", "\u200d", "😀", "👨‍👩‍👧", "é",
    "e\u0301", "\ud800", "你好", "中国", "。", "𠀀", "ﬁ", "Ａ", "hello", " the", "don't", "0",
    "3.14", "</", "s>",
]  # fmt: skip
texts = st.one_of(
    st.lists(st.sampled_from(TRICKY), max_size=12).map("".join),
    st.text(max_size=40),
    st.text(alphabet="abc 你好世界。,!?\n", max_size=200),
)
relaxed = settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck))


def write(folder, **files):
    """JSON files in `folder`, by their names without `.json`."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def llama(tiny_mixtral):
    return LlamaVocabulary(read_header(tiny_mixtral))


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json", "file"])
def vocabulary(request, tmp_path_factory):
    """Mixtral's vocabulary from each of the files it may be in."""
    if request.param == "file":
        return FolderVocabulary(tokenizer_model_file())
    folder = write(tmp_path_factory.mktemp("vocab"), config={"vocab_size": 32_000})
    if request.param == "tokenizer.model":
        shutil.copy(tokenizer_model_file(), folder / "tokenizer.model")
    else:
        write_tokenizer_json(folder / "tokenizer.json")
        write(folder, tokenizer_config={"bos_token": "<s>", "eos_token": "</s>"})
        content = json.loads((folder / "tokenizer.json").read_text())
        for token in content["added_tokens"]:
            token |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        template = [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ]
        content |= {
            "version": "1.0", "truncation": None, "padding": None, "pre_tokenizer": None,
            "decoder": None,
            "post_processor": {
                "type": "TemplateProcessing", "single": template, "pair": template,
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
            },
        }  # fmt: skip
        write(folder, tokenizer=content)
    return FolderVocabulary(folder)


@relaxed
@given(texts)
def test_tokens_are_those_of_llama_cpp(vocabulary, llama, text):
    assert vocabulary.encode(text) == llama.encode(text)


def test_long_texts_have_the_tokens_of_sentencepiece(vocabulary, examples):
    text = (examples / "debian-choosing.zh-cn.html").read_text("utf-8")
    reference = SentencePieceProcessor(model_file=str(tokenizer_model_file()))
    assert vocabulary.encode(text) == reference.encode(text)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: c["name"])
def test_golden_prompts(vocabulary, case):
    messages = [Message(**m) for m in case["messages"]]
    assert render(messages, vocabulary, keep_markers=True) == case["ids"]


def test_what_is_known_of_the_tokens_is_the_same(vocabulary, llama):
    assert len(vocabulary) == len(llama) == 32_000
    assert [vocabulary.piece(i) for i in range(32_000)] == [llama.piece(i) for i in range(32_000)]
    names = ("bos_id", "eos_id", "adds_bos", "adds_space_prefix", "special_tokens", "end_ids")
    for name in names:
        assert getattr(vocabulary, name) == getattr(llama, name), name


@relaxed
@given(texts)
def test_decoding_gives_the_text_back(vocabulary, text):
    wanted = text.encode("utf-8", "replace").decode().replace("▁", " ")  # one piece for both
    assert decode(vocabulary, vocabulary.encode(text)) == wanted


CHATML = {
    "added_tokens_decoder": {
        "32000": {"content": "<|im_end|>", "special": True},
        "32001": {"content": "<|user|>", "special": False},
    },
    "eos_token": {"content": "<|im_end|>"},
    "add_bos_token": False,
}


def test_tokens_of_a_fine_tune_are_known_and_never_found_in_text(tmp_path):
    write(tmp_path, config={"vocab_size": 32_010, "eos_token_id": 2}, tokenizer_config=CHATML)
    write(tmp_path, generation_config={"eos_token_id": [2, 32_000]})
    shutil.copy(tokenizer_model_file(), tmp_path / "tokenizer.model")
    vocabulary = FolderVocabulary(tmp_path)
    assert len(vocabulary) == 32_010
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.adds_bos) == (1, 32_000, False)
    assert vocabulary.end_ids == {2, 32_000}
    assert vocabulary.special_tokens.items() >= {"<|im_end|>": 32_000, "<|user|>": 32_001}.items()
    assert [vocabulary.piece(i) for i in (32_000, 32_001, 32_009)] == [b"", b"<|user|>", b""]
    for text in ("a<|im_end|>b", "a<|user|>b", "<|user|><|user|>"):
        assert max(vocabulary.encode(text)) < 32_000
        assert decode(vocabulary, vocabulary.encode(text)).replace(" ", "") == text


@pytest.fixture(scope="module")
def byte_level(smollm, tmp_path_factory):
    """SmolLM2's own vocabulary as the tokenizer.json it came from."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    fields = gguf.GGUFReader(smollm).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in control])
    folder = tmp_path_factory.mktemp("smollm")
    tokenizer.save(str(folder / "tokenizer.json"))
    write(
        folder,
        config={"vocab_size": len(tokens), "eos_token_id": 2},
        tokenizer_config={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    )
    return FolderVocabulary(folder)


@pytest.fixture(scope="module")
def llama_smollm(smollm):
    return LlamaVocabulary(read_header(smollm))


@relaxed
@given(texts)
def test_a_byte_level_vocabulary_has_the_tokens_of_llama_cpp(byte_level, llama_smollm, text):
    llama = llama_smollm
    ids = byte_level.encode(text)
    assert ids == llama.encode(text)
    if text.isprintable() and max(text, default="") < "\u9fff":  # some bytes have no token
        assert decode(byte_level, ids) == text


def test_what_is_known_of_a_byte_level_vocabulary(byte_level, llama_smollm):
    llama = llama_smollm
    assert (byte_level.bos_id, byte_level.eos_id) == (llama.bos_id, llama.eos_id)
    assert (byte_level.adds_bos, byte_level.adds_space_prefix) == (False, False)
    assert [byte_level.piece(i) for i in range(len(llama))] == [
        llama.piece(i) for i in range(len(llama))
    ]
    assert byte_level.special_tokens == llama.special_tokens


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    vocabulary = FolderVocabulary(tmp_path / "later")
    shutil.copytree(Path(tokenizer_model_file()).parent, tmp_path / "later")
    shutil.copy(tokenizer_model_file(), tmp_path / "later" / "tokenizer.model")
    assert vocabulary.encode("你好")


@pytest.mark.parametrize("library", ["sentencepiece", "tokenizers"])
def test_a_missing_library_names_the_extra_of_the_engine(tmp_path, monkeypatch, library):
    if library == "sentencepiece":
        shutil.copy(tokenizer_model_file(), tmp_path / "tokenizer.model")
    else:
        write_tokenizer_json(tmp_path / "tokenizer.json")
    monkeypatch.setitem(sys.modules, library, None)
    for ask in (lambda v: v.encode("x"), len if library == "sentencepiece" else None):
        if ask:
            with pytest.raises(MissingExtraError, match=rf"{library} .*mixtral_rag\[vllm\]"):
                ask(FolderVocabulary(tmp_path, extra="vllm"))


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        FolderVocabulary(tmp_path).encode("x")
    with pytest.raises(ModelNotFoundError, match="no such"):
        FolderVocabulary(tmp_path / "none").encode("x")
    (tmp_path / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(ModelFileError, match="damaged"):
        FolderVocabulary(tmp_path).encode("x")
    write_tokenizer_json(tmp_path / "tokenizer.json")  # the tokenizers library wants more
    with pytest.raises(ModelFileError, match=r"tokenizer\.json cannot be read"):
        FolderVocabulary(tmp_path).encode("x")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ModelFileError, match="not a SentencePiece model"):
        FolderVocabulary(tmp_path).encode("x")


def test_what_a_folder_says_of_its_model(tmp_path):
    config = {"model_type": "mixtral", "max_position_embeddings": 131_072}
    folder = ModelFolder(str(write(tmp_path / "big-mixtral", config=config)), extra="vllm")
    assert (folder.is_mixtral, folder.is_instruct, folder.native_ctx) == (True, False, 32_768)
    assert (folder.model_name, folder.chat_template) == ("big-mixtral", None)
    chat = write(tmp_path / "x", config={"model_type": "llama", "max_position_embeddings": 4096})
    write(chat, tokenizer_config={"chat_template": "{{ messages }}"})
    folder = ModelFolder(str(chat), extra="vllm")
    assert (folder.is_mixtral, folder.is_instruct, folder.native_ctx) == (False, True, 4096)
    assert folder.chat_template == "{{ messages }}"
    with pytest.raises(ModelNotFoundError, match="no weights"):
        folder.check_weights()


def test_what_is_no_folder_of_full_weights_is_explained(tmp_path):
    def refused(path):
        with pytest.raises((ModelFileError, ModelNotFoundError)) as caught:
            _ = ModelFolder(str(path), extra="vllm").config
        return str(caught.value)

    assert "engine llamacpp" in refused(tmp_path / "model.gguf")
    assert "no such folder" in refused(tmp_path / "none")
    assert "no config.json" in refused(tmp_path)
    write(tmp_path, adapter_config={})
    assert "LoRA" in refused(tmp_path)
