"""Rename (aufs.md 6.4).

Everything is brought to the writable branch first, then one rename there does it. The old name is
hidden before, if something of that name would show; the whiteout of the new name goes after.

A directory can be moved only if nothing of it would stay behind: its lower copies must contribute
nothing. Otherwise the answer is EXDEV, as between filesystems, and mv(1) copies.
"""

from __future__ import annotations

import contextlib
import logging
from errno import EEXIST, EINVAL, EISDIR, ENOTDIR, ENOTEMPTY, EXDEV
from typing import TYPE_CHECKING

from unionfs import syscalls
from unionfs.union.copyup import Place, copy_up, copy_up_directory
from unionfs.union.link import materialise
from unionfs.union.listing import is_empty, names_below
from unionfs.union.lookup import getattr_, node_of, resolve, visible_below
from unionfs.union.names import Loss, file_at, find, hidden
from unionfs.union.nodes import DirectoryNode, FileNode
from unionfs.union.operation import Operation
from unionfs.union.remove import discard, forget_directory, set_aside
from unionfs.union.state import State, check_new_name

if TYPE_CHECKING:
    from unionfs.branch import WritableBranch, WritableDirectory
    from unionfs.union.lookup import Visible
    from unionfs.union.operation import Latch


log = logging.getLogger(__name__)

Named = tuple[DirectoryNode, bytes]


def rename(
    state: State,
    parent: DirectoryNode,
    name: bytes,
    new_parent: DirectoryNode,
    new_name: bytes,
    flags: int = 0,
) -> Operation[None]:
    """Move ``name`` of ``parent`` to ``new_name`` of ``new_parent``.

    Args:
        flags: 0, ``RENAME_NOREPLACE`` or ``RENAME_EXCHANGE``.

    Raises:
        OSError: ``EXDEV`` for a directory that lower branches contribute to, ``ENOTEMPTY``,
            ``EEXIST``, ``EINVAL`` for flags that are not supported, and as rename(2).
    """
    if flags == syscalls.RENAME_EXCHANGE:
        yield from _exchange(state, (parent, name), (new_parent, new_name))
        return
    if flags & ~syscalls.RENAME_NOREPLACE:
        raise OSError(EINVAL, "rename flags that are not supported")
    while True:
        source = find(state, parent, name)
        check_new_name(new_parent, new_name)
        target = state.target(source.branch, new_parent.branch)
        wait = _must_wait(state, parent, name, source, new_parent, new_name)
        if wait is not None:
            yield wait
            continue
        old = resolve(state, new_parent, new_name)
        if old is not None:
            if flags & syscalls.RENAME_NOREPLACE:
                raise OSError(EEXIST, "the new name exists", new_name)
            _check_types(source, old, new_name)
        if source.is_directory:
            _move_directory(state, target, (parent, name), source, (new_parent, new_name), old)
            return
        node, _ = file_at(state, parent, name, source)
        if old is not None and node_of(state, new_parent, new_name, old.found).node is node:
            return  # two names of one file: POSIX wants nothing done
        if node.branch is not target:
            yield from copy_up(state, node, place=Place(parent, name))
            continue  # the data took its time: look at everything again
        if source.branch is not target:
            materialise(state, node, parent, name)
        copy_up_directory(state, new_parent, target)
        _move_file(state, target, node, (parent, name), (new_parent, new_name), old)
        return


def _exchange(state: State, one: Named, other: Named) -> Operation[None]:
    """Let two names change places; nothing is hidden or uncovered by it."""
    nodes: list[FileNode | DirectoryNode] = []
    for place in (one, other):
        find(state, *place)
    target = state.target(one[0].branch, other[0].branch)
    while len(nodes) < 2:
        nodes = []
        for (parent, name), (other_parent, other_name) in ((one, other), (other, one)):
            visible = find(state, parent, name)
            wait = _must_wait(state, parent, name, visible, other_parent, other_name)
            if wait is not None:
                yield wait
                break
            node = node_of(state, parent, name, visible.found).node
            if isinstance(node, DirectoryNode):
                _make_movable(state, node, target)
            elif node.branch is not target:
                yield from copy_up(state, node, place=Place(parent, name))
                break
            elif visible.branch is not target:
                materialise(state, node, parent, name)
            nodes.append(node)
    if nodes[0] is nodes[1]:
        return
    places = (one, other)
    with contextlib.ExitStack() as undo:
        for node, (parent, name), (other_parent, other_name) in zip(
            nodes, places, reversed(places), strict=True
        ):
            if not isinstance(node, DirectoryNode):
                continue
            directory = state.writable_directory(parent, target)
            covers = visible_below(state, other_parent, other_name, target)
            if covers and directory.set_opaque(name):
                undo.callback(directory.clear_opaque, name)
        here = state.writable_directory(one[0], target)
        there = state.writable_directory(other[0], target)
        here.exchange(one[1], there, other[1])
        undo.pop_all()
    for node, old_place, new_place in zip(nodes, places, reversed(places), strict=True):
        if isinstance(node, DirectoryNode):
            state.nodes.set_copies(node, [copy for copy in node.copies if copy.branch is target])
            state.nodes.place(node, *new_place)
        else:
            state.nodes.add_name(node, *new_place)
            state.nodes.drop_name(node, *old_place)


def _must_wait(
    state: State,
    parent: DirectoryNode,
    name: bytes,
    source: Visible,
    new_parent: DirectoryNode,
    new_name: bytes,
) -> Latch | None:
    """Return the latch of a copy-up that must end first, or None."""
    if source.is_directory:
        return next(iter(state.copying), None)
    node, _ = file_at(state, parent, name, source)
    if node.copying is not None:
        return node.copying
    old = resolve(state, new_parent, new_name)
    if old is not None and not old.is_directory:
        return file_at(state, new_parent, new_name, old)[0].copying
    return None


def _check_types(source: Visible, old: Visible, new_name: bytes) -> None:
    if source.is_directory and not old.is_directory:
        raise OSError(ENOTDIR, "a directory cannot replace a file", new_name)
    if old.is_directory and not source.is_directory:
        raise OSError(EISDIR, "a file cannot replace a directory", new_name)


def _move_file(
    state: State,
    target: WritableBranch,
    node: FileNode,
    old_place: Named,
    new_place: Named,
    old: Visible | None,
) -> None:
    (parent, name), (new_parent, new_name) = old_place, new_place
    with contextlib.ExitStack() as held:
        loss = None
        if old is not None:
            loss = held.enter_context(
                Loss(state, *new_place, old, *file_at(state, *new_place, old))
            )
        state.writable_directory(new_parent, target).adopt_whiteout(new_name)
        was_hidden = state.writable_directory(new_parent, target).hides(new_name)
        _move_entry(state, target, old_place, new_place, was_hidden, can_go_back=old is None)
        if loss is not None:
            loss.account()
    state.nodes.add_name(node, new_parent, new_name)
    state.nodes.drop_name(node, parent, name)


def _move_entry(
    state: State,
    target: WritableBranch,
    old_place: Named,
    new_place: Named,
    was_hidden: bool,
    *,
    can_go_back: bool,
) -> None:
    """Rename on the branch: hide the old name if need be, uncover the new one if it was hidden.

    Args:
        can_go_back: nothing is replaced by the entry.
    """
    (parent, name), (new_parent, new_name) = old_place, new_place
    needed = visible_below(state, parent, name, target)
    with hidden(state, parent, name, target, needed=needed):
        here = state.writable_directory(parent, target)
        there = state.writable_directory(new_parent, target)
        here.rename(name, there, new_name)
        if was_hidden:
            _uncover(here, name, there, new_name, can_go_back=can_go_back)


def _uncover(
    here: WritableDirectory,
    name: bytes,
    there: WritableDirectory,
    new_name: bytes,
    *,
    can_go_back: bool,
) -> None:
    """Remove the whiteout of a name that has an entry again.

    When that fails the entry must not stay beside it: it goes back to where it was.

    Args:
        can_go_back: nothing was replaced by the entry.
    """
    try:
        there.remove_whiteout(new_name)
    except OSError as error:
        if can_go_back:
            there.rename(new_name, here, name)
            raise
        log.warning("the whiteout of %s is left on %s: %s", new_name, there.branch, error)


def _make_movable(state: State, node: DirectoryNode, target: WritableBranch) -> None:
    """Bring a directory to a writable branch in such a way that it can be moved there.

    Raises:
        OSError: ``EXDEV`` when lower branches contribute to it, ``EIO`` when overlayfs has left its
            content under another name: that is not found from a new place.
    """
    copy = state.copy_on(node, target)
    if copy is None:
        if not is_empty(state, node):
            raise OSError(EXDEV, "the directory lies on a lower branch", node.name)
        copy_up_directory(state, node, target)
        return
    state.directories.get(node, copy)  # opening it finds that out
    if names_below(state, node, target):
        raise OSError(EXDEV, "lower branches contribute to the directory", node.name)


def _empty_directory(state: State, place: Named, visible: Visible) -> DirectoryNode:
    """Return a directory that may be replaced."""
    node = node_of(state, *place, visible.found).node
    if not isinstance(node, DirectoryNode):
        raise OSError(ENOTDIR, "not a directory any more", place[1])
    if not is_empty(state, node):
        raise OSError(ENOTEMPTY, "the new name is a directory that is not empty", place[1])
    return node


def _move_directory(
    state: State,
    target: WritableBranch,
    old_place: Named,
    source: Visible,
    new_place: Named,
    old: Visible | None,
) -> None:
    (parent, name), (new_parent, new_name) = old_place, new_place
    node = node_of(state, parent, name, source.found).node
    if not isinstance(node, DirectoryNode):
        raise OSError(ENOTDIR, "not a directory any more", name)
    replaced = None if old is None else _empty_directory(state, new_place, old)
    last = None if replaced is None else getattr_(state, replaced).status
    _make_movable(state, node, target)
    copy_up_directory(state, new_parent, target)
    there = state.writable_directory(new_parent, target)
    there.adopt_whiteout(new_name)
    was_hidden = there.hides(new_name)
    with contextlib.ExitStack() as undo:
        covers = visible_below(state, new_parent, new_name, target)
        if was_hidden or covers:
            here = state.writable_directory(parent, target)
            if here.set_opaque(name):
                undo.callback(here.clear_opaque, name)
        victim = b""
        there = state.writable_directory(new_parent, target)
        if old is not None and old.branch is target:
            # Were the daemon killed between the two renames, what lies below must not come back.
            if covers and there.whiteout(new_name):
                undo.callback(there.remove_whiteout, new_name)
                was_hidden = True
            victim = set_aside(there, new_name)
            undo.callback(there.rename, victim, there, new_name)
        _move_entry(state, target, old_place, new_place, was_hidden, can_go_back=True)
        undo.pop_all()
    if replaced is not None and last is not None:
        forget_directory(state, replaced, last)
    if victim:
        discard(state, there, victim)
    state.nodes.set_copies(node, [copy for copy in node.copies if copy.branch is target])
    state.nodes.place(node, new_parent, new_name)
