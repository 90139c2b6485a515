"""The same trees in a union of ours and in an overlay of the kernel, side by side.

One mount serves hundreds of cases: each is a sub-directory of the branches. What differs is
reported by the number of the case.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tests.support.changes import old_time
from tests.support.mounting import Union
from tests.support.overlay_trees import Case, Folder, Form, draw, plant
from tests.support.trees import Seen, differences
from unionfs import syscalls

Report = dict[int, list[str]]
View = dict[str, Seen]

LOWER = ("R1", "R2", "R3")
# What aufs never does: renaming directories by reference.
_THEIRS = "redirect_dir=nofollow,metacopy=off,nfs_export=off"


@contextlib.contextmanager
def disk(base: Path) -> Iterator[Path]:
    """Give a filesystem on which overlayfs can have an upper layer and that has all attributes."""
    place = base / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", place], check=True)
    try:
        yield place if _has_user_attributes(place) else base
    finally:
        subprocess.run(["umount", place], check=True)


def _has_user_attributes(place: Path) -> bool:
    """Tell whether a filesystem has them; tmpfs does since Linux 6.6."""
    probe = place / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.k", b"")
        return True
    except OSError:
        return False
    finally:
        probe.unlink()


@contextlib.contextmanager
def overlay(
    point: Path, lower: Sequence[Path], upper: Path | None = None, *, more: str = "index=on"
) -> Iterator[Path]:
    """Mount an overlay of the kernel; ``upper`` gets a work directory beside it.

    more: options; by default what aufs always does: hard links stay links when they are copied up.
    """
    point.mkdir()
    options = f"lowerdir={':'.join(map(str, lower))}"
    if upper is not None:
        work = upper.with_name(upper.name + ".work")
        work.mkdir()
        options += f",upperdir={upper},workdir={work},{_THEIRS},{more}"
    # Not by mount(8): that of Debian 13 cannot pass a list longer than 255 bytes.
    syscalls.mount(b"none", os.fsencode(point), b"overlay", 0, os.fsencode(options))
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


@contextlib.contextmanager
def union(base: Path, *layout: str, changing: bool) -> Iterator[Union]:
    """Mount a union of ours in the words of overlayfs; at the end it is checked and taken down."""
    made = Union(base, "overlay")
    made.forked = True
    if not changing:
        made.ignore_branches("nothing is done that could change them")
    made.no_comparison("what a new mount shows is compared with overlayfs")
    try:
        made.start(*layout, options="volatile")
        yield made
        made.finish()
    except BaseException:
        if made.log.exists():
            print("the daemon's log:\n" + made.log.read_text())
        raise
    finally:
        made.take_down()


def knows_attribute_whiteouts(base: Path) -> bool:
    """Tell whether the kernel reads whiteouts that are attributes (Linux 6.7)."""
    folder = Path(tempfile.mkdtemp(dir=base))
    path = (b"d", b"x")
    case = Case((None, ((path, "xattr whiteout", 0),), ((path, "file", 0),)))
    for name, tree in zip(("W", "R1", "R2"), draw(case), strict=True):
        plant(tree or Folder(), folder / name, Form.OVERLAY)
    with overlay(folder / "theirs", [folder / "R1", folder / "R2"]) as theirs:
        return not (theirs / "d" / "x").exists()


class Comparison:
    """Runs cases.

    base: where there is room; must bear upper layers of overlayfs.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.form = Form.OVERLAY if knows_attribute_whiteouts(base) else Form.DEVICES

    def shown(self, cases: Sequence[Case], form: Form, *, writable: bool) -> Report:
        """Report where we show something else than overlayfs.

        form: that of our branches.
        writable: whether the top layer of the cases takes part, as writable branch and upper layer.
        """
        base = self._folder()
        names = ("W", *LOWER) if writable else LOWER
        trees = [draw(case)[0 if writable else 1 :] for case in cases]
        _plant_all(base / "ours", names, trees, form)
        lower = base / "ours"
        if self.form is not form:
            lower = base / "lower"
            _plant_all(lower, names, trees, self.form)
        upper = None
        if writable:
            upper = base / "upper"
            _plant_all(base, ["upper"], [tree[:1] for tree in trees], self.form)
        with (
            overlay(base / "theirs", [lower / name for name in LOWER], upper) as kernel,
            union(base / "ours", *_layout(names), changing=False) as ours,
        ):
            return _compared(_views(len(cases), kernel), ours.mount)

    def changed(self, cases: Sequence[Case]) -> Report:
        """Report where changes have another outcome or result than in overlayfs, now or later."""
        base = self._folder()
        names = ("W", *LOWER)
        trees = [draw(case) for case in cases]
        _plant_all(base / "ours", names, trees, self.form)
        _plant_all(base, ["upper"], [tree[:1] for tree in trees], self.form)
        lower = [base / "ours" / name for name in LOWER]
        report: Report = {}
        with (
            overlay(base / "theirs", lower, base / "upper") as kernel,
            union(base / "ours", *_layout(names), changing=True) as ours,
        ):
            for number, case in enumerate(cases):
                name = _folder_name(number)
                lines = make_changes(case, kernel / name, ours.mount / name)
                if lines:
                    report[number] = lines
            expected = _views(len(cases), kernel)
            _add(report, "live", _compared(expected, ours.mount))
            ours.remount()
            _add(report, "mounted again", _compared(expected, ours.mount))
        return report

    def taken_over(self, cases: Sequence[Case]) -> Report:
        """Report where we show something else of an upper layer that overlayfs has changed."""
        base = self._folder()
        names = ("W", *LOWER)
        _plant_all(base / "ours", names, [draw(case) for case in cases], self.form)
        lower, upper = [base / "ours" / name for name in LOWER], base / "ours" / "W"
        # Its record of hard links is not read: without it, it breaks them as what is left shows.
        with overlay(base / "theirs", lower, upper, more="index=off") as kernel:
            for number, case in enumerate(cases):
                top, mentioned = kernel / _folder_name(number), case.mentioned()
                for change in case.changes:
                    change.prepared(top, mentioned).apply(top)
            expected = _views(len(cases), kernel)
        with union(base / "ours", *_layout(names), changing=True) as ours:
            return _compared(expected, ours.mount)

    @contextlib.contextmanager
    def side_by_side(
        self, build: Callable[[Path], object], *, log: str = ""
    ) -> Iterator[tuple[Path, Path]]:
        """Mount what ``build`` puts into the branches; gives the kernel's view and ours.

        build: gets a folder in which the branches W, R1, R2 and R3 are, empty.
        log: pattern of what our daemon will have to say.
        """
        base = self._folder()
        names = ("W", *LOWER)
        for top in (base / "ours", base / "kernel"):
            for name in names:
                (top / name).mkdir(parents=True)
            build(top)
        lower = [base / "kernel" / name for name in LOWER]
        with (
            overlay(base / "theirs", lower, base / "kernel" / "W") as kernel,
            union(base / "ours", *_layout(names), changing=True) as ours,
        ):
            if log:
                ours.expect_log(log)
            yield kernel, ours.mount
            assert bool(log) == ours.log.exists()

    def _folder(self) -> Path:
        base = Path(tempfile.mkdtemp(dir=self.base))
        (base / "ours").mkdir()
        return base


def make_changes(case: Case, kernel: Path, ours: Path) -> list[str]:
    """Make the same changes in both; returns what was done when the outcomes differ."""
    done = []
    mentioned = case.mentioned()
    for change in case.changes:
        call = change.prepared(kernel, mentioned)
        theirs = call.apply(kernel)
        if theirs == "EXDEV":
            # Directories that lower layers contribute to; aufs moves some of them (6.4).
            assert change.verb in {"rename", "rename to new", "exchange"}, call
            done.append(f"{call}: skipped")
            continue
        result = call.apply(ours)
        done.append(f"{call}: {theirs}")
        if result != theirs:
            return [*done, f"in ours: {result}"]
    return []


def _layout(names: Sequence[str]) -> list[str]:
    return [f"{name}=rw" if name == "W" else f"{name}=ro+wh" for name in names]


def _folder_name(number: int) -> str:
    return f"e{number:03}"


def _plant_all(
    base: Path, names: Sequence[str], trees: Sequence[Sequence[Folder | None]], form: Form
) -> None:
    """Put the layers of all cases on the disk, ``names`` being those of the branches."""
    for name in names:
        (base / name).mkdir(parents=True, exist_ok=True)
    for number, layers in enumerate(trees):
        if not any(layers):
            layers = [*layers[:-1], Folder()]
        for name, tree in zip(names, layers, strict=True):
            if tree is not None:
                plant(tree, base / name / _folder_name(number), form)


def _views(count: int, kernel: Path) -> list[View]:
    return [look(kernel / _folder_name(number), phantoms=True) for number in range(count)]


def _compared(expected: Sequence[View], ours: Path) -> Report:
    report: Report = {}
    for number, view in enumerate(expected):
        try:
            lines = differences(view, look(ours / _folder_name(number)))
        except OSError as error:
            lines = [f"cannot be read: {error}"]
        if lines:
            report[number] = lines
    return report


def _add(report: Report, when: str, found: Report) -> None:
    for number, lines in found.items():
        report.setdefault(number, []).extend(f"{when}: {line}" for line in lines)


def look(top: Path, *, phantoms: bool = False) -> View:
    """Describe everything below a directory, itself included, by relative path.

    Left out are link counts and sizes of directories, for both sides make them up, and recent
    times.

    phantoms: names may be listed that cannot be found. In a directory that exists on one layer
        only, overlayfs lists its whiteouts.
    """
    statuses: dict[str, os.stat_result] = {"": os.lstat(top)}
    pending = [""]
    while pending:
        here = pending.pop()
        for name in os.listdir(top / here):
            path = os.path.join(here, name)
            assert path not in statuses, f"{path} is listed twice"
            try:
                status = os.lstat(top / path)
            except FileNotFoundError:
                if phantoms:
                    continue
                raise
            statuses[path] = status
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
    names: dict[tuple[int, int], list[str]] = {}
    for path, status in sorted(statuses.items()):
        names.setdefault((status.st_dev, status.st_ino), []).append(path)
    return {
        path: _seen(top / path, status, names[status.st_dev, status.st_ino])
        for path, status in statuses.items()
    }


def _seen(path: Path, status: os.stat_result, names: list[str]) -> Seen:
    content = b""
    if stat.S_ISLNK(status.st_mode):
        content = os.fsencode(os.readlink(path))
    elif stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
    directory = stat.S_ISDIR(status.st_mode)
    return Seen(
        kind=stat.filemode(status.st_mode)[0],
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        nlink=0 if directory else status.st_nlink,
        size=0 if directory else status.st_size,
        device=status.st_rdev,
        mtime_ns=status.st_mtime_ns if status.st_mtime_ns < old_time(1000) else -1,
        content=content,
        xattrs=tuple(
            (key, os.getxattr(path, key, follow_symlinks=False))
            for key in sorted(os.listxattr(path, follow_symlinks=False))
        ),
        same_as=tuple(names),
    )


def smallest(
    case: Case, failing: Callable[[Sequence[Case]], Iterable[int]], *, seconds: float = 40
) -> Case:
    """Take things away from a case for as long as it fails and there is time.

    failing: gets cases and returns the numbers of those that fail. Each call costs two mounts, so
        many are tried in one.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        parts = case.parts()
        alone = failing([case.made_of(parts[:n] + parts[n + 1 :]) for n in range(len(parts))])
        needless = sorted(alone, reverse=True)
        # Each of these can be missing; together perhaps only the first few.
        together = []
        for number in needless:
            del parts[number]
            together.append(case.made_of(parts))
        failed = max(failing(together), default=None) if together else None
        if failed is None:
            return case
        case = together[failed]
    return case
