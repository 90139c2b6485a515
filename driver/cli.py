"""``aufs-driver``: the layer store at the command line.

Arguments in, text or JSON out; everything else is the driver's (`driver.driver`). Each run is a
process of its own, and use counts live in a process: so ``get`` leaves the layer mounted for
others, ``put`` takes the mount away however often it was got, and ``mount`` and ``umount`` are only
other names for the two.

Exit status: 0 done, 1 it did not work (one line on stderr says why), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import BinaryIO, NoReturn, Protocol

from driver.driver import Driver, init
from driver.errors import DriverError

_DONE, _FAILED = 0, 1
_PIECE = 1 << 20  # bytes copied at a time

_MAGICS = (
    (b"\x1f\x8b\x08", "gzip", "gunzip"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\x00", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
)
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
command. Exit status: 0 done, 1 failed, 2 wrong usage.
"""


class _UsageError(Exception):
    """What was asked for makes no sense; ``str()`` is one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        argv: the arguments without the program's name; None takes the process's own.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="aufs-driver: %(message)s", level=logging.WARNING)
    try:
        driver = init(arguments.root, arguments.option or ())
        arguments.command(driver, arguments)
        sys.stdout.flush()
    except _UsageError as error:
        parser.error(str(error))
    except BrokenPipeError:
        # The reader has seen enough; nothing more can be said to it, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _FAILED
    except (DriverError, OSError, ValueError) as error:
        print(f"aufs-driver: {_explain(error)}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return 128 + 2
    return _DONE


# --- commands ------------------------------------------------------------------------------------


def _create(driver: Driver, arguments: argparse.Namespace) -> None:
    parent = arguments.parent_id or arguments.parent_option or ""
    driver.create(arguments.id, parent)
    _say(arguments, {"id": arguments.id, "parent": parent}, "")


def _get(driver: Driver, arguments: argparse.Namespace) -> None:
    path = driver.get(arguments.id, arguments.label)
    _say(arguments, {"id": arguments.id, "path": path}, path)


def _put(driver: Driver, arguments: argparse.Namespace) -> None:
    _check_exists(driver, arguments.id)
    driver.put(arguments.id)
    _say(arguments, {"id": arguments.id}, "")


def _diff(driver: Driver, arguments: argparse.Namespace) -> None:
    parent = _parent(driver, arguments)
    with ExitStack() as held:
        if arguments.output in (None, "-"):
            if sys.stdout.isatty():
                raise _UsageError("a tar is no sight for a terminal: redirect it, or use -o FILE")
            output: BinaryIO = sys.stdout.buffer
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
        if arguments.file == "-":
            if sys.stdin.isatty():
                raise _UsageError("give the tar as FILE or on standard input")
            source: BinaryIO = sys.stdin.buffer
        else:
            source = held.enter_context(open(arguments.file, "rb"))
        size = driver.apply_diff(arguments.id, parent, _Uncompressed(source))
    _say(arguments, {"id": arguments.id, "size": size}, str(size))


def _size(driver: Driver, arguments: argparse.Namespace) -> None:
    size = driver.diff_size(arguments.id, _parent(driver, arguments))
    _say(arguments, {"id": arguments.id, "size": size}, str(size))


def _remove(driver: Driver, arguments: argparse.Namespace) -> None:
    for layer_id in arguments.ids:
        driver.remove(layer_id)
    _say(arguments, {"removed": arguments.ids}, "")


def _list(driver: Driver, arguments: argparse.Namespace) -> None:
    layers = driver.list_layers()
    _say(
        arguments,
        [{"id": layer, "parents": list(driver.parents(layer))} for layer in layers],
        "\n".join(layers),
    )


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
        while len(self._head) < 6 and (more := source.read(6 - len(self._head))):
            self._head += more
        for magic, name, tool in _MAGICS:
            if self._head.startswith(magic):
                _refuse_compressed(name, tool)
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


def _say(arguments: argparse.Namespace, value: object, text: str) -> None:
    if arguments.json:
        print(json.dumps(value, indent=2))
    elif text:
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(text) + b"\n")


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
    parser.add_argument("--root", metavar="DIR", required=True, help="where the layers are kept")
    parser.add_argument(
        "-o",
        "--option",
        action="append",
        metavar="KEY=VALUE",
        help="driver option, such as aufs.mountopt=noatime; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str,
        run: Callable[[Driver, argparse.Namespace], None],
        text: str,
        aliases: Sequence[str] = (),
        layer: str = "id",
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text + ".", aliases=aliases, allow_abbrev=False
        )
        # SUPPRESS: what stood before the command must not be overwritten by a default.
        sub.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON"
        )
        if layer == "id":
            sub.add_argument("id", metavar="ID", help="the layer")
        sub.set_defaults(command=run)
        return sub

    def parent(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--parent",
            metavar="ID",
            help="the layer to compare with (default: its own parent; '' for none)",
        )

    sub = command("create", _create, "make an empty layer")
    sub.add_argument(
        "parent_id", metavar="PARENT", nargs="?", default="", help="the layer below it"
    )
    sub.add_argument("--parent", metavar="PARENT", dest="parent_option", help="the same")
    sub = command("get", _get, "mount a layer and print where it is", ["mount"])
    sub.add_argument("--label", default="", help="SELinux label of the mount")
    command("put", _put, "unmount a layer", ["umount"])
    sub = command("diff", _diff, "write what a layer changes as a tar")
    parent(sub)
    sub.add_argument("-o", "--output", metavar="FILE", help="write there, not to standard output")
    parent(command("changes", _changes, "list what a layer changes"))
    sub = command("apply", _apply, "unpack an uncompressed layer tar into a layer, print its size")
    parent(sub)
    sub.add_argument("file", metavar="FILE", nargs="?", default="-", help="the tar; - is stdin")
    parent(command("size", _size, "print the size of what a layer changes, in bytes"))
    sub = command("remove", _remove, "unmount and delete layers", layer="")
    sub.add_argument("ids", metavar="ID", nargs="+", help="the layers")
    command("list", _list, "list the layers", layer="")
    command("status", _status, "tell about the store", layer="")
    command("cleanup", _cleanup, "unmount everything below the root", layer="")
    return parser


if __name__ == "__main__":
    sys.exit(main())
