"""What overlayfs writes with redirect_dir=on and metacopy=on is recognised and refused.

A metadata-only copy is a file of holes, a redirect a directory that has lost most of its content.
Whoever took them for what they look like would lose data without noticing.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.cores import Core
from tests.support.trees import fails, fill, paths
from unionfs.syscalls import RENAME_EXCHANGE
from unionfs.union.core import Change, run_now

OVERLAY = "profile=overlay,volatile"
PREFIXES = ("trusted", "user")


@pytest.fixture
def core(core: Core) -> Core:
    """A union of W, M and R in which the objects ``M/f`` and ``M/d`` are to be referring ones."""
    for name in ("W", "M", "R"):
        core.branch(name)
    fill(core.branch("M"), "f", "d/own")
    fill(core.branch("R"), "d/wrong", "old/f")
    return core


def start(core: Core, options: str = OVERLAY) -> None:
    core.start("W=rw", "M=ro+wh", "R=ro+wh", options=options)


def mark(path: Path, what: str, prefix: str = "trusted", value: bytes = b"") -> None:
    os.setxattr(path, f"{prefix}.overlay.{what}", value)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_metadata_only_copy_is_not_opened(
    core: Core, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    mark(core.branch("M") / "f", "metacopy", prefix)
    start(core)
    assert core.union.getattr(core.node("f")).status.st_size == 1
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC):
        with fails("EIO"):
            run_now(core.union.open(core.file("f"), flags))
    for change in (Change(mode=0o600), Change(size=0)):
        with fails("EIO"):
            run_now(core.union.setattr(core.file("f"), change))
    with fails("EIO"):
        core.rename("f", "g")
    assert paths(core.branch("W")) == set()
    messages = {record.getMessage() for record in caplog.records}
    assert len(messages) == 1
    assert messages.pop().startswith(f"/f on {core.branch('M')}=ro+wh is refused (EIO): it is a ")
    core.unlink("f")
    assert core.names() == ["d", "old"]


def test_on_the_writable_branch_too(core: Core) -> None:
    fill(core.branch("W"), "f", "g")
    mark(core.branch("W") / "f", "metacopy")
    start(core)
    with fails("EIO"):
        core.read("f")
    with fails("EIO"):
        run_now(core.union.setattr(core.file("f"), Change(size=0)))
    run_now(core.union.setattr(core.file("f"), Change(mode=0o600)))  # it does have attributes
    assert core.read("g") == b"W"


def test_an_empty_one_has_nothing_to_lose(core: Core) -> None:
    os.truncate(core.branch("M") / "f", 0)
    mark(core.branch("M") / "f", "metacopy")
    start(core)
    assert core.read("f") == b""
    core.write("f", b"new")
    assert os.listxattr(core.branch("W") / "f") == []


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_redirect_is_not_entered(
    core: Core, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    mark(core.branch("M") / "d", "redirect", prefix, b"old")
    start(core)
    assert core.names() == ["f", "d", "old"]
    core.node("d")
    with fails("EIO"):
        core.names("d")
    with fails("EIO"):
        core.node("d/own")
    with fails("EIO"):
        core.create("d/new")
    with fails("EIO"):
        core.rmdir("d")
    with fails("EIO"):
        core.rename("d", "e")
    assert paths(core.branch("W")) == set()
    messages = {record.getMessage() for record in caplog.records}
    assert len(messages) == 1
    assert messages.pop().startswith(f"/d on {core.branch('M')}=ro+wh is refused (EIO): it is a ")


def test_a_redirect_on_the_writable_branch_stays_where_it_is(core: Core) -> None:
    """The name that it holds may be relative to the directory it is in."""
    fill(core.branch("W"), "new/f", "other/f")
    mark(core.branch("W") / "new", "redirect", value=b"old")
    start(core)
    before = paths(core.branch("W"))
    with fails("EIO"):
        core.rename("new", "newer")
    with fails("EIO"):
        core.rename("new", "other", RENAME_EXCHANGE)
    with fails("EIO"):
        core.rename("other", "new", RENAME_EXCHANGE)
    assert paths(core.branch("W")) == before


def test_nor_when_only_its_parent_was_listed(core: Core) -> None:
    mark(core.branch("R") / "old", "redirect", value=b"older")
    start(core)
    root = core.union.root
    stream = core.union.open_directory(root)
    listed = {
        name: core.union.listed(stream, name, item)
        for _, name, item in core.union.read_directory(stream, 0)
    }
    entry = listed[b"old"]
    assert entry is not None
    node = core.union.directory(entry.node.number)
    with fails("EIO"):
        core.union.lookup(node, b"absent")
    core.union.close_directory(stream)


@pytest.mark.parametrize("form", ["overlay", "aufs"])
def test_an_opaque_redirect_is_complete(core: Core, form: str) -> None:
    mark(core.branch("M") / "d", "redirect", value=b"old")
    if form == "overlay":
        mark(core.branch("M") / "d", "opaque", value=b"y")
    else:
        fill(core.branch("M"), "d/.wh..wh..opq")
    start(core)
    assert core.names("d") == ["own"]


def test_where_such_forms_do_not_count_nothing_is_refused(core: Core) -> None:
    mark(core.branch("M") / "f", "metacopy")
    mark(core.branch("M") / "d", "redirect", value=b"old")
    start(core, "profile=aufs,volatile")
    assert core.read("f") == b"M"
    assert core.names("d") == ["own", "wrong"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What ``os.listxattr`` has been called for."""
    calls: list[object] = []
    real = os.listxattr

    def listxattr(path: int | bytes, **more: bool) -> list[str]:
        calls.append(path)
        return real(path, **more)

    monkeypatch.setattr(os, "listxattr", listxattr)
    return calls


@pytest.mark.parametrize(("profile", "cost"), [("aufs", 0), ("overlay", 1)])
def test_it_costs_one_call_for_what_is_opened(
    core: Core, asked: list[object], profile: str, cost: int
) -> None:
    (core.branch("M") / "empty").touch()
    start(core, f"profile={profile},volatile")
    file, directory = core.file("f"), core.directory("d")
    empty = core.file("empty")
    asked.clear()
    core.union.getattr(file)
    for node, calls in ((file, cost), (empty, 0)):
        handle = run_now(core.union.open(node, os.O_RDONLY))
        again = run_now(core.union.open(node, os.O_RDONLY))
        core.union.read(handle, 0, 10)
        core.union.release(again)
        core.union.release(handle)
        assert len(asked) == calls
        asked.clear()
    for name in (b"x", b"y"):
        with fails("ENOENT"):
            core.union.lookup(directory, name)
    assert len(asked) == 2 * cost  # the directory lies on two branches
