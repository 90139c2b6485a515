"""Pseudo-links: hard links that survive copy-up.

Two names on a read-only branch share one inode. When the file is copied up through one name, the
other name still leads to the lower inode; without help it would show the old content from then on.
So the copy also gets an entry in ``.wh..wh.plnk`` at the top of its branch, and whoever looks up a
name that leads to the lower inode is served the copy (aufs.md 6.5).

aufs keeps the relation in memory and needs it flushed before every unmount. Here the entry's name
says all, so the relation is valid on disk at any time and found again by the next mount::

    NUMBER.INODE.TAG.REMAINING        the file itself, one more hard link to the copy
    NUMBER.INODE.TAG.REMAINING.lower  an empty file: nothing was copied up, but names were removed

``NUMBER`` is the inode number in the union. ``INODE`` and ``TAG`` say which lower file: its inode,
and a digest of the lower branch's root (inode and birth, or number of the filesystem) and the birth
of the file, so that two branches, or an inode used again, are not mistaken. ``REMAINING`` counts
the names that still lie only on the lower branch. Hence the link count that users see::

    copied up:      links of the copy, less the entry, plus REMAINING
    not copied up:  REMAINING
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from errno import EROFS
from typing import TYPE_CHECKING, Final

from unionfs import syscalls
from unionfs.branch import Branch, Directory, WritableBranch, WritableDirectory
from unionfs.branch.forms import PLINK_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from unionfs.union.nodes import Identity

# The counts are bounded: an entry in an image layer may say anything.
_ENTRY: Final = re.compile(rb"(\d{1,20})\.(\d{1,20})\.([0-9a-f]{16})\.(\d{1,9})(\.lower)?")
_TMPFS: Final = 0x01021994  # its number is random, and lasts as long as the files on it

log = logging.getLogger(__name__)


class PseudoLink:
    """One entry of ``.wh..wh.plnk``.

    Attributes:
        branch: the branch whose directory holds the entry.
        number: the inode number of the file in the union.
        inode, tag: which lower file it stands for.
        remaining: how many names lie only on the lower branch.
        upper: where the copy lies, or None when nothing was copied up.
    """

    __slots__ = ("branch", "inode", "number", "remaining", "tag", "upper")

    def __init__(
        self,
        branch: Branch,
        number: int,
        inode: int,
        tag: bytes,
        remaining: int,
        upper: Identity | None,
    ) -> None:
        self.branch = branch
        self.number = number
        self.inode = inode
        self.tag = tag
        self.remaining = remaining
        self.upper = upper

    @property
    def entry(self) -> bytes:
        """The name of the entry on disk."""
        return self.entry_with(self.remaining)

    def entry_with(self, remaining: int) -> bytes:
        """The name of the entry for another count."""
        kind = b"" if self.upper else b".lower"
        return b"%d.%d.%s.%d%s" % (self.number, self.inode, self.tag, remaining, kind)


def tag_of(directory: Directory, name: bytes) -> bytes:
    """Return what tells a lower file from one with the same inode on another branch."""
    return _tag(directory.branch, syscalls.statx_birth(directory.fd, name))


def tag_of_open(branch: Branch, fd: int) -> bytes:
    """Return the same as :func:`tag_of` for an open file."""
    return _tag(branch, syscalls.statx_birth(fd, b""))


def _tag(branch: Branch, birth: int) -> bytes:
    # The root tells the branch: its inode and its birth, for the number of a filesystem changes on
    # some with the device it is on. Where births are not recorded, that number has to do; and in
    # memory it must, where two filesystems made by one script are alike in inodes and births.
    fd = branch.root.fd
    origin = syscalls.statx_birth(fd, b"")
    if not origin or syscalls.filesystem_magic(fd) == _TMPFS:
        origin = os.fstatvfs(fd).f_fsid
    text = b"%d %d %d" % (origin, os.fstat(fd).st_ino, birth)
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode()


class PseudoLinks:
    """All pseudo-links of a union, read once and kept up to date.

    Args:
        branches: the branches of the union; the entries of the whable ones count.
    """

    def __init__(self, branches: Iterable[Branch]) -> None:
        self._by_inode: dict[int, list[PseudoLink]] = {}
        self._by_upper: dict[Identity, PseudoLink] = {}
        self._directories: dict[int, Directory] = {}
        for branch in branches:
            if branch.whable:
                self._read(branch)

    def __bool__(self) -> bool:
        return bool(self._by_inode)

    def __len__(self) -> int:
        return sum(map(len, self._by_inode.values()))

    def __iter__(self) -> Iterator[PseudoLink]:
        for links in self._by_inode.values():
            yield from links

    def close(self) -> None:
        """Give the descriptors back."""
        for directory in self._directories.values():
            directory.close()
        self._directories.clear()

    def directory(self, branch: Branch) -> Directory:
        """Return the open ``.wh..wh.plnk`` of a branch."""
        directory = self._directories.get(branch.index)
        if directory is None:
            directory = branch.open_directory([PLINK_DIRECTORY])
            self._directories[branch.index] = directory
        return directory

    def _writable(self, branch: Branch) -> WritableDirectory:
        directory = self.directory(branch)
        if not isinstance(directory, WritableDirectory):
            raise OSError(EROFS, f"{branch} is read-only")
        return directory

    def above(self, directory: Directory, name: bytes, inode: int) -> PseudoLink | None:
        """Return the record of the file ``name`` of ``directory`` on a branch above it.

        Several branches may have one, each made when it was the writable one. The topmost copy
        answers, if there is any. Else the smallest count is the latest, for names only go away; but
        none is believed of a file whose links the branch itself counts, and changes.
        """
        candidates = self._by_inode.get(inode)
        if not candidates:
            return None
        tag = tag_of(directory, name)
        here = directory.branch
        return min(
            (
                link
                for link in candidates
                if link.tag == tag
                and link.branch.index < here.index
                and (link.upper is not None or not here.writable)
            ),
            key=lambda link: (
                link.upper is None,
                link.branch.index if link.upper else link.remaining,
            ),
            default=None,
        )

    def of_copy(self, identity: Identity) -> PseudoLink | None:
        """Return the record of which the object at ``identity`` is the copy."""
        return self._by_upper.get(identity)

    def add_copy(
        self,
        branch: WritableBranch,
        number: int,
        source: tuple[int, bytes],
        remaining: int,
        made: tuple[WritableDirectory, bytes, Identity],
    ) -> PseudoLink:
        """Record a copy that is still under its temporary name.

        Args:
            number: inode number in the union.
            source: inode and tag of the lower file.
            remaining: names that stay on the lower branch.
            made: where the copy is now, and its identity.
        """
        directory, name, identity = made
        plink = PseudoLink(branch, number, *source, remaining, identity)
        target = self._writable(branch)
        try:
            target.link(directory, name, plink.entry)
        except FileExistsError:
            # Left over from a crash between this link and the rename that publishes the copy.
            target.unlink(plink.entry)
            target.link(directory, name, plink.entry)
        self._insert(plink)
        return plink

    def add_nameless(
        self,
        branch: WritableBranch,
        number: int,
        source: tuple[int, bytes],
        remaining: int,
        made: tuple[int, Identity],
    ) -> PseudoLink:
        """Record a copy that has no name yet; as :meth:`add_copy`, ``made`` is an open file."""
        fd, identity = made
        plink = PseudoLink(branch, number, *source, remaining, identity)
        syscalls.link_fd(fd, self._writable(branch).fd, plink.entry)
        self._insert(plink)
        return plink

    def add_count(
        self, branch: WritableBranch, number: int, source: tuple[int, bytes], remaining: int
    ) -> PseudoLink:
        """Record that names of a lower file were removed, the file itself was not copied up.

        They have been removed already, so a failure is reported and fails nothing.
        """
        plink = PseudoLink(branch, number, *source, remaining, None)
        try:
            os.close(self._writable(branch).create_file(plink.entry))
        except FileExistsError:
            pass
        except OSError as error:
            log.warning("link count %s is kept in memory only: %s", plink.entry, error)
        self._insert(plink)
        return plink

    def set_remaining(self, plink: PseudoLink, remaining: int) -> bool:
        """Change how many names lie only on the lower branch.

        What is counted has happened already, so a failure is reported and fails nothing. The count
        is then too high, which keeps the copy longer than needed and loses nothing.

        Returns:
            False when that was the last one: the record is gone.
        """
        if remaining <= 0:
            self.drop(plink)
            return False
        try:
            directory = self._writable(plink.branch)
            directory.rename(plink.entry, directory, plink.entry_with(remaining))
        except OSError as error:
            log.warning("pseudo-link %s cannot be changed: %s", plink.entry, error)
        else:
            plink.remaining = remaining
        return True

    def drop(self, plink: PseudoLink) -> None:
        """Remove a record; a failure is reported, and the next mount finds it again.

        One on a read-only branch stays there, and is not used any more.
        """
        try:
            if plink.branch.writable:
                self._writable(plink.branch).unlink(plink.entry)
        except OSError as error:
            log.warning("pseudo-link %s cannot be removed: %s", plink.entry, error)
        self._remove(plink)

    def forget(self, plink: PseudoLink) -> None:
        """Stop using a record of a read-only branch: a newer one replaces it."""
        self._remove(plink)

    def _insert(self, plink: PseudoLink) -> None:
        self._by_inode.setdefault(plink.inode, []).append(plink)
        if plink.upper:
            self._by_upper[plink.upper] = plink

    def _remove(self, plink: PseudoLink) -> None:
        links = self._by_inode.get(plink.inode, [])
        if plink in links:
            links.remove(plink)
            if not links:
                del self._by_inode[plink.inode]
        if plink.upper:
            self._by_upper.pop(plink.upper, None)

    def _read(self, branch: Branch) -> None:
        status = branch.root.find(PLINK_DIRECTORY)
        if status is None or status.st_mode & 0o170000 != 0o040000:
            return
        directory = self.directory(branch)
        for entry in directory.scan():
            name = os.fsencode(entry.name)
            match = _ENTRY.fullmatch(name)
            if match is None:
                continue  # aufs's own entries say too little to be believed
            number, inode, tag, remaining, lower = match.groups()
            found = directory.stat(name)
            if found.st_mode & 0o170000 == 0o040000:
                continue
            upper = None if lower else (found.st_dev, found.st_ino)
            self._insert(PseudoLink(branch, int(number), int(inode), tag, int(remaining), upper))
