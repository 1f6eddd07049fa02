"""A client that says what no client says: the store goes on, and nobody else notices."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from fault_ledger import FaultClass, case
from neighbour_kit import closed_by_peer, frame, hello, neighbourhood, raw_socket
from store_kit import (
    StoreClient,
    StoreProcess,
    checksum_of,
    key_batch,
    shared_memory_path,
    unpack_reserved,
)

from snapd.errors import SnapdError
from snapd.formats.segment import SlotState
from snapd.wire import messages as m
from snapd.wire.connection import Connection
from snapd.wire.framing import FRAME_MAGIC, encode_frame

SEED = int(os.environ.get("SNAPD_TEST_SEED", "20261121"))
REPEAT = f"SNAPD_TEST_SEED={SEED} pytest tests/hostile/test_neighbour_messages.py"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    with shared_memory_path() as path:
        process = StoreProcess(
            path,
            tmp_path_factory.mktemp("rude"),
            SNAPD_LEASE_SEC="0.05",
            MOONCAKE_GLOBAL_SEGMENT_SIZE="32mb",
        )
        process.start()
        yield process
        process.kill()


# --- frames ---------------------------------------------------------------------------------------


def header(length: int, magic: int = FRAME_MAGIC) -> bytes:
    return magic.to_bytes(4, "little") + bytes(4) + length.to_bytes(8, "little")


BAD_FRAMES = {
    "no frame at all": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(5000),
    "another magic": header(4, FRAME_MAGIC + 1) + b"\x91\x01\x02\x03",
    "length 2^31": header(2**31) + bytes(100),
    "length 2^63": header(2**63) + bytes(100),
    "length 2^64 - 1": header(2**64 - 1),
    "length one over the limit": header(16 * 2**20 + 1),
    "an empty frame": header(0),
    "nested arrays without end": encode_frame(1, b"\x91" * 100_000),
    "nested maps without end": encode_frame(1, b"\x81\x01" * 100_000),
    "a string that is not UTF-8": encode_frame(1, msgspec.msgpack.encode(["hello"]) + b"\xff"),
    "a tag that nobody knows": encode_frame(1, msgspec.msgpack.encode(["hullo", 1, "client", "x"])),
    "types that are wrong": encode_frame(1, msgspec.msgpack.encode(["hello", "one", 2, None])),
    "a reply": frame(1, m.Codes(bytes(8))),
    "a request before hello": frame(1, m.Exist(key_batch([b"a"]))),
    "stats before hello": frame(1, m.Stats()),
}


@pytest.mark.parametrize("kind", sorted(BAD_FRAMES))
def test_a_bad_first_frame_ends_its_connection_alone(store: StoreProcess, kind: str) -> None:
    with (
        case(FaultClass.NEIGHBOUR, f"frame: {kind}"),
        StoreClientOf(store) as witness,
        raw_socket(store.socket) as raw,
    ):
        witness.put({b"a": b"value"}, upsert=True)
        raw.sendall(BAD_FRAMES[kind])
        assert closed_by_peer(raw)
        assert witness.get([b"a"]) == [b"value"]


class StoreClientOf:
    """A connected client, closed at the end."""

    def __init__(self, store: StoreProcess, role: str = "client") -> None:
        self._client = store.client(role)

    def __enter__(self) -> StoreClient:
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.close()


@pytest.mark.parametrize("count", [150, pytest.param(20_000, marks=pytest.mark.long)])
def test_random_bytes_in_frames_of_any_shape(store: StoreProcess, count: int) -> None:
    chance = random.Random(SEED)
    with neighbourhood(store, SEED):
        for number in range(count):
            shape = chance.choice(["raw", "framed", "after hello", "flipped", "cut"])
            noise = chance.randbytes(chance.randrange(1, 300))
            valid = frame(2, m.Exist(key_batch([b"a", b"b"])))
            if shape == "raw":
                data = noise
            elif shape == "framed":
                data = encode_frame(1, noise)
            elif shape == "after hello":
                data = hello() + encode_frame(2, noise)
            elif shape == "flipped":
                at = chance.randrange(len(valid))
                data = hello() + valid[:at] + bytes([valid[at] ^ 1 << chance.randrange(8)])
                data += valid[at + 1 :]
            else:
                data = hello() + valid[: chance.randrange(len(valid))]
            with (
                case(FaultClass.NEIGHBOUR, f"random frame: {shape} {number % 200}"),
                raw_socket(store.socket) as raw,
            ):
                with contextlib.suppress(BrokenPipeError):
                    raw.sendall(data)
                if chance.random() < 0.5:  # else it closes in the middle of whatever happens
                    raw.settimeout(0.02)
                    with contextlib.suppress(TimeoutError, ConnectionResetError):
                        raw.recv(65_536)


# --- requests whose fields are nonsense -----------------------------------------------------------

WIDTHS = {"slots": 4, "cold_slots": 4, "fingerprints": 2, "groups": 4, "pins": 1, "heats": 4}
WIDTHS |= {"codes": 4}
KINDS: list[type[Any]] = [m.PutStart, m.PutEnd, m.PutRevoke, m.GetStart, m.Query, m.Exist, m.Remove]
KINDS += [m.ReportCorrupt, m.RegisterCold, m.ColdReady, m.DropCold, m.LoadWait, m.FillStart]
KINDS += [m.FillEnd, m.PinBlocks, m.UnpinBlocks, m.EventsWait, m.Stats, m.Attach, m.Hello]
NUMBERS = [0, 1, -1, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63), 2**64 - 1]


def nonsense(kind: type[Any], chance: random.Random) -> m.Request:
    """A request of right types and arbitrary content; keys may be too long, slots anywhere."""
    count = chance.choice([0, 1, 2, 5, 300])
    values: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        if field.type is m.KeyBatch:
            lengths = [chance.choice([1, 3, 40, 1024]) for _ in range(count)]
            if chance.random() < 0.1 and lengths:
                lengths[-1] = chance.choice([0, 1025, 65_535])
            heap = chance.randbytes(sum(lengths)) if chance.random() < 0.5 else bytes(sum(lengths))
            values[field.name] = m.KeyBatch(heap, np.array(lengths, np.uint16).tobytes())
        elif field.type is bytes:
            width = WIDTHS.get(field.name, 8)
            wrong = count + (chance.random() < 0.1)
            fill = chance.choice([b"\0", b"\xff", b"\x01" + bytes(width - 1), None])
            values[field.name] = (
                chance.randbytes(wrong * width)
                if fill is None
                else (fill * (wrong * width // len(fill)))
            )
        elif field.type is int:
            values[field.name] = 1 if field.name == "wait_ms" else chance.choice(NUMBERS)
        elif field.type is bool:
            values[field.name] = chance.random() < 0.5
        else:
            values[field.name] = chance.choice(["", "client", "x" * 5000, "\n\0", "ü"])
    return kind(**values)  # type: ignore[no-any-return]


@pytest.mark.parametrize("role", ["client", "daemon", "operator"])
@pytest.mark.parametrize("rounds", [4, pytest.param(300, marks=pytest.mark.long)])
def test_every_request_with_nonsense_in_its_fields(
    store: StoreProcess, role: str, rounds: int
) -> None:
    chance = random.Random(SEED)
    with neighbourhood(store, SEED + 1):
        for kind in KINDS:
            for number in range(rounds):
                request = nonsense(kind, chance)
                connection = store.connect()
                with case(FaultClass.NEIGHBOUR, f"nonsense: {kind.__name__} as {role} {number}"):
                    connection.call(m.Hello(m.PROTOCOL_VERSION, role, "x"), m.HelloReply)
                    if role == "daemon":
                        with contextlib.suppress(SnapdError):
                            connection.call(m.Attach(b"rude"), m.Attached)
                    with contextlib.suppress(SnapdError):
                        connection.call(request, m.Codes)
                    connection.close()
                    assert store.exit_code() is None, REPEAT


# --- batches and keys -----------------------------------------------------------------------------


def batch(lengths: list[int], heap: bytes | None = None) -> m.KeyBatch:
    return m.KeyBatch(
        heap if heap is not None else b"k" * sum(lengths), np.array(lengths, np.uint16).tobytes()
    )


REFUSED_BATCHES = {
    "a million keys": m.KeyBatch(bytes(10**6), b"\x01\x00" * 10**6),
    "65,537 keys": m.KeyBatch(bytes(65_537), b"\x01\x00" * 65_537),
    "a key of length 0": batch([0]),
    "a key of length 0 among others": batch([3, 0, 3]),
    "a key of 1,025 bytes": batch([1025]),
    "a key of 65,535 bytes": batch([65_535]),
    "lengths beyond the heap": batch([9], b"abc"),
    "a heap beyond the lengths": batch([2], b"abcdef"),
    "half a length": m.KeyBatch(b"abc", b"\x03"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED_BATCHES))
def test_a_batch_that_cannot_be_is_refused_whatever_asks_for_it(
    store: StoreProcess, kind: str
) -> None:
    keys = REFUSED_BATCHES[kind]
    for request in (m.Exist(keys), m.GetStart(keys, 0), m.Query(keys), m.Remove(keys, True)):
        name = f"batch: {kind} in {type(request).__name__}"
        with case(FaultClass.NEIGHBOUR, name), raw_socket(store.socket) as raw:
            raw.sendall(hello() + frame(2, request))
            assert closed_by_peer(raw)
    sizes = np.ones(len(keys.lengths) // 2, np.uint64).tobytes()
    with (
        case(FaultClass.NEIGHBOUR, f"batch: {kind} in PutStart"),
        StoreClientOf(store) as client,
        pytest.raises(SnapdError),
    ):
        client.call(m.PutStart(keys, sizes), m.Reserved)
    assert store.exit_code() is None


def test_keys_that_are_no_text_and_keys_that_come_twice(store: StoreProcess) -> None:
    with StoreClientOf(store) as client, neighbourhood(store, SEED + 2):
        with case(FaultClass.NEIGHBOUR, "batch: keys that are not UTF-8"):
            odd = {b"\xff\xfe\x00": b"1", b"\x80" * 1024: b"2", b"\0": b"3"}
            assert set(client.put(odd, upsert=True).values()) == {0}
            assert client.get(list(odd)) == list(odd.values())
        with case(FaultClass.NEIGHBOUR, "batch: one key many times in a put"):
            codes, slots, sequences, offsets = client.reserve([b"twice"] * 5, [4] * 5)
            assert codes.tolist() == [0, -705, -705, -705, -705]
            client.write(int(offsets[0]), b"good")
            assert client.publish(slots[:1], sequences[:1], [checksum_of(b"good")]) == [0]
        with case(FaultClass.NEIGHBOUR, "batch: one key many times in an upsert"):
            codes, slots, sequences, offsets = client.reserve([b"twice"] * 5, [4] * 5, upsert=True)
            assert codes.tolist() == [0] * 5
            for number, offset in enumerate(offsets.tolist()):
                client.write(offset, b"new%d" % number)
            sums = [checksum_of(b"new%d" % number) for number in range(5)]
            assert client.publish(slots, sequences, sums) == [0] * 5
            assert client.get([b"twice"]) == [b"new4"]
        with case(FaultClass.NEIGHBOUR, "batch: one key 60,000 times in a removal"):
            client.remove([b"twice"] * 60_000, force=True)
            assert client.exist([b"twice"]) == [0]


def test_the_largest_batches_there_are_hold_nobody_up(store: StoreProcess) -> None:
    keys = key_batch([b"%d" % number for number in range(65_536)])
    sizes = np.full(65_536, 5000, np.uint64).tobytes()
    requests = [m.Exist(keys), m.GetStart(keys, 0), m.Query(keys), m.Remove(keys, True)]
    requests += [m.PutStart(keys, sizes), m.PutStart(keys, sizes, upsert=True)]
    with neighbourhood(store, SEED + 3) as witness:
        for request in requests:
            name = f"batch: 65,536 keys in {type(request).__name__}"
            with case(FaultClass.NEIGHBOUR, name), StoreClientOf(store) as client:
                for _ in range(2):
                    kind = m.Codes if isinstance(request, m.Exist | m.Remove) else m.Located
                    kind = m.Reserved if isinstance(request, m.PutStart) else kind
                    client.call(request, kind)
        with case(FaultClass.NEIGHBOUR, "batch: 65,536 reports of blocks that are good"):
            hold_reports(store)
    print(f"p99 beside the largest batches: {1000 * witness.p99:.1f} ms")


def hold_reports(store: StoreProcess) -> None:
    """Report every slot that there is, many times over."""
    with StoreClientOf(store) as client:
        slots = client.view.slots
        rows = np.resize(np.flatnonzero(slots["state"] == SlotState.PUBLISHED), 65_536)
        report = m.ReportCorrupt(
            rows.astype(np.uint32).tobytes(),
            np.ascontiguousarray(slots["sequence"][rows]).tobytes(),
        )
        assert set(codes_of(client, report)) <= {-705, -704}


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 2**31, 2**44, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 4096])
def test_sizes_that_no_store_has_room_for(store: StoreProcess, size: int) -> None:
    with StoreClientOf(store) as client, case(FaultClass.NEIGHBOUR, f"size: {size}"):
        before = client.stats()
        code = -600 if size == 0 else -200
        assert client.reserve([b"s", b"t"], [size, size])[0].tolist() == [code, code]
        after = client.stats()
        assert (after.bytes_used, after.slots_used) == (before.bytes_used, before.slots_used)


# --- what is not its own --------------------------------------------------------------------------


def test_slots_and_sequences_that_are_not_its_own(store: StoreProcess) -> None:
    with (
        neighbourhood(store, SEED + 4),
        StoreClientOf(store) as owner,
        StoreClientOf(store) as rude,
    ):
        codes, slots, sequences, offsets = owner.reserve([b"mine"], [4], upsert=True)
        assert codes.tolist() == [0]
        owner.write(int(offsets[0]), b"mine")
        pair = (slots.tobytes(), sequences.tobytes())
        with case(FaultClass.NEIGHBOUR, "PutEnd for another client's slot"):
            assert rude.publish(slots, sequences, [1]) == [-704]
        with case(FaultClass.NEIGHBOUR, "PutRevoke of another client's slot"):
            assert codes_of(rude, m.PutRevoke(*pair)) == [-704]
        with case(FaultClass.NEIGHBOUR, "ReportCorrupt of an unfinished slot"):
            assert codes_of(rude, m.ReportCorrupt(*pair)) == [-704]
        for wrong in (sequences - np.uint64(1), sequences + np.uint64(1), sequences * 0):
            with case(FaultClass.NEIGHBOUR, f"PutEnd with sequence off by {wrong - sequences}"):
                assert owner.publish(slots, wrong, [1]) == [-704]
        with case(FaultClass.NEIGHBOUR, "PutEnd of slots outside the table"):
            outside = np.array([2**32 - 1, 2**31], np.uint32)
            assert owner.publish(outside, np.array([1, 1], np.uint64), [1, 1]) == [-704] * 2
        assert owner.publish(slots, sequences, [checksum_of(b"mine")]) == [0]
        with case(FaultClass.NEIGHBOUR, "PutEnd twice"):
            assert owner.publish(slots, sequences, [7]) == [-704]
        with case(FaultClass.NEIGHBOUR, "PutRevoke after PutEnd"):
            assert codes_of(owner, m.PutRevoke(*pair)) == [-704]
        assert owner.get([b"mine"]) == [b"mine"]

        codes, slots, sequences, _ = owner.reserve([b"other"], [4])
        pair = (slots.tobytes(), sequences.tobytes())
        with case(FaultClass.NEIGHBOUR, "PutRevoke of one slot twice in a message"):
            both = m.PutRevoke(pair[0] * 2, pair[1] * 2)
            assert codes_of(owner, both) == [0, 0]
        with case(FaultClass.NEIGHBOUR, "PutRevoke twice"):
            assert codes_of(owner, m.PutRevoke(*pair)) == [-704]
        with case(FaultClass.NEIGHBOUR, "PutEnd after PutRevoke"):
            assert owner.publish(slots, sequences, [1]) == [-704]
        assert owner.exist([b"other"]) == [0]


def codes_of(client: StoreClient, request: m.Message) -> list[int]:
    codes: list[int] = np.frombuffer(client.call(request, m.Codes).codes, np.int32).tolist()
    return codes


DAEMON_REQUESTS: list[m.Message] = [
    m.FillStart(bytes(4), bytes(8), True),
    m.FillEnd(bytes(4), bytes(8), bytes(4), bytes(8), bytes(4)),
    m.RegisterCold(key_batch([]), b"", b"", b"", b"", b"", b""),
    m.ColdReady(),
    m.DropCold(bytes(4), bytes(8)),
    m.LoadWait(0),
    m.EventsWait(0, 0),
    m.PinBlocks(bytes(4), bytes(8)),
    m.UnpinBlocks(bytes(4), bytes(8)),
    m.Attach(b"me"),
]


@pytest.mark.parametrize("request_", DAEMON_REQUESTS, ids=lambda one: type(one).__name__)
def test_what_only_a_daemon_may_ask(store: StoreProcess, request_: m.Message) -> None:
    name = type(request_).__name__
    with (
        StoreClientOf(store) as client,
        case(FaultClass.NEIGHBOUR, f"role: {name} as a client"),
        pytest.raises(SnapdError, match="not for the role"),
    ):
        client.call(request_, m.Codes)
    connection = store.connect()
    connection.call(m.Hello(m.PROTOCOL_VERSION, "daemon", "x"), m.HelloReply)
    if not isinstance(request_, m.Attach):
        with (
            case(FaultClass.NEIGHBOUR, f"role: {name} of a daemon that did not attach"),
            pytest.raises(SnapdError, match="attach first"),
        ):
            connection.call(request_, m.Codes)
    connection.close()


def test_a_second_daemon_and_one_with_a_stale_id(store: StoreProcess) -> None:
    def attach(daemon_id: bytes) -> Connection:
        connection = store.connect()
        connection.call(m.Hello(m.PROTOCOL_VERSION, "daemon", "x"), m.HelloReply)
        try:
            connection.call(m.Attach(daemon_id), m.Attached)
        except SnapdError:
            connection.close()
            raise
        return connection

    first = attach(b"first")
    with (
        case(FaultClass.NEIGHBOUR, "role: a second daemon beside the first"),
        pytest.raises(SnapdError, match="another daemon is attached"),
    ):
        attach(b"second")
    first.close()
    second = attach(b"second")
    with (
        case(FaultClass.NEIGHBOUR, "role: a daemon with the id of one that was replaced"),
        pytest.raises(SnapdError, match="another daemon is attached"),
    ):
        attach(b"first")
    for odd in (b"", bytes(65)):
        with (
            case(FaultClass.NEIGHBOUR, f"role: a daemon id of {len(odd)} bytes"),
            pytest.raises(SnapdError, match="1 to 64 bytes"),
        ):
            attach(odd)
    with case(FaultClass.NEIGHBOUR, "role: attaching twice on one connection"):
        assert second.call(m.Attach(b"second"), m.Attached)
    with (
        case(FaultClass.NEIGHBOUR, "hello twice"),
        pytest.raises(SnapdError, match="refused"),
    ):
        second.call(m.Hello(m.PROTOCOL_VERSION, "client", "x"), m.HelloReply)
    second.close()


def test_an_impostor_that_registers_what_is_not_there_costs_a_miss_and_no_wrong_byte(
    store: StoreProcess,
) -> None:
    with neighbourhood(store, SEED + 5), StoreClientOf(store) as client:
        client.put({b"real": b"bytes"}, upsert=True)
        connection = store.connect()
        connection.call(m.Hello(m.PROTOCOL_VERSION, "daemon", "x"), m.HelloReply)
        connection.call(m.Attach(b"impostor"), m.Attached)
        keys = key_batch([b"real", b"fiction"])
        column = np.zeros(2, np.uint64).tobytes
        with case(FaultClass.NEIGHBOUR, "role: an impostor registers with wrong hashes"):
            registered = connection.call(
                m.RegisterCold(
                    keys,
                    np.array([1, 2], np.uint64).tobytes(),
                    np.array([5, 5], np.uint64).tobytes(),
                    column(),
                    bytes(8),
                    bytes(2),
                    bytes(8),
                ),
                m.Reserved,
            )
            connection.call(m.ColdReady(), m.Codes)
            assert client.get([b"real", b"fiction"]) == [b"bytes", None]
        with case(FaultClass.NEIGHBOUR, "role: an impostor ends fills that it never made"):
            codes, slots, sequences, _ = unpack_reserved(registered)
            cold = (slots[codes == 0].tobytes(), sequences[codes == 0].tobytes())
            count = int((codes == 0).sum())
            end = m.FillEnd(*cold, *cold, bytes(4 * count))
            ended = np.frombuffer(connection.call(end, m.Codes).codes, np.int32)
            assert ended.tolist() == [-704] * count
            assert client.get([b"real", b"fiction"]) == [b"bytes", None]
        connection.close()
