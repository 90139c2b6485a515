"""One directory of one branch, held open: the only way to anything that lies in it.

A ``Directory`` can be looked at, a ``WritableDirectory`` can also be changed. A read-only branch
hands out the former and so has no way to be written to: the difference is a type, not a flag.

Every method takes the name of one entry and acts relative to the descriptor, and none follows a
symbolic link. So a branch may lie below its own mount point, may be unmounted behind our back, and
may have been filled by a stranger: no path of this host is ever walked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from errno import (
    EEXIST,
    EIO,
    ELOOP,
    EMLINK,
    ENAMETOOLONG,
    ENODATA,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
)
from typing import TYPE_CHECKING, Final

from unionfs import syscalls
from unionfs.branch.forms import (
    FOREIGN_METACOPY,
    FOREIGN_OPAQUE,
    FOREIGN_REDIRECT,
    FOREIGN_WHITEOUT,
    OPAQUE_MARK,
    is_device_whiteout,
    is_reserved,
    temporary_name,
    whiteout_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.branch.branch import Branch, WritableBranch

log = logging.getLogger(__name__)

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A fifo put where a file was must not stop the daemon: never wait in open.
_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Directory:
    """A directory of a branch, for looking.

    Attributes:
        branch: the branch it belongs to.
        fd: its ``O_PATH`` descriptor, owned by this object.
    """

    __slots__ = ("branch", "fd")

    def __init__(self, branch: Branch, fd: int) -> None:
        self.branch = branch
        self.fd = fd

    def close(self) -> None:
        """Give the descriptor back."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # Whoever still uses a directory that the cache has dropped keeps it open by that.
        if getattr(self, "fd", -1) >= 0:
            self.close()

    def status(self) -> os.stat_result:
        """Return the attributes of the directory itself."""
        return os.fstat(self.fd)

    def stat(self, name: bytes) -> os.stat_result:
        """Return the attributes of an entry; ``OSError`` ``ENOENT`` when there is none."""
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def find(self, name: bytes) -> os.stat_result | None:
        """Return the attributes of an entry, or None when there is none."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR, ENAMETOOLONG):
                return None  # also where the filesystem cannot even have such a name
            if error.errno == EPERM and is_reserved(os.path.basename(name)):
                return None  # the branch is a union itself, and keeps its marks to itself
            raise

    def hides(self, name: bytes) -> bool:
        """Tell whether a whiteout here hides ``name`` in lower branches.

        Raises:
            OSError: ``EIO`` when the whiteout is not a regular file (aufs.md 2.1).
        """
        return self._is_mark(whiteout_of(name))

    def is_opaque(self, name: bytes | None = None) -> bool:
        """Tell whether lower branches are shut out of this directory, or of its child ``name``."""
        mark = OPAQUE_MARK if name is None else name + b"/" + OPAQUE_MARK
        if self._is_mark(mark):
            return True
        return self.branch.foreign and self._foreign_opaque(name) == b"y"

    def check_complete(self) -> None:
        """Refuse a directory whose content overlayfs has left under another name.

        Raises:
            OSError: ``EIO``; the log says what to do.
        """
        if not self.branch.foreign or FOREIGN_REDIRECT.isdisjoint(self._own_xattrs()):
            return
        if not self.is_opaque():  # else nothing of what lies elsewhere would show
            raise self._elsewhere(self.fd, "a redirect")

    def _elsewhere(self, fd: int, what: str) -> OSError:
        """Return the error for an object that only refers to its content, after logging it.

        Args:
            fd: a descriptor of the object.
        """
        log.warning(
            "%s on %s is refused (EIO): it is %s of overlayfs, with its content elsewhere. Copy "
            "the tree out of an overlay mount with redirect_dir=on,metacopy=on, and use the copy",
            os.readlink(f"/proc/self/fd/{fd}"),
            self.branch,
            what,
        )
        return OSError(EIO, f"{what}: the content lies elsewhere")

    def _own_xattrs(self) -> list[bytes]:
        """List the names of the extended attributes of the directory itself."""
        return _xattrs(b"/proc/self/fd/%d" % self.fd)

    def _foreign_opaque(self, name: bytes | None) -> bytes:
        """Return the opaque attribute of an entry or, without a name, its own; empty if none."""
        try:
            keys = self._own_xattrs() if name is None else self.list_xattrs(name)
            for key in FOREIGN_OPAQUE:
                if key in keys:
                    return self.get_xattr(name or b".", key)
        except OSError as error:
            if error.errno not in (ENODATA, EOPNOTSUPP, ENOENT):
                raise
        return b""

    def has_xattr_whiteouts(self) -> bool:
        """Tell whether empty files in this directory may be whiteouts by their attributes."""
        return self._foreign_opaque(None) == b"x"

    def is_foreign_whiteout(self, name: bytes, status: os.stat_result) -> bool:
        """Tell whether the entry itself is a whiteout in a foreign form."""
        if not self.branch.foreign:
            return False
        if is_device_whiteout(status):
            return True
        if status.st_size or not stat.S_ISREG(status.st_mode):
            return False
        if not self.has_xattr_whiteouts():
            return False
        return not set(FOREIGN_WHITEOUT).isdisjoint(self.list_xattrs(name))

    def _is_mark(self, mark: bytes) -> bool:
        status = self.find(mark)
        if status is None:
            return False
        if not stat.S_ISREG(status.st_mode):
            raise OSError(EIO, "a whiteout that is not a regular file", mark)
        return True

    def open_child(self, name: bytes) -> int:
        """Open a sub-directory and return its ``O_PATH`` descriptor."""
        if self.branch.walled:
            return os.open(name, _DIRECTORY, dir_fd=self.fd)
        return syscalls.openat2(self.fd, name, _DIRECTORY, resolve=self.branch.resolve)

    def open_file(self, name: bytes, flags: int = os.O_RDONLY) -> int:
        """Open a regular file.

        Args:
            flags: ``O_RDONLY`` or, on a writable branch, ``O_RDWR``.

        Raises:
            OSError: ``EIO`` when something else than a regular file has taken the name, and for a
                file that overlayfs has left without data.
        """
        try:
            fd = os.open(name, flags | _FILE, dir_fd=self.fd)
        except OSError as error:
            if error.errno in (ELOOP, ENXIO):
                raise OSError(EIO, "not a regular file any more", name) from error
            raise
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(EIO, "not a regular file any more", name)
            if (
                status.st_size
                and self.branch.foreign
                and FOREIGN_METACOPY.intersection(_xattrs(fd))
            ):
                raise self._elsewhere(fd, "a metadata-only copy")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def readlink(self, name: bytes) -> bytes:
        """Return the text of a symbolic link."""
        return os.readlink(name, dir_fd=self.fd)

    def scan(self, *, quietly: bool = False) -> Iterator[os.DirEntry[str]]:
        """Yield the entries in the order of the branch's filesystem, ``.`` and ``..`` left out.

        Their names are ``str`` (``scandir`` of a descriptor knows no other); ``os.fsencode`` gives
        the bytes back unharmed.

        Args:
            quietly: nobody has asked for a listing, so none shows in the time of access.
        """
        fd = self._open_for_scanning(quietly=quietly)
        try:
            with os.scandir(fd) as entries:
                yield from entries
        finally:
            os.close(fd)

    def _open_for_scanning(self, *, quietly: bool) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        if quietly:
            try:
                return os.open(b".", flags | os.O_NOATIME, dir_fd=self.fd)
            except OSError as error:
                if error.errno != EPERM:  # EPERM: another's directory, and we are not privileged
                    raise
        return os.open(b".", flags, dir_fd=self.fd)

    @contextlib.contextmanager
    def pinned(self, name: bytes) -> Iterator[bytes]:
        """Hold an entry, and give the path that leads to exactly it, whatever its type."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            yield b"/proc/self/fd/%d" % fd
        finally:
            os.close(fd)

    def list_xattrs(self, name: bytes) -> list[bytes]:
        """List the names of the extended attributes of an entry."""
        return syscalls.listxattr_at(self.fd, name)

    def get_xattr(self, name: bytes, key: bytes) -> bytes:
        """Read one extended attribute of an entry."""
        return syscalls.getxattr_at(self.fd, name, key)


def _xattrs(place: int | bytes) -> list[bytes]:
    """List the names of the extended attributes of an object.

    Args:
        place: its descriptor, or the path that leads to exactly it.
    """
    try:
        return [os.fsencode(key) for key in os.listxattr(place)]
    except OSError as error:
        if error.errno == EOPNOTSUPP:
            return []
        raise


class MountedOver(Directory):
    """A directory of a branch that something else is mounted on: it shows as empty.

    Where the daemon may, a branch is opened without the mounts on it, and this does not occur. Else
    what lies below such a mount cannot be reached, and what is mounted is no part of the branch.

    Args:
        status: the attributes that its name has.
    """

    __slots__ = ("_seen",)

    def __init__(self, branch: Branch, status: os.stat_result) -> None:
        super().__init__(branch, -1)
        self._seen = status

    def status(self) -> os.stat_result:
        """Return what is known of it."""
        return self._seen

    def find(self, name: bytes) -> os.stat_result | None:
        """Nothing is in it."""
        return None

    def hides(self, name: bytes) -> bool:
        """Nothing is in it."""
        return False

    def is_opaque(self, name: bytes | None = None) -> bool:
        """Nothing is in it."""
        return False

    def has_xattr_whiteouts(self) -> bool:
        """Nothing is in it."""
        return False

    def scan(self, *, quietly: bool = False) -> Iterator[os.DirEntry[str]]:
        """Nothing is in it."""
        return iter(())


class WritableDirectory(Directory):
    """A directory of a writable branch: it can be looked at and changed."""

    __slots__ = ()

    branch: WritableBranch

    def duplicate(self) -> WritableDirectory:
        """Return the same directory with a descriptor of its own, for a job."""
        return WritableDirectory(self.branch, os.dup(self.fd))

    def create_file(self, name: bytes, mode: int = 0o600) -> int:
        """Create an empty file, by default one only the daemon can open; return it ``O_RDWR``."""
        return os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | _FILE, mode, dir_fd=self.fd)

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
            fd = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _FILE, 0o444, dir_fd=self.fd)
        except FileExistsError:
            return False
        os.close(fd)
        return True

    def remove_tree(self, name: bytes) -> None:
        """Remove the directory ``name`` with all that is in it, however deep, never leaving it."""
        # One open directory a level; sub-directories not yet removed wait in `pending`.
        opened: list[WritableDirectory] = []
        names = [name]
        pending: list[list[bytes]] = []
        try:
            while True:
                here = opened[-1] if opened else self
                if here.remove_if_empty(names[-1]):
                    names.pop()
                    if not opened:
                        return
                else:
                    child = WritableDirectory(self.branch, here.open_child(names[-1]))
                    opened.append(child)
                    pending.append(child._empty_out())
                if pending[-1]:
                    names.append(pending[-1].pop())
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
        directories = []
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in self.scan()]
        for text, is_directory in found:
            name = os.fsencode(text)
            if is_directory:
                directories.append(name)
            else:
                self.unlink(name)
        return directories
