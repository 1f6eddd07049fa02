"""A store with fewer slots than there are blocks on disk: the coldest are given up, and say so."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
from daemon_kit import LocalDaemon
from store_kit import LocalStore, content, shared_memory_path

from snapd.disk.simulated import SimulatedDisk
from snapd.wire.codes import ReturnCode

SEED = 2_205
BLOCKS = {b"key-%02d" % number: content(number, 700) for number in range(40)}
NAMES = list(BLOCKS)


def test_the_coldest_leave_and_what_was_removed_meanwhile_does_not_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = SimulatedDisk(SEED)
    with shared_memory_path() as path:
        store = LocalStore(path, global_segment_size=1 << 20, segment_blocks_max=64)
        daemon = LocalDaemon(store, disk)
        daemon.attach()
        store.client().put(BLOCKS)
        daemon.flush()
        catalog = daemon.repository.catalog
        rows = catalog.live_rows()
        keys = catalog.take(rows).keys.to_list()
        heat = np.array([float(2 ** (NAMES.index(key) / 4)) for key in keys], np.float32)
        catalog.set_heat(rows, heat)
        daemon.repository.commit()  # with this heat, not the store's

        def again(slots: int) -> LocalDaemon:
            daemon.close()
            store.kill()
            os.unlink(path)
            disk.crash()
            store.changes["segment_blocks_max"] = slots
            store.start()
            started = LocalDaemon(store, disk)
            started.attach()
            store.on_put_off = started.pump
            return started

        daemon = again(16)
        assert daemon.recovery.blocks == len(BLOCKS)
        served = store.client().exist(NAMES)
        left_out = served.count(0)
        assert served == [0] * left_out + [1] * (len(BLOCKS) - left_out), "not the coldest"
        assert left_out >= len(BLOCKS) - 16
        assert daemon.registrar.refused_for_space == left_out
        assert daemon.repository.catalog.live_totals()[0] == len(BLOCKS), "gone before it settled"
        assert store.client().remove(NAMES[:1]) == [ReturnCode.OBJECT_NOT_FOUND]
        with caplog.at_level(logging.WARNING):
            result = daemon.flush()
        assert result.no_slot == left_out - 1, "all but the one that was removed"
        assert daemon.flush().no_slot == 0
        [warning] = [record for record in caplog.records if "segment_blocks_max" in record.message]
        assert warning.levelno == logging.WARNING
        assert daemon.repository.catalog.live_totals()[0] == len(BLOCKS) - left_out
        daemon.compact()
        daemon.commit()

        daemon = again(64)
        assert daemon.recovery.blocks == len(BLOCKS) - left_out
        assert store.client().exist(NAMES) == served
        daemon.warm()
        wanted = [
            BLOCKS[name] if there else None for name, there in zip(NAMES, served, strict=True)
        ]
        assert store.client().get(NAMES) == wanted
        daemon.close()
        store.close()


def test_slots_that_suffice_cost_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with shared_memory_path() as path:
        store = LocalStore(path, global_segment_size=1 << 20, segment_blocks_max=64)
        daemon = LocalDaemon(store, SimulatedDisk(SEED))
        daemon.attach()
        store.client().put(BLOCKS)
        with caplog.at_level(logging.WARNING):
            assert daemon.flush().no_slot == 0
            assert daemon.flush().no_slot == 0
        assert daemon.registrar.refused_for_space == 0
        assert not caplog.records
        daemon.close()
        store.close()
