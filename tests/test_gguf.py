import random
import struct
import tracemalloc

import pytest

from mixtral_rag.errors import ModelError, ModelFileError, ModelNotFoundError
from mixtral_rag.weights.gguf import check_complete, read_header


def test_header_of_a_mixtral(tiny_mixtral):
    header = read_header(tiny_mixtral)
    assert header.architecture == "llama"
    assert (header.is_mixtral, header.is_instruct) == (True, True)
    assert (header.vocabulary_size, header.context_length) == (32_000, 32_768)
    assert not header.has_old_expert_layout
    assert header.expected_size == header.file_size
    check_complete(header)


def test_base_models_and_the_old_layout_are_told_apart(tiny_base, tiny_old_layout):
    assert not read_header(tiny_base).is_instruct
    assert read_header(tiny_old_layout).has_old_expert_layout


def test_a_small_model_is_not_a_mixtral(smollm):
    header = read_header(smollm)
    assert not header.is_mixtral
    assert "<|im_start|>" in header.chat_template
    check_complete(header)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such model file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="is a folder"):
        read_header(tmp_path)


@pytest.mark.parametrize("data", [b"", b"GG", b"%PDF-1.5 not a model", b"\x00" * 100])
def test_other_files_are_not_gguf(tmp_path, data):
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="is not a GGUF"):
        read_header(path)


def test_a_file_cut_anywhere_is_truncated(tiny_mixtral, tmp_path):
    data = tiny_mixtral.read_bytes()
    path = tmp_path / "cut.gguf"
    rng = random.Random(0)
    for size in [5, 30, *(rng.randrange(4, len(data)) for _ in range(40)), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(ModelFileError, match="truncated"):
            check_complete(read_header(path))


def test_mutated_headers_give_a_header_or_our_error(tiny_mixtral, tmp_path):
    data = bytearray(tiny_mixtral.read_bytes()[:4096])
    path = tmp_path / "mutated.gguf"
    rng = random.Random(1)
    for _ in range(500):
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        path.write_bytes(mutated)
        with pytest.raises(ModelError):
            check_complete(read_header(path))


@pytest.mark.parametrize(
    "claim",
    [
        struct.pack("<IQQ", 3, 2**60, 0),
        struct.pack("<IQQ", 3, 0, 2**60),
        struct.pack("<IQQQ", 3, 0, 1, 2**62),
        struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 2**61),
        struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 2**61),
    ],
)
def test_a_claimed_size_is_never_allocated(tmp_path, claim):
    path = tmp_path / "claim.gguf"
    path.write_bytes(b"GGUF" + claim)
    tracemalloc.start()
    with pytest.raises(ModelFileError, match="damaged or truncated"):
        read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_inspect_survives_any_mutation_of_a_header(tiny_mixtral, tmp_path, capsys):
    """Sizes, types and names changed at random: facts or our error, never a crash."""
    import re

    from mixtral_rag.commands.models import _print_model
    from mixtral_rag.weights.inspect import inspect

    data = bytearray(tiny_mixtral.read_bytes())
    end = read_header(tiny_mixtral).data_offset
    # Where numbers stand: after the metadata keys and the tensor names.
    spots = [m.end() for m in re.finditer(rb"llama\.[a-z_.]+|\.weight|general\.[a-z]+", data[:end])]
    path = tmp_path / "mutated.gguf"
    rng = random.Random(2)
    seen = set()
    for _ in range(150):
        mutated = bytearray(data[: end + 1000])
        for _ in range(rng.randint(1, 4)):
            at = rng.choice(spots) + rng.randrange(24)
            mutated[at] = rng.choice((0, 1, 8, 9, 127, 255, rng.randrange(256)))
        path.write_bytes(mutated)
        try:
            report = inspect(path)
            assert report.problem
            _print_model(report)
            seen.add("facts")
        except ModelError:
            seen.add("error")
    assert seen == {"facts", "error"}
