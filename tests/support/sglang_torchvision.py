"""A stand-in for torchvision, which has no build without CUDA.

SGLang and transformers name it at import and use it for images only, which the storage backend
never touches. The hook answers an import of any of its modules with an empty one whose every
attribute is an empty class. Only for tests, in the interpreter that `scripts/setup --sglang` makes.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _NamesOnly(type):
    """A class whose every public attribute exists and is its own name, as of an enumeration."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        return name


class _StandIn(ModuleType):
    __path__: Sequence[str] = ()
    __version__ = "0"

    def __getattr__(self, name: str) -> type:
        if name.startswith("_"):
            raise AttributeError(name)
        return _NamesOnly(name, (), {})


class TorchvisionStandIn(MetaPathFinder, Loader):
    """Finds `torchvision` and everything below it; anything else is left to the next finder."""

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname.partition(".")[0] != "torchvision":
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: names are made when they are asked for."""


def install() -> None:
    """Make `import torchvision` find the stand-in; call before the first import of sglang."""
    sys.meta_path.insert(0, TorchvisionStandIn())
