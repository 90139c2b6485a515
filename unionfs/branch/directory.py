"""One directory of one branch, held open: the only way to anything that lies in it.

A ``Directory`` can only be looked at; one that can be changed is in ``writable.py``.

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
    EIO,
    ELOOP,
    ENAMETOOLONG,
    ENODATA,
    ENOENT,
    ENOTDIR,
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
    whiteout_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.branch.branch import Branch

log = logging.getLogger(__name__)

_DEFAULT_ACL: Final = b"system.posix_acl_default"
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A fifo put where a file was must not stop the daemon: never wait in open.
FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


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

    def has_default_acl(self) -> bool:
        """Tell whether what is created here gets its permissions from a POSIX ACL."""
        try:
            return bool(os.getxattr(b"/proc/self/fd/%d" % self.fd, _DEFAULT_ACL))
        except OSError as error:
            if error.errno in (ENODATA, EOPNOTSUPP):
                return False
            raise

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
            fd = os.open(name, flags | FILE, dir_fd=self.fd)
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

    def pin(self, name: bytes) -> int:
        """Return a descriptor that leads to an entry whatever its type, and is not opened by it."""
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)

    @contextlib.contextmanager
    def pinned(self, name: bytes) -> Iterator[bytes]:
        """Hold an entry, and give the path that leads to exactly it, whatever its type."""
        fd = self.pin(name)
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
