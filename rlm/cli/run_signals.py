"""Signals while `rlm run` waits for an answer."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from rlm.cancellation import CancelToken
from rlm.cli.status import ExitCode

_CODES = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}


class RunSignals:
    """Turns the first SIGINT or SIGTERM into a cancelled run, which keeps its best answer. A second one ends the process."""

    def __init__(self) -> None:
        self.exit_code: ExitCode | None = None
        """Exit code for the signal that arrived; None: no signal arrived."""

    @contextlib.contextmanager
    def cancelling(self, token: CancelToken) -> Iterator[None]:
        """Lets signals cancel the token while the block runs. Needs a running event loop."""
        from asyncio import get_running_loop

        loop = get_running_loop()

        def cancel(number: signal.Signals) -> None:
            self.exit_code = _CODES[number]
            loop.remove_signal_handler(number)
            token.cancel()

        for number in _CODES:
            loop.add_signal_handler(number, cancel, number)
        try:
            yield
        finally:
            for number in _CODES:
                loop.remove_signal_handler(number)
