"""What tests of `SnapdHiCache` share: a rank's options for a site, and the loss of everything."""

from __future__ import annotations

from typing import Any

from daemon_site import DaemonSite


def at(site: DaemonSite, options: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A rank's options, with this site's bundled store; `more` on top, `extra` into its extra
    config."""
    options = {**(options or {}), **more}
    extra = {"snapd_runtime_dir": str(site.runtime), **options.get("extra", {})}
    return {**options, "extra": extra}


def lose_everything(site: DaemonSite) -> None:
    """SIGKILL of the store and its daemon, and their shared memory with them; both come back."""
    site.flushed()
    site.snapshot()
    site.kill_store()
    site.kill_daemon()
    site.wipe_segment()
    site.start()


__all__ = ["at", "lose_everything"]
