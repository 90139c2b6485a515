"""A read-only branch above the writable one, [A=ro+wh, W=rw, R=ro+wh] (aufs.md 5.4 to 5.6, 6; 32).

What shows on A cannot be changed, nor can anything be made in a directory that shows there. The
rest is changed on W as ever, and where W lacks a directory for it, one is made below that of A.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import pytest

from tests.support.branches import fingerprint
from tests.support.cores import ROOT, Core
from tests.support.trees import age, assert_whiteout, fails, fill, paths
from unionfs.branch import BranchError
from unionfs.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from unionfs.union.build import build_union
from unionfs.union.core import Change, DirectoryNode, FileHandle, run_now
from unionfs.union.explain import explain
from unionfs.union.options import parse_options

LAYOUT = ("A=ro+wh", "W=rw", "R=ro+wh")


@pytest.fixture
def tree(core: Core) -> Core:
    """In ``both`` and ``below``, which show on A, a name says on which branch it lies."""
    fill(core.branch("A"), "f", "both/a", "covered/", "empty/", "over", ".wh.gone", "below/w/a")
    fill(core.branch("W"), "w", "both/w", "both/wd/", "over", "gone", "own/", "own/.wh.hidden")
    fill(
        core.branch("R"),
        "r",
        "both/r",
        "both/rd/",
        "covered/x/y",
        "low/x",
        "own/hidden",
        "over",
        "low/z",
    )
    fill(core.branch("R"), "below/w/r", "below/r")
    core.start(*LAYOUT)
    return core


def change(core: Core, path: str, change: Change) -> None:
    run_now(core.union.setattr(core.node(path), change))


def opened(core: Core, path: str, flags: int) -> FileHandle:
    return run_now(core.union.open(core.file(path), flags))


def branches_of(core: Core, path: str) -> list[str]:
    """Return the branches that a directory is merged of, top first."""
    return [os.path.basename(os.fsdecode(c.branch.path)) for c in core.directory(path).copies]


# what shows above W cannot be changed

REFUSED: dict[str, Callable[[Core], object]] = {
    "create": lambda core: core.create("new"),
    "create where a whiteout stands above": lambda core: core.create("gone"),
    "create in a merged directory": lambda core: core.create("both/new"),
    "mkdir": lambda core: core.mkdir("covered/new"),
    "symlink": lambda core: core.union.symlink(*core.at("new"), b"text", ROOT),
    "mknod": lambda core: core.union.mknod(*core.at("new"), stat.S_IFIFO | 0o600, 0, ROOT),
    "link to a directory above": lambda core: core.link("both/w", "both/new"),
    "link of a file above": lambda core: core.link("f", "own/new"),
    "unlink": lambda core: core.unlink("f"),
    "unlink what covers others": lambda core: core.unlink("over"),
    "rmdir": lambda core: core.rmdir("empty"),
    "rmdir of what is not empty": lambda core: core.rmdir("both"),
    "rename a file above": lambda core: core.rename("f", "own/f"),
    "rename onto a file above": lambda core: core.rename("w", "over"),
    "rename into a directory above": lambda core: core.rename("own", "both/own"),
    "rename a directory above": lambda core: core.rename("empty", "own/empty"),
    "rename a merged directory": lambda core: core.rename("both", "own/both"),
    "exchange": lambda core: core.rename("both/w", "own", RENAME_EXCHANGE),
    "noreplace onto a file above": lambda core: core.rename("w", "over", RENAME_NOREPLACE),
    "open for writing": lambda core: opened(core, "f", os.O_WRONLY),
    "open for both": lambda core: opened(core, "f", os.O_RDWR),
    "open and truncate": lambda core: opened(core, "f", os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda core: change(core, "f", Change(size=0)),
    "chmod": lambda core: change(core, "f", Change(mode=0o600)),
    "chown a directory": lambda core: change(core, "both", Change(uid=1)),
    "utimes of the root": lambda core: change(core, "", Change(mtime_ns=1)),
    "set an attribute": lambda core: run_now(core.union.set_xattr(core.node("f"), b"user.k", b"v")),
    "of a directory": lambda core: run_now(core.union.set_xattr(core.node("both"), b"user.k", b"")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_shows_above_cannot_be_changed(tree: Core, name: str) -> None:
    before = {branch: fingerprint(tree.base / branch) for branch in ("A", "W", "R")}
    with fails("EROFS"):
        REFUSED[name](tree)
    assert {branch: fingerprint(tree.base / branch) for branch in before} == before


def test_what_is_wrong_anyway_is_told_first(tree: Core) -> None:
    """As without any writable branch (test_union_read_only.py)."""
    for create in (tree.create, tree.mkdir, lambda path: tree.link("f", path)):
        with fails("EEXIST"):
            create("both/a")
    with fails("ENOENT"):
        tree.unlink("gone")
    with fails("ENOENT"):
        tree.rename("both/nothing", "both/new")
    with fails("ENOENT"):
        tree.rename("both/nothing", "f", RENAME_EXCHANGE)
    with fails("EISDIR"):
        run_now(tree.union.unlink(*tree.at("both")))
    with fails("ENOTDIR"):
        tree.union.rmdir(*tree.at("f"))
    with fails("ENODATA"):
        run_now(tree.union.remove_xattr(tree.node("f"), b"user.k"))
    with fails("EPERM"):
        tree.create(".wh.x")
    with fails("ENAMETOOLONG"):
        tree.create("x" * 243)


def test_a_refused_open_leaves_no_node_behind(tree: Core) -> None:
    with fails("EROFS"):
        run_now(tree.union.create(tree.union.root, b"f", 0o644, os.O_RDWR | os.O_CREAT, ROOT))
    assert [*tree.union.state.nodes] == [tree.union.root]


def test_everything_shows_as_from_any_branches(tree: Core) -> None:
    assert set(tree.names()) == {"f", "both", "covered", "empty", "over", "below"} | {
        *("w", "own"),
        *("r", "low"),
    }
    assert tree.names("both")[0] == "a"
    assert set(tree.names("both")[1:3]) == {"w", "wd"}
    assert set(tree.names("both")[3:]) == {"r", "rd"}
    assert tree.read("over") == b"A"
    assert branches_of(tree, "both") == ["A", "W", "R"]


# what does not is changed on W


def test_a_file_on_w_is_changed_in_place(tree: Core) -> None:
    tree.write("both/w", b"new")
    change(tree, "w", Change(mode=0o604))
    assert (tree.base / "W/both/w").read_text() == "new"
    assert stat.S_IMODE((tree.base / "W/w").stat().st_mode) == 0o604


def test_a_lower_file_is_copied_to_w_below_the_directory_that_shows(tree: Core) -> None:
    for branch, mode in (("A", 0o711), ("R", 0o750)):
        (tree.base / branch / "below/w").chmod(mode)
        os.setxattr(tree.base / branch / "below/w", "user.from", branch.encode())
    times = [age(tree.base / "A" / name) for name in ("below/w", "below")]
    number, inode = tree.node("below").number, tree.node("below/w/r").number
    tree.names("below/w")
    tree.write("below/w/r", b"new")
    assert tree.read("below/w/r") == b"new"
    assert paths(tree.base / "W/below") == {"w", "w/r"}
    # Missing ancestors are made like what is seen, and take their place between the others.
    made = tree.base / "W/below/w"
    assert stat.S_IMODE(made.stat().st_mode) == 0o711
    assert os.getxattr(made, "user.from") == b"A"
    assert [made.stat().st_mtime_ns, made.parent.stat().st_mtime_ns] == times
    assert tree.node("below/w/r").number == inode
    for _ in "as it is", "as it is looked up anew":
        assert branches_of(tree, "below") == branches_of(tree, "below/w") == ["A", "W", "R"]
        assert tree.node("below").number == number
        assert set(tree.names("below/w")) == {"a", "r"}
        tree.start()
    assert tree.read("below/w/r") == b"new"


def test_link_counts_of_directories_follow(tree: Core) -> None:
    before = tree.nlink("below")
    tree.write("below/w/r", b"new")
    assert tree.nlink("below") == before + 1  # the sum of aufs.md 4.3
    assert tree.node("below").number in tree.union.take_stale()


def test_a_file_between_directories_is_in_the_way(core: Core) -> None:
    """W:d is skipped (aufs.md 3), so a directory of that name can nowhere be made."""
    fill(core.branch("A"), "p/d/")
    fill(core.branch("W"), "p/d")
    fill(core.branch("R"), "p/d/x", "p/d/e/y", "p/other")
    core.start(*LAYOUT)
    for path in ("p/d/x", "p/d/e/y"):
        with fails("EROFS"):
            core.write(path, b"new")
        with fails("EROFS"):
            core.unlink(path)
        with fails("EROFS"):
            opened(core, path, os.O_WRONLY | os.O_TRUNC)
        assert core.read(path) == b"R"
    assert paths(core.branch("W")) == {"p", "p/d"}
    assert (core.branch("W") / "p/d").read_text() == "W"
    core.write("p/other", b"new")
    assert core.read("p/other") == b"new"


# removing


def test_unlink_goes_by_where_the_file_lies(tree: Core) -> None:
    tree.unlink("both/w")
    assert "W/both/.wh.w" not in paths(tree.base / "W")
    tree.unlink("both/r")
    assert_whiteout(tree.base / "W", "both/r")
    tree.unlink("below/w/r")  # the whiteout needs directories that W does not have
    assert_whiteout(tree.base / "W", "below/w/r")
    tree.rmdir("both/wd")
    tree.rmdir("both/rd")
    for _ in "live", "anew":
        assert tree.names("both") == ["a"]
        assert tree.names("below/w") == ["a"]
        tree.start()


def test_a_whiteout_is_made_only_for_what_shows_from_below(core: Core) -> None:
    fill(core.branch("A"), "d/")
    fill(core.branch("W"), "d/one", "d/two", "d/dir/")
    fill(core.branch("R"), "d/two", "d/dir/")
    core.start(*LAYOUT)
    core.unlink("d/one")
    core.unlink("d/two")
    core.rmdir("d/dir")
    assert paths(core.branch("W")) == {"d", "d/.wh.two", "d/.wh.dir"}
    assert core.names("d") == []


def test_a_whiteout_on_w_hides_nothing_above(core: Core) -> None:
    fill(core.branch("A"), "f")
    fill(core.branch("W"), ".wh.f", ".wh.g")
    fill(core.branch("R"), "f", "g")
    core.start(*LAYOUT)
    assert core.names() == ["f"]
    for call in (core.unlink, lambda path: core.write(path, b"")):
        with fails("EROFS"):
            call("f")
    with fails("ENOENT"):
        core.unlink("g")
    with fails("EROFS"):
        core.create("g")
    assert paths(core.branch("W")) == {".wh.f", ".wh.g"}


def test_marks_above_w_count_unless_it_is_plain(core: Core) -> None:
    fill(core.branch("A"), ".wh.f", "d/.wh..wh..opq", "d/a")
    fill(core.branch("W"), "f", "d/w")
    fill(core.branch("R"), "f", "d/r")
    core.start(*LAYOUT)
    assert core.names() == ["d"]
    assert core.names("d") == ["a"]
    for path in ("f", "d/w"):
        with fails("EROFS"):
            core.create(path)
    core.start("A=ro", "W=rw", "R=ro+wh")
    assert set(core.names()) == {"d", "f"}
    assert set(core.names("d")) == {"a", "w", "r"}
    core.unlink("f")
    assert core.names() == ["d"]
    core.unlink("d/r")
    assert set(core.names("d")) == {"a", "w"}


def test_an_opaque_root_above_shuts_w_out(core: Core) -> None:
    fill(core.branch("A"), ".wh..wh..opq", "f")
    fill(core.branch("W"), "w")
    core.start("A=ro+wh", "W=rw", options="volatile,profile=driver")
    assert core.names() == ["f"]
    for call in (core.create, core.mkdir):
        with fails("EROFS"):
            call("new")
    with fails("EROFS"):
        core.write("f", b"")
    assert os.listdir(core.branch("W")) == ["w"]  # not even its private entries


# renaming and linking


def test_rename_out_of_a_directory_that_shows_above(tree: Core) -> None:
    tree.rename("both/w", "own/w")
    tree.rename("both/r", "own/r")
    tree.rename("both/rd", "own/rd")
    tree.rename("w", "low/w")
    assert_whiteout(tree.base / "W", "both/r")
    assert_whiteout(tree.base / "W", "both/rd")
    assert paths(tree.base / "W/low") == {"w"}
    for _ in "live", "anew":
        assert set(tree.names("both")) == {"a", "wd"}
        assert set(tree.names("own")) == {"w", "r", "rd"}
        assert (tree.read("own/r"), tree.read("low/w")) == (b"R", b"W")
        tree.start()


def test_rename_within_what_does_not_show_above(tree: Core) -> None:
    tree.create("own/new")
    tree.rename("own/new", "own/hidden")
    assert tree.names("own") == ["hidden"]
    tree.rename("low/x", "low/y")
    tree.mkdir("own/d")
    with fails("EXDEV"):
        tree.rename("low", "own/low")
    tree.rename("own/d", "low/d")
    tree.rename("low/d", "own/hidden", RENAME_EXCHANGE)
    assert tree.read("low/d") == b""
    assert tree.names("own/hidden") == []


def test_links(tree: Core) -> None:
    tree.link("both/w", "own/w")
    tree.link("both/r", "own/r")  # copied up under the new name
    assert paths(tree.base / "W/own") >= {"w", "r"}
    assert not (tree.base / "W/both/r").exists()
    tree.write("both/r", b"new")
    for _ in "live", "anew":
        assert (tree.nlink("both/w"), tree.nlink("both/r")) == (2, 2)
        assert tree.node("own/r") is tree.node("both/r")
        assert tree.read("both/r") == b"new"
        tree.start()


def test_links_of_a_lower_file_survive_copy_up(core: Core) -> None:
    fill(core.branch("A"), "d/")
    fill(core.branch("R"), "d/a")
    for name in ("b", "c"):
        os.link(core.branch("R") / "d/a", core.branch("R") / "d" / name)
    core.start(*LAYOUT)
    core.unlink("d/c")
    core.write("d/a", b"new")
    assert paths(core.branch("W") / "d") == {"a", ".wh.c"}
    for _ in "live", "anew":
        assert core.read("d/b") == b"new"
        assert core.nlink("d/a") == core.nlink("d/b") == 2
        core.start()
    core.unlink("d/a")
    for _ in "live", "anew":
        assert core.read("d/b") == b"new"
        assert core.nlink("d/b") == 1
        core.start()


# pseudo-links that A has brought along from a time when it was the writable branch


def linked(core: Core, *names: str) -> None:
    """Fill R with names of one file."""
    fill(core.branch("R"), names[0])
    for name in names[1:]:
        os.link(core.branch("R") / names[0], core.branch("R") / name)


def test_a_copy_above_answers_and_cannot_be_changed(core: Core) -> None:
    linked(core, "a", "b")
    core.start("A=rw", "R=ro+wh")
    core.write("a", b"A")
    core.start(*LAYOUT)
    before = fingerprint(core.branch("W"))
    assert core.read("b") == b"A"
    for call in (core.unlink, lambda path: core.write(path, b"")):
        with fails("EROFS"):
            call("b")
    assert fingerprint(core.branch("W")) == before


def test_a_count_above_yields_to_what_w_knows_later(core: Core) -> None:
    linked(core, "a", "b", "c", "d")
    core.start("A=rw", "R=ro+wh")
    core.unlink("d")
    core.start(*LAYOUT)
    assert core.nlink("a") == 3
    core.unlink("c")
    for _ in "live", "anew":
        assert core.nlink("a") == core.nlink("b") == 2
        core.start()
    core.write("a", b"W")
    for _ in "live", "anew":
        assert core.read("b") == b"W"
        assert core.nlink("a") == core.nlink("b") == 2
        core.start()


def test_a_count_above_says_nothing_of_files_on_w(core: Core) -> None:
    fill(core.branch("W"), "a", "own/")
    for name in ("b", "c"):
        os.link(core.branch("W") / "a", core.branch("W") / name)
    core.start("A=rw", "W=ro+wh")
    core.unlink("c")
    core.start("A=ro+wh", "W=rw")
    assert core.nlink("a") == 3  # one of them is the name that A hides
    core.unlink("a")
    core.link("b", "own/d")
    core.unlink("b")
    assert core.nlink("own/d") == 2


# what else goes by the branch


def test_open_files_without_a_name(tree: Core) -> None:
    handle = opened(tree, "both/r", os.O_RDWR)
    tree.unlink("both/r")
    run_now(tree.union.write(handle, 0, b"N"))
    run_now(tree.union.setattr(handle.node, Change(mode=0o604)))
    assert tree.union.getattr(handle.node).nlink == 0
    tree.union.release(handle)
    above = opened(tree, "f", os.O_RDONLY)
    with fails("EROFS"):
        run_now(tree.union.setattr(above.node, Change(mode=0o604)))
    tree.union.release(above)


def test_a_reader_follows_the_copy(tree: Core) -> None:
    reader = opened(tree, "below/w/r", os.O_RDONLY)
    tree.write("below/w/r", b"!")
    assert os.pread(reader.node.fd, 9, 0) == b"!"
    tree.union.release(reader)


def test_listing_over_a_copy_down(tree: Core) -> None:
    stream = tree.union.open_directory(tree.directory("below"))
    listed = list(tree.union.read_directory(stream, 0))
    tree.write("below/w/r", b"new")
    tree.unlink("below/r")
    entries = {name: tree.union.listed(stream, name, item) for _, name, item in listed}
    assert entries.pop(b"r") is None
    entry = entries.pop(b"w")
    assert entry is not None
    assert isinstance(entry.node, DirectoryNode)
    assert len(entry.node.copies) == 3
    assert not entries
    tree.union.close_directory(stream)


def test_fsync_of_a_directory_reaches_its_copy_on_w(
    tree: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    run_now(tree.union.sync_directory(tree.directory("both")))
    run_now(tree.union.sync_directory(tree.directory("covered")))
    assert synced == [(tree.base / "W/both").stat().st_ino]


def test_explain(tree: Core) -> None:
    tree.write("below/w/r", b"new")
    states = [fate.state for fate in explain(tree.union, b"below/w/r").fates]
    assert states == ["absent", "shown", "hidden"]
    assert [fate.state for fate in explain(tree.union, b"below/w").fates] == [
        "shown",
        "merged",
        "merged",
    ]
    assert [fate.state for fate in explain(tree.union, b"over").fates] == [
        "shown",
        "hidden",
        "hidden",
    ]


# which branches can be had


def test_what_is_said_at_the_start(core: Core) -> None:
    core.start("A=ro", "W=rw")
    (warning,) = core.warnings
    assert "cannot be changed" in warning
    core.warnings.clear()
    core.start("A=ro", "R=ro")
    (warning,) = core.warnings
    assert "only be read" in warning


def test_the_first_branch_is_writable_unless_it_says_otherwise(core: Core) -> None:
    def branch(word: str) -> bytes:
        name, *permission = word.partition("=")
        return os.fsencode(core.branch(name)) + "".join(permission).encode()

    def build(*words: str) -> None:
        text = b"volatile,br:" + b":".join(branch(word) for word in words)
        build_union(parse_options([text], core.warn), core.warn).close()

    for two in (["A", "W=rw"], ["A=rw", "W=rw"], ["A=ro", "W=rw", "R=rw+nolwh"]):
        with pytest.raises(BranchError, match="both writable, which is not yet supported"):
            build(*two)
    build("A=ro", "W=rw")
    build("A", "R")
