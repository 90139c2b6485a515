"""Lists of changes without a mount: the vectors of driver.md 7.6 and the fixes Q8 to Q10."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from driver.beneath import open_root
from driver.changes import layer_changes, same_time
from driver.compare import compare_trees
from tests.support.effort import examples
from tests.support.layers import make

WHEN = 1_600_000_000 * 10**9


def settle(*trees: Path) -> None:
    """Give everything in the trees the same time, so that only the content speaks."""
    for tree in trees:
        for path in [*tree.rglob("*"), tree]:
            os.utime(path, ns=(WHEN, WHEN), follow_symlinks=False)


def fast(layer: Path, *parents: Path) -> list[str]:
    return [str(change) for change in layer_changes(str(layer), [str(p) for p in parents])]


def naive(new: Path, old: Path | None) -> list[str]:
    new_fd = open_root(str(new))
    old_fd = None if old is None else open_root(str(old))
    try:
        return [str(change) for change in compare_trees(new_fd, old_fd).changes]
    finally:
        os.close(new_fd)
        if old_fd is not None:
            os.close(old_fd)


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    tree = make(
        tmp_path / "lower",
        *("file1", "file2", "file3", "dir1/file1-1", "dir1/file1-2", "dir1/subfolder/"),
        *("dir2/file2-1", "dir3/"),
    )
    (tree / "symlink1").symlink_to("file1")
    settle(tree)
    return tree


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    return make(tmp_path / "layer")


# --- the vectors of 7.6 -----------------------------------------------------------------------


def test_empty_layer_changes_nothing(layer: Path, lower: Path) -> None:
    assert fast(layer, lower) == []


def test_missing_layer_changes_nothing(tmp_path: Path, lower: Path) -> None:
    assert fast(tmp_path / "none", lower) == []


def test_changes_inside_a_directory(layer: Path, lower: Path) -> None:
    make(layer, "dir1/.wh.file1-2", "dir1/file1-1", "dir1/subfolder/newFile")
    assert sorted(fast(layer, lower), key=lambda line: line[2:]) == [
        "C /dir1",
        "C /dir1/file1-1",
        "D /dir1/file1-2",
        "C /dir1/subfolder",
        "A /dir1/subfolder/newFile",
    ]


def test_equal_parents_of_a_new_file_are_left_out(tmp_path: Path, layer: Path) -> None:
    lower = make(tmp_path / "lower", "dir1/dir2/dir3/file.txt")
    make(layer, "dir1/dir2/dir3/file1.txt")
    settle(lower, layer)
    assert fast(layer, lower) == ["C /dir1/dir2/dir3", "A /dir1/dir2/dir3/file1.txt"]


def test_equal_parents_of_a_rewritten_file_are_left_out(tmp_path: Path, layer: Path) -> None:
    lower = make(tmp_path / "lower", "dir1/dir2/dir3/file.txt")
    make(layer, "dir1/dir2/dir3/file.txt")
    settle(lower, layer)
    assert fast(layer, lower) == ["C /dir1/dir2/dir3/file.txt"]


# --- order, names, types ----------------------------------------------------------------------


def test_order_is_lexical_with_directories_first(layer: Path) -> None:
    make(layer, "b/2", "b/1/x", "a", "b-", "c")
    assert fast(layer) == ["A /a", "A /b", "A /b/1", "A /b/1/x", "A /b/2", "A /b-", "A /c"]


def test_private_names_are_not_listed(layer: Path, lower: Path) -> None:
    make(layer, ".wh..wh.aufs", ".wh..wh.orph/x", ".wh..wh.plnk/", "dir1/.wh..wh.file1-1.0003")
    assert fast(layer, lower) == ["C /dir1"]


def test_malformed_whiteouts_are_not_listed(layer: Path, lower: Path) -> None:
    make(layer, ".wh.", ".wh..", ".wh...")
    assert fast(layer, lower) == []


def test_whiteouts_are_known_by_name_whatever_they_are(layer: Path, lower: Path) -> None:
    (layer / ".wh.file1").symlink_to("/nonexistent")
    (layer / ".wh.file2").mkdir()
    os.mkfifo(layer / ".wh.file3")
    assert fast(layer, lower) == ["D /file1", "D /file2", "D /file3"]


def test_whiteouts_of_other_filesystems(tmp_path: Path, layer: Path) -> None:
    base = make(tmp_path / "base", "a", "b", "c/x", "d/y", "e/z")
    middle = make(tmp_path / "middle", "d/")
    os.mknod(middle / "a", stat.S_IFCHR, 0)
    os.setxattr(middle / "d", "trusted.overlay.opaque", b"y")
    make(layer, "a", "c/", "d/y", "e/z")
    os.mknod(layer / "b", stat.S_IFCHR, 0)
    os.setxattr(layer / "c", "user.fuseoverlayfs.opaque", b"y")
    os.setxattr(layer / "e", "trusted.overlay.opaque", b"x")
    os.truncate(layer / "e/z", 0)
    os.setxattr(layer / "e/z", "trusted.overlay.whiteout", b"")
    settle(base, middle, layer)
    assert fast(layer, middle, base) == [
        "D /b",
        "A /a",
        "C /c",
        "D /c/x",
        "C /d",
        "A /d/y",
        "C /e",
        "D /e/z",
    ]


def test_whiteout_beside_the_real_entry_is_a_modification(layer: Path, lower: Path) -> None:
    make(layer, ".wh.file1", "file1", ".wh.fresh", "fresh")
    assert fast(layer, lower) == ["C /file1", "A /fresh"]


def test_change_of_type(layer: Path, lower: Path) -> None:
    make(layer, "file1/inside", "dir2")
    assert fast(layer, lower) == ["C /dir2", "C /file1", "A /file1/inside"]


def test_odd_names_survive(layer: Path) -> None:
    (layer / os.fsdecode(b"a\nb\xff")).touch()
    assert layer_changes(str(layer), [])[0].path == os.fsdecode(b"/a\nb\xff")


# --- Q8: opaque marks -------------------------------------------------------------------------


def test_opaque_directory_deletes_what_it_does_not_make_again(layer: Path, lower: Path) -> None:
    make(layer, "dir1/.wh..wh..opq", "dir1/file1-1", "dir1/new")
    settle(layer)
    assert fast(layer, lower) == [
        "C /dir1",
        "D /dir1/file1-2",
        "D /dir1/subfolder",
        "C /dir1/file1-1",
        "A /dir1/new",
    ]


def test_opaque_directory_below_an_opaque_one(tmp_path: Path, layer: Path) -> None:
    lower = make(tmp_path / "lower", "d/e/f/old", "d/e/other")
    make(layer, "d/.wh..wh..opq", "d/e/f/new")
    settle(lower, layer)
    changes = fast(layer, lower)
    assert sorted(changes) == [
        "A /d/e/f/new",
        "C /d/e",
        "C /d/e/f",
        "D /d/e/f/old",
        "D /d/e/other",
    ]
    assert changes.index("C /d/e") < changes.index("D /d/e/other")


def test_opaque_root(layer: Path, lower: Path) -> None:
    make(layer, ".wh..wh..opq", "file1")
    gone = ["dir1", "dir2", "dir3", "file2", "file3", "symlink1"]
    assert fast(layer, lower) == [*(f"D /{name}" for name in gone), "C /file1"]


def test_whiteout_beside_a_directory_covers_its_content(layer: Path, lower: Path) -> None:
    make(layer, ".wh.dir1", "dir1/file1-1")
    settle(layer)
    assert fast(layer, lower) == [
        "C /dir1",
        "D /dir1/file1-2",
        "D /dir1/subfolder",
        "C /dir1/file1-1",
    ]


def test_opaque_mark_is_never_listed(layer: Path) -> None:
    make(layer, "d/.wh..wh..opq")
    assert fast(layer) == ["A /d"]


# --- Q9: lower branches are looked at without following anything ------------------------------


def test_lower_symlinks_are_not_followed(tmp_path: Path, layer: Path) -> None:
    outside = make(tmp_path / "outside", "file")
    lower = make(tmp_path / "lower")
    (lower / "dangling").symlink_to("nowhere")
    (lower / "dir").symlink_to(outside)
    make(layer, "dangling", "dir/file")
    assert fast(layer, lower) == ["C /dangling", "C /dir", "A /dir/file"]


def test_lower_file_where_a_directory_is_asked_for(tmp_path: Path, layer: Path) -> None:
    lower = make(tmp_path / "lower", "a")
    make(layer, "a/b/c")
    assert fast(layer, lower) == ["C /a", "A /a/b", "A /a/b/c"]


def test_missing_parent_branch(tmp_path: Path, layer: Path) -> None:
    make(layer, "a")
    assert fast(layer, tmp_path / "none") == ["A /a"]


# --- Q10: marks of the branches in between ----------------------------------------------------


@pytest.mark.parametrize("depth", range(10))
def test_echo(tmp_path: Path, layer: Path, depth: int) -> None:
    """A chain that the middle layer deleted at some depth and the top one makes again."""
    parts = [f"subdir{number}" for number in range(1, 10)] + ["file"]
    base = make(tmp_path / "base", "/".join(parts)[0:] or "file", "a file", "a subdir/")
    middle = make(tmp_path / "middle")
    above = "/".join(parts[:depth])
    make(middle, f"{above}/.wh.{parts[depth]}" if above else f".wh.{parts[depth]}")
    make(layer, "/".join(parts))
    settle(base, middle, layer)
    ancestors = ["/" + "/".join(parts[:end]) for end in range(1, depth + 1)]
    again = ["/" + "/".join(parts[:end]) for end in range(depth + 1, len(parts) + 1)]
    deleted = fast(middle, base)
    # A directory whose own attributes are equal is listed for what is in it, and only then.
    assert deleted == [f"C {path}" for path in ancestors[-1:]] + [f"D {again[0]}"]
    assert fast(layer, middle, base) == [f"C {path}" for path in ancestors[-1:]] + [
        f"A {path}" for path in again
    ]


def test_opaque_middle_hides_the_base(tmp_path: Path, layer: Path) -> None:
    base = make(tmp_path / "base", "d/old", "d/e/older")
    middle = make(tmp_path / "middle", "d/.wh..wh..opq", "d/kept")
    make(layer, "d/old", "d/kept", "d/e/older")
    settle(base, middle, layer)
    assert fast(layer, middle, base) == ["C /d", "A /d/e", "A /d/e/older", "C /d/kept", "A /d/old"]


def test_real_entry_beside_its_whiteout_in_a_parent_counts(tmp_path: Path, layer: Path) -> None:
    base = make(tmp_path / "base", "d/old")
    middle = make(tmp_path / "middle", ".wh.d", "d/kept")
    make(layer, "d/old", "d/kept")
    settle(base, middle, layer)
    assert fast(layer, middle, base) == ["C /d/kept", "C /d", "A /d/old"]


def test_directories_merge_over_a_file_in_between(tmp_path: Path, layer: Path) -> None:
    base = make(tmp_path / "base", "d/deep")
    file = make(tmp_path / "file", "d")
    top = make(tmp_path / "top", "d/")
    make(layer, "d/deep")
    settle(base, file, top, layer)
    assert fast(layer, top, file, base) == ["C /d/deep"]


# --- times ------------------------------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1))
def test_same_time(second: int, one: int, other: int) -> None:
    first, last = second * 10**9 + one, second * 10**9 + other
    assert same_time(first, last) == (one == other or 0 in (one, other))
    assert same_time(first, last) == same_time(last, first)
    assert not same_time(first, last + 10**9)


# --- naive ------------------------------------------------------------------------------------


def test_naive_identical_trees(tmp_path: Path, lower: Path) -> None:
    copy = tmp_path / "copy"
    os.system(f"cp -a {lower} {copy}")
    assert naive(copy, lower) == []
    assert naive(lower, lower) == []


def test_naive_mutations(tmp_path: Path) -> None:
    old = make(
        tmp_path / "old",
        *("file1", "file2", "file3", "file4", "file5", "kept", "dir1/x", "dir2/y", "dir3/z"),
    )
    for number in (1, 2, 3):
        (old / f"symlink{number}").symlink_to("somewhere")
    settle(old)
    new = tmp_path / "new"
    os.system(f"cp -a {old} {new}")
    os.system(f"rm -r {new}/file1 {new}/dir1 {new}/symlink1 {new}/dir2 {new}/file3 {new}/file5")
    (new / "file2").write_text("longer than before")
    (new / "file3").write_text("another")
    os.utime(new / "file4")
    make(new, "dir2", "file5/inside", "dirnew/", "filenew")
    (new / "symlinknew").symlink_to("x")
    (new / "symlink2").unlink()
    (new / "symlink2").symlink_to("elsewhere")
    os.utime(new / "dir3")
    assert naive(new, old) == [
        "D /dir1",
        "C /dir2",
        "A /dirnew",
        "D /file1",
        "C /file2",
        "C /file3",
        "C /file4",
        "C /file5",
        "A /file5/inside",
        "A /filenew",
        "D /symlink1",
        "C /symlink2",
        "A /symlinknew",
    ]


def test_naive_against_nothing_lists_all(lower: Path) -> None:
    lines = naive(lower, None)
    assert len(lines) == sum(1 for _ in lower.rglob("*"))
    assert all(line.startswith("A ") for line in lines)


def test_naive_lists_the_directories_of_a_change(tmp_path: Path) -> None:
    old = make(tmp_path / "old", "a/b/c")
    new = make(tmp_path / "new", "a/b/c", "a/b/d")
    settle(old, new)
    assert naive(new, old) == ["C /a", "C /a/b", "A /a/b/d"]


def test_naive_sockets_have_times(tmp_path: Path) -> None:
    """Q13: a socket shares a mode bit with directories, and is none."""
    for side in ("old", "new"):
        make(tmp_path / side)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / side / "socket"))
    os.utime(tmp_path / "old" / "socket", ns=(WHEN, WHEN))
    assert naive(tmp_path / "new", tmp_path / "old") == ["C /socket"]


def test_naive_capabilities_count(tmp_path: Path) -> None:
    old, new = make(tmp_path / "old", "f"), make(tmp_path / "new", "f")
    settle(old, new)
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(new / "f", "security.capability", capability)
    assert naive(new, old) == ["C /f"]


@pytest.mark.parametrize("change", ["mode", "owner"])
def test_naive_attributes_of_directories_count(tmp_path: Path, change: str) -> None:
    old, new = make(tmp_path / "old", "d/"), make(tmp_path / "new", "d/")
    os.chmod(new / "d", 0o700) if change == "mode" else os.chown(new / "d", 1, 2)
    assert naive(new, old) == ["C /d"]


def test_naive_knows_where_a_directory_took_the_place_of_something(tmp_path: Path) -> None:
    old = make(tmp_path / "old", "a/b", "d/", "to-file/x")
    (old / "c").symlink_to("d")
    new = make(tmp_path / "new", "a/b/inside/", "c/", "d/", "new/", "to-file")
    new_fd, old_fd = open_root(str(new)), open_root(str(old))
    try:
        found = compare_trees(new_fd, old_fd)
        assert found.replaced == [b"a/b", b"c"]
        # Only what differs, directories on the way to it, and what takes away the rest.
        assert found.members() - set(found.marks()) == {
            *(b"a", b"a/b", b"a/b/inside", b"c", b"new", b"to-file")
        }
        assert found.marks() == [b"a/b/.wh..wh..opq", b"c/.wh..wh..opq"]
        assert compare_trees(new_fd, None).replaced == []
    finally:
        os.close(new_fd)
        os.close(old_fd)


def test_naive_deletions_are_whiteouts(tmp_path: Path) -> None:
    old, new = make(tmp_path / "old", "top", "d/gone", "d/kept"), make(tmp_path / "new", "d/kept")
    for tree in (old, new):
        os.utime(tree / "d/kept", (0, 0))
    new_fd, old_fd = open_root(str(new)), open_root(str(old))
    try:
        found = compare_trees(new_fd, old_fd)
        assert sorted(found.marks()) == [b".wh.top", b"d/.wh.gone"]
        assert found.members() == {b".wh.top", b"d", b"d/.wh.gone"}
    finally:
        os.close(new_fd)
        os.close(old_fd)


def test_naive_marks_in_the_branch_of_a_layer_are_no_files(tmp_path: Path) -> None:
    """A layer without parent is compared as its branch, and what is marked in there shows nowhere.

    podman's and buildah's first layers do hold opaque marks.
    """
    old = make(
        tmp_path / "old",
        *("d/.wh..wh..opq", "d/.wh.x", "d/y", ".wh..wh.plnk/", ".wh..wh.aufs", ".wh.gone"),
        *(".wh.dir/inside", "keep"),
    )
    os.mknod(old / "device", stat.S_IFCHR, os.makedev(0, 0))
    new = make(tmp_path / "new", "d/y", "keep", "n")
    settle(old, new)
    assert naive(new, old) == ["A /n"]


def test_naive_size(tmp_path: Path) -> None:
    old = make(tmp_path / "old", "gone", "same")
    new = make(tmp_path / "new", "same")
    settle(old, new)
    fd = open_root(str(new))
    old_fd = open_root(str(old))
    try:
        assert compare_trees(fd, old_fd).size == 0
        (new / "one").write_text("abc")
        (new / "two").write_text("def")
        assert compare_trees(fd, old_fd).size == 6
        os.link(new / "one", new / "linked")
        assert compare_trees(fd, old_fd).size == 6
    finally:
        os.close(fd)
        os.close(old_fd)


# --- a law ------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
KINDS = st.sampled_from(["file", "dir", "whiteout", "opaque"])
LAYER = st.lists(st.tuples(PATHS, KINDS), max_size=6)


def build(base: Path, entries: list[tuple[str, str]]) -> None:
    base.mkdir()
    for path, kind in entries:
        *above, name = path.split("/")
        place = base.joinpath(*above)
        try:
            place.mkdir(parents=True, exist_ok=True)
            if kind == "dir":
                (place / name).mkdir(exist_ok=True)
            elif kind == "file":
                (place / name).touch()
            elif kind == "whiteout":
                (place / f".wh.{name}").touch()
            else:
                (place / name).mkdir(exist_ok=True)
                (place / name / ".wh..wh..opq").touch()
        except (FileExistsError, NotADirectoryError):
            continue


def union_of(branches: list[Path]) -> dict[str, str]:
    """Show what a union shows, written as plainly as can be: path to kind."""
    shown: dict[str, str] = {}

    def visit(path: str, places: list[Path]) -> None:
        found: dict[str, list[Path]] = {}
        closed: set[str] = set()
        for place in places:
            names = os.listdir(place)
            for name in names:
                if name.startswith(".wh.") or name in closed:
                    continue
                entry = place / name
                if name not in found or stat.S_ISDIR(entry.lstat().st_mode):
                    if name in found and not found[name]:
                        continue
                    is_directory = stat.S_ISDIR(entry.lstat().st_mode)
                    found.setdefault(name, [])
                    if is_directory:
                        found[name].append(entry)
                    shown.setdefault(f"{path}/{name}", "dir" if is_directory else "file")
            closed |= {name[4:] for name in names if name.startswith(".wh.")}
            if ".wh..wh..opq" in names:
                break
        for name, deeper in found.items():
            if deeper:
                visit(f"{path}/{name}", deeper)

    visit("", branches)
    return shown


@examples(150)
@given(LAYER, LAYER, LAYER)
def test_changes_lead_from_the_parent_to_the_layer(
    tmp_path_factory: pytest.TempPathFactory,
    base: list[tuple[str, str]],
    middle: list[tuple[str, str]],
    top: list[tuple[str, str]],
) -> None:
    """Taking the parent's names, dropping the deleted ones and adding the new ones gives ours."""
    place = tmp_path_factory.mktemp("law")
    branches = [place / "top", place / "middle", place / "base"]
    for branch, entries in zip(branches, (top, middle, base), strict=True):
        build(branch, entries)
    before, after = union_of(branches[1:]), union_of(branches)
    # A directory over a file over a directory merges the two (aufs.md 3): what the file hid comes
    # back without anybody having added it. No union writes a layer like that.
    assume(not any(before.get(path) == "file" and after[path] == "dir" for path in after))
    names = set(before)
    for change in layer_changes(str(branches[0]), [str(b) for b in branches[1:]]):
        if change.kind.name == "DELETE":
            assert change.path not in after
            names = {n for n in names if n != change.path and not n.startswith(change.path + "/")}
        elif change.kind.name == "ADD":
            assert change.path not in before
            names.add(change.path)
        else:
            assert change.path in before
            assert change.path in after
            if after[change.path] == "file":
                names = {n for n in names if not n.startswith(change.path + "/")}
    assert names == set(after)
