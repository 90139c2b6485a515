"""Claiming and hiding names: the two steps that every change of a directory goes through.

*Claim*: whoever makes an entry takes the name first. A whiteout that hid the name goes away, and
only after the new entry exists, so the old lower entry never shows in between.

*Hide*: whoever takes an entry away makes the whiteout first, if something of that name would show
otherwise, and removes the entry after it.

Files that come back from the dead, the classic fault of union filesystems, come from skipping one
of the two in one call. (Specification: aufs.md 6, 6.1, 6.2.)
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from errno import EEXIST, ENOENT
from typing import TYPE_CHECKING, Self

from unionfs.union.copyup import copy_up_directory
from unionfs.union.lookup import (
    locate,
    node_of,
    parent_copy,
    resolve,
    visible_below,
)
from unionfs.union.nodes import FileNode
from unionfs.union.plink import tag_of, tag_of_open
from unionfs.union.state import State, check_new_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.branch import Branch, WritableBranch, WritableDirectory
    from unionfs.union.lookup import Visible
    from unionfs.union.nodes import DirectoryNode

log = logging.getLogger(__name__)


class Claim:
    """A name that is free to be used.

    Attributes:
        directory: the directory on the writable branch in which the entry is made.
        name: the name.
        was_hidden: whether a whiteout stands for the name on that branch.
    """

    __slots__ = ("directory", "name", "was_hidden")

    def __init__(self, directory: WritableDirectory, name: bytes, was_hidden: bool) -> None:
        self.directory = directory
        self.name = name
        self.was_hidden = was_hidden

    def done(self) -> None:
        """The entry exists: the whiteout may go."""
        if self.was_hidden:
            self.directory.remove_whiteout(self.name)


def claim(state: State, parent: DirectoryNode, name: bytes, *also: Branch) -> Claim:
    """Take a name for a new entry.

    Args:
        also: the branch of what else changes by it, as for ``State.target``.

    Raises:
        OSError: ``EEXIST`` when something shows under it, ``EROFS`` without a branch to make it on,
            ``EPERM`` and ``ENAMETOOLONG`` for names that cannot be.
    """
    check_new_name(parent, name)
    if resolve(state, parent, name) is not None:
        raise OSError(EEXIST, "the name exists", name)
    target = state.target(parent.branch, *also)
    copy_up_directory(state, parent, target)
    directory = state.writable_directory(parent, target)
    directory.adopt_whiteout(name)
    return Claim(directory, name, directory.hides(name))


@contextlib.contextmanager
def undone_on_failure(claimed: Claim, *, directory: bool = False) -> Iterator[None]:
    """Remove the half-made entry again when dressing it fails."""
    try:
        yield
    except BaseException:
        remove = claimed.directory.remove_tree if directory else claimed.directory.unlink
        try:
            remove(claimed.name)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("%s is left on %s: %s", claimed.name, claimed.directory.branch, error)
        raise


def find(state: State, parent: DirectoryNode, name: bytes) -> Visible:
    """Return what shows under a name that is about to be removed or moved.

    Raises:
        OSError: ``ENOENT``, or as lookup.
    """
    check_new_name(parent, name)
    visible = resolve(state, parent, name)
    if visible is None:
        raise OSError(ENOENT, "no such file or directory", name)
    return visible


def needs_whiteout(
    state: State, parent: DirectoryNode, name: bytes, visible: Visible, target: WritableBranch
) -> bool:
    """Tell whether the name must be hidden: taking the upper entry away would show another."""
    return visible.branch is not target or visible_below(state, parent, name, target)


@contextlib.contextmanager
def hidden(
    state: State, parent: DirectoryNode, name: bytes, target: WritableBranch, *, needed: bool
) -> Iterator[None]:
    """Make the whiteout of a name, then do what the caller does; undo it when that fails."""
    made = False
    if needed:
        copy_up_directory(state, parent, target)
        made = state.writable_directory(parent, target).whiteout(name)
    try:
        yield
    except BaseException:
        if made:
            state.writable_directory(parent, target).remove_whiteout(name)
        raise


def file_at(
    state: State, parent: DirectoryNode, name: bytes, visible: Visible
) -> tuple[FileNode, os.stat_result]:
    """Return the node and attributes of a file whose name is about to be removed or moved.

    Raises:
        OSError: ``EROFS`` when a pseudo-link leads from the name to a copy that cannot be changed.
    """
    entry = node_of(state, parent, name, visible.found)
    if not isinstance(entry.node, FileNode):
        raise OSError(ENOENT, "not a file any more", name)
    state.target(entry.node.branch)
    return entry.node, entry.status


class Loss:
    """A name that a file is about to lose, and what can be learned only while it is there.

    A context manager, around the loss and :meth:`account`.

    Args:
        visible: what the name shows.
        node, status: the file, and its attributes.
    """

    __slots__ = ("_name", "_node", "_on_lower", "_parent", "_pin", "_state", "_status", "_tag")

    def __init__(
        self,
        state: State,
        parent: DirectoryNode,
        name: bytes,
        visible: Visible,
        node: FileNode,
        status: os.stat_result,
    ) -> None:
        self._state = state
        self._parent = parent
        self._name = name
        self._node = node
        self._status = status
        self._on_lower = not visible.branch.writable
        self._tag = _lower_tag(state, node, status)
        self._pin = _pin(state, parent, name, visible, node)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pin >= 0:
            os.close(self._pin)

    def account(self) -> None:
        """Account for the loss once it has happened."""
        state, node = self._state, self._node
        left = _links_left(state, node, self._status, on_lower=self._on_lower, tag=self._tag)
        state.nodes.drop_name(node, self._parent, self._name)
        if self._pin >= 0 and node.lookups > 0:
            node.pin, self._pin = self._pin, node.pin
        if left > 0:
            return
        node.unlinked = True
        changeable = stat.S_ISREG(self._status.st_mode) or node.branch.writable
        if node.held < 0 or not changeable:
            node.last = self._status
        state.nodes.lose_identity(node)
        if node.branch.writable:
            state.numbers.drop(node.branch.index, *node.identity)
        state.nodes.release(node)


def _pin(
    state: State,
    parent: DirectoryNode,
    name: bytes,
    visible: Visible,
    node: FileNode,
) -> int:
    """Return a descriptor of a file that loses the last name known; -1 if not needed or not had.

    The kernel may have looked the name up for another request, and that one comes after the loss.
    """
    if node.fd >= 0 or any(known != (parent, name) for known in node.names):
        return -1
    try:
        if node.plink is None:
            return parent_copy(state, parent, visible.branch).pin(name)
        directory, entry, _ = locate(state, node)
        return directory.pin(entry)
    except OSError:
        return -1  # the name can go all the same


def _lower_tag(state: State, node: FileNode, status: os.stat_result) -> bytes:
    """Return what tells the lower file from others (see ``plink.py``); empty if not needed."""
    plink = node.plink
    if node.branch.writable or not state.rules.plink:
        return b""
    if plink is not None:
        return plink.tag
    if status.st_nlink < 2:
        return b""
    if node.fd >= 0:
        return tag_of_open(node.branch, node.fd)
    directory, entry, _ = locate(state, node)
    return tag_of(directory, entry)


def _links_left(
    state: State, node: FileNode, status: os.stat_result, *, on_lower: bool, tag: bytes
) -> int:
    """Update the pseudo-link record and return how many links users see now."""
    target = state.target(node.branch)
    plink = node.plink
    if plink is None:
        left = status.st_nlink - 1
        if on_lower and left > 0 and tag:
            node.plink = state.plinks.add_count(target, node.number, (status.st_ino, tag), left)
        return left
    if plink.upper is None:
        if not on_lower:
            return plink.remaining
        if plink.branch is not target:
            left = plink.remaining - 1
            state.plinks.forget(plink)
            node.plink = None
            if left > 0:
                node.plink = state.plinks.add_count(
                    target, node.number, (plink.inode, plink.tag), left
                )
            return left
        if state.plinks.set_remaining(plink, plink.remaining - 1):
            return plink.remaining
        node.plink = None
        return 0
    upper_links = status.st_nlink - 1
    if not on_lower:
        upper_links -= 1
        if upper_links + plink.remaining <= 0:
            state.plinks.drop(plink)
            node.plink = None
            return 0
        return upper_links + plink.remaining
    if plink.branch is not target:
        # The copy lies on a read-only branch: the count starts anew on the writable one.
        left = upper_links + plink.remaining - 1
        if left > 0:
            directory = state.plinks.directory(plink.branch)
            source = (status.st_ino, tag_of(directory, plink.entry))
            node.plink = state.plinks.add_count(target, node.number, source, left)
        return left
    if not state.plinks.set_remaining(plink, plink.remaining - 1):
        node.plink = None
        return upper_links
    return upper_links + plink.remaining
