"""A pod of the manifests on this machine: containers in namespaces of their own, without a cluster.

As kubelet has it, containers share the pod's network and the volumes that the manifest mounts into
both, and nothing else: each has its own mounts, processes and IPC, a root file system that it can
only read, and its user, group and capabilities. Its program is process 1 in it. What an image would
bring is a copy of the package, labelled with a version. Nothing of it reaches this machine but by
the file system below, read only. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from manifests import POD_ADDRESS, PodSpec, environment

import snapd

ROOT = Path(__file__).parents[2]
IMAGE = "/opt/mooncake-snapd"
START_SECONDS_MAX = 90.0
"""Far above what is seen, for busy machines."""

_SANDBOX = """
set -e
mount --make-rprivate /
cd {scratch}
mount -t tmpfs -o mode=755 tmpfs volumes
mkdir {memory}
for name in {memory}; do
    mount -t tmpfs -o mode=2777,gid={group} tmpfs $name
    chmod 2777 $name
done
ip link set lo up
ip link add eth0 type veth peer name outside
ip address add {address}/24 dev eth0
ip link set outside up
ip link set eth0 up
echo up
exec sleep infinity
"""
"""kubelet makes what is in memory the group's, for all to write; and a missing hostPath root's."""

_CONTAINER = """
set -e
mount --make-rprivate /
cd {scratch}/{name}
mount -t tmpfs -o mode=755 tmpfs layers
mkdir layers/upper layers/work
mount -t overlay -o lowerdir=/,upperdir=layers/upper,workdir=layers/work overlay root
mount -t tmpfs -o mode=755 tmpfs root/root
mkdir -p root{image}
mount --bind {scratch}/images/{version} root{image}
mount -o remount,bind,ro root{image}
for path in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs root/$path; done
mkdir root/dev/shm
for device in null zero full random urandom; do
    touch root/dev/$device
    mount --bind /dev/$device root/dev/$device
done
{mounts}
for path in {binds}; do
    mkdir -p root$path
    mount --bind $path root$path
    mount -o remount,bind,ro root$path
done
mount -t proc proc root/proc
for path in run tmp dev root; do mount -o remount,ro root/$path; done
mount -o remount,ro root
cd root
pivot_root . mnt
exec chroot . sh -c 'umount -l /mnt && exec "$@"' sh {command}
"""


@dataclass
class Container:
    """One that runs."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    prefix: Sequence[str] = field(default_factory=list)
    """What a program in it is started by: user, capabilities, environment."""

    def first(self) -> int:
        """Process 1 of it, by this machine's number."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(children.read_text().split()[0])

    def namespaces(self) -> dict[str, str]:
        kinds = ("mnt", "pid", "ipc", "net")
        return {kind: os.readlink(f"/proc/{self.first()}/ns/{kind}") for kind in kinds}

    def kill(self) -> None:
        """SIGKILL its process 1, which takes all the others in it along. That is not left to the
        kernel, which forgets whose child it was when the program takes another user."""
        with contextlib.suppress(FileNotFoundError, IndexError, ProcessLookupError):
            os.kill(self.first(), signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def enter(self, command: Sequence[str]) -> list[str]:
        return [
            *("nsenter", "--target", str(self.first()), "--all", "--root", "--wd", "--"),
            *(*self.prefix, *command),
        ]


class PodMachine:
    """A context manager: the pod's sandbox, in which containers are run."""

    def __init__(
        self,
        scratch: Path,
        pod: PodSpec,
        changes: Mapping[str, str],
        *,
        python: Path = Path(sys.executable),
    ) -> None:
        """`changes` are values of variables in place of the manifest's; `python` is of an
        environment that has what the image has beside snapd."""
        self.scratch = scratch
        self._python = python
        self.pod = pod
        self._changes = changes
        self._containers: dict[str, Container] = {}
        self._sandbox: subprocess.Popen[bytes] | None = None
        self._beside: list[subprocess.Popen[bytes]] = []
        for name in ("volumes", "images", "nvme"):
            (scratch / name).mkdir()

    def __enter__(self) -> Self:
        self._open_sandbox()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._beside:
            process.kill()
            process.wait()
        for container in self._containers.values():
            container.kill()
        self._close_sandbox()

    def _open_sandbox(self) -> None:
        memory = [v["name"] for v in self.pod.spec["volumes"] if "emptyDir" in v]
        script = _SANDBOX.format(
            scratch=self.scratch,
            group=self.pod.spec["securityContext"]["fsGroup"],
            address=POD_ADDRESS,
            memory=" ".join(f"volumes/{name}" for name in memory),
        )
        self._sandbox = subprocess.Popen(
            ["unshare", "--mount", "--net", "--uts", "bash", "-c", script], stdout=subprocess.PIPE
        )
        assert self._sandbox.stdout is not None
        assert self._sandbox.stdout.readline() == b"up\n"

    def _close_sandbox(self) -> None:
        assert self._sandbox is not None
        assert self._sandbox.stdout is not None
        self._sandbox.kill()
        self._sandbox.wait()
        self._sandbox.stdout.close()

    def recreate(self) -> None:
        """Another pod on the same node: what was in memory is gone, the hostPath is there."""
        assert not self._containers
        self._close_sandbox()
        self._open_sandbox()

    def run_beside(self, command: Sequence[str]) -> None:
        """A process in the pod's network, for as long as the pod is there."""
        assert self._sandbox is not None
        network = ["nsenter", "--target", str(self._sandbox.pid), "--net", "--"]
        with (self.scratch / "beside.log").open("ab") as stream:
            self._beside.append(
                subprocess.Popen([*network, *command], stdout=stream, stderr=stream)
            )

    # --- images -----------------------------------------------------------------------------------

    def build(self, version: str) -> None:
        """An image of this tree that says it is `version`."""
        image = self.scratch / "images" / version
        shutil.copytree(
            ROOT / "snapd", image / "site" / "snapd", ignore=shutil.ignore_patterns("__pycache__")
        )
        label = image / "site" / "snapd" / "__init__.py"
        text = label.read_text()
        assert snapd.__version__ in text
        label.write_text(text.replace(snapd.__version__, version))
        (image / "bin").mkdir()
        for name in ("snapd", "snapctl"):
            program = f"from snapd.cli.{name} import main\nmain()\n"
            (image / "bin" / name).write_text(f"#!{self._python}\n{program}")
        (image / "bin" / "python3").write_text(f'#!/bin/sh\nexec {self._python} "$@"\n')
        for program_path in (image / "bin").iterdir():
            program_path.chmod(0o755)

    # --- containers -------------------------------------------------------------------------------

    def run_init(self, version: str) -> None:
        for spec in self.pod.spec["initContainers"]:
            container = self._start(spec, version)
            assert container.process.wait(START_SECONDS_MAX) == 0, container.log.read_text()
            del self._containers[spec["name"]]

    def start(self, name: str, version: str) -> Container:
        """A container of the manifest, from this image."""
        spec = self.pod.container(name)
        assert spec is not None
        return self._start(spec, version)

    def start_beside(self, name: str, user: int, program: Sequence[str], version: str) -> Container:
        """One of another user, with what the manifest's last container mounts, and with pipes
        for its standard input and output."""
        spec = {
            "name": name,
            "command": list(program),
            "securityContext": {"runAsUser": user, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": self.pod.containers[-1]["volumeMounts"],
        }
        return self._start(spec, version, piped=True)

    def _start(self, spec: Mapping[str, Any], version: str, *, piped: bool = False) -> Container:
        assert self._sandbox is not None
        name = spec["name"]
        for directory in ("layers", "root"):
            (self.scratch / name / directory).mkdir(parents=True, exist_ok=True)
        prefix = [*self._identity(spec), *self._variables(spec)]
        command = [*spec["command"], *spec.get("args", [])]
        needed = dict.fromkeys([sys.base_prefix, str(ROOT), str(self._python.parents[1])])
        script = _CONTAINER.format(
            scratch=self.scratch,
            name=name,
            binds=" ".join(needed),
            image=IMAGE,
            version=version,
            mounts="\n".join(self._mount(mount) for mount in spec["volumeMounts"]),
            command=shlex.join([*prefix, *command]),
        )
        log = self.scratch / f"{name}.log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [
                    *("nsenter", "--target", str(self._sandbox.pid), "--mount", "--net", "--uts"),
                    *("--", "unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child"),
                    *("bash", "-c", script),
                ],
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else stream,
                stderr=stream,
            )
        self._containers[name] = Container(name, process, log, prefix)
        return self._containers[name]

    def _identity(self, spec: Mapping[str, Any]) -> list[str]:
        common, own = self.pod.spec["securityContext"], spec["securityContext"]
        capabilities = own["capabilities"]
        assert capabilities["drop"] == ["ALL"]
        kept = ",".join(["-all", *(f"+{one.lower()}" for one in capabilities.get("add", []))])
        return [
            *("setpriv", f"--reuid={own['runAsUser']}", f"--regid={common['runAsGroup']}"),
            *(f"--groups={common['fsGroup']}", "--no-new-privs", f"--bounding-set={kept}"),
            *("--inh-caps=-all",),
        ]

    def _variables(self, spec: Mapping[str, Any]) -> list[str]:
        said = environment(spec)
        kept = {name: self._changes.get(name, value) for name, value in said.items()}
        path = f"PATH={IMAGE}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        fixed = [path, f"PYTHONPATH={IMAGE}/site", "PYTHONDONTWRITEBYTECODE=1"]
        return ["env", "-i", *fixed, *(f"{n}={v}" for n, v in kept.items())]

    def _mount(self, mount: Mapping[str, Any]) -> str:
        name, target = mount["name"], f"root{mount['mountPath']}"
        on_disk = "hostPath" in self.pod.volume(name)
        source = self.scratch / name if on_disk else self.scratch / "volumes" / name
        return f"mkdir -p {target}\nmount --bind {source} {target}"

    # --- what kubelet does ------------------------------------------------------------------------

    def execute(self, name: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """A command inside, as a probe of kind exec is run."""
        words = self._containers[name].enter(command)
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)

    def get(self, name: str, path: str) -> tuple[int, str]:
        """Status and body of the daemon's HTTP at the manifest's port; 0 if it is not there."""
        spec = self.pod.container(name)
        assert spec is not None
        port = spec["ports"][0]["containerPort"]
        program = (
            "import http.client as h, json\n"
            f"c = h.HTTPConnection('127.0.0.1', {port}, timeout=5)\n"
            f"c.request('GET', '{path}')\n"
            "r = c.getresponse()\n"
            "print(json.dumps([r.status, r.read().decode()]))"
        )
        assert self._sandbox is not None
        network = ["nsenter", "--target", str(self._sandbox.pid), "--net", "--"]
        words = [*network, sys.executable, "-c", program]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            return 0, done.stderr
        status, body = json.loads(done.stdout)
        return status, body

    def metric(self, name: str, labels: str = "") -> float:
        """A metric of the daemon, all its series with these labels added up."""
        _, body = self.get("snapd", "/metrics")
        assert f"# TYPE {name}" in body, body[:500]
        found = re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)$", body, re.MULTILINE)
        return sum(float(value) for its, value in found if labels in its)

    def stop(self, *names: str) -> dict[str, float]:
        """Stop containers at once, each with its preStop before SIGTERM; the seconds each took.
        One that does not end within the grace period, or not well, fails."""
        began = time.monotonic()
        hooks = {}
        for name in names:
            spec = self.pod.container(name)
            assert spec is not None
            hook = spec.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
            if hook:
                hooks[name] = subprocess.Popen(self._containers[name].enter(hook))
                self._beside.append(hooks[name])
            else:
                os.kill(self._containers[name].first(), signal.SIGTERM)
        took = {}
        limit = self.pod.spec["terminationGracePeriodSeconds"]
        for name in sorted(names, key=lambda name: name in hooks):
            container = self._containers.pop(name)
            if name in hooks:
                assert hooks[name].wait(limit) == 0, container.log.read_text()
                os.kill(container.first(), signal.SIGTERM)
            code = container.process.wait(limit - (time.monotonic() - began))
            assert code == 0, f"{name} ended with {code}\n{container.log.read_text()[-3000:]}"
            took[name] = time.monotonic() - began
        return took

    def kill(self, name: str) -> None:
        self._containers.pop(name).kill()

    def log(self, name: str) -> str:
        """What all containers of this name have logged."""
        return (self.scratch / f"{name}.log").read_text()

    def until(
        self, what: str, done: Callable[[], bool], seconds: float = START_SECONDS_MAX
    ) -> None:
        """Wait; fail with the logs."""
        deadline = time.monotonic() + seconds
        while not done():
            logs = "\n".join(
                f"--- {path.name}\n{path.read_text()[-3000:]}"
                for path in self.scratch.glob("*.log")
            )
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{logs}"
            time.sleep(0.05)
