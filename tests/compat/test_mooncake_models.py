"""Blocks of another model never go back into real Mooncake under the same keys."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_ledger import FaultClass, case
from mooncake_deaths import kill_all, start_all
from mooncake_site import MooncakeSite
from sglang_frontend import LABEL, MODEL, SERVER, SglangFrontend

KEYS = [f"model_{number:064x}_0_k" for number in range(100)]
OTHER = SERVER | {"kv_cache_dtype": "bfloat16"}


@pytest.fixture
def sglang() -> Iterator[SglangFrontend]:
    frontend = SglangFrontend()
    frontend.say("/model_info", MODEL)
    frontend.say("/server_info", SERVER)
    frontend.start()
    yield frontend
    frontend.stop()


def test_only_blocks_of_the_model_that_is_served_go_back(
    tmp_path: Path, sglang: SglangFrontend
) -> None:
    with MooncakeSite(tmp_path, sglang_url=sglang.url) as site:
        start_all(site)
        site.until("SGLang's label is known at two looks", lambda: _label(site) == LABEL)
        time.sleep(1.5)  # two looks
        site.client().put_all(KEYS)
        site.until("all are on disk", lambda: site.status()["repository"]["blocks"] == len(KEYS))
        site.snapd.snapshot()

        with case(FaultClass.KILL, "all, and SGLang comes back with another KV format"):
            kill_all(site)
            sglang.say("/server_info", OTHER)
            start_all(site)
            site.until("the other label is known", lambda: _label(site) not in {"", LABEL})
            site.until("they are withheld", lambda: _withheld(site) == len(KEYS))
            assert site.keys() == set()
            assert site.status()["repository"]["blocks"] == len(KEYS)
            site.snapd.wait_ready()

        with case(FaultClass.KILL, "all, and SGLang is away"):
            sglang.stop()
            kill_all(site)
            start_all(site)
            site.until("they are withheld", lambda: _withheld(site) == len(KEYS))
            assert site.keys() == set()

        sglang.say("/server_info", SERVER)
        sglang.start()
        site.until("they are back", lambda: site.keys() == set(KEYS))
        assert set(site.client().read(KEYS).values()) == {1}
        assert _withheld(site) == 0


def _status(site: MooncakeSite) -> dict[str, Any]:
    """What the daemon says; nothing while it starts."""
    code, body = site.snapd.ask("/status")
    return json.loads(body) if code == 200 else {}


def _label(site: MooncakeSite) -> str:
    return str(_status(site).get("fingerprint", {}).get("label", ""))


def _withheld(site: MooncakeSite) -> int:
    return int(_status(site).get("warmup", {}).get("withheld", -1))
