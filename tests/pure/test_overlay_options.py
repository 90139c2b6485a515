"""Options of overlay mounts: the layers, and what engines send beside them (driver.md 4.1, 4.7)."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.union.options import MountOptions, OptionError, escape_value, parse_options
from unionfs.union.printing import option_string

PLAIN = b"lowerdir=/a:/b,upperdir=/u,workdir=/w"


def words(text: str) -> list[str]:
    return text.split()


def parse(*texts: bytes) -> MountOptions:
    """Parse, and fail when there is a warning."""
    options, warnings = heard(*texts)
    assert warnings == []
    return options


def heard(*texts: bytes) -> tuple[MountOptions, list[str]]:
    warnings: list[str] = []
    return parse_options(texts, warnings.append), warnings


def refused(*texts: bytes) -> str:
    with pytest.raises(OptionError) as caught:
        parse_options(texts, lambda _: None)
    assert caught.value.errno == errno.EINVAL
    assert "(EINVAL): " in str(caught.value)
    return str(caught.value)


def layers(*texts: bytes) -> list[str]:
    return [
        f"{b.path.decode()}={b.permission}" for b in parse_options(texts, lambda _: None).branches
    ]


def test_layers_become_branches() -> None:
    options = parse(PLAIN)
    assert layers(PLAIN) == ["/u=rw", "/a=ro+wh", "/b=ro+wh"]
    assert options.profile.name == "overlay"
    assert options.workdir == b"/w"
    assert not options.read_only
    assert (options.suid, options.dev, options.noatime, options.acl) == (True, False, True, True)
    assert (options.udba, options.fsync) == ("none", True)


def test_without_an_upper_nothing_can_be_changed() -> None:
    for text in (b"lowerdir=/a:/b", b"lowerdir=/a:/b,workdir=/w", b"rw,lowerdir=/a:/b"):
        options = parse(text)
        assert layers(text) == ["/a=ro+wh", "/b=ro+wh"]
        assert options.read_only
        assert options.workdir is None


def test_a_read_only_mount_has_no_writable_branch() -> None:
    for text in (PLAIN + b",ro", b"ro," + PLAIN):
        options = parse(text)
        assert layers(text) == ["/u=ro+wh", "/a=ro+wh", "/b=ro+wh"]
        assert options.read_only
        assert options.workdir is None
    assert layers(PLAIN + b",ro,rw")[0] == "/u=rw"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rb"lowerdir=/a\:b:/c\,d:/e\\f:/g\h:/i=j", ["/a:b", "/c,d", "/e\\f", "/g\\h", "/i=j"]),
        (b"lowerdir=l/A:../diff1", ["l/A", "../diff1"]),
        (b'lowerdir="/a,b:/c",noexec', ["/a,b", "/c"]),
        (b'lowerdir=/a"b:/c"', ['/a"b', '/c"']),
        (b'lowerdir="/a', ['"/a']),
        (b"lowerdir=/a,lowerdir=/b", ["/b"]),
        (b"lowerdir=/a,lowerdir+=/b:c,lowerdir+=/d", ["/a", "/b:c", "/d"]),
    ],
)
def test_paths_of_layers(text: bytes, expected: list[str]) -> None:
    assert [branch.path.decode() for branch in parse(text).branches] == expected


def test_colons_in_the_other_paths() -> None:
    options = parse(rb"lowerdir=/a,upperdir=/u:v,workdir=/w\:x")
    assert options.branches[0].path == b"/u:v"
    assert options.workdir == b"/w:x"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN + b",,volatile",  # podman run --rm
        PLAIN + b",fsync=0,volatile",
        PLAIN + b",fsync=0",
        b"," + PLAIN + b",volatile,",
    ],
)
def test_empty_options_and_volatile(text: bytes) -> None:
    assert parse(text) == replace(parse(PLAIN), volatile=True)
    assert not parse(text).fsync


def test_one_option_per_argument() -> None:
    assert parse(b"workdir=/w", b"upperdir=/u", b"lowerdir=/a:/b") == parse(PLAIN)


@pytest.mark.parametrize(
    "word",
    words(
        "timeout=2.5 threaded threaded=1 fsync=1 fast_ino fast_ino=1 writeback writeback=0 "
        "static_nlink redirect_dir=off redirect_dir=nofollow xino=off xino=auto xino=on index=off "
        "metacopy=off nfs_export=off userxattr private rprivate shared slave suid nodev rw exec "
        "noatime lazytime relatime default_permissions plink acl udba=none defaults"
    ),
)
def test_accepted_without_a_word(word: str) -> None:
    assert parse(PLAIN + b"," + word.encode()) == parse(PLAIN)


def test_options_that_have_an_effect() -> None:
    options = parse(PLAIN + b",dev,nosuid,noexec,atime,noacl,noplink,udba=reval,fsname=here")
    assert (options.dev, options.suid, options.exec, options.noatime) == (True, False, False, False)
    assert (options.acl, options.plink, options.udba) == (False, False, "reval")
    assert options.fsname == b"here"
    assert parse(PLAIN + b",dev,suid").dev  # what mount.fuse3 adds


def test_what_is_unknown_is_named_once() -> None:
    options, warnings = heard(
        PLAIN + b',frob,context="system_u:object_r:svirt_t:s0:c1,c2",frob,nicate=a:b,metacopy=on',
        b"frob=2,debug",
    )
    assert options == parse(PLAIN)
    assert len(warnings) == 5
    for name in ("frob", "context", "nicate", "metacopy", "debug"):
        assert sum(f"'{name}'" in warning for warning in warnings) == 1


def test_a_quote_protects_commas_up_to_its_counterpart_only() -> None:
    _, warnings = heard(PLAIN + b',x="a,b,c",y="d",z')
    assert [warning.split("'")[1] for warning in warnings] == ["x", "y", "z"]
    _, warnings = heard(PLAIN + b',x="a,b,y=c"d')
    assert [warning.split("'")[1] for warning in warnings] == ["x", "b", "y"]
    assert parse(PLAIN + b',log="/a,b"').log == b"/a,b"


@pytest.mark.parametrize(
    "word",
    words("xattr_permissions=2 noxattrs plugins=/x allow_root redirect_dir=on datadir+=/d remount"),
)
def test_not_yet(word: str) -> None:
    assert "not yet supported" in refused(PLAIN + b"," + word.encode())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"lowerdir=/a,upperdir=/u", "add workdir="),
        (b"lowerdir=/a,upperdir=/u,ro", "add workdir="),
        (b"upperdir=/u,workdir=/w", "no lowerdir"),
        (b"workdir=/w", "no lowerdir"),
        (b"lowerdir=", "'lowerdir' needs a directory"),
        (b"lowerdir", "'lowerdir' needs a directory"),
        (b"lowerdir=/a,upperdir=,workdir=/w", "'upperdir' needs"),
        (b"lowerdir=/a::/b", "no path"),
        (b"lowerdir=/a:", "no path"),
        (PLAIN + b",br:/c", "cannot be mixed"),
        (PLAIN + b",fsync=2", "fsync=0"),
        (PLAIN + b",frob,profile=driver", "unknown option 'frob'"),
    ],
)
def test_errors_say_what_to_do(text: bytes, says: str) -> None:
    assert says in refused(text)


def test_the_profile_overrides_the_spelling() -> None:
    assert parse(PLAIN + b",profile=driver").profile.name == "driver"
    assert layers(PLAIN + b",profile=aufs") == layers(PLAIN)
    other = parse(b"br:/a=rw:/b=ro+wh,profile=overlay")
    assert other.profile.name == "overlay"
    assert other.noatime


def test_number_of_layers() -> None:
    text = b"lowerdir=" + b":".join(b"/%d" % number for number in range(32767))
    assert len(parse(text).branches) == 32767
    with pytest.raises(OptionError) as caught:
        parse(text + b":/x")
    assert caught.value.errno == errno.ENOSPC


def test_printed_as_branches() -> None:
    assert option_string(parse(PLAIN + b",noacl,dev")) == (
        b"profile=overlay,noacl,dev,br:/u=rw:/a=ro+wh:/b=ro+wh"
    )


paths = st.binary(min_size=1, max_size=20).map(lambda path: b"/" + path.replace(b"\0", b"0"))
# Mostly option strings, with a twist here and there.
pieces = st.sampled_from(
    (
        *(b",", b",,", b":", b"=", b'"', b"\\", b"/a", b"/b,c", b"", b"\xff", b"\n"),
        *(b"lowerdir=/a", b"lowerdir", b"lowerdir+=", b"upperdir=/u", b"workdir=/w", b"ro"),
        *(b",lowerdir=/x:/y,", b"fsync=", b"redirect_dir=", b'context="a,b"', b"uidmapping=:0"),
        *(b"br:/a", b"profile=", b"overlay", b"noacl", b"xino=", b"metacopy=on", b"volatile"),
    )
)


@given(st.lists(paths, min_size=1, max_size=5), paths, paths)
def test_escaped_paths_come_back(lowers: list[bytes], upper: bytes, work: bytes) -> None:
    listed = b":".join(escape_value(path) for path in lowers)
    options = parse(
        b"lowerdir=%s,upperdir=%s,workdir=%s" % (listed, escape_value(upper), escape_value(work))
    )
    assert [branch.path for branch in options.branches] == [upper, *lowers]
    assert options.workdir == work


@given(st.lists(st.lists(pieces, max_size=8).map(b"".join) | st.binary(max_size=30), max_size=3))
def test_only_option_errors_come_out(texts: list[bytes]) -> None:
    warnings: list[str] = []
    message = ""
    try:
        options = parse_options([b"lowerdir=/l", *texts], warnings.append)
    except OptionError as error:
        message = str(error)
    else:
        assert parse(option_string(options)) == options
    assert message.isprintable()
    assert all(warning.isprintable() for warning in warnings)
