"""`snapctl verify`: read a snapshot and check every byte of it."""

from __future__ import annotations

import click

from snapd.cli.options import REPOSITORY_SETTINGS, json_option, settings_options
from snapd.cli.output import bytes_text, write_json, write_line
from snapd.cli.progress import progress
from snapd.cli.repository import open_repository
from snapd.config import Settings
from snapd.errors import IntegrityError
from snapd.repository import Sample, Verification

SAMPLE_PARTS_MAX = 1_000_000


def parse_sample(ctx: click.Context, param: click.Parameter, value: str | None) -> Sample | None:
    """`N/T` as a `Sample`; click calls this. Raises click.BadParameter."""
    if value is None:
        return None
    number, _, parts = value.partition("/")
    if not (number.isdecimal() and parts.isdecimal()) or not (
        1 <= int(number) <= int(parts) <= SAMPLE_PARTS_MAX
    ):
        raise click.BadParameter(
            f"{value!r} is not N/T, such as 1/30, with N from 1 to T and T up to {SAMPLE_PARTS_MAX}"
        )
    return Sample(int(number), int(parts))


@click.command()
@click.argument("generation", type=click.IntRange(min=1), required=False)
@settings_options(*REPOSITORY_SETTINGS)
@click.option(
    "--all", "everything", is_flag=True, help="Every manifest, and every block of every pack."
)
@click.option(
    "--sample",
    callback=parse_sample,
    metavar="N/T",
    help="Read the bytes of the Nth of T parts of the blocks: T runs read all.",
)
@json_option
def verify(
    settings: Settings,
    generation: int | None,
    everything: bool,
    sample: Sample | None,
    as_json: bool,
) -> int:
    """Read snapshots and check every byte.

    Without GENERATION, the newest one. Nothing is changed. Exits with 4 if anything is wrong.
    """
    if everything and generation is not None:
        raise click.UsageError("name a GENERATION or --all, not both")
    with open_repository(settings) as repository, progress("verify") as report:
        found = repository.verify(generation, all_blocks=everything, sample=sample, progress=report)
    if as_json:
        write_json(found)
    else:
        _write(found)
    return IntegrityError.exit_code if found.findings else 0


def _write(found: Verification) -> None:
    what = f"generation {found.generation}: " if found.generation else ""
    write_line(
        f"{what}read {found.blocks} blocks, {bytes_text(found.bytes)}, in {found.packs} packs"
    )
    for finding in found.findings:
        affected = f" ({finding.blocks} blocks)" if finding.blocks else ""
        write_line(f"found: {finding.file}: {finding.problem}{affected}")
    if found.quarantine_files:
        write_line(
            f"in the quarantine: {found.quarantine_files} copies of blocks that were bad before, "
            f"{bytes_text(found.quarantine_bytes)}"
        )
    if not found.findings:
        write_line("nothing is wrong")
