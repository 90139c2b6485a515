"""Nodes: what the kernel holds on to, one for each file and one for each merged directory.

A node is an identity, not a path. A file is the one inode that answers for it on one branch,
however many names lead there: two nodes for one file would give the kernel two page caches for it,
and that is how databases are corrupted. But one inode that lies on two branches is two files:
storage that saves space by hard links makes such layers, and a change of one must not show in the
other. A directory is all the directories of one name that are merged.

Lifetime: a node lives while the kernel remembers it (``lookups``), while it is open (``handles``)
or while a living node names it as its parent (``children``). Then it is gone, and memory with it.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unionfs.branch import Branch
    from unionfs.union.numbers import InodeNumbers
    from unionfs.union.operation import Latch
    from unionfs.union.plink import PseudoLink

Identity = tuple[int, int]  # (st_dev, st_ino) on a branch


def identity_of(status: os.stat_result) -> Identity:
    """Return the identity of the object that has these attributes."""
    return (status.st_dev, status.st_ino)


def reopen(fd: int, flags: int) -> int:
    """Open once more what a descriptor leads to, even if it has no name."""
    return os.open(b"/proc/self/fd/%d" % fd, flags | os.O_CLOEXEC)


class Node:
    """What files and directories have in common.

    Attributes:
        number: the inode number, and the name the kernel knows the node by.
        lookups: how often the kernel has been told of it and has not forgotten yet.
        handles: how many open handles there are.
        children: how many living nodes are reached through this one.
        last: the last attributes of an object that has lost its last name and can be reached no
            more; what changes is only this.
    """

    __slots__ = ("children", "handles", "last", "lookups", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.lookups = 0
        self.handles = 0
        self.children = 0
        self.last: os.stat_result | None = None


class FileNode(Node):
    """A file of any type but directory: one inode on one branch.

    Attributes:
        branch: the branch that the inode lies on.
        identity: where it lies there.
        kind: its file type bits.
        names: the (directory, name) pairs under which it has been seen, the latest last; some may
            be out of date, so whoever uses one checks that it still leads to ``identity``.
        plink: its record among the pseudo-links, if it has one.
        fd: a descriptor of the branch file while handles are open, else -1.
        fd_writable: whether ``fd`` can be written.
        pin: an ``O_PATH`` descriptor once no name is known any more, else -1: the kernel may have
            been told of the file just before, and means it with its next request.
        copying: the latch of a copy-up in flight.
        unlinked: True once no name is left.
        cache_key: attributes for which the kernel's page cache is known to be right.
    """

    __slots__ = (
        "branch",
        "cache_key",
        "copying",
        "fd",
        "fd_writable",
        "identity",
        "kind",
        "names",
        "pin",
        "plink",
        "unlinked",
    )

    def __init__(self, number: int, branch: Branch, status: os.stat_result) -> None:
        super().__init__(number)
        self.branch = branch
        self.identity: Identity = (status.st_dev, status.st_ino)
        self.kind = stat.S_IFMT(status.st_mode)
        self.names: dict[tuple[DirectoryNode, bytes], None] = {}
        self.plink: PseudoLink | None = None
        self.fd = -1
        self.fd_writable = False
        self.pin = -1
        self.copying: Latch | None = None
        self.unlinked = False
        self.cache_key: tuple[int, ...] | None = None

    @property
    def held(self) -> int:
        """A descriptor that leads to the file under whatever name or none; -1 if there is none."""
        return self.fd if self.fd >= 0 else self.pin

    def pin_to(self, fd: int) -> None:
        """Have the pin lead to what another descriptor leads to."""
        fresh = reopen(fd, os.O_PATH)
        if self.pin >= 0:
            os.close(self.pin)
        self.pin = fresh

    def close(self) -> None:
        """Give the descriptors back."""
        for fd in (self.fd, self.pin):
            if fd >= 0:
                os.close(fd)
        self.fd = self.pin = -1


class Copy:
    """One of the directories that are merged: which branch, and where it lies there."""

    __slots__ = ("branch", "identity")

    def __init__(self, branch: Branch, identity: Identity) -> None:
        self.branch = branch
        self.identity = identity


class DirectoryNode(Node):
    """A merged directory.

    Attributes:
        parent, name: its one place in the tree; the root is its own parent.
        copies: the directories that are merged, top first.
        removed: True once it has been removed.
        changes: grows with every change of the names in it; see ``listing.py``.
    """

    __slots__ = ("changes", "copies", "name", "parent", "removed")

    kind: Final = stat.S_IFDIR

    def __init__(
        self, number: int, parent: DirectoryNode | None, name: bytes, copies: list[Copy]
    ) -> None:
        super().__init__(number)
        self.parent = self if parent is None else parent
        self.name = name
        self.copies = copies
        self.removed = False
        self.changes = 0

    @property
    def branch(self) -> Branch:
        """The branch of the topmost copy, which is the one that is seen."""
        return self.copies[0].branch

    def path(self) -> list[bytes]:
        """Return the names that lead here from the root."""
        names = []
        node = self
        while node.parent is not node:
            names.append(node.name)
            node = node.parent
        names.reverse()
        return names


class NodeTable:
    """All living nodes, by number and by identity.

    Args:
        numbers: gives the numbers.

    Attributes:
        on_release: called with each directory that is let go.
    """

    def __init__(self, numbers: InodeNumbers) -> None:
        self.numbers = numbers
        self.on_release: Callable[[DirectoryNode], None] = lambda _: None
        self._by_number: dict[int, FileNode | DirectoryNode] = {}
        self._by_place: dict[tuple[int, Identity], FileNode | DirectoryNode] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[FileNode | DirectoryNode]:
        return iter(self._by_number.values())

    def get(self, number: int) -> FileNode | DirectoryNode | None:
        """Return the node with this number."""
        return self._by_number.get(number)

    def at(self, branch: Branch, identity: Identity) -> FileNode | DirectoryNode | None:
        """Return the node that the object at this place of a branch belongs to."""
        return self._by_place.get((branch.index, identity))

    def add_root(self, copies: list[Copy], number: int) -> DirectoryNode:
        """Create the root."""
        root = DirectoryNode(number, None, b"", copies)
        root.lookups = 1
        self._by_number[number] = root
        for copy in copies:
            self._by_place[copy.branch.index, copy.identity] = root
        return root

    def new_number(self, branch: Branch, identity: Identity) -> int:
        """Return the number for an object that has no node yet."""
        return self.numbers.number(branch.index, *identity, self._by_number.__contains__)

    def add_file(self, branch: Branch, status: os.stat_result) -> FileNode:
        """Create the node of a file."""
        identity = (status.st_dev, status.st_ino)
        node = FileNode(self.new_number(branch, identity), branch, status)
        self._by_number[node.number] = node
        self._by_place[branch.index, identity] = node
        return node

    def add_directory(
        self, parent: DirectoryNode, name: bytes, copies: list[Copy]
    ) -> DirectoryNode:
        """Create the node of a merged directory."""
        top = copies[0]
        node = DirectoryNode(self.new_number(top.branch, top.identity), parent, name, copies)
        parent.children += 1
        self._by_number[node.number] = node
        for copy in copies:
            self._by_place[copy.branch.index, copy.identity] = node
        return node

    def move_file(self, node: FileNode, branch: Branch, identity: Identity) -> None:
        """Let a node stand for another inode from now on: it was copied up."""
        self.lose_identity(node)
        node.branch = branch
        node.identity = identity
        self._by_place[branch.index, identity] = node
        self.numbers.record(branch.index, *identity, node.number)

    def set_copies(self, node: DirectoryNode, copies: list[Copy]) -> None:
        """Let a directory be merged of other copies from now on."""
        self.lose_identity(node)
        node.copies = copies
        for copy in copies:
            self._by_place[copy.branch.index, copy.identity] = node

    def add_copy(self, node: DirectoryNode, copy: Copy) -> None:
        """Add a copy that was made on a writable branch, at its place; the number stays."""
        node.copies = sorted([*node.copies, copy], key=lambda each: each.branch.index)
        self._by_place[copy.branch.index, copy.identity] = node
        self.numbers.record(copy.branch.index, *copy.identity, node.number)

    def add_name(self, node: FileNode, parent: DirectoryNode, name: bytes) -> None:
        """Note that a file has been seen under a name, which becomes the last of its names."""
        if node.pin >= 0:
            os.close(node.pin)
            node.pin = -1
        key = (parent, name)
        if key not in node.names:
            node.names[key] = None
            parent.children += 1
        elif len(node.names) > 1:
            del node.names[key]
            node.names[key] = None

    def drop_name(self, node: FileNode, parent: DirectoryNode, name: bytes) -> None:
        """Note that a name does not lead to this file any more."""
        if (parent, name) in node.names:
            del node.names[parent, name]
            self._child_gone(parent)

    def is_above(self, node: DirectoryNode, other: DirectoryNode) -> bool:
        """Tell whether ``other`` lies in ``node``, at any depth, or is it."""
        while other is not node:
            if other.parent is other:
                return False
            other = other.parent
        return node.parent is not node

    def place(self, node: DirectoryNode, parent: DirectoryNode, name: bytes) -> None:
        """Move a directory to another place in the tree."""
        if node.parent is not parent:
            parent.children += 1
            self._child_gone(node.parent)
            node.parent = parent
        node.name = name

    def lose_identity(self, node: FileNode | DirectoryNode) -> None:
        """Stop finding a node by place: the object is gone and its inode may serve another."""
        places = (
            [(node.branch.index, node.identity)]
            if isinstance(node, FileNode)
            else [(copy.branch.index, copy.identity) for copy in node.copies]
        )
        for place in places:
            if self._by_place.get(place) is node:
                del self._by_place[place]

    def forget(self, number: int, count: int) -> None:
        """The kernel has forgotten a node ``count`` times."""
        node = self._by_number.get(number)
        if node is not None:
            node.lookups -= count
            self.release(node)

    def release(self, node: FileNode | DirectoryNode) -> None:
        """Let a node go if nothing needs it any more, and then perhaps the directories above."""
        while (
            node.lookups <= 0
            and not node.handles
            and not node.children
            and self._by_number.get(node.number) is node
        ):
            if isinstance(node, FileNode):
                if node.copying is not None:
                    return
                del self._by_number[node.number]
                self.lose_identity(node)
                for parent, _ in node.names:
                    self._child_gone(parent)
                node.names.clear()
                node.close()
                return
            parent = node.parent
            if parent is node:
                return
            self.on_release(node)
            del self._by_number[node.number]
            self.lose_identity(node)
            parent.children -= 1
            node = parent

    def _child_gone(self, parent: DirectoryNode) -> None:
        parent.children -= 1
        self.release(parent)
