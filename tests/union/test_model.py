"""The union core against the reference model: random trees, random calls, everything compared.

One machine, several rule sets. After each call: result or errno as the model says; then the whole
tree, with attributes, contents, link counts and which names are one file; inode numbers; what lies
on the writable branch. The comparison looks through the union itself (``live``), or through another
made for the purpose: the first keeps the nodes fresh by looking at them, the other shows what a new
mount would find, and leaves stale what the calls have left stale. Each run ends with a fresh start.

Names are drawn blindly where refusals are of interest, and otherwise from what exists: most calls
should do something.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.support.branches import Stroke, old_time
from tests.support.effort import EFFORT, examples
from tests.support.model import Directory, File, Place, Refused
from tests.support.twins import Listing, Twins
from unionfs.syscalls import RENAME_NOREPLACE
from unionfs.union.core import Caller, Change, Entry

_SETTINGS = examples(50, stateful_step_count=30 if EFFORT == 1 else 50)
_NAMES = (b"a", b"b", b"c", b"d", b"e")
_ODD_NAMES = (b".wh.a", b"x" * 243, b"x" * 242, b"\xff new")
_CREATE = os.O_RDWR | os.O_CREAT

name = st.sampled_from(_NAMES)
new_name = st.one_of(name, name, name, name, st.sampled_from(_ODD_NAMES))
pick = st.integers(0, 60)
variant = st.integers(0, 7)
path = st.lists(name, min_size=1, max_size=3).map(tuple)
what = st.sampled_from(
    ("file", "file", "directory", "link", "whiteout", "opaque", "symlink", "fifo")
)
strokes = st.lists(st.tuples(path, what, variant), max_size=12)


class Machine(Twins, RuleBasedStateMachine):
    """The calls. A number drawn by ``pick`` chooses one of what there is."""

    @initialize(
        upper=strokes,
        lower=st.lists(strokes, min_size=1, max_size=3),
        above=st.none() | st.none() | strokes,
        plain=st.booleans(),
        live=st.booleans(),
        few=st.booleans(),
    )
    def begin(
        self,
        upper: list[Stroke],
        lower: list[list[Stroke]],
        above: list[Stroke] | None,
        plain: bool,
        live: bool,
        few: bool,
    ) -> None:
        self.live = live
        self.steps = 0
        self.make(upper, lower, above=above, plain=plain, few=few)

    def teardown(self) -> None:
        try:
            if self.running and sys.exc_info()[0] is None:
                self.finish()
        finally:
            self.take_down()

    @invariant()
    def everything_agrees(self) -> None:
        if self.running:
            self.steps += 1
            looks = self.live or self.steps % 3 == 0
            self.check_everything(live=self.live if looks else None)

    # choosing

    def directory(self, number: int) -> Directory:
        directories = list(self.model.root.walk())
        return directories[number % len(directories)]

    def places(self, *, files: bool = True, directories: bool = True) -> list[Place]:
        return [
            (directory, child)
            for directory in self.model.root.walk()
            for child in sorted(directory.names)
            if (files if isinstance(directory.names[child], File) else directories)
        ]

    def place(self, number: int, name: bytes, places: list[Place]) -> Place:
        """Return one of the places; for 0 one that perhaps does not exist."""
        return places[number % len(places)] if places and number else (self.model.root, name)

    def regular(self, number: int) -> tuple[Place, File] | None:
        """Return a regular file, if there is one."""
        found = [
            (place, node)
            for place in self.places()
            if isinstance(node := place[0].names[place[1]], File) and node.kind == stat.S_IFREG
        ]
        return found[number % len(found)] if found else None

    # making

    @rule(
        where=pick,
        name=new_name,
        variant=variant,
        kind=st.sampled_from(("file", "open file", "directory", "directory", "symlink", "fifo")),
    )
    def create(self, where: int, name: bytes, variant: int, kind: str) -> None:
        self.make_one(self.directory(where), name, variant, kind)

    def make_one(self, parent: Directory, name: bytes, variant: int, kind: str) -> None:
        node = self.directory_node(parent)
        caller = Caller(variant, variant * 2)
        owner = (caller.uid, caller.gid)
        made: File | Directory = File(0o600 + variant, *owner)
        if kind == "directory":
            made = Directory((0o755, 0o700)[variant % 2], *owner)
        elif kind == "symlink":
            made = File(0o777, *owner, kind=stat.S_IFLNK, content=bytearray(b"text"))
        elif kind == "fifo":
            made = File(made.mode, *owner, kind=stat.S_IFIFO)
        expected = made.mode

        def real() -> Entry:
            if kind == "directory":
                return self.union.mkdir(node, name, expected, caller)
            if kind == "symlink":
                return self.union.symlink(node, name, b"text", caller)
            if kind == "fifo":
                return self.union.mknod(node, name, stat.S_IFIFO | expected, 0, caller)
            entry, handle = self.run(
                self.union.create(node, name, expected, _CREATE | os.O_EXCL, caller)
            )
            if kind == "open file" and isinstance(made, File):
                self.opened(handle, made)
            else:
                self.union.release(handle)
            return entry

        entry = self.both(real, lambda: self.model.create(parent, name, made))
        if entry:
            self.kernel.made(node, name, entry)

    @rule(where=pick, name=name)
    def open_or_create(self, where: int, name: bytes) -> None:
        """O_CREAT without O_EXCL, as when two programs create at the same time."""
        parent = self.directory(where)
        there = parent.names.get(name)
        if isinstance(there, File) and there.kind != stat.S_IFREG:
            return  # the kernel opens special files itself
        made = File(0o666, 1, 2)
        node = self.directory_node(parent)

        def expected() -> None:
            if name in parent.broken or there is None:
                self.model.create(parent, name, made)
            elif isinstance(there, Directory):
                raise Refused(errno.EISDIR)
            else:
                self.model.open(there, writing=True, truncating=False)

        result = self.both(
            lambda: self.run(self.union.create(node, name, 0o666, _CREATE, Caller(1, 2))), expected
        )
        if result and not isinstance(there, Directory):
            self.kernel.made(node, name, result[0])
            self.opened(result[1], there or made)
            self.close_file(-1)

    @rule(source=pick, where=pick, name=new_name)
    def link(self, source: int, where: int, name: bytes) -> None:
        files = self.places(directories=False)
        if not files:
            return
        old = files[source % len(files)]
        file = old[0].names[old[1]]
        assert isinstance(file, File)
        node, parent = self.node(old), self.directory(where)
        parent_node = self.directory_node(parent)
        entry = self.both(
            lambda: self.run(self.union.link(node, parent_node, name)),
            lambda: self.model.link(file, parent, name),
        )
        if entry:
            assert entry.node is node
            assert entry.nlink == file.nlink
            self.kernel.made(parent_node, name, entry)

    # taking away and moving

    @rule(which=pick, name=name, cold=st.booleans(), directory=st.booleans(), hold=st.booleans())
    def remove(self, which: int, name: bytes, cold: bool, directory: bool, hold: bool) -> None:
        """Unlink or rmdir, sometimes the wrong one, sometimes while somebody stands in it."""
        blindly = which % 16 == 0
        places = self.places(files=not directory or blindly, directories=directory or blindly)
        parent, name = self.place(which, name, places)
        self.take_away(parent, name, directory=directory, cold=cold, hold=hold)

    @rule(
        which=pick,
        other=pick,
        then=st.sampled_from(("stays", "goes", "is made anew", "is replaced")),
    )
    def empty(self, which: int, other: int, then: str) -> None:
        """Empty a directory as rm -r does: what lower branches have in it must not come back."""
        directories = self.places(files=False)
        if not directories:
            return
        parent, name = directories[which % len(directories)]
        top = parent.names[name]
        assert isinstance(top, Directory)
        for directory in reversed(list(top.walk())):
            for child, node in sorted(directory.names.items()):
                self.take_away(directory, child, directory=isinstance(node, Directory))
        if then == "is replaced":
            others = self.places(files=False)
            self.rename(others[other % len(others)], parent, name, noreplace=False, cold=False)
        elif then != "stays":
            self.take_away(parent, name, directory=True)
            if then == "is made anew":
                self.make_one(parent, name, other % 8, "directory")

    def take_away(
        self,
        parent: Directory,
        name: bytes,
        *,
        directory: bool,
        cold: bool = False,
        hold: bool = False,
    ) -> None:
        node = self.directory_node(parent, cold=cold)
        victim = parent.names.get(name)
        if victim:
            found = self.node((parent, name))  # the kernel looks up before it asks
            if hold:
                self.hold(found, victim)
        if directory:
            self.both(lambda: self.union.rmdir(node, name), lambda: self.model.rmdir(parent, name))
        else:
            self.both(
                lambda: self.run(self.union.unlink(node, name)),
                lambda: self.model.unlink(parent, name),
            )
        if victim and name not in parent.names:
            self.kernel.removed(node, name)

    @rule(which=pick, where=pick, name=new_name, noreplace=st.integers(0, 3), cold=st.booleans())
    def rename_file(self, which: int, where: int, name: bytes, noreplace: int, cold: bool) -> None:
        old = self.place(which, name, self.places(directories=False))
        self.rename(old, self.directory(where), name, noreplace=not noreplace, cold=cold)

    @rule(which=pick, where=pick, name=new_name, noreplace=st.integers(0, 3), cold=st.booleans())
    def rename_directory(
        self, which: int, where: int, name: bytes, noreplace: int, cold: bool
    ) -> None:
        old = self.place(which, name, self.places(files=False))
        self.rename(old, self.directory(where), name, noreplace=not noreplace, cold=cold)

    def rename(
        self, old: Place, to: Directory, name: bytes, *, noreplace: bool, cold: bool
    ) -> None:
        node, there = old[0].names.get(old[1]), to.names.get(name)
        # What the kernel finds out by itself: into its own inside, onto what holds it, or itself.
        if isinstance(node, Directory) and (to.lies_in(node) or node is there):
            return
        if isinstance(there, Directory) and old[0].lies_in(there):
            return
        if name in to.beside:
            return  # no rule says what becomes of it
        parent, new_parent = self.directory_node(old[0], cold=cold), self.directory_node(to)
        for place in (old, (to, name)):
            if place[1] in place[0].names:
                self.node(place)
        flags = RENAME_NOREPLACE if noreplace else 0
        self.both(
            lambda: self.run(self.union.rename(parent, old[1], new_parent, name, flags)),
            lambda: self.model.rename(*old, to, name, replace=not noreplace),
        )
        if node and node is not there and to.names.get(name) is node:
            self.kernel.moved((parent, old[1]), (new_parent, name))

    # attributes

    @rule(
        which=pick,
        number=pick,
        what=st.sampled_from(("mode", "owner", "times", "size", "set", "set", "remove")),
        key=st.sampled_from((b"user.k", b"user.l")),
    )
    def change(self, which: int, number: int, what: str, key: bytes) -> None:
        """Chmod, chown, utimes, truncate, setxattr, removexattr."""
        places = self.places()
        if which and places:
            place = places[which % len(places)]
            node, shown = self.node(place), place[0].names[place[1]]
        else:
            node, shown = self.union.root, self.model.root
        kind = shown.kind if isinstance(shown, File) else stat.S_IFDIR
        if what == "mode" and kind != stat.S_IFLNK:
            mode = (0o600, 0o755, 0o4711, 0o2755)[number % 4]
            self.both(
                lambda: self.run(self.union.setattr(node, Change(mode=mode))),
                lambda: self.model.change(shown, mode=mode),
            )
        elif what == "owner":
            self.both(
                lambda: self.run(self.union.setattr(node, Change(uid=number, gid=number + 1))),
                lambda: self.model.chown(shown, number, number + 1),
            )
        elif what == "times":
            change = Change(atime_ns=5, mtime_ns=old_time(number))
            entry = self.both(
                lambda: self.run(self.union.setattr(node, change)),
                lambda: self.model.change(shown, mtime=old_time(number)),
            )
            assert entry is None or entry.status.st_atime_ns == 5
        elif what == "size" and kind == stat.S_IFREG and isinstance(shown, File):
            self.both(
                lambda: self.run(self.union.setattr(node, Change(size=number))),
                lambda: self.model.truncate(shown, number),
            )
        elif what == "set" and kind in (stat.S_IFREG, stat.S_IFDIR):
            value = b"%d" % number
            self.both(
                lambda: self.run(self.union.set_xattr(node, key, value)),
                lambda: self.model.set_xattr(shown, key, value),
            )
        elif what == "remove" and kind in (stat.S_IFREG, stat.S_IFDIR):

            def expected() -> None:
                if key not in shown.xattrs:
                    raise Refused(errno.ENODATA)
                self.model.bring_up(shown)
                del shown.xattrs[key]

            self.both(lambda: self.run(self.union.remove_xattr(node, key)), expected)

    # open files

    @rule(
        which=pick,
        flags=st.sampled_from(
            (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR, os.O_RDWR | os.O_TRUNC)
        ),
    )
    def open(self, which: int, flags: int) -> None:
        found = self.regular(which)
        if found is None:
            return
        place, file = found
        node = self.file_node(place)
        handle = self.both(
            lambda: self.run(self.union.open(node, flags)),
            lambda: self.model.open(
                file, writing=flags != os.O_RDONLY, truncating=bool(flags & os.O_TRUNC)
            ),
        )
        if handle is None:
            return
        self.opened(handle, file)
        if len(self.handles) > 4:
            self.close_file(0)

    @rule(
        which=pick,
        number=pick,
        data=st.binary(max_size=9),
        what=st.sampled_from(("write", "write", "write slowly", "change", "close")),
    )
    def use_open(self, which: int, number: int, data: bytes, what: str) -> None:
        """Write, fchmod and so on, or close, whatever has become of the file's names."""
        if not self.handles:
            self.open(which, os.O_RDWR if number else os.O_RDONLY)
        if not self.handles:
            return  # there is no file at all
        which %= len(self.handles)
        handle, file = self.handles[which]
        if what == "write slowly" and handle.writable and not self.slow:
            self.write_slowly(handle, number, data, file)
        elif what in ("write", "write slowly"):

            def expected() -> None:
                if not handle.writable:
                    raise Refused(errno.EBADF)
                self.model.write(file, number, data)

            count = self.both(lambda: self.run(self.union.write(handle, number, data)), expected)
            assert count in (None, len(data))
        elif what == "change":
            change = Change(size=number, mode=0o640, uid=7, gid=8, atime_ns=1, mtime_ns=old_time(2))

            def changed() -> None:
                self.model.truncate(file, number)
                self.model.change(file, mode=0o640, uid=7, gid=8, mtime=old_time(2))

            self.both(lambda: self.run(self.union.setattr(handle.node, change)), changed)
        else:
            self.close_file(which)

    # open directories

    @rule(
        which=pick,
        count=st.integers(1, 5),
        what=st.sampled_from(("open", "read", "read", "read", "rewind", "close")),
    )
    def list_directory(self, which: int, count: int, what: str) -> None:
        if what == "open" or not self.listings:
            # Half of the time the one in which most happens.
            directory = self.directory(which // 2) if which % 2 else self.model.root
            node = self.directory_node(directory)
            self.kernel.pin(node)
            self.listings.append(Listing(self.union.open_directory(node), directory))
            self.read_on(self.listings[-1], 1)
            if len(self.listings) > 3:
                self.close_listing(0)
            return
        listing = self.listings[which % len(self.listings)]
        if what == "close":
            self.close_listing(self.listings.index(listing))
            return
        if what == "rewind":
            listing.position, listing.seen = 0, set()
        self.read_on(listing, count)

    def read_on(self, listing: Listing, count: int) -> None:
        """Read a part of a listing, and remember what it says as the kernel does (readdirplus)."""
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
                number = entry.node.number
                assert self.numbers.setdefault(shown, number) == number
                known = self.kernel.names.get((node.number, name))
                assert known in (None, number), "the listing shows another file"
                self.kernel.made(node, name, self.union.remember(entry))

    # the kernel's memory

    @rule(
        which=pick,
        what=st.sampled_from(
            ("forget", "forget some", "hold", "let go", "start anew", "commit", "look")
        ),
    )
    def remember(self, which: int, what: str) -> None:
        """Forget; hold on to a node as O_PATH or a working directory does; mount again."""
        if what == "forget":
            self.kernel.shrink(1)
            if not (self.handles or self.held or self.listings):
                assert [*self.union.state.nodes] == [self.union.root]
        elif what == "forget some":
            self.kernel.shrink(2 + which % 2)
        elif what == "hold":
            places = self.places()
            if places:
                place = places[which % len(places)]
                self.hold(self.node(place), place[0].names[place[1]])
        elif what == "let go":
            if self.held:
                self.kernel.unpin(self.held.pop(which % len(self.held))[0])
        elif what == "start anew":
            self.stop()
            self.start()
        elif what == "commit":
            self.commit()
        else:
            self.compare(live=True)


@pytest.fixture
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The core has nothing to warn about."""
    yield
    assert not caplog.records


@pytest.mark.usefixtures("nothing_logged")
@pytest.mark.parametrize("rules", ["aufs", "driver", "trusting"])
def test_the_union_is_what_the_model_says(tmp_path: Path, rules: str) -> None:
    class Rules(Machine):
        base = tmp_path
        options = {"aufs": "udba=reval", "driver": "profile=driver", "trusting": "udba=none"}[rules]
        strict = rules != "driver"
        trusting = rules != "aufs"

    run_state_machine_as_test(Rules, settings=_SETTINGS)
