"""The label of a rank's blocks: everything that SGLang's keys do not say and the bytes depend on.

It is made of what SGLang says of itself and of the host pools that the bytes lie in, so two servers
that differ in any of it cannot read each other's blocks, although their keys are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xxhash

from snapd.blocks.labels import LABEL_LENGTH_MAX, Scalar, label_text

SERVER_ARGUMENTS = (
    "model_path",
    "revision",
    "load_format",
    "json_model_override_args",
    "quantization",
    "dtype",
    "kv_cache_dtype",
    "speculative_draft_model_path",
    "weight_version",
)
"""SGLang's arguments that the bytes of a page depend on, by their names."""

_RANKS = ("tp_size", "pp_size", "attn_cp_size", "dcp_size")
_GEOMETRY = (
    "dtype",
    "layout",
    "page_size",
    "size_per_token",
    "layer_num",
    "start_layer",
    "end_layer",
    "head_num",
    "head_dim",
    "v_head_dim",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "num_mamba_layers",
    "temporal_dtype",
    "temporal_state_shape",
    "conv_dtype",
    "conv_state_shapes",
    "storage_format_tag",
)
"""Attributes of a host pool; what one does not have is left out."""
_OF_ONE_RANK = frozenset({"head_num", "size_per_token"})


def label_of(
    config: Any,
    server: Mapping[str, Any],
    pools: Mapping[str, Any],
    *,
    fingerprint: str = "",
) -> str:
    """The label of the blocks of a rank.

    `config` is SGLang's `HiCacheStorageConfig`, `server` its arguments as far as they are known,
    `pools` the host pools by name, `kv` among them, `fingerprint` what the operator adds. The same
    on every tensor-parallel rank. Of each pipeline stage, whose layers differ, and of each rank of
    a context-parallel group, whose slices of a page do and whose keys do not, it is another. At
    most `LABEL_LENGTH_MAX` characters: a longer one is named by its digest.
    """
    values: dict[str, Scalar] = {
        "fingerprint": fingerprint,
        "model": config.model_name,
        "is_mla": config.is_mla_model,
        **{name: _scalar(server.get(name)) for name in SERVER_ARGUMENTS},
        **{name: getattr(config, name, None) for name in _RANKS},
    }
    is_shared = _is_shared(config, pools)
    if is_shared:
        values["tp_size"] = f"split-{config.tp_lcm_size}"
    if getattr(config, "attn_cp_size", 1) > 1:
        values["attn_cp_rank"] = config.attn_cp_rank
    for name, pool in pools.items():
        heads = pool.head_num * config.tp_size if is_shared and name == "kv" else None
        values[f"pool.{name}"] = pool_text(pool, heads)
    label = label_text(values)
    if len(label) > LABEL_LENGTH_MAX:
        return f"xxh3_128={xxhash.xxh3_128_hexdigest(label.encode())}"
    return label


def _is_shared(config: Any, pools: Mapping[str, Any]) -> bool:
    """Whether heads are stored in groups of which a rank has one or several, so that servers of
    several tensor-parallel sizes share them: SGLang's `tp_lcm_size`."""
    lcm = getattr(config, "tp_lcm_size", None)
    layout = getattr(pools.get("kv"), "layout", None)
    return bool(lcm) and not config.is_mla_model and layout == "page_head"


def pool_text(pool: Any, heads: int | None = None) -> str:
    """A host pool's class and geometry; with `heads`, those of all ranks in place of what one rank
    has of them."""
    said = [type(pool).__name__]
    for name in _GEOMETRY:
        value = getattr(pool, name, None)
        if heads is not None and name in _OF_ONE_RANK:
            value = heads if name == "head_num" else None
        if value is not None:
            said.append(f"{name}:{str(value).removeprefix('torch.')}")
    return ",".join(said)


def _scalar(value: Any) -> Scalar:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
