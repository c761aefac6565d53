"""Random splits of prompts and kills during saves, a few; `kv_faults.py` does hundreds."""

import random
import sys
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="the extra llamacpp is not installed")
sys.path.insert(0, str(Path(__file__).parent))
from kv_faults import KV_TYPES, Cold, check_kill, check_split, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("models") / "tiny.gguf"))


@pytest.fixture(scope="module")
def cold(model):
    return Cold(model, 2048)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("seed", range(10))
def test_a_restored_prompt_goes_on_as_a_cold_one(seed, kv_type, cold, model):
    check_split(model, cold, 2048, random.Random(seed), 1300, kv_type=kv_type)


def test_a_kill_during_a_save_does_no_harm(cold, model, tmp_path):
    used = [check_kill(model, cold, tmp_path, random.Random(seed)) for seed in range(6)]
    assert any(used)
