"""`snapctl restore`: bring a backup back, all of it or nothing."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from snapd.backup import (
    BackupKey,
    RateLimit,
    RestoreOptions,
    RestoreResult,
    load_place,
    load_stream,
)
from snapd.cli.destination import (
    Target,
    key_file_option,
    opened_disk,
    rate_limit_option,
    read_key,
    refuse_terminal,
)
from snapd.cli.options import REPOSITORY_SETTINGS, json_option, settings_options
from snapd.cli.output import bytes_text, note, time_text, write_json, write_line
from snapd.cli.progress import progress
from snapd.config import Settings
from snapd.disk import Disk
from snapd.disk.simulated import SimulatedDisk
from snapd.disk.streams import StreamSource
from snapd.errors import DiskError, NothingThereError


@click.command()
@click.argument("source", metavar="SOURCE")
@settings_options(*REPOSITORY_SETTINGS)
@key_file_option
@click.option(
    "--number",
    type=click.IntRange(min=1),
    metavar="N",
    help="Backup N of a directory or bucket, not the newest.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Move what is in the target into aside-<n> first; give up an unfinished restore.",
)
@rate_limit_option
@click.option("--dry-run", is_flag=True, help="Read and check everything, and write nothing.")
@json_option
def restore(
    settings: Settings,
    *,
    source: str,
    key_file: str | None,
    number: int | None,
    force: bool,
    rate_limit: int,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Bring a backup back, all of it or nothing.

    It goes into --persistent-path, while no daemon runs. SOURCE is what `backup` was given: a
    directory, a file, `-`, or `s3://BUCKET/PREFIX`. Every byte is checked as it comes, and nothing
    is visible before the end; a restore that was interrupted goes on when the same command is run
    again, and until then the daemon refuses the directory.

    A target that is not empty is refused. With --force its files are moved into aside-<n>, not
    deleted; if it is the repository that the backup is of, what was removed or replaced in it since
    the backup stays so.
    """
    target = Target.parse(source)
    if number is not None and target.kind in {"stream", "file"}:
        raise click.UsageError("--number is for a directory or a bucket")
    if target.kind == "stream":
        refuse_terminal(sys.stdin, "standard input")
    key = read_key(key_file)
    with _target_disk(settings, dry_run=dry_run) as disk, progress("restore") as report:
        options = RestoreOptions(
            force=force, dry_run=dry_run, pace=RateLimit(rate_limit), progress=report
        )
        result = _load(target, disk, key, options, number)
    if as_json:
        write_json(result)
    else:
        _write(result, dry_run=dry_run)
    for finding in result.findings:
        note(f"found: {finding}")
    return 0


@contextmanager
def _target_disk(settings: Settings, *, dry_run: bool) -> Iterator[Disk]:
    """The directory to restore into. A dry run makes none."""
    try:
        with opened_disk(settings.persistent_path, create=not dry_run) as disk:
            yield disk
    except DiskError as error:
        if not dry_run or error.errno != errno.ENOENT:
            raise
        yield SimulatedDisk()  # an empty directory, without making one


def _load(
    target: Target,
    disk: Disk,
    key: BackupKey | None,
    options: RestoreOptions,
    number: int | None,
) -> RestoreResult:
    if target.kind == "stream":
        return load_stream(disk, StreamSource(sys.stdin.fileno()), key, options)
    try:
        if target.kind == "file":
            with target.file_place() as (place, name), place.reading(name) as source:
                return load_stream(disk, source, key, options)
        with target.place(create=False) as parts:
            return load_place(disk, parts, key, options, number=number)
    except DiskError as error:
        if error.errno != errno.ENOENT:
            raise
        raise NothingThereError(f"there is no backup at {target.text}: {error}") from error


def _write(result: RestoreResult, *, dry_run: bool) -> None:
    write_line(
        f"{'whole' if dry_run else 'restored'}: generation {result.generation} of "
        f"{time_text(result.created_at)}, {result.blocks} blocks, {bytes_text(result.bytes)}, in "
        f"{result.files} files of {bytes_text(result.file_bytes)}"
    )
    if result.files_there:
        write_line(f"{result.files_there} files were there from an earlier run")
    if result.blocks_ended:
        write_line(f"{result.blocks_ended} blocks were removed or replaced since, and stay so")
    if result.aside:
        where = "would be" if dry_run else "is"
        write_line(f"what was there before {where} in {result.aside}")
