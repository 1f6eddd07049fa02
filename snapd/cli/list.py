"""`snapctl list`: the snapshots in the repository."""

from __future__ import annotations

from typing import Any

import click

from snapd.cli.options import REPOSITORY_SETTINGS, json_option, settings_options
from snapd.cli.output import bytes_text, note, time_text, write_json, write_table
from snapd.cli.repository import open_repository
from snapd.config import Settings
from snapd.errors import NothingThereError
from snapd.repository import Generation


@click.command("list")
@settings_options(*REPOSITORY_SETTINGS)
@json_option
def list_generations(settings: Settings, as_json: bool) -> None:
    """List the snapshots in the repository.

    Newest first. Those that cannot be read are listed with the reason; `verify` tells more.
    """
    with open_repository(settings) as repository:
        generations = repository.generations()[::-1]
    if not generations:
        raise NothingThereError(f"there is no snapshot yet in {settings.persistent_path}")
    if as_json:
        snapshots = [_document(generation) for generation in generations]
        write_json({"path": settings.persistent_path, "snapshots": snapshots})
        return
    readable = [generation for generation in generations if generation.manifest is not None]
    write_table(
        ["generation", "committed", "blocks", "bytes", "packs", "manifest"],
        [_row(generation) for generation in readable],
    )
    for generation in generations:
        if generation.problem:
            note(f"generation {generation.generation} cannot be read: {generation.problem}")


def _document(generation: Generation) -> dict[str, Any]:
    """One snapshot as JSON types; what an unreadable one held is null."""
    manifest = generation.manifest
    return {
        "generation": generation.generation,
        "committed_at": manifest and manifest.committed_ns / 1e9,
        "blocks": manifest and manifest.blocks,
        "bytes": manifest and manifest.bytes,
        "packs": manifest and len(manifest.packs),
        "epoch": manifest and manifest.epoch,
        "fingerprints": manifest and sorted(manifest.fingerprints.values()),
        "file_bytes": generation.file_bytes,
        "problem": generation.problem or None,
    }


def _row(generation: Generation) -> list[str]:
    document = _document(generation)
    return [
        str(document["generation"]),
        time_text(document["committed_at"]),
        str(document["blocks"]),
        bytes_text(document["bytes"]),
        str(document["packs"]),
        bytes_text(document["file_bytes"]),
    ]
