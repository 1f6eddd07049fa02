"""Settings of Mooncake that only together say whether they can be meant."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from snapd.config.settings import Settings
from snapd.errors import SettingError

_PORT_MAX = 65_535
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})")


def check_mooncake(settings: Settings) -> None:
    """Raises SettingError, naming the key, for addresses that no process can have. Whether one
    listens there is found out later, again and again."""
    if settings.store != "mooncake":
        return
    if "://" not in settings.mooncake_master:
        _check_address("mooncake_master", settings.mooncake_master)
    elif not settings.mooncake_admin:
        raise SettingError(
            f"mooncake_master = {settings.mooncake_master!r} names no host: set mooncake_admin to "
            "the metrics address (host:port) of the master that leads"
        )
    if settings.mooncake_admin:
        _check_address("mooncake_admin", settings.mooncake_admin)
    _check_stores(settings.mooncake_stores)


def _check_address(key: str, address: str) -> None:
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) <= _PORT_MAX:
        raise SettingError(f"{key} = {address!r}: host:port is needed, such as 10.0.0.1:50051")


def _check_stores(urls: tuple[str, ...]) -> None:
    seen: dict[tuple[str, int], str] = {}
    for url in urls:
        try:
            parts = urlsplit(url)
            place = parts.hostname or "", parts.port or 80
        except ValueError as error:
            raise SettingError(f"mooncake_stores: {url!r} is no URL: {error}") from error
        if place in seen:
            raise SettingError(
                f"mooncake_stores names one store service twice: {seen[place]!r} and {url!r}"
            )
        seen[place] = url
