"""SGLang's own Mooncake backend, driven line by line: run by an interpreter that has SGLang.

    python sglang_driver.py <master host:port> <metadata URL> [--mla] [--ranks N]
    python sglang_driver.py --try
    python sglang_driver.py --arguments

The classes are SGLang's, unmodified: `MooncakeStore` for the storage, a host pool of its HiCache
for the memory, its hash for the keys. One backend for each tensor-parallel rank. A page's bytes are
a function of its key, the rank and a version. Each line of input is a JSON object with `do` and its
arguments, each line of output its answer. `--try` only imports what is needed; `--arguments` prints
the names that SGLang's frontend says of itself.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import sglang_torchvision
from mooncake_driver import content

MODEL = "snapd/test-model"
PAGE_TOKENS = 16
LAYERS, HEADS, HEAD_WIDTH = 4, 8, 64  # 64 KiB of keys and as much of values in an MHA page
LATENT_WIDTH, ROPE_WIDTH = 512, 64  # 72 KiB in an MLA page
PAGES_MAX = 512
BATCH_PAGES = 128  # as SGLang's own STORAGE_BATCH_SIZE
HOST_BYTES_MAX = 1 << 30  # SGLang otherwise leaves 10 GiB of the machine free


def sglang() -> Any:
    """The names that are used here, imported once the stand-in for torchvision is in place."""
    sglang_torchvision.install()
    warnings.simplefilter("ignore")  # SGLang warns of each kernel that a machine without GPU lacks
    import torch  # noqa: PLC0415
    from sglang.srt.mem_cache import device_pool_info as info  # noqa: PLC0415
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig  # noqa: PLC0415
    from sglang.srt.mem_cache.pool_host.base import host_memory_budget_scope  # noqa: PLC0415
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost  # noqa: PLC0415
    from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost  # noqa: PLC0415
    from sglang.srt.mem_cache.storage.mooncake_store.mooncake_store import (  # noqa: PLC0415
        MooncakeStore,
    )
    from sglang.srt.mem_cache.utils import get_hash_str  # noqa: PLC0415

    return argparse.Namespace(
        torch=torch,
        info=info,
        config=HiCacheStorageConfig,
        budget=host_memory_budget_scope,
        mha=MHATokenToKVPoolHost,
        mla=MLATokenToKVPoolHost,
        store=MooncakeStore,
        hash=get_hash_str,
    )


def host_pool(names: Any, *, mla: bool) -> Any:
    """A HiCache host pool in page_first layout, as SGLang sets up for Mooncake."""
    torch, info = names.torch, names.info
    device = torch.device("cpu")
    width = LATENT_WIDTH + ROPE_WIDTH if mla else HEAD_WIDTH
    shape = (2 * PAGE_TOKENS, 1 if mla else HEADS, width)
    buffers = [torch.zeros(shape, dtype=torch.bfloat16) for _ in range(2 * LAYERS)]
    pointers = torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.int64)
    common = {"page_size": PAGE_TOKENS, "dtype": torch.bfloat16, "device": device}
    options = {
        "host_to_device_ratio": 0.0,
        "host_size": 0,
        "page_size": PAGE_TOKENS,
        "layout": "page_first",
        "pin_memory": False,
        "device_capacity_tokens": 2 * PAGE_TOKENS,
        "start_layer": 0,
        "end_layer": LAYERS,
        "host_token_capacity": PAGES_MAX * PAGE_TOKENS,
    }
    with names.budget(HOST_BYTES_MAX):
        if mla:
            described = info.MLABufferInfo(
                buffers=tuple(buffers[:LAYERS]),
                data_ptrs=pointers[:LAYERS],
                layer_indices=tuple(range(LAYERS)),
                device_layer_num=LAYERS,
                kv_lora_rank=LATENT_WIDTH,
                qk_rope_head_dim=ROPE_WIDTH,
                kv_cache_dim=width,
                **common,
            )
            return names.mla(described, target_layer_num=LAYERS, **options)
        described = info.MHABufferInfo(
            buffers=info.KVBuffers(
                k=tuple(buffers[:LAYERS]),
                v=tuple(buffers[LAYERS:]),
                k_data_ptrs=pointers[:LAYERS],
                v_data_ptrs=pointers[LAYERS:],
                layout=info.KVBufferLayout.NHD,
            ),
            head_num=HEADS,
            head_dim=HEAD_WIDTH,
            v_head_dim=HEAD_WIDTH,
            **common,
        )
        return names.mha(described, **options)


class Rank:
    """One tensor-parallel rank: a backend and the host memory that it copies from and to."""

    def __init__(self, names: Any, rank: int, options: argparse.Namespace) -> None:
        self._torch = names.torch
        self._rank = rank
        self._pool = host_pool(names, mla=options.mla)
        config = names.config(
            tp_rank=rank,
            tp_size=options.ranks,
            pp_rank=0,
            pp_size=1,
            attn_cp_rank=0,
            attn_cp_size=1,
            is_mla_model=options.mla,
            enable_storage_metrics=False,
            is_page_first_layout=True,
            model_name=MODEL,
            extra_config={
                "master_server_address": options.master,
                "metadata_server": options.metadata,
                "local_hostname": "127.0.0.1",
                "global_segment_size": 0,
                "protocol": "tcp",
            },
        )
        self.is_writer = config.is_storage_writer
        self.backend = names.store(config, self._pool)
        self.backend.register_mem_pool_host(self._pool)

    def fill(self, pages: list[str], version: int) -> list[bool]:
        """Write each page into host memory and from there into Mooncake: which were set."""
        indices = self._take(len(pages))
        for page, index in zip(pages, indices[::PAGE_TOKENS].tolist(), strict=True):
            data = np.frombuffer(self._content(page, version), np.uint8).copy()
            flat = self._torch.from_numpy(data).view(self._pool.dtype)
            self._pool.set_from_flat_data_page(index, flat)
        done = self.backend.batch_set_v1(pages, indices)
        self._pool.free(indices)
        return [bool(each) for each in done]

    def read(self, pages: list[str], versions: list[int]) -> list[str]:
        """Each page out of Mooncake: "right", "wrong" (other bytes) or "missing"."""
        indices = self._take(len(pages))
        buffers = self._pool.kv_buffer
        buffers.view(self._torch.uint8).fill_(0xA5)  # what an earlier command left proves nothing
        found = self.backend.batch_get_v1(pages, indices)
        states = []
        places = indices[::PAGE_TOKENS].tolist()
        for page, index, is_there in zip(pages, places, found, strict=True):
            flat = self._pool.get_data_page(index, flat=True).contiguous()
            data = flat.view(self._torch.uint8).numpy().tobytes()
            is_right = any(data == self._content(page, version) for version in versions)
            states.append(("right" if is_right else "wrong") if is_there else "missing")
        self._pool.free(indices)
        return states

    def _take(self, pages: int) -> Any:
        indices = self._pool.alloc(pages * PAGE_TOKENS)
        if indices is None:
            raise ValueError(f"the host pool has no room for {pages} pages")
        return indices

    def _content(self, page: str, version: int) -> bytes:
        page_bytes = self._pool.size_per_token * PAGE_TOKENS
        # Ranks that read one object of an MLA model must expect the same bytes of it.
        rank = 0 if self.backend.is_mla_backend else self._rank
        return content(f"{page}/{rank}", version, page_bytes)


class Driver:
    """The commands, one method each. A page is named by its number in one long conversation."""

    def __init__(self, names: Any, options: argparse.Namespace) -> None:
        self._ranks = [Rank(names, rank, options) for rank in range(options.ranks)]
        self._hash = names.hash
        self._chain: list[str] = []

    def fill(self, first: int, count: int, version: int = 1) -> list[bool]:
        """Put pages: whether each is set on every rank that writes."""
        done = [True] * count
        for offset, pages in self._batches(first, count):
            for rank in self._ranks:
                if not rank.is_writer:
                    continue
                for row, is_set in enumerate(rank.fill(pages, version)):
                    done[offset + row] &= is_set
        return done

    def read(self, first: int, count: int, versions: list[int]) -> list[str]:
        """Get pages: the worst state of each over the ranks."""
        worst = ["right"] * count
        badness = {"right": 0, "missing": 1, "wrong": 2}
        for offset, pages in self._batches(first, count):
            for rank in self._ranks:
                for row, state in enumerate(rank.read(pages, versions)):
                    worst[offset + row] = max(worst[offset + row], state, key=badness.__getitem__)
        return worst

    def exists(self, count: int) -> int:
        """How many pages of the conversation's start exist on every rank."""
        pages = self._pages(0, count)
        return min(int(rank.backend.batch_exists(pages)) for rank in self._ranks)

    def clear(self) -> None:
        """SGLang's `clear`: removes everything in the store."""
        self._ranks[0].backend.clear()

    def _batches(self, first: int, count: int) -> list[tuple[int, list[str]]]:
        starts = range(0, count, BATCH_PAGES)
        return [
            (start, self._pages(first + start, min(BATCH_PAGES, count - start))) for start in starts
        ]

    def _pages(self, first: int, count: int) -> list[str]:
        while len(self._chain) < first + count:
            page = len(self._chain)
            tokens = list(range(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS))
            self._chain.append(self._hash(tokens, self._chain[-1] if self._chain else None))
        return self._chain[first : first + count]


def said_by_frontend() -> dict[str, list[str]]:
    """Names of the server's arguments, of the frontend's pages, and of what /model_info has."""
    from sglang.srt.server_args import ServerArgs, record_fields  # noqa: PLC0415

    # Read, not imported: the frontend's module loads everything that serving needs.
    package = Path(sys.modules["sglang"].__file__ or "").parent
    frontend = (package / "srt/entrypoints/http_server.py").read_text(encoding="utf-8")
    model_info = frontend.partition('@app.get("/model_info")')[2].partition("@app.")[0]
    return {
        "arguments": [field.name for field in record_fields(ServerArgs)],
        "pages": re.findall(r'@app\.get\("([^"]+)"', frontend),
        "model_info": re.findall(r'^ +"(\w+)":', model_info, re.MULTILINE),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--try", dest="only_try", action="store_true")
    parser.add_argument("--arguments", action="store_true")
    parser.add_argument("--mla", action="store_true")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("master", nargs="?")
    parser.add_argument("metadata", nargs="?")
    options = parser.parse_args()
    # SGLang's and the wheel's code logs to descriptor 1 too; the answers get one of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    names = sglang()
    if options.only_try:
        return
    if options.arguments:
        print(json.dumps(said_by_frontend()), file=answers, flush=True)
        return
    driver = Driver(names, options)
    print(json.dumps({"setup": 0}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"answer": getattr(driver, request.pop("do"))(**request)}
        except Exception as error:  # noqa: BLE001 - the test decides what to make of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # Mooncake's clients of several ranks in one process need not end in any order


if __name__ == "__main__":
    main()
