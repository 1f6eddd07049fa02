"""Fixed records: fields with their meaning, packed into NumPy dtypes whose size is asserted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class RecordField:
    """One field of a record: name, little-endian NumPy type, meaning."""

    name: str
    type: str
    description: str


def record_dtype(record: tuple[RecordField, ...], size_bytes: int) -> np.dtype[np.void]:
    """A packed dtype of these fields. They must add up to `size_bytes`, each aligned to itself."""
    dtype = np.dtype([(one.name, *_numpy_type(one.type)) for one in record])
    if dtype.itemsize != size_bytes:
        raise AssertionError(f"record is {dtype.itemsize} bytes, not {size_bytes}")
    for name, (kind, offset, *_) in (dtype.fields or {}).items():
        if offset % kind.base.itemsize:
            raise AssertionError(f"field {name} at {offset} is not aligned")
    return dtype


def encode_record(dtype: np.dtype[np.void], **values: Any) -> bytes:
    """The bytes of one record; fields that are not given are zero. Bytes go into byte arrays."""
    record = np.zeros((), dtype)
    for name, value in values.items():
        record[name] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    return record.tobytes()


def _numpy_type(name: str) -> tuple[Any, ...]:
    """("<u8",) for "<u8"; ("u1", (16,)) for "16u1"."""
    return ("u1", (int(name[:-2]),)) if name.endswith("u1") and name != "u1" else (name,)
