"""A model in ONNX's own form, which is protocol buffers: just what `e5_graph` needs of it.

The numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_KINDS = {"float32": 1, "uint8": 2, "int64": 7}
_MICROSOFT = "com.microsoft"  # operators that ONNX Runtime adds to the standard
_VERSIONS = {"": 18, _MICROSOFT: 1}
_IR_VERSION = 9


class Graph:
    """Collects nodes and weights. Inputs and outputs are float32."""

    def __init__(self, name: str) -> None:
        self._name, self._parts = name, [_bytes(2, name.encode())]

    def weight(self, name: str, values: np.ndarray[Any, Any]) -> str:
        """Add a constant; returns its name."""
        kind = _KINDS[values.dtype.name]
        head = b"".join(_int(1, size) for size in values.shape) + _int(2, kind)
        data = _bytes(9, np.ascontiguousarray(values).tobytes())
        self._parts.append(_bytes(5, head + _bytes(8, name.encode()) + data))
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node of an operator, `Microsoft.`-prefixed if it is ONNX Runtime's own."""
        microsoft, _, own = operator.partition(".")
        domain, kind = (_MICROSOFT, own) if own else ("", microsoft)
        content = b"".join(_bytes(1, name.encode()) for name in inputs)
        content += _bytes(2, output.encode()) + _bytes(4, kind.encode())
        content += b"".join(_attribute(key, value) for key, value in attributes.items())
        self._parts.append(_bytes(1, content + _bytes(7, domain.encode())))
        return output

    def model(self, inputs: dict[str, Sequence[str | int]], outputs: dict[str, Any]) -> bytes:
        """The model file, given the shapes; a dimension that varies has a name."""
        shapes = [_bytes(11, _shape(name, shape)) for name, shape in inputs.items()]
        shapes += [_bytes(12, _shape(name, shape)) for name, shape in outputs.items()]
        versions = (
            _bytes(8, _bytes(1, domain.encode()) + _int(2, version))
            for domain, version in _VERSIONS.items()
        )
        graph = _bytes(7, b"".join([*self._parts, *shapes]))
        return _int(1, _IR_VERSION) + graph + b"".join(versions)


def _attribute(name: str, value: float | int) -> bytes:
    head = _bytes(1, name.encode())
    if isinstance(value, float):
        return _bytes(5, head + _key(2, 5) + struct.pack("<f", value) + _int(20, 1))
    return _bytes(5, head + _int(3, value) + _int(20, 2))


def _shape(name: str, shape: Iterable[str | int]) -> bytes:
    dimensions = (_int(1, d) if isinstance(d, int) else _bytes(2, d.encode()) for d in shape)
    inner = _int(1, _KINDS["float32"]) + _bytes(2, b"".join(_bytes(1, d) for d in dimensions))
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, inner))


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _int(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are written as unsigned 64 bits
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
