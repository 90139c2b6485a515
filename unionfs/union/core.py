"""The union as a whole: every operation a filesystem offers, without FUSE.

The methods here only find the nodes and count what the kernel remembers; the semantics live in the
modules beside this one, a folder to be read in this order: ``lookup``, ``listing``, ``copyup``,
``names`` (claiming and hiding), ``create``, ``remove``, ``link``, ``rename``, ``attributes``,
``files``, ``plink``.

Methods that return an :data:`Operation` are generators that may hand out jobs (see
``operation.py``); :func:`run_now` drives them in place. All others answer at once. Every failure is
an ``OSError`` whose errno is the answer to the caller.
"""

from __future__ import annotations

import os
from errno import EISDIR, ENOTDIR, EPERM, ESTALE
from typing import TYPE_CHECKING

from unionfs.branch.forms import NAME_LIMIT
from unionfs.union import attributes, create, files, lookup, remove
from unionfs.union import link as links
from unionfs.union import rename as renames
from unionfs.union.attributes import Change
from unionfs.union.files import FileHandle
from unionfs.union.listing import DirectoryStream, entry_of, is_too_long
from unionfs.union.nodes import DirectoryNode, FileNode
from unionfs.union.operation import Job, Latch, Operation, run_now
from unionfs.union.state import Caller, Entry, Rules, State, check_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from unionfs.branch import Branch
    from unionfs.union.listing import Listed

Node = FileNode | DirectoryNode


class Union:
    """A union of branches.

    Args:
        branches: top first; closed by :meth:`close`.
        rules: how to decide where people differ.
    """

    def __init__(self, branches: Sequence[Branch], rules: Rules | None = None) -> None:
        self.state = State(branches, rules or Rules())

    @property
    def branches(self) -> list[Branch]:
        """The branches, top first."""
        return self.state.branches

    @property
    def root(self) -> DirectoryNode:
        """The root directory."""
        return self.state.root

    def prepare(self) -> None:
        """Make the writable branch ready, the first thing that is written; once, before use.

        Raises:
            OSError: something of a wrong type has one of the names that are needed there.
        """
        if self.state.writable is not None:
            self.state.writable.prepare(plink=self.state.rules.plink)

    def cancel(self) -> None:
        """Give up the copy-ups that are running: nobody waits for them any more."""
        self.state.cancelled = True

    def relinquish(self) -> Operation[None]:
        """Change nothing on the branches any more, so that another union may (``EROFS``).

        What is open for writing and lies on a writable branch can still be written.
        """
        return self.state.relinquish()

    def close(self) -> None:
        """Give all descriptors back; the union cannot be used afterwards."""
        self.cancel()
        self.state.close()

    def take_background(self) -> list[Job]:
        """Return the work that may be done in the background, and that unmounting waits for."""
        jobs, self.state.background = self.state.background, []
        return jobs

    def take_stale(self) -> set[int]:
        """Return the numbers of nodes whose attributes changed as a side effect."""
        stale, self.state.stale = self.state.stale, set()
        return stale

    # nodes

    def node(self, number: int) -> Node:
        """Return the node with this number; ``ESTALE`` when there is none."""
        node = self.state.nodes.get(number)
        if node is None:
            raise OSError(ESTALE, "unknown node")
        return node

    def directory(self, number: int) -> DirectoryNode:
        """Return the directory with this number; ``ENOTDIR`` for another type."""
        node = self.node(number)
        if not isinstance(node, DirectoryNode):
            raise OSError(ENOTDIR, "not a directory")
        return node

    def file(self, number: int) -> FileNode:
        """Return the file of any type with this number; ``EISDIR`` for a directory."""
        node = self.node(number)
        if not isinstance(node, FileNode):
            raise OSError(EISDIR, "a directory")
        return node

    def remember(self, entry: Entry) -> Entry:
        """Count that the kernel has been told of a node."""
        entry.node.lookups += 1
        return entry

    def forget(self, number: int, count: int = 1) -> None:
        """The kernel has forgotten a node ``count`` times."""
        self.state.nodes.forget(number, count)

    def drop_unused(self, entry: Entry) -> None:
        """Let a node go that was made for an answer and then not needed."""
        self.state.nodes.release(entry.node)

    # looking

    def lookup(self, parent: DirectoryNode, name: bytes) -> Entry:
        """Find a name; ``.`` and ``..`` are understood. Counts as remembered by the kernel."""
        if name == b".":
            return self.remember(self.getattr(parent))
        if name == b"..":
            return self.remember(self.getattr(parent.parent))
        return self.remember(lookup.lookup(self.state, parent, name))

    def getattr(self, node: Node) -> Entry:
        """Return the present attributes of a node."""
        return lookup.getattr_(self.state, node)

    def owner_of(self, entry: Entry) -> tuple[int, int]:
        """Return owner and group as stored, ``NO_ID`` in place of one that has no id here."""
        return attributes.owner_of(self.state, entry.node, entry.status)

    def readlink(self, node: FileNode) -> bytes:
        """Return the text of a symbolic link."""
        if node.pin >= 0:
            return os.readlink(b"", dir_fd=node.pin)
        directory, name, _ = lookup.locate(self.state, node)
        return directory.readlink(name)

    def statfs(self) -> os.statvfs_result:
        """Return the space of the top branch (``nosum``); names are at most 242 bytes."""
        status = os.fstatvfs(self.state.branches[0].root.fd)
        fields = list(status)
        fields[9] = min(status.f_namemax, NAME_LIMIT)
        return os.statvfs_result(fields)

    def open_directory(self, node: DirectoryNode) -> DirectoryStream:
        """Open a directory for listing."""
        node.handles += 1
        return DirectoryStream(node)

    def read_directory(
        self, stream: DirectoryStream, start: int
    ) -> Iterator[tuple[int, bytes, Listed]]:
        """Yield (offset, name, item) after ``start``; :meth:`listed` turns items to nodes."""
        return stream.read(self.state, start)

    def listed(self, stream: DirectoryStream, name: bytes, item: Listed) -> Entry | None:
        """Return the node of a listed name, None when it is gone; not counted as remembered."""
        return entry_of(self.state, stream.node, name, item, stream.changes)

    def phantom_number(self, item: Listed) -> int:
        """Return the number of a listed name that is too long to be looked up."""
        return self.state.numbers.computed(item.copies[0].identity[0], item.inode)

    def close_directory(self, stream: DirectoryStream) -> None:
        """Close a directory."""
        stream.node.handles -= 1
        self.state.nodes.release(stream.node)

    def sync_directory(self, node: DirectoryNode) -> Operation[None]:
        """Bring the writable copy of a directory to disk."""
        copy = self.state.copy_on(node, self.state.writable) if self.state.writable else None
        if copy is not None and not node.removed:
            directory = self.state.directories.writable(node, copy)
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd)

            def work() -> None:
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

            yield Job(work)

    def list_xattrs(self, node: Node, *, privileged: bool = True) -> list[bytes]:
        """List extended attributes; see ``attributes.py``."""
        return attributes.list_xattrs(self.state, node, privileged=privileged)

    def get_xattr(self, node: Node, key: bytes) -> bytes:
        """Read an extended attribute."""
        return attributes.get_xattr(self.state, node, key)

    # changing

    def create(
        self, parent: DirectoryNode, name: bytes, mode: int, flags: int, caller: Caller
    ) -> Operation[tuple[Entry, FileHandle]]:
        """Create a file and open it; open it if it exists and ``O_EXCL`` is not given."""
        check_name(name)
        if not flags & os.O_EXCL and lookup.resolve(self.state, parent, name) is not None:
            entry = lookup.lookup(self.state, parent, name)
            try:
                if not isinstance(entry.node, FileNode):
                    raise OSError(EISDIR, "a directory", name)
                handle = yield from files.open_file(
                    self.state, entry.node, flags, privileged=caller.uid == 0
                )
            except BaseException:
                self.drop_unused(entry)
                raise
            return self.remember(self.getattr(entry.node)), handle
        entry, fd = create.create_file(self.state, parent, name, mode, caller)
        if not isinstance(entry.node, FileNode):
            os.close(fd)
            raise OSError(EISDIR, "a directory", name)
        return self.remember(entry), files.opened(entry.node, fd, flags)

    def mkdir(self, parent: DirectoryNode, name: bytes, mode: int, caller: Caller) -> Entry:
        """Create a directory."""
        return self.remember(create.make_directory(self.state, parent, name, mode, caller))

    def mknod(
        self, parent: DirectoryNode, name: bytes, mode: int, device: int, caller: Caller
    ) -> Entry:
        """Create a file, fifo, socket or device node."""
        return self.remember(create.make_node(self.state, parent, name, mode, device, caller))

    def symlink(self, parent: DirectoryNode, name: bytes, text: bytes, caller: Caller) -> Entry:
        """Create a symbolic link."""
        return self.remember(create.make_symlink(self.state, parent, name, text, caller))

    def unlink(self, parent: DirectoryNode, name: bytes) -> Operation[None]:
        """Remove a name that is not a directory."""
        return remove.unlink(self.state, parent, name)

    def rmdir(self, parent: DirectoryNode, name: bytes) -> None:
        """Remove a directory that is logically empty."""
        remove.rmdir(self.state, parent, name)

    def rename(
        self,
        parent: DirectoryNode,
        name: bytes,
        new_parent: DirectoryNode,
        new_name: bytes,
        flags: int = 0,
    ) -> Operation[None]:
        """Move a name."""
        return renames.rename(self.state, parent, name, new_parent, new_name, flags)

    def link(self, node: Node, parent: DirectoryNode, name: bytes) -> Operation[Entry]:
        """Give a file one more name."""
        if not isinstance(node, FileNode):
            raise OSError(EPERM, "directories cannot be linked", name)
        return self.remember((yield from links.link(self.state, node, parent, name)))

    def setattr(self, node: Node, change: Change) -> Operation[Entry]:
        """Change attributes."""
        return attributes.setattr_(self.state, node, change)

    def set_xattr(self, node: Node, key: bytes, value: bytes) -> Operation[None]:
        """Set an extended attribute."""
        return attributes.set_xattr(self.state, node, key, value)

    def remove_xattr(self, node: Node, key: bytes) -> Operation[None]:
        """Remove an extended attribute."""
        return attributes.remove_xattr(self.state, node, key)

    # open files

    def open(self, node: FileNode, flags: int, *, privileged: bool = True) -> Operation[FileHandle]:
        """Open a file."""
        return files.open_file(self.state, node, flags, privileged=privileged)

    def read(self, handle: FileHandle, offset: int, size: int) -> bytes | bytearray | Job:
        """Read; a job is returned where the disk must be waited for."""
        return files.read(handle, offset, size)

    def write(self, handle: FileHandle, offset: int, data: bytes) -> Operation[int]:
        """Write."""
        return files.write(self.state, handle, offset, data)

    def sync(self, handle: FileHandle, *, data_only: bool = False) -> Operation[None]:
        """Bring a file to disk."""
        return files.sync(handle, data_only=data_only)

    def flush(self, handle: FileHandle) -> Operation[None]:
        """One descriptor of a file was closed; errors of a network branch show up here."""
        return files.flush(handle)

    def release(self, handle: FileHandle) -> None:
        """Close a file."""
        files.release(self.state, handle)


__all__ = [
    "Caller",
    "Change",
    "DirectoryNode",
    "DirectoryStream",
    "Entry",
    "FileHandle",
    "FileNode",
    "Job",
    "Latch",
    "Node",
    "Operation",
    "Rules",
    "Union",
    "is_too_long",
    "run_now",
]
