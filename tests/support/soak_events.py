"""What a soak does to its site: each event hurts something, waits for the recovery, and audits."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from real_disks import filled
from real_site import Promise, RealSite, wait_for

from snapd.cli.snapctl import COMMANDS
from snapd.config import Settings

READY_SECONDS = 60.0
CLIENT_DEADLINE_SECONDS = 6.0
"""Longer than a client waits for a reply."""


class SoakEvents:
    """The events, by name, over one site. Each raises AssertionError for what must not be."""

    def __init__(self, site: RealSite, chance: random.Random, *, mounted: bool) -> None:
        self.site, self.chance = site, chance
        self.next_client = 8
        self.kinds: dict[str, tuple[int, Callable[[], None]]] = {
            "snapshot": (4, self.snapshot),
            "kill of the store": (4, self.kill_store),
            "kill of the daemon": (4, self.kill_daemon),
            "kill of both": (3, self.kill_both),
            "power cut": (4, self.power_cut),
            "kill of a client": (2, self.kill_client),
            "stop of the store": (1, self.stop_store),
            "stop of the daemon": (2, self.stop_daemon),
            "stop of a client": (2, self.stop_client),
            "polite restart of everything": (2, self.polite_restart),
            "burst of removals": (2, self.removals),
            "remove all": (1, self.remove_all),
            "verify under load": (1, self.verify),
        }
        if mounted:
            self.kinds |= {
                "full disk": (3, self.full_disk),
                "kill of the daemon on a full disk": (1, self.kill_on_full_disk),
            }
        if "purge" in COMMANDS:
            self.kinds["purge of everything"] = (1, self.purge)
        if "prune" in COMMANDS:
            self.kinds["prune by hand"] = (1, self.prune)

    def pick(self) -> str:
        names = list(self.kinds)
        return self.chance.choices(names, [self.kinds[name][0] for name in names])[0]

    def run(self, name: str) -> None:
        """Carry out an event. Raises AssertionError."""
        self.kinds[name][1]()
        self.site.check()
        self.site.check_clients()

    # --- deaths -----------------------------------------------------------------------------------

    def kill_store(self) -> None:
        held = self.site.held_now()
        self.site.kill_store()
        self.site.start_store()
        self.back(held)

    def kill_daemon(self) -> None:
        held = self.site.held_now()
        self.site.kill_daemon()
        time.sleep(self.chance.choice([0.0, 0.0, 1.0]))
        self.site.start_daemon(wait=False)
        self.back(held)

    def kill_both(self) -> None:
        held = self.site.held_now()
        kills = [self.site.kill_daemon, self.site.kill_store]
        self.chance.shuffle(kills)
        for kill in kills:
            kill()
        self.site.start_store(wait=False)
        self.site.start_daemon(wait=False)
        self.back(held)

    def power_cut(self) -> None:
        """Now and then once more while the first is being recovered from."""
        committed = self._committed()
        time.sleep(self.chance.uniform(0.0, 1.5))
        again = self.chance.random() < 0.3
        if again:  # what a store without a daemon is given can be lost with its memory
            self.site.hush()
        self.site.power_cut()
        self.site.configure(**self.settings())
        self.site.start_store(wait=False)
        self.site.start_daemon(wait=False)
        if again:
            time.sleep(self.chance.uniform(0.2, 1.5))
            self.site.power_cut()
            self.site.start_store(wait=False)
            self.site.start_daemon(wait=False)
        self.back(committed)

    def settings(self) -> dict[str, object]:
        """Those of the next life: chosen anew after each power cut."""
        budget = self.chance.choice(["0", "0", "48mb", "96mb"])
        return {
            "codec": self.chance.choice(["none", "zstd"]),
            "enable_warmup": self.chance.choice(["true", "true", "false"]),
            "io_bytes_per_sec_max": self.chance.choice([0, 0, 8_000_000]),
            "retain": self.chance.choice([1, 3]),
            "global_segment_size": self.chance.choice(["16mb", "64mb"]),
            **({"repository_bytes_max": budget} if has_setting("repository_bytes_max") else {}),
        }

    def kill_client(self) -> None:
        self.site.kill_client(self.chance.choice(list(self.site.load_processes)))
        self.site.start_client(self.next_client % 60)
        self.next_client += 1

    def polite_restart(self) -> None:
        with self.site.quiet():
            held = self.site.held_now()
            assert self.site.stop_daemon() == 0
            assert self.site.stop_store() == 0
            if self.chance.random() < 0.5:
                self.site.wipe_segment()
            self.site.start_store()
            self.site.start_daemon(wait=False)
        self.back(held)

    # --- stops ------------------------------------------------------------------------------------

    def stop_store(self) -> None:
        assert self.site.store is not None
        held = self.site.held_now()
        with self.site.stopped(self.site.store):
            time.sleep(self.chance.choice([1.0, CLIENT_DEADLINE_SECONDS]))
        self.back(held)

    def stop_daemon(self) -> None:
        assert self.site.daemon is not None
        held = self.site.held_now()
        with self.site.stopped(self.site.daemon):
            time.sleep(self.chance.choice([1.0, CLIENT_DEADLINE_SECONDS]))
        self.back(held)

    def stop_client(self) -> None:
        """While it stands still, the store may die and come back: a late writer must do no harm."""
        process = self.site.load_processes[self.chance.choice(list(self.site.load_processes))]
        held = self.site.held_now()
        with self.site.stopped(process):
            time.sleep(self.chance.uniform(0.1, 2.0))
            if self.chance.random() < 0.5:
                self.site.kill_store()
                self.site.start_store()
        self.back(held)

    # --- removals, snapshots ----------------------------------------------------------------------

    def snapshot(self) -> None:
        self._committed()

    def removals(self) -> None:
        """Many at once, from here, and right after that the power goes, every other time."""
        drawn = self.chance.random()
        self._committed()
        client, ledger = self.site.auditor(), self.site.shared.ledger
        live = np.flatnonzero(ledger.live()).tolist()
        picks = np.array(random.Random(drawn).sample(live, min(32, len(live))), np.int64)
        claim = ledger.begin_remove(picks, 63)
        codes = client.store.batch_remove([client.keys[block] for block in claim.blocks], True)
        ledger.finish(claim, np.array(codes, np.int64) == 0)
        if drawn < 0.5:
            self.site.power_cut()
            self.site.start_store(wait=False)
            self.site.start_daemon(wait=False)
        self.back(None)

    def remove_all(self) -> None:
        with self.site.quiet():
            ledger = self.site.shared.ledger
            claim = ledger.begin_remove(np.arange(self.site.spec.blocks), 63)
            code = self.site.auditor().store.remove_all(True)
            ledger.finish(claim, np.full(len(claim.blocks), code >= 0))
        self.back(None)

    def verify(self) -> None:
        """It holds a pin; what it checks is what a live daemon is writing."""
        code, text = self.snapctl("verify", "--all")
        assert code in {0, 3}, f"verify ended with {code}: {text}"

    def purge(self) -> None:
        with self.site.quiet():
            ledger = self.site.shared.ledger
            claim = ledger.begin_remove(np.arange(self.site.spec.blocks), 63)
            code, text = self.snapctl("purge", "--yes")
            assert code in {0, 1}, f"purge ended with {code}: {text}"
            ledger.finish(claim, np.full(len(claim.blocks), code == 0))
        self.back(None)

    def prune(self) -> None:
        code, text = self.snapctl("prune", "--retain", "1")
        assert code == 0, f"prune ended with {code}: {text}"

    # --- the disk ---------------------------------------------------------------------------------

    def full_disk(self) -> None:
        """The store goes on; what is wrong is shown; when there is room again, it goes away."""
        site = self.site
        with filled(site.repository):
            before = site.shared.moved
            time.sleep(self.chance.uniform(0.5, 4.0))
            assert wait_for(lambda: site.shared.moved > before, 20.0, 0.01), "nobody is served"
            assert site.ask("/healthz")[0] == 200
        self.back(None)
        over = wait_for(lambda: site.status()["errors"] == [], READY_SECONDS, 0.1)
        assert over, f"there is room again, but still: {site.status()['errors']}"

    def kill_on_full_disk(self) -> None:
        site = self.site
        committed = self._committed()
        with filled(site.repository):
            time.sleep(self.chance.uniform(0.0, 1.0))
            site.kill_daemon()
            site.start_daemon(wait=False)
            time.sleep(self.chance.uniform(0.0, 1.5))
            if site.daemon is not None and site.daemon.poll() is not None:
                site.daemon = None  # it said what it needs, and ended
        if site.daemon is None:
            site.start_daemon(wait=False)
        # It may give up while this looks: whoever supervises it starts it again.
        with contextlib.suppress(AssertionError):
            site.wait_ready(READY_SECONDS)
        if site.daemon is not None and site.daemon.poll() is not None:
            site.start_daemon(wait=False)
        self.back(committed)

    # --- inside -----------------------------------------------------------------------------------

    def _committed(self) -> Promise | None:
        """What a snapshot has now; nothing is promised under a budget, which may leave blocks out
        and drop what a snapshot had. The next life may be without one: it is this one's that
        counts."""
        self.site.wait_ready(READY_SECONDS)
        promise = self.site.committed()
        return None if self._is_budgeted() else promise

    def _is_budgeted(self) -> bool:
        return str(self.site.setting("repository_bytes_max") or "0") != "0"

    def back(self, promise: Promise | None) -> None:
        """Everything serves again, and the promise is kept."""
        site = self.site
        site.wait_ready(READY_SECONDS)
        site.shared.paused = False
        quarantined = site.metric("blocks_quarantined_total")
        assert not quarantined, f"{quarantined} blocks in quarantine, and nothing was damaged"
        site.audit(None if self._is_budgeted() else promise)

    def snapctl(self, *words: str) -> tuple[int, str]:
        """Exit code and output of an operator's command on this site."""
        answer = subprocess.run(
            [str(Path(sys.executable).parent / "snapctl"), *words],
            env=self.site.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return answer.returncode, answer.stdout + answer.stderr


def has_setting(name: str) -> bool:
    """Whether there is a setting of this name."""
    return name in Settings.__struct_fields__
