"""An OpenAI-compatible HTTP server over a policy."""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from rlm.testing.model import ScriptedModel, body_bytes, chat_completion, error
from rlm.testing.policy import ChatRequest, Fault, Policy

if TYPE_CHECKING:
    from aiohttp import web

OWNER = "rlm.testing: a scripted policy, no language model"

_MAX_BODY = 2**30
_BACKLOG = 4096

Handler = Callable[["web.Request"], Awaitable["web.StreamResponse"]]


ServerT = TypeVar("ServerT", bound="ModelServer")


class ModelServer:
    """Serves a policy under `base_url`: POST /chat/completions, GET /models; and GET /health beside it.

        async with ModelServer(policy) as server:
            client = OpenAIClient(server.model, base_url=server.base_url)

    From code without an event loop use `serve`. It answers as vLLM does: `max_tokens` and the window are kept, a prompt
    that is too long, an unknown model and a wrong key are refused in vLLM's words, and a request whose caller went
    away is cancelled. It never streams. Subclasses add endpoints by extending `routes`.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        models: Sequence[str] = ("scripted",),
        max_model_len: int | None = 131_072,
        latency: float = 0.0,
        api_key: str | None = None,
        record: bool = True,
    ) -> None:
        """
        Args:
            policy: answers the requests.
            host: address to listen on.
            port: 0: any free one; see `port`.
            models: the names under which the policy is served.
            max_model_len: the window in tokens (`rlm.testing.tokens`); None: no limit, and none is reported.
            latency: seconds that every reply takes.
            api_key: refuse requests without this bearer token.
            record: keep every request in `requests`.
        """
        if isinstance(models, str) or not models:
            raise ValueError("models must be a list of names")
        self._scripted = ScriptedModel(
            policy, models=tuple(models), max_model_len=max_model_len, latency=latency, record=record
        )
        self._host = host
        self._port = port
        self._api_key = api_key
        self._accepted = 0
        self._number = 0
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    @property
    def model(self) -> str:
        """The first of the names."""
        return self.models[0]

    @property
    def models(self) -> Sequence[str]:
        return self._scripted.models or ()

    @property
    def url(self) -> str:
        """http://host:port. Known once the server runs."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What clients take as base_url."""
        return f"{self.url}/v1"

    @property
    def port(self) -> int:
        """Raises RuntimeError if it is not known, because the server never ran."""
        if not self._port:
            raise RuntimeError("the server does not run yet")
        return self._port

    @property
    def requests(self) -> list[ChatRequest]:
        """The well-formed chat requests so far, in the order of arrival."""
        return self._scripted.requests

    @property
    def peak(self) -> int:
        """The most requests that were in flight at once."""
        return self._scripted.peak

    @property
    def connections(self) -> int:
        """How many TCP connections were accepted so far."""
        return self._accepted

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path and handler of every endpoint."""
        return [
            ("POST", "/v1/chat/completions", self._chat),
            ("GET", "/v1/models", self._models),
            ("GET", "/health", self._health),
        ]

    async def start(self) -> None:
        """Listens. Raises OSError if the port is taken."""
        from aiohttp import web

        app = web.Application(client_max_size=_MAX_BODY)
        for method, path, handler in self.routes():
            app.router.add_route(method, path, handler)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        await self._runner.setup()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._accept, self._host, self._port, backlog=_BACKLOG
            )
        except BaseException:
            await self._runner.cleanup()
            raise
        self._port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening and drops what is in flight. Idempotent."""
        listener, self._listener = self._listener, None
        runner, self._runner = self._runner, None
        if listener is not None:
            listener.close()
        if runner is not None:
            await runner.cleanup()
        if listener is not None:
            await listener.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def authorized(self, request: web.Request) -> bool:
        """Whether a request has the key, if there is one."""
        if self._api_key is None:
            return True
        given = request.headers.get("Authorization", "").encode(errors="replace")
        return hmac.compare_digest(given, f"Bearer {self._api_key}".encode())

    def _accept(self) -> asyncio.Protocol:
        assert self._runner is not None
        assert self._runner.server is not None
        self._accepted += 1
        return self._runner.server()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        if not self.authorized(request):
            return web.json_response({"error": "Unauthorized"}, status=401)
        parsed = _parse(
            await request.read(), {name.lower(): value for name, value in request.headers.items()}
        )
        answer = await self._scripted.answer(parsed) if isinstance(parsed, ChatRequest) else parsed
        if isinstance(answer, Fault):
            return await send_fault(request, answer)
        assert isinstance(parsed, ChatRequest)
        self._number += 1
        body = json.dumps(chat_completion(answer, parsed.model, self._number)).encode()
        return web.Response(body=body, content_type="application/json")

    async def _models(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        if not self.authorized(request):
            return web.json_response({"error": "Unauthorized"}, status=401)
        entries = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": OWNER,
                "root": name,
                "parent": None,
                "max_model_len": self._scripted.max_model_len,
            }
            for name in self.models
        ]
        return web.json_response({"object": "list", "data": entries})

    async def _health(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        return web.json_response({"status": "ok", "server": OWNER})


@contextmanager
def serve(policy: Policy, **options: Any) -> Iterator[ModelServer]:
    """Runs a `ModelServer` on an event loop of its own, in a background thread, for the time of a `with` block.

    Args:
        options: those of `ModelServer`.
    """
    with in_background(ModelServer(policy, **options)) as server:
        yield server


@contextmanager
def in_background(server: ServerT) -> Iterator[ServerT]:
    """Runs a server that was not started, of any subclass, as `serve` does."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        try:
            await server.start()
        except BaseException as exc:
            started.set_exception(exc)
            return
        started.set_result((asyncio.get_running_loop(), stop))
        try:
            await stop.wait()
        finally:
            await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="rlm.testing.serve", daemon=True)
    thread.start()
    try:
        loop, stop = started.result()
    except BaseException:
        thread.join()
        raise
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def _parse(body: bytes, headers: dict[str, str]) -> ChatRequest | Fault:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as exc:
        return error(400, f"the body is no JSON: {exc}", "BadRequestError")
    if not isinstance(data, dict):
        return error(400, "the body must be a JSON object", "BadRequestError")
    messages, model = data.pop("messages", None), data.pop("model", None)
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        return error(400, "messages must be a list of at least one object", "BadRequestError", "messages")
    if not isinstance(model, str):
        return error(400, "model must be a string", "BadRequestError", "model")
    if data.get("stream"):
        return error(400, "a scripted model does not stream", "BadRequestError", "stream")
    if data.get("n") not in (None, 1):
        return error(400, "n must be 1", "BadRequestError", "n")
    headers.pop("authorization", None)
    return ChatRequest(messages, model, data, headers)


async def send_fault(request: web.Request, fault: Fault) -> web.StreamResponse:
    """The response that a fault amounts to; drops the connection if it says so."""
    from aiohttp import web

    body = body_bytes(fault)
    headers = {"Content-Type": "application/json", **fault.headers}
    if fault.drop is None:
        return web.Response(status=fault.status, body=body, headers=headers)
    response = web.StreamResponse(status=fault.status, headers={**headers, "Content-Length": str(len(body))})
    if fault.drop == "during":
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
