"""A server that speaks a provider's wire format. It plays scripted answers and refuses requests of another form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import pytest
from aiohttp import web

KEYS = (
    *("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENROUTER_API_KEY", "AI_GATEWAY_API_KEY", "PORTKEY_API_KEY"),
    *("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_VERSION", "AZURE_OPENAI_DEPLOYMENT"),
    *(
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_BASE_URL",
        "GEMINI_API_KEY",
        "GOOGLE_GEMINI_BASE_URL",
        "GOOGLE_API_KEY",
    ),
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the keys and URLs of the environment that the tests run in."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


@dataclass(frozen=True)
class Sent:
    """A request as the server got it."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Headers by name in lower case."""
    body: Any
    raw: bytes = field(repr=False)


@dataclass(frozen=True)
class Status:
    """An answer with another status than 200."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Hang:
    """An answer that never comes."""


Answer = Mapping[str, Any] | Status | Hang | str
Check = Callable[[Sent], str | None]


class WireServer:
    """Plays its answers to POST requests in order, and repeats the last one. `check` gives the fault of a request, or None.
    A faulty request gets a 400 and is added to `faults`, which fails the test at the end."""

    def __init__(self, answers: Sequence[Answer], *, check: Check = lambda sent: None, listing: Any = None):
        self.answers = list(answers)
        self._check = check
        self._listing = listing
        self.requests: list[Sent] = []
        self.asked = asyncio.Event()
        self.listed: list[str] = []
        self.faults: list[str] = []
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def last(self) -> Any:
        """The body of the last request."""
        return self.requests[-1].body

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**28)
        app.router.add_route("POST", "/{path:.*}", self._post)
        app.router.add_route("GET", "/{path:.*}", self._get)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        assert self._runner.server is not None
        self._listener = await asyncio.get_running_loop().create_server(self._runner.server, "127.0.0.1", 0)
        self._port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()
        assert self._runner is not None
        await self._runner.cleanup()
        if exc is None:
            assert self.faults == []

    async def _post(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        sent = Sent(request.path, dict(request.query), headers, json.loads(raw), raw)
        self.requests.append(sent)
        self.asked.set()
        fault = self._check(sent)
        if fault is not None:
            self.faults.append(fault)
            return web.json_response({"error": {"message": f"the wire server says: {fault}"}}, status=400)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, Hang):
            await asyncio.Event().wait()
        if isinstance(answer, Status):
            text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
            return web.Response(
                status=answer.status, text=text, headers=answer.headers, content_type="application/json"
            )
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return web.Response(text=text, content_type="application/json")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.listed.append(request.path)
        listing = self._listing(request.path) if callable(self._listing) else self._listing
        return web.json_response(
            listing or {"error": {"message": "no such thing"}}, status=200 if listing else 404
        )
