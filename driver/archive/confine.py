"""From the name of an archive member to "this directory, this name", and never out of the root.

A member name is cleaned as text first: ``/`` at its front is harmless, ``..`` steps back over what
stands before it, and a ``..`` with nothing left to step over is an attempt to leave the layer
(``BreakoutError``). Then the directory part is resolved by the kernel with the root of the layer
as if it were ``/``: an absolute symbolic link starts there, ``..`` at the root stays there. Real
layers need that, they write through ``lib -> usr/lib``. The last component is never resolved at
all: whoever gets it works on exactly that name below exactly that directory (driver.md 7.3,
"Confinement").

Two ways lead to the directory. ``openat2`` does all of it in one call. The second walks component
by component and reads symbolic links itself; it serves where ``openat2`` is missing, for links in
paths of more than 4095 bytes, and to make parents that the archive did not list. Mounts found
inside the root are not entered.
"""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from driver.beneath import kernel_resolves, open_child, open_directory
from driver.errors import BreakoutError
from unionfs import syscalls

Path = tuple[bytes, ...]
"""A cleaned name: components without ``/``, none empty, ``.`` or ``..``; the root is ``()``."""

_IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_OBJECT = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_PATH_MAX = 4096  # bytes, the final NUL included
_MAX_LINKS = 40  # the kernel's own limit
_MAX_STEPS = 1 << 16  # component walks that links may add, see _Walk


def clean(name: bytes) -> Path:
    """Clean the name of a member.

    Args:
        name: as stored in the archive.

    Returns:
        The components; none for the root itself.

    Raises:
        BreakoutError: the name leads outside.
    """
    absolute = name.startswith(b"/")
    path: list[bytes] = []
    for component in name.split(b"/"):
        if component == b"..":
            if path:
                path.pop()
            elif not absolute:
                raise BreakoutError("name outside of the layer", name)
        elif component not in (b"", b"."):
            path.append(component)
    return tuple(path)


def clean_link(text: bytes) -> Path:
    """Clean the target of a hard link, which counts from the root however it is written.

    Raises:
        BreakoutError: the target is outside, ``/../x`` included.
    """
    return clean(text.lstrip(b"/"))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member goes.

    Attributes:
        fd: directory, opened with ``O_PATH``; owned by the ``Confined`` and good until its next
        call. name: one component.
    """

    fd: int
    name: bytes


class Confined:
    """The root of a layer, and the only way to reach anything in it.

    Args:
        root_fd: directory descriptor of the root; stays the caller's.
        make_directory: creates a parent that the archive did not list, given the descriptor and
            the name; never called for a name that exists.
        openat2: False keeps to the second way; None finds out.
    """

    def __init__(
        self,
        root_fd: int,
        make_directory: Callable[[int, bytes], None],
        *,
        openat2: bool | None = None,
    ) -> None:
        self._root = root_fd
        self._make_directory = make_directory
        self._openat2 = kernel_resolves() if openat2 is None else openat2
        self._cached: Path | None = None
        self._cached_fd = -1

    def close(self) -> None:
        """Give back what is held open."""
        self.forget()

    def forget(self) -> None:
        """Drop the remembered directory; due whenever something was removed or replaced."""
        if self._cached_fd >= 0:
            os.close(self._cached_fd)
        self._cached, self._cached_fd = None, -1

    def parent(self, path: Path, *, create: bool = False) -> Place:
        """Resolve the directory part of ``path``.

        Args:
            path: cleaned, not the root.
            create: make the directories that are missing.

        Raises:
            OSError: ``ENOENT`` when a directory is missing, ``ENOTDIR`` when something else is in
                its place, ``ELOOP`` for too many links, ``EXDEV`` for a mount.
        """
        directory = path[:-1]
        if directory != self._cached:
            fd = self._open(directory, create=create)
            self.forget()
            self._cached, self._cached_fd = directory, fd
        return Place(self._cached_fd, path[-1])

    def first_missing(self, path: Path) -> Place | None:
        """Find the first directory on the way to ``path`` that is not there, if one is missing.

        Raises:
            OSError: as `parent`.
        """
        try:
            self.parent(path)
        except FileNotFoundError:
            fd, missing = self._walk(path[:-1])
            self.forget()
            self._cached_fd = fd  # under no path: it only has to be closed some time
            return Place(fd, missing[0]) if missing else None
        return None

    def _open(self, directory: Path, *, create: bool) -> int:
        joined = b"/".join(directory) or b"."
        if self._openat2:
            try:
                if len(joined) < _PATH_MAX:
                    return syscalls.openat2(self._root, joined, _DIRECTORY, resolve=_IN_ROOT)
                return open_directory(self._root, joined)  # in pieces, so without links
            except OSError as error:
                missing_is_fine = create and error.errno == errno.ENOENT
                link_in_long_path = len(joined) >= _PATH_MAX and error.errno == errno.ELOOP
                if not missing_is_fine and not link_in_long_path:
                    raise
        fd, missing = self._walk(directory)
        try:
            if missing and not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            for name in missing:
                self._make_directory(fd, name)
                deeper = open_child(fd, name, _DIRECTORY, openat2=self._openat2)
                os.close(fd)
                fd = deeper
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _walk(self, directory: Path) -> tuple[int, list[bytes]]:
        """Go as far as there are directories.

        Returns:
            The last one's descriptor, owned by the caller, and the names that are missing below.
        """
        walk = _Walk(self._root, openat2=self._openat2)
        try:
            return walk.run(directory)
        except BaseException:
            walk.close()
            raise


class _Walk:
    """Resolution in user space, one component at a time.

    ``..`` is never looked up: the walk goes back by starting again from the root with one name
    less, so a directory that is moved meanwhile cannot carry it outside. That makes ``..`` dear,
    and links full of them are a way to keep a machine busy: the steps that links cause are
    counted.
    """

    def __init__(self, root_fd: int, *, openat2: bool) -> None:
        self._root = root_fd
        self._openat2 = openat2
        self._fd = os.dup(root_fd)
        self._done: list[bytes] = []
        self._missing: list[bytes] = []
        self._links = 0
        self._steps = 0

    def close(self) -> None:
        os.close(self._fd)

    def run(self, directory: Path) -> tuple[int, list[bytes]]:
        pending = list(reversed(directory))
        while pending:
            name = pending.pop()
            if self._links:
                self._count(1)
            if name in (b"", b"."):
                continue
            if name == b"..":
                self._back()
            elif self._missing:
                self._missing.append(name)
            else:
                pending.extend(reversed(self._step(name)))
        return self._fd, self._missing

    def _step(self, name: bytes) -> list[bytes]:
        """Enter ``name``; if it is a symbolic link return the components it stands for."""
        try:
            child = open_child(self._fd, name, _OBJECT, openat2=self._openat2)
        except FileNotFoundError:
            self._missing.append(name)
            return []
        try:
            mode = os.fstat(child).st_mode
            if stat.S_ISDIR(mode):
                self._fd, child = child, self._fd
                self._done.append(name)
                return []
            if not stat.S_ISLNK(mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            text = os.readlink(b"", dir_fd=child)
        finally:
            os.close(child)
        self._links += 1
        if self._links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if text.startswith(b"/"):
            self._restart([])
        return text.split(b"/")

    def _back(self) -> None:
        if self._missing:
            self._missing.pop()
        elif self._done:
            self._restart(self._done[:-1])

    def _restart(self, names: list[bytes]) -> None:
        fd = os.dup(self._root)
        try:
            for name in names:
                self._count(1)
                deeper = open_child(fd, name, _DIRECTORY, openat2=self._openat2)
                os.close(fd)
                fd = deeper
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self._done = fd, names

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
