"""Events stay one line, in both formats, whatever a key or a path contains."""

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapd.config import Settings, configure_logging, event

LOGGER = logging.getLogger("snapd.test_config_logs")
NASTY = 'a\nlevel=error msg=forged\r\x1b[2J\x85\u2028"quoted" \\ back=slash'


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("snapd")
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def logged(settings: Settings, level: int, message: str, **fields: object) -> str:
    stream = io.StringIO()
    configure_logging(settings, stream)
    event(LOGGER, level, message, **fields)
    return stream.getvalue()


def test_text_has_time_level_message_and_fields_in_order() -> None:
    line = logged(Settings(), logging.INFO, "sealed", pack=7, seconds=0.123456789, durable=True)
    time, rest = line.split(" ", 1)
    assert time.startswith("time=20")
    assert time.endswith("Z")
    assert rest == "level=info msg=sealed pack=7 seconds=0.123457 durable=true\n"


def test_the_warm_up_line_is_word_for_word() -> None:
    message = "Warm up from persistent path: /data/kv, found 42 cached entries."
    assert f'msg="{message}"' in logged(Settings(), logging.INFO, message)
    line = logged(Settings(log_format="json"), logging.INFO, message)
    assert json.loads(line)["msg"] == message


@pytest.mark.parametrize("value", [NASTY, NASTY.encode()])
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_value_can_break_a_line_or_forge_one(log_format: str, value: str | bytes) -> None:
    settings = Settings(log_format=log_format)  # type: ignore[arg-type]
    line = logged(settings, logging.WARNING, NASTY, key=value)
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    if log_format == "json":
        assert json.loads(line)["key"] == NASTY
    else:
        fields = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)(?: |\n)', line)
        assert [name for name, _ in fields] == ["time", "level", "msg", "key"]
        assert json.loads(fields[3][1]) == NASTY


def test_keys_that_are_not_utf8_are_still_readable() -> None:
    assert r'key="k\\xff"' in logged(Settings(), logging.INFO, "m", key=b"k\xff")


def test_json_is_one_object_with_typed_fields() -> None:
    line = logged(
        Settings(log_format="json"), logging.ERROR, "m", n=3, x=0.5, ok=False, path=Path("/a")
    )
    document = json.loads(line)
    assert document.pop("time").endswith("Z")
    assert document == {"level": "error", "msg": "m", "n": 3, "x": 0.5, "ok": False, "path": "/a"}


def test_a_field_cannot_replace_the_time_the_level_or_the_message() -> None:
    line = logged(Settings(log_format="json"), logging.INFO, "m", time="x", msg="y")
    assert json.loads(line)["msg"] == "m"
    assert json.loads(line)["time"] != "x"


def test_percent_signs_are_text() -> None:
    assert 'msg="100% of %s"' in logged(Settings(), logging.INFO, "100% of %s")


def test_events_below_the_level_are_left_out() -> None:
    assert logged(Settings(log_level="warning"), logging.INFO, "m") == ""
    assert logged(Settings(log_level="debug"), logging.DEBUG, "m") != ""


def test_a_traceback_is_a_field_on_the_same_line() -> None:
    stream = io.StringIO()
    configure_logging(Settings(), stream)
    try:
        raise ValueError("bad")
    except ValueError:
        event(LOGGER, logging.ERROR, "failed", exc_info=True)
    line = stream.getvalue()
    assert len(line.splitlines()) == 1
    assert "ValueError: bad" in line
    assert "exc_info" not in line


def test_other_libraries_are_heard_from_warnings_on_and_named() -> None:
    stream = io.StringIO()
    configure_logging(Settings(log_level="debug"), stream)
    logging.getLogger("aiohttp.server").info("chatter")
    logging.getLogger("aiohttp.server").warning("trouble with %s", "a peer")
    assert "chatter" not in stream.getvalue()
    assert 'level=warning msg="trouble with a peer" logger=aiohttp.server' in stream.getvalue()


def test_configuring_again_replaces_the_first_time() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging(Settings(), first)
    configure_logging(Settings(), second)
    event(LOGGER, logging.INFO, "m")
    assert first.getvalue() == ""
    assert second.getvalue().count("msg=m") == 1


def test_under_the_journal_the_time_is_the_journals_and_lines_have_a_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stderr").open("w+") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        configure_logging(Settings(), stream)
        event(LOGGER, logging.WARNING, "m", n=1)
        stream.seek(0)
        assert stream.read() == "<4>level=warning msg=m n=1\n"
    with (tmp_path / "elsewhere").open("w+") as stream:  # inherited, but stderr was redirected
        configure_logging(Settings(), stream)
        event(LOGGER, logging.WARNING, "m", n=1)
        stream.seek(0)
        assert stream.read().startswith("time=")
