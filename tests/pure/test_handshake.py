"""The handshake with the kernel, with a socket in the place of the device."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from unionfs.fuse import handshake
from unionfs.fuse.handshake import (
    Agreement,
    Feature,
    HandshakeError,
    Introduction,
    features,
    negotiate,
)

# What Linux 6.18 sends: version 7.45, 128 KiB of read-ahead, flags, more flags, nothing.
MODERN = (7, 45, 0x20000, 0x73FFFFFB, 0x5FD) + (0,) * 11
HEADER = struct.Struct("=IIQQIIIHH")
SIXTEEN = struct.Struct("=16I")


def request(*body: int, opcode: int = 26) -> bytes:
    """Build a request of the kernel; its number is 2."""
    data = struct.pack(f"={len(body)}I", *body)
    return HEADER.pack(HEADER.size + len(data), opcode, 2, 0, 0, 0, 0, 0, 0) + data


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def answered(sent: bytes, wanted: Feature) -> tuple[Agreement, bytes]:
    """Return what was agreed on, and the answer."""
    kernel, device = pair()
    with kernel, device:
        kernel.send(sent)
        return negotiate(device.fileno(), wanted), kernel.recv(4096)


def test_the_answer() -> None:
    agreement, answer = answered(request(*MODERN), Feature.PARALLEL_DIROPS | Feature.MAX_PAGES)
    length, error, unique = struct.unpack_from("=IiQ", answer)
    assert (length, error, unique) == (len(answer), 0, 2)
    # The structure has had 64 bytes since version 7.23.
    assert len(answer) == 16 + 64
    major, minor, read_ahead, flags, _, write, granularity, pages, *rest = SIXTEEN.unpack_from(
        answer, 16
    )
    assert (major, minor, read_ahead) == (7, 31, 0x20000)
    assert flags == 1 << 18 | 1 << 22
    assert (write, granularity, pages) == (1 << 20, 1, 256)
    assert not any(rest)
    assert agreement == (2, 0x20000, Feature.PARALLEL_DIROPS | Feature.MAX_PAGES)


def test_nothing_is_agreed_that_the_kernel_does_not_know() -> None:
    old = request(7, 31, 4096, int(Feature.ASYNC_READ | Feature.POSIX_ACL))
    agreement, _ = answered(old, Feature.ASYNC_READ | Feature.CACHE_SYMLINKS)
    assert agreement.features == Feature.ASYNC_READ
    assert agreement.read_ahead == 4096


def test_no_feature_changes_the_form_of_requests() -> None:
    """libfuse, which has not negotiated, could not read them."""
    longer_setxattr, longer_init = 1 << 29, 1 << 30
    for number in range(8):
        wanted = features(
            trusting=bool(number & 1), acl=bool(number & 2), links_may_part=bool(number & 4)
        )
        assert not int(wanted) & (longer_setxattr | longer_init)


@pytest.mark.parametrize(
    "sent",
    [
        request(*MODERN)[:50],
        request(*MODERN, opcode=1),
        request(8, 0, 0, 0),
        request(7, 19, 0, 0),
        b"",
    ],
    ids=["cut", "another request", "another protocol", "too old", "nothing"],
)
def test_what_is_no_init_is_refused(sent: bytes) -> None:
    with pytest.raises(HandshakeError):
        answered(sent, Feature.ASYNC_READ)


def test_a_kernel_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "_PATIENCE_MS", 10)
    kernel, device = pair()
    with kernel, device, pytest.raises(HandshakeError):
        negotiate(device.fileno(), Feature.ASYNC_READ)


def test_libfuse_is_introduced_and_then_has_the_device() -> None:
    kernel, device = pair()
    with kernel:
        introduction = Introduction(
            device.detach(), Agreement(2, 4096, Feature.POSIX_ACL | Feature.CACHE_SYMLINKS)
        )
        fd = introduction.fd
        first = os.read(fd, 4096)
        length, opcode, unique, *_ = HEADER.unpack_from(first)
        assert (length, opcode, unique) == (len(first), 26, 2)
        major, _, read_ahead, flags = struct.unpack_from("=IIII", first, HEADER.size)
        assert (major, read_ahead) == (7, 4096)
        assert flags & Feature.POSIX_ACL
        assert flags & Feature.DO_READDIRPLUS
        kernel.send(b"a request")
        introduction.finish()
        introduction.close()  # has nothing to close any more
        assert os.read(fd, 4096) == b"a request"
        os.write(fd, b"an answer")
        assert kernel.recv(4096) == b"an answer"
        os.close(fd)
        assert kernel.recv(1) == b"", "the device is still open somewhere"


def test_an_introduction_that_came_to_nothing_is_closed() -> None:
    kernel, device = pair()
    with kernel:
        introduction = Introduction(device.detach(), Agreement(2, 0, Feature(0)))
        introduction.close()
        assert kernel.recv(1) == b""
        os.close(introduction.fd)
