"""SGLang's HiCache backend on snapd: `--hicache-storage-backend dynamic` loads `SnapdHiCache`.

The only package that imports torch and SGLang, and only when the class is asked for: its other
modules decide without them.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["SnapdHiCache"]


def __getattr__(name: str) -> Any:
    """`SnapdHiCache`, loaded on demand. Raises ImportError where there is no SGLang."""
    if name == "SnapdHiCache":
        return importlib.import_module("snapd.sglang.hicache").SnapdHiCache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
