"""Pseudo-links seen by the driver (aufs.md 6.5).

A file with several names that lies in a parent is copied up under one of them; the others stay
names in the parent's branch only, yet the union shows the copy under all of them. The union keeps
the copy's identity in ``.wh..wh.plnk/``. A diff that said nothing about those other names would
break the link, so diff, changes and size ask here which names they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import unionfs
from driver.beneath import ABSENT, open_directory, open_root
from unionfs.branch.forms import PLINK_DIRECTORY


class PseudoLink(NamedTuple):
    """The copy that a name of a parent leads to.

    Attributes:
        device, inode: identity of the copy in the layer's branch.
        entry: its name in ``.wh..wh.plnk/``.
    """

    device: int
    inode: int
    entry: bytes


def pseudo_links(branch: str, parents: Sequence[str]) -> dict[bytes, PseudoLink]:
    """Return the names that lie only in parents but show a file of the layer.

    Args:
        branch: directory of the layer itself.
        parents: the ancestors' directories, nearest first.

    Returns:
        Paths relative to the layer's root, each with the copy it leads to.
    """
    try:
        with os.scandir(os.path.join(branch, os.fsdecode(PLINK_DIRECTORY))) as entries:
            if next(entries, None) is None:
                return {}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    names = unionfs.pseudo_link_names([os.fsencode(path) for path in (branch, *parents)])
    return {path: PseudoLink(*found.identity, found.entry) for path, found in names.items()}


def lent_directories(
    branch: str, parents: Sequence[str], paths: Iterable[bytes]
) -> dict[bytes, os.stat_result]:
    """Return the attributes of directories that lie only in parents but hold one of ``paths``.

    Whoever writes such a path down has to write its directories too: a reader that makes them up
    would give them a mode and an owner that nobody chose.

    Args:
        branch: directory of the layer itself.
        parents: the ancestors' directories, nearest first.
        paths: relative to the layer's root, as from `pseudo_links`.
    """
    found: dict[bytes, os.stat_result] = {}
    for directory in {above for path in paths for above in _ancestors(path)}:
        if _directory(branch, directory) is None:
            below = (_directory(parent, directory) for parent in parents)
            status = next(filter(None, below), None)
            if status is not None:
                found[directory] = status
    return found


def _ancestors(path: bytes) -> Iterator[bytes]:
    while path := path.rpartition(b"/")[0]:
        yield path


def _directory(branch: str, path: bytes) -> os.stat_result | None:
    try:
        root = open_root(branch)
        try:
            fd = open_directory(root, path)
        finally:
            os.close(root)
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)
