"""Removing: unlink and rmdir (aufs.md 6.2).

A whiteout is made only where it is needed: when the entry lies on a lower branch, or when another
of that name would show after it is gone. A directory can be removed when it is *logically* empty;
what is physically left in it, whiteouts mostly, goes away under a temporary name.
"""

from __future__ import annotations

import logging
from errno import EISDIR, ENOTDIR, ENOTEMPTY
from typing import TYPE_CHECKING

from unionfs.branch.forms import WHITEOUT_PREFIX
from unionfs.union.listing import is_empty
from unionfs.union.lookup import getattr_, node_of
from unionfs.union.names import Loss, file_at, find, hidden, needs_whiteout
from unionfs.union.nodes import DirectoryNode
from unionfs.union.operation import Job, Operation
from unionfs.union.state import State

if TYPE_CHECKING:
    import os

    from unionfs.branch import WritableDirectory

log = logging.getLogger(__name__)


def unlink(state: State, parent: DirectoryNode, name: bytes) -> Operation[None]:
    """Remove a name that is not a directory.

    Raises:
        OSError: ``ENOENT``, ``EISDIR``, ``EROFS``.
    """
    while True:
        visible = find(state, parent, name)
        if visible.is_directory:
            raise OSError(EISDIR, "a directory", name)
        target = state.target(visible.branch)
        node, status = file_at(state, parent, name, visible)
        if node.copying is None:
            break
        yield node.copying
    with Loss(state, parent, name, visible, node, status) as loss:
        needed = needs_whiteout(state, parent, name, visible, target)
        with hidden(state, parent, name, target, needed=needed):
            if visible.branch is target:
                state.writable_directory(parent, target).unlink(name)
        loss.account()


def rmdir(state: State, parent: DirectoryNode, name: bytes) -> None:
    """Remove a directory.

    Raises:
        OSError: ``ENOENT``, ``ENOTDIR``, ``ENOTEMPTY``, ``EROFS``.
    """
    visible = find(state, parent, name)
    if not visible.is_directory:
        raise OSError(ENOTDIR, "not a directory", name)
    target = state.target(visible.branch)
    node = node_of(state, parent, name, visible.found).node
    if not isinstance(node, DirectoryNode) or not is_empty(state, node):
        raise OSError(ENOTEMPTY, "the directory is not empty", name)
    last = getattr_(state, node).status
    victim = b""
    needed = needs_whiteout(state, parent, name, visible, target)
    with hidden(state, parent, name, target, needed=needed):
        if visible.branch is target:
            victim = set_aside(state.writable_directory(parent, target), name)
    if victim:
        discard(state, state.writable_directory(parent, target), victim)
    forget_directory(state, node, last)


def set_aside(directory: WritableDirectory, name: bytes) -> bytes:
    """Give a directory a temporary name, under which nobody sees it, and return that name."""
    temporary = directory.temporary(name)
    directory.rename(name, directory, temporary)
    return temporary


def discard(state: State, directory: WritableDirectory, victim: bytes) -> None:
    """Remove a directory that was set aside: at once, or in the background when it is full.

    The name is gone already, so a failure here is reported but fails nothing.
    """
    try:
        if _is_full(state, directory, victim):
            state.background.append(_removal(directory, victim))
        else:
            directory.remove_tree(victim)
    except OSError as error:
        log.warning("%s is left on %s: %s", victim, directory.branch, error)


def _is_full(state: State, directory: WritableDirectory, victim: bytes) -> bool:
    """Tell whether there is so much in a directory that nobody should wait for its removal."""
    limit = state.rules.background_above
    if limit is None or directory.branch.remote:
        return False
    own = directory.branch.directory_type(directory.branch, directory.open_child(victim))
    try:
        whiteouts = sum(entry.name.startswith(_PREFIX) for entry in own.scan())
    finally:
        own.close()
    return limit <= 1 or whiteouts > limit


_PREFIX = WHITEOUT_PREFIX.decode()


def _removal(directory: WritableDirectory, victim: bytes) -> Job:
    own = directory.duplicate()

    def remove() -> None:
        try:
            own.remove_tree(victim)
        except OSError as error:
            log.warning("%s is left on %s: %s", victim, own.branch, error)
        finally:
            own.close()

    return Job(remove)


def forget_directory(state: State, node: DirectoryNode, last: os.stat_result) -> None:
    """Account for a directory that has been removed; ``last`` are its attributes from before."""
    node.removed = True
    node.last = last
    state.nodes.lose_identity(node)
    for copy in node.copies:
        state.directories.close(copy)
        if copy.branch.writable:
            state.numbers.drop(copy.branch.index, *copy.identity)
    state.nodes.release(node)
