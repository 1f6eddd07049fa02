"""`DailyBudget`: how many bytes may be written in any 24 hours. No clock, no file.

A bucket of half the limit that refills at half the limit a day: whatever is done, and whenever a
day is taken to begin, at most burst plus refill can go out in it, which is the limit. The price is
that after a quiet time half of the day's bytes are available at once, not all of them; the gain
is that no day boundary exists at which twice the limit could be written.

Only the debt (what the bucket lacks to be full) outlives a process, and no time is credited for
when nobody ran: a wall clock may jump by days in either direction, and a limit that trusts it can
be broken by it. A restart costs at most the refill of the time that it took.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from snapd.plans.pace import TokenBucket

DAY_SECONDS = 86_400.0
_BURST_SHARE = 0.5
"""Of the daily limit; the rest is refilled over the day."""


@dataclass(frozen=True, slots=True)
class DailyBudget:
    """Bytes that may still be written. Every method returns a new one or a number."""

    bytes_per_day_max: int
    """0 is no limit: then everything is available and nothing is owed."""
    bucket: TokenBucket

    @classmethod
    def resume(cls, bytes_per_day_max: int, debt_bytes: int, now: float) -> Self:
        """The budget of a process that begins at `now`, when `debt_bytes` of what was written
        before have not been made up for. `now` is of any clock that is not set back; where it is
        all the same, nothing is credited until it has caught up.

        What is owed beyond a day's limit is forgiven: a damaged number must not stop writing for
        good.
        """
        burst = bytes_per_day_max * _BURST_SHARE
        bucket = TokenBucket.full(burst / DAY_SECONDS, burst, now)
        debt = min(max(0, debt_bytes), 2 * burst)
        return cls(bytes_per_day_max, replace(bucket, balance=burst - debt))

    def charge(self, amount: int, now: float) -> Self:
        """After `amount` bytes were written, whether there was enough for them or not."""
        return replace(self, bucket=self.bucket.take(amount, now)[0])

    def available(self, now: float) -> int | None:
        """Bytes that may be written at once, 0 or more; None without a limit."""
        if not self.bytes_per_day_max:
            return None
        return max(0, int(self.charge(0, now).bucket.balance))

    def debt(self, now: float) -> int:
        """Bytes that the bucket lacks to be full: what the next process must know."""
        bucket = self.charge(0, now).bucket
        return max(0, round(bucket.burst - bucket.balance))
