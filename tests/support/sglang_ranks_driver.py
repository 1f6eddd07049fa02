"""Ranks of SGLang around `snapd.sglang.SnapdHiCache`: run by an interpreter that has SGLang.

    python sglang_ranks_driver.py <socket> [--old]
    python sglang_ranks_driver.py --try [--old]

SGLang is imported once; each connection to the socket is a rank, a process forked for it, which
ends with the connection. The first line says the rank's configuration, each further line is a JSON
object with `do` and its arguments, each answer a line. The classes are SGLang's own: its factory
loads the backend as `--hicache-storage-backend dynamic` does, its host pools hold the pages, its
hash names them. A page's bytes are a function of its name, the rank and a version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, TextIO

import sglang_stand_ins

OLD = "--old" in sys.argv
sglang_stand_ins.install(old=OLD)

import numpy as np  # noqa: E402
import sglang_model  # noqa: E402
import sglang_pools  # noqa: E402
import torch  # noqa: E402
from mooncake_driver import content  # noqa: E402
from sglang.srt.mem_cache import hicache_storage  # noqa: E402
from sglang.srt.mem_cache.storage import backend_factory  # noqa: E402

DYNAMIC = {
    "backend_name": "snapd",
    "module_path": "snapd.sglang",
    "class_name": "SnapdHiCache",
    "interface_v1": 1,
}
BATCH_PAGES = 128  # as SGLang's own STORAGE_BATCH_SIZE


class Rank:
    """The commands, one method each. A page is named by its number in one long conversation."""

    def __init__(self, **options: Any) -> None:
        """`options`: `extra` of the extra config, `pool` for `sglang_pools.kv_pool`, fields of
        `HiCacheStorageConfig`, `hybrid` for a Mamba pool beside it, `server` for SGLang's own
        arguments, `backend` for another one than `dynamic`."""
        pool = options.pop("pool", {})
        hybrid = options.pop("hybrid", False)
        backend = options.pop("backend", "dynamic")
        self._server = options.pop("server", None)
        if self._server is not None:
            self._publish(**self._server)
        config = {
            "tp_rank": 0,
            "tp_size": 1,
            "pp_rank": 0,
            "pp_size": 1,
            "attn_cp_rank": 0,
            "attn_cp_size": 1,
            "is_mla_model": pool.get("mla", False),
            "enable_storage_metrics": True,
            "is_page_first_layout": True,
            "model_name": "snapd/test-model",
            "extra_config": {**DYNAMIC, **options.pop("extra", {})},
            **options,
        }
        known = {field.name for field in dataclasses.fields(hicache_storage.HiCacheStorageConfig)}
        self._config = hicache_storage.HiCacheStorageConfig(
            **{name: value for name, value in config.items() if name in known}
        )
        self._name = f"{config['tp_rank']}/{config['pp_rank']}"
        self._chain: list[str] = []
        self._pool = sglang_pools.kv_pool(**pool)
        self.backend = backend_factory.StorageBackendFactory.create_backend(
            backend, self._config, self._pool
        )
        self.backend.register_mem_pool_host(self._pool)
        self._states = None
        if hybrid:
            self._states = sglang_pools.mamba_pool()
            name = hicache_storage.PoolName.MAMBA
            self.backend.register_mem_host_pool_v2(self._states, name)

    # --- pages ------------------------------------------------------------------------------------

    def fill(self, first: int, count: int, version: int = 1, *, prefix: bool = False) -> list[bool]:
        """Write pages into host memory and from there into the store: which were set."""
        if self._config.is_mla_model and self._config.tp_rank != 0:
            return [True] * count  # SGLang has one rank write what all have
        done = []
        for pages, before in self._batches(first, count):
            indices = self._take(len(pages))
            for page, index in zip(pages, self._starts(indices), strict=True):
                data = np.frombuffer(self._content(page, version), np.uint8).copy()
                flat = torch.from_numpy(data).view(self._pool.dtype)
                self._pool.set_from_flat_data_page(index, flat)
            extra = self._extra(before if prefix else None)
            done += [bool(each) for each in self.backend.batch_set_v1(pages, indices, extra)]
            self._pool.free(indices)
        return done

    def read(self, first: int, count: int, versions: list[int]) -> list[str]:
        """Each page out of the store: "right", "wrong" (other bytes) or "missing"."""
        states = []
        for pages, _ in self._batches(first, count):
            indices = self._take(len(pages))
            # What an earlier command left proves nothing.
            self._pool.kv_buffer.view(torch.uint8).fill_(0xA5)
            found = self.backend.batch_get_v1(pages, indices)
            for page, index, is_there in zip(pages, self._starts(indices), found, strict=True):
                flat = self._pool.get_data_page(index, flat=True).contiguous()
                data = flat.view(torch.uint8).numpy().tobytes()
                is_right = any(data == self._content(page, version) for version in versions)
                states.append(("right" if is_right else "wrong") if is_there else "missing")
            self._pool.free(indices)
        return states

    def exists(self, count: int, *, prefix: bool = False) -> int:
        """How many pages of the conversation's start exist."""
        found = 0
        for pages, before in self._batches(0, count):
            hits = int(self.backend.batch_exists(pages, self._extra(before if prefix else None)))
            found += hits
            if hits < len(pages):
                break
        return found

    # --- states of a hybrid model -----------------------------------------------------------------

    def fill_states(self, first: int, count: int, version: int = 1) -> list[bool]:
        """As `fill`, of the pool beside it."""
        pages = self._pages(first, count)
        indices = self._states.alloc(count)
        for page, index in zip(pages, indices.tolist(), strict=True):
            for part, tensor in enumerate(self._state_tensors(index)):
                data = content(f"{page}/{self._name}/{part}", version, tensor.nbytes)
                flat = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
                tensor.view(torch.uint8).reshape(-1).copy_(flat)
        done = self.backend.batch_set_v2([self._transfer(pages, indices)])
        self._states.free(indices)
        return [bool(each) for each in done[hicache_storage.PoolName.MAMBA]]

    def read_states(self, first: int, count: int, version: int = 1) -> list[str]:
        """As `read`, of the pool beside it."""
        pages = self._pages(first, count)
        indices = self._states.alloc(count)
        for index in indices.tolist():
            for tensor in self._state_tensors(index):
                tensor.view(torch.uint8).fill_(0xA5)
        found = self.backend.batch_get_v2([self._transfer(pages, indices)])
        states = []
        is_there = found[hicache_storage.PoolName.MAMBA]
        for page, index, there in zip(pages, indices.tolist(), is_there, strict=True):
            is_right = all(
                tensor.contiguous().view(torch.uint8).numpy().tobytes()
                == content(f"{page}/{self._name}/{part}", version, tensor.nbytes)
                for part, tensor in enumerate(self._state_tensors(index))
            )
            states.append(("right" if is_right else "wrong") if there else "missing")
        self._states.free(indices)
        return states

    def exists_v2(self, count: int, trailing: int = 1) -> list[int]:
        """Prefixes of the conversation that can be restored with their state."""
        pages = self._pages(0, count)
        transfer = hicache_storage.PoolTransfer(
            name=hicache_storage.PoolName.MAMBA,
            keys=pages[:trailing],
            hit_policy=hicache_storage.PoolHitPolicy.TRAILING_PAGES,
        )
        result = self.backend.batch_exists_v2(pages, [transfer])
        return [int(prefix) for prefix in result.restorable_prefix_pages]

    # --- a model's own pages ----------------------------------------------------------------------

    def begin_conversation(self, seed: int, pages: int, *, compute: bool = True) -> None:
        """A prompt of so many pages, from a seed; computed, or to be fetched."""
        shape = sglang_model.Shape()
        self._model = sglang_model.TinyModel(shape, seed)
        self._cache = sglang_model.PagedCache(shape)
        count = (pages + 1) * shape.page_tokens
        random = torch.Generator().manual_seed(seed)
        self._prompt = torch.randint(shape.vocabulary, (count,), generator=random).tolist()
        self._names: list[str] = []
        for page in range(pages):
            tokens = self._prompt[page * shape.page_tokens : (page + 1) * shape.page_tokens]
            before = self._names[-1] if self._names else None
            self._names.append(sglang_pools.page_hash(tokens, before))
        if compute:
            self._model.forward(self._prompt[: pages * shape.page_tokens], 0, self._cache)

    def offload(self) -> list[bool]:
        """The prompt's pages into the host pool, and from there into the store."""
        indices = self._take(len(self._names))
        for page, index in enumerate(self._starts(indices)):
            self._cache.to_host(self._pool, page, index)
        done = self.backend.batch_set_v1(self._names, indices)
        self._pool.free(indices)
        return [bool(each) for each in done]

    def fetch(self) -> int:
        """The way back: how many pages were there."""
        hits = int(self.backend.batch_exists(self._names))
        indices = self._take(hits)
        found = self.backend.batch_get_v1(self._names[:hits], indices)
        for page, index in enumerate(self._starts(indices)):
            self._cache.from_host(self._pool, page, index)
        self._pool.free(indices)
        return sum(map(bool, found))

    def decode(self, count: int) -> dict[str, Any]:
        """Go on, one token at a time: the tokens, and a digest of each step's logits."""
        at = len(self._names) * self._model.shape.page_tokens
        token, tokens, logits = self._prompt[at], [], []
        for position in range(at, at + count):
            step = self._model.forward([token], position, self._cache)
            logits.append(hashlib.sha256(step.numpy().tobytes()).hexdigest())
            token = int(step.argmax())
            tokens.append(token)
        return {"tokens": tokens, "logits": logits}

    def flip(self, page: int) -> None:
        """Turn the highest bit of one number of a page, the sign of a key."""
        numbers = self._cache.tensor[0, 0, page * self._model.shape.page_tokens].view(torch.int16)
        numbers[0, 0] ^= -32768

    # --- the backend itself -----------------------------------------------------------------------

    def clear(self) -> None:
        self.backend.clear()

    def close(self) -> None:
        self.backend.close()

    def label(self) -> str:
        return str(self.backend._label)

    def stats(self) -> list[int]:
        stats = self.backend.get_stats()
        return [sum(stats.prefetch_pgs), sum(stats.backup_pgs)] if stats else []

    @staticmethod
    def configured(extra: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
        """What SGLang and what snapd make of sources of configuration, by snapd's names."""
        names = ("enable_ssd_offload", "ssd_offload_path", "tenant_id")
        module = importlib.import_module(
            "sglang.srt.mem_cache.storage.mooncake_store.mooncake_store"
        )
        options = importlib.import_module("snapd.sglang.options")
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            mine = options.read_options({**extra, "snapd_store": "mooncake"}, os.environ)
            try:
                config = SimpleNamespace(extra_config=extra)
                theirs = module.MooncakeBaseStore()._load_config(config)
            except ValueError:
                theirs = None
        finally:
            os.environ.clear()
            os.environ.update(before)
        said = {name: getattr(theirs, name, None) or "" for name in names}
        return {
            "snapd": {"master": mine.master, **{name: getattr(mine, name) or "" for name in names}},
            "sglang": theirs and {"master": theirs.master_server_address, **said},
        }

    def flush(self) -> None:
        """What a flush of SGLang's caches does to the host pool."""
        self._pool.clear()

    def serve(self, weight_version: str) -> None:
        """What SGLang does once other weights are loaded; it flushes its caches after that."""
        if OLD:
            self._publish(**{**self._server, "weight_version": weight_version})
            return
        context = importlib.import_module("sglang.srt.runtime_context").get_context()
        context.override("scheduler.weight_version", weight_version=weight_version)

    def timed(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Any command, and the seconds that it took."""
        begin = time.monotonic()
        answer = getattr(self, command)(**arguments)
        return {"answer": answer, "seconds": time.monotonic() - begin}

    # --- inside -----------------------------------------------------------------------------------

    @staticmethod
    def _publish(**arguments: Any) -> None:
        """SGLang's own arguments, as a server's process has them."""
        if OLD:
            module = importlib.import_module("sglang.srt.server_args")
            server = module.ServerArgs.__new__(module.ServerArgs)
            defaults = {
                field.name: field.default
                for field in dataclasses.fields(module.ServerArgs)
                if field.default is not dataclasses.MISSING
            }
            vars(server).update({**defaults, **arguments})
            module.set_global_server_args_for_scheduler(server)
            return
        context = importlib.import_module("sglang.srt.runtime_context").get_context()
        context.override_server_args(**arguments).install()

    def _batches(self, first: int, count: int) -> list[tuple[list[str], list[str]]]:
        """Pages by SGLang's batches, each with all that come before it."""
        starts = range(first, first + count, BATCH_PAGES)
        return [
            (self._pages(start, min(BATCH_PAGES, first + count - start)), self._pages(0, start))
            for start in starts
        ]

    def _pages(self, first: int, count: int) -> list[str]:
        width = sglang_pools.PAGE_TOKENS
        while len(self._chain) < first + count:
            at = len(self._chain) * width
            before = self._chain[-1] if self._chain else None
            self._chain.append(sglang_pools.page_hash(list(range(at, at + width)), before))
        return self._chain[first : first + count]

    @staticmethod
    def _extra(before: list[str] | None) -> Any:
        return hicache_storage.HiCacheStorageExtraInfo(prefix_keys=before)

    def _take(self, pages: int) -> Any:
        indices = self._pool.alloc(pages * self._pool.page_size)
        if indices is None:
            raise ValueError(f"the host pool has no room for {pages} pages")
        return indices

    def _starts(self, indices: Any) -> list[int]:
        return [int(index) for index in indices[:: self._pool.page_size]]

    def _content(self, page: str, version: int) -> bytes:
        page_bytes = self._pool.size_per_token * self._pool.page_size
        # Ranks that read one object of an MLA model must expect the same bytes of it.
        pp_rank = self._name.partition("/")[2]
        name = f"mla/{pp_rank}" if self._config.is_mla_model else self._name
        return content(f"{page}/{name}", version, page_bytes)

    def _state_tensors(self, index: int) -> list[Any]:
        return [
            self._states.temporal_buffer[index],
            *(buffer[index] for buffer in self._states.conv_buffer),
        ]

    @staticmethod
    def _transfer(pages: list[str], indices: Any) -> Any:
        name = hicache_storage.PoolName.MAMBA
        return hicache_storage.PoolTransfer(name=name, host_indices=indices, keys=pages)


def serve(connection: socket.socket) -> None:
    """One rank, until its connection ends."""
    with connection, connection.makefile("r") as lines, connection.makefile("w") as answers:
        begun = json.loads(lines.readline())
        os.environ.update(begun.pop("environment", {}))
        log = os.open(begun.pop("log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, force=True)
        ranks: list[Rank] = []

        def begin() -> int:
            ranks.append(Rank(**begun))
            return os.getpid()

        answer(answers, begin)
        for line in lines if ranks else ():
            request = json.loads(line)
            answer(answers, partial(getattr(ranks[0], request.pop("do")), **request))


def answer(answers: TextIO, do: Callable[[], Any]) -> None:
    """Do it, and write what came of it."""
    try:
        said = {"answer": do()}
    except Exception as error:  # the test decides what to make of it
        said = {"error": f"{type(error).__name__}: {error}"}
        logging.exception("failed")
    print(json.dumps(said), file=answers, flush=True)


def main() -> None:
    importlib.import_module("snapd.sglang.hicache")
    torch.set_num_threads(1)
    if "--try" in sys.argv:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ranks are nobody's to wait for
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()  # the test's end of stdin ends with the test
            if os.fork():
                connection.close()
                continue
            listener.close()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                serve(connection)
            os._exit(0)


if __name__ == "__main__":
    main()
