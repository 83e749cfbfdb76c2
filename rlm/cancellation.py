"""`CancelToken`: cancels completions from anywhere."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class CancelToken:
    """Cancels the completions that it is given to.

        token = CancelToken()
        threading.Timer(60, token.cancel).start()
        rlm.completion(text, question, cancel=token)

    A cancelled completion stops its cells and model calls at once. It raises `CancellationError`, with the best answer so far,
    usage and trajectory. If the code had set its answer ready before, the answer is returned instead.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._actions: list[Callable[[], None]] = []
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` has been called."""
        return self._cancelled

    def cancel(self) -> None:
        """Cancels the completions. Call it from any thread, signal handler or event loop; further calls do nothing."""
        with self._lock:
            if self._cancelled:
                return
            self._cancelled = True
            actions = list(self._actions)
        for action in actions:
            action()

    @contextlib.contextmanager
    def calling(self, action: Callable[[], None]) -> Iterator[None]:
        """Calls `action` if the token is cancelled while the block runs, in the thread that cancels it. If the token is
        cancelled already, `action` is called at once."""
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
