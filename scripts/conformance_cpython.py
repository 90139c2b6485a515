"""CPython's own tests of files, on a mount and on a plain directory, compared test by test.

Whoever wrote those tests did not think of a union filesystem, which is what makes them worth
running: they ask for what POSIX promises. Each module runs on a plain directory, and on a fresh
mount of each profile. A test that does not end on the mount as it does on the plain directory is a
difference; it must stand in docs/conformance.md with its reason, else this ends with status 1.

After each module the mount is also asked to end in order: the server's log holds nothing, and it is
gone with its mount. `scripts/conformance-cpython` starts this.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from scripts import cpython_suite
from scripts.cpython_suite import Results, Suite, SuiteError
from scripts.debian_sources import DebianError

_PROJECT = Path(__file__).resolve().parent.parent
_BIN = Path(sys.executable).parent
_DOCUMENT = _PROJECT / "docs" / "conformance.md"
_MODULES = (
    "test_os", "test_shutil", "test_tarfile", "test_zipfile", "test_tempfile", "test_pathlib",
    "test_mmap", "test_largefile", "test_fileio", "test_mailbox", "test_sqlite3", "test_posix",
)  # fmt: skip
_PROFILES = ("aufs", "driver")
_PATIENCE = 10.0  # seconds that a server may take to end after its mount


@dataclass(slots=True)
class Comparison:
    """One module: on the plain directory, and by profile what was different there."""

    plain: Results
    mounted: dict[str, Results] = field(default_factory=dict)
    trouble: dict[str, str] = field(default_factory=dict)

    def differences(self, profile: str) -> Iterator[tuple[str, str, str]]:
        """Yield name, outcome on the plain directory and on the mount, of each that differs."""
        here, there = self.plain.outcomes, self.mounted[profile].outcomes
        for name in sorted(here.keys() | there.keys()):
            one, two = here.get(name, "absent"), there.get(name, "absent")
            if one != two:
                yield name, one, two


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; return 0 when nothing differs but what is documented."""
    parser = argparse.ArgumentParser(
        prog="scripts/conformance-cpython",
        description="Run CPython's own tests of files on a mount and on a plain directory, and"
        " compare them test by test. Takes about ten minutes, and root.",
        epilog="Exit status: 0 no difference but those in docs/conformance.md, 1 another one,"
        " 2 the tests could not be run. The packages of Debian's CPython are kept below .cache.",
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="default: all of the list")
    parser.add_argument("--user", action="store_true", help="the tests run as the user nobody")
    parser.add_argument("--profile", choices=_PROFILES, help="on mounts of this profile only")
    parser.add_argument(
        "--verbose", action="store_true", help="print all that tests which differ say on the mount"
    )
    arguments = parser.parse_args(argv)
    unknown = [module for module in arguments.modules if module not in _MODULES]
    if unknown:
        parser.error(f"no module {unknown[0]} here; there are {' '.join(_MODULES)}")
    signal.signal(signal.SIGTERM, _stop)
    try:
        with _directory() as place:
            return _compare(place, arguments)
    except (SuiteError, DebianError) as error:
        print(f"conformance-cpython: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nconformance-cpython: interrupted; everything is cleaned up", file=sys.stderr)
        return 128 + signal.SIGINT


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    # /tmp may be a tmpfs, which is no such filesystem as a branch usually lies on.
    place = Path(tempfile.mkdtemp(prefix="fuse-aufs-conformance-", dir="/var/tmp"))
    os.environ["FUSE_AUFS_STATE"] = str(place / "state")
    try:
        place.chmod(0o755)
        yield place
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        shutil.rmtree(place, onerror=_make_writable)


def _make_writable(_function: object, path: str, _error: object) -> None:
    """Tests of permissions leave immutable or closed folders behind when they are interrupted."""
    with contextlib.suppress(OSError):
        os.chmod(os.path.dirname(path), 0o700)
    shutil.rmtree(path, ignore_errors=True)


def _stop(signum: int, _frame: FrameType | None) -> NoReturn:
    """End by an exception, so that everything is cleaned up."""
    raise SystemExit(128 + signum)


# --- running -------------------------------------------------------------------------------------


def _compare(place: Path, arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    user = pwd.getpwnam("nobody").pw_uid if arguments.user else None
    modules = arguments.modules or list(_MODULES)
    suite = cpython_suite.fetch(modules, _PROJECT / ".cache" / "cpython", place / "python")
    (place / "reports").mkdir()
    if user is not None:
        for folder in (place / "reports", *_folders(place / "python")):
            os.chown(folder, user, user)  # where compiled modules are written
    print(
        f"CPython {suite.version} on Linux {os.uname().release}, as {_name(user)}, {place}",
        flush=True,
    )
    profiles = [arguments.profile] if arguments.profile else list(_PROFILES)
    compared = {}
    for number, module in enumerate(modules, 1):
        print(f"[{number}/{len(modules)}] {module}:", end="", flush=True)
        compared[module] = _module(suite, module, place, profiles, user)
        print(flush=True)
    _print_table(compared, profiles)
    status = _print_differences(compared, profiles, verbose=arguments.verbose)
    print(f"\n{time.monotonic() - began:.0f} s; {place} is gone, nothing is mounted.")
    return status


def _module(
    suite: Suite, module: str, place: Path, profiles: Sequence[str], user: int | None
) -> Comparison:
    plain = place / "plain"
    _make_folder(plain, user)
    comparison = Comparison(_run(suite, module, plain, place, user, "plain"))
    print(end=";", flush=True)
    shutil.rmtree(plain, onerror=_make_writable)
    for profile in profiles:
        with _mounted(place / profile, profile, user) as (directory, log):
            comparison.mounted[profile] = _run(suite, module, directory, place, user, profile)
        different = len(list(comparison.differences(profile)))
        print(f", {different} differ" if different else "", end=";", flush=True)
        if log:
            comparison.trouble[profile] = "\n".join(log)
    return comparison


def _run(
    suite: Suite, module: str, directory: Path, place: Path, user: int | None, what: str
) -> Results:
    began = time.monotonic()
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/nonexistent",
    }
    if user is None:
        environment["HOME"] = pwd.getpwuid(0).pw_dir
    results = suite.run(module, directory, place / "reports" / "report.xml", environment, user)
    print(f" {what} {time.monotonic() - began:.0f} s", end="", flush=True)
    return results


@contextlib.contextmanager
def _mounted(base: Path, profile: str, user: int | None) -> Iterator[tuple[Path, list[str]]]:
    """Mount W=rw over R=ro+wh; the folder to work in lies on R, so it is copied up first.

    Yields:
        The folder, and a list that holds afterwards what the server complained about.
    """
    for name in ("W", "R", "mnt"):
        (base / name).mkdir(parents=True)
    _make_folder(base / "R" / "tmp", user)
    log = base / "log"
    complaints: list[str] = []
    options = f"profile={profile},log={log},br:{base}/W=rw:{base}/R=ro+wh"
    _do(str(_BIN / "fuse-aufs"), "none", str(base / "mnt"), "-o", options)
    try:
        yield base / "mnt" / "tmp", complaints
    finally:
        _do("umount", str(base / "mnt"), lazily=True)
        end = time.monotonic() + _PATIENCE
        while (running := _server(str(base / "mnt"))) and time.monotonic() < end:
            time.sleep(0.02)
        if running:
            complaints.append(f"the server, process {running}, did not end with its mount")
            os.kill(running, signal.SIGKILL)
        if log.exists():
            complaints.extend(log.read_text(errors="backslashreplace").splitlines())
        shutil.rmtree(base, onerror=_make_writable)


def _server(mountpoint: str) -> int:
    """Return the number of the process that serves, or served, this mount point; 0: none."""
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{number}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if os.fsencode(mountpoint) in words and any(word.endswith(b"/fuse-aufs") for word in words):
            return int(number)
    return 0


def _make_folder(path: Path, user: int | None) -> None:
    path.mkdir(mode=0o755)
    if user is not None:
        os.chown(path, user, user)


def _folders(root: Path) -> Iterator[Path]:
    for folder, _, _ in os.walk(root):
        yield Path(folder)


def _do(*command: str, lazily: bool = False) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and lazily:
        done = subprocess.run(
            [command[0], "--lazy", *command[1:]], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SuiteError(f"{' '.join(command)} failed: {done.stderr.strip()}")


def _name(user: int | None) -> str:
    return "root" if user is None else f"user {user}"


# --- what it says --------------------------------------------------------------------------------


def _print_table(compared: dict[str, Comparison], profiles: Sequence[str]) -> None:
    head = "".join(f" | {profile + ': failed':>15} {'differ':>6}" for profile in profiles)
    print(f"\n{'module':16}{'tests':>6}{'skipped':>8}{'plain: failed':>15}{head}")
    total = [0] * (3 + 2 * len(profiles))
    for module, comparison in compared.items():
        plain = comparison.plain
        numbers = [len(plain.outcomes), plain.count("skipped"), plain.count("failed")]
        for profile in profiles:
            numbers.append(comparison.mounted[profile].count("failed"))
            numbers.append(len(list(comparison.differences(profile))))
        total = [one + two for one, two in zip(total, numbers, strict=True)]
        _print_row(module, numbers)
    _print_row("all", total)


def _print_row(title: str, numbers: Sequence[int]) -> None:
    tests, skipped, failed, *rest = numbers
    text = f"{title:16}{tests:>6}{skipped:>8}{failed:>15}"
    for index in range(0, len(rest), 2):
        text += f" | {rest[index]:>15} {rest[index + 1]:>6}"
    print(text, flush=True)


def _print_differences(
    compared: dict[str, Comparison], profiles: Sequence[str], *, verbose: bool
) -> int:
    known = documented()
    seen: set[str] = set()
    status = 0
    for comparison in compared.values():
        for profile in profiles:
            for name, plain, mounted in comparison.differences(profile):
                pattern = next((one for one in known if fnmatch.fnmatchcase(name, one)), None)
                if pattern is None:
                    status = 1
                else:
                    seen.add(pattern)
                mark = "documented" if pattern else "NEW"
                print(f"{mark}: {name}: {plain} on the plain directory, {mounted} on {profile}")
                detail = comparison.mounted[profile].details.get(name, "").splitlines()
                # The last line of a traceback says what was wrong; all of it is a page.
                for line in detail if verbose else detail[-1:]:
                    print(f"    {line}")
            if profile in comparison.trouble:
                status = 1
                print(f"NEW: the server of profile {profile} said:\n{comparison.trouble[profile]}")
    print("\nEvery difference is documented." if status == 0 else "\nThere are new differences.")
    return status


def documented() -> list[str]:
    """Return the names of tests, with ``*`` for any text, that docs/conformance.md explains.

    They are the first cell of those lines of a table there that begin with a test's name.
    """
    names = []
    for line in _DOCUMENT.read_text(encoding="utf-8").splitlines():
        cell = line.removeprefix("| ").partition(" | ")[0]
        if line.startswith("| `test.") and cell.endswith("`"):
            names.append(cell.strip("`"))
    return names


if __name__ == "__main__":
    sys.exit(main())
