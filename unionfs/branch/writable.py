"""One directory of a writable branch: all that can be changed there, and how marks are written.

A read-only branch hands out a ``Directory`` and so has no way to be written to: the difference is a
type, not a flag. As there, every method takes the name of one entry and follows no symbolic link.
"""

from __future__ import annotations

import contextlib
import os
from errno import EEXIST, EMLINK, ENOENT, ENOTEMPTY, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING

from unionfs import syscalls
from unionfs.branch.directory import FILE, Directory
from unionfs.branch.forms import OPAQUE_MARK, temporary_name, whiteout_of

if TYPE_CHECKING:
    from unionfs.branch.branch import WritableBranch


_ROUNDS = 100  # in which a directory may turn out not to be empty yet, though it was emptied


class WritableDirectory(Directory):
    """A directory of a writable branch: it can be looked at and changed."""

    __slots__ = ()

    branch: WritableBranch

    def duplicate(self) -> WritableDirectory:
        """Return the same directory with a descriptor of its own, for a job."""
        return WritableDirectory(self.branch, os.dup(self.fd))

    def create_file(self, name: bytes, mode: int = 0o600) -> int:
        """Create an empty file, by default one only the daemon can open; return it ``O_RDWR``."""
        return os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | FILE, mode, dir_fd=self.fd)

    def make_directory(self, name: bytes, mode: int = 0o700) -> None:
        """Create an empty directory, by default one only the daemon can enter."""
        os.mkdir(name, mode, dir_fd=self.fd)

    def make_symlink(self, name: bytes, text: bytes) -> None:
        """Create a symbolic link."""
        os.symlink(text, name, dir_fd=self.fd)

    def make_node(self, name: bytes, kind: int, device: int) -> None:
        """Create a fifo, a socket or a device node.

        Args:
            kind: the file type bits (``S_IFIFO`` and so on), with the permission bits if wanted.
            device: the device number, 0 for a fifo or a socket.
        """
        os.mknod(name, kind, device, dir_fd=self.fd)

    def link(self, source: Directory, source_name: bytes, name: bytes) -> None:
        """Make ``name`` here a hard link of an entry of ``source``."""
        os.link(source_name, name, src_dir_fd=source.fd, dst_dir_fd=self.fd, follow_symlinks=False)

    def unlink(self, name: bytes) -> None:
        """Remove an entry that is not a directory."""
        os.unlink(name, dir_fd=self.fd)

    def remove_directory(self, name: bytes) -> None:
        """Remove an empty directory."""
        os.rmdir(name, dir_fd=self.fd)

    def rename(self, name: bytes, target: WritableDirectory, target_name: bytes) -> None:
        """Move an entry, replacing what the target name holds."""
        os.rename(name, target_name, src_dir_fd=self.fd, dst_dir_fd=target.fd)

    def exchange(self, name: bytes, target: WritableDirectory, target_name: bytes) -> None:
        """Let two entries change places in one step."""
        syscalls.renameat2(self.fd, name, target.fd, target_name, syscalls.RENAME_EXCHANGE)

    def set_mode(self, name: bytes, mode: int) -> None:
        """Change the permission bits of an entry that is not a symbolic link."""
        # fchmodat() follows links. Through the pinned object a link that was put there meanwhile is
        # refused rather than followed.
        with self.pinned(name) as place:
            os.chmod(place, mode)

    def set_times(self, name: bytes, atime_ns: int, mtime_ns: int) -> None:
        """Set both times of an entry, in nanoseconds since the epoch."""
        os.utime(name, ns=(atime_ns, mtime_ns), dir_fd=self.fd, follow_symlinks=False)

    def set_own_times(self, status: os.stat_result) -> None:
        """Set the times of this directory back to those of an earlier ``status``."""
        os.utime(b".", ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=self.fd)

    def set_xattr(self, name: bytes, key: bytes, value: bytes) -> None:
        """Set an extended attribute of an entry."""
        syscalls.setxattr_at(self.fd, name, key, value)

    def remove_xattr(self, name: bytes, key: bytes) -> None:
        """Remove an extended attribute of an entry."""
        syscalls.removexattr_at(self.fd, name, key)

    def temporary(self, name: bytes) -> bytes:
        """Return an unused temporary name for building or taking down ``name``."""
        while True:
            candidate = temporary_name(name, self.branch.next_count())
            if not os.access(candidate, os.F_OK, dir_fd=self.fd, follow_symlinks=False):
                return candidate

    def whiteout(self, name: bytes) -> bool:
        """Hide ``name`` in all lower branches.

        Returns:
            True when a whiteout was made, False when it was there already.
        """
        return self._mark(whiteout_of(name))

    def adopt_whiteout(self, name: bytes) -> None:
        """Rewrite a whiteout of a foreign form in ours, so that its name is free."""
        if self.branch.foreign:
            status = self.find(name)
            if status is not None and self.is_foreign_whiteout(name, status):
                self.whiteout(name)
                self.unlink(name)

    def remove_whiteout(self, name: bytes) -> None:
        """Stop hiding ``name``; nothing happens when it was not hidden."""
        try:
            os.unlink(whiteout_of(name), dir_fd=self.fd)
        except FileNotFoundError:
            pass

    def set_opaque(self, name: bytes) -> bool:
        """Shut lower branches out of the sub-directory ``name``; False when they were already.

        The mark is no change that anybody sees, so the times of the directory stay.
        """
        child = WritableDirectory(self.branch, self.open_child(name))
        try:
            before = child.status()
            made = child._mark(OPAQUE_MARK)
            child.set_own_times(before)
            return made
        finally:
            child.close()

    def clear_opaque(self, name: bytes) -> None:
        """Take back :meth:`set_opaque`."""
        child = WritableDirectory(self.branch, self.open_child(name))
        try:
            before = child.status()
            child.unlink(OPAQUE_MARK)
            child.set_own_times(before)
        finally:
            child.close()

    def _mark(self, mark: bytes) -> bool:
        """Create a whiteout or an opaque mark: a hard link of the branch's base file."""
        base = self.branch.whiteout_base
        if base:
            try:
                os.link(
                    base,
                    mark,
                    src_dir_fd=self.branch.root.fd,
                    dst_dir_fd=self.fd,
                    follow_symlinks=False,
                )
                return True
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (EMLINK, EPERM, EOPNOTSUPP, ENOENT):
                    raise
                if error.errno in (EMLINK, ENOENT):
                    self.branch.renew_whiteout_base()
        try:
            fd = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY | FILE, 0o444, dir_fd=self.fd)
        except FileExistsError:
            return False
        os.close(fd)
        return True

    def remove_tree(self, name: bytes) -> None:
        """Remove the directory ``name`` with all that is in it, however deep, never leaving it.

        Others may be removing the same tree, or one that it lies in or that lies in it: whatever is
        gone when its turn comes counts as removed, and each removal ends when its tree is gone.

        Raises:
            OSError: ``ENOTEMPTY`` for a directory that can only be listed, as on a damaged
                filesystem; and as unlink(2) and rmdir(2).
        """
        # One open directory a level; sub-directories not yet removed wait in `pending`.
        opened: list[WritableDirectory] = []
        names = [name]
        rounds = [0]  # in which each of them was not empty yet
        pending: list[list[bytes]] = []
        try:
            while True:
                here = opened[-1] if opened else self
                if here.remove_if_empty(names[-1]):
                    names.pop()
                    rounds.pop()
                    if not opened:
                        return
                else:
                    rounds[-1] += 1
                    if rounds[-1] > _ROUNDS:
                        raise OSError(ENOTEMPTY, os.strerror(ENOTEMPTY), names[-1])
                    try:
                        child = WritableDirectory(self.branch, here.open_child(names[-1]))
                    except FileNotFoundError:
                        continue  # gone since: asked again, it counts as removed
                    opened.append(child)
                    pending.append(child._empty_out())
                if pending[-1]:
                    names.append(pending[-1].pop())
                    rounds.append(0)
                else:
                    pending.pop()
                    opened.pop().close()
        finally:
            for directory in opened:
                directory.close()

    def remove_if_empty(self, name: bytes) -> bool:
        """Remove a directory; False when there is something in it."""
        try:
            self.remove_directory(name)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (EEXIST, ENOTEMPTY):
                return False
            raise
        return True

    def _empty_out(self) -> list[bytes]:
        """Remove all entries that are not directories; return the names of those that are."""
        try:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in self.scan()]
        except FileNotFoundError:
            return []  # it has been removed itself; a branch that is a FUSE mount says so here
        directories = []
        for text, is_directory in found:
            name = os.fsencode(text)
            if is_directory:
                directories.append(name)
            else:
                with contextlib.suppress(FileNotFoundError):
                    self.unlink(name)
        return directories
