"""What callers pass, checked: keys, and the two forms of `setup`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import numpy as np

from snapd.config.load import parse_bytes
from snapd.errors import SettingError

SOCKET_NAME = "store.sock"


def encode_key(key: Any) -> bytes:
    """A key's bytes: UTF-8 of a `str`, or `bytes` as they are.

    Raises TypeError for anything else, and for text that has no UTF-8.
    """
    if isinstance(key, str):
        try:
            return key.encode()
        except UnicodeEncodeError:
            raise TypeError(f"key {key!r} is not valid Unicode text") from None
    if isinstance(key, bytes):
        return key
    raise TypeError(f"a key must be a str, not {type(key).__name__}")


def encode_keys_of(keys: Any) -> list[bytes]:
    """Keys of a batch. Raises TypeError unless it is a sequence of keys (a `str` is not one)."""
    sequence = as_sequence(keys, "keys")
    try:
        return list(map(str.encode, sequence))  # a third of the time of one call for each key
    except (TypeError, UnicodeEncodeError):
        return [encode_key(key) for key in sequence]


def as_sequence(values: Any, name: str) -> Sequence[Any]:
    """`values` if it is a sequence, or an array of one dimension; text is not a sequence here.

    Raises TypeError.
    """
    is_sequence = hasattr(values, "__len__") and hasattr(values, "__getitem__")
    if not is_sequence or isinstance(values, str | bytes | bytearray | Mapping):
        raise TypeError(f"{name} must be a list, not {type(values).__name__}")
    sequence: Sequence[Any] = values
    return sequence


@dataclass(frozen=True, slots=True)
class SetupArguments:
    """The arguments of `setup`, in the wheel's order and with its defaults."""

    local_hostname: str
    metadata_server: str
    global_segment_size: int
    local_buffer_size: int
    protocol: str
    rdma_devices: str
    master_server_addr: str
    engine: object = None
    enable_ssd_offload: bool = False
    ssd_offload_path: str = ""
    tenant_id: str = "default"
    enable_client_http_server: bool = False
    client_http_port: int = 9300
    fingerprint: str | None = field(default=None, kw_only=True)
    """Not the wheel's: the label of what is put and found; None is the setting."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value, kinds = getattr(self, one.name), _TYPES[str(one.type)]
            if not isinstance(value, kinds):
                raise TypeError(f"setup: {one.name} must be {one.type}, not {value!r}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SetupArguments:
        """From the dictionary form, whose values may be text. Keys that are not known are ignored.

        Raises SettingError when a required key is missing or a value cannot be used.
        """
        for name in ("local_hostname", "metadata_server"):
            if name not in config:
                raise SettingError(f"setup: the configuration has no {name!r}")
        values: dict[str, Any] = dict(_CONFIG_DEFAULTS)
        for one in fields(cls):
            if one.name in config:
                values[one.name] = _parse(one.name, str(one.type), config[one.name])
        return cls(**values)

    def socket_path(self, runtime_dir: str) -> str:
        """The store's socket: `unix:<path>` in `master_server_addr`, else in `runtime_dir`."""
        if self.master_server_addr.startswith("unix:"):
            path = self.master_server_addr.removeprefix("unix:")
            if path.endswith(".sock") and not os.path.isdir(path):
                return path
            runtime_dir = path
        return os.path.join(runtime_dir, SOCKET_NAME)

    def ignored(self) -> dict[str, object]:
        """Arguments that only a network store needs, for the log."""
        names = ("metadata_server", "global_segment_size", "local_buffer_size", "protocol")
        return {name: getattr(self, name) for name in (*names, "rdma_devices")}


_TYPES: dict[str, Any] = {
    "str": str,
    "str | None": str | None,
    "int": int | np.integer,
    "bool": bool | np.bool_,
    "object": object,
}

_CONFIG_DEFAULTS = {
    "global_segment_size": 16 * 2**20,
    "local_buffer_size": 16 * 2**20,
    "protocol": "tcp",
    "rdma_devices": "",
    "master_server_addr": "127.0.0.1:50051",
    **{f.name: f.default for f in fields(SetupArguments) if f.default is not MISSING},
}
"""What the dictionary form leaves out, as the wheel documents it."""


_SIZES = frozenset({"global_segment_size", "local_buffer_size"})
"""May be text with a unit, such as "16MB"."""


def _parse(name: str, kind: str, value: Any) -> Any:
    """One value of the dictionary form as its type. Raises SettingError."""
    if kind == "bool" and isinstance(value, str):
        return value.strip().lower() in {"true", "1", "yes", "on"}
    if kind == "int" and isinstance(value, str):
        try:
            return parse_bytes(value) if name in _SIZES else int(value)
        except ValueError:
            raise SettingError(f"setup: {name} = {value!r} is not a number") from None
    if not isinstance(value, _TYPES[kind]):
        raise SettingError(f"setup: {name} = {value!r} is not {kind}")
    return value
