"""A file that loses its last name between being looked up and being used.

The kernel looks a path up, and then asks for what the program wants: by node, not by name. When
another program has replaced the file meanwhile, as editors and package managers do, the first one
must still get the file that it has found, and no error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import pytest

from tests.support.cores import Core
from tests.support.trees import fails
from unionfs.union.core import Change, FileNode, run_now
from unionfs.union.names import Loss


def on_lower(core: Core) -> FileNode:
    (core.branch("R") / "f").write_text("content")
    core.start()
    return core.file("f")


def on_upper(core: Core) -> FileNode:
    core.start()
    core.create("f", b"content")
    return core.file("f")


def copied_up(core: Core) -> FileNode:
    on_lower(core)
    core.write("f", b"C")
    core.write("f", b"c")
    return core.file("f")


def pseudo_linked(core: Core) -> FileNode:
    (core.branch("R") / "f").write_text("content")
    os.link(core.branch("R") / "f", core.branch("R") / "g")
    core.start()
    core.unlink("g")
    return core.file("f")


def replace(core: Core) -> None:
    core.create("new", b"other")
    core.rename("new", "f")


def remove(core: Core) -> None:
    core.unlink("f")


MAKERS = (on_lower, on_upper, copied_up, pseudo_linked)
Make = Callable[[Core], FileNode]
Lose = Callable[[Core], None]


def read(core: Core, node: FileNode) -> bytes:
    handle = run_now(core.union.open(node, os.O_RDONLY))
    try:
        data = core.union.read(handle, 0, 100)
        assert isinstance(data, (bytes, bytearray))
        return bytes(data)
    finally:
        core.union.release(handle)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("lose", [replace, remove])
@pytest.mark.parametrize("make", MAKERS)
def test_it_is_opened_all_the_same(core: Core, make: Make, lose: Lose) -> None:
    node = make(core)
    lose(core)
    for _ in range(2):  # it stays in reach when it was closed
        assert read(core, node) == b"content"
        assert core.union.getattr(node).nlink == 0
    if lose is replace:
        assert core.read("f") == b"other"


@pytest.mark.parametrize("make", MAKERS)
def test_it_is_changed_all_the_same(core: Core, make: Make) -> None:
    node = make(core)
    remove(core)
    run_now(core.union.setattr(node, Change(mode=0o4750, uid=12, mtime_ns=10**18)))
    run_now(core.union.set_xattr(node, b"user.k", b"v"))
    status = core.union.getattr(node).status
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o4750, 12)
    assert status.st_mtime_ns == 10**18
    assert core.union.get_xattr(node, b"user.k") == b"v"
    handle = run_now(core.union.open(node, os.O_RDWR))
    run_now(core.union.write(handle, 7, b" and more"))
    core.union.release(handle)
    run_now(core.union.setattr(node, Change(size=11)))
    assert read(core, node) == b"content and"
    assert os.listdir(core.branch("R")) == [] or (core.branch("R") / "f").read_text() == "content"


@pytest.mark.parametrize("make", MAKERS)
def test_no_descriptor_is_left_when_the_kernel_forgets_it(core: Core, make: Make) -> None:
    node = make(core)
    core.read("f")  # now the directories are open
    before = descriptors()
    remove(core)
    read(core, node)
    run_now(core.union.setattr(node, Change(size=3)))
    core.union.forget(node.number, node.lookups)
    assert node.held < 0
    assert descriptors() == before


def test_a_name_that_could_not_be_taken_away_costs_no_descriptor(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = on_upper(core)
    before = descriptors()

    def refuse(self: Loss) -> None:
        raise OSError(5, "refused")

    monkeypatch.setattr(Loss, "account", refuse)
    with fails("EIO"):
        remove(core)
    assert node.held < 0
    assert descriptors() == before


@pytest.mark.parametrize("branch", ["R", "W"])
def test_a_name_that_the_kernel_has_never_looked_up_does_not_help(core: Core, branch: str) -> None:
    """Storage that saves space by hard links gives every file of a layer names elsewhere."""
    (core.branch(branch) / "f").write_text("content")
    os.link(core.branch(branch) / "f", core.branch(branch) / "elsewhere")
    core.start()
    node = core.file("f")
    remove(core)
    assert core.union.getattr(node).nlink == 1
    assert read(core, node) == b"content"
    run_now(core.union.setattr(node, Change(size=4)))
    assert read(core, node) == b"cont"
    assert core.read("elsewhere") == b"cont"
    assert core.file("elsewhere") is node
    assert node.held < 0  # it has a name again
    if branch == "R":
        assert (core.branch("R") / "elsewhere").read_text() == "content"


def test_a_copy_up_that_cannot_be_held_changes_nothing(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = on_lower(core)
    remove(core)

    def no_descriptor(*_: object) -> int:
        raise OSError(24, "too many open files")

    with monkeypatch.context() as patch, fails("EMFILE"):
        patch.setattr("unionfs.union.copyup.reopen", no_descriptor)
        run_now(core.union.setattr(node, Change(size=0)))
    assert not node.branch.writable
    run_now(core.union.setattr(node, Change(size=1)))
    assert read(core, node) == b"c"
    assert (core.branch("R") / "f").read_text() == "content"


def test_a_file_with_another_name_is_not_held(core: Core) -> None:
    node = on_upper(core)
    core.link("f", "g")
    remove(core)
    assert node.held < 0
    assert core.read("g") == b"content"


@pytest.mark.parametrize("branch", ["R", "W"])
def test_a_symbolic_link_is_read_and_a_fifo_has_its_attributes(core: Core, branch: str) -> None:
    os.symlink("target", core.branch(branch) / "link")
    os.mkfifo(core.branch(branch) / "fifo")
    core.start()
    link, fifo = core.file("link"), core.file("fifo")
    core.unlink("link")
    core.unlink("fifo")
    assert core.union.readlink(link) == b"target"
    run_now(core.union.setattr(fifo, Change(mode=0o600)))
    assert core.union.getattr(fifo).status.st_mode == stat.S_IFIFO | 0o600
    with fails("ENODATA"):
        core.union.get_xattr(fifo, b"trusted.k")


def test_what_cannot_be_held_still_has_attributes(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = on_upper(core)

    def no_descriptor(*_: object) -> int:
        raise OSError(24, "too many open files")

    monkeypatch.setattr("unionfs.branch.Directory.pin", no_descriptor)
    core.unlink("f")
    entry = core.union.getattr(node)
    assert (entry.status.st_size, entry.nlink) == (7, 0)
    run_now(core.union.setattr(node, Change(mode=0o600)))
    assert stat.S_IMODE(core.union.getattr(node).status.st_mode) == 0o600
    with fails("ENOENT"):
        run_now(core.union.set_xattr(node, b"user.k", b"v"))
    with fails("ESTALE"):
        read(core, node)
