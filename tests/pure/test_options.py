"""Mount options: the grammar of aufs.md 1.2 and 1.3, what is refused, and printing."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.branch.permission import parse_permission
from unionfs.text import octal_escape, octal_unescape, printable
from unionfs.union.options import (
    BranchSpec,
    MountOptions,
    OptionError,
    default_options,
    escape_value,
    parse_options,
)
from unionfs.union.printing import branch_string, kernel_style_string, option_string
from unionfs.union.profile import PROFILES


def words(text: str) -> list[str]:
    return text.split()


def parse(*texts: bytes) -> MountOptions:
    """Parse, and fail when there is a warning."""
    warnings: list[str] = []
    options = parse_options(texts, warnings.append)
    assert warnings == []
    return options


def refused(*texts: bytes) -> OptionError:
    with pytest.raises(OptionError) as caught:
        parse_options(texts, lambda _: None)
    message = str(caught.value)
    assert "\n" not in message
    assert f"({errno.errorcode[caught.value.errno]}): " in message
    return caught.value


def branches(*texts: bytes) -> list[tuple[bytes, str | None]]:
    return [
        (b.path, None if b.permission is None else str(b.permission))
        for b in parse_options(texts, lambda _: None).branches
    ]


@pytest.mark.parametrize("form", [b"br:", b"br=", b"dirs="])
def test_three_spellings_of_a_branch_list(form: bytes) -> None:
    assert branches(form + b"/a=rw:/b:/c=ro+wh") == [
        (b"/a", "rw"),
        (b"/b", None),
        (b"/c", "ro+wh"),
    ]


def test_further_lists_add_below() -> None:
    assert branches(b"br:/a,udba=none,dirs=/b", b"br=/c:/d") == [
        (b"/a", None),
        (b"/b", None),
        (b"/c", None),
        (b"/d", None),
    ]


def test_an_empty_element_ends_its_list() -> None:
    assert branches(b"br:/a::/b,br:/c") == [(b"/a", None), (b"/c", None)]
    assert branches(b"br:/a:") == [(b"/a", None)]


def test_permission_of_a_branch() -> None:
    assert branches(b"br:/a=") == [(b"/a", "ro")]
    assert branches(b"br:/a=foo") == [(b"/a", "ro")]
    assert branches(b"br:/a=rw=x") == [(b"/a", "ro")]
    assert branches(b"br:/a=rw+wh") == [(b"/a", "rw")]
    assert branches(b"br:/a=ro+nolwh") == [(b"/a", "ro")]


def test_warnings_name_the_branch() -> None:
    warnings: list[str] = []
    parse_options([b"br:/a=rw+moo:/b=foo"], warnings.append)
    assert len(warnings) == 2
    assert "/a" in warnings[0]
    assert "no effect yet" in warnings[0]
    assert "/b" in warnings[1]
    assert "'foo'" in warnings[1]


def test_escapes() -> None:
    assert branches(rb"br:/a\,b=rw:/c\:d:/e\=f=ro:/g\\h:/i\j") == [
        (b"/a,b", "rw"),
        (b"/c:d", None),
        (b"/e=f", "ro"),
        (b"/g\\h", None),
        (b"/i\\j", None),
    ]
    assert parse(rb"br:/a,xino=/x\,y").xino == b"/x,y"


def test_commas_too_many() -> None:
    assert parse(b",,br:/a,,noatime,").noatime


def test_defaults_come_from_the_profile() -> None:
    aufs = parse(b"br:/a")
    assert (aufs.profile.name, aufs.udba, aufs.plink) == ("aufs", "reval", True)
    assert (aufs.suid, aufs.dev, aufs.exec, aufs.noatime) == (True, True, True, False)
    driver = parse(b"br:/a,profile=driver")
    assert (driver.profile.name, driver.udba, driver.plink) == ("driver", "none", True)
    assert not driver.profile.strict_whiteouts
    assert parse(b"udba=reval,br:/a,profile=driver").udba == "reval"


def test_the_later_one_counts() -> None:
    assert not parse(b"br:/a,ro,rw").read_only
    assert parse(b"br:/a,rw,ro").read_only
    assert parse(b"br:/a,noxino,xino=/x") == replace(parse(b"br:/a"), xino=b"/x")
    assert parse(b"br:/a,xino=/x,noxino") == replace(parse(b"br:/a"), noxino=True)


def test_accepted_without_a_word() -> None:
    plain = parse(b"br:/a")
    for word in words(
        "dio nodio dirperm1 relatime defaults default_permissions user_id=0 group_id=0 "
        "si=0123abcd nodlgt _netdev nofail x-systemd.requires=/b create=tdp cpup=tdp "
        "create_policy=top-down-parent copyup=tdp plink suid dev exec rw udba=reval profile=aufs"
    ):
        assert parse(b"br:/a," + word.encode()) == plain, word


def test_what_a_plain_user_may_not_have_is_told_from_what_nobody_asked_for() -> None:
    assert parse(b"br:/a").allow_other is None
    assert parse(b"br:/a,allow_other").allow_other


def test_who_negotiates() -> None:
    assert parse(b"br:/a").init == "own"
    assert parse(b"br:/a,init=own") == parse(b"br:/a")
    assert parse(b"br:/a,init=pyfuse3").init == "pyfuse3"
    assert "init=own or init=pyfuse3" in str(refused(b"br:/a,init=kernel"))


def test_acls_by_profile_and_by_option() -> None:
    assert not parse(b"br:/a").acl
    assert parse(b"br:/a,acl").acl
    assert parse(b"br:/a,profile=driver").acl
    assert not parse(b"br:/a,profile=driver,noacl").acl
    assert option_string(parse(b"br:/a,acl")) == b"acl,br:/a"


def test_flags() -> None:
    options = parse(b"br:/a,ro,noplink,nosuid,nodev,noexec,noatime,nodiratime,sync,volatile")
    assert options.read_only
    assert not options.plink
    assert not options.suid
    assert not options.dev
    assert not options.exec
    assert options.noatime
    assert options.nodiratime
    assert options.sync
    assert options.volatile
    assert not options.fsync


@pytest.mark.parametrize(
    "word",
    words(
        "add:1:/b ins:0:/b append:/b append=/b prepend:/b del:/b mod:/b=ro idel:1 imod:1:ro "
        "trunc_xino notrunc_xino trunc_xino=/b trunc_xino_path=/b itrunc_xino=1 trunc_xib "
        "notrunc_xib clean_plink list_plink diropq=a dirwh=3 nodirperm1 dirren nodirren warn_perm "
        "nowarn_perm shwh noshwh sum nosum wsum rdcache=10 rdblk=512 rdhash=32 fhsm_sec=30 "
        "verbose v noverbose quiet q silent debug=1 delete=all imap=x droplvl=1 ephemeral "
        "remount udba=notify udba=fsnotify create=rr "
        "create=mfs:30 create=pmfsrr:1000:3 create_policy=tdmfs:9 cpup=bu copyup_policy=bup"
    ),
)
def test_not_yet(word: str) -> None:
    message = str(refused(b"br:/a," + word.encode()))
    assert "not yet" in message
    assert word.partition("=")[0].partition(":")[0] in message


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"noplnik", "'noplink'"),
        (b"profil=driver", "'profile'"),
        (b"xin=/a", "'xino'"),
        (b"frobnicate", "--help"),
        (b"udba=never", "udba=reval"),
        (b"profile=kernel", "profile=aufs"),
        (b"create=nowhere", "create=tdp"),
        (b"noxino=1", "noxino"),
        (b"log=", "log"),
        (b"xino", "xino"),
        (b"dirs:/b", "br:"),
        (b"br:=rw", "no path"),
    ],
)
def test_errors_say_what_to_do(text: bytes, names: str) -> None:
    error = refused(b"br:/a", text)
    assert error.errno == errno.EINVAL
    assert names in str(error)


def test_an_odd_name_does_not_break_the_line() -> None:
    assert r"\n" in str(refused(b"br:/a,x\ny"))
    assert r"\xff" in str(refused(b"br:/a,\xff"))


def test_no_branch() -> None:
    for text in (b"", b"noatime", b"br:", b"br::/a"):
        assert "no branch" in str(refused(text))


def test_a_writable_branch_anywhere() -> None:
    assert branches(b"br:/a=ro:/b=ro+wh") == [(b"/a", "ro"), (b"/b", "ro+wh")]
    assert branches(b"br:/a=ro:/b=rw:/c") == [(b"/a", "ro"), (b"/b", "rw"), (b"/c", None)]


def test_number_of_branches() -> None:
    def listed(count: int) -> bytes:
        return b"br:" + b":".join(b"/%d" % number for number in range(count))

    assert len(parse(listed(127)).branches) == 127
    assert refused(listed(128)).errno == errno.ENOSPC
    assert len(parse(listed(128), b"profile=driver").branches) == 128


def test_unknown_options_may_be_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    lenient = replace(PROFILES["driver"], unknown_options="warn")
    monkeypatch.setitem(PROFILES, "driver", lenient)
    warnings: list[str] = []
    parse_options([b"br:/a,profile=driver,frob,frob,nicate=1"], warnings.append)
    assert len(warnings) == 2  # each name once


# --- printing -----------------------------------------------------------------------------------


def test_canonical_option_string() -> None:
    text = b"br=/a=rw:/b=ro+icexusr+wh,noatime,udba=none,dio,profile=driver,noplink,xino=/x"
    assert (
        option_string(parse(text))
        == b"profile=driver,noplink,noatime,xino=/x,br:/a=rw:/b=ro+icexusr+wh"
    )


def test_kernel_style_string() -> None:
    options = parse(b"br:/a=rw:/b c=ro,noplink,noxino,udba=none")
    assert kernel_style_string(options, "12ab") == b"si=12ab,noxino,udba=none,noplink,dirperm1"
    assert kernel_style_string(options, "12ab", with_branches=True).endswith(
        b",dirperm1,br:/a=rw:/b c=ro"
    )
    driver = default_options(PROFILES["driver"], [BranchSpec(b"/a")])
    assert kernel_style_string(driver, "0") == b"acl,si=0,udba=none,dirperm1"


paths = st.binary(min_size=1, max_size=20).filter(lambda path: b"\0" not in path)
permissions = st.sampled_from(["rw", "ro", "rr", "ro+wh", "rw+nolwh", "ro+icexusr+wh"]).map(
    lambda text: parse_permission(text, lambda _: None)
)
branch_lists = st.lists(
    st.builds(BranchSpec, paths, st.none() | permissions), min_size=1, max_size=5
).map(tuple)
option_sets = st.builds(
    lambda profile, specs, changes: replace(default_options(PROFILES[profile], specs), **changes),
    st.sampled_from(sorted(PROFILES)),
    branch_lists,
    st.fixed_dictionaries(
        {},
        optional={
            "udba": st.sampled_from(["none", "reval"]),
            "plink": st.booleans(),
            "acl": st.booleans(),
            "read_only": st.booleans(),
            "volatile": st.booleans(),
            "suid": st.booleans(),
            "dev": st.booleans(),
            "exec": st.booleans(),
            "noatime": st.booleans(),
            "nodiratime": st.booleans(),
            "sync": st.booleans(),
            "dirsync": st.booleans(),
            "noxino": st.booleans(),
            "log": st.none() | paths,
            "fsname": st.none() | paths,
        },
    ),
)


@given(option_sets)
def test_what_is_printed_parses_back(options: MountOptions) -> None:
    assert parse(option_string(options)) == options


@given(branch_lists)
def test_a_branch_string_parses_back(specs: tuple[BranchSpec, ...]) -> None:
    assert parse(branch_string(specs)).branches == specs


@given(st.lists(st.binary(max_size=40), max_size=3))
def test_only_option_errors_come_out(texts: list[bytes]) -> None:
    message = ""
    try:
        options = parse_options(texts, lambda _: None)
    except OptionError as error:
        message = str(error)
    else:
        assert parse(option_string(options)) == options
    assert message.isprintable()


@given(st.binary())
def test_escaped_values_hold_no_separator(value: bytes) -> None:
    escaped = escape_value(value)
    for pair in (b"\\\\", b"\\,", b"\\:", b"\\="):
        escaped = escaped.replace(pair, b"")
    assert not set(escaped) & set(b",:=\\")


@given(st.binary())
def test_octal_escapes_come_back(name: bytes) -> None:
    escaped = octal_escape(name)
    assert octal_unescape(escaped) == name
    assert not any(byte in b" \t\n\x7f" for byte in escaped)


@given(st.binary())
def test_a_message_is_one_line(name: bytes) -> None:
    assert printable(name).isprintable()
    printable(name).encode()
