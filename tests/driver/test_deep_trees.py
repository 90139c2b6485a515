"""Trees deeper than a process has descriptors, and longer than any path the kernel takes."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from driver.beneath import open_root
from driver.changes import layer_changes
from driver.compare import Comparison, compare_trees
from driver.removal import remove_by_force
from driver.size import branch_size

DEPTH = 1500
NAME = "level"
DEEP = "/level" * DEPTH
MakeTree = Callable[[str], Path]


def entry(level: int) -> str:
    """Name a file beside the next deeper directory, before it in the order of names or after it."""
    return "a" if level % 2 else "z"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[MakeTree]:
    made = []

    def make(name: str) -> Path:
        made.append(tmp_path / name)
        made[-1].mkdir()
        fd = open_root(str(made[-1]))
        for level in range(DEPTH):
            os.close(os.open(entry(level), os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            os.truncate(f"/proc/self/fd/{fd}/{entry(level)}", 1)
            os.utime(entry(level), (0, 0), dir_fd=fd)
            os.mkdir(NAME, dir_fd=fd)
            deeper = os.open(NAME, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = deeper
        os.close(fd)
        return made[-1]

    yield make
    for path in made:
        remove_by_force(str(path))  # pytest's own way is recursive


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 200, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def compare(new: Path, old: Path) -> Comparison:
    with ExitStack() as held:
        roots = [open_root(str(path)) for path in (new, old)]
        for root in roots:
            held.callback(os.close, root)
        return compare_trees(*roots)


def reach(tree: Path, level: int) -> int:
    """Open the directory so many levels down, some hundred at a time."""
    fd = open_root(str(tree))
    while level:
        step = min(level, 500)
        deeper = os.open("/".join([NAME] * step), os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd, level = deeper, level - step
    return fd


@pytest.mark.usefixtures("few_descriptors")
def test_size_of_a_deep_tree(tree: MakeTree) -> None:
    assert branch_size(str(tree("layer"))) == DEPTH


@pytest.mark.usefixtures("few_descriptors")
def test_changes_of_a_deep_tree(tree: MakeTree) -> None:
    layer, parent = tree("layer"), tree("parent")
    changes = layer_changes(str(layer), [])
    assert len(changes) == 2 * DEPTH
    by_depth = sorted(change.path for change in changes if change.path.endswith(NAME))
    assert by_depth == [DEEP[: level * len("/" + NAME)] for level in range(1, DEPTH + 1)]
    # In the order of a walk: what comes after the directory comes after all that is in it.
    assert [change.path for change in changes[-2:]] == [f"/{NAME}/{NAME}/z", "/z"]
    fd = reach(layer, DEPTH)
    os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    assert f"A {DEEP}/new" in map(str, layer_changes(str(layer), [str(parent)]))


@pytest.mark.usefixtures("few_descriptors")
def test_comparison_of_deep_trees(tree: MakeTree) -> None:
    new, old = tree("new"), tree("old")
    assert compare(new, old).changes == []
    fd = reach(new, DEPTH - 2)
    os.unlink(entry(DEPTH - 2), dir_fd=fd)
    with open(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "w") as file:
        file.write("four")
    os.close(fd)
    above = DEEP[: (DEPTH - 2) * len("/" + NAME)]
    found = compare(new, old)
    assert [str(change) for change in found.changes[-2:]] == [
        f"A {above}/new",
        f"D {above}/{entry(DEPTH - 2)}",
    ]
    assert len(found.changes) == DEPTH - 2 + 2
    assert found.size == 4
