"""Two trees walked as one: what a branch has, and names that were given besides (driver.md 7.2).

The names given are those of pseudo-links, directories to find them in, and whiteouts. Both trees
are taken level by level, and the names of a level come in the order of their bytes, whichever tree
they are from; that is what puts a given name at the place where it would stand if it lay in the
branch.

What is in a directory is a step of its own among those of the level, because there are two orders:
it follows its directory at once, or it stands where the whole paths put it (``k``, ``k-a``,
``k/x``).
"""

import heapq
import os
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from driver.archive.whiteouts import OPAQUE, PREFIX

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


Turn = tuple[bytes, ...]
"""What the steps of a level are sorted by."""

Order = Callable[[bytes], Turn]
"""Gives the turn of an entry by its name, of what is inside it by its name and a ``/``."""


def tree_order(name: bytes) -> Turn:
    """Have a directory followed by what is inside it."""
    return name.partition(b"/")


def path_order(name: bytes) -> Turn:
    """Have whole paths sorted; a deletion counts as the path that it deletes.

    An opaque mark, which stands for many, comes first in its directory.
    """
    return (b"" if name == OPAQUE else name.removeprefix(PREFIX),)


class Step(NamedTuple):
    """One thing to do in a directory.

    Attributes:
        turn: says when.
        name: of an entry.
        inside: what is inside that is to be done, and not the entry itself.
        real: that entry lies in the branch.
    """

    turn: Turn
    name: bytes
    inside: bool = False
    real: bool = False


class Level:
    """One directory of the walk: what is still to do in it.

    Args:
        prefix: path of the directory with ``/`` behind it, nothing for the root.
        real: names that it has in the branch; None when it is not in the branch at all.
        extras: names that were given.
        order: of the steps.
    """

    __slots__ = ("_order", "_steps", "extras", "prefix", "real")

    def __init__(
        self,
        prefix: bytes,
        real: Iterable[bytes] | None,
        extras: dict[bytes, Extra],
        order: Order,
    ) -> None:
        self.prefix = prefix
        self.real = real is not None
        self.extras = extras
        self._order = order
        self._steps = [Step(order(name), name) for name in {*(real or ()), *extras}]
        heapq.heapify(self._steps)

    def next(self) -> Step | None:
        """Return the next step, which is then no longer to do; None when all is done."""
        return heapq.heappop(self._steps) if self._steps else None

    def enter(self, name: bytes, *, real: bool) -> None:
        """Add what is inside ``name`` to what is to do."""
        step = Step(self._order(name + b"/"), name, inside=True, real=real)
        heapq.heappush(self._steps, step)
