"""Layers as they lie on disk (driver.md 1.1, 1.2, 1.6, 1.11).

    R/layers/<id>   the ancestry: nearest parent first, one id per line; empty = no parent
    R/diff/<id>     the branch: what the layer holds, whiteouts kept as files
    R/mnt/<id>      the mount point; stays empty, and unused for a layer without parent

The file in ``layers/`` *is* the layer. It is written first under a name that is no layer's,
``<id>-removing``, and gets its own name last; a removal gives it that other name first, and deletes
it last. So a layer exists whole or not at all, and after a crash the other name tells which trees
in ``diff/`` and ``mnt/`` are nobody's: they are deleted at start. Nothing else is taken for a
layer's remains: a root given by mistake may have a ``mnt/`` full of other things.

Ancestry never changes once written. Making and unmaking a layer is serialised, between threads and
between processes, by a lock on the ``layers/`` directory itself; no lock file is needed.

Ids come from outside and become file names, hence the rules of `check_id`.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from driver.errors import (
    InvalidLayerIdError,
    LayerExistsError,
    LayerNotFoundError,
)
from driver.removal import SUFFIX, remove_atomically, remove_by_force, set_aside

_log = logging.getLogger(__name__)

_TREE_MODE = 0o710
_LAYER_MODE = 0o755
_RECORD_MODE = 0o666  # less the umask
_ID_BYTES = 255 - len(SUFFIX)
_FORBIDDEN = re.compile(r"[/\0\n:,=]")


def check_id(layer_id: str) -> None:
    """Refuse an id that could not be a file name, an option value and a line of text alike.

    Raises:
        InvalidLayerIdError: naming the rule of driver.md 1.11 that is broken.
    """
    try:
        size = len(os.fsencode(layer_id))
    except UnicodeEncodeError:
        size = 0
    if not layer_id:
        problem = "is empty"
    elif not size:
        problem = "cannot be a file name here"
    elif hit := _FORBIDDEN.search(layer_id):
        problem = f"contains {hit[0]!r}"
    elif layer_id in (".", ".."):
        problem = "is a directory's own name"
    elif layer_id.startswith(".wh."):
        problem = "begins with .wh."
    elif layer_id.endswith(SUFFIX):
        problem = f"ends in {SUFFIX}"
    elif size > _ID_BYTES:
        problem = f"is longer than {_ID_BYTES} bytes"
    else:
        return
    raise InvalidLayerIdError(f"invalid layer id {layer_id!r}: it {problem}")


def is_id(text: str) -> bool:
    """Tell whether `check_id` would let ``text`` pass."""
    try:
        check_id(text)
    except InvalidLayerIdError:
        return False
    return True


def make_directory(path: str, mode: int, uid: int, gid: int) -> None:
    """Make ``path`` and its missing parents; give ``path`` itself this mode and owner in any case.

    Args:
        mode: permission bits, whatever the umask says.
        uid, gid: host ids.

    Raises:
        NotADirectoryError: something else stands there.
        OSError: as mkdir(2), chmod(2), chown(2).
    """
    parent = os.path.dirname(path)
    if parent and not os.path.isdir(parent):
        make_directory(parent, mode, uid, gid)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        _dress(path, mode, uid, gid)
        return
    try:
        _dress(path, mode, uid, gid)
    except BaseException:
        os.rmdir(path)
        raise


def _dress(path: str, mode: int, uid: int, gid: int) -> None:
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    # Only what differs is changed: some network filesystems object even to a no-op.
    if (status.st_uid, status.st_gid) != (uid, gid):
        try:
            os.chown(path, uid, gid)
        except PermissionError as error:
            raise PermissionError(
                errno.EPERM,
                f"cannot be given to {uid}:{gid}, for layers have owners: be root, or in a"
                " namespace of your own (unshare -Urm)",
                path,
            ) from error
    if stat.S_IMODE(os.stat(path).st_mode) != mode:
        os.chmod(path, mode)


class Store:
    """The layers below one root directory.

    Args:
        root: absolute, canonical path; made when missing.
        owner: host uid and gid of the layers' directories, that of container root.

    Raises:
        OSError: a directory cannot be made; ``NotADirectoryError`` when a file is in the way.
    """

    def __init__(self, root: str, owner: tuple[int, int] = (0, 0)) -> None:
        self.root = root
        self._owner = owner
        self._mutex = threading.RLock()
        self._making_depth = 0
        for path in (root, *map(self._tree, ("mnt", "diff", "layers"))):
            make_directory(path, _TREE_MODE, os.getuid(), owner[1])

    def branch(self, layer_id: str) -> str:
        """Return the directory that holds the layer's own content."""
        return os.path.join(self.root, "diff", layer_id)

    def mount_point(self, layer_id: str) -> str:
        """Return the directory where the layer's union is mounted."""
        return os.path.join(self.root, "mnt", layer_id)

    def record(self, layer_id: str) -> str:
        """Return the file that holds the layer's ancestry."""
        return os.path.join(self.root, "layers", layer_id)

    def exists(self, layer_id: str) -> bool:
        """Tell whether the layer exists; an invalid id does not."""
        return is_id(layer_id) and os.path.lexists(self.record(layer_id))

    def chain(self, layer_id: str) -> tuple[str, ...]:
        """Return the ids of all ancestors, nearest first.

        Raises:
            LayerNotFoundError: no such layer, or an invalid id.
            OSError: the record cannot be read.
        """
        if not is_id(layer_id):
            raise LayerNotFoundError(layer_id)
        try:
            # As bytes: in a text file a carriage return, which an id may have, ends a line, too.
            with open(self.record(layer_id), "rb") as file:
                return tuple(os.fsdecode(line) for line in file.read().split(b"\n") if line)
        except FileNotFoundError:
            raise LayerNotFoundError(layer_id) from None

    def ids(self) -> list[str]:
        """Return the ids of all layers, sorted."""
        with os.scandir(self._tree("layers")) as entries:
            return sorted(
                entry.name
                for entry in entries
                if is_id(entry.name) and not entry.is_dir(follow_symlinks=False)
            )

    def mounted_ids(self) -> list[str]:
        """Return the names of all directories in ``mnt/``, layers or not, sorted."""
        return sorted(self._directories("mnt"))

    def may_exist(self, layer_id: str) -> bool:
        """Tell whether the id is a valid one, so that there could be such a layer."""
        return is_id(layer_id)

    def make_branch(self, layer_id: str) -> None:
        """Make the layer's branch if it was lost; its owner and mode are left alone if not."""
        path = self.branch(layer_id)
        if not os.path.isdir(path):
            make_directory(path, _LAYER_MODE, *self._owner)

    def create(self, layer_id: str, parent: str = "") -> None:
        """Make a layer.

        Args:
            layer_id: the new id.
            parent: id of the parent, or the empty string.

        Raises:
            InvalidLayerIdError, LayerExistsError, LayerNotFoundError (the parent), OSError. Nothing
            is left behind then.
        """
        check_id(layer_id)
        with self._making():
            if os.path.lexists(self.record(layer_id)):
                raise LayerExistsError(layer_id)
            ancestry = (parent, *self.chain(parent)) if parent else ()
            try:
                self._write_unfinished(layer_id, "".join(f"{name}\n" for name in ancestry))
                for path in self._trees(layer_id):
                    remove_atomically(path)  # a crash's debris, never somebody's layer
                    make_directory(path, _LAYER_MODE, *self._owner)
                os.rename(self._unfinished(layer_id), self.record(layer_id))
            except BaseException:
                self._undo(layer_id)
                raise

    def remove(self, layer_id: str) -> None:
        """Remove a layer and all it holds; a layer that is not there is fine.

        Raises:
            OSError: with the reference's prefixes, when a part of it cannot be removed.
        """
        check_id(layer_id)
        doomed = []
        with self._making():
            with _explained(f"error removing layers dir for {layer_id}"):
                try:
                    os.rename(self.record(layer_id), self._unfinished(layer_id))
                except FileNotFoundError:
                    pass
            for path, text in (
                (self.branch(layer_id), f"could not remove diff path for id {layer_id}"),
                (self.mount_point(layer_id), f"could not remove mountpoint for id {layer_id}"),
            ):
                with _explained(text):
                    if set_aside(path):
                        doomed.append((path + SUFFIX, text))
            with _explained(f"error removing layers dir for {layer_id}"):
                self._forget_unfinished(layer_id)
        # Set aside, the trees are nobody's any more: deleting them may take its time, and holds up
        # nobody unless there was no such layer (see `hold`).
        for path, text in doomed:
            with _explained(text):
                remove_by_force(path)

    def sweep(self) -> None:
        """Delete what a crash left half made or half removed; failures are logged only."""
        with self._making():
            for name in os.listdir(self._tree("layers")):
                layer_id = name.removesuffix(SUFFIX)
                if name != layer_id and is_id(layer_id):
                    self._sweep(layer_id)
        for tree in ("mnt", "diff"):
            for name in self._directories(tree):
                if name.endswith(SUFFIX):
                    try:
                        remove_by_force(os.path.join(self._tree(tree), name))
                    except OSError as error:
                        _log.warning("cannot delete half-removed layer: %s", error)

    @contextmanager
    def hold(self, layer_id: str) -> Iterator[bool]:
        """Keep other processes from mounting, unmounting or removing the layer meanwhile.

        A layer that does not exist is kept from being made, by keeping all others from it, too.

        Yields:
            Whether the layer exists.
        """
        while True:
            try:
                fd = os.open(self.record(layer_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                with self._making():
                    if not os.path.lexists(self.record(layer_id)):
                        yield False
                        return
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if _is_same(fd, self.record(layer_id)):
                    yield True
                    return
            finally:
                os.close(fd)

    def _tree(self, name: str) -> str:
        return os.path.join(self.root, name)

    def _directories(self, tree: str) -> list[str]:
        with os.scandir(self._tree(tree)) as entries:
            return [e.name for e in entries if e.is_dir(follow_symlinks=False)]

    @contextmanager
    def _making(self) -> Iterator[None]:
        with self._mutex, ExitStack() as held:
            if not self._making_depth:  # the lock of a file cannot be taken twice
                fd = os.open(self._tree("layers"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                held.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX)
            self._making_depth += 1
            try:
                yield
            finally:
                self._making_depth -= 1

    def _trees(self, layer_id: str) -> tuple[str, str]:
        return self.mount_point(layer_id), self.branch(layer_id)

    def _unfinished(self, layer_id: str) -> str:
        """Return the name that the record has while the layer is being made or removed."""
        return self.record(layer_id) + SUFFIX

    def _write_unfinished(self, layer_id: str, text: str) -> None:
        self._forget_unfinished(layer_id)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(self._unfinished(layer_id), flags, _RECORD_MODE)
        with open(fd, "wb") as file:
            file.write(os.fsencode(text))
            file.flush()
            os.fsync(fd)

    def _forget_unfinished(self, layer_id: str) -> None:
        try:
            os.unlink(self._unfinished(layer_id))
        except FileNotFoundError:
            pass

    def _undo(self, layer_id: str) -> None:
        """Delete what there is of a layer that could not be made."""
        try:
            for path in self._trees(layer_id):
                remove_atomically(path)
            self._forget_unfinished(layer_id)
        except OSError as error:
            _log.warning("cannot undo the creation of layer %s: %s", layer_id, error)

    def _sweep(self, layer_id: str) -> None:
        """Set aside what a crash left of a layer.

        What cannot be renamed stays, and is tried again at the next start: somebody has mounted
        something there.
        """
        try:
            if not os.path.lexists(self.record(layer_id)):
                _log.warning("layer %s is half made or half removed: deleting it", layer_id)
                for path in self._trees(layer_id):
                    set_aside(path)
            self._forget_unfinished(layer_id)
        except OSError as error:
            _log.warning("cannot clear away layer %s: %s", layer_id, error)


def _is_same(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


@contextmanager
def _explained(text: str) -> Iterator[None]:
    """Put ``text`` in front of any ``OSError``, keeping its class and errno."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        where = f" {error.filename!r}" if error.filename else ""
        raise type(error)(error.errno, f"{text}: {reason}{where}") from error
