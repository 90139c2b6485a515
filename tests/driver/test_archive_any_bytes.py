"""Tars of random bytes, and damaged ones: the agreed errors, and nothing outside of the root."""

import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.errors import ArchiveError, InvalidArchiveError
from tests.support.effort import examples
from tests.support.layers import EXTRACTORS, Layer, snapshot
from tests.support.raw_tars import END, extended, raw, read, seal

SEED = Layer(tarfile.GNU_FORMAT).directory("a").file("a/b", b"1").link("c", "a/b").bytes()[:2560]
FUZZ = examples(80)


def harmless(tmp_path: Path, data: bytes) -> None:
    """Extract whatever it is; nothing but the agreed errors, nothing outside of the root."""
    fence = tmp_path / "fence"
    fence.mkdir(exist_ok=True)
    (fence / "witness").write_bytes(b"w")
    before = snapshot(fence)
    for extract in EXTRACTORS:
        root = fence / "root"
        root.mkdir()
        try:
            extract(root, data)
        except (ArchiveError, OSError):
            pass
        finally:
            subprocess.run(["rm", "-rf", root], check=True)
    assert snapshot(fence) == before


@FUZZ
@given(data=st.binary(max_size=3000))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    harmless(tmp_path, data)


@FUZZ
@given(data=st.data())
def test_damaged_headers(tmp_path: Path, data: st.DataObject) -> None:
    """Change fields at random, then make the checksum right again."""
    archive = bytearray(SEED)
    for _ in range(data.draw(st.integers(1, 6))):
        start = 512 * data.draw(st.integers(0, 3))
        at = data.draw(st.integers(0, 511))
        piece = data.draw(st.binary(min_size=1, max_size=12))[: 512 - at]
        block = bytearray(archive[start : start + 512])
        block[at : at + len(piece)] = piece
        archive[start : start + 512] = seal(block)
    harmless(tmp_path, bytes(archive) + END)


NAMES = st.lists(
    st.sampled_from([b"a", b"b", b"..", b".", b"", b".wh.a", b".wh..wh..opq", b".wh..wh.plnk"]),
    max_size=4,
).map(b"/".join)


@FUZZ
@given(
    members=st.lists(
        st.tuples(
            NAMES,
            st.sampled_from([b"0", b"1", b"2", b"5", b"6", b"7", b"3"]),
            NAMES,
            st.sampled_from([b"", b"/", b"/../", b"../"]),
        ),
        max_size=12,
    )
)
def test_any_sequence_of_members(
    tmp_path: Path, members: list[tuple[bytes, bytes, bytes, bytes]]
) -> None:
    """Links, directories and whiteouts over each other, in any order."""
    archive = b"".join(
        raw(name, kind, link=front + link, mode=b"0755") for name, kind, link, front in members
    )
    harmless(tmp_path, archive + END)


@FUZZ
@given(
    records=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"path",
                    b"linkpath",
                    b"size",
                    b"uid",
                    b"mtime",
                    b"GNU.sparse.major",
                    b"GNU.sparse.minor",
                    b"GNU.sparse.map",
                    b"GNU.sparse.size",
                    b"GNU.sparse.realsize",
                    b"GNU.sparse.offset",
                    b"GNU.sparse.numbytes",
                    b"GNU.sparse.name",
                    b"SCHILY.xattr.",
                    b"SCHILY.xattr.user.a",
                    b"SCHILY.xattr.security.capability",
                ]
            ),
            st.one_of(st.sampled_from([b"0", b"1", b"512", b"0,1"]), st.binary(max_size=20)),
        ),
        max_size=8,
    ),
    kind=st.sampled_from([b"0", b"1", b"2", b"5", b"S"]),
)
def test_any_records(tmp_path: Path, records: list[tuple[bytes, bytes]], kind: bytes) -> None:
    body = extended(*records) + raw(kind=kind, size=b"1000", link=b"x", mode=b"0700")
    harmless(tmp_path, body + bytes(512) + END)


def test_a_large_random_soup_is_refused_quickly() -> None:
    noise = random.Random(1).randbytes(1 << 20)
    with pytest.raises(InvalidArchiveError):
        read(noise)
