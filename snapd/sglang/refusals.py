"""What SGLang's dynamic loader, or a version of SGLang, cannot do: refused at start, in words. Each
message names the thing, its value and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snapd.errors import SettingError
from snapd.sglang.options import DEFAULT_TENANT, Options

_LAYOUTS = "--hicache-mem-layout page_first (or page_first_direct)"
_BUILT_IN = "--hicache-storage-backend mooncake, with snapd beside Mooncake (docs/mooncake.md)"
_DRAFTS = frozenset({"draft", "draft_swa"})


def check_config(config: Any, extra_config: Mapping[str, Any], options: Options) -> None:
    """What SGLang's `HiCacheStorageConfig` and the extra config ask for. Raises SettingError."""
    if not extra_config.get("interface_v1"):
        raise SettingError(
            f"interface_v1 = {extra_config.get('interface_v1')!r} in "
            "--hicache-storage-backend-extra-config: without it SGLang's dynamic loader passes "
            'copies of pages and no addresses; add "interface_v1": 1'
        )
    if options.store == "mooncake" and options.standalone_storage:
        raise SettingError(
            f"standalone_storage = true in {options.source}: SGLang's dynamic loader passes no "
            f"host pool to share; leave it out, or use {_BUILT_IN}"
        )
    if getattr(config, "dcp_size", 1) > 1:
        raise SettingError(
            f"dcp_size = {config.dcp_size}: SGLang runs decode context parallelism with its "
            f"built-in storage backends only; use {_BUILT_IN}"
        )
    cp_size = getattr(config, "attn_cp_size", 1)
    if cp_size > 1 and options.store == "mooncake":
        raise SettingError(
            f"attn_cp_size = {cp_size}: ranks of a context-parallel group hold different slices of "
            "a page under the same key; use snapd_store = bundled, where labels keep them apart"
        )
    if options.store == "bundled" and options.tenant_id != DEFAULT_TENANT:
        raise SettingError(
            f"tenant_id = {options.tenant_id!r} in {options.source}: the bundled store has one "
            "tenant; use extra_backend_tag, or a store for each"
        )


def check_pool(config: Any, pool: Any, one_page: Any) -> None:
    """The host pool that pages are copied from and to; `one_page` are indices of its first page.

    What decides is what the pool says of a page: keys and values must each lie in one piece for
    MHA, and in one piece for each key or in several of them for MLA. Raises SettingError.
    """
    if getattr(pool, "kv_buffer", None) is None:
        return  # a logical pool: its pages are in the pools that are registered beside it
    name, layout = type(pool).__name__, getattr(pool, "layout", None)
    refused = f"host pool {name} of layout {layout!r}"
    try:
        if getattr(config, "should_split_heads", False):
            parts = config.tp_lcm_size // config.tp_size
            pointers, sizes = pool.get_split_heads_page_buffer_meta(one_page, parts)
            pieces = 2 * parts
        else:
            pointers, sizes = pool.get_page_buffer_meta(one_page)
            pieces = len(pointers) if config.is_mla_model else 2
    except (AttributeError, NotImplementedError, ValueError, AssertionError) as error:
        raise SettingError(
            f"{refused} does not say where its pages are ({error}); start SGLang with {_LAYOUTS}"
        ) from error
    if len(pointers) != pieces or len(sizes) != len(pointers):
        raise SettingError(
            f"{refused} has a page in {len(pointers)} pieces, and a page of keys and values needs "
            f"{pieces}: the dynamic loader does not switch it by itself, so start SGLang with "
            f"{_LAYOUTS}"
        )


def check_old_pool(pool: Any, options: Options, pp_size: int) -> None:
    """What SGLang's versions before pipeline ranks were part of a key cannot do.

    Raises SettingError.
    """
    layouts = ("page_first", "page_first_direct", "page_head")
    if pool.layout not in layouts:
        raise SettingError(
            f"host pool {type(pool).__name__} of layout {pool.layout!r}: this version of SGLang "
            f"stores {', '.join(layouts)} only; start it with {_LAYOUTS}"
        )
    if pp_size > 1 and options.store == "mooncake":
        raise SettingError(
            f"pp_size = {pp_size}: in this version of SGLang pipeline stages have the same keys "
            "for different layers; use snapd_store = bundled, where labels keep them apart, or "
            "SGLang 0.5.23"
        )


def check_second_pool(config: Any, pool_name: str, *, is_mha: bool) -> None:
    """A pool beside the first one. Raises SettingError."""
    if str(pool_name) in _DRAFTS and is_mha and config.is_mla_model and config.tp_size > 1:
        raise SettingError(
            f"host pool {str(pool_name)!r} of an MHA draft model beside an MLA model on "
            f"tp_size = {config.tp_size}: SGLang's dynamic loader has only rank 0 store it, "
            f"although each rank has its own; use {_BUILT_IN}, or no draft model"
        )
