"""Deaths around a Mooncake store, and the wait until snapd has put back what was lost."""

from __future__ import annotations

from mooncake_site import MooncakeSite

DEATHS = ("store", "master", "all")


def kill_all(site: MooncakeSite) -> None:
    """Every process of the node but its clients, and its shared memory."""
    site.kill_daemon()
    site.kill_store()
    site.kill_master()
    site.wipe_shared_memory()


def start_all(site: MooncakeSite, *, launcher: bool = False) -> None:
    """Master, store and daemon; does not wait for what is put back."""
    site.start_master()
    site.start_store(launcher=launcher)
    site.start_daemon(wait=False)


def die_and_come_back(site: MooncakeSite, death: str, *, launcher: bool = False) -> None:
    """SIGKILL one of `DEATHS`, start again what died, and wait until all is put back.

    The keys of a dead store are listed until the master has given it up, and the daemon is ready
    until it has noticed: so this waits for another session first.
    """
    before = _session(site)
    if death == "store":
        site.kill_store()
        site.start_store(launcher=launcher)
    elif death == "master":
        site.kill_master()
        site.start_master()
    else:
        kill_all(site)
        start_all(site, launcher=launcher)
    site.until("the daemon has a new session", lambda: _session(site) not in {"", before})
    site.snapd.wait_ready(60.0)


def _session(site: MooncakeSite) -> str:
    """The session that the daemon has; empty if it does not answer or has none."""
    if site.snapd.ask("/healthz")[0] != 200:
        return ""
    return str(site.status()["store"].get("boot_id", ""))


__all__ = ["DEATHS", "die_and_come_back", "kill_all", "start_all"]
