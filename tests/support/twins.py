"""A union and its model side by side: made from the same branches, asked the same, compared."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest

from tests.support.branches import Stroke, fingerprint, grow, make_way, old_time, plant
from tests.support.cores import Running
from tests.support.dentries import Dentries
from tests.support.model import RECENT, Directory, File, Model, Place, Refused, Tree
from tests.support.views import (
    Path_,
    View,
    content_of,
    expected_on_writable_branch,
    model_view,
    union_view,
    writable_branch,
)
from unionfs import syscalls
from unionfs.union import copyup
from unionfs.union.build import build_union
from unionfs.union.core import (
    Caller,
    DirectoryNode,
    DirectoryStream,
    FileHandle,
    FileNode,
    Node,
    Operation,
    Union,
)
from unionfs.union.options import parse_options

T = TypeVar("T")

_TEMPORARY = re.compile(rb"\.wh\.\.wh\..+\.[0-9a-f]{4}")


@dataclass
class Listing:
    """An open directory that is being read; ``seen``: the names since its beginning."""

    stream: DirectoryStream
    directory: Directory
    position: int = 0
    seen: set[bytes] = field(default_factory=set)


class Twins:
    """The pair, what is open in it, and what the kernel remembers.

    base: a directory for the branches. options: mount options beside the branches.
    strict, trusting: the same rules for the model.
    """

    base: ClassVar[Path]
    options: ClassVar[str]
    strict: ClassVar[bool]
    trusting: ClassVar[bool]

    union: Union
    model: Model
    kernel: Dentries

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(dir=self.base))
        self.running = False
        self.handles: list[tuple[FileHandle, File]] = []
        self.held: list[tuple[Node, File | Directory]] = []
        self.listings: list[Listing] = []
        self.numbers: dict[File | Directory, int] = {}
        self.unseen: list[Place] = []
        self.slow: tuple[Running[int], FileHandle, Callable[[], None]] | None = None

    # the beginning, and beginning anew

    def make(
        self,
        upper: Sequence[Stroke],
        lower: Sequence[Sequence[Stroke]],
        *,
        above: Sequence[Stroke] | None,
        plain: bool,
        few: bool,
    ) -> None:
        """Make the branches, the union and the model.

        upper: the writable branch. lower: those below it. above: a read-only one on top of it.
        plain: the first one of several read-only branches is ``ro``: its whiteouts count for
            nothing.
        few: as few open directories as the core can work with.
        """
        self.open_directories = 4 if few else 64
        drawn = [upper, *lower] if above is None else [above, upper, *lower]
        at = 0 if above is None else 1
        self.layout = [f"R{index}=ro+wh" for index in range(len(drawn))]
        self.layout[at] = "W=rw"
        if plain and len(drawn) > 2:
            self.layout[1 - at] = f"R{1 - at}=ro"
        trees: list[Tree] = []
        for index, (strokes, branch) in enumerate(zip(drawn, self.layout, strict=True)):
            tree = Tree(writable=index == at, fixed=index < at, whable=not branch.endswith("=ro"))
            tree.mtime = old_time(0)
            grow(tree, strokes)
            if trees and index == at:
                make_way(tree, trees[0])
            trees.append(tree)
        places = [self.top / branch.partition("=")[0] for branch in self.layout]
        for tree, place in zip(trees, places, strict=True):
            place.mkdir()
            # The rules that are not strict know the marks of overlayfs too.
            plant(tree, place, foreign=not self.strict and tree.whable and not tree.writable)
        self.writable = places.pop(at)
        self.read_only = places
        self.fingerprints = [fingerprint(place) for place in self.read_only]
        trees[at].mtime = RECENT  # the union makes its private entries there
        self.model = Model(
            trees,
            self._chosen,
            strict=self.strict,
            trusting=self.trusting,
            root_opaque=not self.strict,
        )
        self.unseen = [
            (directory, name) for directory in self.model.root.walk() for name in directory.beside
        ]
        self.start()

    def start(self) -> None:
        """Make the union; the kernel knows nothing of it yet."""
        self.union = self._built(self.layout)
        self.running = True
        self.union.state.directories.limit = self.open_directories
        self.kernel = Dentries(self.union)
        self.numbers.clear()

    def stop(self) -> None:
        """Close and forget everything, then close the union."""
        self.finish_slow()
        while self.handles:
            self.close_file(0)
        while self.held:
            self.kernel.unpin(self.held.pop()[0])
        while self.listings:
            self.close_listing(0)
        self.kernel.shrink(1)
        assert [*self.union.state.nodes] == [self.union.root], "nodes that nobody needs"
        self.running = False
        self.union.close()

    def commit(self) -> None:
        """Put an empty writable branch on top of the present one, as for a container's next layer.

        Not where something lies beside its whiteout, or a branch above the writable one.
        """
        hidden = any(directory.beside or directory.broken for directory in self.model.root.walk())
        if hidden or not self.layout[0].endswith("=rw"):
            return
        self.stop()
        layer = self.writable
        self.read_only.insert(0, layer)
        self.fingerprints.insert(0, fingerprint(layer))
        self.writable = self.top / f"W{len(self.layout)}"
        self.writable.mkdir()
        status = layer.stat()
        os.chown(self.writable, status.st_uid, status.st_gid)
        shutil.copystat(layer, self.writable)
        self.layout[0] = f"{layer.name}=ro+wh"
        self.layout.insert(0, f"{self.writable.name}=rw")
        self.model.commit()
        self.start()

    def finish(self) -> None:
        """Start anew, compare for the last time."""
        self.stop()
        self.start()
        self.compare(live=True)
        after = [fingerprint(place) for place in self.read_only]
        assert after == self.fingerprints, "a read-only branch was changed"

    def take_down(self) -> None:
        """Leave nothing behind; checks nothing."""
        if self.running:
            self.union.close()
        shutil.rmtree(self.top)

    def _built(self, layout: Sequence[str]) -> Union:
        branches = ":".join(f"{self.top}/{branch}" for branch in layout)
        options = parse_options([f"{self.options},volatile,br:{branches}".encode()], _warned)
        return build_union(options, _warned)

    def _chosen(self, places: list[Place]) -> Place | None:
        """Tell under which of its names a lower file has been copied up."""
        here = [
            (directory, name)
            for directory, name in places
            if name not in directory.on_upper
            and os.path.lexists(self._upper(directory) / os.fsdecode(name))
        ]
        assert len(here) <= 1, "copied up under several names"
        return here[0] if here else None

    # asking both

    def node(self, place: Place, *, cold: bool = False) -> Node:
        """Return the node of a name that exists, or of the root."""
        return self.kernel.walk((*place[0].path(), place[1]), cold=cold)

    def directory_node(self, directory: Directory, *, cold: bool = False) -> DirectoryNode:
        """Return the node of a directory."""
        return self.kernel.directory(directory.path(), cold=cold)

    def file_node(self, place: Place) -> FileNode:
        """Return the node of a file."""
        node = self.node(place)
        assert isinstance(node, FileNode)
        return node

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

    def run(self, operation: Operation[T]) -> T:
        """Do an operation; a copy-up in flight comes to its end where this waits for it."""
        running = Running(operation)
        if running.waiting:
            self.finish_slow()
        return running.finish()

    def write_slowly(self, handle: FileHandle, offset: int, data: bytes, file: File) -> None:
        """Begin to write; if that means a copy-up, it goes on while other things happen."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(copyup, "_SMALL", -1)
            running = Running(self.union.write(handle, offset, data))
        self.slow = running, handle, lambda: self.model.write(file, offset, data)
        if running.job is None:
            self.finish_slow()
        for directory, _ in self.model.places(file):
            # The directory is brought up before the file is.
            if self._upper(directory).is_dir():
                self.model.make_room(directory)

    def _upper(self, directory: Directory) -> Path:
        return self.writable.joinpath(*map(os.fsdecode, directory.path()))

    def finish_slow(self) -> None:
        """Let the write that goes on come to its end."""
        if self.slow is not None:
            (running, _, expected), self.slow = self.slow, None
            running.finish()
            expected()

    # what is open

    def opened(self, handle: FileHandle, file: File) -> None:
        """Keep an open file."""
        self.kernel.pin(handle.node)
        self.handles.append((handle, file))

    def hold(self, node: Node, shown: File | Directory) -> None:
        """Keep a reference, as a working directory or an O_PATH descriptor does; of a few only."""
        self.kernel.pin(node)
        self.held.append((node, shown))
        if len(self.held) > 3:
            self.kernel.unpin(self.held.pop(0)[0])

    def close_file(self, which: int) -> None:
        """Check and close an open file."""
        if self.slow and self.slow[1] is self.handles[which][0]:
            self.finish_slow()
        handle, file = self.handles.pop(which)
        self.check_open(handle, file)
        self.union.release(handle)
        self.kernel.unpin(handle.node)

    def close_listing(self, which: int) -> None:
        """Close an open directory."""
        stream = self.listings.pop(which).stream
        self.union.close_directory(stream)
        self.kernel.unpin(stream.node)

    # comparing

    def check_everything(self, *, live: bool | None) -> None:
        """Compare all there is; live: as :meth:`compare`, None leaves the trees out."""
        for job in self.union.take_background():
            job.run()
        for handle, file in self.handles:
            self.check_open(handle, file)
        for node, shown in self.held:
            self._check_held(node, shown)
        if live is not None:
            self.compare(live=live)
        if self.slow is None:
            self._check_writable_branch()

    def compare(self, *, live: bool) -> None:
        """Compare the whole tree.

        live: as the union shows it, else as another one shows it that is made for the purpose and
        knows only what is on the branches.
        """
        expected, nodes = model_view(self.model)
        if live:
            view, numbers = union_view(self.union)
            check_equal(view, expected)
            self._check_numbers({path: (nodes[path], number) for path, number in numbers.items()})
            for directory in self.model.root.walk():
                for name in directory.broken:
                    with pytest.raises(OSError) as error:
                        self.union.lookup(self.directory_node(directory), name)
                    assert error.value.errno == errno.EIO
            return
        with pytest.MonkeyPatch.context() as patch:
            # As a daemon does that may not make private views of the branches.
            patch.setattr(syscalls, "open_tree_clone", _forbidden)
            aside = self._built([branch.replace("=rw", "=ro+wh") for branch in self.layout])
        try:
            check_equal(union_view(aside)[0], expected)
            assert [*aside.state.nodes] == [aside.root]
        finally:
            aside.close()

    def _check_writable_branch(self) -> None:
        there = writable_branch(self.writable)
        unseen = [(*where.path(), name) for where, name in self.unseen if not where.removed]
        seen: View = {
            path: ()
            for path in there
            if path[-1] != b".wh..wh..opq"
            and not any(path[: len(hidden)] == hidden for hidden in unseen)
        }
        check_equal(seen, dict.fromkeys(expected_on_writable_branch(self.model), ()))
        assert not any(_TEMPORARY.fullmatch(path[-1]) for path in there)

    def _check_numbers(self, seen: dict[Path_, tuple[File | Directory, int]]) -> None:
        """A living file keeps its number, and shares it with nobody."""
        holders: dict[int, File | Directory] = {}
        for path, (node, number) in seen.items():
            assert holders.setdefault(number, node) is node, f"{path} shares its number"
            assert self.numbers.setdefault(node, number) == number, f"{path} has another number"
        for handle, file in self.handles:
            assert holders.setdefault(handle.node.number, file) is file
            assert self.numbers.setdefault(file, handle.node.number) == handle.node.number

    def check_open(self, handle: FileHandle, file: File) -> None:
        """Compare an open file, whatever has become of its names."""
        assert content_of(self.union, handle.node) == bytes(file.content)
        self._check_held(handle.node, file)

    def _check_held(self, node: Node, shown: File | Directory) -> None:
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
            assert isinstance(node, DirectoryNode)
            assert entry.nlink == 0
            stream = self.union.open_directory(node)
            assert not list(self.union.read_directory(stream, 0))
            self.union.close_directory(stream)
            with pytest.raises(FileNotFoundError):
                self.union.mkdir(node, b"new", 0o755, Caller(0, 0))


def check_equal(seen: View, expected: View) -> None:
    """Compare two views path by path: of two whole trees nobody would see what differs."""
    for path in sorted(seen.keys() | expected.keys()):
        assert seen.get(path) == expected.get(path), (path, seen.get(path), expected.get(path))


def _forbidden(_: int) -> int:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def _warned(text: str) -> None:
    assert "not writable" in text, text


def _symbol(number: int | None) -> str:
    return "success" if number is None else errno.errorcode[number]
