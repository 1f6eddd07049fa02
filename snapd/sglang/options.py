"""`Options`: what the extra config, the JSON file and the environment say.

Mooncake's names come from one source as a whole, as SGLang's own Mooncake backend has it: the extra
config if it names a server, else the JSON file that SGLANG_HICACHE_MOONCAKE_CONFIG_PATH names, else
the environment. snapd's own names, `snapd_<setting>`, are looked up one by one: extra config, JSON
file, then `snapd`'s settings (environment, TOML file, default).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapd.config import load_settings
from snapd.errors import SettingError

CONFIG_PATH_VARIABLE = "SGLANG_HICACHE_MOONCAKE_CONFIG_PATH"
DEFAULT_TENANT = "default"

MOONCAKE_VARIABLES = {
    "master_server_address": "MOONCAKE_MASTER",
    "enable_ssd_offload": "MOONCAKE_ENABLE_SSD_OFFLOAD",
    "ssd_offload_path": "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH",
    "tenant_id": "MOONCAKE_TENANT_ID",
    "standalone_storage": "MOONCAKE_STANDALONE_STORAGE",
}
"""Those of Mooncake's names that snapd reads itself, and their variables."""

_ADDRESSES = ("master_server_address", "client_server_address")
_OWN = ("snapd_store", "snapd_runtime_dir", "snapd_fingerprint", "snapd_trace")
_STORES = ("bundled", "mooncake")
_TRUE, _FALSE = {"true", "1", "yes", "y", "on"}, {"false", "0", "no", "n", "off", ""}


@dataclass(frozen=True, slots=True)
class Options:
    """What was decided, and from where."""

    store: str
    """`bundled` or `mooncake`."""
    runtime_dir: str
    """Directory of snapd's sockets."""
    fingerprint: str
    """Part of the label of blocks, beside what SGLang says of itself."""
    trace: bool
    """Whether lookups are told to the daemon."""
    source: str
    """Where Mooncake's names come from, in words."""
    master: str
    """Address of Mooncake's master, or `unix:<path>` of the bundled store; may be empty."""
    enable_ssd_offload: bool
    ssd_offload_path: str
    tenant_id: str
    standalone_storage: bool

    @property
    def address(self) -> str:
        """Where the bundled store is: `unix:<its runtime directory or socket>`."""
        return self.master if self.master.startswith("unix:") else f"unix:{self.runtime_dir}"


def read_options(extra_config: Mapping[str, Any], environment: Mapping[str, str]) -> Options:
    """All options from their sources. Raises SettingError that names the thing, the value and the
    way out."""
    _refuse_unknown(extra_config, "the extra config")
    path = environment.get(CONFIG_PATH_VARIABLE)
    in_file = _read_json(path) if path is not None else {}
    _refuse_unknown(in_file, f"{path}")
    settings = load_settings(None, environment)
    own: dict[str, Any] = {
        "snapd_store": settings.store,
        "snapd_runtime_dir": settings.runtime_dir,
        "snapd_fingerprint": settings.fingerprint,
        "snapd_trace": True,
        **{name: in_file[name] for name in _OWN if name in in_file},
        **{name: extra_config[name] for name in _OWN if name in extra_config},
    }
    store = own["snapd_store"]
    if store not in _STORES:
        raise SettingError(f"snapd_store = {store!r}: use {' or '.join(map(repr, _STORES))}")
    values, source = _mooncake_names(extra_config, in_file, path, environment, store)
    return Options(
        store=store,
        runtime_dir=_text(own, "snapd_runtime_dir"),
        fingerprint=_text(own, "snapd_fingerprint"),
        trace=_truth(own, "snapd_trace"),
        source=source,
        master=_text(values, "master_server_address"),
        enable_ssd_offload=_truth(values, "enable_ssd_offload"),
        ssd_offload_path=_text(values, "ssd_offload_path"),
        tenant_id=_text(values, "tenant_id").strip() or DEFAULT_TENANT,
        standalone_storage=_truth(values, "standalone_storage"),
    )


def _mooncake_names(
    extra_config: Mapping[str, Any],
    in_file: Mapping[str, Any],
    path: str | None,
    environment: Mapping[str, str],
    store: str,
) -> tuple[Mapping[str, Any], str]:
    """The source that SGLang would take, and its name. The bundled store needs no address, so there
    any of Mooncake's names makes the extra config the source."""
    deciding = _ADDRESSES if store == "mooncake" else (*_ADDRESSES, *MOONCAKE_VARIABLES)
    if any(extra_config.get(name) is not None for name in deciding):
        return extra_config, "the extra config"
    if path is not None:
        return in_file, path
    said = {
        name: environment[variable]
        for name, variable in MOONCAKE_VARIABLES.items()
        if variable in environment
    }
    return said, "the environment"


def _read_json(path: str) -> Mapping[str, Any]:
    """Raises SettingError."""
    way_out = f"correct it, or unset {CONFIG_PATH_VARIABLE}"
    try:
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError(f"{CONFIG_PATH_VARIABLE} = {path!r}: {error}; {way_out}") from error
    if not isinstance(found, dict):
        raise SettingError(f"{CONFIG_PATH_VARIABLE} = {path!r} is no JSON object; {way_out}")
    return found


def _refuse_unknown(values: Mapping[str, Any], source: str) -> None:
    """A misspelt name of ours must not be passed over in silence; others' are not ours to judge."""
    for name in values:
        if name.startswith("snapd_") and name not in _OWN:
            near = difflib.get_close_matches(name, _OWN, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_OWN)}"
            raise SettingError(f"unknown option {name!r} in {source}; {hint}")


def _text(values: Mapping[str, Any], name: str) -> str:
    return _checked(values, name, lambda value: isinstance(value, str), "text") or ""


def _truth(values: Mapping[str, Any], name: str) -> bool:
    """A truth, or a word for one: a JSON file that says "false" must not switch anything on."""
    value = values.get(name)
    if isinstance(value, str):
        word = value.strip().lower()
        if word not in _TRUE | _FALSE:
            raise SettingError(f"{name} = {value!r} is neither true nor false")
        return word in _TRUE
    return bool(
        _checked(values, name, lambda found: isinstance(found, bool | int), "true or false")
    )


def _checked(
    values: Mapping[str, Any], name: str, is_right: Callable[[Any], bool], kind: str
) -> Any:
    """The value, None where there is none. Raises SettingError for one of another kind."""
    value = values.get(name)
    if value is not None and not is_right(value):
        raise SettingError(f"{name} = {value!r} is not {kind}")
    return value
