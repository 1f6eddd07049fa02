"""SGLang's HTTP frontend as far as a fingerprint is learned from it: a real server that answers as
its pages do (the names are checked against the published wheel in tests/compat)."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = {"model_path": "Qwen/Qwen3-8B", "weight_version": "default", "load_format": "auto"}
SERVER = {
    **MODEL,
    "tokenizer_path": "Qwen/Qwen3-8B",
    "dtype": "auto",
    "kv_cache_dtype": "fp8_e4m3",
    "page_size": 64,
    "hicache_mem_layout": "page_first",
    "tp_size": 2,
    "pp_size": 1,
    "quantization": None,
    "json_model_override_args": "{}",
    "hicache_object_layout": {
        "enabled": False,
        "hicache_object_layout": {"is_mla_backend": False, "pools": []},
    },
    "internal_states": [{"last_gen_throughput": 1.5}],
    "version": "0.5.23",
}
LABEL = (
    "dtype=auto hicache_mem_layout=page_first is_mla=false kv_cache_dtype=fp8_e4m3 "
    "load_format=auto model_path=Qwen/Qwen3-8B page_size=64 pp_size=1 tp_size=2 "
    "weight_version=default"
)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # the client may be gone, as in life
            super().handle_error(request, client_address)


class SglangFrontend:
    """`pages` are (status, body) by path. It can be stopped and started, on the same port."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, bytes]] = {}
        self.asked: list[str] = []
        self.slow_seconds = 0.0
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self._lines: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def say(self, path: str, document: Any, status: int = 200) -> None:
        self.pages[path] = (status, json.dumps(document).encode())

    def start(self) -> None:
        frontend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                frontend._lines.append(self.connection)

            def do_GET(self) -> None:
                frontend.asked.append(self.path)
                time.sleep(frontend.slow_seconds)
                status, body = frontend.pages.get(self.path, (404, b'{"detail":"Not Found"}'))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        self._lines.clear()


__all__ = ["LABEL", "MODEL", "SERVER", "SglangFrontend"]
