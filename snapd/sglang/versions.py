"""What SGLang's versions have in different places."""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any


def _module(name: str) -> ModuleType | None:
    """A module of SGLang; None in versions that do not have it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # it is there, and something that it needs is not
            raise
        return None


_context = _module("sglang.srt.runtime_context")
_arguments = importlib.import_module("sglang.srt.server_args")


def server_arguments() -> Mapping[str, Any]:
    """SGLang's arguments as they are in force in this process, updates of the weights included;
    empty where there is no server, as in a test."""
    if _context is not None:
        context = _context.get_context()
        if not context.is_config_namespace_published("serving"):
            return {}
        found: Mapping[str, Any] = context.resolved_server_args_dict()
        return found
    try:
        return dict(vars(_arguments.get_global_server_args()))
    except ValueError:
        return {}


def weight_version() -> Any:
    """The version of the weights that are served now; None where it is not known. Cheap enough for
    every batch of pages."""
    if _context is None:
        return server_arguments().get("weight_version")
    context = _context.get_context()
    if not context.is_config_namespace_published("serving"):
        return None
    return getattr(context.config_bag("serving"), "weight_version", None)


def with_module(function: FunctionType, name: str, module: ModuleType) -> Callable[..., Any]:
    """The same function, except that its own `import` of the module `name` gives `module`.

    SGLang 0.5.6 imports Mooncake's class inside `MooncakeStore.__init__`, which leaves no place to
    say another one. An `import` statement asks the `__import__` of its function's globals, so a
    copy of the function with globals of its own is enough: nothing that others see is replaced, not
    even for a moment, and threads that import meanwhile are not concerned.
    """

    def own_import(
        asked: str,
        globals_: Mapping[str, Any] | None = None,
        locals_: Mapping[str, Any] | None = None,
        fromlist: tuple[str, ...] = (),
        level: int = 0,
    ) -> ModuleType:
        if asked == name and fromlist:
            return module
        return builtins.__import__(asked, globals_, locals_, fromlist, level)

    names = {**function.__globals__, "__builtins__": {**vars(builtins), "__import__": own_import}}
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
