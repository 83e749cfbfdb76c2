"""What cancels a completion: a token, from anywhere; Ctrl-C in a notebook."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class CancelToken:
    """Cancels the completions that it was given to.

        token = CancelToken()
        threading.Timer(60, token.cancel).start()
        rlm.completion(text, question, cancel=token)

    A cancelled completion stops its cells and model calls at once. It raises `CancellationError`, which has the best answer so
    far, usage and trajectory; an answer that had been found is returned.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._actions: list[Callable[[], None]] = []
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Cancels. From any thread, a signal handler, or an event loop; further calls do nothing."""
        with self._lock:
            if self._cancelled:
                return
            self._cancelled = True
            actions = list(self._actions)
        for action in actions:
            action()

    @contextlib.contextmanager
    def calling(self, action: Callable[[], None]) -> Iterator[None]:
        """While the block runs, `action` is called when the token is cancelled, in the thread that does it; at once if it
        has been."""
        with self._lock:
            self._actions.append(action)
            cancelled = self._cancelled
        try:
            if cancelled:
                action()
            yield
        finally:
            with self._lock:
                self._actions.remove(action)
