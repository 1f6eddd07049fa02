"""SGLang's own backend class, from the published wheel and unmodified, on real Mooncake with snapd
beside it: pages come back byte for byte after a death, whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_wheel import SUPPORT
from fault_ledger import FaultClass, case
from mooncake_deaths import DEATHS, die_and_come_back
from mooncake_site import MooncakeSite
from sglang_site import SGLANG_PYTHON_VARIABLE, SglangBackend

from snapd.attach.mooncake.fingerprint import ModelInfo, ServerInfo

PAGES = 150  # 18.75 MiB a rank


@pytest.fixture
def site(tmp_path: Path) -> Iterator[MooncakeSite]:
    with MooncakeSite(tmp_path, segment_bytes=96 << 20) as site:
        site.start()
        site.start_daemon()
        yield site


def until_durable(site: MooncakeSite) -> None:
    """Every key that the master lists is on disk and in a manifest."""
    site.until(
        "everything is on disk",
        lambda: site.status()["repository"]["blocks"] >= len(site.keys()) > 0,
    )
    site.snapd.snapshot()


def read_all(site: MooncakeSite, sglang: SglangBackend) -> None:
    """Every page, as SGLang reads: what exists. Its client needs a call to notice a new master."""
    site.until("SGLang sees its pages", lambda: sglang.exists(PAGES + 1) == PAGES)
    assert sglang.pages(0, PAGES) == {"right": PAGES}


def test_pages_are_identical_after_the_store_and_then_everything_died(site: MooncakeSite) -> None:
    with SglangBackend(site, ranks=2) as sglang:
        sglang.fill(0, PAGES)
        assert sglang.pages(0, PAGES) == {"right": PAGES}
        until_durable(site)
        keys = site.keys()
        assert len(keys) >= 4 * PAGES

        with case(FaultClass.KILL, "store under SGLang's pages"):
            die_and_come_back(site, "store")
            read_all(site, sglang)
            assert site.snapd.metric("warmup_blocks_total", result="from_memory") >= len(keys)
            assert site.snapd.metric("warmup_blocks_total", result="loaded") == 0

        with case(FaultClass.KILL, "all and its shared memory under SGLang's pages"):
            die_and_come_back(site, "all")
            read_all(site, sglang)
            assert site.snapd.metric("warmup_blocks_total", result="loaded") >= len(keys)


@pytest.mark.long
@pytest.mark.parametrize(("mla", "ranks"), [(False, 1), (True, 1), (True, 2)])
def test_another_sglang_reads_what_the_first_one_left(
    site: MooncakeSite, mla: bool, ranks: int
) -> None:
    with SglangBackend(site, mla=mla, ranks=ranks) as sglang:
        sglang.fill(0, PAGES)
        until_durable(site)
    with case(FaultClass.KILL, f"all and SGLang itself, mla={mla} ranks={ranks}"):
        die_and_come_back(site, "all")
        with SglangBackend(site, mla=mla, ranks=ranks) as sglang:
            read_all(site, sglang)


@pytest.mark.long
def test_a_page_is_never_half_of_before_and_half_of_after(site: MooncakeSite) -> None:
    """SGLang goes on writing while everything dies, time after time."""
    with SglangBackend(site, ranks=2) as sglang:
        first = 0
        for death in DEATHS:
            sglang.fill(first, 50)
            until_durable(site)
            sglang.fill(first + 50, 25)  # may be durable or not
            with case(FaultClass.KILL, f"{death} while SGLang writes pages"):
                die_and_come_back(site, death)
                site.until("SGLang sees its pages", lambda: sglang.exists(50) == 50)
                pages = sglang.pages(0, first + 75)
                assert pages["wrong"] == 0, pages
                assert sglang.pages(first, 50) == {"right": 50}
            first += 75


@pytest.mark.long
def test_sglang_says_the_words_that_the_fingerprint_is_made_of() -> None:
    """The names of the arguments and of the pages, from the published wheel."""
    answer = subprocess.run(
        [os.environ[SGLANG_PYTHON_VARIABLE], str(SUPPORT / "sglang_driver.py"), "--arguments"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    said = json.loads(answer.stdout)
    assert set(ServerInfo.__struct_fields__) <= {*said["arguments"], "hicache_object_layout"}
    assert {"/server_info", "/get_server_info", "/model_info"} <= set(said["pages"])
    assert set(ModelInfo.__struct_fields__) <= set(said["model_info"])
