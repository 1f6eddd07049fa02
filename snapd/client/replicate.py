"""`ReplicateConfig`, `SoftPinAction`, `ObjectDataType`: how a block is to be kept."""

from __future__ import annotations

from enum import Enum
from typing import Any


class SoftPinAction(Enum):
    """What a put does to the soft pin of a block. As in the wheel, not comparable with numbers."""

    PRESERVE = 0
    ENABLE = 1
    DISABLE = 2

    def __int__(self) -> int:
        return int(self.value)


class ObjectDataType(Enum):
    """What a block is; kept for callers that set it, without effect here."""

    UNKNOWN = 0
    KVCACHE = 1
    TENSOR = 2
    WEIGHT = 3
    SAMPLE = 4
    ACTIVATION = 5
    GRADIENT = 6
    OPTIMIZER_STATE = 7
    METADATA = 8
    GENERAL = 9

    def __int__(self) -> int:
        return int(self.value)


class ReplicateConfig:
    """Options of a put. Attributes that do not exist, or values of a wrong type, are refused.

    The bundled store honours `with_hard_pin`, `soft_pin_action`, `soft_pin_ttl_ms` and `group_ids`.
    It holds one copy on one machine, so what chooses the number and the place of replicas has no
    effect; only `replica_num` 0 is refused.
    """

    __slots__ = (
        "data_type",
        "dfs_replica_num",
        "group_ids",
        "nof_replica_num",
        "prefer_alloc_in_same_node",
        "preferred_nof_segments",
        "preferred_segment",
        "preferred_segments",
        "replica_num",
        "soft_pin_action",
        "soft_pin_ttl_ms",
        "with_hard_pin",
    )

    replica_num: int
    nof_replica_num: int
    dfs_replica_num: int
    soft_pin_action: SoftPinAction
    soft_pin_ttl_ms: int | None
    """Milliseconds until a soft pin ends; None is the store's own default."""
    with_hard_pin: bool
    preferred_segment: str
    preferred_segments: list[str]
    preferred_nof_segments: list[str]
    prefer_alloc_in_same_node: bool
    group_ids: list[str] | None
    data_type: ObjectDataType

    def __init__(self) -> None:
        self.replica_num = 1
        self.nof_replica_num = 0
        self.dfs_replica_num = 0
        self.soft_pin_action = SoftPinAction.PRESERVE
        self.soft_pin_ttl_ms = None
        self.with_hard_pin = False
        self.preferred_segment = ""
        self.preferred_segments = []
        self.preferred_nof_segments = []
        self.prefer_alloc_in_same_node = False
        self.group_ids = None
        self.data_type = ObjectDataType.UNKNOWN

    def __setattr__(self, name: str, value: Any) -> None:
        expected = _EXPECTED.get(name)
        if expected is not None and not expected[1](value):
            raise TypeError(f"ReplicateConfig.{name} must be {expected[0]}, not {value!r}")
        # A copy, as the wheel takes: what the caller does to his list later has no effect.
        object.__setattr__(self, name, list(value) if isinstance(value, list | tuple) else value)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"ReplicateConfig({fields})"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


_EXPECTED = {
    "replica_num": ("a count", _is_count),
    "nof_replica_num": ("a count", _is_count),
    "dfs_replica_num": ("a count", _is_count),
    "soft_pin_action": ("a SoftPinAction", lambda value: isinstance(value, SoftPinAction)),
    "soft_pin_ttl_ms": (
        "milliseconds or None",
        lambda value: value is None or _is_count(value),
    ),
    "with_hard_pin": ("a bool", _is_bool),
    "preferred_segment": ("a str", _is_text),
    "preferred_segments": ("a list of str", _is_texts),
    "preferred_nof_segments": ("a list of str", _is_texts),
    "prefer_alloc_in_same_node": ("a bool", _is_bool),
    "group_ids": ("a list of str or None", lambda value: value is None or _is_texts(value)),
    "data_type": ("an ObjectDataType", lambda value: isinstance(value, ObjectDataType)),
}
"""What each attribute takes: in words, and as a check."""
