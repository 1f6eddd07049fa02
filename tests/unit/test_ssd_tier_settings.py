"""The settings of the SSD tier: where the repository is, and what is left to Mooncake."""

from __future__ import annotations

import logging

import pytest

from snapd.config import Settings, load_settings
from snapd.daemon.main import _tell_of_offload

OURS = {"MOONCAKE_STORE_PERSISTENT_PATH": "/ours"}
TIER = {"MOONCAKE_ENABLE_SSD_OFFLOAD": "1", "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH": "/tier"}


def test_it_is_off_by_default() -> None:
    assert Settings().enable_ssd_offload is False
    assert load_settings(None, {}).ssd_offload_path == ""


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({}, Settings().persistent_path),
        (TIER, "/tier"),
        (TIER | OURS, "/ours"),
        # Switched off again the repository is where it was.
        (TIER | {"MOONCAKE_ENABLE_SSD_OFFLOAD": "off"}, "/tier"),
        (TIER | {"SNAPD_STORE": "mooncake"}, Settings().persistent_path),
    ],
)
def test_the_repository_is_the_tier(environment: dict[str, str], path: str) -> None:
    assert load_settings(None, environment).persistent_path == path


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, ""),
        (TIER, ""),
        (TIER | OURS, "ssd_offload_path is passed over"),
        (TIER | {"SNAPD_STORE": "mooncake"}, "enable_ssd_offload is left to Mooncake"),
        ({"SNAPD_STORE": "mooncake"}, ""),
    ],
)
def test_what_is_passed_over_is_said(
    caplog: pytest.LogCaptureFixture, environment: dict[str, str], said: str
) -> None:
    with caplog.at_level(logging.INFO):
        _tell_of_offload(load_settings(None, environment))
    assert [said in record.getMessage() for record in caplog.records] == [True] * bool(said)
