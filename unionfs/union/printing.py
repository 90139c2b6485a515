"""Options printed: as a user would write them, and as aufs shows them in /proc/mounts.

Both print only what differs from a default: in the first the default of the profile, in the second
that of aufs.  (aufs.md 1.2, 1.5)
"""

from __future__ import annotations

from collections.abc import Sequence

from unionfs.union.escapes import escape_value
from unionfs.union.idmap import IdMapping
from unionfs.union.options import FLAGS, BranchSpec, MountOptions, default_options
from unionfs.union.profile import AUFS


def branch_string(branches: Sequence[BranchSpec]) -> bytes:
    """Print branches as ``br:PATH=perm:PATH=perm``; parses back to the same branches."""
    return b"br:" + b":".join(
        escape_value(branch.path)
        + (b"" if branch.permission is None else b"=" + str(branch.permission).encode())
        for branch in branches
    )


def option_string(options: MountOptions) -> bytes:
    """Print options so that ``parse_options([option_string(o)]) == o``.

    Only what differs from the profile is printed; the branches come last.
    """
    default = default_options(options.profile)
    words: list[bytes] = []
    if options.profile is not AUFS:
        words.append(b"profile=" + options.profile.name.encode())
    for flag, effect in FLAGS.items():
        if any(
            getattr(options, name) == value != getattr(default, name)
            for name, value in effect.items()
        ):
            words.append(flag.encode())
    if options.udba != default.udba:
        words.append(b"udba=" + options.udba.encode())
    for name in ("xino", "log", "fsname"):
        value = getattr(options, name)
        if value is not None:
            words.append(name.encode() + b"=" + escape_value(value))
    words += _id_words(options.ids)
    words.append(branch_string(options.branches))
    return b",".join(words)


def _id_words(ids: IdMapping) -> list[bytes]:
    words = []
    for kind, translation in (("uid", ids.uid), ("gid", ids.gid)):
        if translation.ranges:
            triples = ":".join(str(number) for entry in translation.ranges for number in entry)
            words.append(f"{kind}mapping={triples}".encode())
        if translation.squash is not None:
            words.append(f"squash_to_{kind}={translation.squash}".encode())
    return words


def kernel_style_string(options: MountOptions, si: str, *, with_branches: bool = False) -> bytes:
    """Print what aufs would show in /proc/mounts for this mount (aufs.md 1.5).

    si: hexadecimal id of the mount.  Only what differs from the aufs defaults is printed, in the
    order of aufs.  ``dirperm1`` is always there: it is how this filesystem checks permissions.
    The branches come last if asked for; aufs leaves them to the brN files.
    """
    words = ["acl"] if options.acl else []
    words.append(f"si={si}")
    if options.noxino:
        words.append("noxino")
    if options.udba != "reval":
        words.append(f"udba={options.udba}")
    if not options.plink:
        words.append("noplink")
    words.append("dirperm1")
    if options.dirwh != 3:
        words.append(f"dirwh={options.dirwh}")
    text = ",".join(words).encode()
    return text + b"," + branch_string(options.branches) if with_branches else text
