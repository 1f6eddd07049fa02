"""Run the client's table in one implementation: `run_cases`, or as a script that prints JSON.

python client_driver.py snapd unix:<runtime dir>
python client_driver.py mooncake <master host:port> <metadata URL>
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from client_cases import BUFFER_BYTES, CASES, CRASH, At, Case, Step

HOSTNAME = "127.0.0.1"
_MODULES = {"snapd": "snapd.client", "mooncake": "mooncake.store"}


class World:
    """A client, two buffers, and how to connect."""

    def __init__(self, implementation: str, master: str, metadata: str) -> None:
        self.module = importlib.import_module(_MODULES[implementation])
        self.master = master
        self.metadata = metadata
        self.client: Any = self.module.MooncakeDistributedStore()
        self.buffers = {name: np.zeros(BUFFER_BYTES, np.uint8) for name in "ab"}

    def reset(self) -> None:
        """An empty store, empty buffers, nothing registered."""
        self.client.remove_all(True)
        for buffer in self.buffers.values():
            buffer[:] = 0

    def resolve(self, argument: Any) -> Any:
        """Addresses and configurations in place of their descriptions."""
        if isinstance(argument, At):
            return self.buffers[argument.buffer].ctypes.data + argument.offset
        if isinstance(argument, list):
            return [self.resolve(item) for item in argument]
        if isinstance(argument, tuple) and argument[:1] == ("ReplicateConfig",):
            return self.make_config(argument[1])
        if isinstance(argument, tuple):
            return tuple(self.resolve(item) for item in argument)
        return argument

    def make_config(self, values: dict[str, Any]) -> Any:
        """A ReplicateConfig; raises what setting its attributes raises."""
        made = self.module.ReplicateConfig()
        for name, value in values.items():
            is_action = name == "soft_pin_action" and isinstance(value, str)
            setattr(made, name, getattr(self.module.SoftPinAction, value) if is_action else value)
        return made

    # Steps of the driver.

    def setup_again(self) -> int:
        """`setup` in its positional form."""
        arguments = (HOSTNAME, self.metadata, 0, 1 << 24, "tcp", "", self.master)
        code: int = self.client.setup(*arguments)
        return code

    def setup_dictionary(self, **values: str) -> int:
        """`setup` in its dictionary form."""
        code: int = self.client.setup(
            {
                "local_hostname": HOSTNAME,
                "metadata_server": self.metadata,
                "global_segment_size": "0",
                "master_server_addr": self.master,
                **values,
            }
        )
        return code

    def get_host(self) -> str:
        """The host of `get_hostname`, whose port is the transport's choice."""
        name: str = self.client.get_hostname()
        return name.partition(":")[0]

    def host_has_port(self) -> bool:
        """Whether `get_hostname` names a port."""
        return ":" in self.client.get_hostname()

    def fill(self, buffer: str, offset: int, content: bytes) -> None:
        """Write into a buffer."""
        self.buffers[buffer][offset : offset + len(content)] = np.frombuffer(content, np.uint8)

    def read(self, buffer: str, offset: int, length: int) -> bytes:
        """Bytes of a buffer."""
        return self.buffers[buffer][offset : offset + length].tobytes()

    def put_from_new(self, key: str, size: int) -> int:
        """`put_from` of so many zeros, registered while it lasts."""
        memory = np.zeros(size, np.uint8)
        self.client.register_buffer(memory.ctypes.data, size)
        code: int = self.client.put_from(key, memory.ctypes.data, size)
        self.client.unregister_buffer(memory.ctypes.data)
        return code

    def buffer_of(self, key: str) -> tuple[bytes, int, int, bytes, bytes, bool]:
        """`get_buffer`: bytes, lengths, what lies at its address, a slice, if it is read only."""
        got = self.client.get_buffer(key)
        view = memoryview(got)
        there = ctypes.string_at(got.ptr(), got.size())
        return bytes(got), got.size(), len(got), there, bytes(view[2:4]), view.readonly

    def buffers_of(self, keys: list[str]) -> list[bytes | None]:
        """Bytes of `batch_get_buffer`."""
        return [None if got is None else bytes(got) for got in self.client.batch_get_buffer(keys)]

    def buffer_outlives(self, key: str, value: bytes) -> tuple[bytes, bytes]:
        """A buffer after its key got another value, and that value."""
        got = self.client.get_buffer(key)
        self.client.remove(key, True)
        self.client.put(key, value)
        return bytes(got), bytes(self.client.get_buffer(key))

    def buffer_byte(self, key: str, at: int) -> int:
        """One byte of a buffer's view."""
        byte: int = memoryview(self.client.get_buffer(key))[at]
        return byte

    def copied_groups(self, groups: tuple[str, ...]) -> tuple[list[str], None]:
        """What a configuration says of its groups, and after they were taken away."""
        made = self.module.ReplicateConfig()
        made.group_ids = groups
        before = made.group_ids
        made.group_ids = None
        return before, made.group_ids


def run_step(world: World, step: Step) -> str:
    """The repr of what the call returns, or the name of the exception's type."""
    own = step.method in vars(World)
    try:
        method = getattr(world if own else world.client, step.method)
        arguments = [world.resolve(argument) for argument in step.arguments]
        keywords = {name: world.resolve(value) for name, value in step.keywords.items()}
        return repr(method(*arguments, **keywords))
    except Exception as error:  # noqa: BLE001 - what is raised is the outcome
        return next(k.__name__ for k in type(error).__mro__ if k.__module__ == "builtins")


def run_fresh(world: World, case: Case) -> list[str]:
    """Outcomes of a case in a child process, on a client that is not set up; the last one may be
    that the process was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(writer, 1)
        world.client = world.module.MooncakeDistributedStore()
        for step in case.steps:
            os.write(1, (json.dumps(run_step(world, step)) + "\n").encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        outcomes = [json.loads(line) for line in lines]
    _, status = os.waitpid(child, 0)
    return [*outcomes, CRASH] if os.WIFSIGNALED(status) else outcomes


def run_cases(world: World, cases: Iterable[Case] = CASES) -> dict[str, list[str]]:
    """Outcomes of each case's steps. Fresh cases run first: they fork, which a client with threads
    does not survive in every implementation."""
    outcomes: dict[str, list[str]] = {}
    chosen = list(cases)
    for case in chosen:
        if case.fresh:
            outcomes[label(case)] = run_fresh(world, case)
    if world.setup_again() != 0:
        raise RuntimeError("setup failed")
    for case in chosen:
        if not case.fresh:
            world.reset()
            outcomes[label(case)] = [run_step(world, step) for step in case.steps]
    world.client.close()
    return outcomes


def label(case: Case) -> str:
    """A name that is unique in the table."""
    return f"{CASES.index(case):02d} {case.name}"


if __name__ == "__main__":
    print(json.dumps(run_cases(World(*sys.argv[1:4]))))
