"""Interrupts in a worker: they stop the code of a cell, and nothing else. `protocol.kinds` draws the whole sequence."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .channel import Channel


class Interrupts:
    """The interrupts of a worker: SIGINT becomes a KeyboardInterrupt in the code of a cell, at most twice in a cell.

    Args:
        channel: the stream to the host. While it is `guarded`, it raises the KeyboardInterrupt itself, after the guarded part.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._armed = False
        """Whether code of the user runs."""
        self._strikes = 0
        """KeyboardInterrupts that the cell has had."""

    def reset(self) -> None:
        """Called when a new cell begins."""
        self._strikes = 0
        self._channel.raised = False

    def guard(self, action: Callable[[], None]) -> bool:
        """Runs code of the user, which an interrupt may end. Returns whether it ran to its end."""
        try:
            try:
                self._channel.deferred = False
                self._channel.guarded = False
                self._armed = True
                action()
            finally:
                self._armed = False
                self._channel.guarded = True
        except KeyboardInterrupt:
            # Again: the interrupt may have come at the first line of `finally`.
            self._armed = False
            self._channel.guarded = True
            return False
        return True

    def on_signal(self, *_: object) -> None:
        """Handles SIGINT. The supervisor sends it at most twice in a cell; the code may send it too."""
        if not self._armed or self._strikes >= 2:
            return
        if self._strikes == 0 and self._channel.raised:
            self._strikes = 1  # `ToWorker.VOID` came before SIGINT, and a query raised KeyboardInterrupt
            return
        if self._channel.guarded:
            self._channel.deferred = True
            return
        self._strikes += 1
        self._channel.guarded, self._channel.waiting = self._channel.waiting, False
        raise KeyboardInterrupt
