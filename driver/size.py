"""How many bytes a layer holds (driver.md 1.8, "DiffSize, fast").

The sum of the apparent sizes of everything but directories, each inode counted once. What the union
keeps for itself at the top of a branch (the base of the whiteouts, temporaries, files deleted while
open) is no part of the layer; pseudo-linked files are, under the names they show up as.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from driver.beneath import find, open_directory, open_root
from driver.descent import Descent
from driver.plinks import pseudo_links
from unionfs.branch.forms import PLINK_DIRECTORY, PRIVATE_PREFIX


def branch_size(branch: str, parents: Sequence[str] = ()) -> int:
    """Return the size of a layer's branch.

    Args:
        branch: directory of the layer itself.
        parents: the ancestors' directories, nearest first; needed to find pseudo-links.

    Returns:
        Bytes.

    Raises:
        OSError: ``ENOENT`` when there is no such directory; a directory cannot be read, or was
            moved while it was walked through. What vanishes before is left out.
    """
    root = open_root(branch)
    try:
        sizes: dict[tuple[int, int], int] = {}
        _measure(root, sizes)
        _measure_pseudo_links(root, branch, parents, sizes)
        return sum(sizes.values())
    finally:
        os.close(root)


def _measure(root: int, sizes: dict[tuple[int, int], int]) -> None:
    """Note the size of every file below ``root`` under its device and inode number."""
    with Descent(root) as at:
        todo = [_measure_directory(at.fd, sizes)]  # directories still to be entered, by level
        while True:
            if todo[-1]:
                if at.enter_if_there(todo[-1].pop()):
                    todo.append(_measure_directory(at.fd, sizes))
                continue
            todo.pop()
            if not todo:
                return
            at.leave()


def _measure_directory(fd: int, sizes: dict[tuple[int, int], int]) -> list[bytes]:
    """Note the files of one directory; return the names of the directories inside it."""
    deeper = []
    for name in map(os.fsencode, os.listdir(fd)):
        status = None if name.startswith(PRIVATE_PREFIX) else find(fd, name)
        if status is None:
            continue
        if stat.S_ISDIR(status.st_mode):
            deeper.append(name)
        else:
            sizes[status.st_dev, status.st_ino] = status.st_size
    return deeper


def _measure_pseudo_links(
    root: int, branch: str, parents: Sequence[str], sizes: dict[tuple[int, int], int]
) -> None:
    links = pseudo_links(branch, parents)
    entries = {(link.device, link.inode): link.entry for link in links.values()}
    missing = {identity: entry for identity, entry in entries.items() if identity not in sizes}
    if not missing:
        return
    fd = open_directory(root, PLINK_DIRECTORY)
    try:
        for identity, entry in missing.items():
            status = find(fd, entry)
            if status is not None:
                sizes[identity] = status.st_size
    finally:
        os.close(fd)
