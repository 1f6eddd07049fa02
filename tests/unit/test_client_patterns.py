"""Patterns of `remove_by_regex`: ECMAScript's meaning, whatever `re` would say.

The table of client cases compares some with the wheel; here is what such a table cannot show.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapd.client.patterns import compile_pattern


def finds(pattern: str, text: bytes) -> bool:
    compiled = compile_pattern(pattern.encode())
    assert compiled is not None, pattern
    return compiled.search(text) is not None


@pytest.mark.parametrize(
    ("pattern", "found", "missed"),
    [
        ("a$", b"ba", b"a\n"),
        ("^b", b"ba", b"a\nb"),
        ("a.b", b"a-b", b"a\nb"),
        ("a.b", b"a\xffb", b"a\rb"),
        (r"\Aa\Z", b"AaZ", b"a"),
        (r"a\/b", b"a/b", b"ab"),
        (r"\x41\u0042", b"AB", b"ab"),
        (r"\cA\0", b"\x01\0", b"A0"),
        ("[[:alpha:]_]{3}", b"a_b", b"a1b"),
        ("[^[:digit:]]", b"a", b"12"),
        (r"[\d-]+$", b"1-2", b"1-x"),
        (r"[\b]", b"\b", b"b"),
        ("[a&&b]", b"&", b"c"),
        ("x[^]y", b"x\ny", b"xy"),
        ("(?:ab)+c", b"ababc", b"ac"),
        ("a(?=b)", b"ab", b"ac"),
        ("a(?!b)", b"ac", b"ab"),
        (r"(a|b)\1", b"xaa", b"ab"),
        ("a{2,3}?b", b"aab", b"ab"),
        ("a+?b", b"aab", b"b"),
        ("a}]", b"a}]", b"a"),
    ],
)
def test_what_a_pattern_finds(pattern: str, found: bytes, missed: bytes) -> None:
    assert finds(pattern, found)
    assert not finds(pattern, missed)


@pytest.mark.parametrize(
    "pattern",
    [
        *("[", "(", ")", "*", "?a", "a{2,1}", "a{", "(?i)a", "(?P<n>a)", "(?<=a)b", "(?>a)"),
        *("a++", "a*+", "a**", "[[:none:]]", "[b-a]", r"\u1234", "\\", r"(\2)", "(?#x)a", "(?a:b)"),
    ],
)
def test_what_is_no_pattern(pattern: str) -> None:
    assert compile_pattern(pattern.encode()) is None


@settings(max_examples=50)
@given(text=st.binary(max_size=20))
def test_an_escaped_text_finds_itself_and_nothing_else(text: bytes) -> None:
    special = rb"\^$.*+?()[]{}|/"
    escaped = b"".join(b"\\" + bytes([c]) if c in special else bytes([c]) for c in text)
    compiled = compile_pattern(b"^" + escaped + b"$")
    assert compiled is not None
    assert compiled.search(text)
    assert not compiled.search(text + b"\n")


@settings(max_examples=50)
@given(pattern=st.text("ab|().*+?{}[]^$-\\1,:=!<d", max_size=12))
def test_whatever_is_given_is_a_pattern_or_none(pattern: str) -> None:
    compiled = compile_pattern(pattern.encode())
    assert compiled is None or isinstance(compiled.search(b"abba"), re.Match | None)
