"""Making one file-system object out of an archive entry: the step that both extractors share.

The order is fixed: create, owner, extended attributes, permission bits, times. Each undoes part
of one that came earlier (a chown clears setuid and file capabilities, a chmod follows an ACL), so
none may move. Every object is created under a name that was free, and then only touched through a
descriptor or without following a link, so that nothing an archive arranged earlier is changed in
its place.

What a user namespace cannot do is reported and passed over: device nodes always, foreign owners
when the caller asks for that. Anything else that fails ends the extraction (driver.md 7.3).
"""

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from driver.archive.reader import Entry, Kind
from driver.idmap import IdentityMapping
from driver.support import in_user_namespace
from unionfs import syscalls

_log = logging.getLogger(__name__)

IMPLIED_MODE = 0o755  # of parents that the archive does not list
_WHITEOUT_MODE = 0o444

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NODE_TYPES = {Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}

# Notes that overlay filesystems keep in extended attributes. In a layer they would be forgeries: of
# "this directory was moved from there", of "the data of this file is elsewhere".
_FORGEABLE_XATTRS = (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.")
_DEFAULT_ACL = b"system.posix_acl_default"
_LABEL_XATTR = b"security.selinux"  # belongs to the host's policy, not to the layer


class Late(NamedTuple):
    """What a directory gets when nothing is put into it any more.

    Attributes:
        inode: of the directory; something else may stand at its path by then.
        times: access and modification, in ns; None leaves them alone.
        default_acl: the value of that attribute, which all that is made there would inherit.
    """

    inode: int
    times: tuple[int, int] | None
    default_acl: bytes | None


class Maker:
    """Makes objects, with the owners and the tolerance that one extraction has.

    Args:
        id_map: from container ids to host ids.
        ignore_chown_errors: report owners that cannot be set and go on.
    """

    def __init__(self, id_map: IdentityMapping, *, ignore_chown_errors: bool = False) -> None:
        self._id_map = id_map
        self._root_owner = id_map.root_pair()
        self._ignore_chown_errors = ignore_chown_errors
        self._nested = in_user_namespace()

    def implied_directory(self, dir_fd: int, name: bytes) -> None:
        """Make a parent that the archive does not list: 0755, owned by the container's root."""
        os.mkdir(name, 0o700, dir_fd=dir_fd)
        fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
        try:
            self._chown(fd, self._root_owner, name)
            os.fchmod(fd, IMPLIED_MODE)
        finally:
            os.close(fd)

    def whiteout(self, dir_fd: int, name: bytes) -> None:
        """Make the plain empty file that a whiteout or an opaque mark is in a branch."""
        fd = os.open(name, _NEW_FILE, _WHITEOUT_MODE, dir_fd=dir_fd)
        try:
            self._chown(fd, self._root_owner, name)
        finally:
            os.close(fd)

    def directory(self, dir_fd: int, name: bytes, entry: Entry) -> Late:
        """Make a directory, or give the one that is there the entry's attributes.

        Returns:
            What it gets later (`finish_directory`).
        """
        with contextlib.suppress(FileExistsError):  # if it is no directory, the open below fails
            os.mkdir(name, 0o700, dir_fd=dir_fd)
        return self.attributes_of_directory(dir_fd, name, entry)

    def attributes_of_directory(self, dir_fd: int, name: bytes, entry: Entry) -> Late:
        """Give the directory ``name`` the entry's attributes; returns as `directory`."""
        default_acl = entry.xattrs.pop(_DEFAULT_ACL, None)
        fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
        try:
            self._finish(fd, entry)
            return Late(os.fstat(fd).st_ino, entry_times(entry), default_acl)
        finally:
            os.close(fd)

    def finish_directory(self, dir_fd: int, name: bytes, late: Late) -> None:
        """Give a directory what it gets last, if it is still the one that was made."""
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return  # replaced by a later entry
            raise
        try:
            if os.fstat(fd).st_ino != late.inode:
                return
            if late.default_acl is not None:
                self._set_xattr(fd, b"", _DEFAULT_ACL, late.default_acl)
            if late.times is not None:
                os.utime(fd, ns=late.times)
        finally:
            os.close(fd)

    def file(
        self, dir_fd: int, name: bytes, entry: Entry, content: Iterable[tuple[int, bytes]]
    ) -> None:
        """Make a regular file.

        Args:
            dir_fd: directory to make it in.
            name: a free name in it.
            entry: its attributes.
            content: pairs of offset and data, ascending; the gaps become holes.
        """
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=dir_fd)
        try:
            write_content(fd, entry, content)
            self._finish(fd, entry)
            if (times := entry_times(entry)) is not None:
                os.utime(fd, ns=times)
        finally:
            os.close(fd)

    def symlink(self, dir_fd: int, name: bytes, entry: Entry) -> None:
        """Make a symbolic link with the text that the entry has, wherever that leads."""
        os.symlink(entry.link, name, dir_fd=dir_fd)
        self._chown_name(dir_fd, name, entry)
        for key, value in entry.xattrs.items():
            self._set_xattr(dir_fd, name, key, value)
        if (times := entry_times(entry)) is not None:
            os.utime(name, ns=times, dir_fd=dir_fd, follow_symlinks=False)

    def node(self, dir_fd: int, name: bytes, entry: Entry) -> bool:
        """Make a fifo or a device.

        Returns:
            False when a user namespace did not allow the device.
        """
        kind = _NODE_TYPES[entry.kind]
        device = os.makedev(entry.major, entry.minor)
        try:
            os.mknod(name, kind | 0o600, device, dir_fd=dir_fd)
        except PermissionError:
            if not self._nested or entry.kind is Kind.FIFO:
                raise
            _log.warning("device %r left out: not allowed in a user namespace", entry.name)
            return False
        # Opening a device would wake its driver, so it is pinned and changed through its pin.
        fd = os.open(name, _PIN, dir_fd=dir_fd)
        try:
            path = b"/proc/self/fd/%d" % fd
            self._chown_name(dir_fd, name, entry)
            for key, value in entry.xattrs.items():
                self._set_xattr(dir_fd, name, key, value)
            os.chmod(path, entry.mode)
            if (times := entry_times(entry)) is not None:
                os.utime(path, ns=times)
        finally:
            os.close(fd)
        return True

    def _finish(self, fd: int, entry: Entry) -> None:
        """Owner, extended attributes and mode of an object that is open."""
        self._chown(fd, self._id_map.to_host(entry.uid, entry.gid), entry.name)
        for key, value in entry.xattrs.items():
            self._set_xattr(fd, b"", key, value)
        os.fchmod(fd, entry.mode)

    def _chown(self, fd: int, owner: tuple[int, int], name: bytes) -> None:
        try:
            os.fchown(fd, *owner)
        except OSError as error:
            self._forgive_owner(error, owner, name)

    def _chown_name(self, dir_fd: int, name: bytes, entry: Entry) -> None:
        owner = self._id_map.to_host(entry.uid, entry.gid)
        try:
            os.chown(name, *owner, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            self._forgive_owner(error, owner, entry.name)

    def _forgive_owner(self, error: OSError, owner: tuple[int, int], name: bytes) -> None:
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise error
        if not self._ignore_chown_errors:
            text = f"owner {owner[0]}:{owner[1]} cannot be set here; aufs.ignore_chown_errors=true"
            raise OSError(error.errno, f"{text} goes on without it") from error
        _log.warning("owner %d:%d of %r cannot be set here", *owner, name)

    def _set_xattr(self, fd: int, name: bytes, key: bytes, value: bytes) -> None:
        """Set an attribute of ``name`` below ``fd``, or of ``fd`` itself when there is no name."""
        if key == _LABEL_XATTR:
            return
        if key.startswith(_FORGEABLE_XATTRS):
            _log.warning("extended attribute %r left out", key)
            return
        try:
            if name:
                syscalls.setxattr_at(fd, name, key, value)
            else:
                os.setxattr(fd, key, value)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise
            _log.warning("extended attribute %r cannot be set here: %s", key, error.strerror)


def write_content(fd: int, entry: Entry, content: Iterable[tuple[int, bytes]]) -> None:
    """Write the pieces of a file to ``fd``; of a sparse one keep the holes."""
    at = 0
    for offset, data in content:
        if offset != at:
            os.lseek(fd, offset, os.SEEK_SET)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        at = offset + len(data)
    if at != entry.size:
        os.ftruncate(fd, entry.size)


def entry_times(entry: Entry) -> tuple[int, int] | None:
    """Return access and modification time in ns, the former never before the latter."""
    if entry.mtime is None:
        return None
    return max(entry.mtime if entry.atime is None else entry.atime, entry.mtime), entry.mtime
