"""`SnapdHiCache`: SGLang's own Mooncake backend on snapd, for `--hicache-storage-backend dynamic`.

Key naming, MHA and MLA, ranks, hybrid pools and metrics are SGLang's code: this is a subclass of
its `MooncakeStore` that chooses the store beneath, refuses what cannot work, labels what is stored,
and tells the daemon which pages are looked up. It runs with SGLang 0.5.23 and 0.5.6.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from sglang.srt.mem_cache.storage.mooncake_store.mooncake_store import MooncakeStore

from snapd.blocks.labels import label_number
from snapd.client import ReplicateConfig
from snapd.client.trace import Tracer
from snapd.config import event
from snapd.config.logs import TextFormatter
from snapd.sglang.bundled import PatientStore, bundled_config
from snapd.sglang.label import label_of
from snapd.sglang.labelling import Labelling
from snapd.sglang.options import DEFAULT_TENANT, read_options
from snapd.sglang.places import RankName, claim_place
from snapd.sglang.refusals import check_config, check_old_pool, check_pool, check_second_pool
from snapd.sglang.tracing import ChainTrace
from snapd.sglang.versions import server_arguments, weight_version, with_module
from snapd.sglang.wheel import careful_class
from snapd.wire.trace import trace_socket

_STORE_MODULE = "mooncake.store"
_HAS_IMPORT_HOOK = hasattr(MooncakeStore, "_import_mooncake_store")
"""Not in 0.5.6: there `MooncakeStore.__init__` imports the class itself, and PP ranks, models and
the tag are not, or not everywhere, part of a key."""
_MAIN_POOL = "kv"

_log = logging.getLogger(__name__)


class SnapdHiCache(MooncakeStore):
    """A HiCache storage backend on the bundled store or on real Mooncake; one for each rank."""

    def __init__(self, storage_config: Any, kwargs: Mapping[str, Any] | None = None) -> None:
        """`storage_config` is SGLang's `HiCacheStorageConfig`; `kwargs` are what else the loader
        passes, which is nothing.

        Raises SettingError for what cannot work, LockHeldError for a place on disk that another
        rank has, and what SGLang raises when real Mooncake cannot be set up. A bundled store that
        is away is no error.
        """
        del kwargs
        _make_logs_heard()
        extra_config = dict(storage_config.extra_config or {})
        options = read_options(extra_config, os.environ)
        check_config(storage_config, extra_config, options)
        self._options = options
        self._is_bundled = options.store == "bundled"
        self._tracer = Tracer(trace_socket(options.runtime_dir)) if options.trace else None
        self._trace = ChainTrace(self._tracer)
        self._labelling = Labelling(weight_version, self._take_label)
        self._label = ""
        if self._is_bundled:
            extra_config |= bundled_config(options)
            storage_config = dataclasses.replace(storage_config, extra_config=extra_config)
        self._rank_config = storage_config
        self._names = self._store_names()
        if _HAS_IMPORT_HOOK:
            super().__init__(storage_config)
        else:
            initialise = with_module(MooncakeStore.__init__, _STORE_MODULE, self._names)
            initialise(self, storage_config)
        event(
            _log,
            logging.INFO,
            "SGLang's pages go to a store",
            store=options.store,
            address=options.address if self._is_bundled else self.config.master_server_address,
            configured_by=options.source,
            tp_rank=storage_config.tp_rank,
        )

        if self._is_bundled and options.enable_ssd_offload:
            event(
                _log,
                logging.INFO,
                "the SSD tier is switched on at the daemon, by MOONCAKE_ENABLE_SSD_OFFLOAD there",
                configured_by=options.source,
            )

    # --- the store beneath ------------------------------------------------------------------------

    def _store_names(self) -> ModuleType:
        """What takes the place of the module `mooncake.store` where SGLang asks for it."""
        names = ModuleType(_STORE_MODULE)
        if self._is_bundled:
            chosen: dict[str, Any] = {
                "MooncakeDistributedStore": PatientStore,
                "ReplicateConfig": ReplicateConfig,
            }
        else:
            wheel = importlib.import_module(_STORE_MODULE)
            chosen = {
                **vars(wheel),
                "MooncakeDistributedStore": careful_class(
                    wheel.MooncakeDistributedStore, self._wanted(), self._claim_place
                ),
            }
        vars(names).update(chosen)
        return names

    def _wanted(self) -> dict[str, Any]:
        """Parameters of the wheel's `setup` that only some versions have, as far as asked for."""
        options = self._options
        wanted: dict[str, Any] = {}
        if options.enable_ssd_offload:
            wanted["enable_ssd_offload"] = True
        if options.ssd_offload_path:
            wanted["ssd_offload_path"] = options.ssd_offload_path
        if options.tenant_id != DEFAULT_TENANT:
            wanted["tenant_id"] = options.tenant_id
        return wanted

    def _claim_place(self) -> tuple[str, Callable[[], None]]:
        """A directory of this rank's own for the wheel, and what gives it up."""
        ranks = ("dp_rank", "tp_rank", "pp_rank", "attn_cp_rank")
        rank = RankName(*(getattr(self._rank_config, name, 0) for name in ranks))
        place = claim_place(self._options.ssd_offload_path, rank)
        return place.path, place.release

    def _import_mooncake_store(self) -> Any:
        """Asked by SGLang for the class of the store."""
        return self._names.MooncakeDistributedStore

    def _import_mooncake_group_semantics(self) -> tuple[Any, bool]:
        """Asked by SGLang for the class of a put's options, and whether it knows groups."""
        config = getattr(self._names, "ReplicateConfig", None)
        return config, config is not None and hasattr(config(), "group_ids")

    def _load_config(self, storage_config: Any = None) -> Any:
        """SGLang's reading of Mooncake's configuration, less what the store is told by
        `careful_class`: SGLang guesses from an error's words what a wheel does not know."""
        config = super()._load_config(storage_config)
        return dataclasses.replace(
            config, enable_ssd_offload=False, ssd_offload_path=None, tenant_id="default"
        )

    def warmup(self) -> None:
        """Real Mooncake is tried with a block, as SGLang does. The bundled store is not: that block
        would stay in its snapshots, and a store that is away is waited for."""
        if not self._is_bundled:
            super().warmup()

    # --- host pools and labels --------------------------------------------------------------------

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """The pool that pages are copied from and to. Raises SettingError for a wrong one."""
        config = self._rank_config
        if not _HAS_IMPORT_HOOK:
            pp_size = int(server_arguments().get("pp_size") or 1)
            check_old_pool(mem_pool_host, self._options, pp_size)
        one_page = torch.arange(mem_pool_host.page_size, dtype=torch.int64)
        check_pool(config, mem_pool_host, one_page)
        self._add_pool(_MAIN_POOL, mem_pool_host)
        super().register_mem_pool_host(mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """A pool beside it, of a hybrid model. Raises SettingError for a wrong one."""
        name = getattr(host_pool_name, "value", host_pool_name)
        if name != _MAIN_POOL:
            is_mha = hasattr(host_pool, "head_num") and not hasattr(host_pool, "kv_lora_rank")
            check_second_pool(self._rank_config, name, is_mha=is_mha)
            self._add_pool(name, host_pool)
        super().register_mem_host_pool_v2(host_pool, host_pool_name)

    def _add_pool(self, name: str, pool: Any) -> None:
        """Mooncake has no labels; there the daemon asks SGLang itself (docs/mooncake.md)."""
        if self._is_bundled:
            self._labelling.add_pool(name, pool)

    def _take_label(self, weights: Any, pools: Mapping[str, Any]) -> None:
        """Tell the client what it puts and gets from now on."""
        server = {**server_arguments(), "weight_version": weights}
        fingerprint = self._options.fingerprint
        label = label_of(self._rank_config, server, pools, fingerprint=fingerprint)
        if label == self._label:
            return
        code = self.store.take_label(label)
        self._label = label
        self._trace.label = label_number(label)
        event(_log, logging.INFO, "pages have a label", label=label)
        if code != 0:
            event(
                _log,
                logging.WARNING,
                "no store yet: every lookup misses until one answers",
                address=self._options.address,
                code=code,
            )

    def _may_read(self) -> bool:
        return not self._is_bundled or self._labelling.reading()

    def _writing(self) -> AbstractContextManager[bool]:
        return self._labelling.writing() if self._is_bundled else nullcontext(enter_result=True)

    # --- pages ------------------------------------------------------------------------------------

    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        """How many pages from the first are there."""
        if not self._may_read():
            return 0
        hits = int(super().batch_exists(self._old_tagged(keys), extra_info))
        self._trace.lookup(keys, extra_info, hits)
        return hits

    def batch_exists_v2(
        self, keys: list[str], pool_transfers: Any = None, extra_info: Any = None
    ) -> Any:
        """The same for a hybrid model, each pool by its policy."""
        if not self._may_read():
            return super().batch_exists_v2([], None, extra_info)
        result = super().batch_exists_v2(keys, pool_transfers, extra_info)
        if self.mem_pool_host.kv_buffer is None:  # else `batch_exists` was asked, and told it
            self._trace.lookup(keys, extra_info, result.kv_hit_pages)
        return result

    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None
    ) -> list[bool]:
        """Copy pages into the host pool; whether each came whole."""
        if not self._may_read():
            return [False] * len(keys)
        found: list[bool] = super().batch_get_v1(keys, host_indices, extra_info)
        self._trace.lookup(keys, extra_info, _leading(found))
        return found

    def batch_get_v2(self, transfers: list[Any], extra_info: Any = None) -> dict[str, list[bool]]:
        """The same for pools beside it, by their names."""
        if not self._may_read():
            return _nothing(transfers)
        found: dict[str, list[bool]] = super().batch_get_v2(transfers, extra_info)
        return found

    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None
    ) -> list[bool]:
        """Copy pages out of the host pool; whether each is stored."""
        with self._writing() as may:
            if not may:
                return [False] * len(keys)
            done: list[bool] = super().batch_set_v1(keys, host_indices, extra_info)
        self._trace.lookup(keys, extra_info, _leading(done))
        return done

    def batch_set_v2(self, transfers: list[Any], extra_info: Any = None) -> dict[str, list[bool]]:
        """The same for pools beside it, by their names."""
        with self._writing() as may:
            if not may:
                return _nothing(transfers)
            done: dict[str, list[bool]] = super().batch_set_v2(transfers, extra_info)
        return done

    def clear(self) -> None:
        """Remove every page of the store, those that were just read as well."""
        if self._is_bundled:
            self.store.remove_all(force=True)
        else:
            super().clear()

    def close(self) -> None:
        """End the connection to the bundled store. Mooncake's object ends when it is dropped, as
        SGLang has it, and gives up its place on disk then."""
        super().close()
        self._labelling.close()
        if self._tracer is not None:
            self._tracer.close()
        if self._is_bundled:
            self.store.close()

    def _old_tagged(self, keys: list[str]) -> list[str]:
        """Keys as `batch_exists` must get them: in 0.5.6 it alone forgets `extra_backend_tag`."""
        tag = getattr(self, "extra_backend_tag", None)
        if _HAS_IMPORT_HOOK or tag is None:
            return keys
        return [f"{tag}_{key}" for key in keys]


def _leading(states: Sequence[bool]) -> int:
    """How many are true before the first that is not."""
    return next((row for row, state in enumerate(states) if not state), len(states))


def _nothing(transfers: Sequence[Any]) -> dict[str, list[bool]]:
    """Of each pool, that no page came or went."""
    return {transfer.name: [False] * len(transfer.keys or ()) for transfer in transfers}


def _make_logs_heard() -> None:
    """SGLang's log format leaves out the fields of snapd's events, which hold what matters. Unless
    somebody has set up the logger of this package, give it a handler that shows them."""
    logger = logging.getLogger("snapd")
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter(journal=False))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
