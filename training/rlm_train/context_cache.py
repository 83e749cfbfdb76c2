"""The cache of contexts in a worker process."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from rlm.context import Context

if TYPE_CHECKING:
    from rlm_train.context_task import ContextTaskData

DEFAULT_CAPACITY = 2**30
"""Bytes."""


class ContextCache:
    """Makes contexts, once per example, and drops the least recently used ones.

    Safe to use from several event loops and threads. Rollouts of one example that start together wait for the same
    `Context`, which is made once.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        """
        Args:
            capacity: bytes of contexts that are kept for later rollouts. The newest context is always kept.
        """
        self.capacity = capacity
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Future[Context]] = OrderedDict()
        # Generators are Python code, so more threads do not make them faster. With the second thread a small context
        # need not wait for a large one.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="rlm-context")

    async def get(self, data: ContextTaskData) -> Context:
        """The context of a task.

        Raises:
            ContextMismatchError: the context that was made is not the one that the task describes.
            Exception: an error of `materialise`; the next call tries again.
        """
        # Shielded: the rollout that asks first may be cancelled while others wait for the context.
        return await asyncio.shield(asyncio.wrap_future(self._future(data)))

    def _future(self, data: ContextTaskData) -> Future[Context]:
        key = data.context_sha256
        with self._lock:
            future = self._entries.get(key)
            if future is None or (future.done() and future.exception() is not None):
                future = self._entries[key] = self._threads.submit(self._build, data)
            self._entries.move_to_end(key)
            return future

    def _build(self, data: ContextTaskData) -> Context:
        context = data.build_context()
        # Computed outside of the lock, because it may be slow and event loops wait for the lock.
        size = context.encoded_size
        with self._lock:
            self._evict(keep=data.context_sha256, size=size)
        return context

    def _evict(self, keep: str, size: int) -> None:
        """Drops old contexts until `size` more bytes fit. Running rollouts keep their contexts."""
        sizes = {
            key: future.result().encoded_size
            for key, future in self._entries.items()
            if key != keep and future.done() and future.exception() is None
        }
        total = size + sum(sizes.values())
        for key, freed in sizes.items():
            if total <= self.capacity:
                return
            del self._entries[key]
            total -= freed


_shared: ContextCache | None = None
_shared_lock = threading.Lock()


def shared_cache(capacity: int = DEFAULT_CAPACITY) -> ContextCache:
    """The cache of this process. verifiers makes a harness object for every rollout, and all of them share it.

    Args:
        capacity: bytes. The largest capacity of all calls holds.
    """
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = ContextCache(capacity)
        _shared.capacity = max(_shared.capacity, capacity)
        return _shared
