"""An importance matrix: how much each input of each weight matters, measured on real text.

`llama-imatrix` of llama.cpp makes them; very small types need one. Its two formats are GGUF, with
`NAME.in_sum2` and `NAME.counts` for each tensor, and an older plain one. Values are mean squares of
the activations, as in llama.cpp's `tools/quantize`.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mixtral_rag.errors import ModelFileError, ModelNotFoundError
from mixtral_rag.weights.gguf import check_complete, read_header

_MOST_ENTRIES, _LONGEST_NAME, _MOST_VALUES = 100_000, 1024, 1 << 28


def read_imatrix(path: Path) -> dict[str, Any]:
    """The importance of the inputs of each tensor, float32 arrays by tensor name.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelFileError: not an importance matrix, or damaged.
    """
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
            file.seek(0)
            found = dict(_from_gguf(path, file) if is_gguf else _from_plain(path, file))
    except FileNotFoundError:
        raise ModelNotFoundError(f"no such importance matrix: {path}") from None
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    if not found:
        raise ModelFileError(f"{path} holds no importance matrix")
    return found


def _from_gguf(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    import numpy as np

    header = read_header(path)
    check_complete(header)
    tensors = {t.name: t for t in header.tensors if t.type == 0}  # F32

    def values(name: str) -> Any:
        tensor = tensors[name]
        file.seek(header.data_offset + tensor.offset)
        return np.frombuffer(file.read(tensor.size or 0), np.float32).reshape(tensor.shape[::-1])

    for name in tensors:
        stem = name.removesuffix(".in_sum2")
        if stem == name or f"{stem}.counts" not in tensors:
            continue
        sums = values(name)
        counts = values(f"{stem}.counts").reshape(-1, 1)  # one for each expert
        if sums.ndim > 2 or counts.shape[0] not in (1, sums.size // sums.shape[-1]):
            raise ModelFileError(f"{path}: the counts of {stem} do not fit its sums")
        means = np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)
        yield stem, means.astype(np.float32).reshape(-1)


def _from_plain(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    import numpy as np

    def number(most: int) -> int:
        value: int = struct.unpack("<i", file.read(4).ljust(4, b"\xff"))[0]
        if not 0 <= value <= most:
            raise ModelFileError(f"{path} is not an importance matrix, or it is damaged")
        return value

    for _ in range(number(_MOST_ENTRIES)):
        name = file.read(number(_LONGEST_NAME)).decode("utf-8", errors="replace")
        n_calls, size = number(2**31 - 1), number(_MOST_VALUES)
        data = file.read(4 * size)
        if len(data) < 4 * size or not size:
            raise ModelFileError(f"{path} is truncated at {name}")
        yield name, (np.frombuffer(data, np.float32) / max(1, n_calls)).astype(np.float32)
