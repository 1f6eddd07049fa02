"""A file that a store service mounts in several pieces, as older releases do where the transport
registers only so much memory at once: every piece is found where it lies in the file."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from mooncake_site import MooncakeSite, content

from snapd.attach.mooncake.files import create_segment_file
from snapd.attach.mooncake.layout import Layout, lay_out
from snapd.attach.mooncake.master import MasterAdmin
from snapd.attach.mooncake.service import StoreService

PIECE_BYTES = 16 << 20
PIECES = 4
BLOCK = 1 << 20


def test_pieces_of_a_mount_are_in_the_order_of_its_answer(tmp_path: Path) -> None:
    python = os.environ["SNAPD_TEST_MOONCAKE_OLD_PYTHON"]
    with MooncakeSite(tmp_path, python=python, eviction=(1.0, 0.05)) as site:
        site.start_master()
        site.start_store(prefix=["env", f"MC_MAX_MR_SIZE={PIECE_BYTES}"])
        with (
            closing(MasterAdmin(site.admin)) as admin,
            closing(StoreService(site.store_url())) as service,
            closing(
                create_segment_file(site.stem, PIECES * PIECE_BYTES, group_shared=False)
            ) as file,
        ):
            ids = service.mount(file.name, file.size_bytes).segment_ids
            assert len(ids) == PIECES
            layout = Layout(lay_out(admin.segments(), ids, 0, 0))
            assert [one.start for one in layout.live] == [n * PIECE_BYTES for n in range(PIECES)]
            client = site.client()
            client.put([f"key-{i}" for i in range(PIECES * PIECE_BYTES // BLOCK)], 1, BLOCK)
            keys = admin.keys()
            places = layout.places(admin.locate(keys, layout.segments))
            assert len(keys) > 3 * PIECE_BYTES // BLOCK  # so that all pieces hold some
            for key, start in zip(keys.to_list(), places.offset.tolist(), strict=True):
                found = file.data[start : start + BLOCK].tobytes()
                assert found == content(key.decode(), 1, BLOCK), key
