"""A union core for a test: branches in a directory, no mount; and operations driven by hand."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from unionfs.union.build import build_union
from unionfs.union.core import (
    Caller,
    DirectoryNode,
    FileNode,
    Job,
    Latch,
    Node,
    Operation,
    Union,
    run_now,
)
from unionfs.union.options import parse_options

T = TypeVar("T")

ROOT = Caller(0, 0)


class Core:
    """Branches below ``base`` and the union that is made of them.

    Attributes:
        union: the present union; :meth:`start` again makes a new one of the same branches.
        warnings: what was said at the start.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.warnings: list[str] = []
        self._layout: tuple[str, ...] = ("W=rw", "R=ro+wh")
        self._options = "volatile"
        self.running = False
        self.union: Union

    def branch(self, name: str) -> Path:
        """Return the directory of a branch, which is made if need be."""
        path = self.base / name
        path.mkdir(exist_ok=True)
        return path

    def start(self, *layout: str, options: str = "") -> Union:
        """(Re)start the union; layout and options stay as they were unless given."""
        self.stop()
        self._layout = layout or self._layout
        self._options = options or self._options
        branches = []
        for word in self._layout:
            name, _, permission = word.partition("=")
            branches.append(f"{self.branch(name)}={permission}")
        text = f"{self._options},br:{':'.join(branches)}"
        self.union = build_union(parse_options([text.encode()], self.warnings.append), self.warn)
        self.running = True
        return self.union

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def stop(self) -> None:
        """Close the union."""
        if self.running:
            self.running = False
            self.union.close()

    # looking; what is found counts as remembered by the kernel

    def node(self, path: str) -> Node:
        node: Node = self.union.root
        for name in path.encode().split(b"/") if path else []:
            assert isinstance(node, DirectoryNode)
            node = self.union.lookup(node, name).node
        return node

    def directory(self, path: str) -> DirectoryNode:
        node = self.node(path)
        assert isinstance(node, DirectoryNode)
        return node

    def file(self, path: str) -> FileNode:
        node = self.node(path)
        assert isinstance(node, FileNode)
        return node

    def at(self, path: str) -> tuple[DirectoryNode, bytes]:
        """Return parent and name, as most operations want them."""
        parent, name = os.path.split(path)
        return self.directory(parent), name.encode()

    def names(self, path: str = "") -> list[str]:
        stream = self.union.open_directory(self.directory(path))
        try:
            return [os.fsdecode(name) for _, name, _ in self.union.read_directory(stream, 0)]
        finally:
            self.union.close_directory(stream)

    def nlink(self, path: str) -> int:
        return self.union.getattr(self.node(path)).nlink

    def read(self, path: str) -> bytes:
        handle = run_now(self.union.open(self.file(path), os.O_RDONLY))
        try:
            data = self.union.read(handle, 0, 1 << 20)
            return bytes(data.run() if isinstance(data, Job) else data)
        finally:
            self.union.release(handle)

    # changing, in place; the kernel looks names up before it asks for a change of them

    def write(self, path: str, data: bytes, offset: int = 0) -> None:
        handle = run_now(self.union.open(self.file(path), os.O_RDWR))
        try:
            run_now(self.union.write(handle, offset, data))
        finally:
            self.union.release(handle)

    def create(self, path: str, data: bytes = b"") -> FileNode:
        entry, handle = run_now(
            self.union.create(*self.at(path), 0o644, os.O_RDWR | os.O_EXCL, ROOT)
        )
        try:
            run_now(self.union.write(handle, 0, data))
        finally:
            self.union.release(handle)
        assert isinstance(entry.node, FileNode)
        return entry.node

    def mkdir(self, path: str) -> DirectoryNode:
        node = self.union.mkdir(*self.at(path), 0o755, ROOT).node
        assert isinstance(node, DirectoryNode)
        return node

    def link(self, old: str, new: str) -> None:
        run_now(self.union.link(self.node(old), *self.at(new)))

    def unlink(self, path: str) -> None:
        self.node(path)
        run_now(self.union.unlink(*self.at(path)))

    def rmdir(self, path: str) -> None:
        self.node(path)
        self.union.rmdir(*self.at(path))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        self.node(old)
        with contextlib.suppress(FileNotFoundError):
            self.node(new)
        run_now(self.union.rename(*self.at(old), *self.at(new), flags))


class Running(Generic[T]):
    """An operation in progress: it stops at each job until that is run, and waits for latches.

    As on the event loop, who is woken goes on when the other one has done its step.

    Attributes:
        job: the job it has handed out, None while it waits for a latch or has ended.
        waiting: True while it waits for another operation.
        result, error: how it ended.
    """

    _woken: ClassVar[list[Running[Any]]] = []

    def __init__(self, operation: Operation[T]) -> None:
        self._operation = operation
        self.job: Job | None = None
        self.waiting = False
        self.ended = False
        self.result: T | None = None
        self.error: OSError | None = None
        self._advance(None, None)

    def run_job(self) -> None:
        """Do the job and go on."""
        assert self.job is not None, "there is no job to do"
        job, self.job = self.job, None
        try:
            result = job.run()
        except OSError as error:
            self._advance(None, error)
        else:
            self._advance(result, None)
        while self._woken:
            woken = self._woken.pop(0)
            woken.waiting = False
            woken._advance(None, None)

    def finish(self) -> T:
        """Do all jobs that are left; the operation must not wait for another."""
        while self.job is not None:
            self.run_job()
        assert self.ended, "it waits for another operation"
        if self.error is not None:
            raise self.error
        return cast("T", self.result)

    def _advance(self, result: Any, error: OSError | None) -> None:
        try:
            pending = self._operation.throw(error) if error else self._operation.send(result)
        except StopIteration as stop:
            self.ended, self.result = True, stop.value
        except OSError as failure:
            self.ended, self.error = True, failure
        else:
            if isinstance(pending, Latch):
                self.waiting = True
                pending.on_open(lambda: self._woken.append(self))
            else:
                self.job = pending
