"""The ``fuse-aufs`` command: mount a union, and return when it answers.

What can be wrong is found as early as possible, in the order in which a person would look: the
options, the mount point, /dev/fuse, the branches.  All of that happens before the command forks and
before anything is written.  Only then does the child become the daemon, which mounts.

Exit status: 0 mounted, 1 not mounted (one line on stderr says why), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Final, NoReturn

from unionfs.branch import Branch, open_branches
from unionfs.control.state import StateError, StateFolder
from unionfs.errors import ReportedError
from unionfs.fuse import preflight, process
from unionfs.fuse.log import LogFile, start_logging
from unionfs.fuse.mounting import MountPoint
from unionfs.text import printable
from unionfs.union.build import union_of
from unionfs.union.options import BranchSpec, MountOptions, OptionError, parse_options

_DESCRIPTION: Final = """\
Mount a union: several directories (branches) seen as one, the first one on top.
What is changed goes to the writable branch; a deleted name is hidden by a
whiteout (.wh.NAME) there, as in aufs."""

_EXAMPLES: Final = """\
branches, top first:  PATH=PERMISSION[+ATTRIBUTE...], separated by colons
  rw       the writable branch, usually the first (default for the first)
  ro       read-only; whiteouts in it hide nothing (default for the others)
  ro+wh    read-only, and its whiteouts hide what lies below: an image layer
  rw+nolwh whiteouts are files of their own instead of hard links

layers, in the words of overlay mounts:
  lowerdir=TOP:BOTTOM,upperdir=CHANGES,workdir=DIR
                             nothing can be changed without an upperdir;
                             workdir is not used, but has to exist

options:
  br:A:B  br=A:B  dirs=A:B   branches; each further list adds below
  profile=aufs|overlay|driver  set of defaults; lowerdir= means overlay
  udba=reval|none            others do / do not change branches meanwhile
  acl, noacl                 POSIX ACLs count / do not count
  plink, noplink             hard links do / do not survive copy-up
  ro, noexec, nosuid, nodev  as for any mount
  volatile                   no fsync: faster, for data you can lose
  log=FILE                   messages go there instead of to syslog

examples:
  mkdir /tmp/changes /tmp/view
  fuse-aufs /tmp/view -o br:/tmp/changes=rw:/usr/share=ro
  touch /tmp/view/new          # appears in /tmp/changes, /usr/share is as before
  umount /tmp/view             # the daemon ends by itself

  fuse-aufs none /mnt -o profile=driver,br:/w=rw:/layer2=ro+wh:/layer1=ro+wh
  fuse-aufs /mnt -o ro,dirs=/a:/b       # nothing can be changed
  fuse-aufs /mnt -o lowerdir=/layer2:/layer1,upperdir=/up,workdir=/work

A backslash takes a comma, a colon or an equals sign in a path literally:
  fuse-aufs /mnt -o 'br:/a\\,b=rw'
"""


class _ShowVersion(argparse.Action):
    """``--version``: the version is looked up only when somebody asks."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        try:
            version = metadata.version("fuse-aufs")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        try:
            # Unbuffered: what cannot be written must not be tried again at exit.
            os.write(1, f"fuse-aufs {version}\n".encode())
        except OSError as error:
            parser.exit(1, f"fuse-aufs: {_explain(error)}\n")
        parser.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fuse-aufs",
        usage="fuse-aufs [SOURCE] MOUNTPOINT -o br:BRANCH[:BRANCH...][,OPTION...] [-f] [-d]\n"
        "       fuse-aufs [SOURCE] MOUNTPOINT "
        "-o lowerdir=DIR[:DIR...][,upperdir=DIR,workdir=DIR][,OPTION...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "places",
        nargs="*",
        metavar="[SOURCE] MOUNTPOINT",
        help="SOURCE is any word to show in /proc/mounts (default: none)",
    )
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPTION[,OPTION...]",
        help="mount options; may be given more than once, before or after the mount point",
    )
    parser.add_argument(
        "-f", "--foreground", action="store_true", help="stay in the foreground, log to stderr"
    )
    parser.add_argument(
        "-d", "--debug", action="store_true", help="log what is of use in debugging"
    )
    parser.add_argument(
        "-V", "--version", action=_ShowVersion, nargs=0, help="print the version and exit"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    argv: its arguments, those of the process when None.
    Returns the exit status.  Raises SystemExit for wrong usage (2), ``--help`` and ``--version``.
    """
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    # argparse lets options stand between the places, but forgets that it does when it sees "--".
    end = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_intermixed_args(words[:end])
    places = [os.fsencode(place) for place in (*arguments.places, *words[end + 1 :])]
    if not places:
        parser.error("the mount point is missing")
    if len(places) > 2:
        parser.error(f"too many arguments: {printable(places[2])}")
    try:
        process.fill_standard_descriptors()
        _mount(
            source=places[0] if len(places) == 2 else None,
            mountpoint=places[-1],
            texts=[os.fsencode(text) for text in arguments.options],
            foreground=arguments.foreground,
            debug=arguments.debug,
            inherited=process.open_descriptors(),
        )
    except (OptionError, process.DaemonError, OSError) as error:
        _complain(f"fuse-aufs: {_explain(error)}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _explain(error: Exception) -> str:
    """Return the one line to print for an error."""
    if isinstance(error, OSError) and not isinstance(error, ReportedError):
        symbol = errno.errorcode.get(error.errno or 0, "EIO")
        where = f"{printable(error.filename)}: " if error.filename else ""
        return f"{where}{error.strerror} ({symbol})"
    if isinstance(error, OSError | OptionError | process.DaemonError):
        return printable(str(error))
    return printable(f"internal error: {type(error).__name__}: {error}")


def _warn(message: str) -> None:
    _complain(f"fuse-aufs: warning: {printable(message)}")


def _complain(line: str) -> None:
    """Print a line on stderr. That nobody can read it is no reason to fail."""
    if sys.stderr is None:  # it was closed
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        # Else it is tried again at exit, and the exit status is that of this attempt.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the end


def _mount(
    *,
    source: bytes | None,
    mountpoint: bytes,
    texts: Sequence[bytes],
    foreground: bool,
    debug: bool,
    inherited: frozenset[int],
) -> None:
    options = _with_absolute_paths(parse_options(texts, _warn))
    mountpoint = preflight.check_mountpoint(mountpoint)
    point = MountPoint(mountpoint, preflight.find_way(mountpoint))
    if options.workdir is not None:
        preflight.check_workdir(options.workdir)
    process.raise_descriptor_limit()
    log_file = LogFile(options.log) if options.log is not None else None
    branches = open_branches(
        options.branches,
        read_only=options.read_only,
        exclusive=options.profile.exclusive,
        ask=True,
        foreign=options.profile.foreign_forms,
        limit=options.profile.max_branches,
        warn=_warn,
    )
    mount = _Mount(branches, options, point, source or options.fsname or b"none", log_file, debug)
    if not foreground:
        process.run_detached(mount.serve, inherited=inherited, warn=_warn, explain=_explain)
        return
    process.settle()
    mount.foreground = True
    mount.serve(lambda: True, _warn)


def _with_absolute_paths(options: MountOptions) -> MountOptions:
    """Resolve all paths now: the daemon has another working directory than the caller."""
    return replace(
        options,
        branches=tuple(
            replace(branch, path=os.path.realpath(branch.path)) for branch in options.branches
        ),
        log=None if options.log is None else os.path.realpath(options.log),
        xino=None if options.xino is None else os.path.realpath(options.xino),
    )


@dataclass(slots=True)
class _Mount:
    """Everything is checked; what is left to do is to serve."""

    branches: list[Branch]
    options: MountOptions
    point: MountPoint
    source: bytes
    log_file: LogFile | None
    debug: bool
    foreground: bool = False
    state: StateFolder | None = None

    def serve(self, ready: Callable[[], bool], warn: Callable[[str], None]) -> None:
        """Mount, report, and return when the mount is gone (a body for ``process``)."""
        # They cost 150 ms and 28 MB: a command that only reports an error does without.
        from unionfs.fuse.serve import serve  # noqa: PLC0415 - see above

        start_logging(foreground=self.foreground, debug=self.debug, file=self.log_file)
        process.on_hangup(self._hangup)

        def on_ready() -> None:
            self._announce(warn)
            if not ready():
                # Whoever asked for the mount was interrupted and does not know of it.
                signal.raise_signal(signal.SIGTERM)

        try:
            serve(
                union_of(self.branches, self.options),
                self.point,
                self.source,
                self.options,
                on_ready=on_ready,
                warn=warn,
            )
        finally:
            if self.state is not None:
                self.state.remove()

    def _hangup(self) -> None:
        if self.log_file is not None:
            self.log_file.reopen()
        elif self.foreground:
            signal.raise_signal(signal.SIGTERM)  # the terminal is gone

    def _announce(self, warn: Callable[[str], None]) -> None:
        opened = [BranchSpec(branch.path, branch.permission) for branch in self.branches]
        try:
            self.state = StateFolder.create(self.point.path, self.source, self.options, opened)
        except StateError as error:
            warn(str(error))
