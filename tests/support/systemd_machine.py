"""A machine with systemd as its process 1, on a throw-away copy of this one's file system.

Namespaces for processes, mounts, IPC, network, host name and control groups; an overlay whose
upper layer is memory; an empty `/dev/shm`. Nothing in it reaches this machine but by the file
system below, read only. Needs root.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
INSTALLED = Path("/opt/mooncake-snapd")
BOOT_SECONDS_MAX = 30.0

_BOOT = """
set -e
mount --make-rprivate /
cd {scratch}
mount -t tmpfs -o mode=755 tmpfs layers
mkdir layers/upper layers/work
mount -t overlay -o lowerdir=/,upperdir=layers/upper,workdir=layers/work overlay root
cd root
mount -t proc proc proc
mount -t sysfs sysfs sys
for path in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs $path; done
for path in {binds}; do mkdir -p .$path; mount --bind $path .$path; done
mkdir dev/shm dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t tmpfs tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
else
    mount -t cgroup2 cgroup2 sys/fs/cgroup
fi
rm -rf etc/systemd/system/*.wants var/lib/mooncake-snapd etc/mooncake-snapd opt/mooncake-snapd
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-networkd.service; do
    ln -sf /dev/null etc/systemd/system/$unit
done
{install}
ip link set lo up
pivot_root . mnt
export container=test
exec chroot . sh -c 'umount -l /mnt; exec /lib/systemd/systemd --unit basic.target --show-status=0'
"""

_INSTALL = """
mkdir -p opt etc/mooncake-snapd
ln -s {environment} opt/mooncake-snapd
cp {units}/*.service etc/systemd/system/
cp {units}/mooncake-snapd.sysusers.conf usr/lib/sysusers.d/mooncake-snapd.conf
cp {units}/mooncake-snapd.tmpfiles.conf usr/lib/tmpfiles.d/mooncake-snapd.conf
chroot . systemd-sysusers mooncake-snapd.conf
"""


def _hidden(path: str) -> bool:
    """Whether a unit does not see it: ProtectHome and PrivateTmp."""
    return path.startswith(("/root/", "/home/", "/tmp/", "/var/tmp/"))


class SystemdMachine:
    """A context manager: booted, with the units as `docs/systemd.md` installs them."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.log = scratch / "machine.log"
        for name in ("layers", "root"):
            (scratch / name).mkdir()
        environment = sys.prefix
        self._needed = [str(ROOT), sys.base_prefix, *([environment] if environment else [])]
        install = _INSTALL.format(environment=environment, units=UNITS)
        binds = " ".join(dict.fromkeys(self._needed))
        script = _BOOT.format(scratch=scratch, binds=binds, install=install)
        (scratch / "boot.sh").write_text(script)
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        with self.log.open("wb") as stream:
            self._unshare = subprocess.Popen(
                [
                    *(
                        "unshare",
                        "--fork",
                        "--pid",
                        "--mount",
                        "--ipc",
                        "--uts",
                        "--net",
                        "--cgroup",
                    ),
                    *("--kill-child", "bash", str(self.scratch / "boot.sh")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
        try:
            self.until("booted", self._is_up, BOOT_SECONDS_MAX)
            self.do("systemd-tmpfiles", "--create", "mooncake-snapd.conf")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._unshare is not None
        self._unshare.send_signal(signal.SIGKILL)  # takes process 1 along, and that all the others
        self._unshare.wait()

    def _is_up(self) -> bool:
        assert self._unshare is not None
        assert self._unshare.poll() is None, self.log.read_text()[-3000:]
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        born = children.read_text().split()
        if not born or not os.readlink(f"/proc/{born[0]}/exe").endswith("/systemd/systemd"):
            return False
        self._init = int(born[0])
        return self.ask("systemctl", "is-active", "basic.target").strip() == "active"

    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self._init), "--all", "--root", "--wd", "--"]

    # --- commands inside --------------------------------------------------------------------------

    def ask(self, *words: str) -> str:
        """What a command inside says, whether it works or not."""
        done = subprocess.run(
            [*self._enter(), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.stdout + done.stderr

    def do(self, *words: str) -> None:
        """A command inside that must work."""
        done = subprocess.run(
            [*self._enter(), *words], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"{words}: {done.stderr}\n{self.journal('mooncake-snapd*')}"

    def write(self, path: str, text: str) -> None:
        """A file inside."""
        target = Path(f"/proc/{self._init}/root{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def path(self, path: str) -> Path:
        """A file inside, as this machine sees it."""
        return Path(f"/proc/{self._init}/root{path}")

    def drop_in(self, unit: str, **settings: object) -> None:
        """Change settings of a unit; and let it see an interpreter that is in a home directory."""
        lines = [f"{name}={value}" for name, value in settings.items()]
        hidden = [path for path in self._needed if _hidden(path)]
        if hidden:
            lines += ["ProtectHome=tmpfs", f"BindReadOnlyPaths={' '.join(hidden)}"]
        self.write(f"/etc/systemd/system/{unit}.d/test.conf", "\n".join(["[Service]", *lines, ""]))
        self.do("systemctl", "daemon-reload")

    def python(self, program: str) -> str:
        """What a Python program says that runs as snapd's user."""
        done = subprocess.run(
            [
                *(*self._enter(), "systemd-run"),
                *("--wait", "--pipe", "--quiet", "--collect", "--property=User=mooncake-snapd"),
                "--property=ProtectHome=tmpfs",
                *(f"--property=BindReadOnlyPaths={one}" for one in self._needed if _hidden(one)),
                *("--setenv=SNAPD_RUNTIME_DIR=/run/mooncake-snapd", sys.executable, "-c", program),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def property(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.ask("systemctl", "show", "--property", name, "--value", unit).strip()

    def journal(self, unit: str) -> str:
        """What a unit logged."""
        return self.ask("journalctl", "--no-pager", "--output=cat", "--unit", unit)

    def until(self, what: str, done: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait; fail with the logs."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, (
                f"not within {seconds} s: {what}\n"
                + (self.journal("mooncake-snapd*") if self._init else "")
                + self.log.read_text()[-3000:]
            )
            time.sleep(0.1)
