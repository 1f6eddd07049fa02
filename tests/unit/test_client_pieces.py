"""The parts of the client that need no store."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash

from snapd.client import (
    MooncakeDistributedStore,
    ReplicateConfig,
    SoftPinAction,
    UnsupportedMethodError,
)
from snapd.client import names as names_module
from snapd.client.arguments import SetupArguments, encode_key, encode_keys_of
from snapd.client.mapped import _pieces
from snapd.client.memory import (
    BufferRegistry,
    as_bytes_array,
    as_unsigned,
    as_unsigned_list,
    checksum_memory,
)
from snapd.client.names import encode_names, split_batch
from snapd.client.transfer import BytesDestinations, PointerDestinations, PointerSources
from snapd.client.unsupported import OWN_METHODS, SUPPORTED_METHODS, UNSUPPORTED_METHODS
from snapd.errors import SettingError, SnapdError
from snapd.wire.codes import ReturnCode
from snapd.wire.framing import encode_frame
from snapd.wire.messages import (
    Codes,
    HelloReply,
    Message,
    decode_keys,
    encode_message,
)

# --- names ----------------------------------------------------------------------------------------


def test_names_that_are_not_supported_say_so_and_are_not_there() -> None:
    client = MooncakeDistributedStore()
    for name in UNSUPPORTED_METHODS:
        assert not hasattr(client, name)
        with pytest.raises(UnsupportedMethodError, match=f"{name}.*supported are: .*put"):
            getattr(client, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'") as caught:
        client.nonsense  # type: ignore[attr-defined]  # noqa: B018 - the lookup is what is tested
    assert not isinstance(caught.value, SnapdError)


def test_the_supported_names_are_there_and_no_others() -> None:
    public = {
        name
        for name in dir(MooncakeDistributedStore)
        if not name.startswith("_") and callable(getattr(MooncakeDistributedStore, name))
    }
    assert public == SUPPORTED_METHODS | OWN_METHODS
    assert not SUPPORTED_METHODS & UNSUPPORTED_METHODS


def test_a_configuration_refuses_wrong_types_and_keeps_right_ones() -> None:
    config = ReplicateConfig()
    config.soft_pin_action = SoftPinAction.ENABLE
    config.soft_pin_ttl_ms = 5
    assert (int(config.soft_pin_action), config.soft_pin_ttl_ms) == (1, 5)
    assert SoftPinAction.ENABLE != 1
    for name, value in (("replica_num", "2"), ("soft_pin_action", 1), ("group_ids", [1])):
        with pytest.raises(TypeError, match=f"ReplicateConfig.{name} must be"):
            setattr(config, name, value)
    with pytest.raises(AttributeError):
        config.with_soft_pin = True  # type: ignore[attr-defined]
    assert "soft_pin_ttl_ms=5" in repr(config)


# --- arguments ------------------------------------------------------------------------------------


def test_keys_are_text_or_bytes() -> None:
    assert encode_key("é") == "é".encode()
    assert encode_keys_of(("a", b"\xff")) == [b"a", b"\xff"]
    for wrong in (5, None, 1.0, ["a"], "\ud800", bytearray(b"a")):
        with pytest.raises(TypeError):
            encode_key(wrong)
        with pytest.raises(TypeError):
            encode_keys_of(["a", wrong])
    for wrong in ("ab", b"ab", {"a"}, {"a": 1}, iter(["a"]), None):
        with pytest.raises(TypeError, match="keys must be a list"):
            encode_keys_of(wrong)


def test_numbers_are_whole_and_unsigned() -> None:
    assert as_unsigned(np.uint64(2**64 - 1), "x") == 2**64 - 1
    assert as_unsigned_list([1, np.int64(2)], "x") == [1, 2]
    assert as_unsigned_list([], "x") == []
    for wrong in (-1, 2**64, 1.5, "1", None):
        with pytest.raises(TypeError, match="size must be"):
            as_unsigned(wrong, "size")
        with pytest.raises(TypeError, match="size must be"):
            as_unsigned_list([1, wrong], "size")


def arguments(master: str) -> SetupArguments:
    return SetupArguments("host", "meta", 0, 0, "tcp", "", master)


def test_the_socket_is_found_by_address_or_setting(tmp_path: Path) -> None:
    assert arguments("127.0.0.1:50051").socket_path("/run/x") == "/run/x/store.sock"
    assert arguments("unix:/a/b").socket_path("/run/x") == "/a/b/store.sock"
    assert arguments("unix:/a/b/other.sock").socket_path("/run/x") == "/a/b/other.sock"
    named = tmp_path / "dir.sock"
    named.mkdir()
    assert arguments(f"unix:{named}").socket_path("/run/x") == f"{named}/store.sock"


def test_the_dictionary_form_parses_text_and_names_what_is_wrong() -> None:
    config = {"local_hostname": "h", "metadata_server": "m"}
    parsed = SetupArguments.from_config(
        {**config, "global_segment_size": "5", "enable_ssd_offload": "true", "other": object()}
    )
    assert (parsed.global_segment_size, parsed.enable_ssd_offload) == (5, True)
    assert parsed.master_server_addr == "127.0.0.1:50051"
    with pytest.raises(SettingError, match="'metadata_server'"):
        SetupArguments.from_config({"local_hostname": "h"})
    with pytest.raises(SettingError, match="global_segment_size = 'abc' is not a number"):
        SetupArguments.from_config({**config, "global_segment_size": "abc"})
    with pytest.raises(SettingError, match="protocol = 5"):
        SetupArguments.from_config({**config, "protocol": 5})


def test_positional_arguments_of_a_wrong_type_are_type_errors() -> None:
    with pytest.raises(TypeError, match="global_segment_size"):
        SetupArguments("h", "m", "0", 0, "tcp", "", "m")  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    made = SetupArguments("h", "m", np.int64(5), 0, "tcp", "", "m")  # type: ignore[arg-type]
    assert made.global_segment_size == 5


def test_another_tenant_is_refused() -> None:
    client = MooncakeDistributedStore()
    assert client.setup("h", "m", 0, 0, "tcp", "", "unix:/none", None, False, "", "other") == -600


# --- memory ---------------------------------------------------------------------------------------


def test_bytes_of_any_buffer_without_a_copy_where_possible() -> None:
    raw = bytearray(b"abcdef")
    view = as_bytes_array(raw)
    raw[0] = ord("x")
    assert view.tobytes() == b"xbcdef"
    assert as_bytes_array(np.arange(3, dtype="<i2")).tobytes() == b"\0\0\1\0\2\0"
    assert as_bytes_array(np.arange(4, dtype=np.uint8).reshape(2, 2).T).tobytes() == b"\0\2\1\3"
    assert as_bytes_array(memoryview(b"abcd")[::2]).tobytes() == b"ac"
    assert len(as_bytes_array(b"")) == 0
    for wrong in ("text", None, 5, [1]):
        with pytest.raises(TypeError):
            as_bytes_array(wrong)


def test_the_registry_refuses_what_overlaps() -> None:
    registry = BufferRegistry()
    assert registry.register(1000, 100)
    for address, size in ((1000, 100), (1099, 1), (900, 101), (950, 500), (0, 5), (2000, 0)):
        assert not registry.register(address, size)
    assert registry.register(1100, 5)
    assert registry.register(900, 100)
    assert not registry.unregister(1050)
    assert registry.unregister(1000)
    assert not registry.unregister(1000)


def test_sources_are_copied_hashed_and_padded_with_zeros() -> None:
    target = np.full(3 * 4096, 0xEE, np.uint8)
    arrays = [np.frombuffer(b"abc", np.uint8), np.full(4096, 7, np.uint8)]
    sources = PointerSources.of_arrays(arrays)
    base = target.ctypes.data
    checksums = sources.take([0, 1]).copy_to([base, base + 4096])
    assert checksums.tolist() == [xxhash.xxh3_64_intdigest(array.tobytes()) for array in arrays]
    assert target[:4096].tobytes() == b"abc".ljust(4096, b"\0")
    assert (target[4096:8192] == 7).all()
    assert (target[8192:] == 0xEE).all()
    assert sources.take([1]).sizes == [4096]


def test_pointer_destinations_say_what_does_not_fit() -> None:
    target = np.zeros(16, np.uint8)
    address = target.ctypes.data
    destinations = PointerDestinations([address, address + 8, 0], [8, 8, 8])
    refused = destinations.refused([0, 1, 2], [8, 9, 1])
    assert refused == dict.fromkeys([1, 2], ReturnCode.INVALID_PARAMS)
    source = np.arange(8, dtype=np.uint8)
    checksums = destinations.deliver([1], [source.ctypes.data], [8])
    assert checksums[0] == checksum_memory(address + 8, 8)
    assert target.tobytes() == bytes(8) + bytes(range(8))


def test_discarded_bytes_do_not_reach_the_caller() -> None:
    destinations = BytesDestinations(1)
    source = np.arange(8, dtype=np.uint8)
    destinations.deliver([0], [source.ctypes.data], [8])
    assert destinations.values == [bytes(range(8))]
    destinations.discard(0)
    assert destinations.values == [b""]


def test_page_table_pieces_of_ranges() -> None:
    first, last = np.array([0, 5, 7]), np.array([1, 8, 7])
    assert _pieces(first, last).tolist() == [0, 5, 6, 7]
    assert _pieces(np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == []


# --- batches --------------------------------------------------------------------------------------


def test_names_travel_as_the_wire_decodes_them() -> None:
    names = [b"a", b"bc" * 512, b"\xff"]
    assert decode_keys(encode_names(names)).to_list() == names


def test_batches_are_cut_by_keys_by_their_bytes_and_by_block_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(names_module, "BATCH_KEYS_MAX", 3)
    monkeypatch.setattr(names_module, "REQUEST_KEY_BYTES_MAX", 10)
    monkeypatch.setattr(names_module, "REQUEST_BLOCK_BYTES_MAX", 100)

    def cut(names: list[bytes], sizes: list[int] | None = None) -> list[list[int]]:
        return [list(range(len(names)))[part] for part in split_batch(names, sizes)]

    assert cut([]) == []
    assert cut([b"a"] * 7) == [[0, 1, 2], [3, 4, 5], [6]]
    assert cut([b"aaaa"] * 5) == [[0, 1], [2, 3], [4]]
    assert cut([b"a"] * 3, [50, 50, 50]) == [[0, 1], [2]]
    assert cut([b"a"] * 3, [500, 1, 500]) == [[0], [1], [2]]


# --- a store that talks nonsense ------------------------------------------------------------------

Answer = Callable[[int], bytes]
"""Bytes to send for the request with this number, from 1 on."""


class Impostor:
    """Listens where a store would and sends what it is told."""

    def __init__(self, directory: Path, answer: Answer) -> None:
        self.address = f"unix:{directory}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "store.sock"))
        self._listener.listen()
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                number = 0
                while connection.recv(1 << 16):
                    number += 1
                    if not (data := self._answer(number)):
                        break
                    connection.sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Callable[[Answer], MooncakeDistributedStore]]:
    made: list[Impostor] = []

    def start(answer: Answer) -> MooncakeDistributedStore:
        made.append(Impostor(tmp_path, answer))
        return MooncakeDistributedStore()

    yield start
    for each in made:
        each.close()


def hello(path: str = "/dev/shm/snapd-test-no-such-segment") -> bytes:
    return frame(1, HelloReply(path, bytes(16), bytes(16), 0, 1 << 60, 1000, "0"))


def frame(number: int, message: Message) -> bytes:
    return encode_frame(number, encode_message(message))


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n",
        lambda _: b"",
        lambda _: hello()[:-1] + b"",
        lambda _: frame(1, Codes(b"")),
        lambda _: frame(7, Codes(b"")),
        lambda _: encode_frame(1, b"\xc1"),
        lambda _: os.urandom(64),
        lambda _: hello(),
        lambda _: hello(__file__),
    ],
    ids=[
        "another protocol",
        "closes",
        "half a message",
        "another message",
        "another request's reply",
        "not a message",
        "noise",
        "a segment that is not there",
        "a file that is no segment",
    ],
)
def test_garbage_from_the_socket_is_a_store_that_is_away(
    answer: Answer,
    impostor: Callable[[Answer], MooncakeDistributedStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("snapd.client.pool.REQUEST_SECONDS_MAX", 0.2)
    monkeypatch.setattr("snapd.client.pool.RECONNECT_SECONDS_MAX", 0.1)
    client = impostor(answer)
    assert client.setup("h", "m", 0, 0, "tcp", "", f"unix:{tmp_path}") == -900
    assert client.health_check() == 1
