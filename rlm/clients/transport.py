"""An httpx transport for vendors' SDKs that sends their requests over our connection pools.

With it an SDK's client is bound to no event loop and needs no closing, its calls share the connections of their loop, and
`rlm.clients.failures` interprets its errors as it does for all clients.

This module imports httpx2, which the SDKs depend on. The first SDK client of a process imports it.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

import httpx2
from yarl import URL

from rlm.clients.failures import Failure, failure_of, failure_without_answer
from rlm.clients.pool import TransportError, pool_for

# Headers of the connection, which the pool sets itself.
_OURS = {"accept-encoding", "connection", "content-length", "host", "transfer-encoding"}
_THEIRS = {"connection", "content-encoding", "content-length", "transfer-encoding"}


@dataclass(slots=True)
class Exchange:
    """One request of an SDK and its outcome, as the transport saw them."""

    request_bytes: int = 0
    answered: bool = False
    """Whether the server answered with a 2xx."""
    failure: Failure | None = None
    cause: TransportError | None = None


exchange: ContextVar[Exchange] = ContextVar("exchange")
"""The exchange in which the transport notes the outcome. Set it before every call of an SDK."""


class NoReply(Exception):  # noqa: N818 - never raised to users: `Exchange.failure` has the error
    """Raised to leave the SDK when the server's answer was not a 2xx, or there was none."""


class PoolTransport(httpx2.AsyncBaseTransport):
    """Sends requests over the pools of the running loop. Does not stream, and does not follow redirects."""

    def __init__(self, timeout: float) -> None:
        """
        Args:
            timeout: seconds for a request. They replace the SDK's own timeout.
        """
        self._timeout = timeout

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        noted = exchange.get()
        url = URL(str(request.url), encoded=True)
        body = await request.aread()
        noted.request_bytes = len(body)
        headers = {name: value for name, value in request.headers.items() if name not in _OURS}
        pool = await pool_for(url.origin())
        try:
            response = await pool.request(
                request.method, url, headers=headers, body=body or None, timeout=self._timeout
            )
        except TransportError as exc:
            noted.cause, noted.failure = exc, failure_without_answer(exc)
            raise NoReply from None
        if not 200 <= response.status < 300:
            noted.failure = failure_of(response.status, response.headers, response.body)
            raise NoReply
        noted.answered = True
        received = [(name, value) for name, value in response.headers.items() if name.lower() not in _THEIRS]
        return httpx2.Response(response.status, headers=received, content=response.body, request=request)
