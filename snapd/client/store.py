"""`MooncakeDistributedStore`: the class that callers of `mooncake.store` know.

Names, order of arguments, defaults and return codes are the wheel's, as its version 0.3.13.post1
gave them when asked (`tests/compat`): 0 is success, reads return bytes, negative numbers are
`ReturnCode`s, and wrong types are TypeErrors. Where it crashes or returns wrong bytes, this does
not; `docs/client.md` lists those differences.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, overload

from typing_extensions import Buffer

from snapd.blocks import Pin
from snapd.blocks.keys import I64
from snapd.blocks.labels import LABEL_LENGTH_MAX
from snapd.client.arguments import SetupArguments, as_sequence, encode_key, encode_keys_of
from snapd.client.link import LinkOptions
from snapd.client.memory import BufferRegistry, as_bytes_array, as_unsigned, as_unsigned_list
from snapd.client.parts import PartDestinations, Parts, PartSources
from snapd.client.replicate import ReplicateConfig, SoftPinAction
from snapd.client.requests import PutOptions
from snapd.client.session import ClientSession
from snapd.client.transfer import BytesDestinations, PointerDestinations, PointerSources, Sources
from snapd.client.unsupported import missing_attribute
from snapd.config import load_settings
from snapd.config.logs import event
from snapd.errors import SettingError
from snapd.wire.codes import ReturnCode

_log = logging.getLogger(__name__)

_DEFAULT_CONFIG = ReplicateConfig()
"""Shared by all calls without a configuration; nobody writes to it."""

_OK = int(ReturnCode.OK)
_INVALID_KEY = int(ReturnCode.INVALID_KEY)
_INVALID_PARAMS = int(ReturnCode.INVALID_PARAMS)
_NOT_FOUND = int(ReturnCode.OBJECT_NOT_FOUND)
_ALREADY_EXISTS = int(ReturnCode.OBJECT_ALREADY_EXISTS)
"""Plain numbers, because callers print and compare what they get."""

_NOT_SET_UP = 1
"""What `health_check` says before `setup` and after `close`."""


class MooncakeDistributedStore:
    """A client of the bundled store. Safe for use by many threads, and after `fork`."""

    must_answer_at_setup: ClassVar[bool] = True
    """Whether `setup` fails while the store is away. A subclass that says no is set up all the
    same: its calls miss until there is a store."""

    def __init__(self) -> None:
        self._session: ClientSession | None = None
        self._end_session: Callable[[], object] = _nothing
        """Also called when this object is dropped, or the interpreter ends, without `close`."""
        self._buffers = BufferRegistry()
        self._hostname = ""

    # --- life -------------------------------------------------------------------------------------

    @overload
    def setup(
        self,
        local_hostname: str,
        metadata_server: str,
        global_segment_size: int,
        local_buffer_size: int,
        protocol: str,
        rdma_devices: str,
        master_server_addr: str,
        engine: object = None,
        enable_ssd_offload: bool = False,
        ssd_offload_path: str = "",
        tenant_id: str = "default",
        enable_client_http_server: bool = False,
        client_http_port: int = 9300,
        *,
        fingerprint: str | None = None,
    ) -> int: ...

    @overload
    def setup(self, config: dict[str, Any]) -> int: ...

    def setup(self, *args: Any, **kwargs: Any) -> int:
        """Connect to the store, in the wheel's two forms. Returns 0; INVALID_PARAMS for arguments
        or settings that cannot be used, RPC_FAIL when no store answers.

        The store is found by `master_server_addr` `unix:<path>`, of its runtime directory or its
        socket, else by the setting `runtime_dir`. What only a network store needs is ignored.

        `fingerprint`, the wheel has none, is the label under which this client puts and finds
        keys (model, dtype, layout, weights), None the setting of that name: see
        `docs/fingerprints.md`.
        """
        config = kwargs["config"] if kwargs.keys() == {"config"} and not args else None
        if config is None and len(args) == 1 and not kwargs and isinstance(args[0], Mapping):
            config = args[0]
        try:
            arguments = (
                SetupArguments(*args, **kwargs)
                if config is None
                else SetupArguments.from_config(config)
            )
            return self._connect(arguments)
        except SettingError as error:
            event(_log, logging.ERROR, "setup refused", reason=error)
            return _INVALID_PARAMS

    def set_fingerprint(self, fingerprint: str) -> int:
        """Put and find keys under another label from now on: after an update of the weights, say.
        What other threads have begun ends under the old one, or as if the store were away.

        Returns 0; INVALID_PARAMS, and nothing has changed, without `setup` or for a text that is
        no label; else what `health_check` would say: the label holds then as well.
        """
        session = self._session
        if session is None or not _is_label(fingerprint):
            return _INVALID_PARAMS
        end_before = self._end_session
        self._begin(ClientSession(session.options.relabelled(fingerprint)))
        end_before()
        return self.health_check()

    def close(self) -> int:
        """End all connections. Returns 0, also when there is nothing to close."""
        self._session = None
        self._end_session()
        return _OK

    def get_hostname(self) -> str:
        """The `local_hostname` of `setup`; "" without one."""
        return self._hostname if self._session is not None else ""

    def health_check(self) -> int:
        """0 when the store answers, 1 without `setup`, RPC_FAIL when it is away."""
        session = self._session
        return _NOT_SET_UP if session is None else session.ping()

    # --- values -----------------------------------------------------------------------------------

    def put(self, key: str, value: Buffer, config: ReplicateConfig = _DEFAULT_CONFIG) -> int:
        """Store a value. 0 also when the key exists: its bytes stay as they are."""
        return self._put_value(key, value, config, upsert=False)

    def put_batch(
        self, keys: list[str], values: list[Buffer], config: ReplicateConfig = _DEFAULT_CONFIG
    ) -> int:
        """Store values. 0 when all are stored or existed, else the code of the first that failed.

        INVALID_PARAMS, with nothing stored, when the lists differ in length or a value is empty.
        """
        names, contents = encode_keys_of(keys), as_sequence(values, "values")
        if len(names) != len(contents):
            return _INVALID_PARAMS
        arrays = [as_bytes_array(value) for value in contents]
        if not all(map(len, arrays)):
            return _INVALID_PARAMS
        codes = self._put(names, PointerSources.of_arrays(arrays), config, upsert=False)
        return next((code for code in codes if code != _OK), _OK)

    def upsert(self, key: str, value: Buffer, config: ReplicateConfig = _DEFAULT_CONFIG) -> int:
        """Store a value, in place of the one that the key may have. WRITE_FAIL says that it is
        stored, but that the disk does not know yet that the one before it is gone."""
        return self._put_value(key, value, config, upsert=True)

    def get(self, key: str, /) -> bytes:
        """The value; b"" when there is none, or no store answers."""
        return self.get_batch([key])[0]

    def get_batch(self, keys: list[str], /) -> list[bytes]:
        """The values, each b"" when there is none."""
        names, session = encode_keys_of(keys), self._session
        values = [b""] * len(names)
        rows = session.usable_rows(names) if session is not None else []
        if session is None or not rows:
            return values
        destinations = BytesDestinations(len(rows))
        session.get(_pick(names, rows), destinations)
        for row, value in zip(rows, destinations.values, strict=True):
            values[row] = value
        return values

    # --- memory -----------------------------------------------------------------------------------

    def register_buffer(self, buffer_ptr: int, size: int) -> int:
        """Note memory. INVALID_PARAMS when it is empty, null or overlaps what is registered."""
        address, length = as_unsigned(buffer_ptr, "buffer_ptr"), as_unsigned(size, "size")
        if self._session is None or not self._buffers.register(address, length):
            return _INVALID_PARAMS
        return _OK

    def unregister_buffer(self, buffer_ptr: int) -> int:
        """Forget memory. INVALID_PARAMS unless it was registered at this address."""
        address = as_unsigned(buffer_ptr, "buffer_ptr")
        if self._session is None or not self._buffers.unregister(address):
            return _INVALID_PARAMS
        return _OK

    def put_from(
        self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig = _DEFAULT_CONFIG
    ) -> int:
        """`put` of memory at an address."""
        return self.batch_put_from([key], [buffer_ptr], [size], config)[0]

    def get_into(self, key: str, buffer_ptr: int, size: int) -> int:
        """Copy a value to an address. Bytes copied, OBJECT_NOT_FOUND, or INVALID_PARAMS when
        `size` is less than the value's."""
        return self.batch_get_into([key], [buffer_ptr], [size])[0]

    def batch_put_from(
        self,
        keys: list[str],
        buffer_ptrs: list[int],
        sizes: list[int],
        config: ReplicateConfig = _DEFAULT_CONFIG,
    ) -> list[int]:
        """`put_from` of many; a code for each key."""
        names, pointers, lengths = _memory_batch(keys, buffer_ptrs, sizes)
        if not len(names) == len(pointers) == len(lengths):
            return [_INVALID_PARAMS] * len(names)
        return self._put(names, PointerSources(pointers, lengths), config, upsert=False)

    def batch_get_into(
        self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]
    ) -> list[int]:
        """`get_into` of many; bytes copied or a code for each key."""
        names, pointers, lengths = _memory_batch(keys, buffer_ptrs, sizes)
        if not len(names) == len(pointers) == len(lengths):
            return [_INVALID_PARAMS] * len(names)

        def read(session: ClientSession, rows: Sequence[int]) -> I64:
            capacities = [lengths[row] for row in rows]
            destinations = PointerDestinations([pointers[row] for row in rows], capacities)
            return session.get([names[row] for row in rows], destinations, capacities)

        return self._ask(names, read, _NOT_FOUND)

    def batch_put_from_multi_buffers(
        self,
        keys: list[str],
        all_buffer_ptrs: list[list[int]],
        all_sizes: list[list[int]],
        config: ReplicateConfig = _DEFAULT_CONFIG,
    ) -> list[int]:
        """`batch_put_from` of blocks whose bytes lie in several places each, in that order.

        INVALID_PARAMS for all when any block's lists differ in length."""
        names, parts = encode_keys_of(keys), Parts.of_lists(all_buffer_ptrs, all_sizes)
        if parts is None or len(parts) != len(names) or not parts.even:
            return [_INVALID_PARAMS] * len(names)
        return self._put(names, PartSources(parts, range(len(parts))), config, upsert=False)

    def batch_get_into_multi_buffers(
        self,
        keys: list[str],
        all_buffer_ptrs: list[list[int]],
        all_sizes: list[list[int]],
        prefer_alloc_in_same_node: bool = False,
    ) -> list[int]:
        """`batch_get_into` of blocks that go to several places each, in that order; together they
        have the value's size: INVALID_PARAMS when they are smaller, TRANSFER_FAIL when larger.
        There is one replica, so `prefer_alloc_in_same_node` has no effect."""
        names, parts = encode_keys_of(keys), Parts.of_lists(all_buffer_ptrs, all_sizes)
        if parts is None or len(parts) != len(names):
            return [_INVALID_PARAMS] * len(names)

        def read(session: ClientSession, rows: Sequence[int]) -> I64:
            capacities = [parts.sizes[row] for row in rows]
            return session.get(_pick(names, rows), PartDestinations(parts, rows), capacities)

        return self._ask(names, read, _NOT_FOUND)

    # --- keys -------------------------------------------------------------------------------------

    def is_exist(self, key: str, /) -> int:
        """1 or 0; a negative code when no store answers. What exists is leased for a while."""
        return self.batch_is_exist([key])[0]

    def batch_is_exist(self, keys: list[str]) -> list[int]:
        """`is_exist` of many."""
        names = encode_keys_of(keys)
        return self._ask(names, lambda session, rows: session.exist(_pick(names, rows)), 0)

    def get_size(self, key: str, /) -> int:
        """Bytes of the value, or OBJECT_NOT_FOUND."""
        names = [encode_key(key)]
        return self._ask(
            names,
            lambda session, rows: session.sizes(_pick(names, rows)),
            _NOT_FOUND,
        )[0]

    def remove(self, key: str, force: bool = False) -> int:
        """Remove a key. OBJECT_NOT_FOUND, or OBJECT_HAS_LEASE without `force` when it was found or
        read a moment ago. The removal lasts: it is durable before this returns where a daemon
        runs. WRITE_FAIL says that it happened, but that the disk does not know of it yet."""
        return self.batch_remove([key], force)[0]

    def batch_remove(self, keys: list[str], force: bool = False) -> list[int]:
        """`remove` of many; a code for each key."""
        names = encode_keys_of(keys)
        return self._ask(
            names,
            lambda session, rows: session.remove(_pick(names, rows), force=force),
            _NOT_FOUND,
        )

    def remove_all(self, force: bool = False) -> int:
        """Remove every key, those with a lease only with `force`. The number removed, or a
        negative code; WRITE_FAIL as for `remove`."""
        session = self._session
        return _INVALID_PARAMS if session is None else session.remove_all(force=force)

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> NoReturn:
            raise missing_attribute(type(self).__name__, name)

    # --- inside -----------------------------------------------------------------------------------

    def _connect(self, arguments: SetupArguments) -> int:
        """Replace the session by a new one. Raises SettingError."""
        if arguments.tenant_id not in ("", "default"):
            raise SettingError(
                f"setup: tenant_id {arguments.tenant_id!r}: the bundled store has one tenant, and "
                "keys of several would mix; use a store for each"
            )
        settings = load_settings(None, os.environ)
        label = arguments.fingerprint if arguments.fingerprint is not None else settings.fingerprint
        if not _is_label(label):
            raise SettingError(
                f"setup: fingerprint is no text of at most {LABEL_LENGTH_MAX} characters"
            )
        options = LinkOptions(
            arguments.socket_path(settings.runtime_dir),
            label,
            settings.get_wait_sec,
        )
        event(_log, logging.DEBUG, "ignored what a network store needs", **arguments.ignored())
        self.close()
        session = ClientSession(options)
        code = session.ping()
        if code != _OK and self.must_answer_at_setup:
            session.close()
            event(_log, logging.ERROR, "no store", socket=options.socket_path, code=code)
            return code
        self._hostname = arguments.local_hostname
        self._buffers = BufferRegistry()
        self._begin(session)
        return _OK

    def _begin(self, session: ClientSession) -> None:
        """Use this session from now on; it ends with this object."""
        self._session, self._end_session = session, weakref.finalize(self, session.close)

    def _put_value(self, key: Any, value: Any, config: ReplicateConfig, *, upsert: bool) -> int:
        sources = PointerSources.of_arrays([as_bytes_array(value)])
        return self._put([encode_key(key)], sources, config, upsert=upsert)[0]

    def _put(
        self, names: list[bytes], sources: Sources, config: ReplicateConfig, *, upsert: bool
    ) -> list[int]:
        """A code for each key; a key that exists is a success."""
        options, session = _put_options(config, upsert=upsert), self._session
        if session is None:
            return [_INVALID_PARAMS] * len(names)
        rows = session.usable_rows(names)
        refused = [_INVALID_PARAMS] * len(names)
        for row in set(range(len(names))).difference(rows) if len(rows) < len(names) else ():
            refused[row] = _INVALID_KEY if names[row] else _INVALID_PARAMS
        if unusable := sources.unusable():
            rows = [row for row in rows if row not in unusable]
        codes = session.put(_pick(names, rows), sources.take(rows), options)
        codes[codes == _ALREADY_EXISTS] = _OK
        return _spread(rows, codes, refused)

    def _ask(
        self,
        names: list[bytes],
        question: Callable[[ClientSession, Sequence[int]], I64],
        absent: int,
    ) -> list[int]:
        """Answers to `question` about the keys that can exist; `absent` for the others."""
        session = self._session
        if session is None:
            return [_INVALID_PARAMS] * len(names)
        rows = session.usable_rows(names)
        return _spread(rows, question(session, rows), [absent] * len(names))


def _is_label(fingerprint: object) -> bool:
    """Whether this can be a label: text that has UTF-8, and not too much of it."""
    if not isinstance(fingerprint, str) or len(fingerprint) > LABEL_LENGTH_MAX:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in fingerprint)


def _nothing() -> None:
    """Ends a session that was never begun."""


def _spread(rows: Sequence[int], answers: I64, others: list[int]) -> list[int]:
    """`answers` at their `rows`, and `others` where there is no answer."""
    values: list[int] = answers.tolist()
    if len(rows) == len(others):
        return values
    for row, value in zip(rows, values, strict=True):
        others[row] = value
    return others


def _pick(names: list[bytes], rows: Sequence[int]) -> list[bytes]:
    return names if len(rows) == len(names) else [names[row] for row in rows]


def _memory_batch(
    keys: Any, buffer_ptrs: Any, sizes: Any
) -> tuple[list[bytes], list[int], list[int]]:
    """Keys, addresses and sizes (bytes), lengths of the lists unchecked. Raises TypeError."""
    return (
        encode_keys_of(keys),
        as_unsigned_list(as_sequence(buffer_ptrs, "buffer_ptrs"), "buffer_ptr"),
        as_unsigned_list(as_sequence(sizes, "sizes"), "size"),
    )


def _put_options(config: ReplicateConfig, *, upsert: bool) -> PutOptions:
    """Raises TypeError unless `config` is a `ReplicateConfig`."""
    if not isinstance(config, ReplicateConfig):
        raise TypeError(f"config must be a ReplicateConfig, not {type(config).__name__}")
    if config.with_hard_pin:
        return PutOptions(upsert, Pin.HARD)
    if config.soft_pin_action is SoftPinAction.ENABLE:
        return PutOptions(upsert, Pin.SOFT, config.soft_pin_ttl_ms or 0)
    return PutOptions(upsert)
