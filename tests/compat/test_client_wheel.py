"""The client's table on the real wheel: what it says about Mooncake is what Mooncake does.

With `tests/contract/test_client_contract.py`, which runs the same table on our client, this shows
where the two agree, and that every difference is one that the table names.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from client_cases import CASES, Case, describe
from client_driver import label
from client_wheel import WheelStore

from snapd.client import ReplicateConfig, SoftPinAction
from snapd.client.replicate import ObjectDataType
from snapd.client.unsupported import SUPPORTED_METHODS, UNSUPPORTED_METHODS

_NAMES = """
import json, mooncake.store as m
config = m.ReplicateConfig()
print(json.dumps({
    "methods": [n for n in dir(m.MooncakeDistributedStore) if not n.startswith("_")],
    "config": {n: str(getattr(config, n)) for n in dir(config) if not n.startswith("_")},
    "pins": {n: v.value for n, v in m.SoftPinAction.__members__.items()},
    "types": {n: v.value for n, v in m.ObjectDataType.__members__.items()},
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> WheelStore:
    with WheelStore(tmp_path_factory.mktemp("wheel")) as store:
        yield store


@pytest.fixture(scope="module")
def outcomes(wheel: WheelStore) -> dict[str, list[str]]:
    return wheel.run("client_driver.py", "mooncake", wheel.master, wheel.metadata)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_the_wheel_does_what_the_table_says(case: Case, outcomes: dict[str, list[str]]) -> None:
    expected = [(describe(step), step.wheel) for step in case.steps]
    names = [describe(step) for step in case.steps]
    assert list(zip(names, outcomes[label(case)], strict=True)) == expected


def test_public_names_are_the_wheels(wheel: WheelStore) -> None:
    script = wheel.directory / "names.py"
    Path(script).write_text(_NAMES)
    there = wheel.run(str(script))
    assert set(there["methods"]) == SUPPORTED_METHODS | UNSUPPORTED_METHODS
    ours = ReplicateConfig()
    assert there["config"] == {name: str(getattr(ours, name)) for name in ours.__slots__}
    assert there["pins"] == {action.name: action.value for action in SoftPinAction}
    assert there["types"] == {kind.name: kind.value for kind in ObjectDataType}


@pytest.mark.long
def test_without_its_master_the_wheel_gives_the_codes_that_we_give(tmp_path: Path) -> None:
    with WheelStore(tmp_path) as wheel:
        pid = str(wheel.master_pid)
        outcomes = wheel.run("client_away.py", wheel.master, wheel.metadata, pid)
    assert outcomes.pop("get") == ""
    assert outcomes.pop("health_check") == 0  # listed among the differences
    assert outcomes.pop("batch_is_exist") == outcomes.pop("batch_remove") == [-900, -900]
    assert outcomes.pop("batch_put_from") == [-900]
    assert set(outcomes.values()) == {-900}
