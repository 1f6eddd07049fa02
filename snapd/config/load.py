"""`load_settings`: defaults < TOML file < environment < flags, all checked by one schema."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from snapd.config.mooncake import check_mooncake
from snapd.config.settings import BYTE_SETTINGS, Settings, environment_variables
from snapd.errors import SettingError

DEFAULT_FILE = Path("/etc/mooncake-snapd/snapd.toml")

_TYPES = {field.name: field.type for field in msgspec.structs.fields(Settings)}
_VARIABLES = tuple(variable for key in _TYPES for variable in environment_variables(key))
_MISSPELT_RATIO = 0.9
_SEGMENT_SIZE = "MOONCAKE_GLOBAL_SEGMENT_SIZE"
"""In Mooncake 0 bytes are what a store service has that mounts our memory. Where it shares its
environment with snapd, that says nothing of the size of ours."""
_DEFAULTS = Settings()
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


def parse_bytes(text: str) -> int:
    """Bytes in text such as `1048576`, `512mb` or `4GiB`; units are powers of 1024.

    Raises ValueError.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a number of bytes such as 1048576, 512mb or 4gb")
    return int(Decimal(match[1]) * 1024 ** _POWERS[match[2].lower()])


def load_settings(
    file: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """All settings from their sources, later ones winning.

    `file` None reads `DEFAULT_FILE` if it exists; a named file must exist. `flags` with a value of
    None are not set. Raises SettingError that names the key, its source and the way out.
    """
    values: dict[str, Any] = {}
    for key, value in _read_file(file).items():
        values[key] = _check(key, value, str(file or DEFAULT_FILE))
    _refuse_misspelt(environment)
    given = flags or {}
    store = given.get("store") or environment.get("SNAPD_STORE") or values.get("store")
    if store == "mooncake" and _is_no_bytes(environment.get(_SEGMENT_SIZE, "")):
        environment = {name: environment[name] for name in environment if name != _SEGMENT_SIZE}
    for key in _TYPES:
        for variable in reversed(environment_variables(key)):
            if variable in environment:
                values[key] = _check(key, environment[variable], f"environment ({variable})")
    for key, value in given.items():
        if value is not None:
            values[key] = _check(key, value, f"flag (--{key.replace('_', '-')})")
    if values.get("ssd_offload_path") and values.get("store") != "mooncake":
        # Mooncake's files for its own tier are no place for a repository.
        values.setdefault("persistent_path", values["ssd_offload_path"])
    settings = Settings(**values)
    check_mooncake(settings)
    return settings


def _refuse_misspelt(environment: Mapping[str, str]) -> None:
    """Raises SettingError for a variable of ours that is nearly, but not quite, a setting's.

    Other `SNAPD_` variables are let be: Kubernetes puts one in every container for each service.
    """
    unknown = [name for name in environment if name.startswith("SNAPD_") and name not in _VARIABLES]
    for name in unknown:
        if near := difflib.get_close_matches(name, _VARIABLES, n=1, cutoff=_MISSPELT_RATIO):
            raise SettingError(f"unknown setting {name} in environment; did you mean {near[0]}?")


def _is_no_bytes(text: str) -> bool:
    try:
        return parse_bytes(text) == 0
    except ValueError:
        return False


def _read_file(file: Path | None) -> dict[str, Any]:
    if file is None and not DEFAULT_FILE.exists():
        return {}
    path = file or DEFAULT_FILE
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise SettingError(f"cannot read {path}: {error.strerror}; check --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(f"{path} is not valid TOML: {error}") from error


def _check(key: str, value: Any, source: str) -> Any:
    """The value of one setting as its type; text is parsed, because the environment has only text.

    Raises SettingError for an unknown key or a value that its type refuses.
    """
    if key not in _TYPES:
        raise SettingError(f"unknown setting {key!r} in {source}; see docs/settings.md")
    try:
        parsed = _parse_text(key, value) if isinstance(value, str) else value
        return msgspec.convert(parsed, _TYPES[key])
    except (ValueError, msgspec.ValidationError) as error:
        raise SettingError(f"{key} = {value!r} in {source}: {error}") from error


def _parse_text(key: str, text: str) -> Any:
    default = getattr(_DEFAULTS, key)
    if isinstance(default, bool):
        word = text.strip().lower()
        if word not in _TRUE | _FALSE:
            raise ValueError("use one of true, false, 1, 0, yes, no, on, off")
        return word in _TRUE
    if key in BYTE_SETTINGS:
        return parse_bytes(text)
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(default, int):
        return int(text)
    return float(text) if isinstance(default, float) else text
