"""What unpacking a layer and applying it have in common (driver.md 7.3).

Both read the same archive into the same kind of confined root; they differ in what a whiteout does,
so that is what their own modules hold. Here is the rest: a later entry replaces an earlier one,
a directory meeting a directory is merged with it, hard links count from the root, parents that are
not listed are made, and directories get their times and their default ACL at the very end, because
everything that is put into a directory changes the ones and inherits the other.
"""

import errno
import os
import stat
from collections.abc import Callable

from driver.archive.confine import Confined, Path, Place, clean, clean_link
from driver.archive.objects import Late, Maker
from driver.archive.reader import Entry, Kind, LayerReader, Readable
from driver.archive.removal import remove
from driver.errors import InvalidArchiveError
from driver.idmap import IdentityMapping
from unionfs import syscalls

_PIN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# No path that the kernel takes is deeper than half of this, and what is made of a layer later, the
# list of its changes for one, takes memory that grows with the square of the depth.
_DEEPEST = 4096
_NO_WAY = frozenset({errno.ENOENT, errno.ENOTDIR})


class Extraction:
    """One archive on its way into one directory.

    Args:
        root_fd: directory descriptor of the root; stays the caller's.
        stream: the uncompressed archive.
        id_map: from container ids to host ids; None leaves them alone.
        ignore_chown_errors: report owners that cannot be set and go on.
        openat2: see ``Confined``.
    """

    def __init__(
        self,
        root_fd: int,
        stream: Readable | None,
        id_map: IdentityMapping | None,
        *,
        ignore_chown_errors: bool = False,
        openat2: bool | None = None,
    ) -> None:
        if stream is None:  # the engine's null stream, driver.md 7.4 vector 22
            raise ValueError("no stream to read the layer from")
        self.reader = LayerReader(stream)
        self.maker = Maker(
            IdentityMapping() if id_map is None else id_map,
            ignore_chown_errors=ignore_chown_errors,
        )
        self.root_fd = root_fd
        self.root = Confined(root_fd, self.maker.implied_directory, openat2=openat2)
        self._late: dict[bytes, Late] = {}  # by path, joined: there may be many
        self._left_out: set[Path] = set()  # what could not be made here

    def run(self, handle: Callable[[Path, Entry], None]) -> None:
        """Hand every entry but the root's over, then finish the directories.

        Args:
            handle: gets the cleaned name, ``()`` for the root, and the entry.

        Raises:
            InvalidArchiveError: the archive is malformed, incomplete or hostile.
            IdMappingError: an owner has no counterpart on the host.
            OSError: the system refuses; ``filename`` is the name of the entry.
        """
        try:
            for entry in self.reader:
                try:
                    handle(_path_of(entry), entry)
                except OSError as error:
                    error.filename = os.fsdecode(entry.name)
                    raise
            for name, late in self._late.items():
                self._finish(_split(name), late)
        finally:
            self.root.close()

    def place(self, path: Path) -> Place:
        """Return where ``path`` goes, which is to be made now; make parents that are missing."""
        self._left_out.discard(path)
        return self.root.parent(path, create=True)

    def existing_place(self, path: Path) -> Place | None:
        """Return where ``path`` is, or None if there is no such directory."""
        try:
            return self.root.parent(path)
        except OSError as error:
            if error.errno not in _NO_WAY:
                raise
            return None

    def remove(self, place: Place) -> bool:
        """Remove what is at ``place``; tell whether there was anything."""
        removed = remove(place.fd, place.name)
        if removed:
            self.root.forget()
        return removed

    def claim(self, path: Path) -> Place:
        """Make ``path`` a free name.

        Returns:
            Where it is.
        """
        place = self.place(path)
        if self.remove(place):
            place = self.place(path)
        return place

    def create(
        self, path: Path, entry: Entry, replaced: Callable[[Path], None] = lambda _: None
    ) -> Place | None:
        """Make the object that the entry describes, in place of whatever is there.

        Args:
            replaced: called when a directory was made in place of something else.

        Returns:
            Where it was made; None when it had to be left out.
        """
        if entry.kind is Kind.DIRECTORY:
            return self._directory(path, entry, replaced)
        self._late.pop(b"/".join(path), None)
        if entry.kind is Kind.LINK:
            return self._link(path, entry)
        place = self.claim(path)
        if entry.kind is Kind.FILE:
            self.maker.file(place.fd, place.name, entry, self.reader.content())
        elif entry.kind is Kind.SYMLINK:
            self.maker.symlink(place.fd, place.name, entry)
        elif not self.maker.node(place.fd, place.name, entry):
            self.leave_out(path)
            return None
        return place

    def leave_out(self, path: Path) -> None:
        """Note that there is no ``path``: what links to it is left out as well."""
        self._left_out.add(path)

    def finish_later(self, path: Path, late: Late) -> None:
        """Give the directory what it gets last when all else is done."""
        self._late[b"/".join(path)] = late

    def _directory(self, path: Path, entry: Entry, replaced: Callable[[Path], None]) -> Place:
        place = self.place(path)
        status = status_of(place)
        replaces = status is not None and not stat.S_ISDIR(status.st_mode)
        if replaces:
            place = self.claim(path)
        self.finish_later(path, self.maker.directory(place.fd, place.name, entry))
        if replaces:
            replaced(path)
            place = self.place(path)
        return place

    def _link(self, path: Path, entry: Entry) -> Place | None:
        target = clean_link(entry.link)
        if not target:
            raise InvalidArchiveError("hard link to the root")
        if target in self._left_out:
            self.leave_out(path)
            return None
        # The target is pinned first: making room for the new name must not take it away.
        fd = self._pin(target)
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, "hard link to a directory")
            place = self.place(path)
            found = status_of(place)
            if found is not None and os.path.samestat(found, status):
                return place
            place = self.claim(path)
            syscalls.link_fd(fd, place.fd, place.name)
        finally:
            os.close(fd)
        return place

    def _pin(self, target: Path) -> int:
        """Open what a hard link leads to, for nothing but being linked."""
        try:
            source = self.root.parent(target)
            return os.open(source.name, _PIN, dir_fd=source.fd)
        except OSError as error:
            shown = os.fsdecode(b"/".join(target))
            text = f"cannot be linked to {shown!r}: {error.strerror}"
            raise OSError(error.errno, text) from error

    def _finish(self, path: Path, late: Late) -> None:
        if not path:
            self.maker.finish_directory(self.root_fd, b".", late)
            return
        place = self.existing_place(path)
        if place is not None:
            self.maker.finish_directory(place.fd, place.name, late)


def status_of(place: Place) -> os.stat_result | None:
    """Return the attributes of what is at ``place``, not following it; None for nothing."""
    try:
        return os.stat(place.name, dir_fd=place.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _path_of(entry: Entry) -> Path:
    path = clean(entry.name)
    if len(path) > _DEEPEST:
        raise InvalidArchiveError(f"nested deeper than {_DEEPEST} directories", entry.name[:64])
    if not path and entry.kind is not Kind.DIRECTORY:
        # A layer whose root is a link would turn every later name around (CVE-2021-29136).
        raise InvalidArchiveError("the root of a layer must be a directory", entry.name)
    return path


def _split(name: bytes) -> Path:
    return tuple(name.split(b"/")) if name else ()
