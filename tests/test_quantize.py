"""Smaller types with llama.cpp: near the full model, in a process that may be stopped or crash."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import gguf
import numpy as np
import psutil
import pytest
from tiny_mixtral import write_tiny_mixtral

from mixtral_rag.engines import llama_library
from mixtral_rag.engines.llama_quantize import QUANTIZE_TYPES, quantize
from mixtral_rag.errors import ModelFileError, ModelNotFoundError, SettingsError
from mixtral_rag.weights.gguf import GGML_TYPES, read_header

IDS = [1, 733, 16289, 28793, 28705, 29383, 29530, 733, 28748, 16289, 28793]
COMMAND = [str(Path(sys.executable).with_name("mixtral-rag")), "quantize"]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A tiny Mixtral in f32 whose rows are whole blocks of 256, as k-quants want them."""
    path = tmp_path_factory.mktemp("full") / "tiny-instruct-f32.gguf"
    return write_tiny_mixtral(path, n_layer=2, n_embd=256, n_ff=512, n_head=4, n_head_kv=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The same with one layer, for the types that take long."""
    path = tmp_path_factory.mktemp("small") / "small-f32.gguf"
    return write_tiny_mixtral(path, n_layer=1, n_embd=256, n_ff=256, n_head=4, n_head_kv=2)


def logits(path):
    """Logits after each token of the prompt, one row a token."""
    lib, model = llama_library.load(), llama_library.load_model(read_header(path))
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_threads = 64, 1
    context = lib.llama_init_from_model(model.pointer, params)
    rows = []
    for token in IDS:
        batch = lib.llama_batch_get_one((lib.llama_token * 1)(token), 1)
        assert lib.llama_decode(context, batch) == 0
        rows.append(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (32_000,)).copy())
    lib.llama_free(context)
    return np.array(rows)


def likeness(path, full):
    """Mean cosine between the logits of two models; random routers make it fall fast."""
    a, b = logits(path), logits(full)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).mean())


def type_of(path, name):
    return next(GGML_TYPES[t.type][0] for t in read_header(path).tensors if t.name == name)


# The least likeness of the logits, and the types of an expert's and of the output's weights.
EXPECTED = {
    "F16": (0.999, "F16", "F16"),
    "Q8_0": (0.98, "Q8_0", "Q8_0"),
    "Q6_K": (0.96, "Q6_K", "Q6_K"),
    "Q5_K_M": (0.96, "Q5_K", "Q6_K"),
    "Q4_K_M": (0.93, "Q4_K", "Q6_K"),
    "IQ4_XS": (0.9, "IQ4_XS", "Q6_K"),
    "Q3_K_M": (0.82, "Q3_K", "Q6_K"),
    "Q2_K": (0.65, "Q2_K", "Q6_K"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_result_loads_and_is_near_the_full_model(full, tmp_path, name):
    least, expert, output = EXPECTED[name]
    seen = []
    report = quantize(
        full, tmp_path / "x.gguf", type=name, n_threads=1, on_progress=lambda *s: seen.append(s)
    )
    assert likeness(report.path, full) > least
    assert type_of(report.path, "blk.0.ffn_up_exps.weight") == expert
    assert type_of(report.path, "output.weight") == output
    assert type_of(report.path, "blk.0.ffn_gate_inp.weight") == "F32"
    assert report.file_bytes == report.path.stat().st_size
    assert read_header(report.path).is_mixtral
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_names_are_understood_and_put_into_the_file_name(full, tmp_path):
    source = shutil.copy(full, tmp_path / "model-f32.gguf")
    assert quantize(source, type="q4_k").path == tmp_path / "model-Q4_K_M.gguf"
    with pytest.raises(ModelFileError, match="exists already"):
        quantize(source, type="Q4-K-M")
    assert quantize(source, type="q4_k_m", replace=True).type == "Q4_K_M"


def test_every_type_is_one_of_llama_cpp():
    import llama_cpp

    for name, number in QUANTIZE_TYPES.items():
        said = llama_cpp.llama_ftype_name(number).decode().upper().replace("ALL F32", "F32")
        first, _, size = name.replace("MXFP4_MOE", "MXFP4 MOE").rpartition("_")
        assert said.startswith(first or size), (name, said)


NEEDY = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "IQ3_XXS", "IQ3_XS")


@pytest.mark.parametrize("name", NEEDY)
def test_types_that_need_an_importance_matrix_say_so(full, tmp_path, name):
    with pytest.raises(SettingsError, match=f"{name} needs an importance matrix .* --imatrix"):
        quantize(full, tmp_path / "x.gguf", type=name)
    assert not list(tmp_path.iterdir())


def importance(full, *, n_calls=3.0):
    """Sums of squares for every weight, the last columns a thousand times as important."""
    found = {}
    for tensor in read_header(full).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            values = np.ones((tensor.shape[2] if len(tensor.shape) > 2 else 1, tensor.shape[0]))
            values[:, -64:] = 1000
            found[tensor.name] = (values * n_calls).astype(np.float32)
    return found


def write_gguf_imatrix(path, entries, n_calls=3.0):
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    for name, sums in entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", np.full((len(sums), 1), n_calls, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_plain_imatrix(path, entries, n_calls=3):
    parts = [struct.pack("<i", len(entries))]
    for name, sums in entries.items():
        parts += [struct.pack("<i", len(name)), name.encode()]
        parts += [struct.pack("<ii", n_calls, sums.size), sums.tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def test_an_importance_matrix_is_used(small, tmp_path):
    entries = importance(small)
    plain = write_plain_imatrix(tmp_path / "imatrix.dat", entries)
    modern = write_gguf_imatrix(tmp_path / "imatrix.gguf", entries)
    paths = [
        quantize(small, tmp_path / f"{n}.gguf", type="Q4_0", imatrix=imatrix).path
        for n, imatrix in enumerate((plain, modern))
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    tiny = quantize(small, tmp_path / "tiny.gguf", type="IQ2_XS", imatrix=modern).path
    assert likeness(tiny, small) > 0.5
    # The important columns lose less than without the matrix.
    without = quantize(small, tmp_path / "without.gguf", type="Q4_0").path
    errors = []
    for path in (without, paths[0]):
        found, exact = (tensor_values(p, "blk.0.attn_q.weight") for p in (path, small))
        errors.append(float(np.square(found - exact)[:, -64:].mean()))
    assert errors[1] < errors[0]


def tensor_values(path, name):
    header = read_header(path)
    tensor = next(t for t in header.tensors if t.name == name)
    data = np.fromfile(path, np.uint8, tensor.size, offset=header.data_offset + tensor.offset)
    kind = gguf.GGMLQuantizationType(tensor.type)
    return gguf.quants.dequantize(data.reshape(tensor.shape[1], -1), kind)


def test_an_importance_matrix_that_does_not_fit_is_refused(full, tmp_path):
    entries = importance(full)
    other = write_gguf_imatrix(
        tmp_path / "a", {"blk.9.attn_q.weight": entries["blk.0.attn_q.weight"]}
    )
    with pytest.raises(ModelFileError, match="belongs to another model"):
        quantize(full, tmp_path / "x.gguf", type="IQ2_XS", imatrix=other)
    narrow = {name: sums[:, :-32] for name, sums in entries.items()}
    with pytest.raises(ModelFileError, match=r"cannot quantise .*imatrix"):
        quantize(
            full, tmp_path / "x.gguf", type="IQ2_XS",
            imatrix=write_plain_imatrix(tmp_path / "b", narrow),
        )  # fmt: skip
    (tmp_path / "c").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelFileError, match="not an importance matrix"):
        quantize(full, tmp_path / "x.gguf", type="IQ2_XS", imatrix=tmp_path / "c")
    with pytest.raises(ModelFileError, match="holds no importance matrix"):
        quantize(full, tmp_path / "x.gguf", type="IQ2_XS", imatrix=full)
    with pytest.raises(ModelNotFoundError, match="no such importance matrix"):
        quantize(full, tmp_path / "x.gguf", type="IQ2_XS", imatrix=tmp_path / "d")
    assert not (tmp_path / "x.gguf").exists()


def test_what_cannot_be_quantised_is_refused_with_the_way_out(full, tiny_old_layout, tmp_path):
    with pytest.raises(SettingsError, match="unknown type 'Q4_M'; did you mean Q4_K_M"):
        quantize(full, type="Q4_M")
    with pytest.raises(SettingsError, match=r"unknown type 'zzz'; choose one of: Q2_K, Q2_K_S"):
        quantize(full, type="zzz")
    with pytest.raises(SettingsError, match="n_threads is 0"):
        quantize(full, type="Q8_0", n_threads=0)
    with pytest.raises(ModelFileError, match=f"mixtral-rag upgrade {tiny_old_layout}"):
        quantize(tiny_old_layout, tmp_path / "x.gguf", type="Q8_0")
    with pytest.raises(ModelNotFoundError, match="no such model file"):
        quantize(tmp_path / "nothing.gguf", type="Q8_0")
    with pytest.raises(ModelFileError, match="there is no folder"):
        quantize(full, tmp_path / "nowhere" / "x.gguf", type="Q8_0")
    with pytest.raises(ModelFileError, match="exists already"):
        quantize(full, full, type="Q8_0", replace=True)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(full.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="truncated"):
        quantize(cut, type="Q8_0")


def test_quantising_twice_must_be_asked_for(full, tmp_path):
    once = quantize(full, tmp_path / "once.gguf", type="Q8_0").path
    with pytest.raises(ModelFileError, match=r"quantised already \(Q8_0\).*--allow-requantize"):
        quantize(once, tmp_path / "twice.gguf", type="Q4_0")
    twice = quantize(once, tmp_path / "twice.gguf", type="Q4_0", allow_requantize=True)
    assert likeness(twice.path, full) > 0.9


def test_a_full_disk_is_seen_before_anything_is_written(full, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(ModelFileError, match=r"GB free and .* takes \d+\.\d GB"):
        quantize(full, tmp_path / "x.gguf", type="Q8_0")
    assert not list(tmp_path.iterdir())


def until(found, seconds=30):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_crash_of_the_c_code_is_an_error(full, tmp_path):
    goal = tmp_path / "x.gguf"

    def crash():
        until((tmp_path / ".x.gguf.partial").exists)
        for child in psutil.Process().children():
            child.send_signal(signal.SIGSEGV)

    thread = threading.Thread(target=crash)
    thread.start()
    with pytest.raises(ModelFileError, match=r"llama\.cpp crashed while quantising .*SIGSEGV"):
        quantize(full, goal, type="IQ4_XS", n_threads=1)
    thread.join()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_it_leaves_no_model_and_no_process(full, tmp_path, how):
    goal, partial = tmp_path / "x.gguf", tmp_path / ".x.gguf.partial"
    command = [*COMMAND, str(full), "--type", "IQ4_XS", "--output", str(goal), "--n-threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(partial.exists)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    _, said = process.communicate(timeout=20)
    assert children
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert not goal.exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert b"interrupted" in said
        assert not partial.exists()
    assert quantize(full, goal, type="Q8_0").path == goal  # and can run again
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_the_command_says_what_it_wrote_and_what_comes_next(full, tmp_path):
    goal = tmp_path / "x.gguf"
    command = [*COMMAND, str(full), "--type", "Q4_K_M", "--output", str(goal)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Q4_K_M, 16.2 MB, 5.36 bits a weight" in done.stdout
    assert f"mixtral-rag ask --model {goal}" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "exists already" in again.stderr


def test_it_runs_where_a_file_has_the_name_of_a_module(full, tmp_path):
    for name in ("llama_cpp", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('read from the current folder')")
    command = [*COMMAND, str(full), "--type", "Q8_0", "--output", "x.gguf"]
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=kept)
    assert done.returncode == 0, done.stderr
