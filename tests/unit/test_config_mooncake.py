"""Addresses of Mooncake's processes that cannot be meant are refused at the start, by their key."""

from __future__ import annotations

import pytest

from snapd.config import load_settings
from snapd.errors import SettingError

STORES = "SNAPD_MOONCAKE_STORES"


@pytest.mark.parametrize(
    "address", ["localhost", "host:x", ":50051", "host:0", "host:65536", "a b:1", "h/x:1", "::1:1"]
)
@pytest.mark.parametrize("key", ["mooncake_master", "mooncake_admin"])
def test_an_address_that_is_no_host_and_port_is_refused(key: str, address: str) -> None:
    environment = {"SNAPD_STORE": "mooncake", f"SNAPD_{key.upper()}": address}
    with pytest.raises(SettingError, match=key):
        load_settings(None, environment)


@pytest.mark.parametrize("address", ["localhost:50051", "10.0.0.1:1", "[::1]:50051", "a-b.c:65535"])
def test_an_address_that_is_one_is_taken(address: str) -> None:
    settings = load_settings(None, {"SNAPD_STORE": "mooncake", "MOONCAKE_MASTER": address})
    assert settings.mooncake_master == address


def test_masters_with_an_election_need_the_admin_address() -> None:
    environment = {"SNAPD_STORE": "mooncake", "MOONCAKE_MASTER": "etcd://10.0.0.1:2379"}
    with pytest.raises(SettingError, match="set mooncake_admin"):
        load_settings(None, environment)
    environment["SNAPD_MOONCAKE_ADMIN"] = "10.0.0.2:9003"
    assert load_settings(None, environment).mooncake_admin == "10.0.0.2:9003"


@pytest.mark.parametrize(
    "urls",
    [
        "http://127.0.0.1:8088,http://127.0.0.1:8088",
        "http://127.0.0.1:8088,http://127.0.0.1:8088/",
        "http://HOST:8088,http://a:1,http://host:8088",
        "http://host,http://host:80",
    ],
)
def test_one_store_service_named_twice_is_refused(urls: str) -> None:
    with pytest.raises(SettingError, match="twice"):
        load_settings(None, {"SNAPD_STORE": "mooncake", STORES: urls})


def test_different_ones_are_taken() -> None:
    urls = "http://host:8088,http://host:8089,http://other:8088"
    settings = load_settings(None, {"SNAPD_STORE": "mooncake", STORES: urls})
    assert len(settings.mooncake_stores) == 3


def test_what_the_bundled_store_does_not_use_is_not_looked_at() -> None:
    assert load_settings(None, {"MOONCAKE_MASTER": "localhost"}).store == "bundled"
