"""Unpacking: a layer tar becomes a branch, its whiteouts stay what they are (driver.md 7.1, 7.3).

This is the fast way in. The branch is the layer, and the union filesystem reads the whiteouts
when the branch is mounted. They are written as plain empty files, whatever they were in the
archive: old layers carry them as hard links to a file of the filesystem that made them.

A whiteout whose directory is not there needs the directory only if the layers below can have one.
Where the same layer has removed or replaced that directory already, as some tools' layers do
(``.wh.x``, then ``x/.wh.y``), it has nothing left to hide, and making its parents would bring
``x`` back.

A layer may name a path twice, first as a file and then as a directory. The file would have hidden
what the layers below have there, so the directory that takes its place is marked as opaque.
"""

from collections.abc import Iterable

from driver.archive import whiteouts
from driver.archive.confine import Path, Place
from driver.archive.extraction import Extraction, status_of
from driver.archive.reader import Entry, Kind, Readable
from driver.archive.whiteouts import Role
from driver.errors import InvalidArchiveError
from driver.idmap import IdentityMapping


def unpack_layer(
    root_fd: int,
    stream: Readable | None,
    id_map: IdentityMapping | None = None,
    *,
    exclude: Iterable[bytes] = (),
    layers_below: bool = False,
    ignore_chown_errors: bool = False,
    openat2: bool | None = None,
) -> None:
    """Unpack a layer into a branch.

    Args:
        root_fd: directory descriptor of the branch; stays the caller's.
        stream: the uncompressed archive, read to its end.
        id_map: from container ids to host ids; None leaves them alone.
        exclude: entries whose cleaned name begins with one of these are left out.
        layers_below: there are some, so that what replaces a file has to go on hiding them.
        ignore_chown_errors: report owners that cannot be set here and go on.
        openat2: False keeps to plain open(2); None finds out what works.

    Raises:
        BreakoutError: a name leads outside of the branch.
        InvalidArchiveError: the archive is malformed, incomplete or breaks a rule of 7.1.
        IdMappingError: an owner has no counterpart on the host.
        OSError: the system refuses; what was unpacked until then stays.
        ValueError: there is no stream.
    """
    extraction = Extraction(
        root_fd, stream, id_map, ignore_chown_errors=ignore_chown_errors, openat2=openat2
    )
    unpacking = _Unpacking(extraction, _PrefixSet(exclude), layers_below=layers_below)
    extraction.run(unpacking.handle)


class _Unpacking:
    def __init__(
        self, extraction: Extraction, exclude: "_PrefixSet", *, layers_below: bool
    ) -> None:
        self._extraction = extraction
        self._exclude = exclude
        self._layers_below = layers_below

    def handle(self, path: Path, entry: Entry) -> None:
        if not path or self._exclude.matches(path):
            return  # the root keeps its owner and mode (driver.md 1.10 Q14)
        role = whiteouts.role(path)
        if role is Role.SCRATCH:
            return
        if role is Role.PSEUDO_LINK and len(path) == 1 and entry.kind is not Kind.DIRECTORY:
            # As a link it would give the filesystem somebody else's files for its own.
            raise InvalidArchiveError("pseudo-links lie in a directory", entry.name)
        if role in (Role.WHITEOUT, Role.OPAQUE) and entry.kind is not Kind.DIRECTORY:
            self._whiteout(path, role)
        else:
            self._extraction.create(path, entry, replaced=self._cover)

    def _cover(self, path: Path) -> None:
        if self._layers_below:
            self._whiteout((*path, whiteouts.OPAQUE), Role.OPAQUE)

    def _whiteout(self, path: Path, role: Role) -> None:
        extraction = self._extraction
        if role is Role.WHITEOUT and self._has_nothing_to_hide(path):
            return
        place = extraction.claim(path)
        extraction.maker.whiteout(place.fd, place.name)

    def _has_nothing_to_hide(self, path: Path) -> bool:
        try:
            missing = self._extraction.root.first_missing(path)
        except NotADirectoryError:
            return True  # this layer has a file where the directory would be
        if missing is None:
            return False
        return status_of(Place(missing.fd, whiteouts.PREFIX + missing.name)) is not None


class _PrefixSet:
    """Many prefixes, looked up by length: 65,534 of them cost no more than a few."""

    def __init__(self, prefixes: Iterable[bytes]) -> None:
        self._prefixes = frozenset(prefixes)
        self._lengths = sorted({len(prefix) for prefix in self._prefixes})

    def matches(self, path: Path) -> bool:
        if not self._lengths:
            return False
        name = b"/".join(path)
        return any(name[:length] in self._prefixes for length in self._lengths)
