"""The image of the demo: three layers, each written down as a list and made into a tar.

A layer tar is an ordinary tar. Three conventions make it a layer: an entry replaces what the layers
below have under the same name, an empty file ``.wh.NAME`` (a whiteout) deletes NAME, and an empty
file ``.wh..wh..opq`` in a directory (an opaque mark) hides everything that the layers below have
there. The three layers are chosen so that everything a real image does occurs once.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

# The one program inside the container. It is static, so the image needs no libraries.
BUSYBOX = "/bin/busybox"
_APPLETS = ("cat", "chmod", "find", "grep", "id", "ln", "ls", "mkdir", "mv", "rm", "sh", "stat")
_TIME = 1_700_000_000  # seconds; every entry's, so that the demo's tars are always the same

# A file name is any bytes but NUL and "/". The byte 0xff, no UTF-8, is this surrogate in Python.
ODD_NAME = "srv/an odd\nname, \u00fc\udcff"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a layer.

    Attributes:
        name: path below the root, without a leading slash.
        kind: as in `tarfile`: a file unless said otherwise.
        text: content of a file, or what a link points to.
        device: major and minor number.
        note: why the entry is there, for the listing.
    """

    name: str
    kind: bytes = tarfile.REGTYPE
    text: bytes | str = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, str] = field(default_factory=dict)
    note: str = ""


def directory(name: str, mode: int = 0o755, note: str = "") -> Entry:
    """Return the entry of a directory."""
    return Entry(name, tarfile.DIRTYPE, mode=mode, note=note)


def base() -> Iterator[Entry]:
    """Layer 1: a small system."""
    for name in ("bin", "dev", "etc", "home", "proc", "root", "run", "srv"):
        yield directory(name)
    yield directory("tmp", 0o1777)
    with open(BUSYBOX, "rb") as program:
        yield Entry("bin/busybox", text=program.read(), mode=0o755, note="the program")
    for applet in _APPLETS:
        yield Entry(f"bin/{applet}", tarfile.SYMTYPE, "busybox", 0o777)
    yield Entry("etc/passwd", text=b"root::0:0::/root:/bin/sh\nguest::1000:1000::/home/guest:\n")
    yield Entry("etc/motd", text=b"Welcome to layer 1.\n")
    yield Entry("etc/issue", text=b"An old notice.\n", note="layer 3 deletes it")
    yield directory("srv/data", note="layer 3 replaces it")
    yield Entry("srv/data/one", text=b"1\n")
    yield Entry("srv/data/two", text=b"2\n")
    yield Entry("home/guest", tarfile.DIRTYPE, uid=1000, gid=1000, mode=0o755, note="not root's")


def tools() -> Iterator[Entry]:
    """Layer 2: adds and changes files."""
    yield directory("usr")
    yield directory("usr/bin")
    yield Entry(
        "usr/bin/hello", text=b"#!/bin/sh\necho Hello from a script in layer 2.\n", mode=0o755
    )
    yield Entry("etc/motd", text=b"Welcome to layer 2.\n", note="instead of the one in layer 1")
    yield Entry("etc/hosts", text=b"127.0.0.1 localhost\n")


def application() -> Iterator[Entry]:
    """Layer 3: deletes, replaces, links, and everything unusual."""
    yield Entry("etc/.wh.issue", mode=0, note="whiteout: deletes etc/issue")
    yield directory("srv/data")
    yield Entry("srv/data/.wh..wh..opq", mode=0, note="opaque mark: nothing from below shows here")
    yield Entry("srv/data/three", text=b"3\n")
    yield Entry("srv/first", text=b"one file, two names\n")
    yield Entry("srv/second", tarfile.LNKTYPE, "srv/first", note="hard link")
    yield Entry("srv/labelled", text=b"x\n", xattrs={"user.origin": "layer 3"}, note="an xattr")
    yield Entry("run/queue", tarfile.FIFOTYPE, note="fifo")
    yield Entry("dev/null", tarfile.CHRTYPE, mode=0o666, device=(1, 3), note="device")
    yield Entry(ODD_NAME, text=b"odd\n", note="newline, comma, u-umlaut, a byte that is no text")
    yield Entry("usr/bin/as-root", text=b"#!/bin/sh\nid\n", mode=0o4755, note="setuid")


LAYERS: dict[str, Callable[[], Iterator[Entry]]] = {
    "base": base,
    "tools": tools,
    "application": application,
}


def layer_tar(entries: Iterable[Entry]) -> bytes:
    """Return a layer as an uncompressed tar."""
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape"
    ) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode, info.mtime = entry.kind, entry.mode, _TIME
            info.uid, info.gid = entry.uid, entry.gid
            info.devmajor, info.devminor = entry.device
            info.pax_headers = {f"SCHILY.xattr.{k}": v for k, v in entry.xattrs.items()}
            if isinstance(entry.text, str):
                info.linkname = entry.text
                tar.addfile(info)
            else:
                info.size = len(entry.text)
                tar.addfile(info, io.BytesIO(entry.text))
    return buffer.getvalue()


def not_as_written(layer: str, branch: str) -> Iterator[str]:
    """Yield a line for everything of a layer that is not in its branch as the tar says.

    As root there is nothing. An ordinary user may not make devices or give files away.

    Args:
        layer: a key of `LAYERS`.
        branch: the directory it was unpacked into.
    """
    for entry in LAYERS[layer]():
        path = os.path.join(branch, entry.name)
        shown = printable(entry.name)
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            yield f"{shown}: missing ({entry.note or 'not allowed here'})"
            continue
        if (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
            yield (
                f"{shown}: owner {status.st_uid}:{status.st_gid}, "
                f"the layer says {entry.uid}:{entry.gid}"
            )
        if entry.kind != tarfile.SYMTYPE and status.st_mode & 0o6000 != entry.mode & 0o6000:
            yield f"{shown}: mode {status.st_mode & 0o7777:o}, the layer says {entry.mode:o}"
        for key, value in entry.xattrs.items():
            if key not in os.listxattr(path, follow_symlinks=False):
                yield f"{shown}: no attribute {key}={value}"


def printable(name: str) -> str:
    """Return a file name as one line of text, whatever bytes it holds."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in name
    ).replace("\\udc", "\\x")
