"""What a layer changes in its parent, read from the layer's branch alone (driver.md 1.8, "fast").

A branch holds only what differs from below, so its entries *are* the list: a whiteout is a
deletion, anything else an addition, or a modification when the parent shows something of that name.

What the parent shows is asked of the parent's branches by the rules of the union itself: nearest
branch first; a whiteout ends the search for its name, an opaque mark for its whole directory. (So a
file that a middle layer deleted and this one makes again is an addition.) An opaque mark in the
layer's own branch stands for the deletion of every name that the parent shows there and the layer
does not make again. Nothing is ever followed out of a branch.

Directories are taken one at a time, each with the parents' directories of the same path, and only
one of those is open at any moment: neither deep trees nor many parents run out of descriptors.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple, Self

from driver.beneath import ABSENT, find, open_directory, open_root
from driver.descent import Descent
from driver.marks import Marked, read_marked
from driver.plinks import pseudo_links
from driver.values import Change, ChangeKind
from unionfs.branch.forms import OPAQUE_MARK, WHITEOUT_PREFIX

_SECOND = 1_000_000_000


class _Below(NamedTuple):
    """What the parents show under one name.

    Attributes:
        status: attributes of the nearest entry.
        branches: indexes of the parents whose directories merge here; empty for a file.
    """

    status: os.stat_result
    branches: list[int]


class _Entry(NamedTuple):
    """What was found out about one name of the layer.

    Attributes:
        kind: None for a directory that is only there because something inside it changed.
        is_directory: it has a content to be looked at.
        branches: parents whose directories lie below it.
        covered: those do not show through, a mark hides them.
    """

    name: bytes
    kind: ChangeKind | None
    is_directory: bool = False
    branches: Sequence[int] = ()
    covered: bool = False


def layer_changes(branch: str, parents: Sequence[str]) -> list[Change]:
    """List what the layer in ``branch`` changes in the union of ``parents``.

    Args:
        branch: directory of the layer itself; missing means no changes.
        parents: the ancestors' directories, nearest first.

    Returns:
        In lexical order of the tree, directories before their content; a directory is listed
        before the first addition or deletion inside it.

    Raises:
        OSError: a directory cannot be read, or was moved while it was walked through. What
            vanishes before is left out.
    """
    try:
        root = open_root(branch)
    except FileNotFoundError:
        return []
    try:
        return _walk(root, branch, parents)
    finally:
        os.close(root)


def _walk(root: int, branch: str, parents: Sequence[str]) -> list[Change]:
    record = _Record()
    with Descent(root) as at:
        everywhere = range(len(parents))
        levels = [(b"", iter(_compare(at.fd, b"", parents, everywhere, covered=False)))]
        while levels:
            where, entries = levels[-1]
            entry = next(entries, None)
            if entry is None:
                levels.pop()
                if levels:
                    at.leave()
                continue
            path = _join(where, entry.name)
            if entry.kind is not None:
                record.add(path, entry.kind, is_directory=entry.is_directory)
            if entry.is_directory and at.enter_if_there(entry.name):
                inside = _compare(at.fd, path, parents, entry.branches, covered=entry.covered)
                levels.append((path, iter(inside)))
    for path in sorted(pseudo_links(branch, parents)):
        record.add_missing(path)
    return record.changes


class _Record:
    """The list being made, with the parent directories that belong into it."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._seen: set[bytes] = set()
        self._directories: set[bytes] = {b""}

    def add(self, path: bytes, kind: ChangeKind, *, is_directory: bool) -> None:
        """Append a change; an addition or deletion brings its directory along."""
        above = path.rpartition(b"/")[0]
        if kind is not ChangeKind.MODIFY and above not in self._directories:
            self._append(above, ChangeKind.MODIFY)
            self._directories.add(above)
        if is_directory:
            self._directories.add(path)
        self._append(path, kind)

    def add_missing(self, path: bytes) -> None:
        """Append a modification of ``path`` unless something is said about it already."""
        if path not in self._seen:
            self._append(path, ChangeKind.MODIFY)

    def _append(self, path: bytes, kind: ChangeKind) -> None:
        self._seen.add(path)
        self.changes.append(Change("/" + os.fsdecode(path), kind))


def _compare(
    fd: int, path: bytes, parents: Sequence[str], below: Sequence[int], *, covered: bool
) -> list[_Entry]:
    """Look at one directory of the layer; return its entries in the order of their raw names."""
    marked = read_marked(fd)
    found = ((name, find(fd, name)) for name in marked.real)
    own = {name: status for name, status in found if status is not None}
    hidden = marked.hidden
    opaque = covered or marked.opaque
    shown = _shown(path, parents, below, None if opaque else marked.real)
    raw: dict[bytes, list[_Entry]] = {}
    for name in hidden - own.keys():
        raw[WHITEOUT_PREFIX + name] = [_Entry(name, ChangeKind.DELETE)]
    if opaque:
        lost = sorted(shown.keys() - own.keys() - hidden)
        raw[OPAQUE_MARK] = [_Entry(name, ChangeKind.DELETE) for name in lost]
    for name, status in own.items():
        under = shown.get(name)
        is_directory = stat.S_ISDIR(status.st_mode)
        raw[name] = [
            _Entry(
                name,
                _kind(status, under),
                is_directory,
                under.branches if under is not None else (),
                opaque or name in hidden,
            )
        ]
    return [entry for name in sorted(raw) for entry in raw[name]]


def _shown(
    path: bytes, parents: Sequence[str], below: Sequence[int], wanted: set[bytes] | None
) -> dict[bytes, _Below]:
    """Tell what the parents show in a directory.

    Args:
        below: indexes of the parents that have the directory, nearest first.
        wanted: the names asked for; None for all.
    """
    shown: dict[bytes, _Below] = {}
    if wanted is not None and not wanted:
        return shown
    closed: set[bytes] = set()
    for index in below:
        with _Lower(parents[index], path) as lower:
            marked = lower.marked()
            asked = marked.real if wanted is None else marked.real & wanted
            for name in asked - closed:
                status = lower.find(name)
                if status is None:
                    continue
                is_directory = stat.S_ISDIR(status.st_mode)
                if name not in shown:
                    shown[name] = _Below(status, [index] if is_directory else [])
                    if not is_directory:
                        closed.add(name)
                elif is_directory:
                    shown[name].branches.append(index)
            closed |= marked.hidden
            if marked.opaque:
                break
    return shown


class _Lower:
    """One directory of one parent's branch, open while it is looked at; absent ones are empty."""

    def __init__(self, branch: str, path: bytes) -> None:
        self._fd = -1
        try:
            root = open_root(branch)
            try:
                self._fd = open_directory(root, path)
            finally:
                os.close(root)
        except OSError as error:
            if error.errno not in ABSENT:
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def marked(self) -> Marked:
        return read_marked(self._fd) if self._fd >= 0 else Marked()

    def find(self, name: bytes) -> os.stat_result | None:
        return find(self._fd, name)


def _kind(status: os.stat_result, under: _Below | None) -> ChangeKind | None:
    if under is None:
        return ChangeKind.ADD
    both = stat.S_ISDIR(status.st_mode) and stat.S_ISDIR(under.status.st_mode)
    if both and _same_directory(status, under.status):
        return None
    return ChangeKind.MODIFY


def _same_directory(one: os.stat_result, other: os.stat_result) -> bool:
    return (
        one.st_size == other.st_size
        and one.st_mode == other.st_mode
        and same_time(one.st_mtime_ns, other.st_mtime_ns)
    )


def same_time(one: int, other: int) -> bool:
    """Compare two times in ns; one without a fraction equals any time of its second.

    Tars, and some filesystems, keep whole seconds only.
    """
    if one == other:
        return True
    return one // _SECOND == other // _SECOND and (one % _SECOND == 0 or other % _SECOND == 0)


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name
