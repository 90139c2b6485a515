"""Nodes: one for each file, kept while somebody needs it (``unionfs/union/nodes.py``)."""

from __future__ import annotations

import os
import stat

import pytest

from tests.support.cores import ROOT, Core
from tests.support.trees import fails, fill
from unionfs.union.core import Change, run_now


@pytest.fixture
def tree(core: Core) -> Core:
    """Something of everything on two branches."""
    fill(core.branch("R"), "f", "d/e/g", "d/h", "a")
    os.link(core.base / "R/a", core.base / "R/d/b")
    fill(core.branch("W"), "w", "d/x", "own/deep/y")
    core.start()
    return core


def living(core: Core) -> int:
    """Return the number of nodes beside the root."""
    return len(core.union.state.nodes) - 1


def forget_all(core: Core) -> None:
    """The kernel forgets everything, children first as it does."""
    while True:
        nodes = [
            node
            for node in core.union.state.nodes
            if node is not core.union.root and node.lookups and not node.children
        ]
        if not nodes:
            return
        for node in nodes:
            core.union.forget(node.number, node.lookups)


def test_after_forgetting_everything_only_the_root_is_left(tree: Core) -> None:
    for path in ("f", "d/e/g", "d/h", "a", "d/b", "w", "d/x", "own/deep/y"):
        tree.read(path)
    assert living(tree) == 11
    forget_all(tree)
    assert living(tree) == 0
    assert tree.union.root.children == 0


def test_forgetting_in_any_order_is_as_good(tree: Core) -> None:
    nodes = [tree.node(path) for path in ("d", "d/e", "d/e/g", "d/b", "a", "own/deep/y")]
    for node in sorted(tree.union.state.nodes, key=lambda node: node.number):
        if node is not tree.union.root:
            tree.union.forget(node.number, node.lookups)
    assert living(tree) == 0
    assert all(node.children == 0 for node in nodes)


def test_each_answer_counts_once(tree: Core) -> None:
    node = tree.node("f")
    tree.node("f")
    tree.union.forget(node.number, 1)
    assert tree.union.node(node.number) is node
    tree.union.forget(node.number, 1)
    with fails("ESTALE"):
        tree.union.node(node.number)


def test_a_directory_stays_while_something_in_it_is_known(tree: Core) -> None:
    inner = tree.directory("d/e")
    file = tree.file("d/e/g")
    for directory in (inner, inner.parent):
        tree.union.forget(directory.number, directory.lookups)
    assert living(tree) == 3
    assert tree.union.getattr(file).status.st_size == 1
    tree.union.forget(file.number, file.lookups)
    assert living(tree) == 0


def test_an_open_file_stays(tree: Core) -> None:
    file = tree.file("f")
    handle = run_now(tree.union.open(file, os.O_RDONLY))
    forget_all(tree)
    assert living(tree) == 1
    assert bytes(tree.union.read(handle, 0, 9)) == b"R"  # type: ignore[arg-type]
    tree.union.release(handle)
    assert living(tree) == 0


def test_an_open_directory_stays(tree: Core) -> None:
    stream = tree.union.open_directory(tree.directory("d"))
    forget_all(tree)
    assert living(tree) == 1
    assert len([*tree.union.read_directory(stream, 0)]) == 4
    tree.union.close_directory(stream)
    assert living(tree) == 0


def test_a_listing_leaves_nothing_behind(tree: Core) -> None:
    stream = tree.union.open_directory(tree.union.root)
    for _, name, item in tree.union.read_directory(stream, 0):
        entry = tree.union.listed(stream, name, item)
        assert entry
        tree.union.drop_unused(entry)
    tree.union.close_directory(stream)
    assert living(tree) == 0


def test_changes_leave_nothing_behind(tree: Core) -> None:
    tree.create("new", b"data")
    tree.mkdir("new.d")
    tree.union.symlink(*tree.at("link"), b"text", ROOT)
    tree.union.mknod(*tree.at("fifo"), stat.S_IFIFO | 0o600, 0, ROOT)
    tree.link("a", "d/c")
    tree.write("d/b", b"W")
    tree.rename("d/c", "new.d/c")
    tree.rename("own", "moved")
    tree.rename("w", "f")
    run_now(tree.union.setattr(tree.node("d/h"), Change(mode=0o600)))
    tree.unlink("a")
    tree.unlink("fifo")
    tree.unlink("new.d/c")
    tree.rmdir("new.d")
    for path, error in (("new", "EEXIST"), ("d", "EEXIST")):
        with fails(error):
            tree.create(path)
    with fails("ENOTEMPTY"):
        tree.rmdir("d")
    with fails("EXDEV"):
        tree.rename("d", "elsewhere")
    forget_all(tree)
    assert living(tree) == 0
    assert [*tree.union.state.nodes] == [tree.union.root]
    assert not any(node.fd >= 0 for node in tree.union.state.nodes if hasattr(node, "fd"))


def test_two_names_of_a_file_are_one_node(tree: Core) -> None:
    assert tree.file("a") is tree.file("d/b")
    tree.write("a", b"W")
    assert tree.file("a") is tree.file("d/b")
    assert tree.read("d/b") == b"W"
    forget_all(tree)
    assert tree.file("d/b") is tree.file("a")


def test_a_name_made_by_link_or_rename_is_known_at_once(tree: Core) -> None:
    """The kernel may use the node by its new name without ever looking that up."""
    for old in ("f", "w", "a"):
        node = tree.node(old)
        tree.link(old, f"{old}.link")
        tree.unlink(old)
        assert tree.union.getattr(node).status.st_size == 1
        run_now(tree.union.rename(*tree.at(f"{old}.link"), *tree.at(f"{old}.new")))
        assert tree.union.getattr(node).status.st_size == 1
        assert tree.node(f"{old}.new") is node


def test_a_removed_directory_goes_when_nobody_stands_in_it(tree: Core) -> None:
    node = tree.mkdir("new")
    tree.rmdir("new")
    assert living(tree) == 1
    assert tree.union.getattr(node).nlink == 0
    with fails("ENOENT"):
        tree.union.mkdir(node, b"x", 0o755, ROOT)
    tree.union.forget(node.number, node.lookups)
    assert living(tree) == 0


def test_a_removed_directory_can_be_changed_by_who_stands_in_it(tree: Core) -> None:
    node = tree.mkdir("new")
    tree.rmdir("new")
    entry = run_now(tree.union.setattr(node, Change(mode=0o700, uid=3, mtime_ns=7)))
    assert (entry.status.st_mode & 0o7777, entry.status.st_uid) == (0o700, 3)
    assert entry.status.st_mtime_ns == 7


@pytest.mark.parametrize("copied", [False, True])
def test_one_inode_on_two_branches_is_two_files(core: Core, copied: bool) -> None:
    """Storage that saves space by hard links makes such layers; nothing else connects the files."""
    fill(core.branch("R1"), "f")
    fill(core.branch("R2"), "d/")
    os.link(core.base / "R1/f", core.base / "R2/g")
    core.start("W=rw", "R1=ro+wh", "R2=ro+wh")
    f, g = core.file("f"), core.file("g")
    assert f is not g
    assert f.number != g.number
    if copied:
        core.write("f", b"new")
        assert core.read("g") == b"R1"
    core.unlink("f")
    assert core.union.getattr(g).status.st_size == 2
    core.write("g", b"GGGG")
    forget_all(core)
    assert core.read("g") == b"GGGG"
    core.start()
    assert core.names() == ["g", "d"]
    assert core.read("g") == b"GGGG"


def test_files_of_one_inode_keep_their_numbers_over_forget(core: Core) -> None:
    fill(core.branch("R1"), "f")
    core.branch("R2")
    os.link(core.base / "R1/f", core.base / "R2/g")
    core.start("W=rw", "R1=ro+wh", "R2=ro+wh")
    numbers = core.node("f").number, core.node("g").number
    for path in ("f", "g"):
        node = core.node(path)
        core.union.forget(node.number, node.lookups)
        assert (core.node("f").number, core.node("g").number) == numbers
    forget_all(core)
    assert core.node("f").number in numbers
