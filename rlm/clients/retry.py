"""Retries of a call."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

from rlm._checks import is_number
from rlm.clients.base import ModelReply
from rlm.clients.failures import Failure
from rlm.errors import ConfigError

_LONGEST_BACKOFF = 30.0
_RETRY_WINDOW = 120.0


class Retry:
    """Repeats an attempt until it gives a reply, fails for good, or `max_retries` are used up.

    Between attempts it waits as long as the server asks. If the server does not ask, it waits `retry_delay` seconds, doubled
    after each attempt up to 30 s, with jitter. No attempt starts later than max(120 s, 2 * `timeout`) after the call began.
    """

    def __init__(self, *, timeout: float, max_retries: int, retry_delay: float) -> None:
        """
        Args:
            timeout: seconds for one attempt. The attempt itself enforces them.
            max_retries: attempts after the first.
            retry_delay: seconds before the first retry, at most.

        Raises:
            ConfigError: an argument does not fit.
        """
        if not is_number(timeout) or timeout <= 0:
            raise ConfigError(f"timeout must be a positive number of seconds, not {timeout!r}")
        if type(max_retries) is not int or max_retries < 0:
            raise ConfigError(f"max_retries must be 0 or more, not {max_retries!r}")
        if not is_number(retry_delay) or retry_delay < 0:
            raise ConfigError(f"retry_delay must be a number of seconds, not {retry_delay!r}")
        self.timeout = float(timeout)
        self._max_retries = max_retries
        self._delay = float(retry_delay)

    async def run(
        self,
        attempt: Callable[[int], Awaitable[ModelReply | Failure]],
        report: Callable[[int, float, Failure], None],
    ) -> tuple[ModelReply | Failure, int]:
        """Returns the reply, or the failure of the last attempt, and the number of attempts.

        Args:
            attempt: makes one attempt. Gets the number of attempts that failed before it.
            report: called before each retry. Gets the number of the next attempt (from 2), the seconds until it starts,
                and the failure before it.
        """
        clock = asyncio.get_running_loop().time
        last_start = clock() + max(_RETRY_WINDOW, 2 * self.timeout)
        failed = 0
        while True:
            outcome = await attempt(failed)
            if isinstance(outcome, ModelReply):
                return outcome, failed + 1
            wait = self._wait(failed, outcome.wait)
            if not outcome.retry or failed >= self._max_retries:
                return outcome, failed + 1
            if clock() + wait > last_start:
                return _with_wait(outcome), failed + 1
            failed += 1
            report(failed + 1, wait, outcome)
            await asyncio.sleep(wait)

    def _wait(self, failed: int, asked: float | None) -> float:
        """Seconds until the next attempt. Jitter: calls that failed at the same time do not retry at the same time."""
        if asked is not None:
            return asked * random.uniform(1.0, 1.1)
        return min(self._delay * 2.0 ** min(failed, 60), _LONGEST_BACKOFF) * random.uniform(0.5, 1.0)


def _with_wait(failure: Failure) -> Failure:
    """The failure, with a message that says that the server asks for a longer wait than a call may take."""
    if failure.wait is None:
        return failure
    error = failure.error
    text = f"{error}; the server asks to wait {failure.wait:,.0f} s, which is longer than a call is retried"
    return replace(failure, error=type(error)(text, status=error.status))
