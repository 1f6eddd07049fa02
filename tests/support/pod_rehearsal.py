"""An upgrade of a pod's containers, under the eyes of a client in a container of its own."""

from __future__ import annotations

import json
from typing import Any

import pod_client
from pod_machine import Container, PodMachine

CLIENT_USER = 10003


class Client:
    """The client's container, asked line by line."""

    def __init__(self, container: Container) -> None:
        self._process = container.process
        self._log = container.log
        assert self.answer() == {"setup": 0}

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._log.read_text()
        said: dict[str, Any] = json.loads(line)
        return said

    def ask(self, line: str) -> dict[str, Any]:
        self.say(line)
        return self.answer()

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


class Rehearsal:
    """A pod with a store, a daemon and a client; `master` is that of Mooncake, if there is one."""

    def __init__(self, machine: PodMachine, *, master: str = "") -> None:
        self.machine = machine
        self.client: Client | None = None
        self._master = master

    def start(self, version: str) -> tuple[Container, Container]:
        """Store and daemon, as kubelet starts them: the one that makes the directory first."""
        self.machine.run_init(version)
        made = self.machine.start("store", version), self.machine.start("snapd", version)
        self.wait("store", "snapd", version=version)
        return made

    def wait(self, *names: str, version: str) -> None:
        """Until the manifest's probes are content."""
        self.machine.until("ready", lambda: self.machine.get("snapd", "/readyz")[0] == 200)
        self.machine.until("probe", self.store_answers)
        for name in names:
            assert version in self.machine.execute(name, ["snapd", "--version"]).stdout

    def store_answers(self) -> bool:
        """What the store's liveness probe says; one that asks a port, nothing."""
        store = self.machine.pod.container("store")
        assert store is not None
        probe = store["livenessProbe"]
        if "exec" not in probe:
            return True
        return self.machine.execute("store", probe["exec"]["command"]).returncode == 0

    def connect(self, version: str) -> Client:
        program = ["python3", pod_client.__file__, self._master]
        container = self.machine.start_beside("client", CLIENT_USER, program, version)
        self.client = Client(container)
        return self.client

    def disconnect(self) -> None:
        assert self.client is not None
        self.machine.kill("client")
        self.client.close()
        self.client = None

    def replace(
        self, *names: str, version: str, count: int, watch_seconds: float = 2.5
    ) -> dict[str, Any]:
        """Another image for these containers, while the client reads `count` blocks; what it
        saw."""
        assert self.client is not None
        self.client.say(f"watch {watch_seconds} {count}")
        took = self.machine.stop(*names)
        for name in names:
            self.machine.start(name, version)
        self.wait(*names, version=version)
        seen = self.client.answer()
        print(f"{' and '.join(names)} to {version}: stopped in {took}, seen: {seen}")
        return seen
