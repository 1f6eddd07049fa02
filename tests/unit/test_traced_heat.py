"""What clients look up decides what is written first, what comes in, and what a restart keeps."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from daemon_kit import LocalDaemon
from store_kit import LocalStore, StoreClient, content, shared_memory_path

from snapd.blocks import page_id
from snapd.disk.simulated import SimulatedDisk
from snapd.flusher.flush import Flush
from snapd.plans.heat import HALF_LIFE_SECONDS
from snapd.plans.pageheat import Touches

BLOCK = 8000
PARTS = ("0_k", "0_v", "1_k", "1_v")
"""K and V of two ranks."""


class Site:
    def __init__(self, path: str, budget: int = 0) -> None:
        self.path, self.budget = path, budget
        self.disk = SimulatedDisk(1)
        self.store = LocalStore(
            path, global_segment_size=1 << 25, segment_blocks_max=2048, lease_sec=0.001
        )
        # The store's wall clock is this process's, so that reads have the age that they seem to.
        self.store.advance(time.time() - 1.7e9 - self.store.now)
        self.store.on_put_off = self.pump
        self.client: StoreClient = self.store.client()
        self.begin()

    def begin(self) -> None:
        self.daemon = LocalDaemon(
            self.store, self.disk, bytes_max=self.budget, clock=lambda: self.store.now
        )
        self.daemon.attach()
        self.daemon.flush()

    def pump(self) -> None:
        self.daemon.pump()

    def put(self, keys: list[bytes]) -> None:
        for at in range(0, len(keys), 40):
            values = {key: content(len(key) + at, BLOCK) for key in keys[at : at + 40]}
            assert set(self.client.put(values).values()) == {0}

    def ask(self, chain: list[str], times: int = 1) -> None:
        """Look a chain up, now and in the windows after now."""
        pages = np.array([page_id(page) for page in chain], np.uint64)
        for _ in range(times):
            self.store.advance(2.0)
            touches = Touches.of_chain(pages, 0, 0, self.store.now)
            self.daemon.traced.fold(touches)

    def flush_pieces(self, pieces: int) -> list[bytes]:
        """A flush whose deadline comes after so many pieces of four blocks; what is on disk."""
        left = [pieces]

        def deadline() -> float:
            left[0] -= 1
            return float("inf") if left[0] >= 0 else 0.0

        session = self.daemon.session
        assert session is not None
        with closing(session.open_source()) as source:
            Flush(
                session,
                source,
                self.daemon.repository,
                lambda _: None,
                self.daemon.admission,
                self.daemon.traced,
                deadline,
                piece_bytes_max=4 * BLOCK,
            ).run()
        return self.live()

    def live(self) -> list[bytes]:
        catalog = self.daemon.repository.catalog
        return catalog.take(catalog.live_rows()).keys.to_list()

    def heat(self) -> dict[bytes, float]:
        catalog = self.daemon.repository.catalog
        rows = catalog.live_rows()
        heat = catalog.column("heat", rows).tolist()
        return dict(zip(catalog.take(rows).keys.to_list(), heat, strict=True))

    def restart_daemon(self) -> None:
        self.daemon.close()
        self.begin()


def pages_of(name: str, length: int) -> list[str]:
    """A chain of pages."""
    return [hashlib.sha256(f"{name}/{at}".encode()).hexdigest() for at in range(length)]


def keys_of(pages: list[str]) -> list[bytes]:
    """All parts of these pages, one kind after another, children before their parents."""
    return [f"{page}_{part}".encode() for part in PARTS for page in reversed(pages)]


@pytest.fixture
def site() -> Iterator[Site]:
    with shared_memory_path() as path:
        found = Site(path)
        yield found
        found.daemon.close()
        found.store.close()


def test_a_flush_cut_short_has_hot_pages_whole_and_their_parents_first(site: Site) -> None:
    chains = [pages_of(f"chain {number}", 6) for number in range(5)]
    site.put([key for chain in chains for key in keys_of(chain)])
    for number, times in enumerate((2, 5, 1, 4, 3)):
        site.ask(chains[number], times)
    written = site.flush_pieces(9)
    expected = chains[1] + chains[3][:3]
    # The later chains are asked for later, but fewer times within one half-life.
    assert sorted(written) == sorted(keys_of(expected))


def test_what_the_store_counts_does_not_tear_the_parts_of_a_page_apart(site: Site) -> None:
    hot, cold = pages_of("hot", 3), pages_of("cold", 3)
    site.put(keys_of(cold) + keys_of(hot) + [b"no page"])
    site.ask(cold)
    site.ask(hot, 4)
    for _ in range(6):
        site.client.get([f"{cold[2]}_0_k".encode(), b"no page"])
    site.daemon.flush()
    site.daemon.commit()
    heat = site.heat()
    for page in hot + cold:
        assert len({heat[f"{page}_{part}".encode()] for part in PARTS}) == 1
    assert heat[f"{hot[2]}_0_k".encode()] > heat[f"{cold[2]}_0_k".encode()]
    assert heat[b"no page"] > 4, "a block without a page has its own reads"


def test_without_traces_the_store_decides(site: Site) -> None:
    page = pages_of("page", 1)
    site.put(keys_of(page))
    for _ in range(3):
        site.client.get([f"{page[0]}_1_v".encode()])
    assert site.daemon.traced.pages == 0
    site.daemon.flush()
    site.daemon.commit()
    heat = site.heat()
    assert max(heat, key=lambda key: heat[key]) == f"{page[0]}_1_v".encode()


def test_a_restart_begins_with_what_the_manifest_kept(site: Site) -> None:
    hot, warm, cold = pages_of("hot", 3), pages_of("warm", 3), pages_of("cold", 3)
    site.put(keys_of(hot + warm + cold))
    site.ask(cold)
    site.ask(warm, 3)
    site.ask(hot, 9)
    site.daemon.flush()
    site.daemon.commit()
    before = site.heat()
    site.restart_daemon()
    site.daemon.commit()
    for key, heat in site.heat().items():
        assert heat == pytest.approx(before[key], rel=0.1)
    site.ask(warm[:1])
    site.daemon.commit()
    after = site.heat()
    key = f"{warm[0]}_1_v".encode()
    assert after[key] > before[key], "a look-up adds to what was kept"
    assert after[f"{hot[2]}_0_k".encode()] > after[f"{warm[2]}_0_k".encode()]
    assert after[f"{warm[2]}_0_k".encode()] > after[f"{cold[2]}_0_k".encode()]


def test_heat_survives_a_warm_up_in_which_nobody_reads(site: Site) -> None:
    """The store does not know when a block that it loaded back was last read; the manifest does."""
    hot, cold = pages_of("hot", 2), pages_of("cold", 2)
    site.put(keys_of(hot + cold))
    site.ask(cold)
    site.ask(hot, 8)
    site.daemon.flush()
    site.daemon.commit()
    before = site.heat()
    for _ in range(2):
        site.client.close()
        site.daemon.close()
        site.store.kill()
        with open(site.path, "rb+") as segment:
            segment.truncate(0)
        site.store.start()
        site.client = site.store.client()
        site.begin()
        site.daemon.warm()
        site.daemon.flush()
        site.daemon.commit()
        for key, heat in site.heat().items():
            assert heat == pytest.approx(before[key], rel=0.1)


def test_what_is_asked_for_comes_into_a_full_repository() -> None:
    with shared_memory_path() as path:
        site = Site(path, budget=16 * 2**20)
        live_max = site.daemon.budget.look().limits.live_max
        old = pages_of("old", live_max // 8192 // 4 - 1)
        site.put(keys_of(old))
        site.ask(old)
        site.daemon.flush()
        site.daemon.commit()
        full = set(site.live())
        assert full == set(keys_of(old))
        site.store.advance(1.2 * HALF_LIFE_SECONDS)
        wanted, unknown = pages_of("wanted", 5), pages_of("unknown", 5)
        site.put(keys_of(wanted + unknown))
        site.ask(wanted)
        site.daemon.commit()
        result = site.daemon.flush()
        live = set(site.live())
        assert set(keys_of(wanted)) <= live
        assert not live & set(keys_of(unknown)), "what was only put is not twice as hot"
        assert result.left_out["colder"] == len(keys_of(unknown))
        site.ask(unknown)
        site.daemon.commit()
        site.daemon.flush()
        assert set(keys_of(unknown)) <= set(site.live()), "judged again once somebody asked"
        site.daemon.close()
        site.store.close()


def test_blocks_that_leave_the_disk_leave_the_book_of_pages(site: Site) -> None:
    pages = pages_of("page", 50)
    site.put(keys_of(pages))
    site.ask(pages)
    site.daemon.flush()
    site.daemon.commit()
    for _ in range(3):
        site.daemon.compact()
        site.daemon.commit()
        site.daemon.traced.update_catalog()
    heat = site.heat()
    assert len(heat) == 4 * len(pages)
    assert len(set(heat.values())) == 1
    site.client.remove(keys_of(pages[10:]), force=True)
    site.daemon.pump()
    site.daemon.compact()
    site.daemon.commit()
    site.daemon.repository.catalog.shrink(1)
    site.ask(pages[:5])
    site.daemon.traced.update_catalog()
    assert len(site.heat()) == 40
    assert len(site.daemon.traced._row) <= 2 * len(site.daemon.repository.catalog)
