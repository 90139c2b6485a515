"""Copy-up: the first change of something on a read-only branch makes a complete copy of it above.

The copy is built under a temporary name (``.wh..wh.NAME.xxxx``) beside its final place: data,
owner, mode, extended attributes, times, then to disk, and only then one rename gives it its name.
Whoever looks sees the old file or the complete new one. On any failure the temporary is removed and
the union is as it was (aufs.md 5.1 to 5.4).

The data is copied by a job, so other requests go on meanwhile. The node's ``copying`` latch keeps a
second copy-up, a rename or an unlink of the same file waiting until then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from dataclasses import dataclass
from errno import EBUSY, EDQUOT, EIO, ENODATA, ENOENT, ENOMEM, EOPNOTSUPP, EOVERFLOW, EPERM, EROFS
from typing import TYPE_CHECKING, Final

from unionfs import syscalls
from unionfs.branch import MountedOver
from unionfs.branch.forms import is_mark_xattr
from unionfs.union.data import CancelledError, copy_content
from unionfs.union.idmap import ACL_PREFIX, without_strangers
from unionfs.union.lookup import locate, nlink_of, node_of, resolve
from unionfs.union.nodes import Copy, DirectoryNode, FileNode, identity_of, reopen
from unionfs.union.operation import Job, Latch, Operation
from unionfs.union.plink import PseudoLink, tag_of, tag_of_open
from unionfs.union.state import State
from unionfs.union.strangers import is_strangers, is_suspect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.branch import Branch, Directory, WritableBranch, WritableDirectory

log = logging.getLogger(__name__)

_IGNORED_READING: Final = (ENODATA, EOPNOTSUPP)
_CLASSES: Final = {
    "security": "icexsec",
    "system": "icexsys",
    "trusted": "icextr",
    "user": "icexusr",
}
_SMALL: Final = 1 << 20  # bytes: less than this is copied in place unless it must reach the disk


@dataclass(frozen=True, slots=True)
class Place:
    """Where a copy is published: a name in a directory of the union."""

    parent: DirectoryNode
    name: bytes


def copy_up(
    state: State, node: FileNode, keep: int | None = None, place: Place | None = None
) -> Operation[bool]:
    """Bring a file onto the writable branch, if it is not there yet.

    Args:
        keep: make the copy as truncation to this size (bytes) would leave it, without copying
            more content than that; None for a faithful copy.
        place: publish the copy under this new name instead of its own (link of a lower file).

    Returns:
        Whether it was brought up by this call; if not, there was no truncation either.

    Raises:
        OSError: ``EROFS`` without a writable branch above it, ``ENOSPC`` and whatever else the
            branch says.
    """
    while node.copying is not None:
        yield node.copying
    target = state.target(node.branch)
    if node.branch is target:
        return False
    latch = node.copying = Latch()
    state.copying.add(latch)
    try:
        yield from _copy_file(state, node, target, keep, place)
    finally:
        state.copying.discard(latch)
        node.copying = None
        latch.open()
    return True


def copy_up_directory(state: State, node: DirectoryNode, target: WritableBranch) -> None:
    """Bring a directory and all above it onto a writable branch; never what is in it.

    The copy looks like the directory that is seen, even if it goes below that one: then it makes
    room for the copy of something that lies lower still (aufs.md 5.4).

    Raises:
        OSError: ``EROFS`` when a file there, out of sight, has the name of one of the directories.
    """
    missing: list[DirectoryNode] = []
    here = node
    while state.copy_on(here, target) is None:
        if here.removed:
            raise OSError(ENOENT, "the directory has been removed")
        missing.append(here)
        here = here.parent
    for directory in reversed(missing):
        _copy_directory(state, directory, target)


def _copy_directory(state: State, node: DirectoryNode, target: WritableBranch) -> None:
    parent = state.writable_directory(node.parent, target)
    source = state.directories.get(node, node.copies[0])
    if isinstance(source, MountedOver):
        raise OSError(EBUSY, "something is mounted on the directory, on its branch", node.name)
    status = source.status()
    with unchanged_times(parent):
        temporary = parent.temporary(node.name)
        parent.make_directory(temporary)
        try:
            with source.pinned(b".") as original, parent.pinned(temporary) as copy:
                _dress(state, original, copy, status, (source.branch, target))
            parent.rename(temporary, parent, node.name)
        except BaseException as error:
            parent.remove_directory(temporary)
            if isinstance(error, NotADirectoryError):
                # A file between directories is skipped (aufs.md 3), but nothing can be put in it.
                raise OSError(EROFS, f"a file on {target} is in the way", node.name) from error
            raise
    state.stale.add(node.parent.number)
    state.nodes.add_copy(node, Copy(target, identity_of(parent.stat(node.name))))


def _copy_file(
    state: State, node: FileNode, target: WritableBranch, keep: int | None, place: Place | None
) -> Operation[None]:
    if place is None and not node.unlinked:
        place = _own_place(state, node)
    if place is not None:
        copy_up_directory(state, place.parent, target)
    status = _source_status(state, node)
    work = _Workplace(state, target, place)
    fd = source_fd = pin = -1
    try:
        if stat.S_ISREG(status.st_mode):
            source_fd = _open_source(state, node)
            fd = work.create_file()
            # What comes after the job finds everything again: directories may have been closed.
            yield from _fill(state, node, (source_fd, fd), keep, status, target)
        else:
            source, source_name, _ = locate(state, node)
            directory = work.directory()
            with unchanged_times(directory):
                _make_special(source, source_name, directory, work.temporary, status)
                with (
                    source.pinned(source_name) as original,
                    directory.pinned(work.temporary) as copy,
                ):
                    _dress(state, original, copy, status, (node.branch, target))
        if state.cancelled:
            raise CancelledError(EIO, "given up: the union is being unmounted")
        if node.pin >= 0:
            pin = reopen(fd, os.O_PATH)
        _publish(state, node, target, work, fd, status)
        node.pin, pin = pin, node.pin
        if node.fd >= 0:
            # The open handles go on with the copy.
            fd, node.fd, node.fd_writable = node.fd, fd, True
    except BaseException:
        work.discard()
        raise
    finally:
        for descriptor in (fd, source_fd, pin):
            if descriptor >= 0:
                os.close(descriptor)


def _own_place(state: State, node: FileNode) -> Place | None:
    """Return a name that leads to the file, None when no known one does (see plink.py).

    A request says which file it means, not by which name: the one looked up last is a good guess.
    """
    for parent, name in reversed(list(node.names)):
        visible = resolve(state, parent, name)
        if visible is None or visible.is_directory:
            continue
        if node_of(state, parent, name, visible.found).node is node:
            return Place(parent, name)
    return None


def _source_status(state: State, node: FileNode) -> os.stat_result:
    if node.held >= 0:
        return os.fstat(node.held)
    return locate(state, node)[2]


def _open_source(state: State, node: FileNode) -> int:
    if node.fd >= 0:
        return os.dup(node.fd)
    if node.pin >= 0:
        return reopen(node.pin, os.O_RDONLY)
    directory, name, _ = locate(state, node)
    return directory.open_file(name)


@contextlib.contextmanager
def unchanged_times(directory: WritableDirectory) -> Iterator[None]:
    """Do something in a directory that must not show in its times: copy-up is not a change."""
    before = directory.status()
    try:
        yield
    finally:
        try:
            directory.set_own_times(before)
        except OSError as error:
            log.warning("times of a directory on %s not restored: %s", directory.branch, error)


class _Workplace:
    """Where a copy is built: beside its place, or namelessly when it has none."""

    def __init__(self, state: State, target: WritableBranch, place: Place | None) -> None:
        self.state = state
        self.target = target
        self.place = place
        self.temporary = b"" if place is None else self.directory().temporary(place.name)

    def directory(self) -> WritableDirectory:
        """The directory on the writable branch, re-opened if need be."""
        if self.place is None:
            return self.target.root
        return self.state.writable_directory(self.place.parent, self.target)

    def create_file(self) -> int:
        """Create the copy, empty, and return it opened for reading and writing."""
        directory = self.directory()
        with unchanged_times(directory):
            if self.temporary:
                return directory.create_file(self.temporary)
            try:
                return syscalls.anonymous_file(directory.fd)
            except OSError:
                name = directory.temporary(b"orphan")
                fd = directory.create_file(name)
                directory.unlink(name)
                return fd

    def discard(self) -> None:
        """Remove the unfinished copy."""
        if self.temporary:
            try:
                directory = self.directory()
                with unchanged_times(directory):
                    directory.unlink(self.temporary)
            except FileNotFoundError:
                pass
            except OSError as error:
                log.warning("%s is left on %s: %s", self.temporary, self.target, error)


def _fill(
    state: State,
    node: FileNode,
    descriptors: tuple[int, int],
    keep: int | None,
    status: os.stat_result,
    target: WritableBranch,
) -> Operation[None]:
    """Copy data and attributes, in a worker thread when it may take long.

    Args:
        descriptors: of the source and of the empty copy.
        keep: as for :func:`copy_up`.
    """
    source_fd, fd = descriptors
    source_branch = node.branch
    to_disk = state.rules.fsync and not target.in_memory
    size = status.st_size if keep is None else min(keep, status.st_size)

    def work() -> None:
        copy_content(source_fd, fd, size, lambda: state.cancelled)
        source, copy = b"/proc/self/fd/%d" % source_fd, b"/proc/self/fd/%d" % fd
        _dress(state, source, copy, status, (source_branch, target))
        if keep is not None:
            os.ftruncate(fd, keep)  # sets the time of change, also where the size is right
        if to_disk:
            os.fsync(fd)

    if size > _SMALL or to_disk:
        yield Job(work)
    else:
        work()


def _make_special(
    source: Directory,
    source_name: bytes,
    directory: WritableDirectory,
    name: bytes,
    status: os.stat_result,
) -> None:
    if stat.S_ISLNK(status.st_mode):
        directory.make_symlink(name, source.readlink(source_name))
    else:
        directory.make_node(name, stat.S_IFMT(status.st_mode), status.st_rdev)


def _dress(
    state: State,
    source: bytes,
    copy: bytes,
    status: os.stat_result,
    branches: tuple[Branch, Branch],
) -> None:
    """Give a fresh copy the owner, extended attributes, mode and times of its source.

    Args:
        source, copy: ``/proc/self/fd`` paths of the two objects.
        status: the attributes of the source.
        branches: those of the source and of the copy.
    """
    squashed = state.rules.ids.squashed
    if is_suspect(status) and not squashed and is_strangers(source):
        raise OSError(EOVERFLOW, "its owner has no id here: the copy would change hands")
    owned = state.set_owner(copy, status.st_uid, status.st_gid)
    escalates = branches[0].nosuid and not branches[1].nosuid
    keep_capability = not escalates and not state.rules.ids.shifted  # squashing counts as that
    _copy_xattrs(source, copy, branches[1], keep_capability=keep_capability)
    mode = stat.S_IMODE(status.st_mode)
    if (escalates or not owned) and not stat.S_ISDIR(status.st_mode):
        # What had no effect on its branch must not come to life by being copied to one where it
        # has, nor for another owner (the class of CVE-2023-0386).
        mode &= ~(stat.S_ISUID | stat.S_ISGID)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(copy, mode)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_xattrs(source: bytes, copy: bytes, target: Branch, *, keep_capability: bool) -> None:
    """Copy all extended attributes (aufs.md 5.3).

    Args:
        source, copy: ``/proc/self/fd`` paths of the two objects.
        target: the branch of the copy; its ``icex*`` attributes say which errors do not count.
        keep_capability: copy file capabilities too.

    Raises:
        OSError: when one cannot be set.
    """
    try:
        keys = os.listxattr(source)
    except OSError as error:
        if error.errno in (EOPNOTSUPP, EPERM):
            return
        raise
    # A default ACL of the parent on the branch has nothing to do with the copy.
    for inherited in ("system.posix_acl_access", "system.posix_acl_default"):
        if inherited not in keys:
            try:
                os.removexattr(copy, inherited)
            except OSError:
                pass  # there was none
    for key in keys:
        if is_mark_xattr(os.fsencode(key)):
            continue
        if key == "security.capability" and not keep_capability:
            continue
        try:
            value = os.getxattr(source, key)
        except OSError as error:
            if error.errno in _IGNORED_READING:
                continue
            raise
        if os.fsencode(key).startswith(ACL_PREFIX):
            value = _known_entries(value, target)
        try:
            os.setxattr(copy, key, value)
        except OSError as error:
            if error.errno in (ENOMEM, EDQUOT) or not _ignored(target, key):
                raise


def _known_entries(acl: bytes, target: Branch) -> bytes:
    """Return an ACL as it can be stored here: other ids exist outside of this user namespace."""
    known = without_strangers(acl)
    if known != acl:
        log.warning("a copy on %s lacks those entries of its ACL whose ids are not mapped", target)
    return known


def _ignored(target: Branch, key: str) -> bool:
    """Tell whether the branch has the ``icex*`` attribute for this class of names."""
    wanted = _CLASSES.get(key.partition(".")[0], "icexoth")
    return wanted in target.permission.ignored_xattr_classes


def _publish(
    state: State,
    node: FileNode,
    target: WritableBranch,
    work: _Workplace,
    fd: int,
    status: os.stat_result,
) -> None:
    """Give the finished copy its name, and let the node stand for it."""
    place = work.place
    if place is None:
        identity = identity_of(os.fstat(fd))
        # Others may have removed the last name on the branch itself; then there is none to serve.
        remaining = nlink_of(node, os.fstat(node.held)) if state.rules.plink else 0
        if remaining:
            # Visible, though under no name we know: the pseudo-link alone makes it found.
            lower = (status.st_ino, tag_of_open(node.branch, node.held))
            record = state.plinks.add_nameless(
                target, node.number, lower, remaining, (fd, identity)
            )
            _replace_plink(state, node, record)
    else:
        identity = identity_of(work.directory().stat(work.temporary))
        own_name = (place.parent, place.name) in node.names
        links = nlink_of(node, status)
        record = None
        if links - own_name > 0 and state.rules.plink:
            # Until the copy has its name, all names lie on the lower branch: were the daemon killed
            # here, a lower count would let the copy be dropped while it is still needed.
            lower = (status.st_ino, _tag(state, node))
            made = (work.directory(), work.temporary, identity)
            record = state.plinks.add_copy(target, node.number, lower, links, made)
        directory = work.directory()
        try:
            # A link makes a new name, and that is a change of the directory.
            with unchanged_times(directory) if own_name else contextlib.nullcontext():
                directory.rename(work.temporary, directory, place.name)
            if not own_name:
                _uncover(directory, place.name, work.temporary)
        except BaseException:
            if record is not None:
                state.plinks.drop(record)
            raise
        work.temporary = b""
        if record is not None and own_name:
            state.plinks.set_remaining(record, links - 1)
        _replace_plink(state, node, record)
        if not state.rules.plink:
            # The other names keep the lower file: they are another file from now on.
            for parent, name in list(node.names):
                if (parent, name) != (place.parent, place.name):
                    state.nodes.drop_name(node, parent, name)
    if node.unlinked:
        node.branch, node.identity = target, identity
    else:
        state.nodes.move_file(node, target, identity)


def _uncover(directory: WritableDirectory, name: bytes, temporary: bytes) -> None:
    """Remove the whiteout of a new name; when that fails, take the name back."""
    try:
        directory.remove_whiteout(name)
    except OSError:
        directory.rename(name, directory, temporary)
        raise


def _replace_plink(state: State, node: FileNode, record: PseudoLink | None) -> None:
    old = node.plink
    node.plink = record
    if old is not None and old.upper is None:
        state.plinks.drop(old)


def _tag(state: State, node: FileNode) -> bytes:
    if node.fd >= 0:
        return tag_of_open(node.branch, node.fd)
    directory, name, _ = locate(state, node)
    return tag_of(directory, name)
