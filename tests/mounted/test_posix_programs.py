"""Programs as people run them on a union: databases, archives, version control, package managers.

What they leave in the union must be what they leave in a plain directory.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.mounting import Union
from tests.support.oracle import Oracle
from tests.support.trees import Seen, describe, differences, fill, paths


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a program, which has to succeed; returns what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def build_tree(place: Path) -> None:
    """A small tree with one of everything."""
    fill(place, "bin/tool", "etc/conf", "etc/d/one", "etc/d/two", "empty/", "a b/c\nd")
    (place / "bin/tool").chmod(0o4755)
    os.link(place / "bin/tool", place / "bin/alias")
    (place / "etc/link").symlink_to("conf")
    os.mkfifo(place / "pipe", 0o620)
    os.setxattr(place / "etc/conf", "user.k", b"v")
    os.chown(place / "etc/d/one", 1000, 50)
    (place / "large").write_bytes(bytes(range(256)) * 2000)
    (place / "etc/d").chmod(0o2750)
    for folder, _, names in os.walk(place, topdown=False):
        for name in names:
            os.utime(Path(folder, name), ns=(10**18, 10**18 + 1), follow_symlinks=False)
        os.utime(folder, ns=(10**18, 10**18 + 2))


def assert_same_tree(left: Path, right: Path) -> None:
    """Compare two trees in everything but their tops and the link counts of directories."""

    def look(top: Path) -> dict[str, Seen]:
        return {
            path: replace(entry, nlink=0) if entry.kind == "directory" else entry
            for path, entry in describe(top).items()
            if path != "."
        }

    assert differences(look(left), look(right)) == []


# Mapped files


@pytest.mark.parametrize("other_name", [False, True])
def test_a_shared_mapping_of_a_lower_file(union: Union, udba: str, other_name: bool) -> None:
    (union.R / "f").write_bytes(b"R" * 10_000)
    os.link(union.R / "f", union.R / "g")
    top = union.start(options=udba)
    beside = top / ("g" if other_name else "f")
    reader = os.open(beside, os.O_RDONLY)
    fd = os.open(top / "f", os.O_RDWR)
    try:
        with mmap.mmap(fd, 0) as mapping:
            assert mapping[9_999] == ord("R")
            mapping[5_000:5_004] = b"mmap"
            mapping.flush()
            assert os.pread(reader, 6, 4_999) == b"RmmapR"
            os.pwrite(fd, b"write", 100)
            assert mapping[100:105] == b"write"
            mapping[0:3] = b"end"
        assert os.pread(reader, 3, 0) == b"end"
    finally:
        os.close(fd)
        os.close(reader)
    expected = b"end" + b"R" * 97 + b"write" + b"R" * 4_895 + b"mmap" + b"R" * 4_996
    assert beside.read_bytes() == expected
    assert (union.R / "f").read_bytes() == b"R" * 10_000


def test_a_private_mapping_changes_nothing(union: Union) -> None:
    fill(union.R, "f")
    top = union.start()
    with (top / "f").open("rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
            mapping[0:1] = b"x"
            assert mapping[0:1] == b"x"
        assert file.read() == b"R"
    assert paths(union.W) == set()


# Databases

_WRITER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
for number in range(60):
    database.execute("begin immediate")
    database.execute("insert into t values (?, ?)", (sys.argv[2] + str(number), "x" * 500))
    database.execute("update t set v = v || 'y' where k = 'shared'")
    database.execute("commit")
database.close()
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_an_inherited_database(union: Union, udba: str, journal: str) -> None:
    """Two programs write a database that a layer has brought along."""
    with sqlite3.connect(union.R / "db") as database:
        database.execute(f"pragma journal_mode={journal}")
        database.execute("create table t (k text primary key, v text)")
        rows = [(f"old{number}", "v" * 300) for number in range(3000)]
        database.executemany("insert into t values (?, ?)", [*rows, ("shared", "")])
    database.close()
    top = union.start(options=f"{udba},volatile")
    open_before = sqlite3.connect(top / "db")
    assert open_before.execute("select count(*) from t").fetchone() == (3001,)
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, top / "db", name]) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    expected = {
        "select count(*) from t": 3121,
        "select length(v) from t where k = 'shared'": 120,
        "select count(*) from t where k glob 'old*' and length(v) = 300": 3000,
        "pragma integrity_check": "ok",
    }
    for question, answer in expected.items():
        assert open_before.execute(question).fetchone() == (answer,)
    open_before.close()
    union.remount()
    again = sqlite3.connect(top / "db")
    for question, answer in expected.items():
        assert again.execute(question).fetchone() == (answer,)
    again.close()


# Copying and packing


def test_tar_both_ways(union: Union, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    build_tree(tmp_path / "plain")
    (union.R / "old").mkdir()
    build_tree(union.R / "old")
    top = union.start()
    flags = ("--xattrs", "--xattrs-include=*", "--numeric-owner")
    run("tar", *flags, "-cf", tmp_path / "out.tar", "-C", tmp_path / "plain", ".")
    (top / "new").mkdir()
    run("tar", *flags, "-xpf", tmp_path / "out.tar", "-C", top / "new")
    assert_same_tree(tmp_path / "plain", top / "new")
    # Over what is there already, most of it on the read-only branch.
    fill(tmp_path / "plain", "etc/conf")
    run("tar", *flags, "-cf", tmp_path / "out.tar", "-C", tmp_path / "plain", ".")
    run("tar", *flags, "-xpf", tmp_path / "out.tar", "-C", top / "old")
    assert_same_tree(tmp_path / "plain", top / "old")
    # And out again.
    run("tar", *flags, "-cf", tmp_path / "back.tar", "-C", top / "old", ".")
    (tmp_path / "back").mkdir()
    run("tar", *flags, "-xpf", tmp_path / "back.tar", "-C", tmp_path / "back")
    assert_same_tree(tmp_path / "plain", tmp_path / "back")


def test_cp_mv_rm_and_find(oracle: Oracle) -> None:
    def build(place: Path) -> None:
        (place / "src").mkdir()
        build_tree(place / "src")

    oracle.start(build)

    def scenario(top: Path) -> object:
        run("cp", "-a", "src", "copy", cwd=top)
        assert_same_tree(top / "src", top / "copy")
        run("cp", "-al", "copy", "linked", cwd=top)
        run("mv", "src", "moved", cwd=top)  # copies where the union says EXDEV
        run("chmod", "-R", "g+w", "moved", cwd=top)
        run("chown", "-R", "7:8", "moved/etc", cwd=top)
        run("sed", "-i", "s/./edited/", "copy/etc/conf", cwd=top)
        run("install", "-m", "750", "moved/large", "moved/installed", cwd=top)
        run("cp", "-u", "--preserve=all", "moved/bin/alias", "copy/bin/tool", cwd=top)
        run("rm", "-r", "linked", "moved/empty", "copy/a b", cwd=top)
        run("truncate", "-s", "1M", "copy/large", cwd=top)
        run(
            "dd",
            "if=/dev/zero",
            "of=moved/large",
            "bs=1000",
            "seek=3",
            "count=2",
            "conv=notrunc",
            cwd=top,
        )
        (top / "moved/etc/link").unlink()
        (top / "moved/etc/link").mkdir()
        seen = describe(top)
        del seen["."]
        looks = {
            path: (entry.kind, entry.mode, entry.uid, entry.gid, entry.size, entry.content)
            for path, entry in seen.items()
        }
        links = {path: entry.same_as for path, entry in seen.items()}
        return looks, links, run("find", ".", "-newer", "copy/etc/d/one", "-type", "p", cwd=top)

    oracle.same(scenario)


def test_git_in_an_inherited_repository(union: Union) -> None:
    environment = {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A",
        "GIT_COMMITTER_EMAIL": "a@example.org",
    }

    def git(where: Path, *arguments: str) -> str:
        options = ("-c", "safe.directory=*", "-c", "gc.auto=0", "-c", "core.fsync=none")
        return subprocess.run(
            ["git", *options, *arguments],
            cwd=where,
            env={**os.environ, **environment},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    repository = union.R / "repository"
    repository.mkdir()
    git(repository, "init", "-q", "-b", "main")
    fill(repository, *(f"d{number}/f{number}" for number in range(12)))
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "one")
    git(repository, "checkout", "-qb", "side")
    shutil.rmtree(repository / "d3")
    fill(repository, "d3")
    (repository / "d4/f4").rename(repository / "d4/renamed")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "two")
    top = union.start() / "repository"
    assert git(top, "status", "--porcelain") == ""
    git(top, "checkout", "-q", "main")
    assert git(top, "status", "--porcelain") == ""
    assert (top / "d3/f3").is_file()
    (top / "d5/f5").write_text("changed")
    git(top, "commit", "-qam", "three")
    git(top, "merge", "-q", "-m", "merged", "side")
    assert (top / "d3").is_file()
    assert (top / "d5/f5").read_text() == "changed"
    git(top, "gc", "-q", "--prune=now")
    git(top, "fsck", "--strict")
    assert git(top, "status", "--porcelain") == ""
    assert len(git(top, "log", "--oneline").splitlines()) == 4
    git(top, "clone", "-q", ".", "../clone")
    union.remount()
    assert git(top, "status", "--porcelain") == ""
    git(top, "fsck", "--strict")


def test_replacing_files_as_package_managers_do(oracle: Oracle, udba: str) -> None:
    """dpkg: backup by link, new file beside, fsync, rename; rsync: dot file, times, rename."""

    def build(place: Path) -> None:
        fill(place, "usr/lib.so", "usr/data")
        (place / "usr/lib.so").chmod(0o644)

    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        library = top / "usr/lib.so"
        with library.open() as running:  # a program has it loaded
            os.link(library, top / "usr/lib.so.dpkg-tmp")
            new = top / "usr/lib.so.dpkg-new"
            fd = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0)
            os.write(fd, b"new library")
            os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o644)
            os.fsync(fd)
            os.close(fd)
            os.utime(new, ns=(5, 6))
            os.rename(new, library)
            os.unlink(top / "usr/lib.so.dpkg-tmp")
            directory = os.open(top / "usr", os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
            still = len(running.read())
        temporary = top / "usr/.data.Xyz123"
        temporary.write_text("synchronised")
        os.utime(temporary, ns=(7, 8))
        os.chmod(temporary, 0o600)
        os.rename(temporary, top / "usr/data")
        return (
            still > 0,
            library.read_text(),
            os.stat(library).st_mtime_ns,
            os.stat(library).st_nlink,
            (top / "usr/data").read_text(),
            os.stat(top / "usr/data").st_mtime_ns,
            sorted(os.listdir(top / "usr")),
        )

    oracle.same(scenario)


def test_a_remount_shows_what_a_program_has_left(union: Union) -> None:
    """A long mixture of changes; the comparison at the end of each test is the point."""
    build_tree(union.R)
    top = union.start(options="udba=none")
    for round_ in range(3):
        fill(top, f"new{round_}/a/b", f"new{round_}/c")
        os.rename(top / f"new{round_}/a", top / f"moved{round_}")
        os.link(top / "etc/conf", top / f"moved{round_}/conf")
        os.rename(top / f"moved{round_}/conf", top / "etc/conf2")
        shutil.rmtree(top / f"new{round_}")
        shutil.rmtree(top / "etc/d")
        fill(top, "etc/d/one")
        (top / "bin/tool2").unlink(missing_ok=True)
        os.replace(top / "bin/tool", top / "bin/tool2")
        os.link(top / "bin/alias", top / "bin/tool")
    before = describe(top)
    assert before["bin/tool"].same_as == ("bin/alias", "bin/tool", "bin/tool2")
    union.remount()
    assert differences(before, describe(top)) == []
