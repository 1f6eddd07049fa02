"""Errors become exit codes in one place; what is printed goes to the right stream."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from snapd.cli.execute import EXIT_CODES, execute
from snapd.cli.group import CONTEXT_SETTINGS, LazyGroup
from snapd.cli.output import bytes_text, write_json, write_table
from snapd.errors import (
    CorruptError,
    DiskError,
    IntegrityError,
    LockHeldError,
    NewerFormatError,
    NothingThereError,
    RefusedError,
    SettingError,
    SnapdError,
)


def command_that(act: Callable[[], object]) -> click.Command:
    @click.command()
    @click.option("--json", "as_json", is_flag=True)
    @click.option("--count", type=int)
    def command(as_json: bool, count: int | None) -> object:
        return act()

    return command


def raiser(error: Exception) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (SnapdError, 1),
        (DiskError, 1),
        (SettingError, 2),
        (NothingThereError, 3),
        (IntegrityError, 4),
        (CorruptError, 4),
        (RefusedError, 5),
        (LockHeldError, 5),
        (NewerFormatError, 5),
    ],
)
def test_each_error_has_its_exit_code_and_no_traceback(
    kind: type[SnapdError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(command_that(raiser(kind("disk x is full"))), "snapctl", []) == code
    assert code in EXIT_CODES
    captured = capsys.readouterr()
    assert captured.err == "snapctl: disk x is full\n"
    assert captured.out == ""


def test_every_error_of_the_tree_has_a_documented_code() -> None:
    kinds = [SnapdError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {kind.exit_code for kind in kinds} <= set(EXIT_CODES) - {0}


def test_with_json_an_error_is_the_one_document_on_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = command_that(raiser(RefusedError("lock held by 12")))
    assert execute(command, "snapctl", ["--json"]) == 5
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": "lock held by 12", "exit_code": 5}
    assert captured.err == "snapctl: lock held by 12\n"


@pytest.mark.parametrize("arguments", [["--no-such"], ["--count", "x"], ["extra"]])
def test_usage_errors_are_2_with_and_without_json(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = command_that(lambda: None)
    assert execute(command, "snapctl", arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage: snapctl" in captured.err
    assert execute(command, "snapctl", [*arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3), (4, 4)])
def test_a_command_returns_its_own_code(returned: int | None, code: int) -> None:
    assert execute(command_that(lambda: returned), "snapctl", []) == code


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        execute(command_that(lambda: 1 // 0), "snapctl", [])


def test_an_interrupt_ends_the_process_by_its_signal() -> None:
    code = (
        "import sys, time, click\n"
        "from snapd.cli.execute import run_main\n"
        "@click.command()\n"
        "def wait():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "run_main(wait)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert b"Traceback" not in errors


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    code = (
        "import click\n"
        "from snapd.cli.execute import run_main\n"
        "@click.command()\n"
        "def talk():\n"
        "    for _ in range(100000):\n"
        "        click.echo('x' * 100)\n"
        "run_main(talk)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 1


MEMBERS = {"one": (__name__, "ONE", "The one."), "other": ("snapd.no_such_module", "x", "Other.")}
ONE = command_that(lambda: 0)


@click.group(cls=LazyGroup, members=MEMBERS, context_settings=CONTEXT_SETTINGS)
def group() -> None:
    """A group."""


def test_help_imports_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("-h", "--help"):
        assert execute(group, "g", [flag]) == 0
        out = capsys.readouterr().out
        assert "one    The one." in out
        assert "other  Other." in out


def test_a_group_runs_the_command_named_and_knows_no_other() -> None:
    assert execute(group, "g", ["one"]) == 0
    assert execute(group, "g", ["two"]) == 2
    assert execute(group, "g", []) == 2
    with pytest.raises(ModuleNotFoundError):
        execute(group, "g", ["other"])


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (5 * 2**30, "5 GiB"),
        (2**61, "2048 PiB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert bytes_text(count) == text


def test_a_table_lines_up_and_sets_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(["name", "blocks"], [["a", "7"], ["longer", "12345"]])
    assert capsys.readouterr().out.splitlines() == [
        "name    blocks",
        "a            7",
        "longer   12345",
    ]


def test_json_takes_what_commands_hold(capsys: pytest.CaptureFixture[str]) -> None:
    import_free = {"id": b"\x01\xff", "size": os.stat_result(range(10)).st_size}
    write_json(import_free)
    assert json.loads(capsys.readouterr().out) == {"id": "01ff", "size": 6}
    with pytest.raises(TypeError):
        write_json({"x": object()})
