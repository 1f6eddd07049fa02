"""Mooncake's wheel, of any version: `setup` with the parameters that the version has.

Whether it has one is read off its signature, or off its version where it shows none; never off the
words of an error. So a TypeError that the wheel raises is about the call, and is let through.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import re
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from snapd.config import event
from snapd.errors import SettingError

SINCE = {
    "enable_ssd_offload": (0, 3, 10),
    "ssd_offload_path": (0, 3, 10),
    "tenant_id": (0, 3, 12),
}
"""The version of Mooncake that brought a parameter of `setup`, as its published wheels have it."""

_DISTRIBUTIONS = ("mooncake-transfer-engine-non-cuda", "mooncake-transfer-engine")
_OVERLOAD = re.compile(r"^(?:\d+\. )?setup\((?P<parameters>.*)\) -> ", re.MULTILINE)
_PARAMETER = re.compile(r"(?:^|, )(\w+): ")

_log = logging.getLogger(__name__)
_warned: set[str] = set()
_warning = threading.Lock()

Claim = Callable[[], tuple[str, Callable[[], None]]]
"""Takes a directory of this rank's own: its path, and what gives it up."""


def setup_parameters(store_class: type) -> frozenset[str]:
    """Names that `store_class.setup` accepts, of those that versions differ in.

    An extension module's function has no signature that Python could read; the first lines of its
    docstring are one, made by the compiler. Where they were left out, the version decides.
    """
    setup = store_class.setup  # type: ignore[attr-defined]
    try:
        parameters = inspect.signature(setup).parameters.values()
    except (TypeError, ValueError):
        overloads = _OVERLOAD.findall(inspect.getdoc(setup) or "")
        names = {name for text in overloads for name in _PARAMETER.findall(text)}
        return frozenset(names & SINCE.keys()) if names else _by_version(_version())
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return frozenset(SINCE)
    return frozenset({parameter.name for parameter in parameters} & SINCE.keys())


def suited(wanted: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Of the parameters that are `wanted`, those that the wheel has; each of the others is named in
    one warning a process. Raises SettingError for one that must not be left out."""
    if "tenant_id" in wanted and "tenant_id" not in known:
        raise SettingError(
            f"tenant_id = {wanted['tenant_id']!r}: this Mooncake has no tenants, and keys of "
            f"several would mix; install {_since('tenant_id')} or newer, or use the default tenant"
        )
    for name in wanted.keys() - known:
        with _warning:
            if name in _warned:
                continue
            _warned.add(name)
        event(
            _log,
            logging.WARNING,
            "this Mooncake has no such parameter: left out",
            parameter=name,
            value=wanted[name],
            installed=_version_text() or "unknown",
            needed=_since(name),
        )
    return {name: value for name, value in wanted.items() if name in known}


def careful_class(base: type, wanted: Mapping[str, Any], claim: Claim) -> type:
    """A subclass of the wheel's class whose `setup` adds those of the parameters `wanted` that this
    version has.

    The value of `ssd_offload_path` is a root below which `claim` takes a directory of this rank's
    own; where the version has no such parameter, nothing is claimed.
    """
    known = setup_parameters(base)

    class CarefulStore(base):
        """The wheel's class, set up with what it knows."""

        def setup(self, *arguments: Any, **named: Any) -> int:
            """As the wheel's. Raises SettingError, LockHeldError, DiskError, and whatever the wheel
            itself raises."""
            more = suited(wanted, known)
            if "ssd_offload_path" in more:
                more["ssd_offload_path"], give_up = claim()
                # Mooncake's files are open until the object goes, whatever is called before that.
                weakref.finalize(self, give_up)
            return int(super().setup(*arguments, **named, **more))

    return CarefulStore


def _by_version(version: tuple[int, ...] | None) -> frozenset[str]:
    """Without a version nothing is known, and nothing is left out: the wheel will say."""
    return frozenset(name for name, since in SINCE.items() if version is None or version >= since)


def _version() -> tuple[int, ...] | None:
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", _version_text())
    return tuple(map(int, numbers.groups())) if numbers else None


def _version_text() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _since(name: str) -> str:
    return ".".join(map(str, SINCE[name]))
