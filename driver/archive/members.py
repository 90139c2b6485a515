"""One member of a layer tar as bytes: header block, and a PAX header in front where one is needed.

A PAX header is written only for what the block cannot hold: names over 100 bytes or beyond ASCII,
content of 8 GiB and more, large ids, times before 1970 or after 2242, extended attributes. The same
member always gives the same bytes (driver.md 7.2).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from driver.archive import pax
from driver.archive.headers import build_header, octal_fits, padding

FILE = b"0"
LINK = b"1"
SYMLINK = b"2"
CHAR = b"3"
BLOCK = b"4"
DIRECTORY = b"5"
FIFO = b"6"

_NAME_SIZE = 100
_ID_WIDTH = 8
_LONG_WIDTH = 12


@dataclass(slots=True)
class Member:
    """What the header says.

    Attributes:
        name: relative to the root of the layer; a directory's ends in ``/``.
        kind: one of the constants of this module.
        mode: permission bits, 12 of them.
        uid: owner as the container numbers it.
        gid: group as the container numbers it.
        mtime: whole seconds since the epoch.
        size: bytes of content that follow.
        link: target of a hard or symbolic link.
        major: of a device, else 0.
        minor: of a device, else 0.
        xattrs: names and values.
    """

    name: bytes
    kind: bytes
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return everything that stands in front of the content."""
        header = build_header(
            self.name,
            self.kind,
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            size=self.size,
            mtime=self.mtime,
            link=self.link,
            major=self.major,
            minor=self.minor,
        )
        records = self._records()
        if not records:
            return header
        body = pax.format_records(sorted(records.items()))
        base = self.name.rstrip(b"/").rpartition(b"/")[2]
        extension = build_header(b"PaxHeaders.0/" + base, b"x", mode=0o644, size=len(body))
        return b"".join((extension, body, bytes(padding(len(body))), header))

    def _records(self) -> dict[bytes, bytes]:
        records = {pax.xattr_key(key): value for key, value in self.xattrs.items()}
        if not _text_fits(self.name):
            records[b"path"] = self.name
        if not _text_fits(self.link):
            records[b"linkpath"] = self.link
        for key, value, width in (
            (b"uid", self.uid, _ID_WIDTH),
            (b"gid", self.gid, _ID_WIDTH),
            (b"size", self.size, _LONG_WIDTH),
            (b"mtime", self.mtime, _LONG_WIDTH),
        ):
            if not octal_fits(value, width):
                records[key] = b"%d" % value
        return records


def _text_fits(text: bytes) -> bool:
    return len(text) <= _NAME_SIZE and text.isascii()
