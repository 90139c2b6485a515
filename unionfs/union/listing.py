"""Listing: the merged content of a directory, each name once.

The branches are read from the top, each in its own order. A name is listed when no upper branch has
listed it and none has a whiteout of it (aufs.md 4.1). The list is a snapshot made when an open
directory is read from its start.

Offsets stay valid for as long as the directory is open: a name keeps its offset over every
snapshot, new names get new ones behind. So a program may list half, see names come and go, seek
back to an old place or rewind, and meets no name twice and misses none that was there all the time.

A snapshot says on which branch each name was, which saves a lookup. Once the directory has changed
that is not believed any more: the file may have been removed or copied up meanwhile, and the lower
one must not come back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from errno import ENOENT, ESTALE
from typing import TYPE_CHECKING

from unionfs.branch.forms import NAME_LIMIT, WHITEOUT_PREFIX, hidden_by
from unionfs.union.lookup import node_of, resolve
from unionfs.union.state import Entry, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.branch import Branch, Directory
    from unionfs.union.nodes import Copy, DirectoryNode


class Listed:
    """A name in a merged directory.

    Attributes:
        directory: True when it is a directory.
        inode: the inode on the first branch.
        copies: the parent's copies that have the name; more than one only for a directory.
    """

    __slots__ = ("copies", "directory", "inode")

    def __init__(self, directory: bool, inode: int, copy: Copy) -> None:
        self.directory = directory
        self.inode = inode
        self.copies = [copy]


def merge(state: State, node: DirectoryNode, *, quietly: bool = False) -> dict[bytes, Listed]:
    """Return what a directory shows, in the order in which it is listed.

    Args:
        quietly: leave no trace in times of access.
    """
    listed: dict[bytes, Listed] = {}
    hidden: set[bytes] = set()
    if node.removed:
        return listed
    strict = state.rules.strict
    for copy in node.copies:
        whable = copy.branch.whable
        whiteouts: set[bytes] = set()
        entries: list[tuple[bytes, bool, int]] = []
        directory = state.directories.get(node, copy)
        foreign = ForeignWhiteouts(directory) if copy.branch.foreign else None
        for entry in directory.scan(quietly=quietly):
            name = os.fsencode(entry.name)
            if name.startswith(WHITEOUT_PREFIX):
                if whable:
                    gone = hidden_by(name)
                    if gone is not None:
                        whiteouts.add(gone)
                if name != WHITEOUT_PREFIX:
                    continue
            if foreign is not None and foreign.has(name, entry):
                whiteouts.add(name)
                continue
            entries.append((name, entry.is_dir(follow_symlinks=False), entry.inode()))
        if strict:
            hidden |= whiteouts
        for name, is_directory, inode in entries:
            if name in hidden:
                continue
            known = listed.get(name)
            if known is None:
                listed[name] = Listed(is_directory, inode, copy)
            elif is_directory and known.directory:
                known.copies.append(copy)
        hidden |= whiteouts
    return listed


class ForeignWhiteouts:
    """Recognises whiteouts of foreign forms while a directory is scanned."""

    __slots__ = ("_by_attribute", "_directory")

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._by_attribute = directory.has_xattr_whiteouts()

    def has(self, name: bytes, entry: os.DirEntry[str]) -> bool:
        """Tell whether an entry is one; most are ruled out by their type."""
        if entry.is_dir(follow_symlinks=False) or entry.is_symlink():
            return False
        if entry.is_file(follow_symlinks=False) and not self._by_attribute:
            return False
        status = self._directory.find(name)
        return status is not None and self._directory.is_foreign_whiteout(name, status)


def names_below(state: State, node: DirectoryNode, branch: Branch) -> set[bytes]:
    """Return the names that lower branches contribute to a directory.

    A name counts although ``branch`` or one above has an entry of that name; it does not count
    when a whiteout hides it (the rule for renaming directories, aufs.md 6.4).
    """
    names: set[bytes] = set()
    hidden: set[bytes] = set()
    if all(copy.branch.index <= branch.index for copy in node.copies):
        return names
    for copy in node.copies:
        whiteouts = set()
        directory = state.directories.get(node, copy)
        foreign = ForeignWhiteouts(directory) if copy.branch.foreign else None
        for entry in directory.scan(quietly=True):
            name = os.fsencode(entry.name)
            if name.startswith(WHITEOUT_PREFIX):
                gone = hidden_by(name)
                if copy.branch.whable and gone is not None:
                    whiteouts.add(gone)
            elif foreign is not None and foreign.has(name, entry):
                whiteouts.add(name)
            elif copy.branch.index > branch.index and name not in hidden:
                names.add(name)
        hidden |= whiteouts
    return names


def is_empty(state: State, node: DirectoryNode) -> bool:
    """Tell whether nothing shows in a directory, whatever its branches hold."""
    return not merge(state, node, quietly=True)


@dataclass(slots=True)
class DirectoryStream:
    """An open directory.

    Attributes:
        node: the directory.
        offsets: the offset of each name ever listed through this handle.
        names: the present snapshot, by ascending offset.
        changes: the directory's count of changes at the time of the snapshot.
    """

    node: DirectoryNode
    offsets: dict[bytes, int] = field(default_factory=dict)
    names: list[tuple[int, bytes, Listed]] = field(default_factory=list)
    loaded: bool = False
    changes: int = 0

    def load(self, state: State) -> None:
        """Take a new snapshot."""
        listed = merge(state, self.node)
        following = len(self.offsets)
        for name in listed:
            if name not in self.offsets:
                following += 1
                self.offsets[name] = following
        self.names = sorted(
            ((self.offsets[name], name, item) for name, item in listed.items()),
            key=lambda entry: entry[0],
        )
        self.loaded = True
        self.changes = self.node.changes

    def read(self, state: State, start: int) -> Iterator[tuple[int, bytes, Listed]]:
        """Yield (offset, name, entry) of what follows the offset ``start``; 0 is the beginning."""
        if start == 0 or not self.loaded:
            self.load(state)
        low, high = 0, len(self.names)
        while low < high:
            middle = (low + high) // 2
            if self.names[middle][0] <= start:
                low = middle + 1
            else:
                high = middle
        for position in range(low, len(self.names)):
            yield self.names[position]


def entry_of(
    state: State, parent: DirectoryNode, name: bytes, item: Listed, changes: int | None = None
) -> Entry | None:
    """Return node and attributes of a listed name, or None when it has gone meanwhile.

    Args:
        changes: the directory's count of changes at the time of the listing; None for just now.
    """
    try:
        if changes is not None and changes != parent.changes:
            visible = resolve(state, parent, name)
            return None if visible is None else node_of(state, parent, name, visible.found)
        found: list[tuple[Branch, os.stat_result]] = []
        for copy in item.copies:
            directory = state.directories.get(parent, copy)
            status = directory.find(name)
            if status is None:
                if not found:
                    return None
                continue
            found.append((copy.branch, status))
            if not item.directory:
                break
            if copy is not item.copies[-1] and copy.branch.whable and directory.is_opaque(name):
                break
        return node_of(state, parent, name, found)
    except OSError as error:
        if error.errno in (ENOENT, ESTALE):
            return None
        raise


def is_too_long(name: bytes) -> bool:
    """Tell whether a listed name can be looked up (aufs.md 4.1: listed, never found)."""
    return len(name) > NAME_LIMIT
