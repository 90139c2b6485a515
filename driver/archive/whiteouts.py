"""What a name that begins with ``.wh.`` means in a layer tar (driver.md 7.1).

A layer says "this name of the layers below is gone" by an entry ``.wh.NAME`` and "nothing below
shows in this directory" by an entry ``.wh..wh..opq``. Only the *base name* decides, and only it:
the type of the entry does not (aufs wrote whiteouts as hard links, others as any file), and
neither do size, mode or owner. A directory on the way to an entry may be called anything.

At the top of a branch, names beginning ``.wh..wh.`` are the filesystem's own: its whiteout base,
its pseudo-links, its orphans. They are no part of what a layer says, ``.wh..wh..opq`` excepted.

This module only sorts names; what becomes of each sort is the extractors' business.
"""

import enum
from collections.abc import Sequence

from driver.errors import InvalidArchiveError

PREFIX = b".wh."
OPAQUE = b".wh..wh..opq"
RESERVED_PREFIX = b".wh..wh."
PSEUDO_LINKS = b".wh..wh.plnk"
_DROPPED = frozenset({b".wh..wh.aufs", b".wh..wh.orph"})
_NOT_A_NAME = frozenset({b"", b".", b".."})


class Role(enum.Enum):
    """What an entry is, judged by its name."""

    ORDINARY = enum.auto()
    """A file of the layer."""
    WHITEOUT = enum.auto()
    """Hides one name of the layers below."""
    OPAQUE = enum.auto()
    """Hides everything that the layers below have in this directory."""
    PSEUDO_LINK = enum.auto()
    """Data of a hard-linked file, kept in ``.wh..wh.plnk`` by aufs, or that directory itself."""
    SCRATCH = enum.auto()
    """The whiteout base, the orphans and what is below: worthless outside of their branch."""
    RESERVED = enum.auto()
    """Some other private name at the top."""


def role(path: Sequence[bytes]) -> Role:
    """Sort an entry by its name.

    Args:
        path: the cleaned name in components, not empty.

    Raises:
        InvalidArchiveError: a whiteout of nothing, of ``.`` or of ``..``.
    """
    top, base = path[0], path[-1]
    if top.startswith(RESERVED_PREFIX) and top != OPAQUE:
        if top in _DROPPED:
            return Role.SCRATCH
        return Role.PSEUDO_LINK if top == PSEUDO_LINKS else Role.RESERVED
    if base == OPAQUE:
        return Role.OPAQUE
    if not base.startswith(PREFIX):
        return Role.ORDINARY
    hidden_name(base, b"/".join(path))
    return Role.WHITEOUT


def hidden_name(base: bytes, shown: bytes | None = None) -> bytes:
    """Return the name that the whiteout called ``base`` hides.

    Args:
        base: last component.
        shown: what the error shows in place of it.

    Raises:
        InvalidArchiveError: that would be nothing, ``.`` or ``..``; removing it would remove the
            directory or its parent.
    """
    hidden = base[len(PREFIX) :]
    if hidden in _NOT_A_NAME:
        raise InvalidArchiveError("malformed whiteout", base if shown is None else shown)
    return hidden


def is_private(path: Sequence[bytes]) -> bool:
    """Tell whether the entry belongs to the filesystem alone, so that a diff leaves it out.

    Args:
        path: name relative to the branch, in components.
    """
    return path[0].startswith(RESERVED_PREFIX) and path[0] != OPAQUE
