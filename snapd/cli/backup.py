"""`snapctl backup`: write one consistent state of the repository somewhere else."""

from __future__ import annotations

import sys

import click

from snapd.backup import (
    BackupResult,
    Capture,
    DirectoryPlace,
    RateLimit,
    SaveOptions,
    captured,
    save_place,
    save_stream,
)
from snapd.cli.destination import (
    Target,
    key_file_option,
    rate_limit_option,
    read_key,
    refuse_terminal,
    stdout_descriptor,
)
from snapd.cli.options import REPOSITORY_SETTINGS, json_option, settings_options
from snapd.cli.output import bytes_text, note, write_json, write_line
from snapd.cli.progress import progress
from snapd.cli.repository import open_disk
from snapd.config import Settings
from snapd.disk import Disk
from snapd.disk.simulated import SimulatedDisk
from snapd.disk.streams import StreamSink
from snapd.errors import IntegrityError, RefusedError


@click.command()
@click.argument("destination", metavar="DEST")
@settings_options(*REPOSITORY_SETTINGS)
@key_file_option
@click.option(
    "--level",
    type=click.IntRange(0, 19),
    default=1,
    show_default=True,
    help="Of zstd; 0 does not compress.",
)
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Then remove all but the newest N backups in DEST. Without it, all stay.",
)
@click.option(
    "--reread",
    is_flag=True,
    help="Read what is in DEST already, and copy again what is not whole.",
)
@click.option("--force", is_flag=True, help="Replace DEST, if it is a file that exists.")
@rate_limit_option
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
def backup(
    settings: Settings,
    *,
    destination: str,
    key_file: str | None,
    level: int,
    keep: int | None,
    reread: bool,
    force: bool,
    rate_limit: int,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Write a backup somewhere else, while the daemon runs.

    DEST is a directory (it exists, or ends in `/`), to which only packs are copied that are not
    there yet; a file; `-` for standard output; or `s3://BUCKET/PREFIX`. The state is what a restart
    would find now: the newest snapshot, packs sealed since, and every removal. Nothing is deleted
    from the repository while it is read. Exits with 4 if something could not be read: the backup is
    of the rest then.
    """
    target = Target.parse(destination)
    if target.kind in {"stream", "file"} and (keep or reread):
        raise click.UsageError("--keep and --reread are for a directory or a bucket")
    if target.kind == "stream":
        if as_json and not dry_run:
            raise click.UsageError("--json and the backup cannot both go to standard output")
        if not dry_run:
            refuse_terminal(sys.stdout, "standard output")
    key = read_key(key_file)
    with (
        open_disk(settings) as disk,
        captured(disk) as capture,
        progress("backup") as report,
    ):
        options = SaveOptions(
            key=key,
            level=level,
            pace=RateLimit(rate_limit),
            progress=report,
            reread=reread,
            keep=keep or 0,
            dry_run=dry_run,
        )
        result = _save(target, disk, capture, options, force=force)
    _tell(target, result, as_json=as_json, dry_run=dry_run)
    for finding in result.findings:
        note(f"found: {finding}")
    return IntegrityError.exit_code if result.findings else 0


def _save(
    target: Target, disk: Disk, capture: Capture, options: SaveOptions, *, force: bool
) -> BackupResult:
    if target.kind == "stream":
        sink = StreamSink(-1 if options.dry_run else stdout_descriptor())
        return save_stream(disk, capture, sink, options)
    if target.kind == "file":
        with target.file_place() as (place, name):
            if name in place.names("") and not force:
                raise RefusedError(f"{target.text} exists: say --force to replace it")
            if options.dry_run:
                return save_stream(disk, capture, StreamSink(-1), options)
            results: list[BackupResult] = []
            place.write(
                name, lambda sink: results.append(save_stream(disk, capture, sink, options))
            )
            return results[0]
    if options.dry_run and target.kind == "directory" and not target.exists:
        # An empty directory, without making one.
        return save_place(disk, capture, DirectoryPlace(SimulatedDisk()), options)
    with target.place(create=not options.dry_run) as place:
        return save_place(disk, capture, place, options)


def _tell(target: Target, result: BackupResult, *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        write_json(result)
        return
    # What goes to standard output is the backup.
    say = note if target.kind == "stream" else write_line
    say(
        f"{'would back up' if dry_run else 'backed up'} generation {result.generation}: "
        f"{result.blocks} blocks, {bytes_text(result.bytes)}, in {result.files} files of "
        f"{bytes_text(result.file_bytes)}"
    )
    if target.kind in {"directory", "bucket"}:
        say(f"packs: {result.packs_copied} copied, {result.packs_there} there already")
    if not dry_run:
        say(
            f"wrote {bytes_text(result.bytes_written)}{f' as {result.name}' if result.name else ''}"
        )
    if result.key_id:
        say(f"encrypted with key {result.key_id}")
    if result.removed:
        say(f"removed {result.removed} archives of older backups")
