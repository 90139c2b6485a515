"""The option string of a mount, read.

    -o noatime,br:/rw:/ro1=ro+wh:/ro2=ro+wh

Commas separate options, colons separate branches, the first ``=`` separates a branch from its
permission (``escapes.py`` for paths that contain one of them; ``printing.py`` for the way back).
``overlay.py`` reads the words that only mounts with ``lowerdir=`` have.

Three rules make the order of options matter as little as in aufs: ``profile=`` is looked at before
everything else, of two options that answer one question the later one counts, and each further
branch list adds its branches at the bottom.

What aufs knows and this version does not is refused by name ("not yet"): an old command line must
never come up as a mount that quietly behaves differently.

Spec: aufs.md 1.2, 1.3, 1.4 and 9.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from unionfs.branch.permission import parse_permission
from unionfs.text import printable
from unionfs.union.escapes import escape_value, split, unescape
from unionfs.union.idmap import LARGEST_ID, IdMapping, parse_id_map
from unionfs.union.overlay import OverlayReader, is_overlay, split_options
from unionfs.union.profile import AUFS, OVERLAY, PROFILES, Profile
from unionfs.union.wanted import BranchSpec, OptionError, not_yet

__all__ = [
    "BranchSpec",
    "MountOptions",
    "OptionError",
    "default_options",
    "escape_value",
    "parse_options",
]

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Everything a mount was asked for, defaults filled in from its profile.

    log: file for the daemon's messages, None for syslog.  fsname: source to show in /proc/mounts.
    dirwh: number of whiteouts up to which rmdir empties a directory at once (aufs.md 6.2).
    allow_other: whether all users may use the mount; None: if that can be had.
    init: who negotiates with the kernel, we (``own``) or ``pyfuse3`` (see ``fuse/handshake.py``).
    workdir: a directory that overlay mounts name.  It has to exist, and nothing is written there,
    so two mounts that differ only in this are the same.
    """

    branches: tuple[BranchSpec, ...] = ()
    profile: Profile = AUFS
    udba: str = AUFS.udba
    plink: bool = AUFS.plink
    acl: bool = AUFS.acl
    xino: bytes | None = None
    noxino: bool = False
    read_only: bool = False
    volatile: bool = False
    suid: bool = AUFS.suid
    dev: bool = AUFS.dev
    exec: bool = True
    noatime: bool = AUFS.noatime
    nodiratime: bool = False
    sync: bool = False
    dirsync: bool = False
    allow_other: bool | None = None
    init: str = "own"
    fsname: bytes | None = None
    log: bytes | None = None
    dirwh: int = 3
    workdir: bytes | None = field(default=None, compare=False)
    ids: IdMapping = field(default_factory=IdMapping)

    @property
    def fsync(self) -> bool:
        """A copy-up must be on the disk before it is published."""
        return self.profile.fsync and not self.volatile


def default_options(profile: Profile = AUFS, branches: Sequence[BranchSpec] = ()) -> MountOptions:
    """Return the options of a mount with this profile for which nothing else was asked."""
    return MountOptions(
        branches=tuple(branches),
        profile=profile,
        udba=profile.udba,
        plink=profile.plink,
        acl=profile.acl,
        suid=profile.suid,
        dev=profile.dev,
        noatime=profile.noatime,
    )


# --- the vocabulary -----------------------------------------------------------------------------

# A word that stands alone, and what it sets.
FLAGS: Final[dict[str, dict[str, Any]]] = {
    "ro": {"read_only": True},
    "rw": {"read_only": False},
    "plink": {"plink": True},
    "noplink": {"plink": False},
    "acl": {"acl": True},
    "noacl": {"acl": False},
    "noxino": {"noxino": True, "xino": None},
    "volatile": {"volatile": True},
    "suid": {"suid": True},
    "nosuid": {"suid": False},
    "dev": {"dev": True},
    "nodev": {"dev": False},
    "exec": {"exec": True},
    "noexec": {"exec": False},
    "atime": {"noatime": False},
    "noatime": {"noatime": True},
    "diratime": {"nodiratime": False},
    "nodiratime": {"nodiratime": True},
    "sync": {"sync": True},
    "async": {"sync": False},
    "dirsync": {"dirsync": True},
    "allow_other": {"allow_other": True},
    "defaults": {},
    # What these ask for is how every mount of ours works.
    "dirperm1": {},
    "dio": {},
    "nodio": {},
    "default_permissions": {},
    # A union never updates access times by itself, so there is nothing to be relative to.
    "relatime": {},
    "norelatime": {},
    "strictatime": {},
    "nostrictatime": {},
    "lazytime": {},
    "nolazytime": {},
    # Words of /etc/fstab, meant for mount(8) and not for a filesystem.
    "auto": {},
    "noauto": {},
    "user": {},
    "nouser": {},
    "users": {},
    "owner": {},
    "group": {},
    "nofail": {},
    "_netdev": {},
    # aufs takes this one silently.
    "nodlgt": {},
}

# NAME=VALUE whose value changes nothing here: the kernel's own words for a FUSE mount, which come
# back to us out of /proc/mounts, and the id that scripts copy from there.
_IGNORED_VALUES: Final = frozenset(
    {"user_id", "group_id", "rootmode", "fd", "max_read", "blksize", "subtype", "comment", "si"}
)

# Which ids the options of id mapping are about.
_ID_MAPS: Final = {"uidmapping": ("uid",), "gidmapping": ("gid",)}
_SQUASHES: Final = {
    "squash_to_root": ("uid", "gid"),
    "squash_to_uid": ("uid",),
    "squash_to_gid": ("gid",),
}

_BRANCH_LISTS: Final = (b"br:", b"br=", b"dirs=")

# Options of aufs (aufs.md section 9) and others that this version refuses by name.
_NOT_YET: Final = frozenset(
    (
        # branches of a live mount
        *("add", "ins", "append", "prepend", "del", "mod", "idel", "imod", "remount"),
        # the inode number map
        *("trunc_xino", "notrunc_xino", "trunc_xino_path", "itrunc_xino"),
        *("trunc_xib", "notrunc_xib"),
        # semantics
        *("clean_plink", "list_plink", "diropq", "dirwh", "nodirperm1", "dirren", "nodirren"),
        *("shwh", "noshwh", "sum", "nosum", "wsum", "fhsm_sec"),
        # tuning and messages
        *("rdcache", "rdblk", "rdhash", "warn_perm", "nowarn_perm", "debug", "delete", "imap"),
        *("verbose", "v", "noverbose", "quiet", "q", "silent", "droplvl", "ephemeral"),
        # of overlay mounts, as long as there is no lowerdir
        *("redirect_dir", "index", "xino_auto", "metacopy", "userxattr", "nfs_export"),
        # the kernel's
        *("context", "fscontext", "defcontext", "rootcontext", "allow_root"),
    )
)

_UDBA_NOT_YET: Final = frozenset({"notify", "fsnotify", "inotify"})

# With one writable branch all policies choose that one (aufs.md 5.6).  Still, only the default is
# taken: a policy that was asked for by name must be there on the day a second branch is.
_CREATE_NAMES: Final = ("create", "create_policy")
_COPYUP_NAMES: Final = ("cpup", "copyup", "copyup_policy")
_DEFAULT_POLICY: Final = frozenset({"tdp", "top-down-parent"})
_CREATE_NOT_YET: Final = frozenset(
    (
        *("rr", "round-robin", "mfs", "most-free-space", "mfsrr", "most-free-space-round-robin"),
        *("tdmfs", "pmfs", "pmfsrr"),
    )
)
_COPYUP_NOT_YET: Final = frozenset(("bup", "bottom-up-parent", "bu", "bottom-up"))
_POLICIES_NOT_YET: Final = {
    **dict.fromkeys(_CREATE_NAMES, _CREATE_NOT_YET),
    **dict.fromkeys(_COPYUP_NAMES, _COPYUP_NOT_YET),
}

_WITHOUT_EFFECT_YET: Final = ("coo_reg", "coo_all", "moo", "fhsm")

_KNOWN: Final = sorted(
    {
        *FLAGS,
        *_IGNORED_VALUES,
        *_NOT_YET,
        *_POLICIES_NOT_YET,
        *("br", "dirs", "udba", "xino", "profile", "log", "fsname", "init"),
        *("lowerdir", "upperdir", "workdir"),
        *_ID_MAPS,
        *_SQUASHES,
    }
)


# --- reading ------------------------------------------------------------------------------------


def parse_options(texts: Sequence[bytes], warn: Warn) -> MountOptions:
    """Read the arguments of all ``-o`` of one mount.

    texts: each the argument of one ``-o``; together they are read as if joined by commas.  With
    ``lowerdir=`` among them they are those of an overlay mount.
    warn: called with one line for what is accepted and has no effect.
    Raises OptionError (aufs.md 1.4, 9; driver.md 4.7).
    """
    words = [word for text in texts for word in split(text, b",") if word]
    profile = AUFS
    overlay = None
    if is_overlay(words):
        words = [word for text in texts for word in split_options(text) if word]
        profile = OVERLAY
        overlay = OverlayReader(warn)
    for name, value in map(_name_and_value, words):
        if name == "profile":
            profile = _profile(value)
    reader = _Reader(profile, warn, overlay)
    for word in words:
        reader.take(word)
    reader.finish()
    _check_branches(reader.branches, profile)
    return replace(default_options(profile, reader.branches), **reader.changes)


@dataclass(slots=True)
class _Reader:
    """What has been read so far: the branches, and the fields that differ from the defaults."""

    profile: Profile
    warn: Warn
    overlay: OverlayReader | None = None
    branches: list[BranchSpec] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)

    def take(self, word: bytes) -> None:
        name, value = _name_and_value(word)
        changes = None if self.overlay is None else self.overlay.take(name, value)
        if changes is not None:
            self.changes.update(changes)
        elif word.startswith(_BRANCH_LISTS):
            self.branches.extend(_branch_list(value or b"", self.warn))
        elif name in ("br", "dirs"):
            raise OptionError(
                f"'{printable(word)}' is no branch list", "write br:/changes=rw:/base=ro"
            )
        elif name in FLAGS:
            if value is not None:
                raise OptionError(f"option '{name}' takes no value", f"write just '{name}'")
            self.changes.update(FLAGS[name])
        elif name == "udba":
            self.changes["udba"] = _udba(_text(value))
        elif name == "init":
            self.changes["init"] = _init(_text(value))
        elif name in _ID_MAPS or name in _SQUASHES:
            ids = self.changes.get("ids", IdMapping())
            self.changes["ids"] = _id_mapping(ids, name, value)
        elif name in _POLICIES_NOT_YET:
            _check_policy(name, _text(value))
        elif name == "xino":
            self.changes.update(xino=_path(name, value), noxino=False)
        elif name in ("log", "fsname"):
            self.changes[name] = _path(name, value)
        elif name in _NOT_YET and self.overlay is None:
            raise not_yet(f"option '{name}'")
        elif name != "profile" and name not in _IGNORED_VALUES and not name.startswith("x-"):
            self._unknown(name)

    def finish(self) -> None:
        """Add the branches of an overlay mount, now that all is known."""
        if self.overlay is None:
            return
        if self.branches:
            raise OptionError("br: and lowerdir= cannot be mixed", "list all branches with one")
        read_only = self.changes.get("read_only", False)
        self.branches, changes = self.overlay.finish(read_only=read_only)
        self.changes.update(changes)

    def _unknown(self, name: str) -> None:
        problem = f"unknown option '{printable(name)}'"
        if self.profile.unknown_options == "warn":
            if name not in self.ignored:
                self.ignored.add(name)
                self.warn(f"{problem}: ignored")
            return
        near = difflib.get_close_matches(name, _KNOWN, n=1)
        raise OptionError(problem, f"did you mean '{near[0]}'?" if near else "see fuse-aufs --help")


def _name_and_value(word: bytes) -> tuple[str, bytes | None]:
    """Cut at the first ``:`` or ``=``; the value is None when there is neither."""
    ends = [word.find(mark) for mark in (b":", b"=") if mark in word]
    if not ends:
        return os.fsdecode(word), None
    return os.fsdecode(word[: min(ends)]), word[min(ends) + 1 :]


def _text(value: bytes | None) -> str:
    return os.fsdecode(unescape(value or b""))


def _path(name: str, value: bytes | None) -> bytes:
    if not value:
        raise OptionError(f"option '{name}' needs a value", f"write {name}=VALUE")
    return unescape(value)


def _profile(value: bytes | None) -> Profile:
    name = _text(value)
    if name not in PROFILES:
        raise OptionError(
            f"unknown profile '{printable(name)}'",
            "use profile=aufs, profile=overlay or profile=driver",
        )
    return PROFILES[name]


def _init(who: str) -> str:
    if who not in ("own", "pyfuse3"):
        raise OptionError(f"bad value in init={printable(who)}", "use init=own or init=pyfuse3")
    return who


def _udba(level: str) -> str:
    if level in _UDBA_NOT_YET:
        raise not_yet(f"udba={level}", "use udba=reval or udba=none")
    if level not in ("none", "reval"):
        raise OptionError(f"bad value in udba={printable(level)}", "use udba=reval or udba=none")
    return level


def _id_mapping(ids: IdMapping, name: str, value: bytes | None) -> IdMapping:
    """Return the mapping with one option more (driver.md 4.7)."""
    change: dict[str, Any]
    text = _text(value)
    if name in _ID_MAPS:
        try:
            change = {"ranges": parse_id_map(text)}
        except ValueError as error:
            raise OptionError(
                f"bad value in {name}={printable(text)}: {error}",
                f"write {name}=STORED:SHOWN:LENGTH",
            ) from error
    elif name == "squash_to_root":
        if value is not None:
            raise OptionError(f"option '{name}' takes no value", f"write just '{name}'")
        change = {"squash": 0}
    elif text.isascii() and text.isdigit() and int(text) <= LARGEST_ID:
        change = {"squash": int(text)}
    else:
        raise OptionError(f"bad value in {name}={printable(text)}", f"write {name}=ID, a number")
    kinds = _ID_MAPS.get(name) or _SQUASHES[name]
    return replace(ids, **{kind: replace(getattr(ids, kind), **change) for kind in kinds})


def _check_policy(name: str, value: str) -> None:
    if value in _DEFAULT_POLICY:
        return
    if value.partition(":")[0] in _POLICIES_NOT_YET[name]:
        raise not_yet(f"{name}={printable(value)}", f"use {name}=tdp, the default")
    raise OptionError(f"bad value in {name}={printable(value)}", f"use {name}=tdp")


# --- branches -----------------------------------------------------------------------------------


def _branch_list(text: bytes, warn: Warn) -> Iterator[BranchSpec]:
    """Read ``A=perm:B=perm``.  An empty element ends the list without a word (aufs.md 1.3)."""
    for element in split(text, b":"):
        if not element:
            return
        yield _branch(element, warn)


def _branch(text: bytes, warn: Warn) -> BranchSpec:
    """Read ``PATH``, ``PATH=`` or ``PATH=perm+attr`` (aufs.md 1.2)."""
    raw_path, *rest = split(text, b"=", once=True)
    path = unescape(raw_path)
    if not path:
        raise OptionError(
            f"a branch has no path ('{printable(text)}')", "write PATH=rw or PATH=ro+wh"
        )
    if not rest:
        return BranchSpec(path)

    def warn_with_path(message: str) -> None:
        warn(f"branch {printable(path)}: {message}")

    permission = parse_permission(os.fsdecode(rest[0]), warn_with_path)
    for name in _WITHOUT_EFFECT_YET:
        if name in permission.attributes:
            warn_with_path(f"attribute '{name}' has no effect yet")
    return BranchSpec(path, permission)


def _check_branches(branches: Sequence[BranchSpec], profile: Profile) -> None:
    if not branches:
        raise OptionError("no branch given", "name at least one, as in -o br:/changes=rw:/base=ro")
    if len(branches) > profile.max_branches:
        raise OptionError(
            f"{len(branches)} branches are too many",
            f"the '{profile.name}' profile allows {profile.max_branches}",
            errno.ENOSPC,
        )
