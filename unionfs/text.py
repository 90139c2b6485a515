"""File names as text: for people, and for state files that scripts cut into words.

A file name is any bytes but ``/`` and NUL.  Inside this project it stays ``bytes``; it becomes
text only on its way out, and then a newline or a terminal escape in it must not break a one-line
message or a table.
"""

from __future__ import annotations

import os
import re

_ESCAPED_IN_STATE = re.compile(rb"[\x00-\x20\\\x7f]")
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


def printable(name: bytes | str) -> str:
    r"""Return the name for a message: printable characters as they are, others as ``\\xNN``."""
    text = os.fsdecode(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _visible(c) for c in text)


def _visible(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, kept by surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def octal_escape(name: bytes) -> bytes:
    r"""Write blanks, control characters, backslash and DEL as ``\\NNN`` (aufs.md 1.5)."""
    return _ESCAPED_IN_STATE.sub(lambda match: b"\\%03o" % match[0][0], name)


def octal_unescape(text: bytes) -> bytes:
    """Undo octal_escape; also reads the paths of /proc/self/mountinfo."""
    return _OCTAL.sub(lambda match: bytes((int(match[1], 8),)), text)
