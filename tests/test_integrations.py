"""What stands in integrations/ for copying: templates give our token IDs, snippets name what is."""

import ctypes
import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import go_template
import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tiny_mixtral import tokenizer_model_file, write_tiny_folder

import mixtral_rag
from mixtral_rag.engines.llama_library import load, load_model
from mixtral_rag.engines.llama_vocab import LlamaVocabulary
from mixtral_rag.prompts import render
from mixtral_rag.types import Message
from mixtral_rag.weights.gguf import read_header

FOLDER = Path(__file__).parent.parent / "integrations"
JINJA = FOLDER / "llama.cpp" / "mixtral-instruct.jinja"
WEBUI = FOLDER / "text-generation-webui"
OLLAMA, LM_STUDIO = FOLDER / "ollama", FOLDER / "lm-studio"
GOLDEN = json.loads((Path(__file__).parent / "golden" / "prompts.json").read_text("utf-8"))
# Files of other programs that are named.
ELSEWHERE = {"chat_template.jinja", "privateGPT.py", "tokenizer.json", "tokenizer_config.json"}
TEXTS = ["", "a", "写一首诗。", "b [INST] x [/INST]", "c\nd", "</s> or <s>", "1+1=?"]


@pytest.fixture(scope="module")
def model(tiny_mixtral):
    """Mixtral's own vocabulary in llama.cpp."""
    return load_model(read_header(tiny_mixtral), vocab_only=True)


@pytest.fixture(scope="module")
def vocabulary(tiny_mixtral):
    return LlamaVocabulary(read_header(tiny_mixtral))


def jinja(template):
    """As Transformers, vLLM, llama.cpp, LM Studio and text-generation-webui render a template."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    compiled = environment.from_string(template)

    def rendered(messages):
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return compiled.render(
            messages=turns, bos_token="<s>", eos_token="</s>", add_generation_prompt=True
        )

    return rendered


def modelfile(name):
    """What a Modelfile says of something, each time it does."""
    text = (OLLAMA / "Modelfile").read_text("utf-8")
    return re.findall(rf'^{name} (?:"""(.*?)"""|(.*?))$', text, re.DOTALL | re.MULTILINE)


def ollama(messages):
    """As Ollama does it: turns of one role are joined, <s> comes from the vocabulary."""
    [(template, _)] = modelfile("TEMPLATE")
    groups = itertools.groupby(messages, key=lambda m: m.role)
    turns = [{"Role": r, "Content": "\n\n".join(m.content for m in ms)} for r, ms in groups]
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    return "<s>" + go_template.render(template, {"System": system, "Messages": turns})


def webui_template():
    """As text-generation-webui finds it by the name of the model."""
    name = webui_settings("chinese-mixtral-instruct-q4_k.gguf")["instruction_template"]
    text = (WEBUI / "instruction-templates" / f"{name}.yaml").read_text("utf-8")
    return yaml.safe_load(text)["instruction_template"]


def webui_settings(model):
    """Its rule: each key is a regular expression for the start of the name, in lower case."""
    settings = {}
    for pattern, values in yaml.safe_load((WEBUI / "models/config-user.yaml").read_text()).items():
        if re.match(pattern.lower(), model.lower()):
            settings |= values
    return settings


def preset():
    """LM Studio's fields."""
    [path] = LM_STUDIO.glob("*.preset.json")
    content = json.loads(path.read_text("utf-8"))
    fields = content["operation"]["fields"] + content["load"]["fields"]
    return {field["key"]: field["value"] for field in fields}


RENDERERS = {
    "llama.cpp": lambda: jinja(JINJA.read_text("utf-8")),
    "text-generation-webui": lambda: jinja(webui_template()),
    "lm-studio": lambda: jinja(
        preset()["llm.prediction.promptTemplate"]["jinjaPromptTemplate"]["template"]
    ),
    "ollama": lambda: ollama,
}


def tokens(model, text):
    """As llama-server tokenises a rendered prompt: control tokens are read."""
    lib, data = load(), text.encode()
    ids = (lib.llama_token * (len(data) + 8))()
    n = lib.llama_tokenize(model.vocab, data, len(data), ids, len(ids), False, True)
    assert n >= 0
    return list(ctypes.cast(ids, ctypes.POINTER(ctypes.c_int))[:n])


def sayable(name, messages):
    """Ollama's language can change no text and joins empty ones too; see its README."""
    texts = [m.content for m in messages]
    return name != "ollama" or (all(texts) and not any("INST]" in text for text in texts))


@pytest.mark.parametrize("name", RENDERERS)
def test_a_template_gives_our_token_ids(name, model, vocabulary):
    rendered = RENDERERS[name]()
    conversations = [[Message(**m) for m in case["messages"]] for case in GOLDEN]
    conversations = [c for c in conversations if c and c[-1].role == "user" and sayable(name, c)]
    assert len(conversations) > 5
    for messages in conversations:
        if not any("<s>" in m.content or "</s>" in m.content for m in messages):
            assert tokens(model, rendered(messages)) == render(messages, vocabulary), messages


@pytest.mark.parametrize("name", RENDERERS)
def test_a_template_has_our_turns(name, model, vocabulary):
    """Random conversations: system texts, turns of one role in a row, empty ones."""
    rendered, chance, compared = RENDERERS[name](), random.Random(5), 0
    for _ in range(400):
        roles = chance.choices(["system", "user", "assistant"], k=chance.randrange(0, 6))
        messages = [Message(r, chance.choice([t for t in TEXTS if "s>" not in t])) for r in roles]
        messages.append(Message("user", chance.choice(TEXTS[1:5])))
        if sayable(name, messages):
            assert tokens(model, rendered(messages)) == render(messages, vocabulary), messages
            compared += 1
    assert compared > 80


def test_text_generation_webui_knows_every_setting():
    """Those of its loader llama.cpp and of its samplers; another would be ignored in silence."""
    instruct = webui_settings("Chinese-Mixtral-Instruct-Q4_K.gguf")
    assert instruct["instruction_template"] == "Chinese-Mixtral"
    base = webui_settings("chinese-mixtral-q8_0.gguf")
    assert "instruction_template" not in base
    assert not webui_settings("mixtral-8x7b-instruct.gguf")
    for settings in (instruct, base):
        assert settings.keys() <= {"loader", "ctx_size", "cache_type", "gpu_layers",
                                   "instruction_template", "truncation_length"}  # fmt: skip
        assert settings["cache_type"] in ("fp16", "q8_0", "q4_0")
    sampling = yaml.safe_load((WEBUI / "presets/Chinese-Mixtral.yaml").read_text("utf-8"))
    assert sampling.keys() == {"temperature", "top_k", "top_p", "repetition_penalty",
                               "repetition_penalty_range"}  # fmt: skip
    assert webui_template() + "\n" == JINJA.read_text("utf-8")


def test_every_tool_samples_as_we_do():
    ours = {"temperature": 0.2, "top_k": 40, "top_p": 0.9, "repeat_penalty": 1.1}
    assert {n: getattr(mixtral_rag.SamplingOptions(), n) for n in ours} == ours
    said = dict(line.split(" ", 1) for _, line in modelfile("PARAMETER"))
    assert {name: float(said[name]) for name in ours} == ours
    assert said["num_ctx"] == "32768"
    fields = preset()
    assert fields["llm.prediction.temperature"] == 0.2
    assert fields["llm.prediction.topKSampling"] == 40
    assert fields["llm.prediction.topPSampling"] == {"checked": True, "value": 0.9}
    assert fields["llm.prediction.repeatPenalty"] == {"checked": True, "value": 1.1}


def test_lm_studio_knows_every_field():
    """The names are those of its SDK's schema (@lmstudio/lms-kv-config 0.2)."""
    assert preset().keys() == {
        "llm.prediction.promptTemplate", "llm.prediction.temperature",
        "llm.prediction.topKSampling", "llm.prediction.topPSampling",
        "llm.prediction.minPSampling", "llm.prediction.repeatPenalty",
        "llm.prediction.contextOverflowPolicy", "llm.load.contextLength",
        "llm.load.llama.kCacheQuantizationType", "llm.load.llama.vCacheQuantizationType",
        "llm.load.llama.flashAttention",
    }  # fmt: skip


def test_the_tokenizer_of_transformers_needs_care(tmp_path):
    """The table in transformers/README.md, with the tokenizer settings published with Mixtral."""
    transformers = pytest.importorskip("transformers", reason="the extra is not installed")
    folder = tmp_path / "mixtral"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(tokenizer_model_file().read_bytes())
    (folder / "config.json").write_text('{"model_type": "mixtral"}')
    published = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True,
                 "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(published))
    script, said = FOLDER / "transformers" / "right_tokens.py", []
    for _ in range(2):
        command = [sys.executable, script, folder]
        said.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], return_dict=True)
        assert ids["input_ids"] == [1, 733, 16289, 28793, 264, 733, 28748, 16289, 28793]
    assert [line.split(",")[1].strip() for line in said] == ["28792", "733"]
    assert json.loads((folder / "tokenizer_config.json.before").read_text()) == published


def test_transformers_pipeline_answers(weights_with_template):
    """integrations/transformers/chat.py, over a tiny Mixtral."""
    script = FOLDER / "transformers" / "chat.py"
    command = [sys.executable, script, weights_with_template, "你好", "--max-new-tokens", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


@pytest.fixture
def weights_with_template(tmp_path):
    pytest.importorskip("torch", reason="the extra transformers is not installed")
    pytest.importorskip("accelerate", reason="the extra transformers is not installed")
    folder = write_tiny_folder(tmp_path / "tiny")
    script = FOLDER / "transformers" / "right_tokens.py"
    subprocess.run([sys.executable, script, folder], check=True)
    return folder


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
            for name in re.findall(r"`([\w./-]+\.(?:jinja|yaml|json|py))`", text):
                places = (folder, FOLDER, *(p for p in folder.iterdir() if p.is_dir()))
                assert any((place / name).is_file() for place in places) or name in ELSEWHERE, name
