"""Negotiating with the kernel ourselves.

The first request on a new mount is INIT: the kernel says which features it knows, the answer says
which of them are wanted. libfuse would answer it with a choice of its own, of which pyfuse3 lets
little be changed. So the daemon answers the kernel's INIT itself (:func:`negotiate`).

libfuse insists on an INIT all the same, and gets a small one, over a socket that looks like the
device to it. While it tells ``Operations.init`` about that, the device takes the place of the
socket, under the same number (:class:`Introduction`). libfuse's answer then goes to the kernel,
under the number of the INIT that was answered before; the kernel knows of no such request any more
(ENOENT), and libfuse takes that for a request that was given up::

    kernel ── INIT ──▶ daemon ── features ──▶ kernel
                       daemon ── INIT ──▶ libfuse ─▶ Operations.init: the device replaces the socket
    kernel ──────────── requests ──────▶ libfuse

Should that ever fail with another libfuse, ``init=pyfuse3`` leaves INIT to it: every feature below
is a gain, none is a condition. The structures are those of the kernel's ``linux/fuse.h``.
"""

from __future__ import annotations

import enum
import errno
import mmap
import os
import select
import socket
import struct
from typing import Final, NamedTuple

_REQUEST: Final = struct.Struct("=IIQQIIIHH")  # struct fuse_in_header
_REPLY: Final = struct.Struct("=IiQ")  # struct fuse_out_header
_INIT: Final = struct.Struct("=IIII")  # struct fuse_init_in, as far as every kernel has it
_INIT_REPLY: Final = struct.Struct("=IIIIHHIIHH32x")  # struct fuse_init_out

_OPCODE_INIT: Final = 26
_MAJOR: Final = 7
_MINOR: Final = 31  # Linux 5.4; what later versions add are features, and they are asked for singly
_LARGEST_WRITE: Final = 1 << 20  # bytes: what the buffers of libfuse hold
_PAGES: Final = _LARGEST_WRITE // mmap.PAGESIZE
_PATIENCE_MS: Final = 5000


class HandshakeError(OSError):
    """The handshake failed; leave it to libfuse."""


class Feature(enum.IntFlag):
    """What kernel and filesystem can agree on (``FUSE_INIT_FLAGS`` of ``linux/fuse.h``)."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23


# Wanted by every mount.
_ALWAYS: Final = (
    Feature.ASYNC_READ  # a page need not wait for the one before
    | Feature.ATOMIC_O_TRUNC  # open with O_TRUNC is one request: a copy-up then copies no data
    | Feature.BIG_WRITES
    | Feature.DONT_MASK  # below a default ACL the umask does not count, and only we can know
    | Feature.DO_READDIRPLUS  # a listing brings the attributes along
    | Feature.ASYNC_DIO
    | Feature.PARALLEL_DIROPS  # lookups in one directory do not queue up
    | Feature.MAX_PAGES  # reads and writes of up to 1 MiB
)
# Told to libfuse: what pyfuse3 demands, and what makes its buffers large enough.
_FOR_LIBFUSE: Final = (
    Feature.ASYNC_READ
    | Feature.ATOMIC_O_TRUNC
    | Feature.BIG_WRITES
    | Feature.DO_READDIRPLUS
    | Feature.MAX_PAGES
)


def features(*, trusting: bool, acl: bool, links_may_part: bool) -> Feature:
    """Return what a mount wants of the kernel.

    Args:
        trusting: nobody else changes the branches (``udba=none``).
        acl: POSIX ACLs count.
        links_may_part: a copy-up may make one file two (``noplink``).
    """
    wanted = _ALWAYS
    if acl:
        wanted |= Feature.POSIX_ACL
    if trusting:
        # The text of a link never changes; another link at its place is another node, but only
        # when everybody's changes pass through here.
        wanted |= Feature.CACHE_SYMLINKS
    if not trusting or links_may_part:
        # Drop the cached content whenever a changed mtime is seen. Where all changes pass through
        # the mount, that would only throw away what was just written.
        wanted |= Feature.AUTO_INVAL_DATA
    return wanted


class Agreement(NamedTuple):
    """What was agreed on with the kernel.

    Attributes:
        unique: number of the kernel's INIT request; it will never be pending again.
        read_ahead: how much the kernel reads ahead, in bytes.
        features: what the kernel will do.
    """

    unique: int
    read_ahead: int
    features: Feature


def negotiate(device: int, wanted: Feature) -> Agreement:
    """Take the kernel's INIT from a new mount and answer it.

    Args:
        device: the FUSE descriptor.
        wanted: features to ask for; the kernel's own limits what comes of it.

    Raises:
        HandshakeError: no INIT came, or one that cannot be understood.
        OSError: the device cannot be read or written.
    """
    if not _readable(device):
        raise HandshakeError(errno.ETIMEDOUT, "the kernel sent no INIT")
    request = os.read(device, _LARGEST_WRITE)
    try:
        _, opcode, unique, *_ = _REQUEST.unpack_from(request)
        major, minor, read_ahead, offered = _INIT.unpack_from(request, _REQUEST.size)
    except struct.error as error:
        raise HandshakeError(errno.EPROTO, "the kernel's INIT is too short") from error
    if opcode != _OPCODE_INIT or major != _MAJOR or minor < _MINOR:
        raise HandshakeError(errno.EPROTO, f"INIT of protocol {major}.{minor} (request {opcode})")
    agreed = wanted & Feature(offered & int(wanted))
    answer = _INIT_REPLY.pack(
        _MAJOR, _MINOR, read_ahead, agreed, 0, 0, _LARGEST_WRITE, 1, _PAGES, 0
    )
    os.write(device, _REPLY.pack(_REPLY.size + len(answer), 0, unique) + answer)
    return Agreement(unique, read_ahead, agreed)


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(_PATIENCE_MS))


class Introduction:
    """A stand-in for the device, on which libfuse gets its INIT, and which the device replaces.

    Args:
        device: the FUSE descriptor, after :func:`negotiate`; belongs to this object from now on.
        agreement: what that returned.

    Attributes:
        fd: the number of the descriptor that libfuse is given, and closes in the end.
        done: the device has taken its place.
    """

    def __init__(self, device: int, agreement: Agreement) -> None:
        self.done = False
        self._device = device
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fd = theirs.detach()
        shown = _FOR_LIBFUSE | agreement.features & Feature.POSIX_ACL
        body = _INIT.pack(_MAJOR, _MINOR, agreement.read_ahead, shown)
        header = _REQUEST.pack(
            _REQUEST.size + len(body), _OPCODE_INIT, agreement.unique, 0, 0, 0, 0, 0, 0
        )
        with ours:  # what was sent can be read when the sender is gone
            ours.send(header + body)

    def finish(self) -> None:
        """Put the device in the place of the socket: called by libfuse's INIT handler."""
        os.dup2(self._device, self.fd, inheritable=False)
        os.close(self._device)
        self.done = True

    def close(self) -> None:
        """Close the device, unless libfuse has it now."""
        if not self.done:
            os.close(self._device)
