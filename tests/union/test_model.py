"""The union core against the reference model: random trees, random calls, everything compared.

One machine, several rule sets. After each call: result or errno as the model says; then the whole
tree, with attributes, contents, link counts and which names are one file; inode numbers; what lies
on the writable branch. The comparison looks through the union itself (``live``), or through another
made for the purpose: the first keeps the nodes fresh by looking at them, the other shows what a new
mount would find, and leaves stale what the calls have left stale.

``FUSE_AUFS_EXAMPLES`` asks for a larger run with new random numbers, for ``scripts/torture``.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.branches import Stroke, dressed, fingerprint, grow, old_time, plant
from tests.support.dentries import Dentries
from tests.support.model import RECENT, Directory, File, Model, Place, Refused, Tree
from tests.support.views import (
    View,
    content_of,
    expected_on_writable_branch,
    model_view,
    union_view,
    writable_branch,
)
from unionfs.branch import opening
from unionfs.syscalls import RENAME_NOREPLACE
from unionfs.union.build import build_union
from unionfs.union.core import (
    Caller,
    Change,
    DirectoryNode,
    DirectoryStream,
    FileHandle,
    FileNode,
    Union,
    run_now,
)
from unionfs.union.options import parse_options

T = TypeVar("T")

_EXAMPLES = int(os.environ.get("FUSE_AUFS_EXAMPLES", "0"))
_SETTINGS = settings(
    max_examples=_EXAMPLES or 150,
    stateful_step_count=50 if _EXAMPLES else 30,
    derandomize=not _EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
_NAMES = (b"a", b"b", b"c")
_ODD_NAMES = (b".wh.a", b"x" * 243, b"x" * 242, b"\xff new")
_TEMPORARY = re.compile(rb"\.wh\.\.wh\..+\.[0-9a-f]{4}")

name = st.sampled_from(_NAMES)
new_name = st.one_of(name, name, name, st.sampled_from(_ODD_NAMES))
pick = st.integers(0, 40)
variant = st.integers(0, 7)
path = st.lists(name, min_size=1, max_size=3).map(tuple)
what = st.sampled_from(
    ("file", "file", "directory", "link", "whiteout", "opaque", "symlink", "fifo")
)
strokes = st.lists(st.tuples(path, what, variant), max_size=9)


@dataclass
class Listing:
    """An open directory that is being read; ``seen``: the names since its beginning."""

    stream: DirectoryStream
    directory: Directory
    position: int = 0
    seen: set[bytes] = field(default_factory=set)


class Machine(RuleBasedStateMachine):
    """A union and its model, driven by the same calls."""

    base: ClassVar[Path]
    options: ClassVar[str]
    strict: ClassVar[bool]
    trusting: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(dir=self.base))
        self.handles: list[tuple[FileHandle, File]] = []
        self.held: list[tuple[FileNode | DirectoryNode, File | Directory]] = []
        self.streams: list[Listing] = []
        self.numbers: dict[File | Directory, int] = {}
        self.steps = 0
        self.unseen: list[Place] = []

    # the beginning, and beginning anew

    @initialize(
        upper=strokes,
        lower=st.lists(strokes, min_size=1, max_size=3),
        plain=st.booleans(),
        live=st.booleans(),
        few=st.booleans(),
    )
    def begin(
        self,
        upper: list[Stroke],
        lower: list[list[Stroke]],
        plain: bool,
        live: bool,
        few: bool,
    ) -> None:
        self.live = live
        self.open_directories = 4 if few else 64
        self.layout = ["W=rw", *(f"R{index}=ro+wh" for index in range(len(lower)))]
        if plain and len(lower) > 1:
            self.layout[1] = "R0=ro"
        trees = []
        for drawn, branch in zip([upper, *lower], self.layout, strict=True):
            tree = Tree(writable=branch == "W=rw", whable=not branch.endswith("=ro"))
            tree.mtime = old_time(0)
            grow(tree, drawn)
            place = self.top / branch.partition("=")[0]
            place.mkdir()
            plant(tree, place)
            trees.append(tree)
        self.writable = self.top / "W"
        self.read_only = [self.top / f"R{index}" for index in range(len(lower))]
        self.fingerprints = [fingerprint(place) for place in self.read_only]
        # The union makes its private entries at the top when it starts.
        trees[0].mtime = RECENT
        self.model = Model(
            trees,
            self.chosen,
            strict=self.strict,
            trusting=self.trusting,
            root_opaque=not self.strict,
        )
        # What is on the writable branch and nobody sees: hidden there by a whiteout beside it.
        self.start()
        self.unseen = [
            (directory, child) for directory in self.model.root.walk() for child in directory.beside
        ]

    def start(self) -> None:
        self.union = self.opened_union(self.layout)
        self.union.state.directories.limit = self.open_directories
        self.kernel = Dentries(self.union)

    def opened_union(self, layout: list[str]) -> Union:
        branches = ":".join(f"{self.top}/{branch}" for branch in layout)
        options = parse_options([f"{self.options},volatile,br:{branches}".encode()], self.warned)
        return build_union(options, self.warned)

    @staticmethod
    def warned(text: str) -> None:
        if "not writable" not in text:
            raise AssertionError(text)

    def chosen(self, places: list[Place]) -> Place | None:
        """Tell under which of its names a lower file has been copied up."""
        here = [
            (directory, name)
            for directory, name in places
            if name not in directory.on_upper
            and os.path.lexists(os.path.join(os.fsencode(self.writable), *directory.path(), name))
        ]
        assert len(here) <= 1, "copied up under several names"
        return here[0] if here else None

    def teardown(self) -> None:
        try:
            if hasattr(self, "union") and sys.exc_info()[0] is None:
                self.finish()
        finally:
            if hasattr(self, "union"):
                self.union.close()
            shutil.rmtree(self.top)

    def finish(self) -> None:
        self.fresh_start()
        self.compare(live=True)
        after = [fingerprint(place) for place in self.read_only]
        assert after == self.fingerprints, "a read-only branch was changed"

    # choosing

    def directory(self, number: int) -> Directory:
        directories = list(self.model.root.walk())
        return directories[number % len(directories)]

    def place(self, number: int, name: bytes) -> Place:
        """Return a place that mostly exists."""
        places = [(here, name) for here in self.model.root.walk() for name in sorted(here.names)]
        return places[number % len(places)] if places and number else (self.model.root, name)

    def real(self, directory: Directory, cold: bool = False) -> DirectoryNode:
        return self.kernel.directory(directory.path(), cold=cold)

    def node(self, place: Place, cold: bool = False) -> FileNode | DirectoryNode:
        return self.kernel.walk((*place[0].path(), place[1]), cold=cold)

    def shown(self, place: Place) -> File | Directory | None:
        return place[0].names.get(place[1])

    def file(self, place: Place) -> File | None:
        node = self.shown(place)
        return node if isinstance(node, File) and node.kind == stat.S_IFREG else None

    def both(self, real: Callable[[], T], expected: Callable[[], object]) -> T | None:
        """Do the same to the union and to the model; the result, None if both refuse."""
        result: T | None = None
        answer: int | None = None
        try:
            result = real()
        except OSError as error:
            answer = error.errno
        try:
            expected()
        except Refused as refused:
            assert answer in refused.numbers, f"{_symbol(answer)} instead of {refused}"
            return None
        assert answer is None, f"{_symbol(answer)} instead of success"
        return result

    # making

    @rule(where=pick, name=new_name, variant=variant, keep=st.booleans())
    def create(self, where: int, name: bytes, variant: int, keep: bool) -> None:
        directory = self.directory(where)
        file = File()
        dressed(file, variant)
        file.xattrs, file.mtime = {}, RECENT
        parent = self.real(directory)
        made = self.both(
            lambda: run_now(
                self.union.create(
                    parent,
                    name,
                    file.mode,
                    os.O_RDWR | os.O_CREAT | os.O_EXCL,
                    Caller(file.uid, file.gid),
                )
            ),
            lambda: self.model.create(directory, name, file),
        )
        if made:
            self.kernel.made(parent, name, made[0])
            self.opened(made[1], file, keep)

    @rule(where=pick, name=new_name, variant=variant)
    def mkdir(self, where: int, name: bytes, variant: int) -> None:
        directory = self.directory(where)
        made = Directory()
        made.mode, made.uid, made.gid = (0o755, 0o700)[variant % 2], variant * 10, variant * 20
        parent = self.real(directory)
        entry = self.both(
            lambda: self.union.mkdir(parent, name, made.mode, Caller(made.uid, made.gid)),
            lambda: self.model.create(directory, name, made),
        )
        if entry:
            self.kernel.made(parent, name, entry)

    @rule(where=pick, name=new_name, fifo=st.booleans())
    def make_special(self, where: int, name: bytes, fifo: bool) -> None:
        directory = self.directory(where)
        parent = self.real(directory)
        caller = Caller(5, 6)
        if fifo:
            made = File(0o640, 5, 6, kind=stat.S_IFIFO)
            entry = self.both(
                lambda: self.union.mknod(parent, name, stat.S_IFIFO | 0o640, 0, caller),
                lambda: self.model.create(directory, name, made),
            )
        else:
            made = File(0o777, 5, 6, kind=stat.S_IFLNK, content=bytearray(b"text"))
            entry = self.both(
                lambda: self.union.symlink(parent, name, b"text", caller),
                lambda: self.model.create(directory, name, made),
            )
        if entry:
            self.kernel.made(parent, name, entry)

    @rule(source=pick, where=pick, name=new_name)
    def link(self, source: int, where: int, name: bytes) -> None:
        old = self.place(source, name)
        file = self.shown(old)
        if not isinstance(file, File):
            return
        node, directory = self.node(old), self.directory(where)
        parent = self.real(directory)
        entry = self.both(
            lambda: run_now(self.union.link(node, parent, name)),
            lambda: self.model.link(file, directory, name),
        )
        if entry:
            assert entry.node is node
            assert entry.nlink == file.nlink
            self.kernel.made(parent, name, entry)

    # taking away and moving

    @rule(which=pick, name=name, cold=st.booleans())
    def unlink(self, which: int, name: bytes, cold: bool) -> None:
        directory, name = self.place(which, name)
        parent = self.real(directory, cold)
        if self.shown((directory, name)) is not None:
            self.node((directory, name))  # the kernel looks up before it asks
        file = self.shown((directory, name))
        self.both(
            lambda: run_now(self.union.unlink(parent, name)),
            lambda: self.model.unlink(directory, name),
        )
        if file and not self.shown((directory, name)):
            self.kernel.removed(parent, name)

    @rule(which=pick, name=name)
    def rmdir(self, which: int, name: bytes) -> None:
        directories = [place for place in self.model.root.walk() if place.parent]
        if directories and which:
            chosen = directories[which % len(directories)]
            assert chosen.parent
            directory, name = chosen.parent, chosen.name
        else:
            directory = self.model.root
        parent = self.real(directory)
        there = self.shown((directory, name))
        if there is not None:
            self.node((directory, name))
        self.both(lambda: self.union.rmdir(parent, name), lambda: self.model.rmdir(directory, name))
        if there and not self.shown((directory, name)):
            self.kernel.removed(parent, name)

    @rule(which=pick, where=pick, name=new_name, noreplace=st.booleans(), cold=st.booleans())
    def rename(self, which: int, where: int, name: bytes, noreplace: bool, cold: bool) -> None:
        directory, old = self.place(which, name)
        to = self.directory(where)
        node, there = self.shown((directory, old)), to.names.get(name)
        # What the kernel finds out by itself: into its own inside, onto what holds it, or itself.
        if isinstance(node, Directory) and to.lies_in(node):
            return
        if isinstance(there, Directory) and directory.lies_in(there):
            return
        if node is there and isinstance(node, Directory):
            return
        if name in to.beside:
            return  # no rule says what becomes of it
        parent, new_parent = self.real(directory, cold), self.real(to)
        for place in ((directory, old), (to, name)):
            if self.shown(place) is not None:
                self.node(place)
        self.both(
            lambda: run_now(
                self.union.rename(
                    parent, old, new_parent, name, RENAME_NOREPLACE if noreplace else 0
                )
            ),
            lambda: self.model.rename(directory, old, to, name, replace=not noreplace),
        )
        if node and node is not there and to.names.get(name) is node:
            self.kernel.moved((parent, old), (new_parent, name))

    # attributes

    @rule(which=pick, name=name, mode=st.sampled_from((0o600, 0o755, 0o4711, 0o2755)))
    def chmod(self, which: int, name: bytes, mode: int) -> None:
        place = self.place(which, name)
        shown = self.shown(place) or self.model.root
        if isinstance(shown, File) and shown.kind == stat.S_IFLNK:
            return
        node = self.node(place) if shown is not self.model.root else self.union.root
        self.both(
            lambda: run_now(self.union.setattr(node, Change(mode=mode))),
            lambda: self.model.bring_up(shown),
        )
        shown.mode = mode

    @rule(which=pick, name=name, uid=pick, gid=pick)
    def chown(self, which: int, name: bytes, uid: int, gid: int) -> None:
        place = self.place(which, name)
        shown = self.shown(place)
        if shown is None:
            return
        node = self.node(place)
        self.both(
            lambda: run_now(self.union.setattr(node, Change(uid=uid, gid=gid))),
            lambda: self.model.chown(shown, uid, gid),
        )

    @rule(which=pick, name=name, when=pick)
    def utimes(self, which: int, name: bytes, when: int) -> None:
        place = self.place(which, name)
        shown = self.shown(place)
        if shown is None:
            return
        node, time = self.node(place), old_time(when)
        entry = self.both(
            lambda: run_now(self.union.setattr(node, Change(atime_ns=5, mtime_ns=time))),
            lambda: self.model.bring_up(shown),
        )
        assert entry
        assert (entry.status.st_atime_ns, entry.status.st_mtime_ns) == (5, time)
        shown.mtime = time

    @rule(which=pick, name=name, size=pick)
    def truncate(self, which: int, name: bytes, size: int) -> None:
        place = self.place(which, name)
        file = self.file(place)
        if file is None:
            return
        node = self.node(place)
        self.both(
            lambda: run_now(self.union.setattr(node, Change(size=size))),
            lambda: self.model.truncate(file, size),
        )

    @rule(
        which=pick,
        name=name,
        key=st.sampled_from((b"user.k", b"user.l")),
        value=st.binary(max_size=3),
    )
    def set_xattr(self, which: int, name: bytes, key: bytes, value: bytes) -> None:
        place = self.place(which, name)
        shown = self.shown(place) or self.model.root
        if isinstance(shown, File) and shown.kind != stat.S_IFREG:
            return
        node = self.node(place) if shown is not self.model.root else self.union.root
        self.both(
            lambda: run_now(self.union.set_xattr(node, key, value)),
            lambda: self.model.bring_up(shown),
        )
        shown.xattrs[key] = value

    @rule(which=pick, name=name, key=st.sampled_from((b"user.k", b"user.l")))
    def remove_xattr(self, which: int, name: bytes, key: bytes) -> None:
        place = self.place(which, name)
        shown = self.shown(place) or self.model.root
        if isinstance(shown, File) and shown.kind != stat.S_IFREG:
            return
        node = self.node(place) if shown is not self.model.root else self.union.root

        def remove() -> None:
            if key not in shown.xattrs:
                raise Refused(errno.ENODATA)
            self.model.bring_up(shown)
            del shown.xattrs[key]

        self.both(lambda: run_now(self.union.remove_xattr(node, key)), remove)

    # open files

    @rule(which=pick, name=name, flags=st.sampled_from((os.O_RDONLY, os.O_WRONLY, os.O_RDWR)))
    def open(self, which: int, name: bytes, flags: int) -> None:
        place = self.place(which, name)
        file = self.file(place)
        if file is not None and len(self.handles) < 4:
            node = self.node(place)
            assert isinstance(node, FileNode)
            handle = run_now(self.union.open(node, flags))
            self.opened(handle, file, keep=True)

    @rule(which=pick, name=name)
    def open_truncated(self, which: int, name: bytes) -> None:
        place = self.place(which, name)
        file = self.file(place)
        if file is None:
            return
        node = self.node(place)
        assert isinstance(node, FileNode)
        handle = self.both(
            lambda: run_now(self.union.open(node, os.O_WRONLY | os.O_TRUNC)),
            lambda: self.model.truncate(file, 0),
        )
        assert handle
        self.opened(handle, file, keep=False)

    @rule(where=pick, name=name)
    def open_or_create(self, where: int, name: bytes) -> None:
        """O_CREAT without O_EXCL, as when two programs create at the same time."""
        directory = self.directory(where)
        there = directory.names.get(name)
        made = File(0o666, 1, 2)
        parent = self.real(directory)

        def expected() -> None:
            if name in directory.broken or there is None:
                self.model.create(directory, name, made)
            elif isinstance(there, Directory):
                raise Refused(errno.EISDIR)

        if isinstance(there, File) and there.kind != stat.S_IFREG:
            return  # the kernel opens special files itself
        result = self.both(
            lambda: run_now(self.union.create(parent, name, 0o666, os.O_RDWR, Caller(1, 2))),
            expected,
        )
        if result:
            assert not isinstance(there, Directory)
            self.kernel.names.setdefault((parent.number, name), result[0].node.number)
            self.kernel.told(result[0])
            self.opened(result[1], there or made, keep=False)

    def opened(self, handle: FileHandle, file: File, keep: bool) -> None:
        self.kernel.pin(handle.node)
        self.handles.append((handle, file))
        if not keep or len(self.handles) > 4:
            self.close(len(self.handles) - 1)

    @precondition(lambda self: self.handles)
    @rule(which=pick, offset=pick, data=st.binary(max_size=9))
    def write(self, which: int, offset: int, data: bytes) -> None:
        handle, file = self.handles[which % len(self.handles)]

        def expected() -> None:
            if not handle.writable:
                raise Refused(errno.EBADF)
            self.model.write(file, offset, data)

        count = self.both(lambda: run_now(self.union.write(handle, offset, data)), expected)
        assert count in (None, len(data))

    @precondition(lambda self: self.handles)
    @rule(which=pick, size=pick, mode=st.sampled_from((0o600, 0o640)))
    def change_open(self, which: int, size: int, mode: int) -> None:
        """ftruncate, fchmod and futimens at once, whatever has become of the file's names."""
        handle, file = self.handles[which % len(self.handles)]
        change = Change(size=size, mode=mode, uid=7, gid=8, atime_ns=1, mtime_ns=old_time(2))
        self.both(
            lambda: run_now(self.union.setattr(handle.node, change)),
            lambda: self.model.truncate(file, size),
        )
        file.mode, file.uid, file.gid, file.mtime = mode, 7, 8, old_time(2)

    @precondition(lambda self: self.handles)
    @rule(which=pick)
    def close(self, which: int) -> None:
        handle, file = self.handles.pop(which % len(self.handles))
        self.check_open(handle, file)
        self.union.release(handle)
        self.kernel.unpin(handle.node)

    # open directories

    @precondition(lambda self: len(self.streams) < 3)
    @rule(where=pick)
    def open_directory(self, where: int) -> None:
        directory = self.directory(where)
        node = self.real(directory)
        self.kernel.pin(node)
        self.streams.append(Listing(self.union.open_directory(node), directory))

    @precondition(lambda self: self.streams)
    @rule(which=pick, count=st.integers(1, 4), rewind=st.booleans())
    def read_directory(self, which: int, count: int, rewind: bool) -> None:
        """Read a part of a listing, and remember what it says as the kernel does (readdirplus)."""
        listing = self.streams[which % len(self.streams)]
        if rewind:
            listing.position, listing.seen = 0, set()
        node = listing.stream.node
        found = self.union.read_directory(listing.stream, listing.position)
        for offset, name, item in itertools.islice(found, count):
            listing.position = offset
            assert name not in listing.seen, "listed twice"
            listing.seen.add(name)
            entry = self.union.listed(listing.stream, name, item)
            shown = listing.directory.names.get(name)
            assert (entry is None) == (shown is None), "the listing shows what is not there"
            if entry and shown:
                assert self.numbers.setdefault(shown, entry.node.number) == entry.node.number
                known = self.kernel.names.get((node.number, name))
                assert known in (None, entry.node.number), "the listing shows another file"
                self.kernel.made(node, name, self.union.remember(entry))

    @precondition(lambda self: self.streams)
    @rule(which=pick)
    def close_directory(self, which: int) -> None:
        listing = self.streams.pop(which % len(self.streams))
        self.union.close_directory(listing.stream)
        self.kernel.unpin(listing.stream.node)

    # the kernel's memory

    @rule(pick=st.integers(1, 3))
    def forget(self, pick: int) -> None:
        self.kernel.shrink(pick)
        if pick == 1 and not (self.handles or self.held or self.streams):
            assert [*self.union.state.nodes] == [self.union.root]

    @rule(which=pick, name=name)
    def hold(self, which: int, name: bytes) -> None:
        """Keep a reference as an O_PATH descriptor or a working directory does."""
        place = self.place(which, name)
        shown = self.shown(place)
        if shown is not None and len(self.held) < 3:
            node = self.node(place)
            self.kernel.pin(node)
            self.held.append((node, shown))

    @precondition(lambda self: self.held)
    @rule(which=pick)
    def let_go(self, which: int) -> None:
        node, _ = self.held.pop(which % len(self.held))
        self.kernel.unpin(node)

    @rule()
    def fresh_start(self) -> None:
        """Close everything, unmount, mount again."""
        while self.handles:
            self.close(0)
        while self.held:
            self.let_go(0)
        while self.streams:
            self.close_directory(0)
        self.kernel.shrink(1)
        assert [*self.union.state.nodes] == [self.union.root], "nodes that nobody needs"
        self.union.close()
        self.numbers.clear()
        self.start()

    # comparing

    @invariant()
    def everything_agrees(self) -> None:
        if not hasattr(self, "union"):
            return
        for job in self.union.take_background():
            job.run()
        for handle, file in self.handles:
            self.check_open(handle, file)
        for node, shown in self.held:
            self.check_held(node, shown)
        self.steps += 1
        if self.live or self.steps % 3 == 0:
            self.compare(live=self.live)
        there = writable_branch(self.writable)
        hidden = [(*where.path(), child) for where, child in self.unseen if not where.removed]
        seen = {
            path
            for path in there
            if path[-1] != b".wh..wh..opq"
            and not any(path[: len(unseen)] == unseen for unseen in hidden)
        }
        expected = expected_on_writable_branch(self.model)
        _check_equal(dict.fromkeys(seen, ()), dict.fromkeys(expected, ()))
        assert not any(_TEMPORARY.fullmatch(path[-1]) for path in there)

    @rule()
    def look_at_everything(self) -> None:
        self.compare(live=True)

    def compare(self, *, live: bool) -> None:
        expected, nodes = model_view(self.model)
        if live:
            view, numbers = union_view(self.union)
            _check_equal(view, expected)
            self.check_numbers({path: (nodes[path], number) for path, number in numbers.items()})
            for directory in self.model.root.walk():
                for name in directory.broken:
                    with pytest.raises(OSError) as error:
                        self.union.lookup(self.real(directory), name)
                    assert error.value.errno == errno.EIO
        else:
            layout = [self.layout[0].replace("=rw", "=ro+wh"), *self.layout[1:]]
            with pytest.MonkeyPatch.context() as patch:
                # As a daemon does that may not make private views of the branches.
                patch.setattr(opening, "_wall_off", lambda fd: (fd, False))
                aside = self.opened_union(layout)
            try:
                _check_equal(union_view(aside)[0], expected)
                assert [*aside.state.nodes] == [aside.root]
            finally:
                aside.close()

    def check_numbers(self, seen: dict[tuple[bytes, ...], tuple[File | Directory, int]]) -> None:
        """A living file keeps its number, and shares it with nobody."""
        holders: dict[int, File | Directory] = {}
        for path, (node, number) in seen.items():
            assert holders.setdefault(number, node) is node, f"{path} shares its number"
            assert self.numbers.setdefault(node, number) == number, f"{path} has another number"
        for handle, file in self.handles:
            assert holders.setdefault(handle.node.number, file) is file
            assert self.numbers.setdefault(file, handle.node.number) == handle.node.number

    def check_open(self, handle: FileHandle, file: File) -> None:
        assert content_of(self.union, handle.node) == bytes(file.content)
        self.check_held(handle.node, file)

    def check_held(self, node: FileNode | DirectoryNode, shown: File | Directory) -> None:
        try:
            entry = self.union.getattr(node)
        except OSError as error:
            # Its known names are gone; that there is another the kernel has yet to find out.
            assert isinstance(shown, File)
            assert shown.nlink > 0
            assert error.errno == errno.ESTALE
            assert node.number not in self.kernel.names.values()
            return
        assert stat.S_IMODE(entry.status.st_mode) == shown.mode
        assert (entry.status.st_uid, entry.status.st_gid) == (shown.uid, shown.gid)
        if isinstance(shown, File):
            assert entry.nlink == shown.nlink
            if shown.kind == stat.S_IFREG:
                assert entry.status.st_size == len(shown.content)
        elif shown.removed:
            assert entry.nlink == 0
            assert isinstance(node, DirectoryNode)
            stream = self.union.open_directory(node)
            assert not list(self.union.read_directory(stream, 0))
            self.union.close_directory(stream)
            with pytest.raises(FileNotFoundError):
                self.union.mkdir(node, b"new", 0o755, Caller(0, 0))


def _check_equal(seen: View, expected: View) -> None:
    """Compare two views path by path: of a whole tree nobody would see what differs."""
    for path in sorted(seen.keys() | expected.keys()):
        assert seen.get(path) == expected.get(path), (path, seen.get(path), expected.get(path))


def _symbol(number: int | None) -> str:
    return "success" if number is None else errno.errorcode[number]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Generator[None]:
    """The core has nothing to warn about."""
    yield
    assert not caplog.records


@pytest.mark.usefixtures("quiet")
@pytest.mark.timeout(100 + _EXAMPLES)
@pytest.mark.parametrize("rules", ["aufs", "driver", "trusting"])
def test_the_union_is_what_the_model_says(tmp_path: Path, rules: str) -> None:
    class Rules(Machine):
        base = tmp_path
        options = {"aufs": "udba=reval", "driver": "profile=driver", "trusting": "udba=none"}[rules]
        strict = rules != "driver"
        trusting = rules != "aufs"

    run_state_machine_as_test(Rules, settings=_SETTINGS)
