"""`command_document`: docs/cli.md, from the commands themselves.

Renew it with `python -m snapd.cli.document > docs/cli.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from snapd.cli.execute import EXIT_CODES
from snapd.cli.group import CONTEXT_SETTINGS, LazyGroup
from snapd.cli.snapctl import snapctl
from snapd.cli.snapd import snapd

INTRODUCTION = """\
# Commands

Generated from `snapd.cli`: `python -m snapd.cli.document > docs/cli.md`.

`mooncake-snapd` and `mooncake-snapctl` are the same commands under names that no other package has.

With `--json` a command writes one JSON document to stdout, in errors too (`error`, `exit_code`);
messages and progress go to stderr. Settings come from where `docs/settings.md` says.

`list`, `show`, `verify`, `rebuild`, `backup` and `restore` need only the repository: they work
while the daemon is stopped. `prune` and `purge` ask the daemon if one runs, and work on the
repository if none does.

A repository in which any file was written by a newer version is refused by everything that writes
(exit code 5): what that file removed or replaced is not known. Nothing is changed. `list` and
`verify` name the file; run the newer version, or move the directory aside to start with an empty
one. A daemon that is refused leaves a running store as it is, and with `--with-store` starts or
adopts the store before it ends, so that the cache goes on being served, without persistence.
"""

HELP_COLUMNS = 88


def command_document() -> str:
    """The whole file, ending in a line feed."""
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    parts = [INTRODUCTION, f"## Exit codes\n\n| code | meaning |\n|---|---|\n{codes}\n"]
    for group in (snapd, snapctl):
        parts += _group_sections(group)
    return "\n".join(parts)


def _group_sections(group: LazyGroup) -> Iterator[str]:
    name = group.name or ""
    parent = click.Context(
        group, info_name=name, max_content_width=HELP_COLUMNS, **CONTEXT_SETTINGS
    )
    parent.terminal_width = HELP_COLUMNS
    for member in group.list_commands(parent):
        command = group.get_command(parent, member)
        if command is not None:
            context = click.Context(command, parent=parent, info_name=member)
            yield f"## {name} {member}\n\n```\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(command_document())
