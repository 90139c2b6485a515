"""Why a name shows what it shows: every branch, and what became of its entry.

``lookup.py`` answers with the one object that is visible.  Somebody who wonders where a file came
from, or where it went, needs the other half: which branches have something of that name too, and
what hides it.  This module asks ``lookup.resolve`` what is visible, and only adds reasons to it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from unionfs.text import printable
from unionfs.union.lookup import lookup, resolve
from unionfs.union.nodes import DirectoryNode
from unionfs.union.state import check_name

if TYPE_CHECKING:
    from unionfs.branch import Directory
    from unionfs.union.core import Union
    from unionfs.union.lookup import Visible

_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


@dataclass(frozen=True, slots=True)
class Fate:
    """What one branch has of a name, and what becomes of it.

    state: "shown" (it answers), "merged" (a directory below the one that answers), "hidden",
        "whiteout" (it says that the name is gone), "absent".
    kind: what lies there, such as "file"; "" when nothing does.
    by: for "hidden", the index of the branch that hides it.
    reason: for "hidden", in words.
    """

    index: int
    state: str
    kind: str = ""
    by: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """All about one path of a union.

    kind: what is visible, "" when nothing is.
    branch: index of the branch that answers, None when nothing is visible.
    plink: the name lies on a lower branch, but its content is the copy that another name of the
        same file was copied up to ``branch`` by (aufs.md 6.5).
    error: symbol of the errno with which a lookup fails, "" when it succeeds.
    fates: one for each branch, top first.
    """

    path: bytes
    kind: str
    branch: int | None
    plink: bool
    error: str
    fates: tuple[Fate, ...]


@dataclass(frozen=True, slots=True)
class _Cause:
    """Something that keeps lower branches out of sight."""

    index: int
    reason: str


def explain(union: Union, path: bytes) -> Explanation:
    """Explain what is at ``path``, counted from the root of the union.

    Symbolic links on the way are not followed (ENOTDIR); ``..`` is EINVAL.  Never raises for what
    is or is not there, only OSError when a branch cannot be read.
    """
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    state = union.state
    node: DirectoryNode = union.root
    merged = [copy.branch.index for copy in node.copies]
    # Why a branch has no part in `node`, where the reason is not that it has nothing there.
    causes = {
        branch.index: _Cause(merged[-1], "the opaque mark at the top")
        for branch in union.branches
        if branch.index not in merged
    }
    fates: tuple[Fate, ...] = tuple(
        Fate(index, "merged" if position else "shown", "directory")
        for position, index in enumerate(merged)
    ) + tuple(
        Fate(index, "hidden", "directory", cause.index, cause.reason)
        for index, cause in causes.items()
    )
    for position, name in enumerate(names):
        try:
            fates = ()
            if name == b"..":
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            check_name(name)
            fates = _fates(union, node, name, causes, _shown(names[: position + 1]))
            entry = lookup(state, node, name)
        except OSError as error:
            symbol = errno.errorcode.get(error.errno or 0, "EIO")
            return Explanation(path, "", None, plink=False, error=symbol, fates=fates)
        shown = next(fate.index for fate in fates if fate.state == "shown")
        if isinstance(entry.node, DirectoryNode):
            for fate in fates:
                if fate.by is not None:
                    causes.setdefault(fate.index, _Cause(fate.by, fate.reason))
            node = entry.node
            continue
        if position < len(names) - 1:
            return Explanation(path, "", None, plink=False, error="ENOTDIR", fates=fates)
        here = entry.node.branch.index
        kind = _kind(entry.status)
        return Explanation(path, kind, here, plink=here != shown, error="", fates=fates)
    top = node.copies[0].branch.index
    return Explanation(path, "directory", top, plink=False, error="", fates=fates)


def _fates(
    union: Union, parent: DirectoryNode, name: bytes, causes: dict[int, _Cause], path: str
) -> tuple[Fate, ...]:
    """Return what becomes of ``name`` on each branch; raises OSError as a lookup does."""
    state = union.state
    try:
        visible = resolve(state, parent, name)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        visible = None  # a whiteout beside the real entry: show both, the caller has the error
    copies = {copy.branch.index: copy for copy in parent.copies}
    cause: _Cause | None = None
    fates: list[Fate] = []
    for branch in union.branches:
        copy = copies.get(branch.index)
        if copy is None:
            above = causes.get(branch.index)
            fates.append(
                Fate(branch.index, "absent")
                if above is None
                else Fate(branch.index, "hidden", "", above.index, above.reason)
            )
            continue
        directory = state.directories.get(parent, copy)
        fate, cause = _fate(directory, name, path, visible, cause)
        fates.append(fate)
    return tuple(fates)


def _fate(
    directory: Directory,
    name: bytes,
    path: str,
    visible: Visible | None,
    cause: _Cause | None,
) -> tuple[Fate, _Cause | None]:
    """Return the fate on the branch of ``directory``, and what hides the branches below it.

    path: the name with all above it, for the reasons.  cause: what hides this branch, if anything.
    """
    branch = directory.branch
    status = directory.find(name)
    whiteout = branch.whable and _has_whiteout(directory, name)
    if status is not None and directory.is_foreign_whiteout(name, status):
        status, whiteout = None, True
    shown = [] if visible is None else [b.index for b, _ in visible.found]
    index = branch.index
    kind = "" if status is None else _kind(status)
    if index in shown:
        fate = Fate(index, "shown" if index == shown[0] else "merged", kind)
    elif status is None:
        fate = Fate(index, "whiteout" if whiteout and cause is None else "absent")
    elif cause is not None:
        fate = Fate(index, "hidden", kind, cause.index, cause.reason)
    elif whiteout:
        fate = Fate(index, "hidden", kind, index, "the whiteout beside it")
    else:
        # Not in sight though nothing covers it: a file below a directory is skipped (aufs.md 3).
        fate = Fate(index, "hidden", kind, shown[0] if shown else None, f"the directory {path}")
    if cause is None:
        if whiteout:
            cause = _Cause(index, f"the whiteout of {path}")
        elif index in shown and kind != "directory":
            cause = _Cause(index, f"the {kind} {path}")
        elif index in shown and branch.whable and directory.is_opaque(name):
            cause = _Cause(index, f"the opaque directory {path}")
    return fate, cause


def _has_whiteout(directory: Directory, name: bytes) -> bool:
    try:
        return directory.hides(name)
    except OSError as error:
        if error.errno == errno.EIO:  # one of a wrong type, which lookup refuses
            return True
        raise


def _shown(names: Sequence[bytes]) -> str:
    return printable(b"/" + b"/".join(names))


def _kind(status: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(status.st_mode), "object")
