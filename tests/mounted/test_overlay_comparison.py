"""What we show equals what overlayfs of the kernel shows, for layers in the form of overlayfs.

Both are mounted in the same words (``lowerdir=``). The layers are random, small and always the same
ones. Hypothesis makes them; a whole set is then compared under one mount, because a mount for each
would take minutes. When one differs, the smallest that still differs is looked for.

Where aufs wants something else than overlayfs, the layers are drawn so that it does not matter; the
differences themselves are tests at the end, and listed in ``docs/differences.md``.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import Phase, given
from hypothesis import strategies as st

from tests.support.changes import MAKING, PAIRS, VERBS, Change
from tests.support.comparison import Comparison, Report, disk, overlay, smallest
from tests.support.effort import EFFORT, examples
from tests.support.oracle import symbol_of
from tests.support.overlay_trees import WHAT, Case, Form

COUNT = 300

# Few names, so that layers meet; one of them is no UTF-8.
_NAMES = st.sampled_from((b"a", b"a", b"b", b"b", b"c", b"\xe9 *"))
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map(tuple)
_NUMBERS = st.integers(0, 511)
_LAYERS = st.lists(st.tuples(_PATHS, st.sampled_from(WHAT), _NUMBERS), max_size=10).map(tuple)
_STACKS = st.tuples(*[_LAYERS | _LAYERS | st.none()] * 2, *[_LAYERS] * 2)


_NAME_CHANGING = (
    "create",
    "exchange",
    "exchange new folder",
    "link",
    "mkdir",
    "mkdir",
    "mkdir",
    "move new folder",
    "move new folder",
    "remove all",
    "rename",
    "unlink",
)


@st.composite
def _changes(draw: st.DrawFn) -> Change:
    verb = draw(st.sampled_from(VERBS) | st.sampled_from(_NAME_CHANGING))
    new = st.tuples(_NUMBERS, _NAMES)
    old = st.tuples(_NUMBERS, st.just(b""))
    target = draw(new if verb in MAKING else old)
    other = draw(new | old) if verb in PAIRS else (0, b"")
    return Change(verb, target, other, draw(_NUMBERS))


_CHANGES = st.lists(_changes(), min_size=4, max_size=16).map(tuple)


def _generated(cases: st.SearchStrategy[Case]) -> list[Case]:
    """Return ``COUNT`` different cases, the same ones each time."""
    found: dict[Case, None] = {}

    @examples(COUNT + 20, phases=[Phase.generate])
    @given(cases)
    def collect(case: Case) -> None:
        found[case] = None

    collect()
    assert len(found) >= COUNT * EFFORT
    return list(found)[: COUNT * EFFORT]


@functools.cache
def _stacks() -> list[Case]:
    return _generated(_STACKS.map(Case))


@functools.cache
def _changing() -> list[Case]:
    return _generated(st.builds(Case, _STACKS, _CHANGES))


@pytest.fixture
def comparison(tmp_path: Path, warm: None) -> Iterator[Comparison]:
    assert os.geteuid() == 0, "tests on real mounts have to run as root"
    with disk(tmp_path) as base:
        yield Comparison(base)


def _expect_none(run: Callable[[Sequence[Case]], Report], cases: Sequence[Case]) -> None:
    report = run(cases)
    if report:
        number = min(report)
        print(f"case {number}:\n{cases[number]}")
        case = smallest(cases[number], run)
        lines = run([case]).get(0, ["only together with others"])
        pytest.fail(
            f"{len(report)} cases differ, the first is {number}:\n"
            + "\n".join(report[number])
            + f"\n\nits smallest form:\n{case}\n"
            + "\n".join(lines)
        )


@pytest.mark.parametrize(
    ("form", "writable"),
    [(Form.OVERLAY, False), (Form.OVERLAY, True), (Form.MIXED, True)],
    ids=["lower", "upper", "mixed forms"],
)
def test_layers_show_the_same_as_in_overlayfs(
    comparison: Comparison, form: Form, writable: bool
) -> None:
    _expect_none(lambda cases: comparison.shown(cases, form, writable=writable), _stacks())


def test_changes_have_the_same_result_as_in_overlayfs(comparison: Comparison) -> None:
    _expect_none(comparison.changed, _changing())


def test_what_overlayfs_leaves_shows_the_same_as_in_overlayfs(comparison: Comparison) -> None:
    _expect_none(comparison.taken_over, _changing())


# What differs on purpose: the titles are those of docs/differences.md.


def test_difference_a_file_between_directories(comparison: Comparison) -> None:
    def build(base: Path) -> None:
        (base / "R1/d").mkdir()
        (base / "R1/d/top").touch()
        (base / "R2/d").touch()
        (base / "R3/d").mkdir()
        (base / "R3/d/bottom").touch()

    with comparison.side_by_side(build) as (kernel, ours):
        assert os.listdir(kernel / "d") == ["top"]
        assert sorted(os.listdir(ours / "d")) == ["bottom", "top"]


def test_difference_names_of_aufs(comparison: Comparison) -> None:
    def build(base: Path) -> None:
        (base / "R1/.wh.f").touch()
        (base / "R2/f").touch()

    with comparison.side_by_side(build) as (kernel, ours):
        assert sorted(os.listdir(kernel)) == [".wh.f", "f"]
        assert os.listdir(ours) == []
        assert symbol_of(os.mkdir, kernel / ".wh.new") == "ok"
        assert symbol_of(os.mkdir, ours / ".wh.new") == "EPERM"


def test_difference_long_names(comparison: Comparison) -> None:
    fits, longer = "n" * 242, "n" * 243

    def build(base: Path) -> None:
        (base / "R1" / fits).touch()
        (base / "R1" / longer).touch()

    with comparison.side_by_side(build) as (kernel, ours):
        assert sorted(os.listdir(kernel)) == sorted(os.listdir(ours)) == [fits, longer]
        assert symbol_of(os.stat, ours / fits) == symbol_of(os.stat, kernel / longer) == "ok"
        assert symbol_of(os.stat, ours / longer) == "ENAMETOOLONG"


def test_difference_private_attributes(comparison: Comparison) -> None:
    def build(base: Path) -> None:
        for name in ("R1", "R2"):
            (base / name / "d").mkdir()
            (base / name / "d" / name).touch()
        os.setxattr(base / "R1/d", "user.overlay.opaque", b"y")

    with comparison.side_by_side(build) as (kernel, ours):
        assert sorted(os.listdir(kernel / "d")) == ["R1", "R2"]
        assert os.listxattr(kernel / "d") == ["user.overlay.opaque"]
        assert os.listdir(ours / "d") == ["R1"]
        assert os.listxattr(ours / "d") == []
        assert symbol_of(os.setxattr, ours / "d", "user.overlay.opaque", b"n") == "EPERM"


def test_difference_whiteouts_that_hide_nothing(comparison: Comparison) -> None:
    def build(base: Path) -> None:
        (base / "W/d").mkdir()
        os.mknod(base / "W/d/gone", stat.S_IFCHR)

    with comparison.side_by_side(build) as (kernel, ours):
        assert os.listdir(kernel / "d") == ["gone"]
        assert os.listdir(ours / "d") == []
        assert symbol_of(os.stat, kernel / "d/gone") == "ENOENT"
        assert symbol_of(os.rmdir, kernel / "d") == "ENOTEMPTY"
        assert symbol_of(os.rmdir, ours / "d") == "ok"


def test_difference_unmarked_attribute_whiteouts(comparison: Comparison) -> None:
    def build(base: Path) -> None:
        for name in ("R1", "R2"):
            (base / name / "d").mkdir()
            (base / name / "d/f").touch()
        os.setxattr(base / "R1/d/f", "trusted.overlay.whiteout", b"y")

    with comparison.side_by_side(build) as (_, ours):
        assert os.listdir(ours / "d") == ["f"]
        assert symbol_of(os.stat, ours / "d/f") == "ok"


def test_difference_link_counts_of_directories(comparison: Comparison) -> None:
    def build(base: Path) -> None:
        (base / "R1/d/one").mkdir(parents=True)
        (base / "R2/d/two").mkdir(parents=True)

    with comparison.side_by_side(build) as (kernel, ours):
        assert os.stat(kernel / "d").st_nlink == 1
        assert os.stat(ours / "d").st_nlink == 4


def test_difference_directories_that_can_be_renamed(comparison: Comparison) -> None:
    def build(base: Path) -> None:
        for name in ("empty", "emptied", "full"):
            (base / "R1" / name).mkdir()
        (base / "R1/emptied/f").touch()
        (base / "R1/full/f").touch()

    with comparison.side_by_side(build) as (kernel, ours):
        for top in (kernel, ours):
            (top / "emptied/f").unlink()
        for name, expected in (("empty", "ok"), ("emptied", "ok"), ("full", "EXDEV")):
            assert symbol_of(os.rename, kernel / name, kernel / "new") == "EXDEV"
            assert symbol_of(os.rename, ours / name, ours / f"new {name}") == expected
        assert sorted(os.listdir(ours)) == ["full", "new emptied", "new empty"]


def test_difference_redirects_and_metadata_only_copies(comparison: Comparison) -> None:
    def build(base: Path) -> None:
        (base / "R2/old").mkdir()
        (base / "R2/old/f").touch()
        (base / "R2/file").write_text("content")
        on = "redirect_dir=on,metacopy=on"
        with overlay(base / "made", [base / "R2"], base / "R1", more=on) as made:
            (made / "old").rename(made / "new")
            (made / "file").chmod(0o600)

    log = "WARNING /(new|file) on .*/R1=ro.wh is refused .* redirect_dir=on,metacopy=on"
    with comparison.side_by_side(build, log=log) as (kernel, ours):
        assert symbol_of(os.stat, kernel / "new") == symbol_of(os.stat, kernel / "file") == "EPERM"
        assert sorted(os.listdir(ours)) == ["file", "new"]
        assert os.stat(ours / "file").st_mode == stat.S_IFREG | 0o600
        assert symbol_of(os.open, ours / "file", os.O_RDONLY) == "EIO"
        assert symbol_of(os.listdir, ours / "new") == "EIO"
        assert symbol_of(os.stat, ours / "new/f") == "EIO"
