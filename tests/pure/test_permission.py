"""Permissions of branches: the table of aufs.md 1.2, and the laws it implies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.branch.permission import ICEX_CLASSES, PRINT_ORDER, Access, parse_permission

# text, canonical form, number of warnings
TABLE = [
    ("rw", "rw", 0),
    ("ro", "ro", 0),
    ("rr", "rr", 0),
    ("", "ro", 0),
    ("ro+wh", "ro+wh", 0),
    ("rr+wh", "rr+wh", 0),
    ("rw+nolwh", "rw+nolwh", 0),
    # unknown words
    ("foo", "ro", 1),
    ("RW", "ro", 1),
    ("foo+wh", "ro", 1),
    ("+wh", "ro", 1),
    # unknown attributes take the rest of the list with them, not what stood before
    ("ro+bar", "ro", 1),
    ("ro+wh+bar+icex", "ro+wh", 1),
    ("ro+bar+wh", "ro", 1),
    ("ro+", "ro", 1),
    # an attribute that does not fit is dropped alone
    ("rw+wh", "rw", 1),
    ("ro+nolwh", "ro", 1),
    ("rr+moo", "rr", 1),
    ("ro+nolwh+wh", "ro+wh", 1),
    ("ro+unpin+wh", "ro+wh", 1),
    # of three answers to one question the last one counts
    ("rw+coo_reg+coo_all", "rw+coo_all", 0),
    ("rw+moo+coo_reg", "rw+coo_reg", 0),
    ("ro+coo_reg+moo", "ro", 1),
    # canonical order, and five that print as one
    ("rw+nolwh+moo+icexoth+icexsec+fhsm", "rw+fhsm+icexsec+icexoth+moo+nolwh", 0),
    ("ro+icexoth+icexusr+icextr+icexsys+icexsec", "ro+icex", 0),
    ("ro+icexsec+icex", "ro+icex", 0),
    ("ro+wh+wh", "ro+wh", 0),
]


@pytest.mark.parametrize(("text", "canonical", "warnings"), TABLE)
def test_table(text: str, canonical: str, warnings: int) -> None:
    heard: list[str] = []
    assert str(parse_permission(text, heard.append)) == canonical
    assert len(heard) == warnings


def test_what_a_permission_allows() -> None:
    def of(text: str) -> tuple[bool, bool, bool]:
        permission = parse_permission(text, lambda _: None)
        return permission.writable, permission.whable, permission.nolwh

    assert of("rw") == (True, True, False)
    assert of("rw+nolwh") == (True, True, True)
    assert of("ro") == (False, False, False)
    assert of("ro+wh") == (False, True, False)
    assert of("rr") == (False, False, False)
    assert of("rr+wh") == (False, True, False)


def test_classes_of_xattrs_that_may_fail() -> None:
    def of(text: str) -> frozenset[str]:
        return parse_permission(text, lambda _: None).ignored_xattr_classes

    assert of("rw") == frozenset()
    assert of("rw+icexusr+moo") == {"icexusr"}
    assert of("rw+icex") == set(ICEX_CLASSES)


words = st.sampled_from([*Access, *PRINT_ORDER, "unpin", "", "x", "Ω", "\udcff"])
texts = st.one_of(st.text(max_size=30), st.lists(words, max_size=8).map("+".join))


@given(texts)
def test_any_text_is_understood_somehow_and_canonically(text: str) -> None:
    permission = parse_permission(text, lambda _: None)
    heard: list[str] = []
    assert parse_permission(str(permission), heard.append) == permission
    assert heard == []


@given(texts)
def test_one_permission_has_one_spelling(text: str) -> None:
    permission = parse_permission(text, lambda _: None)
    words = str(permission).split("+")
    assert words[0] in list(Access)
    assert words[1:] == [name for name in PRINT_ORDER if name in words[1:]]
    assert permission.writable or not permission.nolwh
    assert not (permission.writable and "wh" in permission.attributes)
