"""One directory of a branch, sorted into what is there and what is marked as gone.

The same reading as the mounted union's (profile ``driver``): besides the forms of aufs, those of
other union filesystems count, because image layers made elsewhere carry them (driver.md 4.5). A
whiteout of aufs is known by its name, whatever it is made of.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field

from unionfs.branch.forms import (
    FOREIGN_OPAQUE,
    FOREIGN_WHITEOUT,
    OPAQUE_MARK,
    WHITEOUT_PREFIX,
    hidden_by,
    is_device_whiteout,
    whiteout_of,
)

_NO_XATTR = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT, errno.EPERM, errno.EACCES})
_HAS_WHITEOUT_FILES = b"x"
_IS_OPAQUE = b"y"


@dataclass(slots=True)
class Marked:
    """What a directory says.

    Attributes:
        real: names of its real entries.
        hidden: names that it hides in lower branches; one may be in both sets.
        opaque: it hides all that lower branches have in it.
        reserved: names of its entries that begin with ``.wh.``, whatever they say.
    """

    real: set[bytes] = field(default_factory=set)
    hidden: set[bytes] = field(default_factory=set)
    opaque: bool = False
    reserved: set[bytes] = field(default_factory=set)

    def foreign(self) -> set[bytes]:
        """Return the marks, by their names in aufs's form, that are here in another form only."""
        marks = {whiteout_of(name) for name in self.hidden}
        if self.opaque:
            marks.add(OPAQUE_MARK)
        return marks - self.reserved


def read_marked(fd: int) -> Marked:
    """Read the directory behind ``fd``.

    Raises:
        OSError: as getdents(2).
    """
    found = Marked()
    mark = _xattr(fd, FOREIGN_OPAQUE)
    found.opaque = mark == _IS_OPAQUE
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if name.startswith(WHITEOUT_PREFIX):
                found.reserved.add(name)
                found.opaque |= name == OPAQUE_MARK
                gone = hidden_by(name)
                if gone is not None and gone not in (b".", b".."):
                    found.hidden.add(gone)
            elif _is_whiteout(fd, entry, files=mark == _HAS_WHITEOUT_FILES):
                found.hidden.add(name)
            else:
                found.real.add(name)
    return found


def _is_whiteout(fd: int, entry: os.DirEntry[str], *, files: bool) -> bool:
    """Tell whether the entry itself stands for a deletion.

    Args:
        files: empty files with a certain attribute do, in this directory.
    """
    try:
        if entry.is_file(follow_symlinks=False):
            return files and _is_whiteout_file(fd, entry)
        if entry.is_dir(follow_symlinks=False) or entry.is_symlink():
            return False
        return is_device_whiteout(entry.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _is_whiteout_file(fd: int, entry: os.DirEntry[str]) -> bool:
    if entry.stat(follow_symlinks=False).st_size:
        return False
    try:
        pinned = os.open(entry.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except FileNotFoundError:
        return False
    try:
        regular = stat.S_ISREG(os.fstat(pinned).st_mode)
        return regular and _xattr(f"/proc/self/fd/{pinned}", FOREIGN_WHITEOUT) is not None
    finally:
        os.close(pinned)


def _xattr(where: int | str, keys: tuple[bytes, ...]) -> bytes | None:
    """Return the value of the first of these attributes that is there."""
    for key in keys:
        try:
            return os.getxattr(where, key)
        except OSError as error:
            if error.errno not in _NO_XATTR:
                raise
    return None
