import dataclasses
from pathlib import Path

import pytest

from mixtral_rag.chat import ChatChineseMixtral
from mixtral_rag.errors import ModelNotFoundError, SettingsError
from mixtral_rag.settings import Settings, answering_model, find_model, load_settings


def test_flags_come_before_the_environment_and_that_before_the_file(clean_environment, monkeypatch):
    Path("mixtral-rag.toml").write_text('top_k = 1\nn_ctx = 1000\nembedder = "file"\n')
    monkeypatch.setenv("MIXTRAL_RAG_TOP_K", "2")
    monkeypatch.setenv("MIXTRAL_RAG_N_CTX", "2000")
    settings = load_settings({"top_k": 3, "n_ctx": None})
    assert (settings.top_k, settings.n_ctx, settings.embedder) == (3, 2000, "file")


def test_the_file_can_be_named_or_stand_in_the_configuration_folder(clean_environment, monkeypatch):
    import platformdirs

    folder = Path(platformdirs.user_config_dir("mixtral_rag"))
    folder.mkdir(parents=True)
    (folder / "mixtral-rag.toml").write_text('model = "~/m.gguf"')
    assert find_model(load_settings({})) == (Path("~/m.gguf").expanduser(), False)
    named = clean_environment / "other.toml"
    named.write_text("top_k = 9")
    monkeypatch.setenv("MIXTRAL_RAG_CONFIG", str(named))
    assert (load_settings({}).top_k, load_settings({}).model) == (9, None)
    monkeypatch.setenv("MIXTRAL_RAG_CONFIG", "/nowhere.toml")
    with pytest.raises(SettingsError, match=r"/nowhere\.toml"):
        load_settings({})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("top_kk = 1", "did you mean 'top_k'"),
        ("[model]\npath = 1", "model in .* must be text"),
        ("store = 1.5", "store in .* must be a path"),
        ('top_k = "many"', "top_k in .*toml must be a whole number, not 'many'"),
        ("top_k = 1.5", "whole number"),
        ("top_k = true", "whole number"),
        ("top_k = = 1", "cannot read the settings"),
    ],
)
def test_mistakes_in_the_file_are_named(clean_environment, text, match):
    Path("mixtral-rag.toml").write_text(text)
    with pytest.raises(SettingsError, match=match):
        load_settings({})


def test_mistakes_in_the_environment_are_named(clean_environment, monkeypatch):
    monkeypatch.setenv("MIXTRAL_RAG_TEMPERATURE", "hot")
    with pytest.raises(SettingsError, match="MIXTRAL_RAG_TEMPERATURE must be a number"):
        load_settings({})


def test_every_setting_for_the_model_is_a_field_of_it():
    values = {f.name: 1 for f in dataclasses.fields(Settings)}
    options = Settings(**values).model_options()
    assert options.keys() <= ChatChineseMixtral.model_fields.keys()
    from mixtral_rag import settings

    assert settings._KINDS.keys() == values.keys()


def test_without_a_model_the_demonstration_model_is_used_or_missed(clean_environment, monkeypatch):
    path, is_demo = find_model(load_settings({}))
    assert is_demo
    assert path.suffix == ".gguf"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match=r"mixtral-rag pull .* --model FILE\.gguf"):
        find_model(load_settings({}))


def test_an_address_alone_means_a_server(clean_environment):
    settings = load_settings({"base_url": "http://127.0.0.1:8000/v1"})
    assert settings.engine_used == "remote"
    assert answering_model(settings) == ("", False)
    options = load_settings({"engine": "vllm", "quantization": "fp8"}).model_options()
    assert options == {"engine": "vllm", "quantization": "fp8"}
    folder = str(clean_environment / "home" / "mixtral_rag" / "kv")
    assert load_settings({}).model_options() == {"engine": "llamacpp", "kv_folder": folder}
    assert load_settings({"kv_bytes": 0}).model_options() == {"engine": "llamacpp"}
    assert load_settings({"kv_bytes": 9}).model_options()["kv_bytes"] == 9


def test_more_options_of_an_engine_are_a_table(clean_environment, monkeypatch):
    Path("mixtral-rag.toml").write_text("[engine_options]\ngpu_memory_utilization = 0.5\n", "utf-8")
    assert load_settings({}).engine_options == {"gpu_memory_utilization": 0.5}
    monkeypatch.setenv("MIXTRAL_RAG_ENGINE_OPTIONS", '{"max_num_seqs": 4}')
    assert load_settings({}).engine_options == {"max_num_seqs": 4}
    monkeypatch.setenv("MIXTRAL_RAG_ENGINE_OPTIONS", "4")
    with pytest.raises(SettingsError, match="MIXTRAL_RAG_ENGINE_OPTIONS must be a table"):
        load_settings({})


@pytest.mark.parametrize(
    ("flags", "error", "match"),
    [
        ({"engine": "gpt"}, SettingsError, "choose one of: llamacpp, vllm, transformers, remote"),
        ({"engine": "vllm"}, ModelNotFoundError, "--kind full"),
        ({"engine": "transformers", "model": "nope"}, ModelNotFoundError, "no such weights: nope"),
    ],
)
def test_a_model_the_engine_cannot_have_is_explained(clean_environment, flags, error, match):
    with pytest.raises(error, match=match):
        answering_model(load_settings(flags))
