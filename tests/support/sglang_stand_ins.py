"""Stand-ins for what SGLang names at import and the storage classes never use.

torchvision has no build without CUDA, and neither have SGLang's kernels; of the older SGLang the
HTTP frontend is imported by its arguments. Only for tests, in the interpreters that
`scripts/setup --sglang` makes.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from sglang_torchvision import TorchvisionStandIn

OLD_NAMES = (
    "fastapi",
    "openai",
    "partial_json_parser",
    "sgl_kernel",
    "sglang.srt.entrypoints.openai.protocol",
)
"""Beside torchvision, in SGLang 0.5.6."""


class NamesOnly(TorchvisionStandIn):
    """Finds these modules and everything below them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        del path, target
        if any(fullname == name or fullname.startswith(f"{name}.") for name in self._names):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: names are made when they are asked for."""


def install(*, old: bool = False) -> None:
    """Call before the first import of sglang."""
    warnings.simplefilter("ignore")  # of each kernel that a machine without a GPU lacks
    sys.meta_path.insert(0, NamesOnly(("torchvision", *(OLD_NAMES if old else ()))))
