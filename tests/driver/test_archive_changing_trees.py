"""Writing a branch as a tar while somebody changes it, or when it cannot be read."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

import pytest

from driver.archive import layer_chunks, writer
from driver.descent import Descent
from driver.errors import ArchiveError
from tests.support.layers import make, members, raw_names, written


def fill(path: Path, size: int) -> None:
    path.write_bytes(b"x" * size)


def test_large_file_that_shrinks_ends_the_stream(branch: Path) -> None:
    fill(branch / "a", 4 << 20)
    (branch / "b").touch()
    got = b""
    chunks = layer_chunks(branch)
    got += next(chunks)
    os.truncate(branch / "a", 1 << 20)
    with pytest.raises(ArchiveError, match="shrank") as caught:
        got += b"".join(chunks)
    assert caught.value.name == b"a"
    assert len(got) <= 4 << 20


def test_large_file_that_grows_is_cut(branch: Path) -> None:
    fill(branch / "a", 2 << 20)
    (branch / "b").touch()
    got = b""
    for chunk in layer_chunks(branch):
        got += chunk
        with (branch / "a").open("ab") as file:
            file.write(b"more")
    assert [(member.name, member.size) for member in members(got)] == [("a", 2 << 20), ("b", 0)]


def test_what_vanishes_is_left_out(branch: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(branch / "a", 2 << 20)
    make(branch, "b", "c/", "c/d", "e")
    chunks = layer_chunks(branch)
    got = next(chunks)
    os.unlink(branch / "b")
    (branch / "c").rename(branch / "moved")
    got += b"".join(chunks)
    assert raw_names(got) == ["a", "e"]


def test_directory_that_vanishes_when_it_is_entered(
    branch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(branch, "c/d", "e")

    def remove_it(name: bytes) -> bool:
        with contextlib.suppress(FileNotFoundError):
            (branch / "c").rename(branch.parent / "moved")
        return False

    os.setxattr(branch / "c", "user.trap", b"")
    assert raw_names(written(branch, attributes=remove_it)) == ["c/", "e"]
    assert "left out" in caplog.text


def test_file_that_becomes_a_symlink_is_not_followed(branch: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret of the host")
    make(branch, "f")

    def swap(name: bytes) -> bool:
        os.unlink(branch / "f")
        (branch / "f").symlink_to(tmp_path / "secret")
        return False

    os.setxattr(branch / "f", "user.trap", b"")
    data = written(branch, attributes=swap)
    assert b"secret" not in data
    assert b"f" in data


def test_file_replaced_between_look_and_open(
    branch: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(branch, "f", "g")

    def look_then_replace(dir_fd: int, name: bytes, path: bytes) -> os.stat_result:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if name == b"f":
            os.rename(branch / "f", branch / "old")
            os.mkfifo(branch / "f")
        return status

    monkeypatch.setattr(writer, "_status", look_then_replace)
    assert raw_names(written(branch)) == ["g"]
    assert "replaced while it was read" in caplog.text


# --- one file in trouble, or everything --------------------------------------------------------

STEPS = {
    "look": (os, "stat", ["a", "c"]),
    "open": (os, "open", ["a", "b/x", "c"]),
    "way down": (Descent, "enter", ["a", "b/", "c"]),
    "list": (writer, "read_marked", ["a", "b/", "c"]),
}


def refuse(monkeypatch: pytest.MonkeyPatch, step: str, number: int) -> None:
    """Let one step of the walk fail for the entry ``b``."""
    owner, name, _ = STEPS[step]
    works = getattr(owner, name)

    def is_b(argument: object) -> bool:
        if step == "list":
            return os.readlink(f"/proc/self/fd/{argument}").endswith("/b")
        return argument == b"b"

    def fail(*args: object, **kwargs: object) -> object:
        if any(map(is_b, args)):
            raise OSError(number, os.strerror(number))
        return works(*args, **kwargs)

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.parametrize("step", STEPS)
def test_one_file_that_cannot_be_read_is_left_out(
    branch: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    make(branch, "a", "b/x", "c")
    refuse(monkeypatch, step, errno.EIO)
    assert raw_names(written(branch)) == STEPS[step][2]
    assert caplog.text.count("left out") == 1


@pytest.mark.parametrize(
    "number", [errno.ENOTCONN, errno.ECONNABORTED, errno.ESHUTDOWN, errno.EMFILE, errno.ENOMEM]
)
@pytest.mark.parametrize("step", STEPS)
def test_trouble_with_everything_ends_the_stream(
    branch: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    make(branch, "a", "b/x", "c")
    refuse(monkeypatch, step, number)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        written(branch)
    assert caught.value.errno == number


@pytest.mark.parametrize("names", [["a"], []])
def test_a_tree_removed_meanwhile_is_not_taken_for_a_small_one(
    branch: Path, names: list[str]
) -> None:
    fill(branch / "0", 4 << 20)
    make(branch, *names)
    chunks = layer_chunks(branch)
    next(chunks)
    shutil.rmtree(branch)
    with pytest.raises(ArchiveError, match="removed"):
        list(chunks)


def test_closing_early_stops_and_gives_everything_back(branch: Path) -> None:
    make(branch, *(f"d{number}/f" for number in range(50)))
    fill(branch / "big", 4 << 20)
    before = os.listdir("/proc/self/fd")
    for count in (0, 1, 3):
        chunks = layer_chunks(branch)
        for _ in range(count):
            next(chunks)
        chunks.close()
        assert list(chunks) == []
    assert os.listdir("/proc/self/fd") == before
