"""A small writer of OLE containers, for mails as Outlook saves them."""

import itertools
import struct

FREE, END, FAT = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD
_SECTOR, _MINI, _CUTOFF = 512, 64, 4096


def write_ole(path, tree):
    """Write `tree`, whose values are bytes (streams) or further trees (storages)."""
    entries = []  # name, kind, children, data

    def add(name, value):
        index = len(entries)
        entries.append([name, 2 if isinstance(value, bytes) else 1, [], value])
        if not isinstance(value, bytes):
            entries[index][2] = [add(k, v) for k, v in value.items()]
        return index

    add("Root Entry", tree)
    entries[0][1] = 5
    fat, sectors, minifat, mini = [], [], [], b""

    def store(data):
        if not data:
            return END
        start = len(sectors)
        parts = [data[i : i + _SECTOR] for i in range(0, len(data), _SECTOR)]
        for i, part in enumerate(parts):
            sectors.append(part.ljust(_SECTOR, b"\0"))
            fat.append(start + i + 1 if i + 1 < len(parts) else END)
        return start

    places = {}
    for index, (_, kind, _, data) in enumerate(entries):
        if kind != 2:
            continue
        if len(data) >= _CUTOFF:
            places[index] = store(data)
            continue
        start, count = len(minifat), -(-len(data) // _MINI)
        minifat += [start + i + 1 if i + 1 < count else END for i in range(count)]
        mini += data.ljust(count * _MINI, b"\0")
        places[index] = start if count else END
    places[0] = store(mini)
    table = struct.pack(f"<{len(minifat)}I", *minifat)
    mini_start = store(table + b"\xff" * (-len(table) % _SECTOR))
    root_start = store(_directory(entries, places, len(mini)))
    n_fat = 1
    while n_fat * 128 < len(sectors) + n_fat:
        n_fat += 1
    fat_start = len(sectors)
    fat += [FAT] * n_fat
    fat += [FREE] * (n_fat * 128 - len(fat))
    header = struct.pack(
        "<8s16sHHHHH6sIIIIIIIII", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", bytes(16), 0x3E, 3, 0xFFFE,
        9, 6, bytes(6), 0, n_fat, root_start, 0, _CUTOFF, mini_start if minifat else END,
        -(-len(table) // _SECTOR), END, 0,
    )  # fmt: skip
    difat = [fat_start + i for i in range(n_fat)] + [FREE] * (109 - n_fat)
    header += struct.pack("<109I", *difat)
    path.write_bytes(header + b"".join(sectors) + struct.pack(f"<{len(fat)}I", *fat))
    return path


def _directory(entries, places, mini_size):
    right = {}
    child = {}
    for index, (_, _, children, _) in enumerate(entries):
        # Siblings are a sorted tree; a chain to the right is one.
        ordered = sorted(children, key=lambda i: (len(entries[i][0]), entries[i][0].upper()))
        if ordered:
            child[index] = ordered[0]
        for one, other in itertools.pairwise(ordered):
            right[one] = other
    out = b""
    for index, (name, kind, _, data) in enumerate(entries):
        raw = name.encode("utf-16-le")
        size = mini_size if kind == 5 else len(data) if kind == 2 else 0
        out += struct.pack(
            "<64sHBBIII16sIQQIQ", raw, len(raw) + 2, kind, 1, FREE, right.get(index, FREE),
            child.get(index, FREE), bytes(16), 0, 0, 0, places.get(index, 0), size,
        )  # fmt: skip
    empty = struct.pack(
        "<64sHBBIII16sIQQIQ", b"", 0, 0, 0, FREE, FREE, FREE, bytes(16), 0, 0, 0, 0, 0
    )
    return out + empty * (-len(entries) % 4)


def message(texts, *, fixed=(), attachments=(), header=32, code_page=None, binaries=()):
    """The tree of a mail.

    Args:
        texts: property number to text; with a code page in its 8-bit form.
        fixed: property type, number and 8 bytes of value.
        attachments: trees, each a storage of its own.
        binaries: property number to bytes.
    """
    tree = {}
    rows = list(fixed)
    if code_page:
        rows.append((0x0003, 0x3FFD, struct.pack("<II", code_page[0], 0)))
    for number, text in texts.items():
        if code_page:
            tree[f"__substg1.0_{number:04X}001E"] = text.encode(code_page[1])
        else:
            tree[f"__substg1.0_{number:04X}001F"] = text.encode("utf-16-le")
    for number, data in dict(binaries).items():
        tree[f"__substg1.0_{number:04X}0102"] = data
    for number, attachment in enumerate(attachments):
        tree[f"__attach_version1.0_#{number:08X}"] = attachment
    body = b"".join(struct.pack("<HHI8s", kind, n, 6, value) for kind, n, value in rows)
    tree["__properties_version1.0"] = bytes(header) + body
    return tree
