"""Creating: files, directories, symbolic links, special nodes (aufs.md 6.1).

The daemon creates an object as its own and then gives it to the caller. The branch's filesystem
has its say about the mode, for a default ACL of the parent may take permissions away, in place of
the caller's umask; but a set-user-id bit is added only once the owner is the right one. The
set-group-id bit of the parent hands its group down, and a sub-directory inherits the bit, as on any
filesystem.
"""

from __future__ import annotations

import os
import stat
from errno import EPERM
from typing import TYPE_CHECKING, Final

from unionfs.union.lookup import node_of
from unionfs.union.names import Claim, claim, undone_on_failure
from unionfs.union.state import Caller, Entry, State

if TYPE_CHECKING:
    from unionfs.union.nodes import DirectoryNode

_PLAIN_BITS: Final = 0o1777
_OWNER_BITS: Final = stat.S_ISUID | stat.S_ISGID


def create_file(
    state: State, parent: DirectoryNode, name: bytes, mode: int, caller: Caller
) -> tuple[Entry, int]:
    """Create a regular file and return it with a descriptor opened for reading and writing.

    Args:
        mode: permission bits, before the umask.
    """
    claimed = claim(state, parent, name)
    mode = _masked(state, claimed, mode, caller)
    fd = claimed.directory.create_file(name, mode & _PLAIN_BITS)
    try:
        with undone_on_failure(claimed):
            _give(state, claimed, caller, mode)
            claimed.done()
        return _finish(state, parent, claimed), fd
    except BaseException:
        os.close(fd)
        raise


def make_directory(
    state: State, parent: DirectoryNode, name: bytes, mode: int, caller: Caller
) -> Entry:
    """Create a directory. Where something of that name was removed before, it is opaque."""
    claimed = claim(state, parent, name)
    mode = _masked(state, claimed, mode, caller)
    directory = claimed.directory
    directory.make_directory(name, mode & _PLAIN_BITS)
    with undone_on_failure(claimed, directory=True):
        if claimed.was_hidden:
            directory.set_opaque(name)
        inherited = directory.status().st_mode & stat.S_ISGID
        _give(state, claimed, caller, mode | inherited)
        claimed.done()
    return _finish(state, parent, claimed)


def make_symlink(
    state: State, parent: DirectoryNode, name: bytes, text: bytes, caller: Caller
) -> Entry:
    """Create a symbolic link."""
    claimed = claim(state, parent, name)
    claimed.directory.make_symlink(name, text)
    with undone_on_failure(claimed):
        _give(state, claimed, caller, 0)
        claimed.done()
    return _finish(state, parent, claimed)


def make_node(
    state: State, parent: DirectoryNode, name: bytes, mode: int, device: int, caller: Caller
) -> Entry:
    """Create a regular file, fifo, socket or device node.

    Raises:
        OSError: ``EPERM`` for character device 0:0, which other union filesystems take for a
            whiteout: nobody inside may forge one.
    """
    kind = stat.S_IFMT(mode)
    if kind in (0, stat.S_IFREG):
        entry, fd = create_file(state, parent, name, mode, caller)
        os.close(fd)
        return entry
    if kind == stat.S_IFCHR and device == 0:
        raise OSError(EPERM, "a character device 0:0 is a whiteout elsewhere", name)
    claimed = claim(state, parent, name)
    mode = _masked(state, claimed, mode, caller)
    claimed.directory.make_node(name, kind | mode & _PLAIN_BITS, device)
    with undone_on_failure(claimed):
        _give(state, claimed, caller, mode)
        claimed.done()
    return _finish(state, parent, claimed)


def _masked(state: State, claimed: Claim, mode: int, caller: Caller) -> int:
    """Apply the umask, but in a directory with a default ACL: there the ACL counts instead."""
    if not mode & caller.umask or (state.rules.acl and claimed.directory.has_default_acl()):
        return mode
    return mode & ~caller.umask


def _give(state: State, claimed: Claim, caller: Caller, mode: int) -> None:
    """Hand a new object to its owner, then add the bits that only its owner may hold."""
    parent = claimed.directory.status()
    made = claimed.directory.stat(claimed.name)
    group = parent.st_gid if parent.st_mode & stat.S_ISGID else caller.gid
    owned = True
    if (made.st_uid, made.st_gid) != (caller.uid, group):
        with claimed.directory.pinned(claimed.name) as place:
            owned = state.set_owner(place, caller.uid, group)
    # On a file these would be the rights of whoever owns it now instead.
    special = mode & _OWNER_BITS if owned or stat.S_ISDIR(made.st_mode) else 0
    if special and made.st_mode & _OWNER_BITS != special:
        claimed.directory.set_mode(claimed.name, stat.S_IMODE(made.st_mode) | special)


def _finish(state: State, parent: DirectoryNode, claimed: Claim) -> Entry:
    status = claimed.directory.stat(claimed.name)
    # A file that lay at this inode before may have left the number it was copied up with.
    branch = claimed.directory.branch
    state.numbers.drop(branch.index, status.st_dev, status.st_ino)
    return node_of(state, parent, claimed.name, [(branch, status)])
