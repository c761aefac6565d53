"""Damage done to good documents, and documents made to do harm."""

import io
import re
import zipfile
from collections.abc import Callable
from random import Random

from samples import zipped

MAGICS = (
    b"%PDF-1.7\n", b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"BZh9", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    b"\xff\xfe", b"\xef\xbb\xbf", b"<?xml version='1.0'?>", b'{"a":', b"ustar\x00", bytes(8),
)  # fmt: skip
NUMBERS = (
    b"0", b"-1", b"1", b"65536", b"2147483648", b"4294967295", b"9" * 20, b"1e400",
)  # fmt: skip


def mutated(data: bytes, rng: Random, other: bytes) -> bytes:
    """A copy of `data` damaged in one to three ways, drawn by `rng`."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        if data[:2] == b"PK" and rng.random() < 0.5:
            data = _inside_zip(data, rng, other)
        else:
            data = rng.choice(WAYS)(data, rng, other)
    return data


def _place(data: bytes, rng: Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + int(2 ** rng.uniform(0, 12)))


def _flip(data: bytes, rng: Random, _: bytes) -> bytes:
    out = bytearray(data)
    for _n in range(int(2 ** rng.uniform(0, 6)) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _truncate(data: bytes, rng: Random, _: bytes) -> bytes:
    return data[: rng.randrange(1, len(data) + 1)] if data else data


def _duplicate(data: bytes, rng: Random, _: bytes) -> bytes:
    start, end = _place(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]


def _remove(data: bytes, rng: Random, _: bytes) -> bytes:
    start, end = _place(data, rng)
    return data[:start] + data[end:]


def _zero(data: bytes, rng: Random, _: bytes) -> bytes:
    start, end = _place(data, rng)
    return data[:start] + bytes(end - start) + data[end:]


def _noise(data: bytes, rng: Random, _: bytes) -> bytes:
    start, end = _place(data, rng)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _magic(data: bytes, rng: Random, _: bytes) -> bytes:
    magic = rng.choice(MAGICS)
    return magic + data[rng.choice((0, len(magic))) :]


def _length(data: bytes, rng: Random, _: bytes) -> bytes:
    """Write an extreme number over bytes that may be a length or an offset."""
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(max(1, len(data) - size))
    value = rng.choice((0, 1, (1 << 8 * size) - 1, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1))
    return data[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]


def _number(data: bytes, rng: Random, _: bytes) -> bytes:
    """Replace a decimal number by an extreme one."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return _length(data, rng, _)
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(NUMBERS) + data[match.end() :]


def _swap(data: bytes, rng: Random, _: bytes) -> bytes:
    (a, b), (c, d) = sorted((_place(data, rng), _place(data, rng)))
    return data if b > c else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _splice(data: bytes, rng: Random, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


WAYS: tuple[Callable[[bytes, Random, bytes], bytes], ...] = (
    _flip, _truncate, _duplicate, _remove, _zero, _noise, _magic, _length, _number, _swap, _splice,
)  # fmt: skip


def _inside_zip(data: bytes, rng: Random, other: bytes) -> bytes:
    """Damage a member and zip again; or drop, rename, swap or repeat members."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = {name: file.read(name) for name in file.namelist()}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, KeyError):
        return _flip(data, rng, other)
    except Exception:  # noqa: BLE001 - zlib.error, struct.error: damaged by the round before
        return _flip(data, rng, other)
    if not members:
        return data
    name = rng.choice(sorted(members))
    way = rng.randrange(8)
    if way == 0:
        del members[name]
    elif way == 1:
        members[rng.choice(("../../" + name, "/" + name, name * 200, "a\x00b", "\\" + name))] = (
            members.pop(name)
        )
    elif way == 2:
        twin = rng.choice(sorted(members))
        members[name], members[twin] = members[twin], members[name]
    elif way == 3:
        members[name] = _nested(members[name], rng)
    else:
        members[name] = rng.choice(WAYS)(members[name], rng, other)
    return zipped(members)


def _nested(data: bytes, rng: Random) -> bytes:
    """Repeat an opening tag many times over, as one that never ends."""
    found = list(re.finditer(rb"<[a-zA-Z][^<>?!]{0,200}(?<!/)>", data))
    if not found:
        return data
    match = rng.choice(found)
    times = rng.choice((10, 1000, 20_000))
    return data[: match.end()] + match.group() * times + data[match.end() :]
