"""The offline check of a writable branch: what a crash, or another tool, may have left on it.

Every state a crash can leave behind is one that lookup survives, so nothing here is urgent.  But
some of it takes up space, and one of it, a whiteout beside the real entry, is an error to whoever
looks that name up.  What is looked for (aufs.md 2.3, 2.4, 6.6):

whiteout-and-entry  ``.wh.X`` beside ``X``.  Whatever was going on, the entry was complete or not
                    yet removed, so the repair keeps it; a directory is made opaque first, for the
                    whiteout did hide what is below.
bad-whiteout        ``.wh.X`` or ``.wh..wh..opq`` that is not a regular file: lookups of X fail.
                    It may hold somebody's data, so it is only reported.
temporary           ``.wh..wh.NAME.xxxx``: an unfinished copy-up or a directory half removed.
plink               an entry of ``.wh..wh.plnk`` that nothing can need any more.
orphan              something in ``.wh..wh.orph``, kept for a descriptor of a daemon that is gone.

The branch is held under the lock a mount would take, so none is or gets mounted meanwhile.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from unionfs.branch.branch import WritableBranch
from unionfs.branch.forms import (
    OPAQUE_MARK,
    ORPHAN_DIRECTORY,
    PLINK_DIRECTORY,
    WHITEOUT_BASE,
    hidden_by,
    is_temporary,
)
from unionfs.branch.writable import WritableDirectory

# Our own entries: number, inode, tag and the count of names that still lie on the lower branch.
_OWN_PLINK: Final = re.compile(rb"\d+\.\d+\.[0-9a-f]{16}\.(\d+)(\.lower)?")
# Those of aufs: two numbers, which say too little to find the lower file by.
_AUFS_PLINK: Final = re.compile(rb"\d+\.\d+")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that should not be there.

    kind: a word of the list above.  path: below the branch.  repaired: it is gone now.
    """

    kind: str
    path: bytes
    detail: str
    repaired: bool = False


def check_branch(branch: WritableBranch, *, repair: bool = False) -> Iterator[Finding]:
    """Yield what is wrong with a branch; with ``repair`` put right what can be without loss.

    Raises OSError when something cannot be read or removed.
    """
    yield from _check_tree(branch, repair=repair)
    yield from _check_orphans(branch, repair=repair)
    # Last: removing temporaries may have left entries without any other name.
    yield from _check_plinks(branch, repair=repair)


def _check_tree(branch: WritableBranch, *, repair: bool) -> Iterator[Finding]:
    pending: list[list[bytes]] = [[]]
    while pending:
        path = pending.pop()
        # Reached from the top each time: a deep tree must not cost a descriptor per level.
        directory = branch.open_directory(path)
        if not isinstance(directory, WritableDirectory):
            raise TypeError("a writable branch has writable directories")
        below: list[bytes] = []
        try:
            yield from _check_directory(directory, path, below, repair=repair)
        finally:
            directory.close()
        pending.extend([*path, name] for name in below)


def _check_directory(
    directory: WritableDirectory, path: list[bytes], below: list[bytes], *, repair: bool
) -> Iterator[Finding]:
    """Yield what is wrong in one directory; collect the names of the directories in it."""
    entries = {os.fsencode(e.name): e.is_dir(follow_symlinks=False) for e in directory.scan()}
    for name, is_directory in sorted(entries.items()):
        hidden = hidden_by(name)
        if name in (PLINK_DIRECTORY, ORPHAN_DIRECTORY) and not path:
            continue
        if name == OPAQUE_MARK or hidden is not None or (name == WHITEOUT_BASE and not path):
            status = directory.find(name)
            if status is not None and not stat.S_ISREG(status.st_mode):
                yield Finding("bad-whiteout", _join(path, name), "it is not a regular file")
            elif hidden in entries:
                if repair:
                    _resolve_pair(directory, hidden, is_directory=entries[hidden])
                yield Finding(
                    "whiteout-and-entry",
                    _join(path, hidden),
                    "the name and its whiteout stand side by side",
                    repair,
                )
        elif is_temporary(name):
            if repair:
                _remove_temporary(directory, name, is_directory=is_directory)
            yield Finding("temporary", _join(path, name), "left behind by a crash", repair)
        elif is_directory:
            below.append(name)


def _resolve_pair(directory: WritableDirectory, name: bytes, *, is_directory: bool) -> None:
    if is_directory:
        directory.set_opaque(name)
    directory.remove_whiteout(name)


def _remove_temporary(directory: WritableDirectory, name: bytes, *, is_directory: bool) -> None:
    if is_directory:
        directory.remove_tree(name)
        return
    status = directory.stat(name)
    if status.st_nlink > 1:
        _drop_unpublished_plink(directory.branch, status)
    directory.unlink(name)


def _drop_unpublished_plink(branch: WritableBranch, status: os.stat_result) -> None:
    """Remove the pseudo-link of a copy that no name was ever given to.

    It is made just before the copy gets its name.  Left alone it would turn the lower names to a
    copy that counts one name too few.
    """
    if status.st_nlink != 2:
        return
    for name, plinks in _entries(branch, PLINK_DIRECTORY):
        entry = plinks.stat(name)
        if (entry.st_dev, entry.st_ino) == (status.st_dev, status.st_ino):
            plinks.unlink(name)


def _check_orphans(branch: WritableBranch, *, repair: bool) -> Iterator[Finding]:
    for name, directory in _entries(branch, ORPHAN_DIRECTORY):
        if repair:
            _remove(directory, name)
        yield Finding("orphan", _join([ORPHAN_DIRECTORY], name), "nobody can reach it", repair)


def _check_plinks(branch: WritableBranch, *, repair: bool) -> Iterator[Finding]:
    for name, directory in _entries(branch, PLINK_DIRECTORY):
        status = directory.stat(name)
        own = _OWN_PLINK.fullmatch(name)
        if own is not None:
            # Useful as long as a lower name is to be served by it.
            if int(own[1]) > 0:
                continue
            detail, removable = "no name is left that it could serve", True
        elif _AUFS_PLINK.fullmatch(name) is not None and stat.S_ISREG(status.st_mode):
            # A kernel aufs that was not flushed.  With another link the content is safe there.
            removable = status.st_nlink > 1
            detail = "an entry of kernel aufs, which ended without a flush" + (
                ""
                if removable
                else "; it holds the only copy of a file: look at it, then remove it"
            )
        else:
            detail, removable = "it is no pseudo-link", False
        if removable and repair:
            directory.unlink(name)
        yield Finding("plink", _join([PLINK_DIRECTORY], name), detail, removable and repair)


def _entries(branch: WritableBranch, folder: bytes) -> Iterator[tuple[bytes, WritableDirectory]]:
    """Yield the names in one of the union's own folders, with the folder opened."""
    status = branch.root.find(folder)
    if status is None or not stat.S_ISDIR(status.st_mode):
        return
    directory = WritableDirectory(branch, branch.root.open_child(folder))
    try:
        for name in sorted(os.fsencode(entry.name) for entry in directory.scan()):
            yield name, directory
    finally:
        directory.close()


def _remove(directory: WritableDirectory, name: bytes) -> None:
    if stat.S_ISDIR(directory.stat(name).st_mode):
        directory.remove_tree(name)
    else:
        directory.unlink(name)


def _join(path: list[bytes], name: bytes) -> bytes:
    return b"/".join([*path, name])
