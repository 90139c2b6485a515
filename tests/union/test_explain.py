"""Why a name shows what it shows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.layers import make as make_tree
from unionfs.union.build import build_union
from unionfs.union.core import Union
from unionfs.union.explain import Explanation, explain
from unionfs.union.options import parse_options

Make = Callable[..., Union]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return what builds a union of the named branches, NAME=permission each."""
    made: list[Union] = []

    def build(*branches: str, options: str = "profile=aufs") -> Union:
        text = options + ",br:" + ":".join(f"{tmp_path}/{branch}" for branch in branches)
        made.append(build_union(parse_options([os.fsencode(text)], lambda _: None), lambda _: None))
        return made[-1]

    yield build
    for union in made:
        union.close()


def states(explanation: Explanation) -> list[str]:
    return [fate.state for fate in explanation.fates]


def test_the_topmost_file_wins(tmp_path: Path, make: Make) -> None:
    make_tree(tmp_path, "W/", "M/f", "R/f")
    found = explain(make("W=rw", "M=ro+wh", "R=ro+wh"), b"/f")
    assert (found.kind, found.branch, found.error) == ("file", 1, "")
    assert states(found) == ["absent", "shown", "hidden"]
    assert (found.fates[2].by, found.fates[2].reason) == (1, "the file /f")


def test_a_whiteout(tmp_path: Path, make: Make) -> None:
    make_tree(tmp_path, "W/", "M/.wh.f", "R/f")
    found = explain(make("W=rw", "M=ro+wh", "R=ro+wh"), b"f")
    assert (found.kind, found.branch, found.error) == ("", None, "ENOENT")
    assert states(found) == ["absent", "whiteout", "hidden"]
    assert found.fates[2].reason == "the whiteout of /f"
    # in a branch that is plain ro it means nothing
    found = explain(make("M=ro", "R=ro"), b"f")
    assert (found.branch, states(found)) == (1, ["absent", "shown"])


def test_an_opaque_directory_and_what_is_below_it(tmp_path: Path, make: Make) -> None:
    make_tree(tmp_path, "W/d/.wh..wh..opq", "W/d/x", "R/d/y")
    union = make("W=rw", "R=ro+wh")
    found = explain(union, b"/d")
    assert (found.kind, states(found)) == ("directory", ["shown", "hidden"])
    found = explain(union, b"/d/y")
    assert found.error == "ENOENT"
    assert states(found) == ["absent", "hidden"]
    assert (found.fates[1].by, found.fates[1].reason) == (0, "the opaque directory /d")


def test_directories_merge_past_a_file(tmp_path: Path, make: Make) -> None:
    make_tree(tmp_path, "W/x/a", "M/x", "R/x/b")
    union = make("W=rw", "M=ro+wh", "R=ro+wh")
    found = explain(union, b"x")
    assert states(found) == ["shown", "hidden", "merged"]
    assert found.fates[1].kind == "file"
    assert found.fates[1].reason == "the directory /x"
    assert explain(union, b"x/b").branch == 2


def test_a_file_hides_a_directory(tmp_path: Path, make: Make) -> None:
    make_tree(tmp_path, "W/x", "R/x/y")
    union = make("W=rw", "R=ro+wh")
    assert states(explain(union, b"x")) == ["shown", "hidden"]
    assert explain(union, b"x/y").error == "ENOTDIR"


def test_the_illegal_pair_by_profile(tmp_path: Path, make: Make) -> None:
    make_tree(tmp_path, "W/f", "W/.wh.f", "R/f")
    strict = explain(make("W=ro+wh", "R=ro+wh"), b"f")
    assert (strict.error, states(strict)) == ("EIO", ["hidden", "hidden"])
    lenient = explain(make("W=ro+wh", "R=ro+wh", options="profile=driver"), b"f")
    assert (lenient.branch, states(lenient)) == (0, ["shown", "hidden"])
    assert lenient.fates[1].reason == "the whiteout of /f"


def test_whiteouts_in_the_form_of_overlayfs(tmp_path: Path, make: Make) -> None:
    make_tree(tmp_path, "W/", "M/", "R/f")
    os.mknod(tmp_path / "M/f", 0o20000, 0)
    branches = ("W=rw", "M=ro+wh", "R=ro+wh")
    found = explain(make(*branches, options="profile=driver"), b"f")
    assert (found.error, states(found)) == ("ENOENT", ["absent", "whiteout", "hidden"])
    assert explain(make("M=ro+wh", "R=ro+wh"), b"f").kind == "character device"


def test_the_root(tmp_path: Path, make: Make) -> None:
    make_tree(tmp_path, "W/", "M/.wh..wh..opq", "R/")
    branches = ("W=rw", "M=ro+wh", "R=ro+wh")
    found = explain(make(*branches), b"/")
    assert states(found) == ["shown", "merged", "merged"]
    make_tree(tmp_path, "R/f")
    union = make("M=ro+wh", "R=ro+wh", options="profile=driver")
    assert states(explain(union, b"")) == ["shown", "hidden"]
    assert states(explain(union, b"f")) == ["absent", "hidden"]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (b"nothing", "ENOENT"),
        (b".wh.f", "EPERM"),
        (b"x" * 243, "ENAMETOOLONG"),
        (b"d/../f", "EINVAL"),
        (b"f/below", "ENOTDIR"),
        (b"link/f", "ENOTDIR"),
    ],
)
def test_what_cannot_be_looked_up(tmp_path: Path, make: Make, path: bytes, error: str) -> None:
    make_tree(tmp_path, "R/f", "R/d/f")
    (tmp_path / "R/link").symlink_to("d")
    found = explain(make("R=ro"), path)
    assert (found.kind, found.branch, found.error) == ("", None, error)


def test_agrees_with_lookup_everywhere(tmp_path: Path, make: Make) -> None:
    make_tree(
        tmp_path, "W/a", "W/.wh.b", "W/d/.wh.x", "M/b", "M/a", "M/d/x", "M/d/y", "R/d/x", "R/c"
    )
    union = make("W=rw", "M=ro+wh", "R=ro+wh")
    for path in (b"a", b"b", b"c", b"d", b"d/x", b"d/y", b"d/z"):
        found = explain(union, path)
        node = union.root
        try:
            entry = None
            for name in path.split(b"/"):
                entry = union.lookup(node, name)
                node = entry.node  # type: ignore[assignment]
        except FileNotFoundError:
            assert found.error == "ENOENT"
        else:
            assert entry is not None
            assert found.branch is not None
            shown = union.branches[found.branch].path + b"/" + path
            assert os.lstat(shown).st_ino == entry.status.st_ino
