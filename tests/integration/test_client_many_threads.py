"""What Mooncake's own tests of its client try with many threads, on the bundled store.

The rest of them is in the table of client cases, which runs on both, or in the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from client_store import StoreProcess

from snapd.client import MooncakeDistributedStore

THREADS = 8
KEYS_EACH = 12
SIZE = 128 * 1024


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    directory: Path = tmp_path_factory.mktemp("client-threads")
    with StoreProcess(directory, lease_sec=0.05) as process:
        yield process


def in_threads(work: Callable[[int], None]) -> None:
    """Run `work` in many threads at once; the first error is raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(THREADS)

    def run(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def content(number: int, row: int) -> bytes:
    return np.random.default_rng([number, row]).bytes(SIZE)


def test_threads_put_get_and_remove_through_one_client(store: StoreProcess) -> None:
    with closing(store.client()) as client:
        put_and_get_everything(client)
        assert client.remove_all(force=True) == 0


def put_and_get_everything(client: MooncakeDistributedStore) -> None:
    """Each thread by another one of the ways to put, and by each of the ways to get."""

    def work(number: int) -> None:
        keys = [f"{number}/{row}" for row in range(KEYS_EACH)]
        values = [content(number, row) for row in range(KEYS_EACH)]
        pairs = list(zip(keys, values, strict=True))
        memory = np.frombuffer(bytearray(b"".join(values)), np.uint8)
        rows = [memory.ctypes.data + row * SIZE for row in range(KEYS_EACH)]
        halves = [[row, row + SIZE // 2] for row in rows]
        sizes = [[SIZE // 2] * 2] * KEYS_EACH
        puts: list[Callable[[], object]] = [
            lambda: [client.put(key, value) for key, value in pairs],
            lambda: client.put_batch(keys, values),
            lambda: client.batch_put_from(keys, rows, [SIZE] * KEYS_EACH),
            lambda: client.batch_put_from_multi_buffers(keys, halves, sizes),
            lambda: client.upsert_batch(keys, values),
            lambda: client.batch_upsert_from(keys, rows, [SIZE] * KEYS_EACH),
            lambda: [client.put_parts(k, v[:9], v[9:]) for k, v in zip(keys, values, strict=True)],
            lambda: [
                client.upsert_parts(k, v[:9], v[9:]) for k, v in zip(keys, values, strict=True)
            ],
        ]
        codes = puts[number % len(puts)]()
        assert codes in (0, [0] * KEYS_EACH)
        assert client.get_batch(keys) == values
        assert [handle and bytes(handle) for handle in client.batch_get_buffer(keys)] == values
        memory[:] = 0
        assert client.batch_get_into_multi_buffers(keys, halves, sizes) == [SIZE] * KEYS_EACH
        assert memory.tobytes() == b"".join(values)
        assert client.remove_by_regex(f"^{number}/", True) == KEYS_EACH
        assert client.batch_is_exist(keys) == [0] * KEYS_EACH

    in_threads(work)


def test_threads_that_upsert_one_key_leave_the_value_of_one_of_them(store: StoreProcess) -> None:
    """A reader gets one whole value, or none where it was replaced twice under its copy."""
    with closing(store.client()) as client:

        def work(number: int) -> None:
            memory = np.zeros(SIZE, np.uint8)
            for _ in range(10):
                assert client.upsert("shared", bytes([number]) * SIZE) == 0
                code = client.get_into("shared", memory.ctypes.data, SIZE)
                assert code in (SIZE, -707)
                assert code < 0 or len(set(memory.tobytes())) == 1

        in_threads(work)
        last = client.get("shared")
        assert (len(last), len(set(last))) == (SIZE, 1)
        assert client.remove("shared", True) == 0
    assert store.stats().corrupt == 0
