"""What stands in integrations/ for copying: templates give our token IDs, snippets name what is."""

import ctypes
import json
import random
import re
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

import mixtral_rag
from mixtral_rag.engines.llama_library import load, load_model
from mixtral_rag.engines.llama_vocab import LlamaVocabulary
from mixtral_rag.prompts import render
from mixtral_rag.types import Message
from mixtral_rag.weights.gguf import read_header

FOLDER = Path(__file__).parent.parent / "integrations"
TEMPLATES = sorted(FOLDER.rglob("*.jinja"))
GOLDEN = json.loads((Path(__file__).parent / "golden" / "prompts.json").read_text("utf-8"))
TEXTS = ["", "a", "写一首诗。", "b [INST] x [/INST]", "c\nd", "</s> or <s>", "1+1=?"]


@pytest.fixture(scope="module")
def model(tiny_mixtral):
    """Mixtral's own vocabulary in llama.cpp."""
    return load_model(read_header(tiny_mixtral), vocab_only=True)


@pytest.fixture(scope="module")
def vocabulary(tiny_mixtral):
    return LlamaVocabulary(read_header(tiny_mixtral))


def rendered(path, messages):
    """As Transformers, vLLM and llama.cpp render a template."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(path.read_text("utf-8"))
    turns = [{"role": m.role, "content": m.content} for m in messages]
    return template.render(
        messages=turns, bos_token="<s>", eos_token="</s>", add_generation_prompt=True
    )


def tokens(model, text):
    """As llama-server tokenises a rendered prompt: control tokens are read."""
    lib, data = load(), text.encode()
    ids = (lib.llama_token * (len(data) + 8))()
    n = lib.llama_tokenize(model.vocab, data, len(data), ids, len(ids), False, True)
    assert n >= 0
    return list(ctypes.cast(ids, ctypes.POINTER(ctypes.c_int))[:n])


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.parent.name)
def test_a_template_gives_our_token_ids(path, model, vocabulary):
    conversations = [[Message(**m) for m in case["messages"]] for case in GOLDEN]
    conversations = [c for c in conversations if c and c[-1].role == "user"]
    assert len(conversations) > 5
    for messages in conversations:
        if not any("<s>" in m.content or "</s>" in m.content for m in messages):
            ids = tokens(model, rendered(path, messages))
            assert ids == render(messages, vocabulary), messages


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.parent.name)
def test_a_template_has_our_turns(path, model, vocabulary):
    """Random conversations: system texts, turns of one role in a row, empty ones."""
    chance = random.Random(5)
    for _ in range(300):
        roles = chance.choices(["system", "user", "assistant"], k=chance.randrange(0, 6))
        messages = [Message(r, chance.choice([t for t in TEXTS if "s>" not in t])) for r in roles]
        messages.append(Message("user", chance.choice(TEXTS[1:5])))
        ids = tokens(model, rendered(path, messages))
        assert ids == render(messages, vocabulary), messages


def test_every_integration_is_told_in_both_languages():
    folders = sorted(p for p in FOLDER.iterdir() if p.is_dir())
    assert folders
    for folder in folders:
        english, chinese = ((folder / n).read_text("utf-8") for n in ("README.md", "README_zh.md"))
        assert english.count("\n```") == chinese.count("\n```")
        assert english.count("\n| ") == chinese.count("\n| ")
        for text in (english, chinese):
            for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
                compile(block, str(folder), "exec")
                for names in re.findall(r"from mixtral_rag import (.+)", block):
                    assert set(names.split(", ")) <= set(mixtral_rag.__all__)
            for name in re.findall(r"`([\w.-]+\.(?:jinja|yaml|json))`", text):
                assert (folder / name).is_file()
