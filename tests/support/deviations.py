"""The one table of what a union does differently from a plain directory, and why.

``tests/support/parity.py`` says what is compared. A difference that no entry here covers is a
fault, and so is a difference other than the one that the entry states. Each of them is told to
users in ``docs/differences.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tests.support.parity import PLACES, PROFILES, Comparison, Observation

_MISSING = "(absent)"


@dataclass(frozen=True, slots=True)
class Deviation:
    """Cases in which the union differs.

    reason: why that is right, in words for the documentation.
    cases: pattern of their names, as in the shell.
    differs: what is seen in the union, by field, both sides patterns: of the field's name, and of
        what stands there (its repr, or ``(absent)``).
    instead: the call fails with this errno, and nothing has happened; in place of ``differs``.
    places, profiles: where.
    """

    reason: str
    cases: str
    differs: Mapping[str, str] | None = None
    instead: str = ""
    places: tuple[str, ...] = PLACES
    profiles: tuple[str, ...] = PROFILES

    def covers(self, one: Comparison) -> bool:
        """Tell whether it is about this comparison."""
        return (
            one.place in self.places
            and one.profile in self.profiles
            and fnmatchcase(str(one.case), self.cases)
        )


LOWER = ("lower", "both")

_UNTOUCHED = "a file of a read-only branch is not written when another of its names is taken away"
_KEPT = {"*[xz] changed": "''", "*[xz] content": "*", "*[xz] target": "*"}
_FILLED = {"*[xy] changed": "'[a']*", "*[xy] content": "*"}
_STAYS = "a directory to which lower branches contribute cannot be moved (aufs.md 6.4)"

DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(_UNTOUCHED, "unlink one of two names of *", _KEPT, places=("lower",)),
    Deviation(_UNTOUCHED, "rename over one of two names*", _KEPT, places=("lower",)),
    Deviation(_UNTOUCHED, "unlink an open file*", {"result": "(?, False, 4)"}, places=("lower",)),
    Deviation(_STAYS, "rename in a tree, full to *", instead="EXDEV", places=LOWER),
    Deviation(_STAYS, "rename in a tree, without*, full to new,*", instead="EXDEV", places=LOWER),
    Deviation(_STAYS, "rename in a tree, exch*, full to d/e/g,*", instead="EXDEV", places=LOWER),
    Deviation(_STAYS, "rename in a tree, exch*, d/e/g to full,*", instead="EXDEV", places=LOWER),
    Deviation(
        "the kernel knows the size and does not ask for what is behind the end, so nothing is read",
        "read nothing, *",
        {"d/x changed": "''", "[xy] changed": "''"},
    ),
    Deviation("as above", "read, empty, *", {"d/x changed": "''"}),
    Deviation(
        "making a map reads nothing; what is read through it are pages that the kernel keeps",
        "map for *",
        {"x changed": "''"},
        places=("upper", "both"),
    ),
    # The first of them in the life of a mount does take set-user-id away: the kernel does so before
    # it hears that there is no such call.
    Deviation(
        "fallocate(2) is not passed on; the C library makes posix_fallocate(3) read and write",
        "posix_fallocate inside, 6777, *",
        {"d/x changed": "'*'", "d/x mode": "'10?777'", "d/x content": "*"},
    ),
    Deviation("as above", "posix_fallocate inside, 644, *", _FILLED),
    Deviation("as above", "posix_fallocate inside, 2766, *", _FILLED),
    Deviation(
        "as above",
        "posix_fallocate inside, linked, *",
        _FILLED,
    ),
    Deviation(
        "as above: it cannot do so with a descriptor for appending",
        "calls with a descriptor for both,*",
        {"result": "*'ENOTDIR', 'EBADF', *", "x content": "b'te'", "x size": "2"},
    ),
    Deviation("as above", "fallocate*", {"result": "?'ENOTSUP'?", "x *": "*"}),
    Deviation(
        "lseek(2) is not asked for holes: all is data up to the end",
        "holes,*",
        {"result": "??0, 1048577, 1048576, 1048577, 'ENXIO', 'ENXIO'??"},
    ),
    Deviation(
        "O_TMPFILE is not passed on; programs go on without it",
        "unnamed file,*",
        {"result": "'ENOTSUP'"},
    ),
    Deviation(
        "the C library knows the limit of links of some types of filesystems only",
        "pathconf,*",
        {"result": "?127, 4096, 4096, 1?"},
    ),
    Deviation(
        "what is read on the writable branch gets its time of access, although the union is "
        "mounted read-only: the branch is not",
        "read-only, *",
        {"* changed": "'[a']*"},
    ),
    Deviation(
        "names are at most 242 bytes long, for whiteouts are names, too (aufs.md 2.2)",
        "pathconf NAME_MAX,*",
        {"result": "242"},
    ),
    Deviation("as above", "make a name of 243,*", instead="ENAMETOOLONG"),
    Deviation("as above", "make a name of 25[05],*", instead="ENAMETOOLONG"),
    Deviation(
        "the kernel does not ask who it is when chown(2) names no owner and only the set-group-id "
        "bit could go",
        "chown 2745 to -1:-1, bob",
        {"result": "'ok'", "d/x changed": "'c'"},
    ),
    Deviation(
        "whiteouts of overlayfs are read, but none is ever made: RENAME_WHITEOUT is refused",
        "rename with flags 4,*",
        instead="EINVAL",
    ),
)


# What holds for every case. Nothing is said about sizes and blocks of directories: they are not
# even compared, for they are those of the branch that answers.


def _count_of_a_merged_directory(directory: bool, key: str, plain: object, seen: object) -> bool:
    """The link count of a directory is the sum over its branches (aufs.md 4.3)."""
    return directory and key.endswith(" nlink")


def _time_of_access(directory: bool, key: str, plain: object, seen: object) -> bool:
    """Reading does not change the time of access on a read-only branch."""
    return key.endswith(" changed") and seen == str(plain).replace("a", "")


def _copied_up_directory(directory: bool, key: str, plain: object, seen: object) -> bool:
    """A directory that is copied up for something in it gets a new ctime, which nobody can set."""
    return directory and key.endswith(" changed") and seen == str(plain).replace("a", "") + "c"


Rule = Callable[[bool, str, object, object], bool]
RULES: dict[str, tuple[Rule, ...]] = {
    "upper": (),
    "lower": (_count_of_a_merged_directory, _time_of_access, _copied_up_directory),
    "both": (_count_of_a_merged_directory,),
}


def _is_directory(observation: Observation, key: str) -> bool:
    name = key.rpartition(" ")[0]
    return str(observation.get(f"{name} mode", "")).startswith("4")


def unexplained(comparison: Comparison, plain: Observation, seen: Observation) -> list[str]:
    """Return in words where two observations differ without one of the reasons above."""
    place = comparison.place
    patterns: dict[str, str] = {}
    for deviation in DEVIATIONS:
        if not deviation.covers(comparison):
            continue
        if deviation.instead:
            return _something_happened(deviation.instead, place, seen)
        patterns |= deviation.differs or {}
    found = []
    for key in sorted(plain.keys() | seen.keys()):
        one, other = plain.get(key, _MISSING), seen.get(key, _MISSING)
        pattern = next((text for name, text in patterns.items() if fnmatchcase(key, name)), None)
        if pattern is not None:
            shown = other if other == _MISSING else repr(other)
            if not fnmatchcase(shown, pattern):
                found.append(f"{key}: {shown}, should deviate to {pattern}")
            continue
        if one == other:
            continue
        directory = _is_directory(seen, key)
        if any(rule(directory, key, one, other) for rule in RULES[place]):
            continue
        found.append(f"{key}: {other!r}, in a plain directory {one!r}")
    return found


def _something_happened(refusal: str, place: str, seen: Observation) -> list[str]:
    found = []
    if seen.get("result") != refusal:
        found.append(f"result: {seen.get('result')!r}, should deviate to {refusal}")
    for key, value in seen.items():
        copied = place == "lower" and value == "c" and _is_directory(seen, key)
        if key.endswith(" changed") and value and not copied:
            found.append(f"{key}: {value}, though the call was refused")
        if key.endswith(" inode") and value != key.removesuffix(" inode"):
            found.append(f"{key}: {value}, though the call was refused")
    return found
