"""`mooncake.store` as another name of `snapd.client`, for programs that were written for the wheel.

Only for tests: whoever installs snapd has no module of this name from it. As a script it runs
another program under the alias, as `python FILE` would:

    python mooncake_alias.py [--old] MODULE
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

import snapd.client


def install() -> None:
    """Call before the first import of mooncake, whose own package is not found any more."""
    package, store = ModuleType("mooncake"), ModuleType("mooncake.store")
    package.__path__ = []
    vars(store).update({name: getattr(snapd.client, name) for name in snapd.client.__all__})
    vars(package)["store"] = store
    sys.modules |= {"mooncake": package, "mooncake.store": store}


def main(module: str, *, old: bool) -> None:
    """Run the file of one of SGLang's modules."""
    import sglang_stand_ins  # noqa: PLC0415 - beside this script, and only where SGLang is

    sglang_stand_ins.install(old=old)
    install()
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"no file of {module}")
    sys.path.insert(0, str(Path(spec.origin).parent))
    runpy.run_path(spec.origin, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[-1], old="--old" in sys.argv)
