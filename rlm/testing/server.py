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
    """Serves a policy at `base_url` with POST /chat/completions and GET /models, and at `url` with GET /health.

        async with ModelServer(policy) as server:
            client = OpenAIClient(server.model, base_url=server.base_url)

    Code without an event loop uses `serve`. The server answers as vLLM does: it enforces `max_tokens` and the window, refuses
    prompts that are too long, unknown models and wrong keys in vLLM's words, and cancels a request whose caller has
    disconnected. It never streams. Subclasses extend `routes` to add endpoints.
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
            port: port to listen on. 0: a free one, which the property `port` gives.
            models: names under which the policy is served.
            max_model_len: window in tokens (`rlm.testing.tokens`). None: no limit, and `/models` reports none.
            latency: seconds before every reply.
            api_key: bearer token without which requests are refused. None: every request is served.
            record: keep every request in `requests`.

        Raises:
            TypeError, ValueError: an argument does not fit.
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
        """The first of `models`."""
        return self.models[0]

    @property
    def models(self) -> Sequence[str]:
        """The names under which the policy is served."""
        return self._scripted.models or ()

    @property
    def url(self) -> str:
        """http://host:port. Raises RuntimeError as `port` does."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """The `base_url` for clients. Raises RuntimeError as `port` does."""
        return f"{self.url}/v1"

    @property
    def port(self) -> int:
        """The port that the server listens on.

        Raises:
            RuntimeError: the server has no port yet, because it was never started.
        """
        if not self._port:
            raise RuntimeError("the server has no port yet: start it first")
        return self._port

    @property
    def requests(self) -> list[ChatRequest]:
        """The well-formed chat requests so far, in the order of arrival. Empty without `record`."""
        return self._scripted.requests

    @property
    def peak(self) -> int:
        """The largest number of requests that were in flight at the same time."""
        return self._scripted.peak

    @property
    def connections(self) -> int:
        """The number of TCP connections accepted so far."""
        return self._accepted

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path and handler of every endpoint."""
        return [
            ("POST", "/v1/chat/completions", self._chat),
            ("GET", "/v1/models", self._models),
            ("GET", "/health", self._health),
        ]

    async def start(self) -> None:
        """Starts listening.

        Raises:
            OSError: the port is taken.
        """
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
        """Stops listening, and drops requests in flight. A second call does nothing."""
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
        """Whether a request has the right key, or the server needs none."""
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
    """Runs a `ModelServer` during a `with` block, on its own event loop in a background thread.

    Args:
        policy: answers the requests.
        options: keyword arguments of `ModelServer`.
    """
    with in_background(ModelServer(policy, **options)) as server:
        yield server


@contextmanager
def in_background(server: ServerT) -> Iterator[ServerT]:
    """Runs a server during a `with` block, as `serve` does.

    Args:
        server: a server, also of a subclass, that is not running.
    """
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
        return error(400, f"the body is not JSON: {exc}", "BadRequestError")
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
    """Sends a fault as the response to a request, or drops the connection if the fault says so."""
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
