"""`snapctl show`: one snapshot, pack by pack."""

from __future__ import annotations

from typing import Any

import click

from snapd.cli.options import REPOSITORY_SETTINGS, json_option, settings_options
from snapd.cli.output import bytes_text, time_text, write_json, write_line, write_table
from snapd.cli.repository import open_repository
from snapd.config import Settings
from snapd.formats.manifest import Manifest


@click.command()
@click.argument("generation", type=click.IntRange(min=1))
@settings_options(*REPOSITORY_SETTINGS)
@json_option
def show(settings: Settings, generation: int, as_json: bool) -> None:
    """Show one snapshot.

    Its packs with how many of their blocks it uses, the labels of its blocks, and the segments
    that they came from.
    """
    with open_repository(settings) as repository:
        document = _document(generation, repository.show(generation))
    if as_json:
        write_json(document)
        return
    write_line(
        f"generation {generation}, committed {time_text(document['committed_at'])}: "
        f"{document['blocks']} blocks, {bytes_text(document['bytes'])}, epoch {document['epoch']}"
    )
    for label in document["fingerprints"].values():
        write_line(f"fingerprint: {label}")
    rows = [[str(pack[name]) for name in _PACK_COLUMNS] for pack in document["packs"]]
    write_table(_PACK_COLUMNS, rows)


_PACK_COLUMNS = ("sequence", "id", "blocks", "live")


def _document(generation: int, manifest: Manifest) -> dict[str, Any]:
    """A snapshot as JSON types."""
    packs = [
        {
            "sequence": pack.sequence,
            "id": pack.pack_id.hex(),
            "blocks": pack.rows,
            "live": int(manifest.live[rows].sum()),
        }
        for pack, rows in zip(manifest.packs, manifest.rows_of_packs(), strict=True)
    ]
    segments = [
        {"ordinal": one.ordinal, "id": one.segment_id.hex(), "epoch_base": one.epoch_base}
        for one in manifest.incarnations
    ]
    return {
        "generation": generation,
        "committed_at": manifest.committed_ns / 1e9,
        "epoch": manifest.epoch,
        "blocks": manifest.blocks,
        "bytes": manifest.bytes,
        "packs": packs,
        "fingerprints": {str(number): label for number, label in manifest.fingerprints.items()},
        "segments": segments,
    }
