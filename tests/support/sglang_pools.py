"""HiCache host pools of SGLang 0.5.23 and 0.5.6 on a machine without a GPU; imported by an
interpreter that has SGLang, after `sglang_stand_ins.install`."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import torch

PAGE_TOKENS = 16
LAYERS, HEADS, HEAD_WIDTH = 4, 4, 32  # 16 KiB of keys and as much of values in an MHA page
LATENT_WIDTH, ROPE_WIDTH = 128, 32  # 20 KiB in an MLA page
STATE_SHAPES = ((8, 32), (3, 64))  # of a Mamba model: one temporal state, one convolution's
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_BYTES_MAX = 1 << 30
"""SGLang otherwise leaves 10 GiB of the machine free."""


def _module(name: str) -> Any:
    return importlib.import_module(f"sglang.srt.{name}")


def is_old() -> bool:
    """Whether this is SGLang 0.5.6."""
    return str(importlib.import_module("sglang.version").__version__).startswith("0.5.6")


def kv_pool(
    *,
    mla: bool = False,
    layout: str = "page_first",
    pages: int = 128,
    layers: tuple[int, int] = (0, LAYERS),
    heads: int = HEADS,
    head_width: int = HEAD_WIDTH,
    dtype: str = "bfloat16",
    page_tokens: int = PAGE_TOKENS,
) -> Any:
    """A pool for keys and values, or for the latents of MLA; `layers` from and to."""
    shape = SimpleNamespace(
        mla=mla,
        layout=layout,
        tokens=pages * page_tokens,
        layers=layers,
        heads=1 if mla else heads,
        width=LATENT_WIDTH + ROPE_WIDTH if mla else head_width,
        dtype=DTYPES[dtype],
        page_tokens=page_tokens,
    )
    return _old_pool(shape) if is_old() else _new_pool(shape)


def _new_pool(shape: Any) -> Any:
    info, base = _module("mem_cache.device_pool_info"), _module("mem_cache.pool_host.base")
    count = shape.layers[1] - shape.layers[0]
    device = torch.device("cpu")
    size = (2 * shape.page_tokens, shape.heads, shape.width)
    buffers = tuple(torch.zeros(size, dtype=shape.dtype) for _ in range(2 * count))
    pointers = torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.int64)
    common = {"page_size": shape.page_tokens, "dtype": shape.dtype, "device": device}
    options = {
        "host_to_device_ratio": 0.0,
        "host_size": 0,
        "page_size": shape.page_tokens,
        "layout": shape.layout,
        "pin_memory": False,
        "device_capacity_tokens": 2 * shape.page_tokens,
        "start_layer": shape.layers[0],
        "end_layer": shape.layers[1],
        "host_token_capacity": shape.tokens,
    }
    with base.host_memory_budget_scope(_BYTES_MAX):
        if shape.mla:
            described = info.MLABufferInfo(
                buffers=buffers[:count],
                data_ptrs=pointers[:count],
                layer_indices=tuple(range(count)),
                device_layer_num=count,
                kv_lora_rank=LATENT_WIDTH,
                qk_rope_head_dim=ROPE_WIDTH,
                kv_cache_dim=shape.width,
                **common,
            )
            pool = _module("mem_cache.pool_host.mla").MLATokenToKVPoolHost
            return pool(described, target_layer_num=count, **options)
        described = info.MHABufferInfo(
            buffers=info.KVBuffers(
                k=buffers[:count],
                v=buffers[count:],
                k_data_ptrs=pointers[:count],
                v_data_ptrs=pointers[count:],
                layout=info.KVBufferLayout.NHD,
            ),
            head_num=shape.heads,
            head_dim=shape.width,
            v_head_dim=shape.width,
            **common,
        )
        return _module("mem_cache.pool_host.mha").MHATokenToKVPoolHost(described, **options)


def _old_pool(shape: Any) -> Any:
    module = _module("mem_cache.memory_pool_host")
    # It insists on leaving 10 GiB of the machine free.
    module.psutil = SimpleNamespace(
        virtual_memory=lambda: SimpleNamespace(available=_BYTES_MAX + 10 * 1024**3)
    )
    device_pool = SimpleNamespace(
        store_dtype=shape.dtype,
        size=shape.page_tokens,
        start_layer=shape.layers[0],
        end_layer=shape.layers[1],
        layer_num=shape.layers[1] - shape.layers[0],
        head_num=shape.heads,
        head_dim=shape.width,
        kv_lora_rank=LATENT_WIDTH,
        qk_rope_head_dim=ROPE_WIDTH,
        device="cpu",
    )
    kind = module.MLATokenToKVPoolHost if shape.mla else module.MHATokenToKVPoolHost
    ratio = shape.tokens / shape.page_tokens
    return kind(device_pool, ratio, 0, shape.page_tokens, shape.layout, pin_memory=False)


def mamba_pool(states: int = 64) -> Any:
    """A pool for the states of a hybrid model's linear layers: one slot a page; 0.5.23 only."""
    info, base = _module("mem_cache.device_pool_info"), _module("mem_cache.pool_host.base")
    temporal, conv = STATE_SHAPES
    described = info.MambaStateBufferInfo(
        temporal=torch.zeros((LAYERS, 4, *temporal), dtype=torch.float32),
        conv=(torch.zeros((LAYERS, 4, *conv), dtype=torch.bfloat16),),
    )
    with base.host_memory_budget_scope(_BYTES_MAX):
        return _module("mem_cache.pool_host.mamba").MambaPoolHost(
            described,
            states / 4,
            0,
            device_capacity=4,
            pin_memory=False,
            layout="page_first",
        )


def page_hash(tokens: list[int], before: str | None) -> str:
    """SGLang's own hash of a page."""
    name = "mem_cache.hicache_storage" if is_old() else "mem_cache.utils"
    return str(_module(name).get_hash_str(tokens, before))
