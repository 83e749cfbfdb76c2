"""Connections to model servers: one pool for each event loop and endpoint, shared by all clients there.

A pool lives as long as its loop. It holds a suspended async generator: `asyncio.run` and `asyncio.Runner` close async
generators (`loop.shutdown_asyncgens`) just before they close the loop, and closing the generator closes the connections.
If a loop was closed without that, its pools are dropped when the next pool is made. A forked child drops inherited pools
at once.

This module imports aiohttp. The first client of a process imports it.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import threading
import urllib.request
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, TypeVar

import aiohttp
from yarl import URL

CONNECT_TIMEOUT = 60.0
"""Seconds for one TCP connect. It is long because the clock also runs while other tasks keep the loop busy."""

_KEEPALIVE = 15.0
_BODY_IN_ONE_PIECE = 2**20
"""Bytes. aiohttp streams larger bodies, so that other tasks of the loop run meanwhile."""
_FILES_FOR_OTHERS = 256
_ASK_AGAIN_AFTER = 30.0

T = TypeVar("T")


class TransportError(Exception):
    """A request got no HTTP answer."""

    def __init__(
        self, kind: Literal["timeout", "connect", "dropped", "tls", "garbage"], message: str
    ) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP answer of any status."""

    status: int
    headers: Mapping[str, str]
    """Headers by name; the case of names does not matter."""
    body: bytes


class Pool:
    """The connections of one event loop to one endpoint (scheme, host and port)."""

    def __init__(self, origin: URL) -> None:
        self.memo: dict[str, Any] = {}
        """What clients have learned about this endpoint."""
        self._origin = origin
        self._proxy = _proxy_of(origin)
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=_connection_limit(), keepalive_timeout=_KEEPALIVE, socket_factory=self._make_socket
            ),
            # No cookies: clients with different keys share the pool, and a cookie of one must not be sent for another.
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )
        self._life = self._live()

    async def open(self) -> None:
        """Lets the end of the running loop close the pool. Does not yield to other tasks."""
        await anext(self._life)

    async def _live(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            _forget(self)
            await self._session.close()

    async def request(
        self, method: str, url: URL, *, headers: Mapping[str, str], body: bytes | None = None, timeout: float
    ) -> Response:
        """Sends one request and reads the whole answer. Does not follow redirects, and does not retry.

        Args:
            timeout: seconds from now to the last byte of the answer. They include the wait for a free connection.

        Raises:
            TransportError: there was no HTTP answer.
        """
        data = BytesIO(body) if body is not None and len(body) > _BODY_IN_ONE_PIECE else body
        try:
            async with self._session.request(
                method,
                url,
                data=data,
                headers=headers,
                proxy=self._proxy,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT),
            ) as response:
                return Response(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, OSError) as exc:
            error = _explain(exc, timeout)
        # Raised outside of the handler: aiohttp's errors hold the headers of the request, and with them the key, which must not
        # become part of this error.
        raise error

    async def remembered(self, key: str, fetch: Callable[[], Coroutine[Any, Any, T | None]]) -> T | None:
        """What `fetch` returns, remembered in `memo`. Concurrent tasks share one call of `fetch`. Raises nothing but
        cancellation.

        Args:
            key: key in `memo`. After it is removed, `fetch` is called again.
            fetch: gets the value. None or an exception is a failure; after 30 s it is called again.
        """
        loop = asyncio.get_running_loop()
        known: tuple[asyncio.Task[T | None], float] | None = self.memo.get(key)
        if known is not None:
            task, asked_at = known
            failed = task.done() and (task.cancelled() or task.exception() or task.result() is None)
            if failed and loop.time() - asked_at > _ASK_AGAIN_AFTER:
                known = None
        if known is None:
            task = loop.create_task(fetch())
            self.memo[key] = (task, loop.time())
        # `wait` leaves the task running if the caller is cancelled: other callers may wait for it.
        await asyncio.wait([task])
        return None if task.cancelled() or task.exception() else task.result()

    def abandon(self) -> None:
        """Drops the pool of a loop that is closed or belongs to another process. Closes the sockets of this process, and sends
        nothing over them."""
        self._session.detach()
        for sock in list(self._sockets):
            sock.close()

    def _make_socket(self, addr: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        sock = socket.socket(addr[0], addr[1], addr[2])
        self._sockets.add(sock)
        return sock


def _explain(exc: aiohttp.ClientError | OSError, timeout: float) -> TransportError:
    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return TransportError("timeout", f"no connection within {min(timeout, CONNECT_TIMEOUT):g} s")
    if isinstance(exc, TimeoutError):
        return TransportError("timeout", f"no answer within {timeout:g} s")
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return TransportError("connect", f"the proxy answered {exc.status}")
    if isinstance(exc, aiohttp.ClientResponseError):
        return TransportError("garbage", f"the answer is not HTTP: {exc.message}")
    if isinstance(exc, aiohttp.ClientSSLError):
        return TransportError("tls", f"no TLS connection: {exc}")
    if isinstance(exc, aiohttp.ClientConnectorError):
        return TransportError("connect", f"no connection: {exc.strerror or exc}")
    return TransportError("dropped", f"the connection was lost: {str(exc) or type(exc).__name__}")


class _Connector(aiohttp.TCPConnector):
    """A connector that does not warn when a dropped pool leaves it unclosed."""

    def __del__(self, _warnings: Any = None) -> None:
        pass


_pools: dict[tuple[asyncio.AbstractEventLoop, URL], Pool] = {}
_lock = threading.Lock()  # guards changes of `_pools`, because loops run in several threads
_inherited: list[Pool] = []
"""Inherited pools that a forked child keeps alive: their finalisers would write to descriptors that the parent uses."""


async def pool_for(origin: URL) -> Pool:
    """The pool of the running loop for an endpoint. It is made on first use.

    Args:
        origin: scheme, host and port of the endpoint (`URL.origin()`).
    """
    loop = asyncio.get_running_loop()
    pool = _pools.get((loop, origin))
    if pool is None:
        _drop_pools_of_closed_loops()
        pool = Pool(origin)
        await pool.open()
        with _lock:
            _pools[loop, origin] = pool
    return pool


def open_pools() -> int:
    """The number of pools of all event loops in this process."""
    return len(_pools)


def _forget(pool: Pool) -> None:
    with _lock:
        for key in [key for key, value in _pools.items() if value is pool]:
            del _pools[key]


def _drop_pools_of_closed_loops() -> None:
    """Drops the pools of loops that were closed without `shutdown_asyncgens`."""
    with _lock:
        dead = [_pools.pop(key) for key in list(_pools) if key[0].is_closed()]
    for pool in dead:
        pool.abandon()


def _after_fork() -> None:
    global _pools, _lock
    for pool in _pools.values():
        pool.abandon()
        _inherited.append(pool)
    _pools = {}
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _connection_limit() -> int:
    """The most connections of a pool: the limit of open files of this process less `_FILES_FOR_OTHERS`, or 0 for no limit. A
    call beyond the limit waits for a free connection, in place of an error "too many open files"."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (resource.RLIM_INFINITY, -1):
        return 0
    return max(64, soft - _FILES_FOR_OTHERS)


def _proxy_of(origin: URL) -> URL | None:
    """The HTTP proxy that the environment names for an endpoint (`https_proxy`, `no_proxy`, ...); None for an endpoint on this
    machine."""
    host = origin.host or ""
    if host in ("localhost", "::1") or host.startswith("127.") or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(origin.scheme) or proxies.get("all")
    if not proxy:
        return None
    url = URL(proxy if "://" in proxy else f"http://{proxy}")
    return url if url.scheme in ("http", "https") else None
