"""What a running union consists of; the modules beside this one are what can be done with it."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass, field
from errno import EINVAL, EMFILE, ENAMETOOLONG, ENOENT, EPERM, EROFS
from typing import TYPE_CHECKING, Final, NamedTuple

from unionfs.branch import Branch, BranchError, WritableBranch, WritableDirectory
from unionfs.branch.forms import NAME_LIMIT, WHITEOUT_PREFIX
from unionfs.union.directories import MINIMUM, OpenDirectories
from unionfs.union.idmap import IdMapping
from unionfs.union.nodes import Copy, DirectoryNode, FileNode, NodeTable
from unionfs.union.numbers import ROOT_NUMBER, InodeNumbers
from unionfs.union.plink import PseudoLinks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unionfs.union.operation import Job, Latch, Operation


_OPEN_AT_MOST: Final = 4096  # directories kept open; more would save little


class Entry(NamedTuple):
    """What lookup, getattr and their like answer.

    Attributes:
        node: the node.
        status: the branch's attributes of it; ``st_ino`` is not the number users see.
        nlink: the link count users see.
    """

    node: FileNode | DirectoryNode
    status: os.stat_result
    nlink: int


class Caller(NamedTuple):
    """On whose behalf something is created.

    The umask does not count in a directory with a default ACL.
    """

    uid: int
    gid: int
    umask: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """How this union decides where people differ (profile and options, see ``profile.py``).

    Attributes:
        strict: a whiteout beside the real entry is an error rather than harmless.
        trusting: the branches are never changed by others (``udba=none``).
        root_opaque: an opaque mark at the top of a branch counts.
        plink: hard links survive copy-up.
        acl: POSIX ACLs are visible, and the kernel enforces them.
        ids: how owners on the branches and owners as shown are related.
        fsync: a copy-up is on disk before it is published.
        background_above: rmdir leaves more whiteouts than this to be removed in the background;
            None removes all at once.
    """

    strict: bool = True
    trusting: bool = False
    root_opaque: bool = False
    plink: bool = True
    acl: bool = False
    ids: IdMapping = field(default_factory=IdMapping)
    fsync: bool = True
    background_above: int | None = None


class State:
    """The branches of a union and all that is known about what is in them.

    Args:
        branches: top first. They belong to the state from now on.
        rules: how to decide.
    """

    def __init__(self, branches: Sequence[Branch], rules: Rules) -> None:
        self.branches = list(branches)
        self.rules = rules
        root = self._root_copies()
        # A branch that an opaque mark at the top of a higher one shuts out is not written, either.
        taking_part = (copy.branch for copy in root)
        self.writable = next((it for it in taking_part if isinstance(it, WritableBranch)), None)
        self.numbers = InodeNumbers(self.writable.root.fd if self.writable else -1)
        self.nodes = NodeTable(self.numbers)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Each branch takes a descriptor for its root and one for its pseudo-links.
        free = soft - 2 * len(self.branches)
        if free < 2 * MINIMUM:
            raise BranchError(
                EMFILE,
                f"{len(self.branches)} branches need more than the {soft} descriptors that this "
                "process may have (EMFILE): raise the limit with ulimit -n",
            )
        self.directories = OpenDirectories(min(free // 2, _OPEN_AT_MOST))
        self.nodes.on_release = self._close_directories
        self.plinks = PseudoLinks(self.branches if rules.plink else [])
        self.root = self.nodes.add_root(root, ROOT_NUMBER)
        self.copying: set[Latch] = set()
        self.cancelled = False
        self.relinquished = False
        self.background: list[Job] = []
        # Directories whose link count a copy-up has changed without anybody having asked for it.
        self.stale: set[int] = set()

    def _close_directories(self, node: DirectoryNode) -> None:
        for copy in node.copies:
            self.directories.close(copy)

    def _root_copies(self) -> list[Copy]:
        copies = []
        for branch in self.branches:
            status = branch.root.status()
            copies.append(Copy(branch, (status.st_dev, status.st_ino)))
            if self.rules.root_opaque and branch.whable and branch.root.is_opaque():
                break
        return copies

    def close(self) -> None:
        """Give all descriptors back."""
        for node in self.nodes:
            if isinstance(node, FileNode):
                node.close()
        self.directories.close_all()
        self.plinks.close()
        self.numbers.close()
        for branch in self.branches:
            branch.close()

    def relinquish(self) -> Operation[None]:
        """Give the writable branch up; see ``Union.relinquish``."""
        self.relinquished = True
        while self.copying:
            yield next(iter(self.copying))
        for branch in self.branches:
            if isinstance(branch, WritableBranch):
                branch.unlock()

    def target(self, *branches: Branch) -> WritableBranch:
        """Return the branch that a change goes to: the nearest writable one, seen from below.

        What shows on a branch above the writable one cannot be changed, for a copy made below it
        would not show.

        Args:
            branches: where that which is to change lies now: of a file its branch, of a directory
                the branch of its topmost copy.

        Raises:
            OSError: ``EROFS`` when no writable branch lies at or above all of them, or it was
                given up.
        """
        highest = min(branch.index for branch in branches)
        if self.relinquished:
            raise OSError(EROFS, "the union was unmounted, and another has its branch now")
        if self.writable is None or self.writable.index > highest:
            raise OSError(EROFS, f"nothing from {self.branches[highest]} up is writable")
        return self.writable

    def copy_on(self, node: DirectoryNode, branch: Branch) -> Copy | None:
        """Return the copy of a directory on a branch, if it has one there."""
        return next((copy for copy in node.copies if copy.branch is branch), None)

    def set_owner(self, place: int | bytes, uid: int, gid: int) -> bool:
        """Change the owner of an object; -1 leaves an id as it is.

        Args:
            place: its descriptor, or the ``/proc/self/fd`` path that leads to exactly it.

        Returns:
            False when the owner cannot be set and need not be, for all are shown as one. Nothing
            may then run with the rights of the owner, who is another.

        Raises:
            OSError: the owner cannot be set.
        """
        try:
            os.chown(place, uid, gid)
        except OSError as error:
            if error.errno not in (EPERM, EINVAL) or not self.rules.ids.squashed:
                raise
            return False
        return True

    def writable_directory(self, node: DirectoryNode, target: WritableBranch) -> WritableDirectory:
        """Return the copy of a directory on a writable branch, opened to be changed.

        Precondition: it has been copied up.
        """
        node.changes += 1
        copy = self.copy_on(node, target)
        if copy is None:
            raise OSError(EROFS, "the directory was not copied up")
        return self.directories.writable(node, copy)


def check_name(name: bytes) -> None:
    """Refuse a name that cannot be in a union.

    Raises:
        OSError: ``ENAMETOOLONG`` above 242 bytes, ``EPERM`` for a reserved name (aufs.md 2.2, 3).
    """
    if len(name) > NAME_LIMIT:
        raise OSError(ENAMETOOLONG, "the name is longer than 242 bytes", name)
    if name.startswith(WHITEOUT_PREFIX):
        raise OSError(EPERM, "names that begin with .wh. are reserved", name)


def check_new_name(parent: DirectoryNode, name: bytes) -> None:
    """Refuse to make ``name`` in a directory that has been removed, or a name that cannot be."""
    check_name(name)
    if parent.removed:
        raise OSError(ENOENT, "the directory has been removed")
    if name in (b"", b".", b".."):
        raise OSError(EINVAL, "not a name", name)
