"""The daemon's log: one line each, not too many, and never a reason to fail."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from unionfs.fuse.log import LogFile, LogFileError, RateLimit, Syslog, start_logging


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:], root.level, logging.raiseExceptions = before


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(message: str, *args: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("x", level, "", 0, message, args, None)


def test_of_one_kind_only_some_pass() -> None:
    clock = Clock()
    limit = RateLimit(burst=3, interval=10, clock=clock)
    assert [limit.filter(record("bad %s", n)) for n in range(5)] == [True] * 3 + [False] * 2
    # another template, another level: another kind
    assert limit.filter(record("worse %s", 1))
    assert limit.filter(record("bad %s", 1, level=logging.ERROR))
    clock.now += 10
    again = record("bad %s", 7)
    assert limit.filter(again)
    assert again.getMessage() == "bad 7 (2 more like this were left out)"
    later = record("bad %s", 8)
    assert limit.filter(later)
    assert later.getMessage() == "bad 8"


def test_memory_for_kinds_is_bounded() -> None:
    limit = RateLimit(burst=2, interval=10, clock=Clock())
    passed = sum(limit.filter(record(f"kind {number}")) for number in range(10_000))
    assert passed <= 202
    assert len(limit._seen) <= 201


def test_a_file_is_made_for_the_first_message(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = LogFile(os.fsencode(path))
    start_logging(foreground=False, debug=False, file=file)
    assert not path.exists()
    logging.getLogger("some.where").warning("odd name %s", "a\nb\x1b\udcff")
    logging.getLogger("some.where").debug("not said")
    (line,) = path.read_text().splitlines()
    assert line.endswith(f"fuse-aufs[{os.getpid()}] WARNING odd name " + r"a\nb\x1b\xff")
    assert path.stat().st_mode & 0o777 == 0o600
    path.rename(tmp_path / "old")
    logging.getLogger().warning("still the old file")
    file.reopen()
    logging.getLogger().warning("the new file")
    assert "the new file" in path.read_text()
    assert "still the old file" in (tmp_path / "old").read_text()
    file.close()


def test_tracebacks_are_kept(tmp_path: Path) -> None:
    file = LogFile(os.fsencode(tmp_path / "log"))
    start_logging(foreground=False, debug=True, file=file)
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger().exception("request failed")
    text = (tmp_path / "log").read_text()
    assert "ERROR request failed\n" in text
    assert "Traceback" in text
    file.close()


@pytest.mark.parametrize("name", ["none/log", "folder", "file/log"])
def test_a_file_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(LogFileError) as caught:
        LogFile(os.fsencode(tmp_path / name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_goes_away_is_no_reason_to_fail(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = LogFile(os.fsencode(folder / "log"))
    start_logging(foreground=False, debug=False, file=file)
    folder.rmdir()
    logging.getLogger().error("nobody hears this")
    file.close()


def test_no_syslog_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("unionfs.fuse.log._SYSLOG", str(tmp_path / "log"))
    start_logging(foreground=False, debug=False, file=None)
    logging.getLogger().error("nobody hears this")


def test_syslog_that_does_not_keep_up_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import socket

    address = str(tmp_path / "log")
    monkeypatch.setattr("unionfs.fuse.log._SYSLOG", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslogd:
        syslogd.bind(address)
        handler = Syslog()
        handler.setFormatter(logging.Formatter("%(message)s"))
        for number in range(5000):
            handler.emit(record("message %s", number))
        first = syslogd.recv(4096)
        assert first == b"<28>fuse-aufs[%d]: message 0" % os.getpid()
        handler.close()
