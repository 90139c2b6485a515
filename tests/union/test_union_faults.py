"""A system call fails in the middle: every operation is done wholly or not at all.

Each scenario is run again and again, and each time the next system call fails. Either the caller
gets that error, and the union shows what it showed before; or the call was one that may fail, and
the union shows what it should show afterwards. The same is seen after a fresh start, and trying
again works.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.branches import fingerprint
from tests.support.cores import ROOT, Core
from tests.support.faults import Faults, Killed
from tests.support.trees import fill, temporaries
from tests.support.twins import check_equal
from tests.support.views import View, union_view
from unionfs.union.core import Change, run_now

Action = Callable[[Core], object]

_OLD_NS = 1_000_000_000_000_000_789


def branches(core: Core) -> None:
    """Fill the branches with something for every scenario; all of it old."""
    lower = core.branch("R")
    fill(lower, "f", "d/f", "d/g", "d/sub/", "gone", "gone.d/f", "empty/x", "a", "d2/e/")
    os.link(lower / "a", lower / "d/b")
    os.setxattr(lower / "f", "trusted.k", b"v")
    os.setxattr(lower / "d", "trusted.k", b"v")
    os.mkfifo(lower / "fifo")
    os.symlink("text", lower / "link")
    upper = core.branch("W")
    fill(upper, "w", "over", "own/x", "own.d/", ".wh.gone", ".wh.gone.d", "empty/.wh.x")
    fill(lower, "over")
    for top in (lower, upper):
        for folder, _, files in os.walk(top, topdown=False):
            for name in (*files, "."):
                os.utime(os.path.join(folder, name), ns=(_OLD_NS, _OLD_NS), follow_symlinks=False)


def create(core: Core, path: str) -> None:
    core.union.release(run_now(core.union.create(*core.at(path), 0o644, os.O_EXCL, ROOT))[1])


def write_open(core: Core, path: str, *, unlinked: bool = False) -> None:
    handle = run_now(core.union.open(core.file(path), os.O_RDWR))
    try:
        if unlinked:
            core.unlink(path)
        run_now(core.union.write(handle, 0, b"new"))
    finally:
        core.union.release(handle)


def change(core: Core, path: str, what: Change) -> None:
    run_now(core.union.setattr(core.node(path), what))


def truncate_open(core: Core, path: str) -> None:
    core.union.release(run_now(core.union.open(core.file(path), os.O_WRONLY | os.O_TRUNC)))


SCENARIOS: dict[str, Action] = {
    "create": lambda core: create(core, "new"),
    "create in a lower directory": lambda core: create(core, "d/sub/new"),
    "create where a file was removed": lambda core: create(core, "gone"),
    "create where a directory was removed": lambda core: create(core, "gone.d"),
    "mkdir": lambda core: core.mkdir("d/new"),
    "mkdir where a directory was removed": lambda core: core.mkdir("gone.d"),
    "mkdir where a file was removed": lambda core: core.mkdir("gone"),
    "symlink": lambda core: core.union.symlink(*core.at("gone"), b"text", ROOT),
    "mknod": lambda core: core.union.mknod(*core.at("gone"), stat.S_IFIFO | 0o600, 0, ROOT),
    "unlink below": lambda core: core.unlink("d/f"),
    "unlink above": lambda core: core.unlink("w"),
    "unlink above and below": lambda core: core.unlink("over"),
    "unlink one of two links": lambda core: core.unlink("a"),
    "rmdir below": lambda core: core.rmdir("d2/e"),
    "rmdir above": lambda core: core.rmdir("own.d"),
    "rmdir with whiteouts": lambda core: core.rmdir("empty"),
    "link below": lambda core: core.link("d/f", "new"),
    "link above": lambda core: core.link("w", "d/new"),
    "link below where a file was removed": lambda core: core.link("d/f", "gone"),
    "link above where a file was removed": lambda core: core.link("w", "gone"),
    "link one of two links": lambda core: core.link("a", "new"),
    "rename below": lambda core: core.rename("d/f", "new"),
    "rename above": lambda core: core.rename("w", "d/sub/new"),
    "rename above and below": lambda core: core.rename("over", "new"),
    "rename onto a lower file": lambda core: core.rename("w", "d/f"),
    "rename onto an upper file": lambda core: core.rename("f", "w"),
    "rename where a file was removed": lambda core: core.rename("f", "gone"),
    "rename one of two links": lambda core: core.rename("d/b", "new"),
    "rename a link to a lower file": lambda core: core.rename("link", "gone"),
    "move a directory": lambda core: core.rename("own", "d/moved"),
    "move a directory with whiteouts": lambda core: core.rename("empty", "moved"),
    "move a directory to where one was removed": lambda core: core.rename("own", "gone.d"),
    "move a directory onto an empty one": lambda core: core.rename("own", "own.d"),
    "move a directory onto one with whiteouts": lambda core: core.rename("own", "empty"),
    "move a directory onto a lower one": lambda core: core.rename("own", "d2/e"),
    "move a lower directory": lambda core: core.rename("d2/e", "own.d"),
    "chmod": lambda core: change(core, "d/f", Change(mode=0o600)),
    "chmod of a directory": lambda core: change(core, "d/sub", Change(mode=0o700)),
    "chmod of one of two links": lambda core: change(core, "d/b", Change(mode=0o600)),
    "chmod of a fifo": lambda core: change(core, "fifo", Change(mode=0o600)),
    "chown of a symbolic link": lambda core: change(core, "link", Change(uid=7)),
    "truncate": lambda core: change(core, "f", Change(size=0)),
    "truncate above": lambda core: change(core, "w", Change(size=0)),
    "open with truncation": lambda core: truncate_open(core, "f"),
    "set an attribute": lambda core: run_now(
        core.union.set_xattr(core.node("f"), b"trusted.new", b"v")
    ),
    "remove an attribute": lambda core: run_now(
        core.union.remove_xattr(core.node("f"), b"trusted.k")
    ),
    "write": lambda core: write_open(core, "f"),
    "write to one of two links": lambda core: write_open(core, "a"),
    "write when unlinked": lambda core: write_open(core, "w", unlinked=True),
}


# Two steps are needed, and between them a name is free: nothing old shows there.
_FREE_BETWEEN: dict[str, list[tuple[bytes, ...]]] = {
    "write when unlinked": [(b"w",)],
    "move a directory onto an empty one": [(b"own.d",)],
    "move a directory onto one with whiteouts": [(b"empty",)],
    "move a lower directory": [(b"own.d",)],
}


def seen(core: Core) -> View:
    """Return the view without the times of directories: taking something back leaves its trace."""
    return {
        path: entry[:4] + entry[5:] if entry[0] == "directory" else entry
        for path, entry in union_view(core.union)[0].items()
    }


def without_counts(view: View) -> View:
    """Return the view without link counts: what could not be recorded was told of in the log."""
    return {
        path: entry[:6] + entry[7:] if entry[0] != "directory" else entry
        for path, entry in view.items()
    }


def begin(base: Path, options: str = "volatile,udba=none") -> Core:
    """Return a union of fresh branches."""
    core = Core(Path(tempfile.mkdtemp(dir=base)))
    branches(core)
    core.start(options=options)
    return core


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("opening", [False, True], ids=["changing", "opening"])
def test_all_or_nothing(
    mount_tmpfs: Callable[[str], Path],
    name: str,
    opening: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    action = SCENARIOS[name]
    base = mount_tmpfs("branches")
    core = begin(base)
    before = seen(core)
    action(core)
    after = seen(core)
    core.stop()
    number = errno.EMFILE if opening else errno.ENOSPC
    faults = Faults(monkeypatch, opening=opening)
    for count in range(1, 1000):
        core = begin(base)
        caplog.clear()
        lower = fingerprint(core.base / "R")
        failed = False
        with faults.at(count, number):
            try:
                action(core)
            except OSError as error:
                failed = True
                assert error.errno == number, f"{faults.failed} {count}: {error}"
        if not faults.failed:
            core.stop()
            break
        where = f"{faults.failed}, call {count}"
        for job in core.union.take_background():
            job.run()
        expected = before if failed else after
        if name == "write when unlinked" and failed:
            expected = after if (b"w",) not in seen(core) else before
        uncounted = any("link" in record.getMessage() for record in caplog.records)
        view = without_counts if uncounted else dict
        assert view(seen(core)) == view(expected), where
        core.start()
        assert view(seen(core)) == view(expected), f"{where}, after a fresh start"
        left = temporaries(core.base / "W")
        assert not left or caplog.records, f"{where}: {left}"
        if failed and expected is before:
            action(core)
            assert seen(core) == after, f"{where}, tried again"
        core.stop()
        assert fingerprint(core.base / "R") == lower, where
    assert opening or count > 1, "nothing was called"


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_any_call(
    mount_tmpfs: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the next mount finds is the state before or the state after, however early the end."""
    action = SCENARIOS[name]
    base = mount_tmpfs("branches")
    core = begin(base, "profile=driver,volatile")
    states = [seen(core)]
    action(core)
    states.append(seen(core))
    core.stop()
    for path in _FREE_BETWEEN.get(name, ()):
        states.append({here: entry for here, entry in states[0].items() if here != path})
    faults = Faults(monkeypatch)
    for count in range(1, 1000):
        core = begin(base, "profile=driver,volatile")
        # OSError: what a dead process tries to undo may not be there.
        with faults.at(count, 0), contextlib.suppress(Killed, OSError):
            action(core)
        if not faults.failed:
            core.stop()
            break
        core.start()
        found = without_counts(seen(core))
        if found not in [without_counts(state) for state in states]:
            check_equal(found, without_counts(states[0]))  # says what differs
        core.stop()
