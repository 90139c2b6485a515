"""Parity: one call, made in a plain directory and in a union, must do the same in both.

A *case* is a handful of objects, an actor and a call. The objects are built four times, each time
in a directory of its own:

    plain   beside the branches, on the same filesystem: the oracle
    upper   on the writable branch only
    lower   on the read-only branch only, so that a change has to copy up
    both    on both branches, so that a removal has to hide

The actor makes the call in the plain directory and in one of the others, by relative paths. What is
compared is called an *observation*, a flat dictionary: the result or the symbol of the errno, and
for each object afterwards its type, mode, owner, links, size, content and attributes, which inode
it is (one of those from before, or a new one), and which of its three times have changed. Times are
never compared by value.

One mount serves all cases of a module, for mounting is what is slow; so everything is built before
it, which is also what ``udba=none`` asks for. With more effort (`tests.support.effort`) each
case is compared in all three places under both profiles, which takes minutes; without it in one or
two of the six, by turns, so that each kind of case meets each of them. Differences that are meant
stand in ``tests/support/deviations.py``, with their reasons.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from tests.support.effort import EFFORT
from tests.support.mounting import Union
from tests.support.things import BUILT_AT, ROOT, Actor, Thing, age, build

PLACES = ("upper", "lower", "both")
PROFILES = ("driver", "aufs")
_LONG_NAME = 200

Observation = dict[str, object]
Call = Callable[[], object]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One call with what it needs.

    name: tells the case from the others of its module, and deviations refer to it.
    """

    name: str
    things: Mapping[str, Thing]
    call: Call
    actor: Actor = ROOT

    def __str__(self) -> str:
        return f"{self.name}, {self.actor.name}"


class Table:
    """The cases of a module, as they are declared."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self._names: set[str] = set()

    def add(
        self,
        name: str,
        things: Mapping[str, Thing],
        call: Call,
        *actors: Actor,
    ) -> None:
        """Declare a case for each of the actors, root when there is none."""
        for actor in actors or (ROOT,):
            case = Case(name, things, call, actor)
            assert str(case) not in self._names, f"declared twice: {case}"
            self._names.add(str(case))
            self.cases.append(case)


# Looking


def _times(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns


class Before:
    """How objects were before the call: by inode, for a name may mean another one afterwards.

    Everything is reached from the descriptor of the directory: with ``udba=reval`` each component
    of a path would be a request. Content and extended attributes are looked at only where a time
    has changed, for the same reason.
    """

    def __init__(self, top: Path, things: Iterable[str]) -> None:
        self.fd = os.open(top, os.O_PATH | os.O_DIRECTORY)
        self.names = (".", *things)
        self.known: dict[int, tuple[str, tuple[int, int, int]]] = {}
        for name in self.names:
            status = self._status(name)
            self.known.setdefault(status.st_ino, (name, _times(status)))

    def _status(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def after(self, result: object) -> Observation:
        """Return the observation; this can be done once."""
        seen: Observation = {"result": result}
        if isinstance(result, dict):
            seen = {f"result {name}": value for name, value in result.items()}
        # Attributes first: looking into things changes their times of access.
        statuses = {}
        for name in self.names:
            try:
                statuses[name] = self._status(name)
            except (FileNotFoundError, NotADirectoryError):
                pass
        for name in self._names():
            status = statuses.get(name) or self._status(name)
            seen |= {f"{_shown(name)} {key}": value for key, value in self._look(name, status)}
        os.close(self.fd)
        return seen

    def _names(self) -> Iterator[str]:
        """Yield the paths of everything, relative to the directory; itself as a dot."""
        yield "."
        pending = [""]
        while pending:
            folder = pending.pop()
            fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.fd)
            try:
                entries = sorted(os.scandir(fd), key=lambda entry: entry.name)
            finally:
                os.close(fd)
            for entry in entries:
                path = os.path.join(folder, entry.name)
                yield path
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)

    def _look(self, name: str, status: os.stat_result) -> Iterator[tuple[str, object]]:
        kind = stat.S_IFMT(status.st_mode)
        yield "mode", f"{status.st_mode:o}"
        yield "owner", f"{status.st_uid}:{status.st_gid}"
        yield "nlink", status.st_nlink
        if kind != stat.S_IFDIR:
            yield "size", status.st_size
            yield "rdev", status.st_rdev
        before, times = self.known.get(status.st_ino, ("new", (0, 0, 0)))
        yield "inode", _shown(before)
        if before == "new":
            flags = [moment > (BUILT_AT + 2) * 10**9 for moment in _times(status)]
        else:
            flags = [one != other for one, other in zip(times, _times(status), strict=True)]
        yield "changed", _letters(flags)
        if "m" not in _letters(flags) and "c" not in _letters(flags):
            return
        path = f"/proc/self/fd/{self.fd}/{name}"
        if kind == stat.S_IFREG:
            # Much can be in a sparse file, but little of it is not zero.
            content = Path(path).read_bytes() if status.st_size < 1 << 20 else b"(long)"
            yield "content", content.replace(b"\0" * 100, b"(100 zeros)")
        elif kind == stat.S_IFLNK:
            yield "target", os.readlink(path)
        for key in sorted(os.listxattr(path, follow_symlinks=False)):
            yield f"xattr {key}", os.getxattr(path, key, follow_symlinks=False)


def _letters(flags: Sequence[bool]) -> str:
    return "".join(letter for letter, flag in zip("amc", flags, strict=True) if flag)


def _shown(name: str) -> str:
    """Return a name for comparison: the longest possible ones differ in length only."""
    parts = (f"({part[0]}…)" if len(part) >= _LONG_NAME else part for part in name.split("/"))
    return "/".join(parts)


# Acting


def symbol(error: OSError) -> str:
    """Return the symbol of an errno."""
    return errno.errorcode.get(error.errno or 0, str(error.errno))


def attempt(call: Call) -> object:
    """Make a call; returns its result, None as ``ok``, or the symbol of the errno."""
    try:
        result = call()
    except OSError as error:
        return symbol(error)
    return "ok" if result is None else result


def each(*calls: Call) -> object:
    """Make several calls, one after the other, whatever becomes of them."""
    return [attempt(call) for call in calls]


class Worker:
    """A process that has become an actor for good, and makes calls when it is told to."""

    def __init__(self, actor: Actor, base: Path, cases: Sequence[Case]) -> None:
        here, there = Pipe()
        self._connection = here
        self._pid = os.fork()
        if self._pid == 0:
            try:
                here.close()
                _act(actor, base, cases, there)
            finally:
                os._exit(1)
        there.close()

    def make(self, place: str, number: int) -> object:
        """Have the call of a case made; ``place`` is relative to the base directory."""
        self._connection.send((place, number))
        kind, value = self._connection.recv()
        if kind == "raised":
            raise AssertionError(value)
        return value

    def close(self) -> None:
        """End the process; the other workers hold this connection too, so it says so."""
        self._connection.send(None)
        self._connection.close()
        os.waitpid(self._pid, 0)


def _act(actor: Actor, base: Path, cases: Sequence[Case], connection: Connection) -> None:
    """Be a worker. The base directory is held open: the way to it is closed to ordinary users."""
    top = os.open(base, os.O_PATH | os.O_DIRECTORY)
    os.setgroups(actor.groups)
    os.setresgid(actor.gid, actor.gid, actor.gid)
    os.setresuid(actor.uid, actor.uid, actor.uid)
    while True:
        os.fchdir(top)
        os.umask(0o022)
        task = connection.recv()
        if task is None:
            os._exit(0)
        place, number = task
        try:
            os.chdir(place)
            answer: tuple[str, Any] = ("done", attempt(cases[number].call))
            # Not while the directory is in use: that would keep the mount from being unmounted.
            os.fchdir(top)
        except BaseException as error:  # noqa: BLE001 - told to the test
            answer = ("raised", f"{type(error).__name__}: {error}")
        connection.send(answer)


# All together


@dataclass(frozen=True, slots=True)
class Comparison:
    """A case, and where in the union it is tried."""

    case: Case
    place: str
    profile: str

    def __str__(self) -> str:
        return f"{self.profile}, {self.place}: {self.case}"


def comparisons(cases: Sequence[Case], *, thorough: bool = False) -> list[Comparison]:
    """Return what is to be compared, the profiles one after the other.

    thorough: every case everywhere, whatever the environment says.
    """
    everything = [
        Comparison(case, place, profile)
        for profile in PROFILES
        for case in cases
        for place in PLACES
    ]
    if thorough or EFFORT > 1:
        return everything
    chosen = []
    for number, case in enumerate(cases):
        chosen.append(Comparison(case, PLACES[number % 3], "driver"))
        if number % 3 == 0:  # udba=reval has a request for nearly everything, and so takes longer
            chosen.append(Comparison(case, PLACES[(number // 3) % 3], "aufs"))
    return sorted(chosen, key=lambda one: PROFILES.index(one.profile))


class Parity:
    """A plain directory, a mounted union, and the actors.

    base: an empty directory.
    wanted: what will be compared.
    profile: of the mount.
    read_only: both are mounted read-only.
    """

    def __init__(
        self,
        base: Path,
        wanted: Sequence[Comparison],
        profile: str,
        *,
        read_only: bool = False,
    ) -> None:
        base.chmod(0o755)
        self.profile = profile
        self.union = Union(base)
        self.plain = base / "plain"
        self._is_bound = False
        self._cases = list(dict.fromkeys(one.case for one in wanted))
        self._expected: dict[Case, Observation] = {}
        self._workers: dict[Actor, Worker] = {}
        self._build(wanted)
        for actor in dict.fromkeys(case.actor for case in self._cases):
            self._workers[actor] = Worker(actor, base, self._cases)
        if read_only:
            self._mount_read_only()
        self.union.start(options=f"profile={profile},volatile" + ",ro" * read_only)
        # Before the mount everything on the read-only branch was read, to be compared at the end.
        for one in wanted:
            for branch in self._branches(one.place):
                if branch == self.union.R:
                    age(branch / one.place / self._number(one.case), one.case.things)

    def _branches(self, place: str) -> tuple[Path, ...]:
        upper, lower = self.union.W, self.union.R
        return {"upper": (upper,), "lower": (lower,), "both": (upper, lower)}[place]

    def _number(self, case: Case) -> str:
        return str(self._cases.index(case))

    def _build(self, wanted: Sequence[Comparison]) -> None:
        self.plain.mkdir()
        for place in PLACES:
            for branch in self._branches(place):
                (branch / place).mkdir()
        for number, case in enumerate(self._cases):
            build(self.plain / str(number), case.things)
        for one in wanted:
            for branch in self._branches(one.place):
                build(branch / one.place / self._number(one.case), one.case.things)

    def _mount_read_only(self) -> None:
        subprocess.run(["mount", "--bind", self.plain, self.plain], check=True)
        self._is_bound = True
        subprocess.run(["mount", "-o", "remount,bind,ro", self.plain], check=True)

    def compare(self, one: Comparison) -> tuple[Observation, Observation]:
        """Try a case in the plain directory and in the union; returns both observations."""
        plain = self._expected.get(one.case)
        if plain is None:
            plain = self._expected[one.case] = self._run(one.case, self.plain)
        return plain, self._run(one.case, self.union.mount / one.place)

    def _run(self, case: Case, top: Path) -> Observation:
        place = top / self._number(case)
        before = Before(place, case.things)
        relative = os.path.relpath(place, self.union.base)
        return before.after(self._workers[case.actor].make(relative, self._cases.index(case)))

    def finish(self) -> None:
        """Check what is true of every union at its end."""
        self._dismiss()
        self.union.finish()

    def take_down(self) -> None:
        """Leave nothing behind; checks nothing."""
        self._dismiss()
        self.union.take_down()

    def _dismiss(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        if self._is_bound:
            subprocess.run(["umount", self.plain], check=True)
            self._is_bound = False


@contextmanager
def parity(
    base: Path, wanted: Sequence[Comparison], profile: str, *, read_only: bool = False
) -> Iterator[Parity]:
    """Provide everything for the comparisons of a module, and check the union at their end."""
    made = Parity(
        base, [one for one in wanted if one.profile == profile], profile, read_only=read_only
    )
    try:
        yield made
        made.finish()
    finally:
        made.take_down()
