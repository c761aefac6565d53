"""Old expert layout to new: the same bytes, the same tokens, and nothing half written."""

import ctypes
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import gguf
import numpy as np
import pytest
from tiny_mixtral import write_tiny_mixtral

from mixtral_rag import ChineseMixtral
from mixtral_rag.errors import ModelFileError
from mixtral_rag.weights.gguf import read_header
from mixtral_rag.weights.upgrade import upgrade

# llama.cpp's file types (enum llama_ftype); k-quants want rows of 256.
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q2_k": 10, "q4_k_m": 15, "q6_k": 18}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A tiny Mixtral in the new layout with rows of 256, in f32."""
    path = tmp_path_factory.mktemp("wide") / "wide-instruct.gguf"
    return write_tiny_mixtral(path, n_layer=1, n_embd=256, n_ff=256, n_head=2, n_head_kv=1)


def quantised(source, target, file_type):
    """`source` in another type, by llama.cpp itself."""
    import llama_cpp

    from mixtral_rag.engines import llama_library

    llama_library.load()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 2
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert code == 0
    return target


def old_layout_of(source, target):
    """`source` with its stacked experts taken apart, by the gguf package."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        if "_exps." in tensor.name:
            for number, expert in enumerate(tensor.data):
                name = tensor.name.replace("_exps.", f".{number}.")
                writer.add_tensor(name, np.array(expert), raw_dtype=tensor.tensor_type)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def greedy(path):
    llm = ChineseMixtral(model=str(path), n_ctx=256, temperature=0, repeat_penalty=1, max_tokens=16)
    return llm.invoke("你好，世界")


@pytest.mark.parametrize("name", FILE_TYPES)
def test_upgraded_bytes_and_tokens_equal_the_new_layout(wide, tmp_path, name):
    new = quantised(wide, tmp_path / "new-instruct.gguf", FILE_TYPES[name])
    old = old_layout_of(new, tmp_path / "old-instruct.gguf")
    upgraded = upgrade(old)
    assert upgraded.name == "old-instruct-upgraded.gguf"
    ours = {t.name: t for t in gguf.GGUFReader(upgraded).tensors}
    theirs = {t.name: t for t in gguf.GGUFReader(new).tensors}
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].tensor_type == tensor.tensor_type
        assert list(ours[key].shape) == list(tensor.shape)
        assert np.array_equal(ours[key].data, tensor.data), key
    assert greedy(upgraded) == greedy(new)


def test_metadata_stays_byte_for_byte(tiny_old_layout, tmp_path):
    upgraded = upgrade(tiny_old_layout, tmp_path / "new.gguf")
    spans = []
    for path in (tiny_old_layout, upgraded):
        start, end = read_header(path).metadata_span
        spans.append(path.read_bytes()[start:end])
    assert spans[0] == spans[1]


@pytest.fixture
def old(tiny_old_layout, tmp_path):
    return shutil.copy(tiny_old_layout, tmp_path / "old.gguf")


def test_loading_an_old_file_names_the_command_that_helps(old):
    with pytest.raises(ModelFileError, match=f"mixtral-rag upgrade {old}"):
        ChineseMixtral(model=str(old)).invoke("x")


def test_replace_puts_the_new_file_in_the_old_ones_place(old, tiny_mixtral):
    assert upgrade(old, replace=True) == old
    assert not read_header(old).has_old_expert_layout
    assert greedy(old) == greedy(tiny_mixtral)
    assert [p.name for p in old.parent.iterdir()] == ["old.gguf"]


def test_progress_counts_up_to_the_whole(old):
    seen = []
    upgrade(old, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_what_cannot_be_upgraded_is_refused_with_its_reason(old, tiny_mixtral, tmp_path):
    with pytest.raises(ModelFileError, match="nothing to upgrade"):
        upgrade(tiny_mixtral)
    existing = tmp_path / "there.gguf"
    existing.write_text("mine")
    with pytest.raises(ModelFileError, match="exists already"):
        upgrade(old, existing)
    assert existing.read_text() == "mine"
    with pytest.raises(ModelFileError, match="not both"):
        upgrade(old, tmp_path / "x.gguf", replace=True)
    data = old.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[:-1000])
    with pytest.raises(ModelFileError, match="truncated"):
        upgrade(cut)
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(data.replace(b"blk.1.ffn_up.3.weight", b"blk.1.ffn_uq.3.weight"))
    with pytest.raises(ModelFileError, match=r"blk\.1\.ffn_up lacks expert 3 of 8"):
        upgrade(odd)


def test_experts_of_differing_types_are_refused(old, tmp_path):
    header = read_header(old)
    tensor = next(t for t in header.tensors if t.name == "blk.0.ffn_down.2.weight")
    data = bytearray(old.read_bytes())
    at = data.index(tensor.name.encode()) + len(tensor.name) + 4 + 8 * len(tensor.shape)
    data[at] = 26  # I32, the same size
    old.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"differing types \(F32, I32\)"):
        upgrade(old)


def test_a_full_disk_is_seen_before_anything_is_written(old, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(ModelFileError, match=r"GB free and .* takes \d+\.\d GB"):
        upgrade(old)
    assert [p.name for p in tmp_path.iterdir()] == ["old.gguf"]


def test_a_byte_that_changed_on_the_way_is_found(old, tmp_path, monkeypatch):
    from mixtral_rag.weights import upgrade as module

    verify = module._verify

    def flip_then_verify(header, tensors, file, partial, done):
        with partial.open("r+b") as damaged:
            damaged.seek(-50_000, 2)
            damaged.write(b"\xff\x00\xff")
        verify(header, tensors, file, partial, done)

    monkeypatch.setattr(module, "_verify", flip_then_verify)
    with pytest.raises(ModelFileError, match="was not written as it was read"):
        upgrade(old)
    assert [p.name for p in tmp_path.iterdir()] == ["old.gguf"]


def test_killed_at_any_time_it_leaves_no_model_and_can_run_again(old, tmp_path):
    code = (
        "import sys; from pathlib import Path; from mixtral_rag.weights.upgrade import upgrade\n"
        "import time; print('go', flush=True)\n"
        "upgrade(Path(sys.argv[1]), on_progress=lambda *_: time.sleep(0.004))"
    )
    goal = tmp_path / "old-upgraded.gguf"
    for delay in (0.02, 0.1, 0.2, 0.35):
        process = subprocess.Popen([sys.executable, "-c", code, str(old)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert not goal.exists()
    assert greedy(upgrade(old)) == greedy(goal)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old-upgraded.gguf", "old.gguf"]


def test_memory_stays_small(tmp_path):
    """A file of 400 MB is upgraded with a few megabytes beyond the interpreter's own."""
    big = tmp_path / "big.gguf"
    write_tiny_mixtral(big, n_layer=2, n_embd=512, n_ff=4096, n_head=8, old_layout=True)
    code = (
        "import sys, resource; from pathlib import Path\n"
        "from mixtral_rag.weights.upgrade import upgrade\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "upgrade(Path(sys.argv[1]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(big)], capture_output=True, text=True, check=True
    )
    assert big.stat().st_size > 500_000_000
    assert int(out.stdout) < 100_000, "kilobytes"
