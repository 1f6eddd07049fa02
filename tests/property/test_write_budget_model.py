"""The daily write budget: no 24 hours over the limit, whatever the clock says and who restarts."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from snapd.plans.budget import DAY_SECONDS, DailyBudget

LIMIT = 1000
STEPS = st.lists(
    st.tuples(st.floats(0, 2 * DAY_SECONDS), st.integers(0, 2 * LIMIT), st.booleans()), max_size=60
)


@given(STEPS)
def test_no_day_is_over_the_limit(steps: list[tuple[float, int, bool]]) -> None:
    """`steps`: seconds to wait, bytes wanted, and whether the process is another one then."""
    now, budget = 0.0, DailyBudget.resume(LIMIT, 0, 0.0)
    written: list[tuple[float, int]] = []
    for wait_seconds, wanted, restart in steps:
        now += wait_seconds
        if restart:
            # The new process has a clock of its own and knows only what is owed.
            budget = DailyBudget.resume(LIMIT, budget.debt(now - wait_seconds), now)
        room = budget.available(now)
        assert room is not None
        amount = min(wanted, room)
        budget = budget.charge(amount, now)
        written.append((now, amount))
    for at, (moment, _) in enumerate(written):
        day = sum(amount for time, amount in written[: at + 1] if time > moment - DAY_SECONDS)
        assert day <= LIMIT, f"{day} bytes in the day up to {moment}"


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, LIMIT)), max_size=60))
def test_a_clock_that_jumps_gives_nothing_twice(steps: list[tuple[float, int]]) -> None:
    """Only time beyond the latest that was ever seen is credited."""
    budget = DailyBudget.resume(LIMIT, 0, 0.0)
    clock = list(accumulate((jump for jump, _ in steps), initial=0.0))[1:]
    total, latest = 0, 0.0
    for now, (_, wanted) in zip(clock, steps, strict=True):
        latest = max(latest, now)
        room = budget.available(now)
        assert room is not None
        budget = budget.charge(min(wanted, room), now)
        total += min(wanted, room)
        assert total <= LIMIT / 2 + LIMIT / 2 * latest / DAY_SECONDS + 1


def test_what_is_always_allowed_is_owed() -> None:
    budget = DailyBudget.resume(LIMIT, 0, 0.0).charge(700, 0.0)
    assert budget.available(0.0) == 0
    assert budget.debt(0.0) == 700
    assert budget.available(DAY_SECONDS) == 300
    assert budget.available(2 * DAY_SECONDS) == 500, "saved up beyond the burst"
    assert budget.debt(3 * DAY_SECONDS) == 0


def test_a_damaged_debt_ends_within_a_day_and_a_changed_limit_counts_at_once() -> None:
    budget = DailyBudget.resume(LIMIT, 1 << 60, 0.0)
    assert budget.available(0.0) == 0
    assert budget.debt(0.0) == LIMIT
    assert budget.available(DAY_SECONDS) == 0
    assert budget.available(2 * DAY_SECONDS) == LIMIT // 2
    assert DailyBudget.resume(LIMIT, -5, 0.0).available(0.0) == 500
    assert DailyBudget.resume(10 * LIMIT, 700, 0.0).available(0.0) == 4300
    assert DailyBudget.resume(LIMIT // 10, 700, 0.0).available(0.0) == 0


def test_without_a_limit_everything_is_available_and_nothing_is_owed() -> None:
    budget = DailyBudget.resume(0, 700, 0.0).charge(1 << 50, 1.0)
    assert budget.available(1.0) is None
    assert budget.debt(1.0) == 0
