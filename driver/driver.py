"""The layer driver: one method per wish of an engine (driver.md parts 1.3 to 1.9 and 2).

Nothing is done here but putting the parts together: `store` knows the layers on disk, `mounts` how
a union comes and goes, `counter` who uses what, `changes` and `compare` what differs, `size` how
big it is, `archive` how a layer becomes a tar and back.

Where two layers are to be compared there are two ways. A layer knows its own parent: relative to
that, its branch alone tells everything (the fast way). Relative to anything else both unions are
mounted and compared (the naive way).

Threads. Get, put and remove of one layer exclude each other, within the process and between
processes; different layers do not wait for each other. Making and unmaking layers is serialised by
the store. Everything else takes no lock. The path of a layer follows from its ancestry, which never
changes, so there is no cache of paths to be kept right.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from driver import mounts, mounttable
from driver.archive import apply_layer, layer_chunks, unpack_layer
from driver.archive.reader import Readable
from driver.backing import backing_name, check_root
from driver.beneath import open_root
from driver.changes import layer_changes
from driver.compare import compare_trees
from driver.counter import LayerLocks, UseCounter
from driver.diff import DiffStream
from driver.ending import in_one_piece
from driver.errors import LayerNotFoundError, StorageOptNotSupportedError
from driver.getter import FileGetter
from driver.idmap import IdentityMapping
from driver.mounttable import MountState
from driver.plinks import lent_directories, pseudo_links
from driver.settings import Settings, parse_settings
from driver.size import branch_size
from driver.store import Store
from driver.support import check_support
from driver.values import Capabilities, Change, CreateOpts

_log = logging.getLogger(__name__)


NAME = "aufs"
_EMPTY_ARCHIVE = bytes(1024)  # a tar's end marker and nothing before it


def init(
    root: str | os.PathLike[str],
    options: Sequence[str] = (),
    id_map: IdentityMapping | None = None,
) -> Driver:
    """Make a driver ready for use; heals what a crash left behind (driver.md 1.3).

    Args:
        root: directory for the layers; made when missing. One that holds anything else is left
            alone.
        options: ``key=value`` texts. ``aufs.mountopt=OPTIONS``: more options for every mount.
            ``aufs.ignore_chown_errors=true``: owners that cannot be set here, as in a user
            namespace with few ids, are logged when a layer is applied, and no error.
        id_map: how container ids relate to host ids.

    Raises:
        AufsNotSupportedError, AufsNestedError: unions cannot be mounted here.
        IncompatibleFilesystemError: layers cannot be kept on the filesystem of ``root``.
        NotAStoreError: ``root`` is full of something that is not layers. Nothing is changed then.
        ValueError: an unknown option, or no root at all.
        OSError: a directory cannot be made.
    """
    if not os.fspath(root):
        raise ValueError("the root is empty: name the directory that is to hold the layers")
    mapping = id_map if id_map is not None else IdentityMapping()
    settings = parse_settings(options)
    check_support()
    place = os.path.realpath(root)
    check_root(place)
    backing = backing_name(place)
    owner = (0, 0) if mapping.empty else mapping.root_pair()
    store = Store(place, owner)
    _detach_dead(place)
    store.sweep()
    return Driver(store, backing, settings, mapping)


class Driver:
    """A store of layers that can be mounted. Made by `init`; any thread may call any method.

    Attributes:
        root: canonical path of the store.
    """

    def __init__(
        self,
        store: Store,
        backing: str,
        settings: Settings | None = None,
        id_map: IdentityMapping | None = None,
    ) -> None:
        self.root = store.root
        self._store = store
        self._backing = backing
        self._settings = settings if settings is not None else Settings()
        self._id_map = id_map if id_map is not None else IdentityMapping()
        self._locks = LayerLocks()
        self._uses = UseCounter()

    # --- about the driver and its layers -------------------------------------------------------

    def __str__(self) -> str:
        return NAME

    def string(self) -> str:
        """Return the driver's name, ``aufs``."""
        return NAME

    def status(self) -> list[tuple[str, str]]:
        """Return four pairs of a title and a value, in a fixed order (driver.md 1.5)."""
        return [
            ("Root Dir", self.root),
            ("Backing Filesystem", self._backing),
            ("Dirs", str(len(self.list_layers()))),
            # Always: access is checked against the merged attributes of the topmost directory.
            ("Dirperm1 Supported", "true"),
        ]

    def capabilities(self) -> Capabilities:
        """Return what an engine may rely on."""
        return Capabilities()

    def get_metadata(self, id: str) -> dict[str, str]:
        """Return nothing: this driver has no metadata, and does not check the id."""
        return {}

    def exists(self, id: str) -> bool:
        """Tell whether there is such a layer; False for an invalid id."""
        return self._store.exists(id)

    def list_layers(self) -> list[str]:
        """Return the ids of all layers, sorted; none when the store cannot be read."""
        try:
            return self._store.ids()
        except OSError:
            return []

    def parents(self, id: str) -> tuple[str, ...]:
        """Return the ids of the layer's ancestors, nearest first.

        Raises:
            LayerNotFoundError, OSError.
        """
        return self._store.chain(id)

    # --- making and unmaking -------------------------------------------------------------------

    def create(self, id: str, parent: str = "", opts: CreateOpts | None = None) -> None:
        """Make an empty layer (driver.md 1.6).

        Args:
            parent: id of the layer below, or the empty string.
            opts: a storage option in it is refused, a mount label ignored.

        Raises:
            StorageOptNotSupportedError, LayerExistsError, LayerNotFoundError (the parent),
            InvalidLayerIdError, OSError. Nothing is left behind then.
        """
        if opts is not None and opts.storage_opt:
            raise StorageOptNotSupportedError
        self._store.create(id, parent)

    def create_read_write(self, id: str, parent: str = "", opts: CreateOpts | None = None) -> None:
        """Make a layer for a container; the same as `create`, there are no read-only layers."""
        self.create(id, parent, opts)

    def remove(self, id: str) -> None:
        """Unmount and delete a layer, in use or not; an unknown id is fine (driver.md 1.9).

        Raises:
            OSError: it cannot be unmounted (nothing is deleted then) or not all of it be deleted.
        """
        if not self._store.may_exist(id):
            return
        target = self._store.mount_point(id)
        with self._exclusively(id):
            self._unmount_if_mounted(target)
            self._store.remove(id)
            self._uses.drop(target)
            self._uses.drop(self._store.branch(id))

    def cleanup(self) -> None:
        """Unmount everything below the root; use counts stay as they are (driver.md 1.5).

        What is mounted at the root itself goes only if it is the same directory once more: a disk
        that the layers lie on stays.

        Raises:
            OSError: ``mnt/`` cannot be read, or a mount cannot be undone.
        """
        for name in self._store.mounted_ids():
            try:
                self._unmount_if_mounted(self._store.mount_point(name))
            except OSError as error:
                _log.warning("cannot unmount %s: %s", name, error)
        for point in mounttable.mounts_below(self.root):
            mounttable.detach(point, lazy=True)
        while mounttable.is_bound_on_itself(self.root):
            mounttable.detach(self.root, lazy=True)

    # --- using ---------------------------------------------------------------------------------

    def get(self, id: str, mount_label: str = "") -> str:
        """Mount a layer on top of its ancestors, or count one more use of it (driver.md 1.7).

        Args:
            mount_label: SELinux label of the mount, or the empty string.

        Returns:
            Absolute path of the layer's root. A layer without parent is not mounted: this is its
            branch itself then.

        Raises:
            LayerNotFoundError, MountError, OSError. The use does not count then.
        """
        if not self._store.may_exist(id):
            raise LayerNotFoundError(id)
        with self._exclusively(id) as exists:
            if not exists:
                raise LayerNotFoundError(id)
            chain = self._store.chain(id)
            if not chain:
                path = self._store.branch(id)
                self._uses.begin(path)
                return path
            path = self._store.mount_point(id)
            state = mounttable.state(path)
            self._uses.begin(path, self._store.record(id), mounted=state is MountState.LIVE)
            try:
                self._mount(path, state, id, chain, mount_label)
            except BaseException:
                self._uses.end(path)
                raise
            return path

    def put(self, id: str) -> None:
        """Count one use less; unmount when no process has one left (driver.md 1.7).

        An unknown id is fine. A put without get gives back what somebody else got who has ended.

        Raises:
            OSError: the unmount failed.
        """
        if not self._store.may_exist(id):
            return
        with self._exclusively(id) as exists:
            if exists and not self._store.chain(id):
                self._uses.end(self._store.branch(id))
                return
            path = self._store.mount_point(id)
            if self._uses.end(path, self._store.record(id)):
                self._unmount_if_mounted(path)

    # --- what a layer holds --------------------------------------------------------------------

    def diff(self, id: str, parent: str = "") -> DiffStream:
        """Return what the layer changes relative to ``parent`` as an uncompressed tar.

        Args:
            parent: the layer's own parent; any other layer, with which it is compared; or the empty
                string for everything the layer shows.

        Returns:
            A stream to be closed; closing it early is fine.

        Raises:
            LayerNotFoundError, MountError, OSError.
        """
        chain = self._store.chain(id)
        if _is_parent(chain, parent):
            return self._branch_stream(id, chain)
        return self._compared_stream(id, parent) if parent else self._union_stream(id)

    def changes(self, id: str, parent: str = "") -> list[Change]:
        """Return what the layer changes relative to ``parent`` (driver.md 1.8).

        Args:
            parent: any layer, or the empty string: everything the layer shows is an addition.

        Raises:
            LayerNotFoundError, MountError, OSError.
        """
        chain = self._store.chain(id)
        if _is_parent(chain, parent):
            return layer_changes(self._store.branch(id), self._branches(chain))
        with self._open_union(id) as new, self._open_parent(parent) as old:
            return compare_trees(new, old).changes

    def diff_size(self, id: str, parent: str = "") -> int:
        """Return the size of what the layer changes relative to ``parent``, in bytes.

        Raises:
            LayerNotFoundError, MountError, OSError.
        """
        chain = self._store.chain(id)
        if _is_parent(chain, parent):
            return branch_size(self._store.branch(id), self._branches(chain))
        with self._open_union(id) as new, self._open_parent(parent) as old:
            return compare_trees(new, old).size

    def diff_getter(self, id: str) -> FileGetter:
        """Return an object that opens files of the layer by name.

        Raises:
            LayerNotFoundError, OSError.
        """
        self._store.chain(id)
        return FileGetter(self._store.branch(id))

    def apply_diff(self, id: str, parent: str, diff: Readable | None) -> int:
        """Unpack a layer tar into the layer.

        Args:
            parent: the layer's own parent: the tar becomes the layer's content, whiteouts and all.
                Any other: the tar is carried out on the mounted layer.
            diff: the uncompressed tar; read to its end, in whatever portions it gives.

        Returns:
            Bytes: the size of the whole layer afterwards, or, for any other parent, the sum of the
            sizes that the tar states.

        Raises:
            ValueError: ``diff`` is None.
            BreakoutError, InvalidArchiveError, IdMappingError: the tar is refused.
            LayerNotFoundError, MountError, OSError.
        """
        if diff is None:
            raise ValueError("no diff to apply: give a binary stream")
        chain = self._store.chain(id)
        if not _is_parent(chain, parent):
            with self._open_union(id) as union:
                return apply_layer(
                    union,
                    diff,
                    self._id_map,
                    ignore_chown_errors=self._settings.ignore_chown_errors,
                )
        branch = self._store.branch(id)
        self._store.make_branch(id)
        root = open_root(branch)
        try:
            unpack_layer(
                root,
                diff,
                self._id_map,
                layers_below=bool(chain),
                ignore_chown_errors=self._settings.ignore_chown_errors,
            )
        finally:
            os.close(root)
        return branch_size(branch, self._branches(chain))

    # --- parts ---------------------------------------------------------------------------------

    @contextmanager
    def _exclusively(self, id: str) -> Iterator[bool]:
        """Be the only one at a layer; yields whether it exists."""
        with self._locks.hold(id), self._store.hold(id) as exists:
            yield exists

    def _branches(self, ids: Iterable[str]) -> list[str]:
        return [self._store.branch(layer) for layer in ids]

    def _mount(
        self, target: str, state: MountState, id: str, chain: Sequence[str], label: str
    ) -> None:
        """Mount a layer unless it is; one whose server has died is mounted afresh."""
        if state is MountState.LIVE:
            return
        if state is MountState.DEAD:
            _log.warning("%s: its server is gone, mounting it again", target)
            mounts.unmount(target)
        mounts.mount(target, self._branches([id, *chain]), self._settings.mount_options, label)

    def _unmount_if_mounted(self, target: str) -> None:
        if mounttable.state(target) is MountState.ABSENT:
            return
        try:
            mounts.unmount(target)
        except OSError as error:
            _log.warning("cannot unmount %s: %s", target, error)
            raise

    @contextmanager
    def _open_union(self, id: str) -> Iterator[int]:
        """Have a layer's union mounted; yield a descriptor of its root."""
        with ExitStack() as held:
            with in_one_piece():
                path = self.get(id)
                held.callback(self._put_back, id)
            root = open_root(path)
            held.callback(os.close, root)
            yield root

    def _put_back(self, id: str) -> None:
        with in_one_piece():
            self.put(id)

    @contextmanager
    def _open_parent(self, parent: str) -> Iterator[int | None]:
        if not parent:
            yield None
            return
        with self._open_union(parent) as root:
            yield root

    def _branch_stream(self, id: str, chain: Sequence[str]) -> DiffStream:
        branch = self._store.branch(id)
        parents = self._branches(chain)
        links = pseudo_links(branch, parents)
        lent = lent_directories(branch, parents, links)
        try:
            root = open_root(branch)
        except FileNotFoundError:
            return DiffStream(chunk for chunk in (_EMPTY_ARCHIVE,))
        chunks = layer_chunks(root, self._id_map, extra_links=links, extra_directories=lent)
        return DiffStream(chunks, lambda: os.close(root))

    def _compared_stream(self, id: str, parent: str) -> DiffStream:
        """Export what a comparison of the two mounted layers finds (driver.md 1.8, naive)."""
        with ExitStack() as held:
            root = held.enter_context(self._open_union(id))
            with self._open_union(parent) as old:
                found = compare_trees(root, old)
            members = found.members()
            chunks = layer_chunks(
                root,
                self._id_map,
                exclude=lambda path: path not in members,
                extra_whiteouts=found.marks(),
                marked=False,
                by_path=True,
            )
            return DiffStream(chunks, held.pop_all().close)

    def _union_stream(self, id: str) -> DiffStream:
        with ExitStack() as held:
            root = held.enter_context(self._open_union(id))
            chunks = layer_chunks(root, self._id_map, marked=False)
            return DiffStream(chunks, held.pop_all().close)


def _is_parent(chain: Sequence[str], parent: str) -> bool:
    """Tell whether the layer's branch alone is the difference to ``parent`` (driver.md 1.4).

    A layer at the bottom differs from any stranger by all it holds (Q11).
    """
    return not chain or chain[0] == parent


def _detach_dead(root: str) -> None:
    """Take mounts out of the way whose server died with an earlier run."""
    for point in mounttable.mounts_below(os.path.join(root, "mnt")):
        if mounttable.state(point) is MountState.DEAD:
            try:
                mounttable.detach(point, lazy=True)
            except OSError as error:
                _log.warning("cannot unmount dead %s: %s", point, error)
