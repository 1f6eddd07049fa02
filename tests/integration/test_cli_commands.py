"""`snapd` and `snapctl` as an operator uses them: real processes, exit codes, JSON, bad input."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_site import BIN, Site, new_site

from snapd import __version__
from snapd.client import MooncakeDistributedStore

BLOCKS = {f"key/{number}": os.urandom(3000 + number) for number in range(40)}


@pytest.fixture
def site() -> Iterator[Site]:
    with new_site() as site:
        yield site


def put_blocks(site: Site) -> None:
    store = MooncakeDistributedStore()
    arguments = {
        "local_hostname": "localhost",
        "metadata_server": "",
        "master_server_addr": f"unix:{site.runtime_dir}",
    }
    assert store.setup(arguments) == 0
    for key, value in BLOCKS.items():
        assert store.put(key, value) == 0
    store.close()


@pytest.fixture(scope="module")
def stopped() -> Iterator[Site]:
    """A repository with two snapshots of the same blocks, whose daemon is stopped."""
    with new_site() as site:
        site.start_daemon()
        put_blocks(site)
        assert site.snapctl("snapshot").code == 0
        assert site.stop_daemon() == 0
        yield site


def test_the_daemons_life_as_snapctl_tells_it(site: Site) -> None:
    site.start_daemon()
    put_blocks(site)
    taken = site.snapctl("snapshot", "--json")
    assert taken.code == 0, taken.err
    assert set(taken.document) >= {"generation", "blocks", "bytes_written", "duration_seconds"}
    assert taken.document["blocks"] == len(BLOCKS)
    assert f"{len(BLOCKS)} blocks" in site.snapctl("snapshot").out

    status = site.snapctl("status", "--json")
    assert status.code == 0
    assert status.document["daemon"] == "running"
    assert status.document["version"] == __version__
    assert "store.up" in site.snapctl("status").out

    # A reader needs no lock: all of these work beside the daemon.
    generations = [
        one["generation"] for one in site.snapctl("list", "--json").document["snapshots"]
    ]
    assert taken.document["generation"] in generations
    verified = site.snapctl("verify", "--json")
    assert verified.code == 0, verified.err
    # What writes does: it is refused while the daemon has the lock.
    rebuilt = site.snapctl("rebuild")
    assert rebuilt.code == 5
    assert "lock" in rebuilt.err
    second = site.command("snapd", "run")
    assert second.code == 5, second.err
    third = site.command("snapd", "store")
    assert third.code == 5, third.err
    assert site.snapctl("status").code == 0, "the first ones do not mind"
    assert site.stop_daemon() == 0


def test_after_sigterm_the_repository_speaks_for_the_daemon(stopped: Site) -> None:
    status = stopped.snapctl("status", "--json")
    assert status.code == 3
    assert status.document["daemon"] == "stopped"
    assert status.document["repository"]["blocks"] == len(BLOCKS)
    assert "no daemon answers" in status.err
    text = stopped.snapctl("status")
    assert text.code == 3
    assert "stopped" in text.out


def test_snapshots_are_listed_and_shown_while_the_daemon_is_stopped(stopped: Site) -> None:
    snapshots = stopped.snapctl("list", "--json").document["snapshots"]
    generations = [one["generation"] for one in snapshots]
    assert generations == sorted(generations, reverse=True)
    assert snapshots[0]["blocks"] == len(BLOCKS)
    newest = str(generations[0])
    assert newest in stopped.snapctl("list").out
    shown = stopped.snapctl("show", newest, "--json")
    assert shown.code == 0, shown.err
    assert shown.document["generation"] == generations[0]
    assert newest in stopped.snapctl("show", newest).out
    missing = stopped.snapctl("show", "4000000000")
    assert missing.code == 3
    assert "4000000000" in missing.err


def test_verify_reads_everything_and_finds_nothing_wrong(stopped: Site) -> None:
    newest = stopped.snapctl("list", "--json").document["snapshots"][0]["generation"]
    for words in ([], [str(newest)], ["--all"], ["--sample", "1/3"]):
        answer = stopped.snapctl("verify", *words, "--json")
        assert answer.code == 0, answer.err
        assert answer.document["findings"] == []
    assert stopped.snapctl("verify", "4000000000").code == 3


@pytest.mark.parametrize(
    "words",
    [
        ["--sample", "3"],
        ["--sample", "0/3"],
        ["--sample", "4/3"],
        ["--sample", f"1/{2**64}"],
        ["1", "--all"],
        ["x"],
        ["0"],
    ],
)
def test_verify_refuses_what_makes_no_sense(stopped: Site, words: list[str]) -> None:
    answer = stopped.snapctl("verify", *words)
    assert answer.code == 2
    assert "Usage" in answer.err


def test_verify_names_a_flipped_byte_and_exits_with_4(site: Site) -> None:
    site.start_daemon()
    put_blocks(site)
    assert site.stop_daemon() == 0
    pack = site.packs()[0]
    with pack.open("r+b") as file:
        file.seek(4096 + 100)
        byte = file.read(1)
        file.seek(4096 + 100)
        file.write(bytes([byte[0] ^ 1]))
    answer = site.snapctl("verify", "--json")
    assert answer.code == 4
    assert any(pack.name in str(finding) for finding in answer.document["findings"])
    assert pack.name in site.snapctl("verify").out


def test_rebuild_makes_a_snapshot_from_packs_alone(site: Site) -> None:
    site.start_daemon()
    put_blocks(site)
    assert site.stop_daemon() == 0
    for manifest in site.manifests():
        manifest.unlink()
    rebuilt = site.snapctl("rebuild", "--json")
    assert rebuilt.code == 0, rebuilt.err
    assert rebuilt.document["blocks"] == len(BLOCKS)
    assert site.snapctl("verify").code == 0


def test_a_damaged_manifest_is_listed_found_and_moved_aside_by_rebuild(site: Site) -> None:
    site.start_daemon()
    put_blocks(site)
    assert site.snapctl("snapshot").code == 0
    assert site.stop_daemon() == 0
    newest = site.manifests()[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])

    listed = site.snapctl("list", "--json")
    assert listed.code == 0
    assert listed.document["snapshots"][0]["blocks"] is None
    assert listed.document["snapshots"][0]["problem"]
    assert listed.document["snapshots"][1]["blocks"] is not None
    assert "cannot be read" in site.snapctl("list").err
    generation = str(listed.document["snapshots"][0]["generation"])
    assert site.snapctl("show", generation).code == 4
    assert site.snapctl("verify").code == 4

    kept = {path.name for path in site.manifests()} - {newest.name}
    rebuilt = site.snapctl("rebuild", "--json")
    assert rebuilt.code == 0, rebuilt.err
    assert rebuilt.document["generation"] >= int(generation)
    assert rebuilt.document["moved_aside"]
    assert kept <= {path.name for path in site.manifests()}, "rebuild deletes nothing"
    assert site.snapctl("verify").code == 0


def test_status_watch_shows_until_it_is_interrupted(site: Site) -> None:
    assert site.snapctl("status", "--watch", "--json").code == 2
    site.start_daemon()
    with subprocess.Popen(
        [str(BIN / "snapctl"), "status", "--watch"],
        env=site.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as watch:
        assert watch.stdout is not None
        assert b"running" in watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        _, errors = watch.communicate(timeout=20)
    assert watch.returncode == -signal.SIGINT
    assert errors.strip() == b""


def test_commands_without_a_repository_exit_with_3(site: Site) -> None:
    for words in (["list"], ["show", "1"], ["verify"], ["rebuild"], ["status"], ["snapshot"]):
        answer = site.snapctl(*words)
        assert answer.code == 3, (words, answer.err)
        assert "Traceback" not in answer.err
        assert not site.repository.exists(), "looking must not make anything"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MOONCAKE_STORE_SNAPSHOT_INTERVAL_SEC", "0"),
        ("MOONCAKE_STORE_SNAPSHOT_INTERVAL_SEC", "abc"),
        ("MOONCAKE_STORE_ENABLE_WARMUP", "maybe"),
        ("SNAPD_HTTP", "not-an-address"),
        ("SNAPD_FLUSH_SECS", "1"),
        ("SNAPD_RUNTIME_DIR", "/tmp/" + "x" * 100),
        ("SNAPD_PERSISTENT_PATH", ""),
    ],
)
def test_a_bad_setting_ends_the_daemon_at_once_with_2(
    site: Site, variable: str, value: str
) -> None:
    answer = site.command("snapd", "run", **{variable: value})
    assert answer.code == 2, answer.err
    assert variable in answer.err or value in answer.err
    assert "Traceback" not in answer.err


def test_a_path_that_cannot_be_written_is_named(site: Site) -> None:
    (site.root / "file").write_text("not a directory")
    path = str(site.root / "file" / "repository")
    answer = site.command("snapd", "run", "--persistent-path", path)
    assert answer.code == 1
    assert path in answer.err
    assert "Traceback" not in answer.err


def test_a_segment_larger_than_shared_memory_is_an_error_and_no_crash(site: Site) -> None:
    answer = site.command("snapd", "store", "--global-segment-size", "900gb")
    assert answer.code == 1, answer.err
    assert "Traceback" not in answer.err
    assert "/dev/shm" in answer.err
    assert "MOONCAKE_GLOBAL_SEGMENT_SIZE" in answer.err
    assert not site.segment.exists()


def test_an_event_log_that_cannot_be_opened_is_named(site: Site) -> None:
    answer = site.command("snapd", "store", "--event-log", str(site.root / "none" / "log"))
    assert answer.code == 2
    assert "--event-log" in answer.err
    assert "Traceback" not in answer.err


def test_flags_win_over_the_environment_and_the_file(site: Site) -> None:
    config = site.root / "snapd.toml"
    config.write_text("retain = 0\n")
    answer = site.command("snapd", "run", "--config", str(config))
    assert answer.code == 2
    assert str(config) in answer.err
    config.write_text('runtime_dir = "/from/the/file"\n')
    where = site.snapctl("snapshot", "--config", str(config)).err
    assert str(site.runtime_dir) in where, "the environment wins over the file"
    where = site.snapctl("snapshot", "--config", str(config), "--runtime-dir", "/by/flag").err
    assert "/by/flag/snapd.sock" in where


def test_a_daemon_that_hangs_is_told_apart_from_one_that_is_not_there(site: Site) -> None:
    site.start_daemon()
    daemon = site.daemons[-1]
    daemon.send_signal(signal.SIGSTOP)
    try:
        answer = site.snapctl("snapshot", "--timeout", "0.3")
    finally:
        daemon.send_signal(signal.SIGCONT)
    assert answer.code == 1
    assert "did not answer" in answer.err
    # After a SIGCONT the kernel hands the next signal to any thread: it must not be lost.
    assert site.stop_daemon() == 0


@pytest.mark.parametrize("name", ["snapd", "snapctl", "mooncake-snapd", "mooncake-snapctl"])
def test_version_and_help(site: Site, name: str) -> None:
    assert site.command(name, "--version").out == f"{name} {__version__}\n"
    assert site.command(name, "-h").out == site.command(name, "--help").out
    assert f"Usage: {name}" in site.command(name, "-h").out


def test_help_is_quick(site: Site) -> None:
    """Best of five, because other work on the machine may slow down any one."""
    times = []
    for _ in range(5):
        began = time.monotonic()
        site.snapctl("--help")
        times.append(time.monotonic() - began)
    assert min(times) < 0.3


def test_the_readmes_example_runs(site: Site, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = readme.split("```python\n", 1)[1].split("```", 1)[0]
    assert "/run/mooncake-snapd" in example
    script = tmp_path / "example.py"
    script.write_text(example.replace("/run/mooncake-snapd", str(site.runtime_dir)))
    site.start_daemon()
    done = subprocess.run(
        [sys.executable, str(script)],
        env=site.environment,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
