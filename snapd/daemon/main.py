"""`run_daemon`: the composition root. Builds the workers, starts and stops them in order."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from snapd.attach.backoff import Backoff
from snapd.attach.mooncake.fingerprint import Fingerprints
from snapd.attach.session import Link
from snapd.attach.traced import TracedHeat
from snapd.blocks import Codec
from snapd.config import Settings, event
from snapd.config.notify import notify, watchdog_seconds
from snapd.daemon.connectors import open_connector, open_fingerprints
from snapd.daemon.events import EventsWorker
from snapd.daemon.http import HttpServer
from snapd.daemon.keeper import Keeper
from snapd.daemon.pacer import Pacer
from snapd.daemon.reload import Reload
from snapd.daemon.state import DaemonState, process_age_seconds
from snapd.daemon.supervise import StoreSupervisor
from snapd.daemon.trace import TraceReceiver
from snapd.daemon.upkeep import Upkeep
from snapd.daemon.waiting import wait_for_disk
from snapd.daemon.workers import Workers
from snapd.daemon.writers import Writers
from snapd.disk.metered import MeteredDisk
from snapd.disk.posix import PosixDisk
from snapd.errors import DiskError, NewerFormatError, SettingError, UnfinishedRestoreError
from snapd.flusher import Budget
from snapd.flusher.budget import pack_bytes_within
from snapd.metrics import Metrics
from snapd.repository import Recovery, Repository
from snapd.repository.ballast import ballast_within
from snapd.warmup import Demand, Loader, Registrar, Warmer
from snapd.wire.trace import trace_socket

_HOUSEKEEPING_SECONDS = 1.0
_SIGNAL_SECONDS = 0.1
"""How late a signal may be noticed."""
_END_SECONDS = 1.0
_RECOVERY_BACKOFF_SECONDS_MAX = 10.0
_M_MMAP_THRESHOLD = -3
_MMAP_THRESHOLD_BYTES = 2**20
_logger = logging.getLogger(__name__)


def run_daemon(
    settings: Settings, with_store: bool, load: Callable[[], Settings] | None = None
) -> int:
    """Run until SIGTERM or SIGINT; the exit code. Called from the main thread. On SIGHUP the
    settings are read again with `load`.

    Raises SettingError for settings that cannot work here, LockHeldError when another daemon has
    the repository, DiskError when the path cannot be used, NewerFormatError when the repository is
    for a newer version, UnfinishedRestoreError when a restore into it is not finished: then nothing
    in it is touched, and with the store as our own that is left serving, because what it holds in
    memory is good all the same.
    """
    Budget.check(settings.repository_bytes_max)
    if with_store and settings.store != "bundled":
        raise SettingError(
            f"store = {settings.store!r}: --with-store runs the bundled store, and no other"
        )
    _tell_of_offload(settings)
    _return_freed_memory()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _setter(stopping))
    reload = Reload(load or (lambda: settings))
    signal.signal(signal.SIGHUP, reload.ask)
    _make_runtime_directory(settings.runtime_dir)
    try:
        opened = wait_for_disk(
            partial(_open_repository, settings), settings, stopping, with_store=with_store
        )
    except (NewerFormatError, UnfinishedRestoreError):
        if with_store:
            store = StoreSupervisor(settings)
            store.start()
            store.leave()
        raise
    if opened is None:
        return 1
    disk, meter, repository = opened
    try:
        daemon = Daemon(settings, repository, meter, stopping, reload)
        return daemon.run(with_store=with_store)
    finally:
        repository.close()
        disk.close()


def _tell_of_offload(settings: Settings) -> None:
    """Say which settings of the SSD tier are passed over."""
    if settings.store == "mooncake":
        if settings.enable_ssd_offload:
            event(
                _logger,
                logging.INFO,
                "enable_ssd_offload is left to Mooncake, which has an SSD tier of its own",
            )
    elif settings.ssd_offload_path not in {"", settings.persistent_path}:
        event(
            _logger,
            logging.WARNING,
            "ssd_offload_path is passed over: the packs in persistent_path are the SSD tier",
            ssd_offload_path=settings.ssd_offload_path,
            persistent_path=settings.persistent_path,
        )


def _open_repository(settings: Settings) -> tuple[PosixDisk, MeteredDisk, Repository]:
    with _naming_the_setting(settings.persistent_path):
        disk = PosixDisk(settings.persistent_path, create=True)
        try:
            meter = MeteredDisk(disk)
            bytes_max = settings.repository_bytes_max or disk.usage().capacity_bytes
            repository = Repository.open(
                meter,
                retain=settings.retain,
                codec=Codec.ZSTD if settings.codec == "zstd" else Codec.RAW,
                pack_bytes_max=pack_bytes_within(settings.pack_bytes_max, bytes_max),
                ballast_bytes=ballast_within(bytes_max),
            )
        except BaseException:
            disk.close()
            raise
        return disk, meter, repository


@contextmanager
def _naming_the_setting(persistent_path: str) -> Iterator[None]:
    try:
        yield
    except DiskError as error:
        raise DiskError(
            f"cannot keep a repository in persistent_path = {persistent_path!r}: {error}; "
            "set it to a directory that can be written",
            error.errno,
        ) from error


class Daemon:
    """The parts, wired. `run` is their life."""

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        meter: MeteredDisk,
        stopping: threading.Event,
        reload: Reload,
    ) -> None:
        self._settings = settings
        self._reload = reload
        self._repository = repository
        self._stopping = stopping
        self._ended = threading.Event()
        """Set when nothing is left to be made durable."""
        self._metrics = metrics = Metrics()
        metrics.started(process_age_seconds, settings.snapshot_interval_sec)
        self._link = link = Link()
        demand, pace = Demand(), Pacer(settings.io_bytes_per_sec_max, stopping)
        self._pace = pace
        traced = TracedHeat(repository)
        self._trace = self._open_trace(traced)
        self._writers = writers = Writers.build(
            settings,
            repository,
            link,
            meter=meter,
            pace=pace,
            metrics=metrics,
            traced=traced,
            stopping=stopping,
        )
        self._flusher = writers.flusher
        metrics.flush_lag(self._flusher.lag_seconds)
        events = EventsWorker(repository, link, metrics, self._ended)
        registrar = Registrar(repository, events)
        fingerprints = open_fingerprints(settings, repository, stopping)
        self._keeper = Keeper(
            repository,
            link,
            open_connector(settings, repository, metrics, self._flusher.flush_soon, fingerprints),
            registrar,
            metrics,
            flush_soon=self._flusher.flush_soon,
            on_served=self._served,
            ended=self._ended,
        )
        loader = Loader(repository, link, demand, metrics, stopping)
        warmer = self._build_warmer(demand, pace, fingerprints, traced)
        rewrite = partial(repository.compact, pace=pace, adopting=link.adopting)
        self._workers = Workers(on_failure=stopping.set)
        self._state = DaemonState(
            settings=settings,
            repository=repository,
            link=link,
            metrics=metrics,
            writers=writers,
            keeper=self._keeper,
            registrar=registrar,
            loader=loader,
            warmer=warmer,
            events=events,
            workers=self._workers,
            upkeep=Upkeep(repository, link, events, rewrite),
            trace=self._trace,
            fingerprints=fingerprints,
        )
        self._work = self._list_work(events, loader, warmer, fingerprints)

    def _open_trace(self, traced: TracedHeat) -> TraceReceiver:
        return TraceReceiver(
            trace_socket(self._settings.runtime_dir),
            traced,
            self._metrics,
            self._ended,
            group_shared=self._settings.group_shared,
        )

    def _build_warmer(
        self,
        demand: Demand,
        pace: Pacer,
        fingerprints: Fingerprints | None,
        traced: TracedHeat,
    ) -> Warmer:
        return Warmer(
            self._repository,
            self._link,
            demand,
            pace=pace,
            observer=self._metrics,
            stopping=self._stopping,
            fingerprint=None if fingerprints is None else fingerprints.present,
            traced=traced,
        )

    def _list_work(
        self,
        events: EventsWorker,
        loader: Loader,
        warmer: Warmer,
        fingerprints: Fingerprints | None,
    ) -> dict[str, Callable[[], None]]:
        """What the threads do, by their names."""
        work = {
            "flusher": self._flusher.run,
            "events": events.run,
            "keeper": self._keeper.run,
            "loader": loader.run,
            "compactor": self._writers.compactor.run,
            "housekeeper": self._keep_house,
            "trace": self._trace.run,
        }
        if self._settings.enable_warmup:
            work["warmer"] = warmer.run
        if fingerprints is not None:
            work["fingerprints"] = fingerprints.run
        return work

    def run(self, *, with_store: bool) -> int:
        """Start everything, wait, stop everything; the exit code."""
        settings = self._settings
        http = HttpServer(
            self._state,
            settings.http,
            settings.runtime_dir,
            group_shared=settings.group_shared,
        )
        supervisor = StoreSupervisor(settings) if with_store else None
        try:
            http.start()
            self._state.http_address = http.address
            if supervisor is not None:
                self._state.supervisor = supervisor
                supervisor.start()
            if not self._recover():
                if supervisor is not None:
                    supervisor.stop(settings.grace_sec)
                return 1
            self._trace.open()
            notify("READY=1\nSTATUS=running")  # before the housekeeper speaks of the watchdog
            for name, work in self._work.items():
                self._workers.start(name, work)
            # Not `wait()`: the kernel may hand the signal to any thread (after a SIGCONT, say), and
            # Python runs the handler when the main thread next runs. Nor may this thread hold the
            # event's lock when the handler, which runs on top of it, takes that lock.
            while not self._stopping.is_set():
                self._settings = self._reload.run(
                    self._settings,
                    flusher=self._flusher,
                    budget=self._writers.budget,
                    pace=self._pace,
                    metrics=self._metrics,
                )
                time.sleep(_SIGNAL_SECONDS)
            notify("STOPPING=1\nSTATUS=writing the last snapshot")
            return self._stop(supervisor)
        finally:
            self._ended.set()
            self._stopping.set()
            if supervisor is not None:
                # After a failure the store serves on: whoever starts the daemon again adopts it.
                supervisor.leave()
            http.stop()

    def _recover(self) -> bool:
        """Read the repository, however long the disk refuses: ending would only have somebody start
        this again and again, while the store can serve. False if the daemon is to stop first."""
        backoff = Backoff(
            _logger, "read the repository", most_seconds=_RECOVERY_BACKOFF_SECONDS_MAX
        )
        while True:
            try:
                recovery = self._repository.recover()
            except DiskError as error:
                self._state.recovery_error = str(error)
                if not self._wait_for_disk(backoff.failed(error)):
                    return False
            else:
                backoff.succeeded()
                self._report(recovery)
                return True

    def _wait_for_disk(self, seconds: float) -> bool:
        """Wait, at most until the daemon is to stop; whether to go on."""
        notify("STATUS=the repository cannot be read\nEXTEND_TIMEOUT_USEC=60000000")
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and time.monotonic() < until:
            time.sleep(_SIGNAL_SECONDS)
        return not self._stopping.is_set()

    def _report(self, recovery: Recovery) -> None:
        """Say what was found, and be loud about what could not be used."""
        event(
            _logger,
            logging.INFO,
            f"Warm up from persistent path: {self._settings.persistent_path}, "
            f"found {recovery.blocks} cached entries.",
        )
        for finding in (
            *recovery.unreadable_manifests,
            *recovery.unreadable_packs,
            *recovery.journal_findings,
            *recovery.damaged_headers,
        ):
            event(_logger, logging.ERROR, "found damage in the repository", finding=finding)
        for name in recovery.moved_aside:
            event(_logger, logging.WARNING, "moved a file aside", file=name)
        self._metrics.quarantined("unreadable", recovery.blocks_lost)
        self._writers.budget.resume(recovery.write_debt_bytes)
        self._state.recovered(recovery)

    def _keep_house(self) -> None:
        """Watch the disk's space and feed the watchdog. In a thread of its own, because a disk that
        hangs must hang nobody else; then the watchdog is not fed, and that is what it is for."""
        every = min(watchdog_seconds() or _HOUSEKEEPING_SECONDS, _HOUSEKEEPING_SECONDS)
        while not self._ended.is_set():
            self._state.look_at_disk()
            if self._state.failure() is None:
                notify("WATCHDOG=1")
            self._ended.wait(every)

    def _stop(self, supervisor: StoreSupervisor | None) -> int:
        """Make durable what is left, while removals still are; then end the rest."""
        started = time.monotonic()
        deadline = started + self._settings.grace_sec

        def quiesce() -> None:
            if supervisor is not None and not self._workers.failed:
                supervisor.stop(max(1.0, (deadline - time.monotonic()) / 2))

        self._flusher.stop(deadline, quiesce)
        self._workers.join("flusher", self._settings.grace_sec + _END_SECONDS)
        self._ended.set()
        if (session := self._link.session) is not None:
            session.lost.set()  # wakes those who watch it
        # Whoever still waits for an answer or a disk ends with the process: nothing that it could
        # finish matters any more.
        self._workers.join_all(_END_SECONDS)
        error = self._flusher.final_error or self._workers.error
        event(
            _logger,
            logging.INFO if error is None else logging.ERROR,
            "stopped",
            seconds=time.monotonic() - started,
            **({} if error is None else {"error": error}),
        )
        return 0 if error is None else 1

    def _served(self) -> None:
        self._state.served()


def _return_freed_memory() -> None:
    """Have the C library give large freed blocks back to the system at once.

    By default it raises the size from which it does so whenever such a block is freed, up to 32 MB
    (mallopt(3), M_MMAP_THRESHOLD): temporary columns over a million blocks would then stay in the
    heap for good. A fixed threshold is what switches that off. Where there is no `mallopt`, memory
    is only used less well.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def _setter(stopping: threading.Event) -> Callable[[int, FrameType | None], None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    return stop


def _make_runtime_directory(path: str) -> None:
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
    except OSError as error:
        raise SettingError(
            f"cannot make runtime_dir {path}: {error.strerror}; set SNAPD_RUNTIME_DIR"
        ) from error
