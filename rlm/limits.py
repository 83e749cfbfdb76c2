"""One ledger for a whole call tree: what was used, and what may still be."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

from rlm.errors import RLMError, TimeoutExceededError, TokenLimitExceededError
from rlm.types import Usage, UsageSummary


class Ledger:
    """Books every model call of a run and of all that runs below it, and stops them when a limit is reached.

    A limit is noticed where it is crossed: by a timer, or when a reply is booked. From then on `check` raises, and
    everything that waits in `guard` or runs in `interruptible` is stopped at once.
    """

    def __init__(self, *, max_timeout: float | None = None, max_tokens: int | None = None) -> None:
        """
        Args:
            max_timeout: seconds of wall-clock time from `start`.
            max_tokens: input and output tokens of all calls together.
        """
        self._max_timeout = max_timeout
        self._max_tokens = max_tokens
        self._stoppers: dict[int, Callable[[RLMError], None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._started = time.monotonic()
        self.error: RLMError | None = None
        """What ended the tree: the limit that was reached first, or the endpoint's word that the rollout is over."""
        self.summary = UsageSummary()
        self.root = Usage()
        self.sub = Usage()
        self.subcalls = 0
        self.subcall_failures = 0

    @property
    def elapsed(self) -> float:
        """Seconds since `start`."""
        return time.monotonic() - self._started

    @property
    def total_tokens(self) -> int:
        return self.root.total_tokens + self.sub.total_tokens

    def start(self) -> None:
        """Starts the clock. Call it on the event loop that the run uses."""
        self._started = time.monotonic()
        if self._max_timeout is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._max_timeout, self._out_of_time)

    def stop(self) -> None:
        """Ends the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def book(self, model: str, usage: Usage, *, root: bool) -> None:
        """Counts one model call, under the name of the model that served it."""
        self.summary.add(model, usage)
        if root:
            self.root += usage
        else:
            self.sub += usage
        if self._max_tokens is not None and self.total_tokens >= self._max_tokens:
            self.trip(TokenLimitExceededError(self.total_tokens, self._max_tokens))

    def check(self) -> None:
        """
        Raises:
            RLMError: the limit that has been reached.
        """
        if self.error is not None:
            raise self.error

    def trip(self, error: RLMError) -> None:
        """Ends the run: stops what runs, and lets nothing new begin."""
        if self.error is not None:
            return
        self.error = error
        for stop in list(self._stoppers.values()):
            stop(error)

    @contextlib.contextmanager
    def interruptible(self, stop: Callable[[RLMError], None]) -> Iterator[None]:
        """While the block runs, `stop` is called when a limit is reached; at once if one has been."""
        key = id(stop)
        self._stoppers[key] = stop
        try:
            if self.error is not None:
                stop(self.error)
            yield
        finally:
            del self._stoppers[key]

    @contextlib.asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Cancels the block when a limit is reached.

        Raises:
            RLMError: the limit, in place of the cancellation.
        """
        self.check()
        loop = asyncio.get_running_loop()
        scope = asyncio.timeout(None)

        def expire(_: RLMError) -> None:
            scope.reschedule(loop.time())

        try:
            async with scope:
                with self.interruptible(expire):
                    yield
        except TimeoutError:
            if scope.expired() and self.error is not None:
                raise self.error from None
            raise

    def _out_of_time(self) -> None:
        assert self._max_timeout is not None
        self.trip(TimeoutExceededError(self.elapsed, self._max_timeout))
