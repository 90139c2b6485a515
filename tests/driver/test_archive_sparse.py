"""Reading sparse files, in the four forms of GNU tar (driver.md 7.3)."""

import os
import struct
import subprocess
from pathlib import Path

import pytest

from driver.archive.reader import LayerReader
from driver.archive.sparse import MAX_SEGMENTS
from driver.errors import InvalidArchiveError
from tests.support.layers import EXTRACTORS, unpack
from tests.support.raw_tars import END, block_of, extended, raw, read, seal


def make_sparse(path: Path, size: int, data: dict[int, bytes]) -> None:
    with path.open("wb") as file:
        for offset, piece in data.items():
            file.seek(offset)
            file.write(piece)
        file.truncate(size)


SPARSE = {
    "hole first": (1 << 20, {900_000: b"end"}),
    "hole last": (1 << 20, {0: b"start"}),
    "only a hole": (1 << 20, {}),
    "many holes": (1 << 23, dict.fromkeys(range(0, 1 << 23, 1 << 16), b"x" * 100)),
}


@pytest.mark.parametrize("version", ["gnu", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize("shape", SPARSE)
def test_sparse_files_of_gnu_tar(tmp_path: Path, version: str, shape: str) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    source.mkdir()
    root.mkdir()
    make_sparse(source / "sparse", *SPARSE[shape])
    (source / "after").write_bytes(b"next one")
    form = ["--format=gnu"] if version == "gnu" else [f"--sparse-version={version}"]
    if version != "gnu":
        form.append("--format=posix")
    data = subprocess.run(
        ["tar", "-c", "-S", "--hole-detection=seek", *form, "-C", source, "sparse", "after"],
        check=True,
        capture_output=True,
    ).stdout
    assert len(data) < SPARSE[shape][0]
    unpack(root, data)
    assert (root / "sparse").read_bytes() == (source / "sparse").read_bytes()
    assert (root / "after").read_bytes() == b"next one"
    assert os.stat(root / "sparse").st_blocks <= os.stat(source / "sparse").st_blocks + 8
    entries = read(data)
    assert [entry.name for entry in entries] == [b"sparse", b"after"]
    assert entries[0].size == SPARSE[shape][0]


def old_sparse(segments: list[tuple[int, int]], real: int, stored: int, more: int = 0) -> bytes:
    block = bytearray(raw(b"s", b"S", magic=b"ustar  \0", size=b"%011o" % stored))
    for index, (offset, length) in enumerate(segments):
        struct.pack_into("12s12s", block, 386 + 24 * index, b"%011o" % offset, b"%011o" % length)
    block[482] = more
    block[483:495] = b"%011o\0" % real
    return seal(block)


def sparse_1_0(text: bytes, real: int = 100, stored: int | None = None) -> bytes:
    records = extended(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"s"),
        (b"GNU.sparse.realsize", b"%d" % real),
    )
    body = block_of(text)
    size = len(body) if stored is None else stored
    return records + raw(size=b"%011o" % size) + body


@pytest.mark.parametrize(
    "data",
    [
        old_sparse([(0, 512)], 100, 512) + bytes(512),  # ends behind the file
        old_sparse([(512, 512), (0, 512)], 2048, 1024) + bytes(1024),  # backwards
        old_sparse([(0, 512), (100, 512)], 2048, 1024) + bytes(1024),  # overlap
        old_sparse([(0, 1024)], 2048, 512) + bytes(512),  # more data than stored
        old_sparse([(0, 8**11 - 1)], 8**11 - 1, 512) + bytes(512),
        old_sparse([(0, 1)], 10, 1, more=1) + (b"00000000001\0" * 42 + b"\1" * 8) * 3,
        sparse_1_0(b"1\n0\n101\n"),
        sparse_1_0(b"1\n0\n"),
        sparse_1_0(b"-1\n"),
        sparse_1_0(b"x\n"),
        sparse_1_0(b"\n"),
        sparse_1_0(b"1" * 600),
        sparse_1_0(b"%d\n" % (MAX_SEGMENTS + 1)),
        sparse_1_0(b"99999999999999999999\n"),
        sparse_1_0(b"1\n0\n5\n", stored=0),
        sparse_1_0(b"1\n0\n5\n", stored=512),
        extended((b"GNU.sparse.size", b"9"), (b"GNU.sparse.offset", b"1")) + raw(),
        extended((b"GNU.sparse.size", b"9"), (b"GNU.sparse.numbytes", b"1")) + raw(),
        extended((b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"0")) + raw(),
        extended((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,5,2,3")) + raw(size=b"10"),
        extended((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,5,")) + raw(size=b"10"),
    ],
    ids=str,
)
def test_malformed_sparse_maps(data: bytes, tmp_path: Path) -> None:
    for extract in EXTRACTORS:
        with pytest.raises(InvalidArchiveError):
            extract(tmp_path, data + END)


def test_sparse_extension_blocks_have_a_limit() -> None:
    class Chain:
        """A header whose map goes on for ever."""

        def __init__(self) -> None:
            self.first = True
            slots = b"".join(b"%011o\0" % 1 for _ in range(42))
            self.more = (slots + b"\1" + bytes(7)) * 100

        def read(self, size: int, /) -> bytes:
            if self.first:
                self.first = False
                return old_sparse([(0, 1)], 10, 1, more=1)
            return self.more

    with pytest.raises(InvalidArchiveError, match="too long"):
        list(LayerReader(Chain()))


def test_sparse_file_of_impossible_size(tmp_path: Path) -> None:
    data = sparse_1_0(b"0\n", real=(1 << 63) - 1) + END
    with pytest.raises(OSError):
        unpack(tmp_path, data)
