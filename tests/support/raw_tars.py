"""Tars built by hand, with any bytes in any field, and read by the reader under test."""

import io

from driver.archive import pax
from driver.archive.reader import Entry, LayerReader

END = bytes(1024)


def read(data: bytes) -> list[Entry]:
    return list(LayerReader(io.BytesIO(data)))


def read_one(data: bytes) -> Entry:
    (entry,) = read(data)
    return entry


def contents(data: bytes) -> list[bytes]:
    reader = LayerReader(io.BytesIO(data))
    return [b"".join(piece for _, piece in reader.content()) for _ in reader]


def raw(name: bytes = b"f", kind: bytes = b"0", **fields: bytes) -> bytes:
    """Build a header block by hand, with any bytes in any field."""
    at = {
        "mode": (100, 8),
        "uid": (108, 8),
        "gid": (116, 8),
        "size": (124, 12),
        "mtime": (136, 12),
        "link": (157, 100),
        "magic": (257, 8),
        "major": (329, 8),
        "minor": (337, 8),
        "prefix": (345, 155),
        "trailer": (508, 4),
    }
    block = bytearray(512)
    block[0 : len(name)] = name
    block[156:157] = kind
    fields.setdefault("magic", b"ustar\x0000")
    for key, value in fields.items():
        start, width = at[key]
        block[start : start + width] = value.ljust(width, b"\0")
    return seal(block)


def seal(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def block_of(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def extended(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    body = pax.format_records(records)
    return raw(b"pax", kind, size=b"%011o" % len(body)) + block_of(body)
