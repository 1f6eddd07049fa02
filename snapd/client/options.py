"""`PutOptions`: what a `ReplicateConfig` asks for, as the store is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import xxhash

from snapd.blocks import Pin
from snapd.client.replicate import ReplicateConfig, SoftPinAction

SOFT_PIN_MS_MAX = 86_400_000
"""Longest soft pin that a put may ask for: Mooncake's `max_kv_soft_pin_ttl`."""


@dataclass(frozen=True, slots=True)
class PutOptions:
    """How blocks are kept. `upsert` replaces existing keys; `pin`, and for how long a soft one (0:
    the store's default); `keep_pin` leaves the soft pin of a block that is replaced as it was.

    `groups` is uint32 [n], 0 for none; without it blocks keep the group that they may have.
    """

    upsert: bool = False
    pin: Pin = Pin.NONE
    soft_pin_ttl_ms: int = 0
    keep_pin: bool = True
    groups: npt.NDArray[np.uint32] | None = None

    def take(self, rows: Sequence[int] | slice) -> PutOptions:
        """The options of these rows."""
        return self if self.groups is None else replace(self, groups=self.groups[rows])


def put_options(config: ReplicateConfig, count: int, *, upsert: bool) -> PutOptions | None:
    """What a put of `count` keys asks for; None where the wheel refuses it: no replica, a soft
    pin's time without a soft pin or too long, groups for another number of keys.

    Raises TypeError unless `config` is a `ReplicateConfig`.
    """
    if not isinstance(config, ReplicateConfig):
        raise TypeError(f"config must be a ReplicateConfig, not {type(config).__name__}")
    ttl_ms, action = config.soft_pin_ttl_ms, config.soft_pin_action
    enable = action is SoftPinAction.ENABLE
    wrong_time = ttl_ms is not None and (not enable or ttl_ms > SOFT_PIN_MS_MAX)
    groups = config.group_ids
    if not config.replica_num or wrong_time or (groups is not None and len(groups) != count):
        return None
    pin = Pin.SOFT if enable and ttl_ms != 0 else Pin.NONE
    return PutOptions(
        upsert,
        Pin.HARD if config.with_hard_pin else pin,
        (ttl_ms or 0) if enable else 0,
        action is SoftPinAction.PRESERVE,
        None if groups is None else np.array(list(map(_group_number, groups)), np.uint32),
    )


def _group_number(name: str) -> int:
    """A group's number: what its name hashes to, never 0; 0 for "", which is no group.

    Two groups may share one. They are then kept and given up together, which is all that groups do.
    """
    return (xxhash.xxh3_64_intdigest(name.encode()) & 0xFFFFFFFF or 1) if name else 0
