"""`PutServer`: the putter's socket. One thread a connection, because puts are blocking calls."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from contextlib import closing
from pathlib import Path

import numpy as np

from snapd.config import event
from snapd.errors import ProtocolError
from snapd.putter.native import NativeStore
from snapd.putter.staging import Staging
from snapd.wire.codes import ReturnCode
from snapd.wire.framing import FrameDecoder, encode_frame
from snapd.wire.listen import bind_socket
from snapd.wire.messages import Codes, Failure, Message, decode_column, decode_keys, encode_message
from snapd.wire.peers import refusal_of_peer
from snapd.wire.puts import (
    PUT_PROTOCOL_VERSION,
    STAGING_BYTES_MAX,
    PutBlocks,
    PutHello,
    PutReady,
    PutRequest,
    RemoveBlocks,
    decode_put_request,
)

CONNECTIONS_MAX = 16
"""A daemon has a few lanes; more is somebody else's mistake."""

FRAME_SECONDS_MAX = 5.0
"""A frame that has begun must be complete after this long, and a reply must be taken."""

DRAIN_SECONDS_MAX = 10.0
"""How long an end waits for native calls that are under way."""

_RECEIVE_BYTES = 1 << 18
_DESCRIPTORS_MAX = 4
_logger = logging.getLogger(__name__)


class PutServer:
    """Serves puts into one store from `start` to `stop`."""

    def __init__(
        self, store: NativeStore, path: Path, *, inside: bool, group_shared: bool = False
    ) -> None:
        """Listen at `path`. Raises OSError, FileExistsError where somebody answers there."""
        self._store = store
        self._path = path
        self._inside = inside
        self._group_shared = group_shared
        self._stopping = False
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._listener = bind_socket(path, group_shared=group_shared, peer="putter")
        self._listener.settimeout(None)
        self._accepting = threading.Thread(target=self._accept, name="put-accept", daemon=True)

    def start(self) -> None:
        """Serve, in threads of its own."""
        self._accepting.start()

    def stop(self) -> None:
        """End every connection and wait for the native calls under way. Idempotent."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            connections = dict(self._connections)
        with contextlib.suppress(OSError):
            self._path.unlink()
        for connected in (self._listener, *connections):
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
        for thread in connections.values():
            thread.join(DRAIN_SECONDS_MAX)
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                connected, _ = self._listener.accept()
            except OSError as error:
                if not self._stopping:
                    event(_logger, logging.ERROR, "the putter cannot accept", error=error)
                return
            thread = threading.Thread(
                target=self._serve, args=(connected,), name="put", daemon=True
            )
            with self._lock:
                refused = self._stopping or len(self._connections) >= CONNECTIONS_MAX
                if not refused:
                    self._connections[connected] = thread
                    thread.start()
            if refused:
                connected.close()

    def _serve(self, connected: socket.socket) -> None:
        try:
            stranger = refusal_of_peer(connected, group_shared=self._group_shared)
            with closing(PutConnection(connected, self._store, inside=self._inside)) as each:
                each.run(stranger)
        except OSError as error:
            event(_logger, logging.INFO, "a connection to the putter broke", error=error)
        finally:
            with self._lock:
                self._connections.pop(connected, None)


class PutConnection:
    """One daemon's connection: its staging memory, and request after request."""

    def __init__(self, connected: socket.socket, store: NativeStore, *, inside: bool) -> None:
        self._socket = connected
        self._store = store
        self._inside = inside
        self._staging: Staging | None = None
        self._descriptors: list[int] = []

    def run(self, refusal: str | None) -> None:
        """Until the peer ends it, or makes a mistake. With a refusal the first request is answered
        by it. Raises OSError when the connection breaks."""
        decoder = FrameDecoder()
        while data := self._receive(in_frame=decoder.buffered > 0):
            try:
                frames = decoder.receive_data(data)
            except ProtocolError as error:
                self._send(0, Failure(ReturnCode.INVALID_PARAMS, str(error)))
                return
            for frame in frames:
                try:
                    if refusal is not None:
                        raise ProtocolError(refusal)
                    reply = self._handle(decode_put_request(frame.payload))
                except ProtocolError as error:
                    event(_logger, logging.WARNING, "bad request to the putter", why=error)
                    self._send(frame.request_id, Failure(ReturnCode.INVALID_PARAMS, str(error)))
                    return
                self._send(frame.request_id, reply)

    def close(self) -> None:
        """Give the memory back and close; idempotent."""
        self._close_descriptors()
        if self._staging is not None:
            self._store.unregister(self._staging.address)
            self._staging.close()
            self._staging = None
        self._socket.close()

    def _receive(self, *, in_frame: bool) -> bytes:
        """What has come; empty at the end. A peer may be silent between frames, not inside one."""
        self._socket.settimeout(FRAME_SECONDS_MAX if in_frame else None)
        data, descriptors, _, _ = socket.recv_fds(self._socket, _RECEIVE_BYTES, _DESCRIPTORS_MAX)
        self._descriptors += descriptors
        if len(self._descriptors) > _DESCRIPTORS_MAX:
            raise OSError("the peer sent too many descriptors")
        return data

    def _send(self, request_id: int, reply: Message) -> None:
        self._socket.settimeout(FRAME_SECONDS_MAX)
        self._socket.sendall(encode_frame(request_id, encode_message(reply)))

    def _handle(self, request: PutRequest) -> Message:
        """Carry a request out. Raises ProtocolError."""
        if isinstance(request, PutHello):
            return self._hello(request)
        if self._staging is None:
            raise ProtocolError("the first message must be put_hello")
        keys = decode_keys(request.keys)
        if isinstance(request, RemoveBlocks):
            return Codes(self._store.remove(keys).tobytes())
        return self._put(request, self._staging)

    def _put(self, request: PutBlocks, staging: Staging) -> Codes:
        keys = decode_keys(request.keys)
        offsets = decode_column(request.offsets, np.uint64, len(keys))
        sizes = decode_column(request.sizes, np.uint64, len(keys))
        if not bool(staging.contains(offsets, sizes).all()):
            raise ProtocolError("a block lies outside the staging memory, or is empty")
        # A daemon that died does not take out what was removed meanwhile, and the next one may
        # have dropped it already: nothing may be put for it any more, however long we stood still.
        codes = self._store.put(
            keys,
            offsets + np.uint64(staging.address),
            sizes,
            request.segment,
            is_wanted=self._has_peer,
        )
        return Codes(codes.tobytes())

    def _has_peer(self) -> bool:
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _hello(self, request: PutHello) -> Message:
        if request.protocol != PUT_PROTOCOL_VERSION:
            raise ProtocolError(
                f"protocol {request.protocol} is not {PUT_PROTOCOL_VERSION}: run the same version "
                "of snapd as daemon and in the store service"
            )
        if self._staging is not None:
            raise ProtocolError("put_hello came twice")
        if len(self._descriptors) != 1:
            raise ProtocolError(f"{len(self._descriptors)} descriptors came, not one")
        if not 0 < request.staging_bytes <= STAGING_BYTES_MAX:
            raise ProtocolError(f"staging memory of {request.staging_bytes} bytes")
        try:
            staging = Staging(self._descriptors[0], request.staging_bytes)
        except (OSError, ValueError, OverflowError) as error:
            raise ProtocolError(f"staging memory cannot be mapped: {error}") from error
        finally:
            self._close_descriptors()
        code = self._store.register(staging.address, staging.size_bytes)
        if code != ReturnCode.OK:
            staging.close()
            return Failure(code, f"Mooncake refuses to register the staging memory: code {code}")
        self._staging = staging
        event(_logger, logging.INFO, "putting for", peer=request.name, bytes=request.staging_bytes)
        return PutReady(PUT_PROTOCOL_VERSION, self._inside, os.getpid())

    def _close_descriptors(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
