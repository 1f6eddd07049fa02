"""`Fingerprints`: under which label Mooncake's blocks are read and may be put back.

SGLang's keys name the tokens and the model, and nothing of the dtype, the KV format, the page size,
the layout or the weights: a block of another of these has the same key and other bytes, and whoever
gets it notices nothing. So every block carries a label of them, and only blocks of the label that
is in force go back. It is the setting `fingerprint` or, without one, what SGLang says of itself.

While SGLang is away nobody knows which one will come next, so no label is in force: what is read
then is unlabelled, and what has a label waits on the disk. Its frontend is there before its first
block is, and what it says is asked for every second.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from snapd.attach.backoff import Backoff
from snapd.attach.mooncake.http import Answer, HttpPeer
from snapd.blocks.labels import Scalar, label_text
from snapd.config import event
from snapd.errors import ProtocolError, SnapdError
from snapd.formats.tables import FINGERPRINT_BYTES_MAX

_LOOK_SECONDS = 1.0
_WHOLE_LOOK_SECONDS = 30.0
"""The long answer costs SGLang's scheduler a request: asked for again only after this time, or when
the short one has changed, or after SGLang was away."""
_HOLD_SECONDS = 30.0
"""A busy SGLang may be slow; one that is gone refuses the connection. So long slow is gone."""
TIMEOUT_SECONDS = 2.0
_BODY_BYTES_MAX = 16 << 20
_IN_DOUBT = "?"
"""Stands for a label, where nobody knows whether one is in force."""

Info = TypeVar("Info")
_logger = logging.getLogger(__name__)


class _ObjectLayout(msgspec.Struct):
    is_mla_backend: bool | None = None


class _Layout(msgspec.Struct):
    hicache_object_layout: _ObjectLayout | None = None


class ModelInfo(msgspec.Struct, frozen=True):
    """Of SGLang's `/model_info`: what an update of the weights changes in a running server."""

    model_path: str
    weight_version: Scalar = None
    load_format: Scalar = None


class ServerInfo(msgspec.Struct, frozen=True):
    """Of SGLang's `/server_info`, in older versions `/get_server_info`: its resolved arguments, by
    their names. What a version does not have is left out of the label."""

    model_path: str
    revision: Scalar = None
    load_format: Scalar = None
    json_model_override_args: Scalar = None
    quantization: Scalar = None
    dtype: Scalar = None
    kv_cache_dtype: Scalar = None
    page_size: Scalar = None
    hicache_mem_layout: Scalar = None
    tp_size: Scalar = None
    pp_size: Scalar = None
    dcp_size: Scalar = None
    attn_cp_size: Scalar = None
    attn_dp_size: Scalar = None
    speculative_draft_model_path: Scalar = None
    weight_version: Scalar = None
    hicache_object_layout: _Layout | None = None


def label_of(server: ServerInfo, model: ModelInfo | None) -> str:
    """The label: `key=value` for each value there is, sorted by key, separated by spaces. What the
    model's own answer says stands. At most `FINGERPRINT_BYTES_MAX` bytes: a longer one is named by
    its digest."""
    values: dict[str, Any] = {
        name: value for name, value in msgspec.structs.asdict(server).items() if value is not None
    }
    layout = values.pop("hicache_object_layout", None)
    if layout is not None and layout.hicache_object_layout is not None:
        values["is_mla"] = layout.hicache_object_layout.is_mla_backend
    if model is not None:
        values |= msgspec.structs.asdict(model)
    return label_text(values, length_max=FINGERPRINT_BYTES_MAX)


class SglangServer:
    """SGLang's HTTP frontend. Not safe for use by two threads at once."""

    def __init__(self, url: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """`url` is http://host:port. Raises ProtocolError if it is not."""
        self._peer = HttpPeer(
            "SGLang", url.rstrip("/"), "check that it runs, and that sglang_url names its frontend"
        )
        self._timeout_seconds = timeout_seconds

    def model_info(self) -> ModelInfo | None:
        """The model that it serves now; None where this version does not say.

        Raises StoreUnavailableError when it does not answer, ProtocolError when what it answers
        cannot be used.
        """
        answer = self._ask("/model_info")
        return None if answer is None else self._decode(answer, ModelInfo, "/model_info")

    def server_info(self) -> ServerInfo:
        """How it was started. Raises as `model_info`."""
        for target in ("/server_info", "/get_server_info"):
            answer = self._ask(target)
            if answer is not None:
                return self._decode(answer, ServerInfo, target)
        raise ProtocolError(
            f"{self._peer.label} has neither /server_info nor /get_server_info: check that it is "
            "SGLang's frontend, or set fingerprint instead"
        )

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._peer.close()

    def _ask(self, target: str) -> Answer | None:
        """The answer; None if there is no such page."""
        question = f"GET {target}"
        answer = self._peer.ask(
            "GET",
            target,
            question=question,
            timeout_seconds=self._timeout_seconds,
            body_bytes_max=_BODY_BYTES_MAX,
        )
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise self._peer.refused(question, answer)
        return answer

    def _decode(self, answer: Answer, kind: type[Info], target: str) -> Info:
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._peer.nonsense(f"GET {target}", f"{error}") from error


class Fingerprints:
    """The label in force. `run` is a thread's work; everything else is for any thread."""

    def __init__(
        self,
        configured: str,
        sglang_url: str,
        number: Callable[[str], int],
        stopping: threading.Event,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`number` gives a label its id, 1 to 65535, and may raise RefusedError.

        Raises ProtocolError when `sglang_url` is no URL of a server.
        """
        self._configured = configured
        self._server = (
            SglangServer(sglang_url, timeout_seconds=timeout_seconds)
            if sglang_url and not configured
            else None
        )
        self._number = number
        self._stopping = stopping
        self._clock = clock
        self._backoff = Backoff(_logger, "learn the fingerprint from SGLang")
        self._lock = threading.Lock()
        self._label = configured
        self._id: int | None = None
        """Of `_label`; None before it was asked for."""
        self._seen = {_IN_DOUBT}
        """Labels that were in force since the look before; none of a time when SGLang was away."""
        self._is_away = False
        self._model: ModelInfo | None = None
        self._whole_at = self._confirmed_at = -_HOLD_SECONDS

    @property
    def label(self) -> str:
        """In force; empty if none is."""
        return self._label

    @property
    def problem(self) -> str:
        """Why none can be learned; empty if one can, or need not."""
        return self._backoff.error

    def present(self) -> int:
        """The id of the label in force, 0 if none is: blocks of this id may be put back."""
        with self._lock:
            if self._id is None:
                self._id = self._number_of(self._label)
            return self._id

    def at_look(self) -> int:
        """The id for blocks that a look finds new. Call it once a look, before the listing.

        They came since the look before. If another label was in force since then, or nobody knows,
        nobody knows whose they are, and the answer is 0. While SGLang was away, nobody put any.
        """
        present = self.present()
        if self._configured:
            return present
        with self._lock:
            is_sure = self._seen <= {self._label}
            self._seen = set()
            self._note()
        return present if is_sure else 0

    def run(self) -> None:
        """Learn it, and again and again, until the daemon stops; at once done if it is set."""
        if self._server is None:
            return
        while not self._stopping.is_set():
            self.look()
            self._stopping.wait(_LOOK_SECONDS)
        self.close()

    def close(self) -> None:
        """End the connection; idempotent."""
        if self._server is not None:
            self._server.close()

    def look(self) -> None:
        """Ask SGLang once. Never raises: without an answer there is no label in force."""
        try:
            label = self._ask()
        except SnapdError as error:
            self._backoff.failed(error)
            is_slow = isinstance(error.__cause__, TimeoutError)
            if not is_slow or self._clock() - self._confirmed_at > _HOLD_SECONDS:
                self._model, self._whole_at = None, -_HOLD_SECONDS
                refused = isinstance(error.__cause__, ConnectionRefusedError)
                self._put_in_force("", is_away=refused)
            return
        self._confirmed_at = self._clock()
        self._put_in_force(label)
        self._backoff.succeeded()

    def _ask(self) -> str:
        assert self._server is not None
        model = self._server.model_info()
        now = self._clock()
        if self._label and model == self._model and now - self._whole_at < _WHOLE_LOOK_SECONDS:
            return self._label
        label = label_of(self._server.server_info(), model)
        self._model, self._whole_at = model, now
        return label

    def _put_in_force(self, label: str, *, is_away: bool = False) -> None:
        with self._lock:
            before, self._is_away = self._label, is_away
            if label != before:
                self._label, self._id = label, None
            self._note()
        if label == before:
            return
        event(
            _logger,
            logging.INFO,
            "the fingerprint in force has changed",
            fingerprint=label or "none",
        )

    def _note(self) -> None:
        """Remember what is in force now, for the next look. The caller holds the lock."""
        if not self._is_away:
            self._seen.add(self._label or _IN_DOUBT)

    def _number_of(self, label: str) -> int:
        """Of any label, 0 for the empty one; 0 as well where the table of labels is full."""
        try:
            return self._number(label)
        except SnapdError as error:
            event(_logger, logging.WARNING, "left blocks unlabelled", error=error)
            return 0
