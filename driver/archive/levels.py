"""Two trees walked as one: what a branch has, and names that were given besides (driver.md 7.2).

The names given are those of pseudo-links, directories to find them in, and whiteouts. Both trees
are taken level by level, and the names of a level come in the order of their bytes, whichever tree
they are from; that is what puts a given name at the place where it would stand if it lay in the
branch.
"""

import os
from collections.abc import Iterable, Mapping

ExtraLink = tuple[int, int, bytes]
"""Device and inode of a file of the branch, and its name in ``.wh..wh.plnk``."""


class Extra:
    """A name that was given, or a directory on the way to one."""

    __slots__ = ("children", "link", "status", "whiteout")

    def __init__(self) -> None:
        self.whiteout = False
        self.link: ExtraLink | None = None
        self.status: os.stat_result | None = None
        self.children: dict[bytes, Extra] = {}


def plant(
    links: Mapping[bytes, ExtraLink],
    directories: Mapping[bytes, os.stat_result],
    whiteouts: Iterable[bytes] = (),
) -> dict[bytes, Extra]:
    """Arrange the extra names as a tree."""
    top = Extra()

    def node(path: bytes) -> Extra:
        at = top
        for name in path.split(b"/"):
            at = at.children.setdefault(name, Extra())
        return at

    for path, link in links.items():
        node(path).link = link
    for path, status in directories.items():
        node(path).status = status
    for path in whiteouts:
        node(path).whiteout = True
    return top.children


class Level:
    """One directory of the walk: what is still to do in it.

    Args:
        prefix: path of the directory with ``/`` behind it, nothing for the root.
        real: names that it has in the branch; None when it is not in the branch at all.
        extras: names that were given.
    """

    __slots__ = ("extras", "prefix", "real", "todo")

    def __init__(
        self, prefix: bytes, real: Iterable[bytes] | None, extras: dict[bytes, Extra]
    ) -> None:
        self.prefix = prefix
        self.real = real is not None
        self.extras = extras
        self.todo = sorted({*(real or ()), *extras}, reverse=True)
