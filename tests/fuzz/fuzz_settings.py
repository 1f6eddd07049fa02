"""The settings file, and the same texts as environment variables."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import msgspec

from snapd.config import Settings, load_settings
from snapd.config.settings import environment_variables
from snapd.errors import SettingError

_NAMES = [field.name for field in msgspec.structs.fields(Settings)]
_VALUES = ["1", "0", "-1", '"4gb"', "true", "1e400", "nan", "[]", "{}", '"\\u0000"', "9" * 30, '""']
_FILE = Path(tempfile.gettempdir()) / f"snapd-fuzz-{os.getpid()}.toml"


def seeds() -> list[bytes]:
    return [
        b"",
        b'persistent_path = "/var/lib/x"\nretain = 3\n',
        "\n".join(f"{name} = {_VALUES[0]}" for name in _NAMES).encode(),
        "\n".join(f"{name} = 'on'" for name in _NAMES).encode(),
        "\n".join(f'{name} = "512mb"' for name in _NAMES).encode(),
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    lines = data.decode().splitlines()
    line = f"{rng.choice(_NAMES)} = {rng.choice(_VALUES)}"
    if rng.random() < 0.1:
        line = f"{rng.choice(_NAMES)} = {'[' * 3000}"
    chosen = rng.random()
    if chosen < 0.4 or not lines:
        return line.encode()
    lines[rng.randrange(len(lines))] = line if chosen < 0.8 else ""
    return "\n".join(lines).encode()


def check(data: bytes) -> None:
    """Settings or SettingError, from the file and from the environment."""
    _FILE.write_bytes(data)
    try:
        load_settings(_FILE, {})
    except SettingError:
        pass
    finally:
        _FILE.unlink()
    text = data.decode(errors="replace").replace("\0", "")
    name = _NAMES[len(data) % len(_NAMES)]
    try:
        load_settings(None, {environment_variables(name)[0]: text[:200]})
    except SettingError:
        return
