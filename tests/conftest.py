"""What all tests share: the `--long` option and Hypothesis profiles.

Without `--long`, marked tests are deselected, not skipped, and Hypothesis derives its examples from
the test itself, so that a red run is red again. With it, the examples come from a seed that is
printed; repeat it with `--hypothesis-seed`.
"""

import secrets

import pytest
from hypothesis import HealthCheck, settings

_SLOW_MACHINE = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "fast", deadline=None, derandomize=True, print_blob=True, suppress_health_check=_SLOW_MACHINE
)
settings.register_profile(
    "long",
    deadline=None,
    max_examples=2000,
    print_blob=True,
    suppress_health_check=_SLOW_MACHINE,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--fault", default="", help="repeat exactly this simulated fault")


def pytest_configure(config: pytest.Config) -> None:
    long = config.getoption("--long")
    settings.load_profile("long" if long else "fast")
    if long and config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = secrets.randbits(32)


def pytest_report_header(config: pytest.Config) -> str:
    seed = config.getoption("hypothesis_seed", None)
    return f"hypothesis seed: {'derived from each test' if seed is None else seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    repeats = bool(config.getoption("--fault"))
    with_long = repeats or config.getoption("--long")

    def is_out(item: pytest.Item) -> bool:
        # What repeats one fault runs when a fault was named, and nothing else does.
        is_repetition = "repeated_fault" in getattr(item, "fixturenames", ())
        is_long = item.get_closest_marker("long") is not None
        return is_repetition != repeats or (is_long and not with_long)

    out = [item for item in items if is_out(item)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
