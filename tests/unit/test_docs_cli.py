"""docs/cli.md is what the commands say; docs/decisions/README.md lists what is there."""

import re
from pathlib import Path

import click

from snapd.cli import snapctl, snapd
from snapd.cli.document import command_document

ROOT = Path(__file__).parents[2]


def test_docs_cli_is_what_the_commands_say() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == command_document(), (
        "renew it: .venv/bin/python -m snapd.cli.document > docs/cli.md"
    )


def test_one_line_of_help_is_the_same_in_the_list_and_in_the_command() -> None:
    for group in (snapd.snapd, snapctl.snapctl):
        context = click.Context(group)
        for name, (module, _, line) in group.members.items():
            command = group.get_command(context, name)
            assert command is not None, module
            assert command.name == name
            assert command.get_short_help_str(200) == line


def test_every_command_has_json_and_help() -> None:
    context = click.Context(snapctl.snapctl)
    for name in snapctl.snapctl.members:
        command = snapctl.snapctl.get_command(context, name)
        assert command is not None
        flags = {flag for option in command.params for flag in option.opts}
        assert "--json" in flags, name


def test_the_index_of_decisions_is_complete_and_its_links_work() -> None:
    directory = ROOT / "docs" / "decisions"
    records = sorted(path.name for path in directory.glob("[0-9]*.md"))
    listed = re.findall(r"\]\((\d{4}-[^)]+\.md)\)", (directory / "README.md").read_text())
    assert listed == records
    numbers = [name[:4] for name in records]
    assert len(set(numbers)) == len(numbers), "a number was given twice"
    for name in records:
        assert (directory / name).read_text().startswith(f"# {name[:4]}: ")
