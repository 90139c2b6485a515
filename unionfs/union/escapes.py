"""Commas, colons and equals signs that mean themselves.

In an option string ``,`` separates options, ``:`` branches and ``=`` a path from its permission.  A
backslash before one of them, or before another backslash, takes that character literally.  Every
other backslash is an ordinary character, as it always was in aufs.
"""

from __future__ import annotations

from typing import Final

_ESCAPES: Final = frozenset({b"\\,", b"\\:", b"\\=", b"\\\\"})


def split(text: bytes, separator: bytes, *, once: bool = False) -> list[bytes]:
    """Cut at each separator that no backslash protects.  The parts keep their escapes."""
    parts: list[bytes] = []
    start = here = 0
    while here < len(text):
        if text[here : here + 2] in _ESCAPES:
            here += 2
            continue
        if text[here : here + 1] == separator:
            parts.append(text[start:here])
            start = here + 1
            if once:
                break
        here += 1
    parts.append(text[start:])
    return parts


def unescape(text: bytes) -> bytes:
    """Take the backslashes of the escapes away."""
    result = bytearray()
    here = 0
    while here < len(text):
        if text[here : here + 2] in _ESCAPES:
            here += 1
        result.append(text[here])
        here += 1
    return bytes(result)


def escape_value(path: bytes) -> bytes:
    """Write a path so that it can stand in an option string whatever it contains."""
    for special in (b"\\", b",", b":", b"="):
        path = path.replace(special, b"\\" + special)
    return path
