"""When to send a request again, and after how long. No clock is read and no one sleeps here but through the policy."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["RetryPolicy"]


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter, bounded in number and in total time.

    Args:
        max_retries: further attempts after the first; 0 switches retries off.
        max_elapsed_s: no attempt starts later than this after the first one began.
        initial_delay_s: the first wait before jitter; it doubles up to `max_delay_s`.
        jitter: a number in [0, 1).
        clock: seconds, monotonic.
    """

    max_retries: int = 4
    max_elapsed_s: float = 60.0
    initial_delay_s: float = 0.25
    max_delay_s: float = 8.0
    jitter: Callable[[], float] = field(default=random.random, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def delay_s(self, num_retries: int, elapsed_s: float, retry_after_s: float | None = None) -> float | None:
        """Seconds to wait before the next attempt; None = give up.

        The wait is half to all of `initial_delay_s * 2**num_retries`, and never less than what the server asked for.
        """
        if num_retries >= self.max_retries:
            return None
        doubled_s = self.initial_delay_s * 2 ** min(num_retries, 64)  # an int beyond 2**1023 is no float
        backoff_s = min(doubled_s, self.max_delay_s) * (0.5 + 0.5 * self.jitter())
        if retry_after_s is not None:  # a little later than asked, so that those who were refused together spread out
            backoff_s = max(backoff_s, retry_after_s + self.initial_delay_s * self.jitter())
        return backoff_s if elapsed_s + backoff_s <= self.max_elapsed_s else None
