"""What the union does when something goes wrong half way: a kill, a full disk, a strange branch."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EIO, EMFILE, ENOSPC, EPERM
from pathlib import Path

import pytest

from tests.support.cores import ROOT, Core
from tests.support.trees import fails
from unionfs.branch import WritableDirectory
from unionfs.union.core import Caller, run_now
from unionfs.union.listing import entry_of, merge


def linked(core: Core, *names: str) -> None:
    """Put one file with several names on the lower branch."""
    lower = core.branch("R")
    (lower / names[0]).write_text("old")
    for name in names[1:]:
        os.link(lower / names[0], lower / name)


def test_kill_between_pseudo_link_and_rename_loses_nothing(core: Core) -> None:
    linked(core, "a", "b")
    core.start()
    core.write("a", b"new")
    core.stop()
    # The state after a kill just before the copy was given its name.
    upper = core.branch("W")
    entry = next((upper / ".wh..wh.plnk").iterdir())
    number, inode, tag, _ = entry.name.split(".")
    entry.rename(entry.with_name(f"{number}.{inode}.{tag}.2"))
    (upper / "a").rename(upper / ".wh..wh.a.0001")
    core.start()
    assert core.read("b") == b"new"
    run_now(core.union.unlink(*core.at("a")))
    assert core.read("b") == b"new"
    (upper / ".wh..wh.a.0001").unlink()


def test_the_entry_counts_all_names_until_the_copy_has_its_own(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked(core, "a", "b")
    core.start()
    seen: list[str] = []
    rename = WritableDirectory.rename

    def watch(self: WritableDirectory, name: bytes, target: WritableDirectory, new: bytes) -> None:
        if new == b"a":
            seen.extend(os.listdir(core.branch("W") / ".wh..wh.plnk"))
        rename(self, name, target, new)

    monkeypatch.setattr(WritableDirectory, "rename", watch)
    core.write("a", b"new")
    assert [name.rpartition(".")[2] for name in seen] == ["2"]
    assert core.nlink("a") == core.nlink("b") == 2


def test_a_count_that_cannot_be_written_hides_no_name(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked(core, "a", "b", "c")
    core.start()
    core.write("a", b"new")
    rename = WritableDirectory.rename

    def refuse(self: WritableDirectory, name: bytes, target: WritableDirectory, new: bytes) -> None:
        if name.endswith(b".2"):
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        rename(self, name, target, new)

    monkeypatch.setattr(WritableDirectory, "rename", refuse)
    run_now(core.union.unlink(*core.at("b")))
    monkeypatch.undo()
    assert "b" not in core.names()
    assert core.read("c") == b"new"


def test_unlink_that_happened_is_not_reported_as_failed(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked(core, "a", "b")
    core.start()

    def refuse(self: WritableDirectory, name: bytes, mode: int = 0o600) -> int:
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    monkeypatch.setattr(WritableDirectory, "create_file", refuse)
    run_now(core.union.unlink(*core.at("a")))
    assert core.names() == ["b"]
    assert core.nlink("b") == 1


def test_mkdir_that_cannot_be_made_opaque_leaves_nothing(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    (core.branch("R") / "d").mkdir()
    core.start()
    core.union.rmdir(*core.at("d"))

    def refuse(self: WritableDirectory, name: bytes) -> bool:
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    monkeypatch.setattr(WritableDirectory, "set_opaque", refuse)
    with pytest.raises(OSError, match="No space") as caught:
        core.mkdir("d")
    assert caught.value.errno == ENOSPC
    monkeypatch.undo()
    assert core.names() == []
    assert not (core.branch("W") / "d").exists()
    core.mkdir("d")
    assert core.names("d") == []


@pytest.mark.parametrize(
    "entry", ["1.1.aaaaaaaaaaaaaaaa.99999999999999999999", "1.1.aaaaaaaaaaaaaaaa.1.more", "x"]
)
def test_a_forged_pseudo_link_is_ignored(core: Core, entry: str) -> None:
    layer = core.branch("M")
    (layer / "x").write_text("x")
    (layer / ".wh..wh.plnk").mkdir()
    os.link(layer / "x", layer / ".wh..wh.plnk" / entry)
    core.start("W=rw", "M=ro+wh", "R=ro+wh")
    assert core.nlink("x") == 2
    assert core.read("x") == b"x"


def test_a_directory_in_place_of_a_pseudo_link_is_ignored(core: Core) -> None:
    layer = core.branch("M")
    (layer / ".wh..wh.plnk" / "1.1.aaaaaaaaaaaaaaaa.1").mkdir(parents=True)
    core.start("W=rw", "M=ro+wh", "R=ro+wh")
    assert core.names() == []


def test_a_pseudo_link_that_somebody_removed_leaves_the_lower_file(core: Core) -> None:
    linked(core, "a", "b")
    core.start()
    core.write("a", b"new")
    run_now(core.union.unlink(*core.at("a")))
    next((core.branch("W") / ".wh..wh.plnk").iterdir()).unlink()
    core.start()
    assert core.read("b") == b"old"


def test_one_entry_that_cannot_be_read_hides_no_other(core: Core) -> None:
    layer = core.branch("M")
    (layer / "d" / ".wh..wh..opq").mkdir(parents=True)
    (layer / "e").write_text("e")
    (core.branch("R") / "d").mkdir()
    core.start("W=rw", "M=ro+wh", "R=ro+wh")
    assert sorted(core.names()) == ["d", "e"]
    listed = merge(core.union.state, core.union.root)
    with pytest.raises(OSError, match="not a regular file") as caught:
        entry_of(core.union.state, core.union.root, b"d", listed[b"d"])
    assert caught.value.errno == EIO
    assert core.read("e") == b"e"


def test_a_layer_with_counts_of_removed_names_can_be_built_on(core: Core) -> None:
    linked(core, "a", "b", "c")
    core.start("W0=rw", "R=ro+wh")
    run_now(core.union.unlink(*core.at("a")))
    core.start("W1=rw", "W0=ro+wh", "R=ro+wh")
    assert core.nlink("b") == 2
    core.write("b", b"new")
    assert core.read("c") == b"new"
    assert core.nlink("c") == 2
    core.start()
    assert core.read("c") == b"new"


def test_a_directory_moved_into_its_own_child_on_the_branch_makes_no_circle(core: Core) -> None:
    upper = core.branch("W")
    (upper / "a" / "b").mkdir(parents=True)
    core.start()
    inner = core.directory("a/b")
    core.union.getattr(inner)  # it is held open, as by a process that works in it
    (upper / "a" / "b").rename(upper / "b")
    (upper / "a").rename(upper / "b" / "a")
    entry = core.union.lookup(inner, b"a")
    assert entry.node is not inner.parent
    assert len(inner.path()) == 2


def test_descriptors_go_with_their_nodes(core: Core) -> None:
    for number in range(40):
        (core.branch("R") / f"d{number}" / "sub").mkdir(parents=True)
    core.start()
    before = len(os.listdir("/proc/self/fd"))
    nodes = [core.node(f"d{number}/sub") for number in range(40)]
    for node in nodes:
        core.union.getattr(node)
    assert len(os.listdir("/proc/self/fd")) > before
    for node in list(core.union.state.nodes):
        if node is not core.union.root:
            core.union.forget(node.number, node.lookups)
    assert len(os.listdir("/proc/self/fd")) == before


def test_create_with_a_default_acl_keeps_what_it_takes_away(
    core: Core, tmp_path: Path, mount_tmpfs: Callable[[str], Path]
) -> None:
    upper = mount_tmpfs("W")
    (upper / "d").mkdir()
    # user::rwx group::r-x other::---, as the default ACL of the directory
    entries = ((0x01, 7), (0x04, 5), (0x20, 0))
    value = b"\x02\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + b"\xff\xff\xff\xff"
        for tag, bits in entries
    )
    os.setxattr(upper / "d", "system.posix_acl_default", value)
    core.start()
    run_now(core.union.create(*core.at("d/f"), 0o666, os.O_RDWR, ROOT))
    assert (upper / "d" / "f").stat().st_mode & 0o777 == 0o640
    core.stop()


@pytest.mark.parametrize("what", ["copy-up", "create", "mknod"])
def test_a_program_of_an_owner_that_could_not_be_kept_loses_its_rights(
    core: Core, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """All owners are shown as one; on the branch it would run as whoever runs the daemon."""
    program = core.branch("R") / "program"
    program.write_text("#!")
    os.chown(program, 4000, 4000)
    program.chmod(0o6755)
    core.start(options="profile=driver,volatile,squash_to_uid=3000,squash_to_gid=3000")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(EPERM, "not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    caller = Caller(4000, 4000, 0o022)
    if what == "copy-up":
        core.write("program", b"#!")
    elif what == "create":
        _, handle = run_now(
            core.union.create(core.union.root, b"new", 0o6755, os.O_RDWR | os.O_EXCL, caller)
        )
        core.union.release(handle)
    else:
        core.union.mknod(core.union.root, b"new", 0o106755, 0, caller)
    name = "program" if what == "copy-up" else "new"
    assert (core.branch("W") / name).stat().st_mode & 0o7777 == 0o755


def test_whether_nobody_is_the_owner_is_no_guess(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be found out is an error: the kernel would remember the guess."""
    lower = core.branch("R") / "f"
    lower.touch()
    os.chown(lower, 65534, 65534)
    core.start()
    entry = core.union.getattr(core.file("f"))
    assert core.union.owner_of(entry) == (65534, 65534)
    real_open = os.open

    def no_descriptor(path: bytes, flags: int, *rest: int, **options: int) -> int:
        if flags & os.O_NOATIME:
            raise OSError(EMFILE, "too many open files")
        return real_open(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", no_descriptor)
    with fails("EMFILE"):
        core.union.owner_of(entry)
