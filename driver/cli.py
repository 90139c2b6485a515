"""``aufs-driver``: the layer store at the command line.

Arguments in, text or JSON out; everything else is the driver's (`driver.driver`). Each run is a
process of its own, and use counts live in a process: so ``get`` leaves the layer mounted for
others, ``put`` takes the mount away however often it was got, unless a living process uses it, and
``mount`` and ``umount`` are only other names for the two.

A command that is told to end (SIGINT, SIGTERM, SIGHUP) puts back what it has mounted first, and so
does a ``get`` whose answer cannot be written. Where there is nowhere to write an answer to, nothing
is begun.

Exit status: 0 done, 1 it did not work (one line on stderr says why), 2 wrong usage, 128 and the
number of the signal that ended it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import BinaryIO, NoReturn, Protocol

from driver.driver import Driver, init
from driver.ending import ToldToEnd, in_one_piece, told_to_end
from driver.errors import DriverError, LayerNotFoundError, NotAStoreError
from driver.standard import drop_output, fill_descriptors, standard_input, standard_output

_DONE, _FAILED = 0, 1
_PIECE = 1 << 20  # bytes copied at a time

_MAGICS = (
    (b"\x1f\x8b\x08", "gzip", "gunzip"),
    (b"\xfd7zXZ\x00", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
)
# A tar may begin with a name like BZhello: what follows in the one or the other form tells.
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
_ZSTD_SKIPPABLE = frozenset(range(0x184D2A50, 0x184D2A60))

_EPILOG = """\
A layer is named by an id. It may have a parent, whose content shows through it:

  aufs-driver --root DIR create base
  aufs-driver --root DIR apply base base.tar
  aufs-driver --root DIR create box base
  aufs-driver --root DIR get box          mounts it and prints where
  aufs-driver --root DIR changes box      what was changed there: C, A, D and a path
  aufs-driver --root DIR diff box -o box.tar
  aufs-driver --root DIR put box          unmounts it

diff, changes, size and apply look at a layer relative to its own parent, unless --parent says
otherwise; --parent '' means everything the layer shows. Options may stand before or after the
command; only -o means the output file after diff, which knows driver options as --option. A store
is made by create alone. Exit status: 0 done, 1 failed, 2 wrong usage, 128 and its number when a
signal ended it.
"""


class _UsageError(Exception):
    """What was asked for makes no sense; ``str()`` is one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        argv: the arguments without the program's name; None takes the process's own.
    """
    fill_descriptors()
    parser = _parser()
    arguments = _parse(parser, argv)
    logging.basicConfig(format="aufs-driver: %(message)s", level=logging.WARNING)
    try:
        with told_to_end():
            return _run(parser, arguments)
    except ToldToEnd as end:
        drop_output()
        return 128 + end.number


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    try:
        if arguments.answers or arguments.json:
            standard_output()
        _check_root(arguments)
        driver = init(arguments.root, arguments.options)
        arguments.command(driver, arguments)
    except _UsageError as error:
        parser.error(str(error))
    except BrokenPipeError:
        drop_output()  # the reader has seen enough
        return _FAILED
    except (DriverError, OSError, ValueError) as error:
        print(f"aufs-driver: {_explain(error)}", file=sys.stderr)
        drop_output()
        return _FAILED
    return _DONE


# --- commands ------------------------------------------------------------------------------------


def _create(driver: Driver, arguments: argparse.Namespace) -> None:
    parent = arguments.parent_id or arguments.parent_option or ""
    driver.create(arguments.id, parent)
    _say(arguments, {"id": arguments.id, "parent": parent}, "")


def _get(driver: Driver, arguments: argparse.Namespace) -> None:
    with ExitStack() as unsaid:
        with in_one_piece():
            path = driver.get(arguments.id, arguments.label)
            unsaid.callback(driver.put, arguments.id)
        _say(arguments, {"id": arguments.id, "path": path}, path)
        unsaid.pop_all()  # somebody knows of it now


def _put(driver: Driver, arguments: argparse.Namespace) -> None:
    _check_exists(driver, arguments.id)
    with in_one_piece():
        driver.put(arguments.id)
    _say(arguments, {"id": arguments.id}, "")


def _diff(driver: Driver, arguments: argparse.Namespace) -> None:
    parent = _parent(driver, arguments)
    with ExitStack() as held:
        if arguments.output in (None, "-"):
            if standard_output().isatty():
                raise _UsageError("a tar is no sight for a terminal: redirect it, or use -o FILE")
            output: BinaryIO = standard_output().buffer
            stream = held.enter_context(driver.diff(arguments.id, parent))
        else:
            # The layer first: no empty file when there is no such layer.
            stream = held.enter_context(driver.diff(arguments.id, parent))
            output = held.enter_context(open(arguments.output, "wb"))
        shutil.copyfileobj(stream, output, _PIECE)
        output.flush()


def _changes(driver: Driver, arguments: argparse.Namespace) -> None:
    changes = driver.changes(arguments.id, _parent(driver, arguments))
    _say(
        arguments,
        [{"path": change.path, "kind": change.kind.name.lower()} for change in changes],
        "\n".join(f"{change.kind} {_one_line(change.path)}" for change in changes),
    )


def _apply(driver: Driver, arguments: argparse.Namespace) -> None:
    parent = _parent(driver, arguments)
    with ExitStack() as held:
        if arguments.file in (None, "-"):
            stdin = standard_input()
            if stdin.isatty():
                raise _UsageError("give the tar as FILE or on standard input")
            source: BinaryIO = stdin.buffer
        else:
            source = held.enter_context(open(arguments.file, "rb"))
        size = driver.apply_diff(arguments.id, parent, _Uncompressed(source))
    _say(arguments, {"id": arguments.id, "size": size}, str(size))


def _size(driver: Driver, arguments: argparse.Namespace) -> None:
    size = driver.diff_size(arguments.id, _parent(driver, arguments))
    _say(arguments, {"id": arguments.id, "size": size}, str(size))


def _remove(driver: Driver, arguments: argparse.Namespace) -> None:
    for layer_id in arguments.ids:
        if not driver.exists(layer_id):
            print(f"aufs-driver: no such layer: {layer_id}; nothing to remove", file=sys.stderr)
        driver.remove(layer_id)
    _say(arguments, {"removed": arguments.ids}, "")


def _list(driver: Driver, arguments: argparse.Namespace) -> None:
    layers = []
    for layer in driver.list_layers():
        with contextlib.suppress(LayerNotFoundError):  # removed a moment ago
            layers.append({"id": layer, "parents": list(driver.parents(layer))})
    _say(arguments, layers, "\n".join(str(layer["id"]) for layer in layers))


def _status(driver: Driver, arguments: argparse.Namespace) -> None:
    status = driver.status()
    _say(arguments, dict(status), "\n".join(f"{title}: {value}" for title, value in status))


def _cleanup(driver: Driver, arguments: argparse.Namespace) -> None:
    driver.cleanup()
    _say(arguments, {}, "")


# --- reading and printing ------------------------------------------------------------------------


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Uncompressed:
    """A tar being read; one that is compressed is refused by name, before anything is written."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._head = b""
        while len(self._head) < 10 and (more := source.read(10 - len(self._head))):
            self._head += more
        for magic, name, tool in _MAGICS:
            if self._head.startswith(magic):
                _refuse_compressed(name, tool)
        if _BZIP2.match(self._head):
            _refuse_compressed("bzip2", "bunzip2")
        if int.from_bytes(self._head[:4], "little") in _ZSTD_SKIPPABLE:
            _refuse_compressed("zstd", "unzstd")

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, none only at the end."""
        if self._head:
            piece, self._head = self._head[:size], self._head[size:]
            return piece
        return self._source.read(size)


def _refuse_compressed(name: str, tool: str) -> NoReturn:
    raise ValueError(f"the layer is compressed with {name}: unpack it first, as with {tool}")


def _parent(driver: Driver, arguments: argparse.Namespace) -> str:
    """Return the parent that was asked for, else the layer's own."""
    if arguments.parent is not None:
        parent = arguments.parent
        return parent if isinstance(parent, str) else ""
    return next(iter(driver.parents(arguments.id)), "")


def _check_exists(driver: Driver, layer_id: str) -> None:
    # The driver takes a put of anything; a person has mistyped.
    driver.parents(layer_id)


def _check_root(arguments: argparse.Namespace) -> None:
    # Who looks for layers in a place that is not there has mistyped it, and wants none made.
    if arguments.command is not _create and not os.path.exists(arguments.root):
        raise NotAStoreError(f"{arguments.root}: no layers are kept there, it does not exist")


def _say(arguments: argparse.Namespace, value: object, text: str) -> None:
    if arguments.json:
        text = json.dumps(value, indent=2)
    if text:
        output = standard_output()
        output.flush()
        output.buffer.write(os.fsencode(text) + b"\n")
        output.flush()


def _one_line(path: str) -> str:
    """Write a path so that it is one line whatever its name holds."""
    return "".join(c if c.isprintable() or c >= "\udc80" else repr(c)[1:-1] for c in path)


def _explain(error: Exception) -> str:
    """Say in one line what is wrong, with the errno's symbol where there is one."""
    number = error.errno if isinstance(error, OSError) else None
    symbol = f" ({errno.errorcode[number]})" if number and number in errno.errorcode else ""
    if isinstance(error, DriverError) or not isinstance(error, OSError):
        text = str(error)
        return text if symbol.strip() in text else text + symbol
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}{symbol}"


# --- arguments -----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aufs-driver",
        description="Keep the layers of container images, and mount them as container roots.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(parser, after=False)
    commands = parser.add_subparsers(
        prog="aufs-driver", title="commands", metavar="COMMAND", required=True
    )

    def command(
        name: str,
        run: Callable[[Driver, argparse.Namespace], None],
        text: str,
        aliases: Sequence[str] = (),
        *,
        layer: str = "id",
        answers: bool = False,
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text + ".", aliases=aliases, allow_abbrev=False
        )
        _add_common(sub, after=True, short=run is not _diff)
        if layer == "id":
            sub.add_argument("id", metavar="ID", help="the layer")
        sub.set_defaults(command=run, answers=answers, late=None)
        return sub

    def parent(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--parent",
            metavar="ID",
            help="the layer to compare with (default: its own parent; '' for none)",
        )

    sub = command("create", _create, "make an empty layer")
    sub.add_argument("parent_id", metavar="PARENT", nargs="?", help="the layer below it")
    sub.add_argument("--parent", metavar="PARENT", dest="parent_option", help="the same")
    sub.set_defaults(late="parent_id")
    sub = command("get", _get, "mount a layer and print where it is", ["mount"], answers=True)
    sub.add_argument("--label", default="", help="SELinux label of the mount")
    command("put", _put, "unmount a layer", ["umount"])
    sub = command("diff", _diff, "write what a layer changes as a tar")
    parent(sub)
    sub.add_argument("-o", "--output", metavar="FILE", help="write there, not to standard output")
    parent(command("changes", _changes, "list what a layer changes", answers=True))
    text = "unpack an uncompressed layer tar into a layer, print its size"
    sub = command("apply", _apply, text, answers=True)
    parent(sub)
    sub.add_argument("file", metavar="FILE", nargs="?", help="the tar; - or none is stdin")
    sub.set_defaults(late="file")
    text = "print the size of what a layer changes, in bytes"
    parent(command("size", _size, text, answers=True))
    sub = command("remove", _remove, "unmount and delete layers", layer="")
    sub.add_argument("ids", metavar="ID", nargs="+", help="the layers")
    sub.set_defaults(late="ids")
    command("list", _list, "list the layers", layer="", answers=True)
    command("status", _status, "tell about the store", layer="", answers=True)
    command("cleanup", _cleanup, "unmount everything below the root", layer="")
    return parser


def _add_common(parser: argparse.ArgumentParser, *, after: bool, short: bool = True) -> None:
    """Add the options that may stand before and after the command."""

    # SUPPRESS: what stood before the command must not be overwritten by a default.
    def default(*, value: object) -> object:
        return argparse.SUPPRESS if after else value

    parser.add_argument(
        "--root", metavar="DIR", default=default(value=None), help="where the layers are kept"
    )
    parser.add_argument(
        *(["-o"] if short else []),
        "--option",
        action="append",
        metavar="KEY=VALUE",
        dest="options_after" if after else "options_before",
        default=default(value=[]),
        help="driver option, such as aufs.mountopt=noatime; may be repeated",
    )
    parser.add_argument(
        "--json", action="store_true", default=default(value=False), help="print JSON"
    )


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    arguments, rest = parser.parse_known_args(argv)
    _take_late(arguments, rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if not arguments.root:
        given = arguments.root is not None
        parser.error("--root is empty" if given else "the following arguments are required: --root")
    if arguments.command is _create and None not in (arguments.parent_id, arguments.parent_option):
        parser.error("the parent is given twice, as PARENT and with --parent")
    arguments.options = [*arguments.options_before, *getattr(arguments, "options_after", ())]
    return arguments


def _take_late(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Give an argument that stands behind an option to whom it belongs.

    argparse takes an argument that may be missing for missing as soon as an option comes first.
    """
    if arguments.late is None or any(text.startswith("-") and text != "-" for text in rest):
        return
    taken = getattr(arguments, arguments.late)
    if isinstance(taken, list):
        taken += rest
        rest.clear()
    elif taken is None and rest:
        setattr(arguments, arguments.late, rest.pop(0))


if __name__ == "__main__":
    sys.exit(main())
