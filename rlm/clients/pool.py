"""Connections to model servers: one pool per event loop and endpoint, shared by everything that runs there.

A pool lives as long as its loop. It holds a suspended async generator: `asyncio.run` and `asyncio.Runner` close those
(`loop.shutdown_asyncgens`) just before they close the loop, and that closes the connections in order. The pools of a
loop that was closed without it are dropped when the next pool is made; a forked child drops what it inherits at once.

This module imports aiohttp: the clients import it when the first of them is made.
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
"""Seconds for one TCP connect. Generous: the clock also runs while the loop is busy with something else."""

_KEEPALIVE = 15.0
_BODY_IN_ONE_PIECE = 2**20  # aiohttp streams what is larger, so that other tasks of the loop get their turn
_FILES_FOR_OTHERS = 256
_ASK_AGAIN_AFTER = 30.0

T = TypeVar("T")


class TransportError(Exception):
    """There was no HTTP answer."""

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
    """Names in any case find their value."""
    body: bytes


class Pool:
    """The connections of one event loop to one endpoint (scheme, host and port)."""

    def __init__(self, origin: URL) -> None:
        self.memo: dict[str, Any] = {}
        """What clients learned about this endpoint; goes away with the pool."""
        self._origin = origin
        self._proxy = _proxy_of(origin)
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=_connection_limit(), keepalive_timeout=_KEEPALIVE, socket_factory=self._make_socket
            ),
            # Clients with different keys share the pool: no cookie of one may reach another.
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )
        self._life = self._live()

    async def open(self) -> None:
        """Ties the pool to the end of the running loop. Does not yield to other tasks."""
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
        """Sends one request and reads the whole answer. Redirects are not followed.

        Args:
            timeout: seconds from now to the last byte, the wait for a free connection included.

        Raises:
            TransportError: no answer, for whatever reason. Nothing was retried.
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
        # Outside of the handler: aiohttp's own errors hold the request's headers, and the key must not travel on.
        raise error

    async def remembered(self, key: str, fetch: Callable[[], Coroutine[Any, Any, T | None]]) -> T | None:
        """What `fetch` returned, asked once even by many tasks at once. None is a failure, and asked for again after
        30 s. Never raises but for cancellation.

        Args:
            key: of `memo`; take it out to have it asked again.
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
        # Shielded: the one who asked first may be cancelled, and the others still wait.
        await asyncio.wait([task])
        return None if task.cancelled() or task.exception() else task.result()

    def abandon(self) -> None:
        """Gives the pool up without its loop, which is closed or belongs to another process. Closes this process'
        copies of the sockets; nothing is sent."""
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
    """Its end is the pool's business: a pool that is given up says nothing."""

    def __del__(self, _warnings: Any = None) -> None:
        pass


_pools: dict[tuple[asyncio.AbstractEventLoop, URL], Pool] = {}
_lock = threading.Lock()  # over the dict's changes: loops run in several threads
_inherited: list[Pool] = []
"""A forked child keeps what it inherited: the finalisers would write to descriptors that the parent uses."""


async def pool_for(origin: URL) -> Pool:
    """The pool of the running loop for an endpoint, made when it is first asked for.

    Args:
        origin: scheme, host and port (`URL.origin()`).
    """
    loop = asyncio.get_running_loop()
    pool = _pools.get((loop, origin))
    if pool is None:
        _sweep()
        pool = Pool(origin)
        await pool.open()
        with _lock:
            _pools[loop, origin] = pool
    return pool


def open_pools() -> int:
    """How many pools there are in this process, of all event loops."""
    return len(_pools)


def _forget(pool: Pool) -> None:
    with _lock:
        for key in [key for key, value in _pools.items() if value is pool]:
            del _pools[key]


def _sweep() -> None:
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
    """As many as the process may open, less what others need; 0 (no limit) where there is none. Above it a call waits
    for a free connection, which is better than "too many open files"."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (resource.RLIM_INFINITY, -1):
        return 0
    return max(64, soft - _FILES_FOR_OTHERS)


def _proxy_of(origin: URL) -> URL | None:
    """The HTTP proxy that the environment names for an endpoint (`https_proxy`, `no_proxy`, ...); never for this
    machine itself."""
    host = origin.host or ""
    if host in ("localhost", "::1") or host.startswith("127.") or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(origin.scheme) or proxies.get("all")
    if not proxy:
        return None
    url = URL(proxy if "://" in proxy else f"http://{proxy}")
    return url if url.scheme in ("http", "https") else None
