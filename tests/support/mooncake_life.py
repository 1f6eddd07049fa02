"""Random lives of real Mooncake beside snapd: a schedule of faults and of what clients do
meanwhile, and what each key may hold after it.

A schedule is a function of its seed; how it falls in with the processes is not, so a seed that
failed may need a few tries. What a key may hold:

- the version that it held when everything was last at rest, or one that a client was told is
  written since; after a rest only what was read then;
- nothing, whatever happened: Mooncake forgets when it dies, and a lost block is no violation;
- only nothing, or what came after it, once a removal or an upsert was seen by a look of snapd.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fault_ledger import FaultClass, note
from mooncake_driver import MISSING
from mooncake_site import MooncakeClient, MooncakeSite

KEYS = [f"{name}-{number}" for name in "ab" for number in range(24)]
SIZES = (16_384, 20_000)
REST_SECONDS_MAX = 90.0
CLIENT_TTL_SECONDS = 2
PARTIES = ("store", "master", "daemon")


@dataclass
class Expectation:
    """What each key may hold, beside nothing."""

    may: dict[str, set[int]] = field(default_factory=lambda: {key: set() for key in KEYS})
    removed: set[str] = field(default_factory=set)
    """Keys whose removal was answered, and that no look is known to have seen."""
    written: dict[str, int] = field(default_factory=dict)
    """Keys that were upserted since a look, and the version."""
    safe: set[str] = field(default_factory=set)
    """Keys that were durable and whole at the last rest or look, with no doubt since."""

    def wrote(self, key: str, version: int) -> None:
        self.may[key].add(version)
        self.removed.discard(key)
        self.written[key] = version
        self.safe.discard(key)

    def took_away(self, keys: list[str]) -> None:
        """Removals put what waits in doubt, so nothing is safe."""
        self.removed |= set(keys)
        for key in keys:
            self.written.pop(key, None)
        self.safe.clear()

    def looked(self) -> None:
        """A look came after all that, with everything alive: older versions are over."""
        for key in self.removed:
            self.may[key].clear()
        for key, version in self.written.items():
            self.may[key] = {version}
        self.safe |= self.written.keys()
        self.removed.clear()
        self.written.clear()

    def rested(self, found: dict[str, int]) -> None:
        """What was read at rest: nothing else comes back later."""
        self.may = {key: set() if held == MISSING else {held} for key, held in found.items()}
        self.removed.clear()
        self.written.clear()
        self.safe = {key for key, held in found.items() if held != MISSING}


class MooncakeLife:
    """One site, and one schedule on it."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.expected = Expectation()
        self.trace: list[str] = []
        """What was done, in order, for whoever has to repeat it."""
        self.site = MooncakeSite(
            directory,
            client_ttl=CLIENT_TTL_SECONDS,
            segment_bytes=8 << 20,
            http="",
            poll_sec=self.random.choice((0.2, 1)),
            # Slow enough that a put back can be hit in the middle.
            io_bytes_per_sec_max=self.random.choice((0, 400_000)),
        )
        self._launcher = self.random.random() < 0.5
        self._client: MooncakeClient | None = None
        self._version = 0
        self._down: set[str] = set()
        self._stopped: set[str] = set()
        self._phase = "at rest"
        self._started = time.monotonic()

    # --- the schedule -----------------------------------------------------------------------------

    def run(self, seconds: float) -> int:
        """Episodes until the time is up, at least one; how many. Raises AssertionError with the
        trace."""
        episodes = 0
        with self.site:
            try:
                self._begin()
                while not episodes or time.monotonic() - self._started < seconds:
                    self._episode()
                    episodes += 1
            except AssertionError as error:
                trace = "\n".join(self.trace[-60:])
                raise AssertionError(f"{error}\nafter {episodes} episodes:\n{trace}") from error
            finally:
                self._resume_all()
        return episodes

    def _begin(self) -> None:
        self.site.start_master()
        self.site.start_store(launcher=self._launcher)
        self.site.start_daemon()
        self._client = self.site.client()
        self._upsert(KEYS)
        self._rest()

    def _episode(self) -> None:
        self._say("episode")
        self._phase = "at rest"
        for _ in range(self.random.randrange(3)):
            self._use()
        if self.random.random() < 0.5:
            self._look()
        for _ in range(self.random.choice((1, 1, 2, 3))):
            self._fault(self.random.choice(PARTIES))
            self._pause(1.0)
            if self.random.random() < 0.4:
                self._use()
        self._revive()
        self._phase = "while blocks are put back"
        if self.random.random() < 0.5:
            self._pause(2.5)
            if self.random.random() < 0.6:
                self._use()
            self._fault(self.random.choice(PARTIES))
            self._pause(0.3)
            self._revive()
        self._rest()

    # --- faults -----------------------------------------------------------------------------------

    def _fault(self, party: str) -> None:
        if party in self._down | self._stopped:
            return
        kind = self.random.choice(("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGSTOP"))
        if party == "master" and kind == "SIGTERM":
            kind = "SIGKILL"
        others = self._down | self._stopped
        phase = f"with {' and '.join(sorted(others))} away" if others else self._phase
        self._say(f"{kind} {party} {phase}")
        stop = kind == "SIGSTOP"
        note(
            FaultClass.STOP if stop else FaultClass.KILL,
            f"Mooncake schedules: {kind} of {party} {phase}",
            violated=False,
        )
        if stop:
            self._signal(party, signal.SIGSTOP)
            self._stopped.add(party)
            # Around the time after which the master forgets a store that is silent.
            time.sleep(self.random.choice((0.3, CLIENT_TTL_SECONDS, CLIENT_TTL_SECONDS + 1.5)))
            if self.random.random() < 0.5:
                self._resume(party)
            return
        self._down.add(party)
        if party == "daemon":
            self.site.stop_daemon() if kind == "SIGTERM" else self.site.kill_daemon()
        elif party == "store":
            self.site.stop_store() if kind == "SIGTERM" else self.site.kill_store()
        else:
            self._drop_client()
            self.site.kill_master()

    def _revive(self) -> None:
        """Everything runs again, in any order."""
        missing = sorted(self._down | self._stopped)
        self.random.shuffle(missing)
        for party in missing:
            if party in self._stopped:
                self._resume(party)
                continue
            self._say(f"start {party}")
            self._down.discard(party)
            if party == "daemon":
                self.site.start_daemon(wait=False)
            elif party == "master":
                self.site.start_master()
            else:
                # A store service without a master ends: then it is started by the next try.
                self.site.start_store(launcher=self._launcher, wait="master" not in self._down)
            self._pause(0.5)

    def _signal(self, party: str, number: signal.Signals) -> None:
        process = {
            "store": self.site.stores.get(0),
            "master": self.site.master_process,
            "daemon": self.site.snapd.daemon,
        }[party]
        if process is not None and process.poll() is None:
            os.kill(process.pid, number)

    def _resume(self, party: str) -> None:
        self._say(f"SIGCONT {party}")
        self._signal(party, signal.SIGCONT)
        self._stopped.discard(party)

    def _resume_all(self) -> None:
        for party in list(self._stopped):
            self._resume(party)

    # --- clients ----------------------------------------------------------------------------------

    def _use(self) -> None:
        """One thing that a client does, if there is a master to do it with."""
        if "master" in self._down | self._stopped or "store" in self._stopped:
            return
        # A segment is listed and dead for a while: puts there only take time.
        choice = self.random.random()
        some = self.random.sample(KEYS, 6)
        if choice < 0.35:
            self._upsert(some)
        elif choice < 0.5:
            self._upsert(some)
            self._remove(some[:3])
        elif choice < 0.8:
            self._remove(some)
        elif choice < 0.9:
            self._say("remove_by_regex ^a-1")
            if self._connected().remove_by_regex("^a-1", force=True) >= 0:
                self.expected.took_away([key for key in KEYS if key.startswith("a-1")])
        else:
            self._say("remove_all")
            if self._connected().remove_all(force=True) >= 0:
                self.expected.took_away(KEYS)

    def _upsert(self, keys: list[str]) -> None:
        self._version += 1
        size = self.random.choice(SIZES)
        codes = self._connected().upsert(keys, self._version, size)
        done = [key for key, code in zip(keys, codes, strict=True) if code == 0]
        self._say(f"upsert {self._version} of {size}: {len(done)} of {len(keys)} {' '.join(keys)}")
        if self._down | self._stopped:
            # A rewrite counts as a removal of anything: where a segment ends before the next look,
            # all that was in it is in doubt.
            self.expected.safe.clear()
        for key in keys:
            if key in done:
                self.expected.wrote(key, self._version)
            else:
                # Whether the bytes went anywhere is not known.
                self.expected.may[key].add(self._version)
                self.expected.safe.discard(key)
                self.expected.written.pop(key, None)

    def _remove(self, keys: list[str]) -> None:
        codes = self._connected().remove(keys, force=True)
        self._say(f"remove {' '.join(keys)}: {codes}")
        self.expected.took_away(
            [key for key, code in zip(keys, codes, strict=True) if code in (0, -704)]
        )

    def _connected(self) -> MooncakeClient:
        if self._client is None:
            self._client = self.site.client()
        return self._client

    def _drop_client(self) -> None:
        if self._client is not None:
            self._client.kill()
            self._client = None

    # --- rests ------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Wait until a look has seen everything, with everything alive, and it is durable."""
        self._until("two looks", self._has_looked_twice())
        self._say("looked")
        self.expected.looked()

    def _has_looked_twice(self) -> Callable[[], bool]:
        boot = self._store().get("boot_id")
        until = self.site.snapd.metric("mooncake_looks_total") + 3
        since = time.monotonic()

        def done() -> bool:
            assert self._store().get("boot_id") == boot, "a session ended without a fault"
            looks = self.site.snapd.metric("mooncake_looks_total")
            return looks >= until and time.monotonic() - since > 0.5

        return done

    def _rest(self) -> None:
        """Everything is alive, put back, and looked at: read, and judge."""
        self._until("put back", self._is_settled, REST_SECONDS_MAX)
        self._drop_client()
        found = self._connected().read(KEYS, range(1, self._version + 1))
        self._say(f"read: {sum(held != MISSING for held in found.values())} of {len(KEYS)}")
        over = {
            key: (held, sorted(self.expected.may[key]))
            for key, held in found.items()
            if held != MISSING and held not in self.expected.may[key]
        }
        assert not over, f"keys that hold what they must not (held, allowed): {over}"
        safe = self.expected.safe
        if len(safe) >= 10:
            assert any(found[key] != MISSING for key in safe), f"none of {len(safe)} came back"
        self.expected.rested(found)
        missing = [key for key in KEYS if found[key] == MISSING]
        if missing:
            self._upsert(missing)
        self._look()
        self.site.snapd.flushed()

    def _is_settled(self) -> bool:
        """Ready and settled for a second, in one session, with the store as it is now."""
        store = self._store()
        if not self._is_ready(store):
            return False
        time.sleep(1.2)  # the health check comes every second
        return self._is_ready(self._store()) and self._store().get("boot_id") == store["boot_id"]

    def _is_ready(self, store: dict[str, object]) -> bool:
        with contextlib.suppress(AssertionError):
            self._restart_what_ended()
        ready = self.site.snapd.ask("/readyz")[0] == 200
        return bool(ready and store.get("up") and store.get("settled"))

    def _restart_what_ended(self) -> None:
        """A store service that finds no master, or loses it early on, ends; as its supervisor
        would, start it again. The daemon must never end by itself."""
        store = self.site.stores.get(0)
        if store is None or store.poll() is not None:
            self._say("start store again")
            self.site.stores.pop(0, None)
            self.site.start_store(launcher=self._launcher, wait=False)

    def _store(self) -> dict[str, object]:
        if self.site.snapd.ask("/healthz")[0] != 200:
            return {}
        store: dict[str, object] = self.site.status()["store"]
        return store

    def _until(self, what: str, done: Callable[[], bool], seconds: float = 30.0) -> None:
        self.site.snapd.until(what, done, seconds)

    def _pause(self, seconds_max: float) -> None:
        time.sleep(self.random.random() * seconds_max)

    def _say(self, what: str) -> None:
        self.trace.append(f"{time.monotonic() - self._started:8.2f} {what}")
