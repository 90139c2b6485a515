"""The ``aufsctl`` command: looks into live mounts, and checks branches that are not mounted.

Exit status: 0 done, 1 it could not be done (one line on stderr says why), 2 wrong usage.  Of
``check``: 0 the branch is clean now, 1 something is left, 2 it could not be checked.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from unionfs.branch import BranchError, WritableBranch, open_branches
from unionfs.branch.check import Finding, check_branch
from unionfs.branch.permission import Access, Permission, parse_permission
from unionfs.control.state import MountState, live_mounts
from unionfs.mount_table import answers, mount_table, mounted_device
from unionfs.text import octal_escape, printable
from unionfs.union.build import union_of
from unionfs.union.explain import Explanation, Fate, explain
from unionfs.union.options import BranchSpec, OptionError, parse_options

_DESCRIPTION: Final = "Look into the mounts of fuse-aufs, and check branches."

_EXAMPLES: Final = """\
examples:
  aufsctl status                        all live mounts
  aufsctl branches /mnt                 the branches of one, top first
  aufsctl where /mnt /etc/passwd        which branch a path comes from, and why
  aufsctl check --repair /changes       after a crash, while it is not mounted
"""


class _CommandError(Exception):
    """It cannot be done; ``str()`` is the line to print."""


@dataclass(frozen=True, slots=True)
class _Mount:
    """A union in the mount table, with its state where there is one to be read."""

    mountpoint: bytes
    source: bytes
    state: MountState | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    argv: its arguments, those of the process when None.
    Returns the exit status.  Raises SystemExit for wrong usage (2) and ``--help``.
    """
    arguments = _parser().parse_args(argv)
    trouble = 2 if arguments.command == "check" else 1
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has seen enough; Python must not try to flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (_CommandError, BranchError, OptionError) as error:
        print(f"aufsctl: {printable(str(error))}", file=sys.stderr)
        return trouble
    except OSError as error:
        symbol = errno.errorcode.get(error.errno or 0, "EIO")
        where = f"{printable(error.filename)}: " if error.filename else ""
        print(f"aufsctl: {where}{error.strerror} ({symbol})", file=sys.stderr)
        return trouble
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aufsctl",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON")

    status = commands.add_parser("status", parents=[as_json], help="list live mounts")
    status.add_argument("mountpoint", nargs="?", metavar="MNT", help="only this one")
    status.set_defaults(run=_status)

    branches = commands.add_parser(
        "branches", parents=[as_json], help="print PATH=PERMISSION of each branch, top first"
    )
    branches.add_argument("mountpoint", metavar="MNT")
    branches.set_defaults(run=_branches)

    where = commands.add_parser(
        "where",
        parents=[as_json],
        help="tell which branch a path comes from, and what hides what",
        description="Tell which branch a path comes from, and what hides what.",
    )
    where.add_argument("mountpoint", metavar="MNT")
    where.add_argument("paths", nargs="+", metavar="PATH", help="as seen inside the mount")
    where.set_defaults(run=_where)

    check = commands.add_parser(
        "check",
        parents=[as_json],
        help="look for what a crash left on a writable branch",
        description="Look for what a crash left on a writable branch that is not mounted.",
    )
    check.add_argument("branches", nargs="+", metavar="BRANCH")
    check.add_argument("--repair", action="store_true", help="and remove what can be removed")
    check.set_defaults(run=_check)
    return parser


# --- live mounts --------------------------------------------------------------------------------


def _mounts() -> list[_Mount]:
    """Return the unions of this mount namespace, whether their state can be read or not."""
    states = {(state.mountpoint, state.device): state for state in live_mounts()}
    return [
        _Mount(line.mountpoint, line.source, states.get((line.mountpoint, line.device)))
        for line in mount_table()
        if line.kind == "fuse.aufs"
    ]


def _live_state(mountpoint: str) -> MountState:
    path = os.path.realpath(os.fsencode(mountpoint))
    device = mounted_device(path)
    for mount in _mounts():
        if mount.mountpoint == path and mount.state is not None and mount.state.device == device:
            return mount.state
    shown = printable(path)
    if any(mount.mountpoint == path for mount in _mounts()):
        if not answers(path):
            raise _CommandError(
                f"the union at {shown} is dead (ENOTCONN), its daemon was killed: umount {shown} "
                f"(as a plain user: fusermount3 -u {shown})"
            )
        raise _CommandError(
            f"the state of the union at {shown} cannot be read (EACCES): "
            "use the account that mounted it"
        )
    raise _CommandError(
        f"no union is mounted at {shown} (EINVAL): 'aufsctl status' lists those there are"
    )


def _status(arguments: argparse.Namespace) -> int:
    mounts = _mounts()
    if arguments.mountpoint is not None:
        state = _live_state(arguments.mountpoint)
        mounts = [mount for mount in mounts if mount.state == state]
    if arguments.json:
        _print_json([_mount_as_json(mount) for mount in mounts])
        return 0
    for mount in mounts:
        print(f"{_text(mount.mountpoint)}  source={_text(mount.source)}", end="")
        if mount.state is None:
            print("  (state not readable)")
            continue
        print(f"  pid={mount.state.pid}  {mount.state.options}")
        for index, (path, permission) in enumerate(mount.state.branches):
            print(f"  br{index}  {_text(path)}={permission}")
    return 0


def _mount_as_json(mount: _Mount) -> dict[str, Any]:
    known: dict[str, Any] = {
        "mountpoint": os.fsdecode(mount.mountpoint),
        "source": os.fsdecode(mount.source),
    }
    if mount.state is not None:
        known |= {
            "si": mount.state.si,
            "pid": mount.state.pid,
            "options": mount.state.options,
            "branches": _branches_as_json(mount.state),
        }
    return known


def _branches_as_json(state: MountState) -> list[dict[str, str]]:
    return [
        {"path": os.fsdecode(path), "permission": permission} for path, permission in state.branches
    ]


def _branches(arguments: argparse.Namespace) -> int:
    state = _live_state(arguments.mountpoint)
    if arguments.json:
        _print_json(_branches_as_json(state))
        return 0
    for path, permission in state.branches:
        print(f"{_text(path)}={permission}")
    return 0


# --- where --------------------------------------------------------------------------------------


def _where(arguments: argparse.Namespace) -> int:
    state = _live_state(arguments.mountpoint)
    options = parse_options([state.mount_options], lambda _: None)
    union = union_of(
        open_branches(
            [BranchSpec(path, _as_layer(permission)) for path, permission in state.branches],
            read_only=True,
            exclusive=False,
            foreign=options.profile.foreign_forms,
            limit=len(state.branches),
            warn=lambda _: None,
        ),
        options,
    )
    try:
        found = [explain(union, os.fsencode(path)) for path in arguments.paths]
    finally:
        union.close()
    if arguments.json:
        _print_json([_explanation_as_json(explanation, state) for explanation in found])
    else:
        for explanation in found:
            _print_explanation(explanation, state)
    return 0


def _as_layer(permission: str) -> Permission:
    """Return the permission with which a branch shows the same, without being written."""
    live = parse_permission(permission, lambda _: None)
    layer = frozenset({"wh"}) if live.whable else frozenset()
    return Permission(Access.RO, layer)


def _print_explanation(explanation: Explanation, state: MountState) -> None:
    if explanation.branch is None:
        print(f"{_text(explanation.path)}: {explanation.error}")
    else:
        path, permission = state.branches[explanation.branch]
        how = ", through a pseudo-link" if explanation.plink else ""
        print(
            f"{_text(explanation.path)}: {explanation.kind} "
            f"from branch {explanation.branch}, {_text(path)}={permission}{how}"
        )
    for fate in explanation.fates:
        words = _fate_in_words(fate, visible=explanation.branch is not None)
        if words:
            path, permission = state.branches[fate.index]
            print(f"  br{fate.index}  {_text(path)}={permission}  {words}")


def _fate_in_words(fate: Fate, *, visible: bool) -> str:
    """Return what to say about a branch, "" when it has no part in what is shown."""
    if fate.state == "whiteout":
        return "a whiteout, hides what is below"
    if fate.state == "merged":
        return f"{fate.kind}, merged"
    if fate.state != "hidden" or (visible and not fate.kind):
        return ""
    what = f"{fate.kind}, hidden" if fate.kind else "not looked at: hidden"
    where = "" if fate.by in (None, fate.index) else f" on br{fate.by}"
    return f"{what} by {fate.reason}{where}"


def _explanation_as_json(explanation: Explanation, state: MountState) -> dict[str, Any]:
    branch = explanation.branch
    return {
        "path": os.fsdecode(explanation.path),
        "visible": not explanation.error,
        "type": explanation.kind or None,
        "error": explanation.error or None,
        "branch": branch,
        "branch_path": None if branch is None else os.fsdecode(state.branches[branch][0]),
        "pseudo_link": explanation.plink,
        "branches": [
            {
                "index": fate.index,
                "path": os.fsdecode(state.branches[fate.index][0]),
                "permission": state.branches[fate.index][1],
                "state": fate.state,
                "type": fate.kind or None,
                "hidden_by": fate.by,
                "reason": fate.reason or None,
            }
            for fate in explanation.fates
        ],
    }


# --- check --------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> int:
    found: dict[str, list[Finding]] = {}
    for path in arguments.branches:
        branch = _open_for_check(os.path.realpath(os.fsencode(path)))
        try:
            found[path] = list(check_branch(branch, repair=arguments.repair))
        finally:
            branch.close()
    if arguments.json:
        _print_json([_finding_as_json(p, finding) for p, fs in found.items() for finding in fs])
    else:
        for path, findings in found.items():
            for finding in findings:
                print(
                    f"{_text(path)}/{_text(finding.path)}: {finding.kind}: {finding.detail}"
                    + (" [repaired]" if finding.repaired else "")
                )
    return int(any(not finding.repaired for fs in found.values() for finding in fs))


def _open_for_check(path: bytes) -> WritableBranch:
    shown = printable(path)
    if any(mount.mountpoint == path for mount in _mounts()):
        raise _CommandError(
            f"{shown} is a mounted union, not a branch (EBUSY): name one of its branches"
        )
    for state in live_mounts():
        if any(path == branch for branch, _ in state.branches):
            raise _CommandError(
                f"{shown} is a branch of the union at {printable(state.mountpoint)} (EBUSY): "
                "unmount that first"
            )
    writable = BranchSpec(path, Permission(Access.RW))
    branch = open_branches(
        [writable], read_only=False, exclusive=True, limit=1, warn=lambda _: None
    )[0]
    if not isinstance(branch, WritableBranch):
        raise TypeError("a rw branch is writable")
    return branch


def _finding_as_json(branch: str, finding: Finding) -> dict[str, Any]:
    return {
        "branch": branch,
        "kind": finding.kind,
        "path": os.fsdecode(finding.path),
        "detail": finding.detail,
        "repaired": finding.repaired,
    }


# --- output -------------------------------------------------------------------------------------


def _text(name: bytes | str) -> str:
    """Return a name with the escapes of the state files, so that scripts can cut lines."""
    return printable(octal_escape(os.fsencode(name)))


def _print_json(value: object) -> None:
    # ASCII with escapes: also names that are no UTF-8 come through every terminal and parser.
    json.dump(value, sys.stdout, indent=2)
    print()
