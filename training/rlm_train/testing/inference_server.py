"""A server of scripted models with the endpoints of vLLM that training uses."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm.testing import ChatRequest, Fault, ModelServer, Policy
from rlm.testing.model import error, too_long, unknown_model
from rlm.testing.server import Handler, send_fault
from rlm_train.testing.chat_encoding import ChatEncoding, NotAChatError
from rlm_train.testing.samples import Generation

if TYPE_CHECKING:
    from aiohttp import web

_GENERATE_FIELDS = {"model", "token_ids", "sampling_params", "cache_salt", "priority"}
_SAMPLING_FIELDS = {
    *("temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "n", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "logprobs", "stop_token_ids", "skip_special_tokens"),
    # Fields that verifiers and prime-rl add.
    *("return_token_ids", "cache_salt", "routed_experts_prompt_start", "extra_args", "min_tokens"),
}


@dataclass(frozen=True, slots=True)
class ControlCall:
    """A call that controls the server and asks no model."""

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments from the query and the body."""


class InferenceServer(ModelServer):
    """A `ModelServer` that also reads and writes tokens, and whose weights can be replaced.

    Beside the endpoints of `ModelServer`: POST /inference/v1/generate, /pause, /resume, /update_weights and
    /load_lora_adapter, GET /metrics. A request with a field that vLLM or prime-rl's server does not know is refused with
    400, so that a test sees it. New weights raise `version`; the policy and its answers stay the same.

    Log-probabilities differ from token to token and from call to call. So a test can recognise a shifted sample, and tell
    from which of two equal calls a sample was made.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: Path | str,
        *,
        spell: bool = False,
        **options: Any,
    ) -> None:
        """
        Args:
            policy: scripted model that answers all requests, of messages and of tokens.
            tokenizer: folder of the tokenizer, for transformers to load. Prompts must come from a renderer of the Qwen3
                family.
            spell: write replies in tokens of one character, as a model may and a tokenizer never does. Then a sample that
                was tokenized again differs from one that kept its tokens.
            options: options of `ModelServer`. `max_model_len` counts the tokenizer's tokens in calls for tokens, and one
                token for four characters in chats.
        """
        super().__init__(policy, **options)
        self._format = ChatEncoding(tokenizer, spell)
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self.version = 0
        """Number of times that weights or an adapter were loaded."""
        self.calls: list[ControlCall] = []
        """Calls of the endpoints that control the server, in their order."""
        self.generations: list[Generation] = []
        """Answered calls for tokens, in the order of the answers; empty without `record`."""

    def routes(self) -> list[tuple[str, str, Handler]]:
        return [
            *super().routes(),
            ("POST", "/inference/v1/generate", self._generate),
            ("GET", "/metrics", self._metrics),
            ("POST", "/pause", self._pause),
            ("POST", "/resume", self._resume),
            ("POST", "/update_weights", self._update_weights),
            ("POST", "/load_lora_adapter", self._load_lora_adapter),
        ]

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        if not self.authorized(request):
            return web.json_response({"error": "Unauthorized"}, status=401)
        body = await _json(request)
        headers = {name.lower(): value for name, value in request.headers.items()}
        headers.pop("authorization", None)
        asked = self._parse(body, headers) if isinstance(body, dict) else body
        if isinstance(asked, Fault):
            return await send_fault(request, asked)
        await self._unpaused.wait()
        version = self.version
        reply = await self._scripted.ask(asked.chat)
        if isinstance(reply, Fault):
            return await send_fault(request, reply)
        window = self._scripted.max_model_len
        limits = [n for n in (asked.wanted, window and window - len(asked.prompt_ids)) if n is not None]
        ids, finish_reason = self._format.completion(reply, min(limits, default=None))
        number = self._number = self._number + 1
        logprobs = [_logprob(number, place, token) for place, token in enumerate(ids)]
        await self._unpaused.wait()  # vLLM keeps requests in flight, and resumes them
        if self._scripted.record:
            self.generations.append(
                Generation(
                    prompt_ids=tuple(asked.prompt_ids),
                    completion_ids=tuple(ids),
                    logprobs=tuple(logprobs),
                    model=asked.chat.model,
                    session=headers.get("x-session-id"),
                    cache_salt=asked.cache_salt,
                    versions=(version, self.version),
                    request=asked.chat,
                )
            )
        content = [
            {"token": f"token_id:{token}", "logprob": value}
            for token, value in zip(ids, logprobs, strict=True)
        ]
        choice = {
            "index": 0,
            "token_ids": ids,
            "finish_reason": finish_reason,
            "logprobs": {"content": content},
        }
        return web.json_response({"request_id": f"generate-{number}", "choices": [choice]})

    def _parse(self, body: dict[str, Any], headers: dict[str, str]) -> _Asked | Fault:
        """The parsed request, or the error for it."""
        model, ids, sampling = body.get("model"), body.get("token_ids"), body.get("sampling_params")
        if unknown := sorted(body.keys() - _GENERATE_FIELDS):
            return _bad(f"unknown fields: {', '.join(unknown)}")
        if not isinstance(model, str):
            return _bad("model must be a string")
        if model not in self.models:
            return unknown_model(model)
        if not isinstance(sampling, dict):
            return _bad("sampling_params must be an object")
        if unknown := sorted(sampling.keys() - _SAMPLING_FIELDS):
            return _bad(f"unknown sampling parameters: {', '.join(unknown)}")
        if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
            return _bad("token_ids must be a list of at least one number")
        if sampling.get("n") not in (None, 1) or sampling.get("logprobs") != 1:
            return _bad("n must be 1 and logprobs must be 1")
        if self._format.end not in (sampling.get("stop_token_ids") or ()):
            return _bad("the token that ends a turn is not among stop_token_ids")
        wanted = sampling.get("max_tokens")
        if wanted is not None and (type(wanted) is not int or wanted < 1):
            return _bad(f"max_tokens must be at least 1, got {wanted!r}.")
        refused = too_long(len(ids), wanted, self._scripted.max_model_len)
        if refused is not None:
            return refused
        try:
            messages = self._format.messages(ids)
        except NotAChatError as exc:
            return _bad(str(exc))
        salt = body.get("cache_salt") or sampling.get("cache_salt")
        return _Asked(ids, ChatRequest(messages, model, sampling, headers), wanted, salt)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        """The figures from which prime-rl derives its concurrency."""
        from aiohttp import web

        labels = f'engine="0",model_name="{self.model}"'
        figures = (
            ("gauge", "num_requests_running", "", float(self._scripted.in_flight)),
            ("gauge", "num_requests_waiting", "", 0.0),
            ("gauge", "kv_cache_usage_perc", "", 0.0),
            ("counter", "num_preemptions_total", "", 0.0),
            ("gauge", "cache_config_info", ',block_size="16",kv_cache_size_tokens="4194304"', 1.0),
        )
        lines = []
        for kind, name, more, value in figures:
            lines += [
                f"# TYPE vllm:{name.removesuffix('_total')} {kind}",
                f"vllm:{name}{{{labels}{more}}} {value}",
            ]
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")

    async def _pause(self, request: web.Request) -> web.StreamResponse:
        """Holds requests back until /resume. Requests in flight are kept, as in vLLM's mode "keep"."""
        query = dict(request.query)
        if query.pop("mode", "keep") != "keep" or query.pop("clear_cache", "false") != "false" or query:
            return await send_fault(request, _bad("only mode=keep and clear_cache=false are supported"))
        self._unpaused.clear()
        return self._done("/pause", dict(request.query))

    async def _resume(self, request: web.Request) -> web.StreamResponse:
        self._unpaused.set()
        return self._done("/resume", {})

    async def _update_weights(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request, weight_dir=str)
        if isinstance(body, Fault):
            return await send_fault(request, body)
        if self._unpaused.is_set():
            return await send_fault(request, error(409, "the engine is running: pause it first", "Conflict"))
        if not _is_folder(body["weight_dir"]):
            return await send_fault(request, _missing(body["weight_dir"]))
        self.version += 1
        return self._done("/update_weights", body)

    async def _load_lora_adapter(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request, lora_name=str, lora_path=str)
        if isinstance(body, Fault):
            return await send_fault(request, body)
        if not _is_folder(body["lora_path"]):
            return await send_fault(request, _missing(body["lora_path"]))
        if body["lora_name"] not in self.models:
            self._scripted.models = (*self.models, body["lora_name"])
        self.version += 1
        return self._done("/load_lora_adapter", body)

    def _done(self, path: str, arguments: dict[str, Any]) -> web.StreamResponse:
        from aiohttp import web

        self.calls.append(ControlCall(path, arguments))
        return web.json_response({"status": "ok"})


@dataclass(frozen=True, slots=True)
class _Asked:
    prompt_ids: list[int]
    chat: ChatRequest
    wanted: int | None
    cache_salt: str | None


async def _json(request: web.Request, **fields: type) -> dict[str, Any] | Fault:
    """The body of a request. With `fields`, it must have exactly these fields, of these types."""
    try:
        body = await request.json()
    except ValueError as exc:
        return _bad(f"the body is not JSON: {exc}")
    if not isinstance(body, dict):
        return _bad("the body must be a JSON object")
    if fields and (
        body.keys() != fields.keys() or not all(isinstance(body[name], kind) for name, kind in fields.items())
    ):
        return _bad(f"the body must have {', '.join(sorted(fields))} and no other field")
    return body


def _is_folder(path: str) -> bool:
    return Path(path).is_dir()


def _bad(message: str) -> Fault:
    return error(400, message, "BadRequestError")


def _missing(path: str) -> Fault:
    return error(404, f"there is no folder {path}", "NotFoundError")


def _logprob(number: int, place: int, token: int) -> float:
    """A made-up log-probability from -1 to 0 that depends on call, place and token."""
    return -((number * 7 + place * 31 + token * 17) % 997 + 1) / 1000
