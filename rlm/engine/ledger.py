"""The ledger of a call tree: what its calls used, and what they may still use."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from rlm.clients.prices import Price
from rlm.errors import (
    BudgetExceededError,
    ConfigError,
    RLMError,
    TimeoutExceededError,
    TokenLimitExceededError,
)
from rlm.types import Usage, UsageSummary

_FREE = Price(0.0, 0.0)

_FIRST_GUESS = 500
"""Output tokens that a call is expected to use while there is no average yet."""


@dataclass(slots=True)
class _Claim:
    """What a call in flight may use."""

    tokens: int
    cost: float
    cap: int | None
    """Output tokens that the call may use; None: no limit."""


class Ledger:
    """Books every model call of a run and of all runs below it, and stops them when a limit is reached.

    A limit is reached when its timer fires, or when a reply that crosses it is booked. From then on `check` raises, and all
    blocks in `guard` and `interruptible` are stopped at once.

    Each call claims its share before it is sent. What is spent, the claims of the calls in flight, and the new claim must
    together fit in the limits; otherwise the call waits until others have ended. The rest becomes the cap on the call's
    output. A claim is the prompt and the output that the sampling arguments allow. If they set no limit, the claim is the
    prompt and twice the average output so far. Calls in flight may then write more than they claimed, so a batch can
    overshoot the limit.
    """

    def __init__(
        self,
        *,
        max_timeout: float | None = None,
        max_tokens: int | None = None,
        max_budget: float | None = None,
        max_subcalls: int | None = None,
    ) -> None:
        """
        Args:
            max_timeout: seconds of wall-clock time from `start`; None, here and below: no limit.
            max_tokens: input and output tokens of all calls together.
            max_budget: USD of all calls together.
            max_subcalls: prompts that the code may send to sub-models and child runs.
        """
        self._max_timeout = max_timeout
        self._max_tokens = max_tokens
        self._max_budget = max_budget
        self._max_subcalls = max_subcalls
        self._stoppers: dict[int, Callable[[RLMError], None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._started = time.monotonic()
        self._claimed_tokens = 0
        self._claimed_cost = 0.0
        self._in_flight = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self.error: RLMError | None = None
        """The error that ended the tree: the first limit that was reached, or the endpoint's end of the rollout."""
        self.on_trip: Callable[[RLMError], None] | None = None
        """Called once, with `error`."""
        self.summary = UsageSummary()
        self.root = Usage()
        self.sub = Usage()
        self.cost = 0.0
        """USD of the calls whose cost is known."""
        self.subcalls = 0
        self.subcall_failures = 0
        self.bounded = max_tokens is not None or max_budget is not None
        """Whether calls must be claimed."""

    @property
    def elapsed(self) -> float:
        """Seconds since `start`."""
        return time.monotonic() - self._started

    @property
    def total_tokens(self) -> int:
        return self.root.total_tokens + self.sub.total_tokens

    def start(self) -> None:
        """Starts the clock of `max_timeout`. Call it on the event loop of the run."""
        self._started = time.monotonic()
        if self._max_timeout is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._max_timeout, self._out_of_time)

    def stop(self) -> None:
        """Stops the clock and drops the error, whose traceback refers to everything that the run held."""
        self.error = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def book(self, model: str, usage: Usage, *, root: bool) -> None:
        """Counts one model call, under the name of the model that served it. With `max_budget`, a call of unknown cost ends the
        run."""
        self.summary.add(model, usage)
        if root:
            self.root += usage
        else:
            self.sub += usage
        self.cost += usage.cost or 0.0
        if self._max_tokens is not None and self.total_tokens >= self._max_tokens:
            self.trip(TokenLimitExceededError(self.total_tokens, self._max_tokens))
        if self._max_budget is not None and self.cost >= self._max_budget:
            self.trip(BudgetExceededError(self.cost, self._max_budget))
        if self._max_budget is not None and usage.cost is None:
            self.trip(
                ConfigError(
                    f"max_budget cannot be kept: a reply of {model!r} did not report its cost, and its price is unknown. Give "
                    f"prices={{{model!r}: {{'input': ..., 'output': ...}}}} in USD per million tokens"
                )
            )

    def count_subcall(self) -> bool:
        """Counts one sub-call. Returns False, and counts nothing, if `max_subcalls` are used up."""
        if self._max_subcalls is not None and self.subcalls >= self._max_subcalls:
            return False
        self.subcalls += 1
        return True

    @contextlib.asynccontextmanager
    async def claim(
        self, prompt_tokens: int, price: Price | None, cap: int | None
    ) -> AsyncIterator[int | None]:
        """Claims the share of a call while the block runs. The block makes the call and books it.

        Args:
            prompt_tokens: estimated tokens of the prompt.
            price: price of the model; None: unknown.
            cap: the most output tokens that the sampling arguments allow; None: they set no limit.

        Yields:
            The most output tokens that the call may use; None: no limit.

        Raises:
            LimitError: the prompt needs more than the limits leave. Only this call is refused.
            RLMError: a limit has been reached.
        """
        while (claim := self._try_claim(prompt_tokens, price or _FREE, cap)) is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        self._claimed_tokens += claim.tokens
        self._claimed_cost += claim.cost
        self._in_flight += 1
        try:
            yield claim.cap
        finally:
            self._claimed_tokens -= claim.tokens
            self._claimed_cost -= claim.cost
            self._in_flight -= 1
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _try_claim(self, prompt_tokens: int, price: Price, cap: int | None) -> _Claim | None:
        """The claim of a call; None while other calls must end first."""
        self.check()
        expected = self._expected_output() if cap is None else cap
        room = cap
        if self._max_tokens is not None:
            left = self._max_tokens - self.total_tokens - self._claimed_tokens - prompt_tokens
            if left < expected and self._in_flight:
                return None
            if left < 1:
                raise TokenLimitExceededError(self.total_tokens, self._max_tokens, needed=prompt_tokens)
            room = left if room is None else min(room, left)
        prompt_cost, rate = price.bound(prompt_tokens)
        if self._max_budget is not None:
            money = self._max_budget - self.cost - self._claimed_cost - prompt_cost
            if money < expected * rate and self._in_flight:
                return None
            if money < rate:
                raise BudgetExceededError(self.cost, self._max_budget, needed=prompt_cost)
            if rate > 0:
                affordable = int(money / rate)
                room = affordable if room is None else min(room, affordable)
        output = expected if room is None else min(expected, room)
        return _Claim(prompt_tokens + output, prompt_cost + output * rate, room)

    def _expected_output(self) -> int:
        calls = self.summary.total_calls
        return 2 * (self.root + self.sub).output_tokens // calls + 1 if calls else _FIRST_GUESS

    def check(self) -> None:
        """Does nothing while no limit has been reached.

        Raises:
            RLMError: the error that ended the tree.
        """
        if self.error is not None:
            raise self.error

    def trip(self, error: RLMError) -> None:
        """Ends the tree: stops all guarded and interruptible blocks, and lets no new one start."""
        if self.error is not None:
            return
        self.error = error
        for stop in list(self._stoppers.values()):
            stop(error)
        if self.on_trip is not None:
            self.on_trip(error)

    @contextlib.contextmanager
    def interruptible(self, stop: Callable[[RLMError], None]) -> Iterator[None]:
        """Calls `stop` if the tree ends while the block runs, or at once if it has ended already."""
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
        """Cancels the block if the tree ends while it runs.

        Raises:
            RLMError: the error that ended the tree, in place of the cancellation.
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
