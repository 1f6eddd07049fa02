"""Settings: which source wins, and that every bad one is refused by name."""

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from snapd.config import Settings, load_settings
from snapd.config.document import describe, example_file, settings_document
from snapd.config.load import parse_bytes
from snapd.config.settings import (
    BYTE_SETTINGS,
    ENVIRONMENT,
    admin_address,
    environment_variables,
)
from snapd.errors import SettingError

NAMES = [field.name for field in msgspec.structs.fields(Settings)]


def file_with(directory: Path, text: str) -> Path:
    path = directory / "snapd.toml"
    path.write_text(text)
    return path


def empty_file(directory: Path) -> Path:
    """So that a settings file of this machine has no part in a test."""
    return file_with(directory, "")


def test_defaults_are_the_contracts(tmp_path: Path) -> None:
    settings = load_settings(empty_file(tmp_path), {})
    assert settings == Settings()
    assert settings.snapshot_interval_sec == 300
    assert settings.enable_warmup is True
    assert settings.http == "127.0.0.1:9470"
    assert (settings.flush_sec, settings.poll_sec, settings.grace_sec) == (5, 5, 25)
    assert (settings.retain, settings.store, settings.codec) == (3, "bundled", "none")


def test_later_sources_win(tmp_path: Path) -> None:
    file = file_with(tmp_path, "retain = 4\nflush_sec = 1\nlease_sec = 2\n")
    environment = {"SNAPD_FLUSH_SEC": "3", "SNAPD_LEASE_SEC": "4"}
    settings = load_settings(file, environment, {"lease_sec": "6", "codec": None})
    assert (settings.retain, settings.flush_sec, settings.lease_sec) == (4, 3, 6)
    assert settings.codec == "none"  # a flag that was not given sets nothing


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("MOONCAKE_STORE_PERSISTENT_PATH", "/data", "persistent_path", "/data"),
        ("SNAPD_PERSISTENT_PATH", "/data", "persistent_path", "/data"),
        ("MOONCAKE_STORE_SNAPSHOT_INTERVAL_SEC", "60", "snapshot_interval_sec", 60.0),
        ("MOONCAKE_STORE_ENABLE_WARMUP", "off", "enable_warmup", False),
        ("MOONCAKE_GLOBAL_SEGMENT_SIZE", "4gb", "global_segment_size", 4 * 2**30),
        ("MOONCAKE_GLOBAL_SEGMENT_SIZE", "3221225472", "global_segment_size", 3 * 2**30),
        ("SNAPD_IO_BYTES_PER_SEC_MAX", "1.5GiB", "io_bytes_per_sec_max", 1536 * 2**20),
        ("SNAPD_RETAIN", "12", "retain", 12),
        ("SNAPD_HTTP", "", "http", ""),
        ("SNAPD_LOG_FORMAT", "json", "log_format", "json"),
        ("MOONCAKE_MASTER", "10.0.0.1:50051", "mooncake_master", "10.0.0.1:50051"),
        ("SNAPD_MOONCAKE_STORES", "http://a:1", "mooncake_stores", ("http://a:1",)),
        (
            "SNAPD_MOONCAKE_STORES",
            "http://a:1, http://[::1]:2,",
            "mooncake_stores",
            ("http://a:1", "http://[::1]:2"),
        ),
    ],
)
def test_the_environment_is_parsed_by_type(
    tmp_path: Path, variable: str, text: str, name: str, value: object
) -> None:
    settings = load_settings(empty_file(tmp_path), {variable: text})
    assert getattr(settings, name) == value
    assert type(getattr(settings, name)) is type(value)


def test_our_own_variable_wins_over_mooncakes(tmp_path: Path) -> None:
    environment = {"MOONCAKE_STORE_PERSISTENT_PATH": "/theirs", "SNAPD_PERSISTENT_PATH": "/ours"}
    assert load_settings(empty_file(tmp_path), environment).persistent_path == "/ours"


@pytest.mark.parametrize("text", ["0", "0gb", " 0b "])
def test_a_store_service_without_memory_of_its_own_says_nothing_to_us(
    tmp_path: Path, text: str
) -> None:
    environment = {"MOONCAKE_GLOBAL_SEGMENT_SIZE": text, "SNAPD_STORE": "mooncake"}
    settings = load_settings(empty_file(tmp_path), environment)
    assert settings.global_segment_size == Settings().global_segment_size
    with pytest.raises(SettingError, match="MOONCAKE_GLOBAL_SEGMENT_SIZE"):
        load_settings(empty_file(tmp_path), environment, {"store": "bundled"})
    load_settings(file_with(tmp_path, 'store = "mooncake"'), {"MOONCAKE_GLOBAL_SEGMENT_SIZE": text})
    environment["SNAPD_GLOBAL_SEGMENT_SIZE"] = "1gb"
    assert load_settings(empty_file(tmp_path), environment).global_segment_size == 2**30
    environment["SNAPD_GLOBAL_SEGMENT_SIZE"] = text
    with pytest.raises(SettingError, match="SNAPD_GLOBAL_SEGMENT_SIZE"):
        load_settings(empty_file(tmp_path), environment)


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "TRUE", " On "])
def test_words_for_true(tmp_path: Path, word: str) -> None:
    environment = {"MOONCAKE_STORE_ENABLE_WARMUP": word}
    assert load_settings(empty_file(tmp_path), environment).enable_warmup is True


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "No"])
def test_words_for_false(tmp_path: Path, word: str) -> None:
    environment = {"MOONCAKE_STORE_ENABLE_WARMUP": word}
    assert load_settings(empty_file(tmp_path), environment).enable_warmup is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("snapshot_interval_sec", "0"),
        ("snapshot_interval_sec", "-1"),
        ("snapshot_interval_sec", "abc"),
        ("snapshot_interval_sec", ""),
        ("snapshot_interval_sec", "nan"),
        ("snapshot_interval_sec", "inf"),
        ("snapshot_interval_sec", "1e300"),
        ("enable_warmup", "maybe"),
        ("enable_warmup", ""),
        ("store", "redis"),
        ("retain", "0"),
        ("retain", "2.5"),
        ("retain", "9" * 500),
        ("codec", "lz4"),
        ("pack_bytes_max", "1kb"),
        ("pack_bytes_max", "a lot"),
        ("global_segment_size", "0"),
        ("global_segment_size", "-4gb"),
        ("global_segment_size", "9" * 400 + "tb"),
        ("io_bytes_per_sec_max", "inf"),
        ("eviction_ratio", "1.01"),
        ("eviction_high_watermark_ratio", "0"),
        ("get_wait_sec", "-0.1"),
        ("log_level", "verbose"),
        ("persistent_path", ""),
        ("runtime_dir", ""),
        ("runtime_dir", "/run/" + "x" * 88),
        ("segment_path", ""),
        ("mooncake_admin", "10.0.0.1"),
        ("mooncake_stores", ""),
        ("mooncake_stores", "127.0.0.1:8088"),
        ("mooncake_stores", "http://a:1/api"),
        ("mooncake_stores", ",".join(f"http://a:{port}" for port in range(1, 66))),
    ],
)
def test_a_bad_value_is_refused_by_name_wherever_it_comes_from(
    tmp_path: Path, name: str, value: str
) -> None:
    file = empty_file(tmp_path)
    variable = environment_variables(name)[-1]
    with pytest.raises(SettingError, match=rf"(?s){name} = .*environment \({variable}\): "):
        load_settings(file, {variable: value})
    flag = "--" + name.replace("_", "-")
    with pytest.raises(SettingError, match=rf"(?s){name} = .*flag \({flag}\): "):
        load_settings(file, {}, {name: value})
    file.write_text(f'{name} = "{value}"\n')
    with pytest.raises(SettingError, match=f"(?s){name} = .*{file}: "):
        load_settings(file, {})


@pytest.mark.parametrize(
    "line",
    [
        "retain = 2.5",
        "retain = true",
        "http = 9470",
        "flush_sec = [1]",
        "enable_warmup = 1",
        'segment_path = "/a\\u0000b"',
    ],
)
def test_a_toml_value_of_another_type_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(SettingError, match=line.split(maxsplit=1)[0]):
        load_settings(file_with(tmp_path, line), {})


def test_an_unknown_key_in_the_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="'snapshot_interval'"):
        load_settings(file_with(tmp_path, "snapshot_interval = 300"), {})
    with pytest.raises(SettingError, match="'daemon'"):
        load_settings(file_with(tmp_path, "[daemon]\nretain = 3"), {})


@pytest.mark.parametrize("variable", ["SNAPD_FLUSH_SECS", "SNAPD_RETIAN", "SNAPD_HTTPS"])
def test_a_misspelt_variable_is_refused_with_the_right_name(tmp_path: Path, variable: str) -> None:
    with pytest.raises(SettingError, match=rf"{variable} .*did you mean SNAPD_[A-Z_]+\?"):
        load_settings(empty_file(tmp_path), {variable: "3"})


def test_variables_that_kubernetes_makes_for_services_do_no_harm(tmp_path: Path) -> None:
    environment = {
        "SNAPD_SERVICE_HOST": "10.0.0.1",
        "SNAPD_PORT": "tcp://10.0.0.1:9470",
        "SNAPD_PORT_9470_TCP_ADDR": "10.0.0.1",
        "SNAPD_STORE_PORT": "tcp://10.0.0.2:1",
        "SNAPD_STORE_SERVICE_PORT_HTTP": "80",
        "SNAPD_TEST_SOMETHING": "1",
    }
    assert load_settings(empty_file(tmp_path), environment) == Settings()


def test_a_file_that_was_named_must_be_there_and_be_toml(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"missing\.toml.*check --config"):
        load_settings(tmp_path / "missing.toml", {})
    with pytest.raises(SettingError, match="cannot read"):
        load_settings(tmp_path, {})
    with pytest.raises(SettingError, match="not valid TOML"):
        load_settings(file_with(tmp_path, "retain = = 3"), {})
    (tmp_path / "latin.toml").write_bytes(b'http = "\xe9"')
    with pytest.raises(SettingError, match="not valid TOML"):
        load_settings(tmp_path / "latin.toml", {})


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1048576", 2**20),
        ("9007199254740993", 2**53 + 1),  # not a float's nearest neighbour
        ("512mb", 2**29),
        ("512 MB", 2**29),
        ("4GiB", 2**32),
        ("4g", 2**32),
        ("1.5k", 1536),
        ("1tb", 2**40),
        ("7b", 7),
        (" 7 ", 7),
    ],
)
def test_text_for_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "b", "gb", "-1", "1e6", "1,000", "4gbs", "4 g b", "0x10", "٤gb x"]
)
def test_text_that_is_no_number_of_bytes(text: str) -> None:
    with pytest.raises(ValueError, match="not a number of bytes"):
        parse_bytes(text)


def test_the_masters_admin_is_on_its_host_unless_it_is_said_where() -> None:
    assert admin_address(Settings(mooncake_master="10.0.0.1:50051")) == "10.0.0.1:9003"
    assert admin_address(Settings(mooncake_master="[::1]:50051")) == "[::1]:9003"
    assert admin_address(Settings(mooncake_admin="other:1")) == "other:1"


def test_every_default_would_pass_its_own_checks() -> None:
    for name in NAMES:
        assert load_settings_from_flag(name) == Settings(), name


def load_settings_from_flag(name: str) -> Settings:
    value: Any = getattr(Settings(), name)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, tuple):
        text = ",".join(value)
    return load_settings(None, {}, {name: text})


def test_every_setting_has_a_variable_of_its_own_and_a_description() -> None:
    variables = [variable for name in NAMES for variable in environment_variables(name)]
    assert len(set(variables)) == len(variables) == len(NAMES) + len(ENVIRONMENT)
    assert set(ENVIRONMENT) <= set(NAMES)
    assert set(NAMES) >= BYTE_SETTINGS
    for name in NAMES:
        assert environment_variables(name)[0] == f"SNAPD_{name.upper()}"
        assert len(describe(name)) > 10, name
        assert describe(name).endswith("."), name


def test_the_defaults_are_finite() -> None:
    numbers = [value for value in msgspec.structs.astuple(Settings()) if isinstance(value, float)]
    assert all(map(math.isfinite, numbers))


def test_docs_settings_is_what_the_schema_says() -> None:
    path = Path(__file__).parents[2] / "docs" / "settings.md"
    assert path.read_text() == settings_document(), (
        "renew it: .venv/bin/python -m snapd.config.document > docs/settings.md"
    )


def test_the_example_file_is_what_the_schema_says() -> None:
    path = Path(__file__).parents[2] / "systemd" / "snapd.toml"
    assert path.read_text() == example_file(), (
        "renew it: .venv/bin/python -m snapd.config.document --toml > systemd/snapd.toml"
    )


def test_every_line_of_the_example_file_is_the_default(tmp_path: Path) -> None:
    lines = example_file().splitlines()
    said = [line.removeprefix("# ") for line in lines if not line.startswith("##")]
    path = tmp_path / "snapd.toml"
    path.write_text("\n".join(said))
    assert len([line for line in said if line]) == len(msgspec.structs.fields(Settings))
    assert load_settings(path, {}) == Settings()
