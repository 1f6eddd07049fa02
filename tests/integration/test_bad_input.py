"""Bad input against real processes: a clear error, the right exit code, and nothing lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import xxhash
from daemon_site import DaemonSite, put_all, wrong_keys

from snapd.formats.segment import HEADER_BYTES, SLOT_DTYPE, decode_header

FIRST = [f"first-{number}" for number in range(40)]
SECOND = [f"second-{number}" for number in range(40)]
KEYS = FIRST + SECOND
PAGE_BYTES = 4096


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path, snapshot_interval_sec=3600, flush_sec=3600) as site:
        yield site
        with contextlib.suppress(FileNotFoundError):
            os.unlink(site.segment_path + ".bad")


def fill(site: DaemonSite) -> None:
    """Start everything; two packs, a generation over one and another over both. Only a request
    flushes, so what is in which pack is certain."""
    site.start()
    client = site.client()
    for keys in (FIRST, SECOND):
        put_all(client, keys)
        site.snapshot()
    client.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as `fill` leaves it."""
    directory = tmp_path_factory.mktemp("filled")
    with DaemonSite(directory, snapshot_interval_sec=3600, flush_sec=3600) as site:
        fill(site)
        site.kill_daemon()
        return site.repository


@pytest.fixture
def stopped(site: DaemonSite, filled: Path) -> DaemonSite:
    """A site that is not started yet, with that repository."""
    shutil.copytree(filled, site.repository)
    return site


def command(site: DaemonSite, *words: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run `snapd` or `snapctl` to its end; it says what is wrong without a traceback."""
    ours = site._settings | settings
    answer = subprocess.run(
        [str(Path(sys.executable).parent / words[0]), *words[1:]],
        env=os.environ | {f"SNAPD_{name.upper()}": str(value) for name, value in ours.items()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in answer.stderr, answer.stderr
    return answer


def files(site: DaemonSite, directory: str) -> list[Path]:
    """The packs or manifests, oldest first."""
    return sorted((site.repository / directory).iterdir())


def contents(paths: Sequence[Path]) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in paths}


def flip(path: Path | str, offset: int) -> None:
    """Flip one bit; a negative offset counts from the end."""
    with open(path, "r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def make_newer(path: Path) -> None:
    """Let a manifest or a pack say that a later version wrote it."""
    raw = bytearray(path.read_bytes())
    for page in (0, len(raw) - PAGE_BYTES):
        struct.pack_into("<I", raw, page + 8, 99)
        checksum = xxhash.xxh3_64_intdigest(bytes(raw[page : page + PAGE_BYTES - 8]))
        struct.pack_into("<Q", raw, page + PAGE_BYTES - 8, checksum)
    path.write_bytes(raw)


# --- settings and paths ---------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "/below"])
def test_a_file_in_the_place_of_the_repository_is_named_and_stays(
    site: DaemonSite, tmp_path: Path, inside: str
) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    path = f"{file}{inside}"
    answer = command(site, "snapd", "run", persistent_path=path)
    assert answer.returncode == 1
    assert f"persistent_path = '{path}'" in answer.stderr
    assert "directory that can be written" in answer.stderr
    assert file.read_text() == "precious"


def test_what_is_no_file_is_never_taken_for_a_segment(site: DaemonSite, tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(os.devnull)
    for path in (pipe, link):
        answer = command(site, "snapd", "store", segment_path=path)
        assert answer.returncode == 1
        assert f"{path} is not a regular file: set another segment_path" in answer.stderr
    assert pipe.is_fifo()
    assert link.is_char_device()


def test_a_runtime_directory_that_is_a_file_is_no_running_store(
    site: DaemonSite, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    answer = command(site, "snapd", "store", runtime_dir=tmp_path / "file")
    assert answer.returncode == 2
    assert "Not a directory" in answer.stderr
    assert "check runtime_dir" in answer.stderr


def test_a_port_in_use_is_named_and_no_store_is_left_running(site: DaemonSite) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        http = f"127.0.0.1:{taken.getsockname()[1]}"
        answer = command(site, "snapd", "run", "--with-store", http=http)
    assert answer.returncode == 2
    assert http in answer.stderr
    assert "set another one" in answer.stderr
    assert site.store_process() is None


def test_looking_where_no_repository_is_makes_nothing(site: DaemonSite) -> None:
    site.repository.mkdir()
    for words in (["list"], ["show", "1"], ["verify"], ["rebuild"]):
        answer = command(site, "snapctl", *words)
        assert answer.returncode == 3, words
        assert str(site.repository) in answer.stderr
        assert files(site, "") == []


def test_other_files_in_the_directory_of_a_repository_stay(stopped: DaemonSite) -> None:
    theirs = stopped.repository / "notes.tmp"
    theirs.write_text("precious")
    (stopped.repository / "directory.tmp").mkdir()
    ours = stopped.repository / "repository.json.tmp"
    ours.write_text("unfinished")
    stopped.start_store()
    stopped.start_daemon()
    assert wrong_keys(stopped.client(), KEYS) == []
    assert theirs.read_text() == "precious"
    assert not ours.exists()


def test_a_repository_of_a_newer_format_is_refused_and_not_touched(stopped: DaemonSite) -> None:
    identity = stopped.repository / "repository.json"
    document = json.loads(identity.read_text())
    identity.write_text(json.dumps(document | {"format_version": 99, "checksum": ""}))
    unfinished = stopped.repository / "packs" / "of-the-newer-one.tmp"
    unfinished.touch()
    for words in (["snapd", "run"], ["snapctl", "list"], ["snapctl", "rebuild"]):
        answer = command(stopped, *words)
        assert answer.returncode == 5, words
        assert "format version 99" in answer.stderr
        assert unfinished.exists()


def test_an_unfinished_restore_is_refused_and_not_touched(
    stopped: DaemonSite,
) -> None:
    (stopped.repository / "restoring").write_text("{}")
    before = sorted(path.name for path in stopped.repository.rglob("*"))
    for words in (["snapd", "run"], ["snapctl", "list"], ["snapctl", "rebuild"]):
        answer = command(stopped, *words)
        assert answer.returncode == 5, words
        assert "is not finished" in answer.stderr
    assert sorted(path.name for path in stopped.repository.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "settings", "code"),
    [
        (["nonsense"], {}, 2),
        (["list", "--nonsense"], {}, 2),
        (["verify", "--sample", "3/0"], {}, 2),
        (["status"], {"snapshot_interval_sec": "0"}, 2),
        (["list"], {"snapshot_interval_second": "1"}, 2),
        (["status"], {}, 3),
        (["snapshot"], {}, 3),
    ],
)
def test_an_error_is_one_json_document_too(
    site: DaemonSite, words: list[str], settings: dict[str, object], code: int
) -> None:
    answer = command(site, "snapctl", *words, "--json", **settings)
    assert answer.returncode == code
    document = json.loads(answer.stdout)
    assert document["exit_code"] == code
    assert document["error"] in answer.stderr


# --- clients, sockets, seconds --------------------------------------------------------------------


def test_what_a_client_may_not_put_costs_nobody_anything(site: DaemonSite) -> None:
    site.start()
    client = site.client()
    put_all(client, KEYS)
    large = bytes(40 << 20)
    assert client.put("k" * 1025, b"value") == -400
    assert client.put("k" * 1024, b"value") == 0
    assert client.put("large", large) == -200
    assert client.put_batch(["small", "large"], [b"value", large]) == -200
    assert client.is_exist("large") == 0
    assert wrong_keys(client, KEYS) == []
    site.snapshot()
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()
    assert wrong_keys(site.client(), KEYS) == []
    assert site.client().get("k" * 1024) == b"value"


def test_a_second_daemon_of_another_repository_is_refused(site: DaemonSite) -> None:
    site.start()
    put_all(site.client(), KEYS)
    answer = command(site, "snapd", "run", persistent_path=site.directory / "another")
    assert answer.returncode == 5
    assert "another daemon serves" in answer.stderr
    assert "runtime_dir" in answer.stderr
    site.snapshot()
    assert wrong_keys(site.client(), KEYS) == []


def test_garbage_and_half_a_request_on_the_control_socket(site: DaemonSite) -> None:
    site.start()
    halves = [b"", b"GET /status HTTP/1.1\r\nHost", b"\r\n\r\n"]
    with contextlib.ExitStack() as stack:

        def say(words: bytes) -> socket.socket:
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(str(site.runtime / "snapd.sock"))
            one.settimeout(10)
            one.sendall(words)
            return one

        waiting = [say(words) for words in halves]
        for garbage in (bytes(64), b"\xff" * 5000, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n"):
            with contextlib.suppress(ConnectionError):  # hung up before all of it was sent
                assert b" 400 " in say(garbage).recv(64)
        assert site.ask("/readyz")[0] == 200
        for one in waiting:
            assert one.recv(64) == b"", "closed after a few seconds"
    site.snapshot()
    assert site.stop_daemon() == 0


def test_a_second_sigterm_does_not_cut_the_last_flush_short(site: DaemonSite) -> None:
    site.start()
    put_all(site.client(), KEYS)
    assert site.daemon is not None
    site.daemon.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    assert site.stop_daemon() == 0
    assert site.stop_store() == 0
    site.wipe_segment()
    site.start()
    assert wrong_keys(site.client(), KEYS) == []


def test_sigterm_during_the_start_leaves_everything_as_it_was(stopped: DaemonSite) -> None:
    stopped.start_store()
    for seconds in (0.2, 0.5, 0.8):
        stopped.start_daemon(wait=False)
        time.sleep(seconds)
        # Before the interpreter has read the program, the signal is the system's to handle.
        assert stopped.stop_daemon() in {0, -signal.SIGTERM}
    stopped.start_daemon()
    assert wrong_keys(stopped.client(), KEYS) == []
    assert "Traceback" not in stopped.log.read_text()


def test_a_store_that_dies_again_and_again_and_forgets(stopped: DaemonSite) -> None:
    stopped.start_store()
    stopped.start_daemon()
    for _ in range(3):
        stopped.kill_store()
        stopped.wipe_segment()
        stopped.start_store()
    client = stopped.client()
    stopped.until("all is back", lambda: wrong_keys(client, KEYS) == [])
    # Nothing is dropped by a commit in between: it is all in the repository still.
    stopped.snapshot()
    assert stopped.stop_daemon() == 0
    stopped.kill_store()
    stopped.wipe_segment()
    stopped.start()
    assert wrong_keys(stopped.client(), KEYS) == []


# --- damage on disk -------------------------------------------------------------------------------


def test_a_manifest_of_a_newer_format_is_refused_and_nothing_is_touched(
    stopped: DaemonSite,
) -> None:
    newest = files(stopped, "manifests")[-1]
    readable = newest.read_bytes()
    make_newer(newest)
    before = contents(files(stopped, "manifests") + files(stopped, "packs"))
    shown = command(stopped, "snapctl", "show", "2")
    assert shown.returncode == 5
    assert "format version 99" in shown.stderr
    refused = command(stopped, "snapd", "run")
    assert refused.returncode == 5
    assert f"manifests/{newest.name}" in refused.stderr
    assert "move the repository aside" in refused.stderr
    assert contents(list(before)) == before
    newest.write_bytes(readable)
    stopped.start()
    assert wrong_keys(stopped.client(), KEYS) == []


def test_flipped_bits_in_packs_cost_nothing_while_the_store_has_the_blocks(
    site: DaemonSite,
) -> None:
    fill(site)
    site.kill_daemon()
    packs = files(site, "packs")
    flip(packs[0], 40)  # in the header, which the trailer repeats
    flip(packs[1], -PAGE_BYTES - 2000)  # in the index
    damaged = set(contents(packs).values())
    found = command(site, "snapctl", "verify", "--json")
    assert found.returncode == 4
    named = {finding["file"] for finding in json.loads(found.stdout)["findings"]}
    assert named == {f"packs/{pack.name}" for pack in packs}
    site.start_daemon()
    for _ in range(4):
        site.snapshot()
    kept = [*files(site, "packs"), *Path(site.repository).glob("aside-*/*")]
    assert damaged <= set(contents(kept).values()), "what cannot be read is not deleted"
    site.kill_daemon()
    site.kill_store()
    site.wipe_segment()
    site.start()
    assert wrong_keys(site.client(), KEYS) == []


def test_a_pack_that_is_lost_takes_no_other_block_with_it(stopped: DaemonSite) -> None:
    flip(files(stopped, "packs")[0], -PAGE_BYTES - 2000)
    stopped.start()
    client = stopped.client()
    assert [client.get(key) for key in FIRST] == [b""] * len(FIRST)
    assert wrong_keys(client, SECOND) == []
    assert stopped.metric("blocks_quarantined_total") == len(FIRST)


# --- damage in shared memory ----------------------------------------------------------------------


def flip_in_header(path: str) -> None:
    flip(path, 40)


def flip_in_slot(path: str) -> None:
    """In the size of the last slot that is in use."""
    with open(path, "rb") as file:
        geometry = decode_header(file.read(HEADER_BYTES))
    with open(path, "rb") as file:
        file.seek(geometry.slots_offset)
        slots = file.read(geometry.slot_count * SLOT_DTYPE.itemsize)
    width = SLOT_DTYPE.itemsize
    used = [at for at in range(0, len(slots), width) if any(slots[at : at + width])]
    flip(path, geometry.slots_offset + used[-1] + 16)


@pytest.mark.parametrize("damage", [flip_in_header, flip_in_slot])
def test_a_flipped_bit_in_a_segment_is_found_and_the_blocks_come_from_disk(
    site: DaemonSite, damage: Callable[[str], None]
) -> None:
    fill(site)
    site.kill_store()
    damage(site.segment_path)
    site.start_store()
    client = site.client()
    site.until("all is back", lambda: wrong_keys(client, KEYS) == [])
    assert site.logged("segment damaged") + site.logged("corrupt=1") == 1
    assert site.snapshot()["blocks"] == len(KEYS)
    assert wrong_keys(client, KEYS) == []
