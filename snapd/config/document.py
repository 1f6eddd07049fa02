"""`settings_document` and `example_file`: docs/settings.md and systemd/snapd.toml, from the schema.

Renew them with `python -m snapd.config.document > docs/settings.md` and
`python -m snapd.config.document --toml > systemd/snapd.toml`.
"""

from __future__ import annotations

import sys
import textwrap
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from snapd.config.load import DEFAULT_FILE
from snapd.config.settings import BYTE_SETTINGS, Settings, environment_variables

_HINTS: dict[str, Any] = get_type_hints(Settings, include_extras=True)
_BYTE_UNITS = ("", "kb", "mb", "gb", "tb")
_COMMENT_COLUMNS = 98
_LIMITS = {"gt": "over", "ge": "from", "lt": "under", "le": "up to"}


def describe(name: str) -> str:
    """The text that documents a setting."""
    return next(meta.description for meta in _metadata(name) if meta.description)


def settings_document() -> str:
    """The whole file, ending in a line feed."""
    lines = [
        "# Settings",
        "",
        "Generated from `snapd.config.settings`: `python -m snapd.config.document > "
        "docs/settings.md`.",
        "",
        "Later sources win: the defaults below, then the TOML file "
        f"(`{DEFAULT_FILE}`, or `--config FILE`), then the environment, then flags "
        "(`--snapshot-interval-sec 60`). A key in the file is the setting's name. Unknown keys and "
        "bad values are errors that name the key and where it came from; so is a variable that "
        "looks like a misspelt one of these. Where two variables are named, the first wins.",
        "",
        "Sizes in bytes also take text: `512mb`, `4gb`, `1.5GiB`; units are powers of 1024. "
        "Switches take `true`, `false`, `1`, `0`, `yes`, `no`, `on`, `off`.",
        "",
        "| setting | environment | default | values | meaning |",
        "|---|---|---|---|---|",
    ]
    for field in msgspec.structs.fields(Settings):
        cells = (
            f"`{field.name}`",
            ", ".join(f"`{variable}`" for variable in environment_variables(field.name)),
            _default_text(field.name, field.default),
            _values_text(field.name),
            describe(field.name),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def example_file() -> str:
    """A TOML file with every setting at its default, commented out and explained."""
    text = (
        f"Settings of snapd, as {DEFAULT_FILE}. Each line that is commented out is the default. "
        "The environment and flags win over this file. Unknown keys and bad values are errors. "
        "Sizes in bytes also take text such as 512mb or 4gb."
    )
    lines = _comment(text)
    for field in msgspec.structs.fields(Settings):
        lines += ["", *_comment(f"{describe(field.name)} ({_values_text(field.name)})")]
        lines.append(f"# {field.name} = {_toml_text(field.name, field.default)}")
    return "\n".join(lines).replace("`", "") + "\n"


def _comment(text: str) -> list[str]:
    wrapped = textwrap.wrap(text, _COMMENT_COLUMNS - 3, break_on_hyphens=False)
    return [f"## {line}" for line in wrapped]


def _toml_text(name: str, default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if name in BYTE_SETTINGS and isinstance(default, int):
        return str(default) if default < 1024 else f'"{_bytes_text(default)}"'
    if isinstance(default, (int, float)):
        return f"{default:g}"
    if isinstance(default, tuple):
        return "[" + ", ".join(f'"{one}"' for one in default) + "]"
    return f'"{default}"'


def _metadata(name: str) -> tuple[msgspec.Meta, ...]:
    metadata: tuple[msgspec.Meta, ...] = _HINTS[name].__metadata__
    return metadata


def _default_text(name: str, default: object) -> str:
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if name in BYTE_SETTINGS and isinstance(default, int):
        return f"`{_bytes_text(default)}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    if isinstance(default, tuple):
        return f"`{','.join(default)}`"
    return f"`{default}`" if default != "" else "(empty)"


def _bytes_text(count: int) -> str:
    """A whole number of the largest unit that has one, as settings take it."""
    power = 0
    while count and count % 1024 ** (power + 1) == 0 and power + 1 < len(_BYTE_UNITS):
        power += 1
    return f"{count >> 10 * power}{_BYTE_UNITS[power]}"


def _values_text(name: str) -> str:
    base = get_args(_HINTS[name])[0]
    if get_origin(base) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(base))
    if get_origin(base) is tuple:
        counts = next(meta for meta in _metadata(name) if meta.max_length)
        return f"list of {counts.min_length} to {counts.max_length}; in text, commas between"
    number = _bytes_text if name in BYTE_SETTINGS else "{:,}".format
    limits = [
        f"{word} {number(getattr(meta, attribute))}"
        for meta in _metadata(name)
        for attribute, word in _LIMITS.items()
        if getattr(meta, attribute) is not None
    ]
    kind = {bool: "switch", int: "whole number", float: "number", str: "text"}[base]
    if name in BYTE_SETTINGS:
        kind = "bytes"
    limits += [f"up to {m.max_length} characters" for m in _metadata(name) if m.max_length]
    return " ".join([kind, *limits])


if __name__ == "__main__":
    sys.stdout.write(example_file() if sys.argv[1:] == ["--toml"] else settings_document())
