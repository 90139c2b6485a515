"""Other people and other places: running part of a test as another user, or in a user namespace.

Each helper forks. What the callable returns, or raises, arrives in the test as if it had been
called there. The child changes its working directory first: the directories above ``tmp_path`` are
closed to others, so inside the callable paths are relative.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pickle
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_REC_PRIVATE = (1 << 14) | (1 << 18)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def in_child(action: Callable[[], T]) -> T:
    """Run ``action`` in a forked child; its result (picklable) or its exception comes back."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            answer: tuple[bool, object]
            try:
                answer = (True, action())
            except BaseException as error:  # noqa: BLE001 - raised in the parent
                error.add_note("in the child:\n" + traceback.format_exc())
                try:
                    pickle.loads(pickle.dumps(error))
                    answer = (False, error)
                except Exception:  # noqa: BLE001 - whatever it is, pickle refuses it
                    answer = (False, AssertionError(traceback.format_exc()))
            with open(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    assert data, "the child ended without an answer"
    good, value = pickle.loads(data)
    if not good:
        raise value
    return value  # type: ignore[no-any-return]


def as_user(
    uid: int,
    gid: int,
    action: Callable[[], T],
    *,
    directory: Path,
    groups: tuple[int, ...] = (),
    umask: int = 0o022,
) -> T:
    """Run ``action`` in ``directory`` with other ids and without privileges."""

    def run() -> T:
        os.chdir(directory)
        os.umask(umask)
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        return action()

    return in_child(run)


def _giver_of_ids(first: int, count: int) -> Callable[[], None]:
    """Return what maps ids into the user namespace that this process has by then; call it as root.

    Another process that stays root does it.
    """
    process = os.getpid()
    asking, ask = os.pipe()
    helper = os.fork()
    if helper == 0:
        status = 1
        try:
            os.close(ask)
            if os.read(asking, 1):
                for name in ("uid_map", "gid_map"):
                    Path(f"/proc/{process}", name).write_text(f"0 {first} {count}")
            status = 0
        finally:
            os._exit(status)

    def give() -> None:
        os.write(ask, b"x")
        os.close(ask)
        assert os.waitpid(helper, 0)[1] == 0

    os.close(asking)
    return give


def in_user_namespace(
    action: Callable[[Path], T],
    *,
    uid: int = 1000,
    ids: int = 1,
    prepare: Callable[[Path], object] | None = None,
    namespace: bool = True,
) -> T:
    """Run ``action(home)`` as root of a user namespace that the plain user ``uid`` has made.

    ids: how many ids it has, from ``uid`` on. More than one are given by the real root.

    home: an empty directory that belongs to that user, on a private tmpfs at /mnt. /dev/fuse is
    usable there whatever its mode on the host, which is not touched: the mounts are the child's.
    prepare: called with /mnt, as the real root, before.
    namespace: without, ``action`` runs as that plain user.
    """
    place = Path("/mnt")

    def run() -> T:
        _checked(_libc.unshare(_CLONE_NEWNS))
        _checked(_libc.mount(None, b"/", None, _MS_REC_PRIVATE, None))
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", place], check=True)
        device = place / "fuse"
        os.mknod(device, 0o20666, os.makedev(10, 229))
        device.chmod(0o666)
        subprocess.run(["mount", "--bind", device, "/dev/fuse"], check=True)
        home = place / "home"
        home.mkdir()
        os.chown(home, uid, uid)
        if prepare is not None:
            prepare(place)
        os.chdir(home)
        give_ids = _giver_of_ids(uid, ids) if ids > 1 else None
        os.setgroups(())
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        if not namespace:
            return action(home)
        # A process that has changed its ids may not write its own maps otherwise.
        _checked(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))
        _checked(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
        if give_ids is not None:
            give_ids()
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        else:
            for name, text in (
                ("uid_map", f"0 {uid} 1"),
                ("setgroups", "deny"),
                ("gid_map", f"0 {uid} 1"),
            ):
                Path("/proc/self", name).write_text(text)
        assert os.geteuid() == 0
        return action(home)

    return in_child(run)


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Meanwhile, a daemon left by its parent becomes a child of this process.

    So its exit status can be read, and it does not wait as a zombie for an init that may be slow.
    """
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    try:
        yield
    finally:
        _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0))


def refuse_setxattr() -> None:
    """From now on the kernel answers EOPNOTSUPP when this process sets an extended attribute.

    A seccomp filter, inherited by every child: it makes of any filesystem one without extended
    attributes. Meant for ``preexec_fn``.
    """
    machine = os.uname().machine
    numbers = {"x86_64": (188, 189, 190, 463), "aarch64": (5, 6, 7, 463)}[machine]
    load, jump_if_equal, answer = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | 95
    program = [(load, 0, 0, 0)]
    program += [
        (jump_if_equal, len(numbers) - index, 0, number) for index, number in enumerate(numbers)
    ]
    program += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]

    class Instruction(ctypes.Structure):
        _fields_ = (
            ("code", ctypes.c_uint16),
            ("jt", ctypes.c_uint8),
            ("jf", ctypes.c_uint8),
            ("k", ctypes.c_uint32),
        )

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(Instruction)))

    instructions = (Instruction * len(program))(*(Instruction(*line) for line in program))
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(
        _libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(Program(len(program), instructions)), 0, 0)
    )


def eventually(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Wait until ``condition()`` holds; fail naming ``what`` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.01)


def drop_caches() -> None:
    """Let the kernel forget every name and node that is not in use."""
    knob = Path("/proc/sys/vm/drop_caches")
    try:
        knob.write_text("2")
        return
    except OSError as error:
        if error.errno != errno.EROFS:
            raise

    # A container shows /proc/sys read-only; a proc of one's own does not.
    def on_a_fresh_proc() -> None:
        _checked(_libc.unshare(_CLONE_NEWNS))
        _checked(_libc.mount(None, b"/", None, _MS_REC_PRIVATE, None))
        subprocess.run(["mount", "-t", "proc", "none", "/proc"], check=True)
        knob.write_text("2")

    in_child(on_a_fresh_proc)
