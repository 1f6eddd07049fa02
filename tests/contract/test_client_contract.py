"""The client's table (`client_cases`) on our client and the bundled store."""

from __future__ import annotations

from pathlib import Path

import pytest
from client_cases import CASES, Case, describe, differences, render_differences
from client_driver import World, label, run_cases
from client_store import StoreProcess

from snapd.client.unsupported import SUPPORTED_METHODS


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    directory: Path = tmp_path_factory.mktemp("client-contract")
    with StoreProcess(directory) as store:
        return run_cases(World("snapd", store.address, "P2PHANDSHAKE"))


@pytest.mark.parametrize("case", CASES, ids=label)
def test_returns_what_the_table_says(case: Case, outcomes: dict[str, list[str]]) -> None:
    expected = [(describe(step), step.expected) for step in case.steps]
    names = [describe(step) for step in case.steps]
    assert list(zip(names, outcomes[label(case)], strict=True)) == expected


def test_every_method_is_in_the_table() -> None:
    called = {step.method for case in CASES for step in case.steps}
    assert called >= SUPPORTED_METHODS


def test_every_difference_from_the_wheel_is_a_difference_with_a_reason() -> None:
    assert all(reason and here != there for _, here, there, reason in differences())


def test_the_documentation_lists_the_differences() -> None:
    text = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
    begin, end = "<!-- differences -->\n", "<!-- end -->"
    listed = text[text.index(begin) + len(begin) : text.index(end)]
    assert listed == render_differences(), "put there: python tests/support/client_cases.py"
