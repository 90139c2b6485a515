"""A branch becomes a layer tar (driver.md 7.2).

The tree is walked in pre-order, the names of a directory in the order of their bytes, so the same
branch always gives the same archive. It is walked by descriptor: a file that turns into a
symbolic link while it is looked at is left out, not followed (podman, CVE-2023-0778).

Three kinds of name are there without lying in the tree at their place:

* names of *pseudo-links*: a file that lower branches know by several names, copied up under one of
  them. The others are given to the writer, and come out as hard links where the order puts them.
* the *directories* such names lie in, if the branch does not have them. They are written when
  their attributes are given; else the reader will make them up.
* *whiteouts* of what a comparison of two trees found missing, and marks that the branch has in the
  form of another union filesystem. A layer tar knows aufs's only.

A file that cannot be read is logged and left out; if it is not the file's fault (``trouble``) the
stream ends in an error and has no end marker. So it does where the archive could only be misaligned
from there on, because a large file shrank while it was being read: a file's header and its content
always agree.
"""

import errno
import logging
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Protocol

from driver.archive import members, whiteouts
from driver.archive.attributes import AttributeFilter, layer_attributes, read_attributes
from driver.archive.headers import BLOCK, padding
from driver.archive.levels import Extra, ExtraLink, Level, Step, path_order, plant, tree_order
from driver.archive.members import Member
from driver.archive.trouble import leave_out
from driver.descent import Descent
from driver.errors import ArchiveError, IdMappingError, InvalidArchiveError
from driver.idmap import IdentityMapping
from driver.marks import read_marked

_log = logging.getLogger(__name__)

Root = int | str | bytes | os.PathLike[str]
Pieces = Generator[bytes, None, None]

_END = bytes(2 * BLOCK)
_CHUNK = 256 * 1024  # bytes read from a file, and handed out, at a time
_WHOLE = 1 << 20  # up to this size, in bytes, a file is read before its header is written
_WHITEOUT_MODE = 0o444
_PIN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NANOSECONDS = 1_000_000_000
_KINDS = {
    stat.S_IFREG: members.FILE,
    stat.S_IFDIR: members.DIRECTORY,
    stat.S_IFLNK: members.SYMLINK,
    stat.S_IFCHR: members.CHAR,
    stat.S_IFBLK: members.BLOCK,
    stat.S_IFIFO: members.FIFO,
}


class Writable(Protocol):
    """What a layer is written to."""

    def write(self, data: bytes, /) -> object:
        """Take all of ``data``."""


def is_private(path: bytes) -> bool:
    """Tell whether the path is the filesystem's own, at the top of a branch."""
    return whiteouts.is_private((path.partition(b"/")[0],))


def layer_chunks(
    root: Root,
    id_map: IdentityMapping | None = None,
    *,
    exclude: Callable[[bytes], bool] = is_private,
    extra_links: Mapping[bytes, ExtraLink] | None = None,
    extra_directories: Mapping[bytes, os.stat_result] | None = None,
    extra_whiteouts: Iterable[bytes] = (),
    attributes: AttributeFilter = layer_attributes,
    marked: bool = True,
    by_path: bool = False,
) -> Pieces:
    """Produce a branch as a tar; closing the generator stops the walk.

    Args:
        root: the branch: a directory descriptor, which stays the caller's and has to stay open, or
            a path, whose last component is not followed. A path that is missing gives an empty
            archive.
        id_map: from host ids to container ids; None leaves them alone.
        exclude: tells which paths, relative to the root, are left out with all that is below.
        extra_links: further names, relative to the root, of files of the branch. A name that the
            branch has itself is not written twice.
        extra_directories: attributes of directories that only those names need.
        extra_whiteouts: paths of whiteouts that are to be written, ``dir/.wh.name``.
        attributes: tells by its name which extended attribute is written.
        marked: the branch may hold marks in the forms of other union filesystems. A mounted union
            has none, and to ask for them costs it a request for each directory.
        by_path: sort by whole paths, deletions by what they delete. Otherwise a directory is
            followed by what is inside it.

    Yields:
        The next bytes, in portions of no particular size.

    Raises:
        ArchiveError: a large file changed its size, or the tree was removed, while it was read; or
            it holds references of overlayfs, whose content lies elsewhere.
        OSError: the root cannot be read, or the trouble is not with one file alone.
    """
    fd = root if isinstance(root, int) else _open_root(os.fsencode(root))
    try:
        if fd >= 0:
            writer = _Writer(
                fd,
                IdentityMapping() if id_map is None else id_map,
                exclude,
                plant(extra_links or {}, extra_directories or {}, extra_whiteouts),
                attributes,
                marked=marked,
                by_path=by_path,
            )
            yield from _gather(writer.tree())
        yield _END
    finally:
        if fd >= 0 and not isinstance(root, int):
            os.close(fd)


def write_layer(
    root: Root,
    out: Writable,
    id_map: IdentityMapping | None = None,
    *,
    exclude: Callable[[bytes], bool] = is_private,
    extra_links: Mapping[bytes, ExtraLink] | None = None,
    extra_directories: Mapping[bytes, os.stat_result] | None = None,
    attributes: AttributeFilter = layer_attributes,
) -> None:
    """Write a branch as a tar to ``out``; for all else see `layer_chunks`."""
    for chunk in layer_chunks(
        root,
        id_map,
        exclude=exclude,
        extra_links=extra_links,
        extra_directories=extra_directories,
        attributes=attributes,
    ):
        out.write(chunk)


def _open_root(path: bytes) -> int:
    while path.endswith((b"/", b"/.")) and path.strip(b"/."):
        path = path.removesuffix(b".").rstrip(b"/")  # either would have the link followed
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def _gather(pieces: Pieces) -> Pieces:
    """Join small pieces, so that a header does not cost its reader a call of its own."""
    held: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size >= _CHUNK:
                yield b"".join(held)
                held, size = [], 0
        if held:
            yield b"".join(held)
    finally:
        pieces.close()


class _Writer:
    def __init__(
        self,
        root_fd: int,
        id_map: IdentityMapping,
        exclude: Callable[[bytes], bool],
        extras: dict[bytes, Extra],
        attributes: AttributeFilter,
        *,
        marked: bool,
        by_path: bool,
    ) -> None:
        self._root = root_fd
        self._id_map = id_map
        self._exclude = exclude
        self._extras = extras
        self._attributes = attributes
        self._marked = marked
        self._order = path_order if by_path else tree_order
        self._first: dict[tuple[int, int], bytes] = {}  # where an inode's content was written

    def tree(self) -> Pieces:
        """Produce all members, in order."""
        with Descent(self._root) as at:
            was_linked = os.fstat(at.fd).st_nlink > 0  # some filesystems never say so
            levels = [self._level(at.fd, b"", self._extras)]
            while levels:
                level = levels[-1]
                step = level.next()
                if step is None:
                    levels.pop()
                    if level.real and levels:
                        at.leave()
                elif step.inside:
                    inside = self._inside(at, level, step)
                    if inside is not None:
                        levels.append(inside)
                else:
                    yield from self._entry(at.fd, level, step.name)
        with Descent(self._root) as at:
            if was_linked and not os.fstat(at.fd).st_nlink:
                # File by file it vanished: what was left out would be missed by nobody.
                raise ArchiveError("the tree was removed while it was read")

    def _entry(self, dir_fd: int, level: Level, name: bytes) -> Pieces:
        """Produce what there is of one name, and plan what is inside."""
        path = level.prefix + name
        if self._exclude(path):
            return
        extra = level.extras.get(name)
        given = extra is not None and extra.whiteout  # a mounted union refuses its name
        status = _status(dir_fd, name, path) if level.real and not given else None
        if status is not None:
            yield from self._guarded(path, self._real(dir_fd, name, path, status))
            if stat.S_ISDIR(status.st_mode):
                level.enter(name, real=True)
        elif extra is not None:
            yield from self._guarded(path, self._given(path, extra))
            if extra.children:
                level.enter(name, real=False)

    def _inside(self, at: Descent, level: Level, step: Step) -> Level | None:
        """Go down into a directory; None when that is not possible."""
        path = level.prefix + step.name
        extra = level.extras.get(step.name)
        children = {} if extra is None else extra.children
        if not step.real:
            return Level(path + b"/", None, children, self._order)
        try:
            at.enter(step.name)
        except OSError as error:
            leave_out(path, error)
            return None
        try:
            return self._level(at.fd, path + b"/", children)
        except OSError as error:
            leave_out(path, error)
            at.leave()
            return None

    def _level(self, fd: int, prefix: bytes, extras: dict[bytes, Extra]) -> Level:
        """List the open directory, foreign marks as names that were given."""
        if not self._marked:
            return Level(prefix, map(os.fsencode, os.listdir(fd)), extras, self._order)
        found = read_marked(fd)
        marks = plant({}, {}, found.foreign())
        return Level(prefix, found.real | found.reserved, marks | extras, self._order)

    def _guarded(self, path: bytes, pieces: Pieces) -> Pieces:
        """Pass on one member; trouble before its first byte costs this member only."""
        started = False
        try:
            for piece in pieces:
                started = True
                yield piece
        except (OSError, IdMappingError, InvalidArchiveError) as error:
            if started:
                raise ArchiveError(f"cannot go on: {error}", path) from error
            leave_out(path, error)
        finally:
            pieces.close()

    def _real(self, dir_fd: int, name: bytes, path: bytes, status: os.stat_result) -> Pieces:
        """Produce what lies in the branch."""
        directory = stat.S_ISDIR(status.st_mode)
        if name.startswith(whiteouts.PREFIX):
            whiteouts.hidden_name(name, path)
            if not directory:
                # Just the name counts. In a branch most are links to one file, here none is.
                yield Member(path, members.FILE, mode=_WHITEOUT_MODE).encode()
                return
        if stat.S_ISSOCK(status.st_mode):
            _log.info("socket %r left out of the layer", path)
            return
        if not directory and (first := self._first.get((status.st_dev, status.st_ino))):
            yield self._member(path, status, members.LINK, link=first).encode()
            return
        yield from self._whole(dir_fd, name, path, status)

    def _given(self, path: bytes, extra: Extra) -> Pieces:
        """Produce a name that was handed in."""
        if extra.whiteout:
            yield Member(path, members.FILE, mode=_WHITEOUT_MODE).encode()
            return
        if extra.link is None:
            if extra.status is not None:
                yield self._member(path, extra.status, members.DIRECTORY).encode()
            return
        device, inode, entry = extra.link
        plink = b"/".join((whiteouts.PSEUDO_LINKS, entry))
        with Descent(self._root) as at:
            at.enter(whiteouts.PSEUDO_LINKS)
            status = os.stat(entry, dir_fd=at.fd, follow_symlinks=False)
            if (status.st_dev, status.st_ino) != (device, inode):
                raise FileNotFoundError(errno.ENOENT, "its pseudo-link is gone", plink)
            yield from self._real(at.fd, entry, path, status)
        self._first.setdefault((device, inode), path)  # even if no other name is left of it

    def _whole(self, dir_fd: int, name: bytes, path: bytes, status: os.stat_result) -> Pieces:
        """Produce a member that has a file of its own."""
        pin = os.open(name, _PIN, dir_fd=dir_fd)
        try:
            pinned = os.fstat(pin)
            if not os.path.samestat(pinned, status):
                raise FileNotFoundError(errno.ENOENT, "replaced while it was read")
            member = self._member(path, pinned, _KINDS[stat.S_IFMT(pinned.st_mode)])
            member.xattrs = read_attributes(b"/proc/self/fd/%d" % pin, self._attributes, path)
            if member.kind == members.FILE:
                yield from _with_content(member, pin)
            else:
                if member.kind == members.SYMLINK:
                    member.link = os.readlink(b"", dir_fd=pin)
                yield member.encode()
        finally:
            os.close(pin)
        # Not earlier: a name that failed is none that others could be linked to.
        if pinned.st_nlink > 1 and member.kind != members.DIRECTORY:
            self._first[pinned.st_dev, pinned.st_ino] = path

    def _member(
        self, path: bytes, status: os.stat_result, kind: bytes, link: bytes = b""
    ) -> Member:
        uid, gid = self._id_map.to_container(status.st_uid, status.st_gid)
        device = kind in (members.CHAR, members.BLOCK)
        return Member(
            path + b"/" if kind == members.DIRECTORY else path,
            kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=uid,
            gid=gid,
            mtime=status.st_mtime_ns // _NANOSECONDS,
            link=link,
            major=os.major(status.st_rdev) if device else 0,
            minor=os.minor(status.st_rdev) if device else 0,
        )


def _with_content(member: Member, pin: int) -> Pieces:
    """Produce header and content of a regular file; both always agree about the size."""
    fd = os.open(b"/proc/self/fd/%d" % pin, os.O_RDONLY | os.O_CLOEXEC)
    try:
        member.size = left = os.fstat(fd).st_size
        if left <= _WHOLE:
            data = b"".join(_read(fd, left))
            member.size = len(data)
            yield b"".join((member.encode(), data, bytes(padding(len(data)))))
            return
        yield member.encode()
        for piece in _read(fd, left):
            left -= len(piece)
            yield piece
        if left:
            raise OSError(errno.EIO, f"{left} bytes are missing, it shrank while it was read")
        yield bytes(padding(member.size))
    finally:
        os.close(fd)


def _read(fd: int, size: int) -> Iterator[bytes]:
    """Read up to ``size`` bytes; what was appended meanwhile is not looked at."""
    while size and (piece := os.read(fd, min(size, _CHUNK))):
        size -= len(piece)
        yield piece


def _status(dir_fd: int, name: bytes, path: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None  # gone since the directory was listed, or never there
    except OSError as error:
        leave_out(path, error)
        return None
