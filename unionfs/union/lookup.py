"""Lookup: which branch answers for a name.

The branches are asked from the top. The first entry found fixes what the name is. A file ends the
search. A directory goes on collecting the directories of that name below, for they are merged;
files below it are skipped. A whiteout ends the search, and so does an opaque mark in the directory
found (aufs.md 3).

This module is the one place that decides identity: lookup, listing and getattr all get their node
from :func:`node_of`.
"""

from __future__ import annotations

import os
import stat
from errno import EIO, ENOENT, ESTALE
from typing import TYPE_CHECKING

from unionfs.union.nodes import Copy, DirectoryNode, FileNode, identity_of
from unionfs.union.state import Entry, State, check_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unionfs.branch import Branch, Directory
    from unionfs.union.plink import PseudoLink


class Visible:
    """What a name shows.

    Attributes:
        found: (branch, attributes) of the object; of a directory all that are merged, top first.
    """

    __slots__ = ("found",)

    def __init__(self, found: list[tuple[Branch, os.stat_result]]) -> None:
        self.found = found

    @property
    def branch(self) -> Branch:
        """The branch that answers."""
        return self.found[0][0]

    @property
    def status(self) -> os.stat_result:
        """The attributes of the object that answers."""
        return self.found[0][1]

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.status.st_mode)


def resolve(
    state: State, parent: DirectoryNode, name: bytes, below: Branch | None = None
) -> Visible | None:
    """Find what ``name`` shows in a directory.

    Args:
        below: ask only the branches below this one.

    Returns:
        What is visible, or None.

    Raises:
        OSError: ``EIO`` for a whiteout of a wrong type, or beside a real entry (strict rules).
    """
    if parent.removed:
        return None
    rules = state.rules
    found: list[tuple[Branch, os.stat_result]] = []
    first = True
    for copy in parent.copies:
        branch = copy.branch
        if below is not None and branch.index <= below.index:
            continue
        directory = state.directories.get(parent, copy)
        if rules.strict and branch.whable and directory.hides(name):
            # The illegal pair (aufs.md 2.4): an error where the parent's top copy has it.
            if first and below is None and not rules.trusting and directory.find(name) is not None:
                raise OSError(EIO, "a whiteout stands beside the real entry", name)
            break
        first = False
        status = directory.find(name)
        if status is not None:
            if branch.foreign and directory.is_foreign_whiteout(name, status):
                break
            if stat.S_ISDIR(status.st_mode):
                found.append((branch, status))
                if branch.whable and directory.is_opaque(name):
                    break
            elif not found:
                return Visible([(branch, status)])
        if not rules.strict and branch.whable and directory.hides(name):
            break
    return Visible(found) if found else None


def visible_below(state: State, parent: DirectoryNode, name: bytes, branch: Branch) -> bool:
    """Tell whether something of that name would show if ``branch`` had nothing."""
    return resolve(state, parent, name, below=branch) is not None


def lookup(state: State, parent: DirectoryNode, name: bytes) -> Entry:
    """Answer a lookup.

    Raises:
        OSError: ``ENOENT``, or as :func:`resolve` and ``check_name``.
    """
    check_name(name)
    visible = resolve(state, parent, name)
    if visible is None:
        raise OSError(ENOENT, "no such file or directory", name)
    return node_of(state, parent, name, visible.found)


def node_of(
    state: State,
    parent: DirectoryNode,
    name: bytes,
    found: Sequence[tuple[Branch, os.stat_result]],
) -> Entry:
    """Return the node of what was found under a name, a new one if it is not known yet."""
    branch, status = found[0]
    if stat.S_ISDIR(status.st_mode):
        return _directory_node(state, parent, name, found)
    plink = None
    if state.plinks:
        copy = parent_copy(state, parent, branch)
        branch, status, plink = _follow(state, copy, name, branch, status)
    identity = identity_of(status)
    node = state.nodes.at(branch, identity)
    if isinstance(node, FileNode) and node.kind != stat.S_IFMT(status.st_mode):
        # The inode serves another file now: somebody works on the branch directly.
        state.nodes.lose_identity(node)
        node = None
    if not isinstance(node, FileNode):
        if node is not None:
            state.nodes.lose_identity(node)
        node = state.nodes.add_file(branch, status)
    if plink is not None:
        node.plink = plink
    state.nodes.add_name(node, parent, name)
    return Entry(node, status, nlink_of(node, status))


def parent_copy(state: State, parent: DirectoryNode, branch: Branch) -> Directory:
    """Return the directory on ``branch`` that is part of ``parent``."""
    copy = state.copy_on(parent, branch)
    if copy is None:
        raise OSError(ESTALE, "the directory has left the branch")
    return state.directories.get(parent, copy)


def _follow(
    state: State, directory: Directory, name: bytes, branch: Branch, status: os.stat_result
) -> tuple[Branch, os.stat_result, PseudoLink | None]:
    """Go from a lower hard link to the copy that answers for it, if it was copied up."""
    plinks = state.plinks
    while True:
        plink = plinks.above(directory, name, status.st_ino)
        if plink is None:
            return branch, status, plinks.of_copy(identity_of(status))
        if plink.upper is None:
            return branch, status, plink
        directory, name = plinks.directory(plink.branch), plink.entry
        copied = directory.find(name)
        if copied is None or identity_of(copied) != plink.upper:
            # Removed by somebody else: what is left is the lower file.
            plinks.forget(plink)
            return branch, status, None
        branch, status = plink.branch, copied


def nlink_of(node: FileNode, status: os.stat_result) -> int:
    """Return the link count that users see (see ``plink.py``)."""
    if node.unlinked:
        return 0
    plink = node.plink
    if plink is None:
        return status.st_nlink
    if plink.upper is None:
        return plink.remaining
    return max(status.st_nlink - 1, 0) + plink.remaining


def _directory_node(
    state: State,
    parent: DirectoryNode,
    name: bytes,
    found: Sequence[tuple[Branch, os.stat_result]],
) -> Entry:
    node: DirectoryNode | None = None
    for branch, status in found:
        known = state.nodes.at(branch, identity_of(status))
        if isinstance(known, DirectoryNode) and not known.removed:
            node = known
            break
        if known is not None:
            state.nodes.lose_identity(known)
    if node is not None and state.nodes.is_above(node, parent):
        # Somebody moved the directory into one below it, on the branch: it is another one now.
        state.nodes.lose_identity(node)
        node = None
    if node is None:
        copies = [Copy(branch, identity_of(status)) for branch, status in found]
        node = state.nodes.add_directory(parent, name, copies)
    elif node is not state.root:
        if len(node.copies) != len(found) or any(
            copy.identity != identity_of(status)
            for copy, (_, status) in zip(node.copies, found, strict=True)
        ):
            state.nodes.set_copies(
                node, [Copy(branch, identity_of(status)) for branch, status in found]
            )
        if node.parent is not parent or node.name != name:
            state.nodes.place(node, parent, name)
    return Entry(node, found[0][1], _directory_nlink([status for _, status in found]))


def _directory_nlink(statuses: Sequence[os.stat_result]) -> int:
    """Return the sum aufs shows: deliberately an over-count (aufs.md 4.3)."""
    total = statuses[0].st_nlink
    for status in statuses[1:]:
        total += status.st_nlink - 2 if status.st_nlink >= 2 else status.st_nlink
    return total


def getattr_(state: State, node: FileNode | DirectoryNode) -> Entry:
    """Return the present attributes of a node.

    Raises:
        OSError: ``ESTALE`` when the object is not where it was.
    """
    if node.last is not None:
        return Entry(node, node.last, 0)
    if isinstance(node, DirectoryNode):
        statuses = [state.directories.get(node, copy).status() for copy in node.copies]
        return Entry(node, statuses[0], _directory_nlink(statuses))
    if node.held >= 0:
        status = os.fstat(node.held)
        return Entry(node, status, nlink_of(node, status))
    _, _, status = locate(state, node)
    return Entry(node, status, nlink_of(node, status))


def locate(state: State, node: FileNode) -> tuple[Directory, bytes, os.stat_result]:
    """Return a directory and a name through which the node's object is reached now.

    Names that lead elsewhere by now are dropped on the way.

    Raises:
        OSError: ``ESTALE`` when none is left: the kernel looks the path up again then.
    """
    for parent, name in list(node.names):
        if parent.removed:
            state.nodes.drop_name(node, parent, name)
            continue
        copy = state.copy_on(parent, node.branch)
        if copy is not None:
            directory = state.directories.get(parent, copy)
            status = directory.find(name)
            if status is not None and identity_of(status) == node.identity:
                return directory, name, status
            if node.plink is None:
                state.nodes.drop_name(node, parent, name)
    # Not node.plink: where the copy lies on a lower branch, that may be a count kept above it.
    plink = state.plinks.of_copy(node.identity)
    if plink is not None:
        directory = state.plinks.directory(plink.branch)
        status = directory.find(plink.entry)
        if status is not None and identity_of(status) == node.identity:
            return directory, plink.entry, status
    raise OSError(ESTALE, "no name leads to the file any more")
