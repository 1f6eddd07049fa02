"""Random schedules over labels, the SSD tier, budgets and backups, judged from the contract alone.

Writers with a label each use the same names of keys in a store that is several times too small.
Every block says in its first bytes which version of which key of which label it is. What may come
back is kept for each label and key: the last acknowledged version, what an unanswered call may or
may not have stored, or nothing. A version that was removed or replaced with a daemon attached never
comes back, from memory, tier, packs, a backup or a rebuild.

`python tier_schedules.py SEED [SECONDS]` runs one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from backup_kit import live_from_packs, restore_from, save_to
from daemon_site import DaemonSite
from tier_labels_load import LABELS, NONE, Name, Oracle, Worker, labelled, read

from snapd.blocks.labels import label_tag
from snapd.disk.posix import PosixDisk
from snapd.disk.simulated import SimulatedDisk

EVENT_SECONDS_MAX = 60.0


class TierSchedule:
    """One site, its load and its faults, drawn from a seed."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory, self.seed = directory, seed
        chance = self.chance = random.Random(f"schedule {seed}")
        self.memory = chance.choice((4, 8, 8))
        large = chance.choice((8_000, 16_000, 30_000))
        working_set = chance.uniform(2.5, 5.0) * self.memory * (1 << 20)
        keys = int(working_set / (0.75 * large) / len(LABELS))
        self.oracle = Oracle(keys, large)
        self.budgets = chance.choice(((0,), (0,), (0, 16), (16, 18), (16, 24, 60)))
        self.file = directory / "reload.toml"
        slots = chance.choice((6 * keys, 6 * keys, 2 * keys))
        self.roomy = self.budgets == (0,) and slots == 6 * keys
        """Nothing makes a durable block leave."""
        directory.mkdir(exist_ok=True)
        self.settings: dict[str, object] = {
            "enable_ssd_offload": True,
            "global_segment_size": f"{self.memory}mb",
            "segment_blocks_max": slots,
            "flush_sec": chance.choice((0.05, 0.2, 0.5)),
            "pack_bytes_max": "1mb",
            "snapshot_interval_sec": chance.choice((0.5, 2, 20)),
            "retain": chance.choice((1, 3)),
            "get_wait_sec": chance.choice((0.3, 2)),
            "enable_warmup": chance.random() < 0.8,
            "codec": chance.choice(("none", "none", "zstd")),
            "lease_sec": 0.05,
            "disk_reserve_bytes": 0,
        }
        self.write_budget(self.budgets[0])
        self.site = DaemonSite(directory / "site", **self.settings)
        self.mix = {
            "put": 5.0,
            "get": 6.0,
            "upsert": chance.choice((0.3, 2.0)),
            "remove": chance.choice((0.3, 1.5)),
            "remove_by_regex": chance.choice((0.0, 0.1)),
            "get_of_another_label": 2.0,
        }
        few = chance.sample(list(EVENTS), 5)
        self.events = {name: EVENTS[name] * (4.0 if name in few else 0.5) for name in EVENTS}
        self.workers: list[Worker] = []
        self.story: list[str] = []
        self.backups = 0

    def write_budget(self, mega: int) -> None:
        self.file.write_text(f'repository_bytes_max = "{mega}mb"\n')

    def tell(self, what: str) -> None:
        self.story.append(what)
        print(f"  {time.strftime('%H:%M:%S')} {what}", flush=True)

    # --- running ----------------------------------------------------------------------------------

    def run(self, seconds: float) -> list[str]:
        print(
            f"seed {self.seed}: {len(self.oracle.keys)} keys, {self.settings}, {self.budgets}",
            flush=True,
        )
        site, until = self.site, time.monotonic() + seconds
        with site:
            site.start_store()
            self.start_daemon()
            for label in LABELS:
                self.workers.append(
                    Worker(site, self.oracle, label, f"{self.seed}/{label}", self.mix)
                )
            for worker in self.workers:
                worker.start()
            try:
                time.sleep(1.0)
                while time.monotonic() < until and not self.oracle.findings:
                    self.happen()
                if not self.oracle.findings:
                    self.tell("the end")
                    self.lose_everything()
                    self.sweep("last sweep")
            except Exception as error:  # noqa: BLE001
                self.oracle.find(f"{type(error).__name__}: {error}")
            for worker in self.workers:
                worker.stopping.set()
            for worker in self.workers:
                worker.join(20)
                if worker.is_alive():
                    self.oracle.find(f"the worker of {worker.label!r} hangs")
            self.check_log()
        return self.oracle.findings

    def happen(self) -> None:
        """The next event."""
        time.sleep(self.chance.uniform(0.1, 1.2))
        name = self.chance.choices(list(self.events), list(self.events.values()))[0]
        if name == "restore_here" and not self.backups:
            name = "backup"
        self.tell(name)
        began = time.monotonic()
        getattr(self, name)()
        if time.monotonic() - began > EVENT_SECONDS_MAX:
            self.oracle.find(f"{name} took {time.monotonic() - began:.0f} s")

    def check_log(self) -> None:
        lines = self.site.log.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            if "Traceback" in line:
                self.oracle.find(
                    "\n".join(["traceback in the log:", *lines[number - 2 : number + 30]])
                )
                return

    # --- processes --------------------------------------------------------------------------------

    def start_daemon(self) -> None:
        seen = self.site.logged("attached to the store")
        self.spawn_daemon()
        self.wait_attached(seen)

    def spawn_daemon(self) -> None:
        """With a file of settings, which a reload reads again."""
        program = [str(Path(sys.executable).with_name("snapd")), "run", "--config", str(self.file)]
        with self.site.log.open("ab") as stream:
            self.site.daemon = subprocess.Popen(
                program,
                env=self.site.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    def wait_attached(self, seen: int) -> None:
        self.site.until("attached", lambda: self.site.logged("attached to the store") > seen)
        self.site.wait_ready()
        self.oracle.attached()

    def stop_of_daemon(self) -> None:
        self.oracle.detached()
        self.site.kill_daemon()
        self.site.daemon = None

    def stop_of_store(self) -> None:
        self.site.kill_store()
        self.site.store = None

    # --- events -----------------------------------------------------------------------------------

    def kill_daemon(self) -> None:
        self.stop_of_daemon()
        time.sleep(self.chance.choice((0.0, 0.5)))
        self.start_daemon()

    def terminate_daemon(self) -> None:
        self.oracle.detached()
        code = self.site.stop_daemon()
        if code != 0:
            self.oracle.find(f"SIGTERM: exit code {code}")
        self.start_daemon()

    def kill_store(self, *, wipe: bool = False) -> None:
        seen = self.site.logged("attached to the store")
        self.oracle.detached()
        self.stop_of_store()
        if wipe:
            self.site.wipe_segment()
            self.oracle.wiped()
        self.site.start_store()
        self.wait_attached(seen)

    def kill_store_and_wipe(self) -> None:
        self.kill_store(wipe=True)

    def kill_both(self) -> None:
        order = [self.stop_of_daemon, self.stop_of_store]
        self.chance.shuffle(order)
        self.oracle.detached()
        for stop in order:
            stop()
        self.site.start_store()
        self.start_daemon()

    def lose_everything(self) -> None:
        """Both die, and the memory with them."""
        self.oracle.detached()
        assert self.site.store is not None
        self.site.store.send_signal(signal.SIGSTOP)
        self.stop_of_daemon()
        self.stop_of_store()
        self.site.wipe_segment()
        with_pause = self.pause()
        self.oracle.wiped()
        self.go_on(with_pause)
        self.site.start_store()
        self.start_daemon()

    def die_while_starting(self) -> None:
        self.stop_of_daemon()
        self.spawn_daemon()
        time.sleep(self.chance.uniform(0.1, 1.0))
        self.stop_of_daemon()
        if self.chance.random() < 0.5:
            self.stop_of_store()
            self.site.start_store()
        self.start_daemon()

    def stall_daemon(self) -> None:
        assert self.site.daemon is not None
        self.site.daemon.send_signal(signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.2, 2.0))
        self.site.daemon.send_signal(signal.SIGCONT)

    def snapshot(self) -> None:
        self.site.snapshot()

    def prune(self) -> None:
        self.command("prune", "--retain", "1", codes=(0, 5))

    def verify(self) -> None:
        self.command("verify", "--all")

    def reload(self) -> None:
        assert self.site.daemon is not None
        if self.chance.random() < 0.2:
            self.file.write_text("repository_bytes_max = -3\n")
        else:
            self.write_budget(self.chance.choice(self.budgets))
        self.site.daemon.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        self.write_budget(self.chance.choice(self.budgets))

    def remove_all(self) -> None:
        held = self.pause()
        began = time.monotonic()
        force = self.chance.random() < 0.7  # else leased blocks stay
        count = self.workers[0].client.remove_all(force=force)
        self.oracle.counts["remove_all says " + ("a count" if count >= 0 else str(count))] += 1
        if count >= 0 and force:
            for name in self.oracle.entries:
                self.oracle.end(name, NONE, began)
        self.go_on(held)

    def backup(self) -> None:
        """A backup of the living repository, restored and read elsewhere, then rebuilt."""
        place = self.directory / f"backup-{self.backups % 2}"
        place.mkdir(exist_ok=True)
        self.backups += 1
        mark = self.oracle.mark()
        self.command("backup", str(place))
        allowed = self.oracle.allowed_since(mark)
        elsewhere = self.directory / f"elsewhere-{self.backups}"
        roomy = self.settings | {"global_segment_size": "64mb", "segment_blocks_max": 0}
        with DaemonSite(elsewhere, **roomy) as other:
            self.command("restore", str(place), at=other.repository)
            hits = self.look_elsewhere(other, allowed, "restored")
            again = 0
            if self.chance.random() < 0.5:
                self.command("rebuild", at=other.repository)
                again = self.look_elsewhere(other, allowed, "restored, rebuilt")
        self.tell(f"restored {hits} blocks, rebuilt {again}")
        shutil.rmtree(elsewhere)

    def backups_in_a_row(self) -> None:
        """Backups in the middle of everything, read from their files: as recovered, as rebuilt."""
        names = {
            key.encode() + label_tag(label): (label, key) for label, key in self.oracle.entries
        }
        place = SimulatedDisk(1)
        for _ in range(5):
            mark = self.oracle.mark()
            save_to(PosixDisk(self.site.repository), place)
            allowed = self.oracle.allowed_since(mark)
            target = SimulatedDisk(2)
            for key, value in restore_from(place, onto=target).items():
                self.oracle.judge("backup", names[key], value, allowed[names[key]])
            for key, value in live_from_packs(target).items():
                self.oracle.judge("backup, rebuilt", names[key], value, allowed[names[key]])

    def look_elsewhere(
        self, other: DaemonSite, allowed: dict[Name, frozenset[int]], where: str
    ) -> int:
        other.start()
        hits = 0
        for label in LABELS:
            client = labelled(other, label)
            for first in range(0, len(self.oracle.keys), 32):
                keys = self.oracle.keys[first : first + 32]
                for key, value in zip(keys, client.get_batch(keys), strict=True):
                    hits += self.oracle.judge(where, (label, key), value, allowed[label, key])
        other.kill_daemon()
        other.kill_store()
        other.daemon = other.store = None
        other.wipe_segment()
        return hits

    def rebuild_here(self) -> None:
        """Both die; the repository is rebuilt from packs alone."""
        wipe = self.chance.random() < 0.5
        self.stop_of_daemon()
        if wipe:
            self.stop_of_store()
            self.site.wipe_segment()
            self.oracle.wiped()
        self.command("rebuild")
        if wipe:
            self.site.start_store()
        self.start_daemon()

    def restore_here(self) -> None:
        """An old backup over the repository it is of: what has ended since stays so."""
        wipe = self.chance.random() < 0.7
        self.stop_of_daemon()
        if wipe:
            self.stop_of_store()
            self.site.wipe_segment()
            self.oracle.wiped()
        place = self.directory / f"backup-{self.chance.randrange(min(self.backups, 2))}"
        self.command("restore", str(place), "--force")
        for aside in self.site.repository.glob("aside-*"):
            shutil.rmtree(aside)
        if wipe:
            self.site.start_store()
        self.start_daemon()
        self.sweep("after a restore")

    def nothing_durable_is_lost(self) -> None:
        """What was read when all was on disk is there after every process died."""
        held = self.pause()
        self.site.flushed()
        time.sleep(0.3)
        before = self.sweep("before a loss")
        if self.chance.random() < 0.5:
            self.site.snapshot()
        self.oracle.detached()
        self.stop_of_daemon()
        self.stop_of_store()
        wipe = self.chance.random() < 0.6
        if wipe:
            self.site.wipe_segment()
            self.oracle.wiped()
        self.site.start_store()
        self.start_daemon()
        after = self.sweep("after a loss") | self.sweep("after a loss")
        self.go_on(held)
        lost = before - after
        self.tell(f"{len(before)} before, {len(after)} after, lost {len(lost)}, wiped {wipe}")
        if lost and self.roomy:
            self.oracle.find(f"{len(lost)} durable blocks are lost, such as {sorted(lost)[:3]}")

    # --- helpers ----------------------------------------------------------------------------------

    def pause(self) -> list[Worker]:
        for worker in self.workers:
            if not worker.turn.acquire(timeout=30):
                self.oracle.find(f"a call of {worker.label!r} does not end")
                raise AssertionError("hang")
        return list(self.workers)

    def go_on(self, workers: Iterable[Worker]) -> None:
        for worker in workers:
            worker.turn.release()

    def sweep(self, where: str) -> set[Name]:
        found: set[Name] = set()
        for label in LABELS:
            client = labelled(self.site, label)
            for first in range(0, len(self.oracle.keys), 8):
                keys = self.oracle.keys[first : first + 8]
                found |= {(label, key) for key in read(self.oracle, client, label, keys, where)}
            client.close()
        return found

    def command(
        self, name: str, *arguments: str, codes: tuple[int, ...] = (0,), at: Path | None = None
    ) -> None:
        result = subprocess.run(
            [str(Path(sys.executable).with_name("snapctl")), name, *arguments],
            env=self.site.environment()
            | ({} if at is None else {"SNAPD_PERSISTENT_PATH": str(at)}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.oracle.counts[f"snapctl {name}: {result.returncode}"] += 1
        if result.returncode not in codes:
            self.oracle.find(
                f"snapctl {name} {arguments}: {result.returncode}\n{result.stdout}{result.stderr}"
            )


EVENTS = {
    "kill_daemon": 2.0,
    "terminate_daemon": 1.0,
    "kill_store": 2.0,
    "kill_store_and_wipe": 1.5,
    "kill_both": 1.5,
    "lose_everything": 2.0,
    "die_while_starting": 1.5,
    "stall_daemon": 0.7,
    "snapshot": 1.0,
    "prune": 0.7,
    "verify": 0.4,
    "reload": 2.0,
    "remove_all": 0.7,
    "backup": 1.0,
    "backups_in_a_row": 1.0,
    "rebuild_here": 0.6,
    "restore_here": 0.8,
    "nothing_durable_is_lost": 0.8,
}


def main() -> int:
    seed, seconds = int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 30.0
    directory = Path(tempfile.mkdtemp(prefix=f"tier-{seed}-"))
    schedule = TierSchedule(directory / "all", seed)
    findings = schedule.run(seconds)
    print(json.dumps(dict(sorted(schedule.oracle.counts.items()))))
    for finding in findings[:5]:
        print("FINDING", finding[:3000])
    print(f"seed {seed}: {len(findings)} findings")
    if findings:
        print("kept", directory)
    else:
        shutil.rmtree(directory)
    return bool(findings)


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main())
