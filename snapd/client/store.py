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
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, overload

from snapd.blocks.labels import LABEL_LENGTH_MAX
from snapd.client.addresses import AddressCalls
from snapd.client.arguments import SetupArguments
from snapd.client.calls import INVALID_PARAMS, OK
from snapd.client.keyed import KeyCalls
from snapd.client.link import LinkOptions
from snapd.client.memory import BufferRegistry
from snapd.client.session import ClientSession
from snapd.client.unsupported import missing_attribute
from snapd.client.values import ValueCalls
from snapd.config import load_settings
from snapd.config.logs import event
from snapd.errors import SettingError

_log = logging.getLogger(__name__)

_NOT_SET_UP = 1
"""What `health_check` says before `setup` and after `close`."""


class MooncakeDistributedStore(ValueCalls, AddressCalls, KeyCalls):
    """A client of the bundled store. Safe for use by many threads, and after `fork`."""

    must_answer_at_setup: ClassVar[bool] = True
    """Whether `setup` fails while the store is away. A subclass that says no is set up all the
    same: its calls miss until there is a store."""

    def __init__(self) -> None:
        super().__init__()
        self._end_session: Callable[[], object] = _nothing
        """Also called when this object is dropped, or the interpreter ends, without `close`."""

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
            return INVALID_PARAMS

    def set_fingerprint(self, fingerprint: str) -> int:
        """Put and find keys under another label from now on: after an update of the weights, say.
        What other threads have begun ends under the old one, or as if the store were away.

        Returns 0; INVALID_PARAMS, and nothing has changed, without `setup` or for a text that is
        no label; else what `health_check` would say: the label holds then as well.
        """
        session = self._session
        if session is None or not _is_label(fingerprint):
            return INVALID_PARAMS
        end_before = self._end_session
        self._begin(session.relabelled(fingerprint))
        end_before()
        return self.health_check()

    def close(self) -> int:
        """End all connections. Returns 0, also when there is nothing to close."""
        self._session = None
        self._end_session()
        return OK

    def get_hostname(self) -> str:
        """The `local_hostname` of `setup`; "" without one."""
        return self._hostname if self._session is not None else ""

    def health_check(self) -> int:
        """0 when the store answers, 1 without `setup`, RPC_FAIL when it is away."""
        session = self._session
        return _NOT_SET_UP if session is None else session.ping()

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
        if code != OK and self.must_answer_at_setup:
            session.close()
            event(_log, logging.ERROR, "no store", socket=options.socket_path, code=code)
            return code
        self._hostname = arguments.local_hostname
        self._buffers = BufferRegistry()
        self._begin(session)
        return OK

    def _begin(self, session: ClientSession) -> None:
        """Use this session from now on; it ends with this object."""
        self._session, self._end_session = session, weakref.finalize(self, session.close)


def _is_label(fingerprint: object) -> bool:
    """Whether this can be a label: text that has UTF-8, and not too much of it."""
    if not isinstance(fingerprint, str) or len(fingerprint) > LABEL_LENGTH_MAX:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in fingerprint)


def _nothing() -> None:
    """Ends a session that was never begun."""
