"""Patterns of `remove_by_regex`: ECMAScript's, as the wheel reads them, in terms of `re`."""

from __future__ import annotations

import re
from collections.abc import Iterator

_CLASSES = {
    b"alnum": b"0-9A-Za-z",
    b"alpha": b"A-Za-z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": b"0-9",
    b"d": b"0-9",
    b"graph": rb"\x21-\x7e",
    b"lower": b"a-z",
    b"print": rb"\x20-\x7e",
    b"punct": rb"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    b"s": rb"\s",
    b"space": rb"\s",
    b"upper": b"A-Z",
    b"w": rb"\w",
    b"xdigit": b"0-9A-Fa-f",
}
"""Members of the named classes, in the form that stands inside brackets."""

_TOKEN = re.compile(
    rb"""
      (?P<escape> \\ (?: c[A-Za-z] | x[0-9A-Fa-f]{2} | u[0-9A-Fa-f]{4} | [0-9]+ | [^xucC0-9] ) )
    | (?P<class> \[ \^? (?: \[:[a-z]+:\] | \\. | [^\]\\] )* \] )
    | (?P<group> \( (?: \?[:=!] | (?!\?) ) )
    | (?P<repeat> (?: [*+?] | \{[0-9]+(?:,[0-9]*)?\} ) \?? )
    | (?P<plain> [^\\\[(*+?{] )
    """,
    re.VERBOSE | re.DOTALL,
)
_MEMBER = re.compile(rb"\[:(?P<name>[a-z]+):\]|(?P<escape>\\.)|(?P<plain>.)", re.DOTALL)
_SHARED_ESCAPES = frozenset(b"bBdDsSwWfnrtv")
"""Letters that mean the same after a backslash in both languages."""


def compile_pattern(pattern: bytes) -> re.Pattern[bytes] | None:
    """The pattern for `search`; None where it is none.

    What only `re` knows, looking behind, named groups, flags, possessive repeats, is no pattern.
    """
    try:
        return re.compile(b"".join(_translated(pattern)))
    except (re.error, OverflowError, RecursionError):
        return None


def _translated(pattern: bytes) -> Iterator[bytes]:
    at, repeated = 0, False
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None or (repeated and token.lastgroup == "repeat"):
            raise re.error("no pattern of ECMAScript")
        text, repeated = token[0], token.lastgroup == "repeat"
        if token.lastgroup == "escape":
            yield _escape(text)
        elif token.lastgroup == "class":
            yield _class(text)
        elif text == b"$":
            yield rb"\Z"  # `re` would also stop before a last line's end
        elif text == b".":
            yield rb"[^\n\r]"
        else:
            yield text
        at = token.end()


def _escape(text: bytes) -> bytes:
    """What follows a backslash outside brackets, or inside."""
    letter = text[1:2]
    if letter == b"c" and len(text) == 3:
        return b"\\x%02x" % (text[2] % 32)
    if letter == b"u":
        number = int(text[2:], 16)
        if number > 0xFF:
            raise re.error("keys are bytes")
        return b"\\x%02x" % number
    if letter in b"x0" or letter.isdigit():
        return rb"\x00" if text == rb"\0" else text
    if letter[0] in _SHARED_ESCAPES:
        return text
    return re.escape(letter)  # `\A` is an A: only `re` knows it as the beginning


def _class(text: bytes) -> bytes:
    """A class in brackets. An empty one matches nothing, and its opposite everything."""
    head, members = (b"[^", text[2:-1]) if text.startswith(b"[^") else (b"[", text[1:-1])
    if not members:
        return rb"(?!)" if head == b"[" else rb"[\x00-\xff]"
    return head + b"".join(map(_member, _MEMBER.finditer(members))) + b"]"


def _member(member: re.Match[bytes]) -> bytes:
    if member["name"]:
        if member["name"] not in _CLASSES:
            raise re.error("no such class")
        return _CLASSES[member["name"]]
    if member["escape"]:
        return rb"\x08" if member[0] == rb"\b" else _escape(member[0])
    return member[0] if member[0] in b"-^" else re.escape(member[0])
