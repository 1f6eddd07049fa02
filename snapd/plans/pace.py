"""`TokenBucket`: the arithmetic of a limit on bytes a second, without a clock.

Work is charged before it is done and may overdraw the bucket; whoever overdraws waits until the
debt is paid. So one block larger than the burst is possible, and the mean rate still holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A bucket of bytes that refills at `rate` and holds at most `burst`."""

    rate: float
    """Bytes a second; 0 is no limit."""
    burst: float
    """Most bytes that can be saved up while nothing is done."""
    balance: float
    """Bytes that may be used at once; below zero is debt."""
    updated: float
    """Time of the balance, in seconds on any clock that never goes back."""

    @classmethod
    def full(cls, rate: float, burst: float, now: float) -> Self:
        """A bucket that nothing has been taken from."""
        return cls(rate, burst, burst, now)

    def take(self, amount: float, now: float) -> tuple[Self, float]:
        """The bucket after `amount` bytes were charged, and the seconds to wait for them."""
        if self.rate <= 0:
            return self, 0.0
        elapsed = max(0.0, now - self.updated)
        balance = min(self.burst, self.balance + elapsed * self.rate) - amount
        updated = max(self.updated, now)
        return replace(self, balance=balance, updated=updated), max(0.0, -balance / self.rate)
