"""FUSE requests, answered by the core: numbers become nodes, answers become structs, and no more.

What the kernel may keep is decided here too. With ``udba=none`` nobody else changes the branches,
so it may keep names, the absence of names and attributes for a day; with ``udba=reval`` it asks
each time, and file contents stay cached only while the file is unchanged (aufs.md 7).
"""

from __future__ import annotations

import errno
import itertools
import logging
import stat
from typing import TYPE_CHECKING, Final, TypeVar, cast

import pyfuse3
import trio

from unionfs.fuse.guard import changing, drive, guarded
from unionfs.fuse.page_cache import may_be_kept, was_not_stored
from unionfs.union.core import (
    Caller,
    Change,
    DirectoryStream,
    Entry,
    FileHandle,
    Job,
    Union,
    is_too_long,
)
from unionfs.union.idmap import ACL_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unionfs.union.core import Operation

T = TypeVar("T")

_DAY_S: Final = 86400
_BLOCK: Final = 4096
_CAPABILITY: Final = b"security.capability"

log = logging.getLogger(__name__)


class UnionOperations(pyfuse3.Operations):
    """The request handlers of one mount.

    Args:
        union: the union to serve.
        trusting: nobody else changes the branches (``udba=none``).
        fsync: fsync has to be answered by doing it; else it is switched off (``volatile``).
        background: starts a job that nobody waits for.

    Attributes:
        before_waiting: called when a request is about to wait (see ``eager.py``).
        on_init: called when libfuse has got an INIT (see ``handshake.py``).
    """

    supports_dot_lookup = False  # would promise answers about nodes that were forgotten
    enable_writeback_cache = False

    def __init__(
        self,
        union: Union,
        *,
        trusting: bool,
        fsync: bool,
        background: Callable[[Job], None],
    ) -> None:
        super().__init__()
        self.union = union
        self._ids = union.state.rules.ids
        self.enable_acl = union.state.rules.acl
        self.fsync_wanted = fsync
        self.timeout = _DAY_S if trusting else 0
        # Without pseudo-links a copy-up makes one file two, and the kernel must find that out.
        self._links_may_part = not union.state.rules.plink
        self._background = background
        self.before_waiting: Callable[[], None] = lambda: None
        self.on_init: Callable[[], None] = lambda: None
        self._flush_needed = any(branch.writable and branch.remote for branch in union.branches)
        self._next_handle = itertools.count(1)
        self._files: dict[int, FileHandle] = {}
        self._streams: dict[int, DirectoryStream] = {}
        # A change of attributes that names none is either chown(2) to the present owner, or what
        # the kernel sends before a write, right after it has taken a file capability away. The
        # former clears set-user-id whoever calls, the latter spares root.
        self._capability_lost: tuple[int, int] | None = None  # node, process

    def init(self) -> None:
        """Called by libfuse while it answers INIT."""
        self.on_init()

    # answers

    def _attributes(self, entry: Entry) -> pyfuse3.EntryAttributes:
        node, status, nlink = entry
        answer = pyfuse3.EntryAttributes()
        answer.st_ino = pyfuse3.InodeT(node.number)
        answer.generation = 0
        answer.entry_timeout = answer.attr_timeout = self.timeout
        if nlink > 1 and self._links_may_part and not stat.S_ISDIR(status.st_mode):
            answer.entry_timeout = answer.attr_timeout = 0
        answer.st_mode = pyfuse3.ModeT(status.st_mode)
        answer.st_nlink = nlink
        uid, gid = self.union.owner_of(entry)
        answer.st_uid = self._ids.uid.shown(uid)
        answer.st_gid = self._ids.gid.shown(gid)
        answer.st_rdev = status.st_rdev
        answer.st_size = status.st_size
        answer.st_blksize = _BLOCK
        answer.st_blocks = status.st_blocks
        answer.st_atime_ns = status.st_atime_ns
        answer.st_mtime_ns = status.st_mtime_ns
        answer.st_ctime_ns = status.st_ctime_ns
        return answer

    def _caller(self, ctx: pyfuse3.RequestContext) -> Caller:
        return Caller(self._ids.uid.stored(ctx.uid), self._ids.gid.stored(ctx.gid), ctx.umask)

    def _absent(self) -> pyfuse3.EntryAttributes:
        """The answer "there is nothing", which the kernel may remember."""
        answer = pyfuse3.EntryAttributes()
        answer.st_ino = pyfuse3.InodeT(0)
        answer.entry_timeout = self.timeout
        return answer

    def _opened(self, handle: FileHandle) -> pyfuse3.FileInfo:
        number = next(self._next_handle)
        self._files[number] = handle
        return pyfuse3.FileInfo(
            fh=pyfuse3.FileHandleT(number),
            keep_cache=may_be_kept(handle.node, trusting=bool(self.timeout)),
        )

    async def _drive(self, operation: Operation[T]) -> T:
        return await drive(operation, self.before_waiting)

    async def settle(self) -> None:
        """Start what a change left to be done, and have the kernel drop what it made untrue."""
        for job in self.union.take_background():
            self._background(job)
        stale = self.union.take_stale()
        if stale and self.timeout:
            # From a thread, never from the one that answers requests, but before the answer.
            self.before_waiting()
            await trio.to_thread.run_sync(_drop_attributes, stale)

    # looking

    @guarded
    async def lookup(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        try:
            return self._attributes(self.union.lookup(self.union.directory(parent_inode), name))
        except OSError as error:
            if error.errno == errno.ENOENT and self.timeout:
                return self._absent()
            raise

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        for number, count in inode_list:
            try:
                self.union.forget(number, count)
            except Exception:
                log.exception("forget(%d, %d) failed unexpectedly", number, count)

    @guarded
    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._attributes(self.union.getattr(self.union.node(inode)))

    @guarded
    async def readlink(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileNameT:
        return pyfuse3.FileNameT(self.union.readlink(self.union.file(inode)))

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        status = self.union.statfs()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = status.f_bsize
        answer.f_frsize = status.f_frsize
        answer.f_blocks = status.f_blocks
        answer.f_bfree = status.f_bfree
        answer.f_bavail = status.f_bavail
        answer.f_files = status.f_files
        answer.f_ffree = status.f_ffree
        answer.f_favail = status.f_favail
        answer.f_namemax = status.f_namemax
        return answer

    @guarded
    async def opendir(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileHandleT:
        number = next(self._next_handle)
        self._streams[number] = self.union.open_directory(self.union.directory(inode))
        return pyfuse3.FileHandleT(number)

    @guarded
    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        # Offsets: 1 follows ".", 2 follows "..", n + 2 follows the name with offset n.
        stream = self._streams[fh]
        union = self.union
        reply = pyfuse3.readdir_reply
        # The kernel takes the dots for the names only, so they are not counted as remembered.
        dots = ((b".", stream.node), (b"..", stream.node.parent))
        for offset, (name, node) in enumerate(dots[max(start_id, 0) :], max(start_id, 0) + 1):
            if not reply(token, name, _dot(node.number), offset):
                return
        for offset, name, item in union.read_directory(stream, max(start_id - 2, 0)):
            if is_too_long(name):
                if not self._reply_phantom(token, name, union.phantom_number(item), offset + 2):
                    return
                continue
            try:
                entry = union.listed(stream, name, item)
            except OSError as error:
                # One entry that cannot be read must not hide all the others.
                log.debug("%r is listed without attributes: %s", name, error)
                if not self._reply_phantom(token, name, union.phantom_number(item), offset + 2):
                    return
                continue
            if entry is None:
                continue
            if not reply(token, name, self._attributes(entry), offset + 2):
                union.drop_unused(entry)
                return
            union.remember(entry)

    def _reply_phantom(
        self, token: pyfuse3.ReaddirToken, name: bytes, number: int, following: int
    ) -> bool:
        """List a name that cannot be looked up: no type, no node.

        Attributes without a file type make the kernel list the name and then forget the node at
        once, so the node that happens to have the number is counted for that.
        """
        answer = pyfuse3.EntryAttributes()
        answer.st_ino = pyfuse3.InodeT(number)
        answer.entry_timeout = answer.attr_timeout = 0
        answer.st_mode = pyfuse3.ModeT(0)
        if not pyfuse3.readdir_reply(token, name, answer, following):
            return False
        node = self.union.state.nodes.get(number)
        if node is not None:
            node.lookups += 1
        return True

    @guarded
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        self.union.close_directory(self._streams.pop(fh))

    @guarded
    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        if not self.fsync_wanted:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        await self._drive(self.union.sync_directory(self._streams[fh].node))

    @guarded
    async def getxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> bytes:
        value = self.union.get_xattr(self.union.node(inode), name)
        return self._ids.show_acl(value) if name.startswith(ACL_PREFIX) else value

    @guarded
    async def listxattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> Sequence[pyfuse3.XAttrNameT]:
        names = self.union.list_xattrs(self.union.node(inode), privileged=ctx.uid == 0)
        return [pyfuse3.XAttrNameT(name) for name in names]

    # changing

    @changing
    async def setxattr(
        self,
        inode: pyfuse3.InodeT,
        name: pyfuse3.XAttrNameT,
        value: bytes,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        if name.startswith(ACL_PREFIX):
            value = self._ids.store_acl(value)
        await self._drive(self.union.set_xattr(self.union.node(inode), name, value))

    @changing
    async def removexattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        await self._drive(self.union.remove_xattr(self.union.node(inode), name))
        if name == _CAPABILITY:
            self._capability_lost = (inode, ctx.pid)

    @changing
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        change = Change(
            mode=attr.st_mode if fields.update_mode else None,
            uid=self._ids.uid.stored(attr.st_uid) if fields.update_uid else None,
            gid=self._ids.gid.stored(attr.st_gid) if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        before_write = self._capability_lost == (inode, ctx.pid)
        self._capability_lost = None
        if before_write and ctx.uid == 0 and change == Change():
            return self._attributes(self.union.getattr(self.union.node(inode)))
        return self._attributes(
            await self._drive(self.union.setattr(self.union.node(inode), change))
        )

    @changing
    async def mknod(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        rdev: int,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        parent = self.union.directory(parent_inode)
        return self._attributes(self.union.mknod(parent, name, mode, rdev, self._caller(ctx)))

    @changing
    async def mkdir(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        parent = self.union.directory(parent_inode)
        return self._attributes(
            self.union.mkdir(parent, name, stat.S_IMODE(mode), self._caller(ctx))
        )

    @changing
    async def symlink(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        target: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        parent = self.union.directory(parent_inode)
        return self._attributes(self.union.symlink(parent, name, target, self._caller(ctx)))

    @changing
    async def link(
        self,
        inode: pyfuse3.InodeT,
        new_parent_inode: pyfuse3.InodeT,
        new_name: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        parent = self.union.directory(new_parent_inode)
        operation = self.union.link(self.union.node(inode), parent, new_name)
        return self._attributes(await self._drive(operation))

    @changing
    async def unlink(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        await self._drive(self.union.unlink(self.union.directory(parent_inode), name))

    @changing
    async def rmdir(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        self.union.rmdir(self.union.directory(parent_inode), name)

    @changing
    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: pyfuse3.FileNameT,
        parent_inode_new: pyfuse3.InodeT,
        name_new: pyfuse3.FileNameT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        old = self.union.directory(parent_inode_old)
        new = self.union.directory(parent_inode_new)
        await self._drive(self.union.rename(old, name_old, new, name_new, flags))

    # open files

    @changing
    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        parent = self.union.directory(parent_inode)
        operation = self.union.create(parent, name, stat.S_IMODE(mode), flags, self._caller(ctx))
        entry, handle = await self._drive(operation)
        return self._opened(handle), self._attributes(entry)

    @changing
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        node = self.union.file(inode)
        operation = self.union.open(node, flags, privileged=ctx.uid == 0)
        return self._opened(await self._drive(operation))

    @guarded
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        answer = self.union.read(self._files[fh], off, size)
        if isinstance(answer, Job):
            return cast("bytes", await self._drive(answer.alone()))
        return cast("bytes", answer)  # any buffer will do, and copying it would be waste

    @changing
    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        handle = self._files[fh]
        try:
            count = await self._drive(self.union.write(handle, off, buf))
        except OSError as error:
            was_not_stored(handle.node, error)
            raise
        if count < len(buf):
            # Whoever called write(2) goes on with the rest; for a page there is nobody to do so.
            was_not_stored(handle.node, f"{count} of {len(buf)} bytes were written")
        return count

    @guarded
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        if not self._flush_needed:
            # Nothing is held back here, so the kernel need not ask again. A network filesystem
            # reports its errors at close, though, and then flush is where the program hears of
            # them.
            raise pyfuse3.FUSEError(errno.ENOSYS)
        await self._drive(self.union.flush(self._files[fh]))

    @guarded
    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        if not self.fsync_wanted:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        await self._drive(self.union.sync(self._files[fh], data_only=datasync))

    @guarded
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self.union.release(self._files.pop(fh))


def _dot(number: int) -> pyfuse3.EntryAttributes:
    """Return what the kernel needs to list ``.`` and ``..``: a number and a type."""
    answer = pyfuse3.EntryAttributes()
    answer.st_ino = pyfuse3.InodeT(number)
    answer.st_mode = pyfuse3.ModeT(stat.S_IFDIR)
    return answer


def _drop_attributes(numbers: set[int]) -> None:
    for number in numbers:
        try:
            pyfuse3.invalidate_inode(pyfuse3.InodeT(number), attr_only=True)
        except OSError as error:
            if error.errno != errno.ENOENT:  # ENOENT: the kernel does not know it
                log.warning("attributes of node %d cannot be invalidated: %s", number, error)
