"""The commands of docs/mooncake.md, run as they stand there but for ports, paths and sizes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from client_wheel import free_ports
from mooncake_departure import documented
from mooncake_site import MooncakeClient, MooncakeSite, plain_environment


def test_the_commands_by_hand_bring_up_a_store_that_is_saved(tmp_path: Path) -> None:
    with MooncakeSite(tmp_path) as site:
        rpc, metadata, admin, service = free_ports(4)
        script = documented("sh by-hand")
        for text, ours in {
            "50051": str(rpc),
            "8080": str(metadata),
            "9003": str(admin),
            "8088": str(service),
            "/run/mooncake-snapd": str(site.snapd.runtime),
            "/mnt/nvme/kv": str(site.snapd.repository),
            "64gb": "64mb",
        }.items():
            assert text in script
            script = script.replace(text, ours)
        environment = plain_environment() | {
            "PATH": f"{Path(site.python).parent}:{os.environ['PATH']}",
            "SNAPD_MOONCAKE_ADMIN": f"127.0.0.1:{admin}",
            "SNAPD_MOONCAKE_STORES": f"http://127.0.0.1:{service}",
            "SNAPD_SEGMENT_PATH": f"/dev/shm/{site.stem}",
            "SNAPD_HTTP": "",
        }
        with (tmp_path / "by-hand.log").open("wb") as log:
            shell = subprocess.Popen(
                ["bash", "-c", script + "\nwait"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            site.until("ready", lambda: site.snapd.ask("/readyz")[0] == 200)
            client = MooncakeClient(
                site.python,
                f"127.0.0.1:{rpc}",
                f"http://127.0.0.1:{metadata}/metadata",
                tmp_path / "client.log",
            )
            try:
                client.put_all([f"by-hand-{number}" for number in range(10)])
                assert site.snapd.snapshot()["blocks"] == 10
            finally:
                client.kill()
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
