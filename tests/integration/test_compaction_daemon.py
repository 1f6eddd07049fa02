"""Compaction beside a store: slots, loads and registrations that know rows from before it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from daemon_kit import LocalDaemon
from store_kit import LocalStore, StoreClient, content, shared_memory_path

from snapd.attach.port import Source
from snapd.attach.session import Session
from snapd.blocks.keys import I64
from snapd.disk.simulated import SimulatedDisk
from snapd.warmup import Registrar
from snapd.warmup.reconcile import drop_dead

SEED = 31_337
BLOCKS = {b"key-%d" % number: content(number, 5000 + number) for number in range(12)}


class Scene:
    """A store whose blocks are all cold, and its daemon."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.disk = SimulatedDisk(SEED)
        self.store = LocalStore(path, global_segment_size=1 << 22, lease_sec=0.001)
        self.client: StoreClient = self.store.client()
        self.daemon = self._attach()
        self.client.put(BLOCKS)
        self.daemon.flush()
        self.daemon.commit()
        self.power_cut()

    def power_cut(self) -> None:
        """What is left is on disk, and registered cold."""
        self.client.close()
        self.daemon.close()
        self.store.kill()
        os.unlink(self.path)
        self.disk.crash()
        self.store.start()
        self.client = self.store.client()
        self.daemon = self._attach()

    def forget_old_packs(self) -> None:
        """Commit until nothing keeps an emptied pack, not even the memory of its rows."""
        for _ in range(self.daemon.repository.retain):
            self.daemon.commit()
        self.daemon.repository.catalog.shrink(rows_min=1)

    def close(self) -> None:
        self.daemon.close()
        self.store.close()

    def _attach(self) -> LocalDaemon:
        daemon = LocalDaemon(self.store, self.disk)
        daemon.attach()
        self.store.on_put_off = daemon.pump
        return daemon


@pytest.fixture
def scene() -> Iterator[Scene]:
    with shared_memory_path() as path:
        made = Scene(path)
        yield made
        made.close()


def test_a_plan_from_before_a_compaction_loads_every_block(scene: Scene) -> None:
    daemon = scene.daemon
    daemon.flush()
    plan = daemon.plan()
    assert len(plan[0]) == len(BLOCKS)
    old = [pack.sequence for pack in daemon.repository.packs()]
    daemon.compact()
    scene.forget_old_packs()
    assert not set(old) & {pack.sequence for pack in daemon.repository.packs()}
    result = daemon.warm(wanted=plan)
    assert (result.loaded, result.rejected, result.failed) == (len(BLOCKS), 0, 0)
    assert scene.client.get(list(BLOCKS)) == list(BLOCKS.values())


def test_slots_go_over_to_the_copies_and_nothing_is_written_again(scene: Scene) -> None:
    daemon = scene.daemon
    daemon.warm(5)
    daemon.flush()
    assert daemon.session is not None
    before = daemon.session.residency.held_rows()
    daemon.compact()
    after = daemon.session.residency.held_rows()
    catalog = daemon.repository.catalog
    assert not set(before.tolist()) & set(after.tolist())
    assert catalog.is_live(after).all()
    assert len(after) == len(BLOCKS)
    result = daemon.flush()
    assert (result.written, result.matched, result.evicted) == (0, 0, 0)


def test_blocks_that_move_while_they_are_registered_are_served(scene: Scene) -> None:
    scene.client.close()
    scene.store.restart()
    scene.client = scene.store.client()
    scene.daemon.compacts_while_attaching = True
    scene.daemon.attach()
    assert scene.client.exist(list(BLOCKS)) == [1] * len(BLOCKS)
    scene.daemon.flush()
    assert scene.daemon.warm().loaded == len(BLOCKS)
    assert scene.client.get(list(BLOCKS)) == list(BLOCKS.values())


class MovesMeanwhile(Registrar):
    """Compaction comes between the list of what to register and its registration."""

    daemon: LocalDaemon

    def _missing(self, session: Session, source: Source) -> I64:
        rows = super()._missing(session, source)
        self.daemon.compact()
        assert not self.daemon.repository.catalog.is_live(rows).any()
        return rows


def test_blocks_that_moved_since_they_were_listed_are_registered(scene: Scene) -> None:
    scene.client.close()
    scene.store.restart()
    scene.client = scene.store.client()
    registrar = MovesMeanwhile(scene.daemon.repository, scene.daemon)
    registrar.daemon = scene.daemon
    scene.daemon.registrar = registrar
    scene.daemon.attach()
    assert scene.client.exist(list(BLOCKS)) == [1] * len(BLOCKS)


def test_a_copy_that_took_over_unseen_is_no_reason_to_drop_a_cold_block(scene: Scene) -> None:
    """As when a session begins in the very step: its slots have not gone over to the copies."""
    daemon = scene.daemon
    daemon.repository.compact([pack.sequence for pack in daemon.repository.packs()])
    assert daemon.session is not None
    with closing(daemon.session.open_sink()) as sink:
        drop_dead(daemon.session, sink, daemon.repository)
    assert scene.client.exist(list(BLOCKS)) == [1] * len(BLOCKS)
    assert daemon.warm().loaded == len(BLOCKS)


def test_what_a_session_has_still_to_let_go_is_let_go_at_the_copies(scene: Scene) -> None:
    """Rows that the store refused to register, and rows that it had no slot for."""
    daemon = scene.daemon
    assert daemon.session is not None
    rows = daemon.repository.catalog.live_rows()
    daemon.session.refused.append(rows[:2])
    daemon.session.no_slot.append(rows[2:4])
    daemon.compact()
    copies = daemon.repository.catalog.newest_copies(rows[:4])
    assert not set(copies.tolist()) & set(rows.tolist())
    assert np.concatenate(daemon.session.refused).tolist() == copies[:2].tolist()
    assert np.concatenate(daemon.session.no_slot).tolist() == copies[2:].tolist()


def test_a_removal_after_a_compaction_finds_the_copy(scene: Scene) -> None:
    daemon = scene.daemon
    daemon.flush()
    daemon.compact()
    gone = sorted(BLOCKS)[:4]
    scene.client.remove(gone)
    daemon.pump()
    scene.forget_old_packs()
    scene.power_cut()
    left = [key for key in BLOCKS if key not in gone]
    assert scene.client.exist([*gone, *left]) == [0] * len(gone) + [1] * len(left)


def test_a_block_that_is_bad_in_every_copy_is_counted_once_and_never_served(scene: Scene) -> None:
    daemon = scene.daemon
    daemon.flush()
    daemon.compact()
    catalog = daemon.repository.catalog
    rows = catalog.live_rows()
    [bad] = rows[[3]].tolist()
    pack = next(one for one in daemon.repository.packs() if one.rows.start <= bad < one.rows.stop)
    data = bytearray(scene.disk.contents(pack.name))
    data[int(catalog.column("pack_offset", np.array([bad]))[0])] ^= 0x40
    scene.disk.replace_contents(pack.name, bytes(data))
    result = daemon.warm()
    assert (result.loaded, result.rejected) == (len(BLOCKS) - 1, 1)
    key = catalog.take(np.array([bad])).keys[0]
    expected = {**BLOCKS, key: None}
    assert scene.client.get(list(BLOCKS)) == [expected[one] for one in BLOCKS]
