"""OpenAI-compatible servers: OpenAI itself, vLLM, SGLang, llama.cpp, gateways, and the endpoints of training."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlm.clients import wire
from rlm.clients.base import ModelReply
from rlm.clients.options import checked_url, headers_of, is_number, is_str
from rlm.errors import (
    BadReplyError,
    ConfigError,
    ModelNotFoundError,
    ModelTimeoutError,
    ModelUnavailableError,
)
from rlm.types import Message, SamplingArgs

if TYPE_CHECKING:
    from rlm.clients.pool import Answer, Pool, TransportError

OPENAI_URL = "https://api.openai.com/v1"

_LONGEST_BACKOFF = 30.0
_RETRY_WINDOW = 120.0
_LIST_TIMEOUT = 10.0
_LIST_AGAIN_AFTER = 30.0

logger = logging.getLogger("rlm.clients")


class OpenAIClient:
    """One model of an OpenAI-compatible server. Holds nothing that is bound to an event loop or a process: use it from
    any number of tasks, loops, threads and forked children. There is nothing to close.

    A call is retried on 408, 409, 429, 5xx, time-outs, and refused or dropped connections: after `retry_delay` seconds,
    doubled each time up to 30 s, with jitter, or after what the server asks for in `Retry-After`. No attempt starts
    later than the longer of 120 s and twice `timeout` after the call began. All attempts of a call carry the same body
    and `Idempotency-Key`, and the second and later ones `x-stainless-retry-count`, by which training endpoints know
    that they are no new turn.
    """

    def __init__(
        self,
        model_name: str,
        *,
        base_url: str = OPENAI_URL,
        api_key: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 5,
        retry_delay: float = 0.5,
        default_headers: Mapping[str, str] | None = None,
        sampling_args: SamplingArgs | None = None,
        echo_reasoning: bool = False,
    ) -> None:
        """
        Args:
            model_name: the model's name at the server.
            base_url: the URL before `/chat/completions`; ends in `/v1` at most servers.
            api_key: sent as bearer token; None: no key is sent.
            timeout: seconds that one attempt may take.
            max_retries: attempts after the first.
            retry_delay: seconds before the first of them, at most.
            default_headers: sent with every request; they win over our own.
            sampling_args: fields of every request's body, as the provider names them.
            echo_reasoning: replies carry their thinking back into the chat (`ModelReply.echo`). For servers whose
                chat template keeps it; others refuse it.

        Raises:
            ConfigError: an argument does not fit.
        """
        # aiohttp is imported here, not in the first call: there it would hold up an event loop.
        from yarl import URL

        from rlm.clients import pool

        if not is_str(model_name):
            raise ConfigError("model_name is missing: the model's name at the server, a str")
        if not is_number(timeout) or timeout <= 0:
            raise ConfigError(f"timeout must be a positive number of seconds, not {timeout!r}")
        if type(max_retries) is not int or max_retries < 0:
            raise ConfigError(f"max_retries must be 0 or more, not {max_retries!r}")
        if not is_number(retry_delay) or retry_delay < 0:
            raise ConfigError(f"retry_delay must be a number of seconds, not {retry_delay!r}")
        if not isinstance(sampling_args, Mapping | None):
            raise ConfigError(f"sampling_args must be a dict, not {type(sampling_args).__name__}")
        self._model = model_name
        self._base = URL(checked_url(base_url), encoded=True)
        self._chat = URL(f"{self._base}/chat/completions", encoded=True)
        self._list = URL(f"{self._base}/models", encoded=True)
        self._origin = self._base.origin()
        self._timeout = float(timeout)
        self._max_retries = max_retries
        self._retry_delay = float(retry_delay)
        self._echo_reasoning = bool(echo_reasoning)
        self._sampling = dict(sampling_args or {})
        wire.check_sampling(self._sampling)
        self._headers, self._secrets = headers_of(api_key, default_headers)
        self._transport = pool

    @property
    def model(self) -> str:
        return self._model

    @property
    def base_url(self) -> str:
        return str(self._base)

    def __repr__(self) -> str:
        return f"OpenAIClient({self._model!r}, base_url={self.base_url!r})"

    async def complete(
        self, messages: Sequence[Message], *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> ModelReply:
        """Asks for one reply; see `rlm.clients.base.Client.complete`.

        Cancelling the task closes the connection, by which servers know to stop.

        Raises:
            ModelError: of the kind that `rlm.errors` names, after retries where they make sense.
            ConfigError: a sampling argument cannot be sent.
        """
        name = model or self._model
        body = wire.encode_request(name, messages, wire.merge_sampling(self._sampling, sampling))
        headers = {**self._headers, "Idempotency-Key": os.urandom(16).hex()}
        pool = await self._transport.pool_for(self._origin)
        clock = asyncio.get_running_loop().time
        last_start = clock() + max(_RETRY_WINDOW, 2 * self._timeout)
        attempt = 0
        while True:
            cause: TransportError | None = None
            outcome: ModelReply | wire.Failure
            try:
                answer = await pool.request(
                    "POST", self._chat, headers=headers, body=body, timeout=self._timeout
                )
            except self._transport.TransportError as exc:
                cause, outcome = exc, self._no_answer(exc)
            else:
                outcome = self._read(answer, name, len(body), attempt)
            if isinstance(outcome, ModelReply):
                return outcome
            wait = self._wait(attempt, outcome.wait)
            if not outcome.retry or attempt >= self._max_retries or clock() + wait > last_start:
                raise await self._final(outcome, attempt, name, pool) from cause
            attempt += 1
            logger.info("%s: attempt %d in %.1f s: %s", name, attempt + 1, wait, self._clean(outcome.error))
            headers["x-stainless-retry-count"] = str(attempt)
            await asyncio.sleep(wait)

    async def context_length(self, model: str | None = None) -> int | None:
        """The model's window in tokens from `GET /models`: `max_model_len` (vLLM), `context_length` or
        `context_window`. Where the server has one model only, its window counts whatever name is asked for (training
        endpoints serve one model under any name). None where the server does not say.

        Asked once per event loop and endpoint, even by many tasks at once; a failure is asked again after 30 s. Never
        raises.
        """
        models = await self._models(await self._transport.pool_for(self._origin))
        name = model or self._model
        by_name = {entry.get("id"): entry for entry in models}
        entry = by_name.get(name) or (models[0] if len(models) == 1 else None)
        while entry is not None:
            for field in ("max_model_len", "context_length", "context_window"):
                size = entry.get(field)
                if type(size) is int and size > 0:
                    return size
            # vLLM lists a LoRA adapter without a window of its own, under its base model.
            by_name.pop(entry.get("id"), None)
            entry = by_name.get(entry.get("parent"))
        return None

    def _read(self, answer: Answer, name: str, sent: int, retries: int) -> ModelReply | wire.Failure:
        if not 200 <= answer.status < 300:
            return wire.failure_of(answer.status, answer.headers, answer.body)
        try:
            return wire.decode_reply(
                answer.body,
                model=name,
                request_bytes=sent,
                retries=retries,
                echo_reasoning=self._echo_reasoning,
            )
        except BadReplyError as exc:
            return wire.Failure(exc, retry=False)

    def _no_answer(self, exc: TransportError) -> wire.Failure:
        if exc.kind == "timeout":
            return wire.Failure(ModelTimeoutError(str(exc)), retry=True)
        if exc.kind == "garbage":
            return wire.Failure(BadReplyError(str(exc)), retry=False)
        return wire.Failure(ModelUnavailableError(str(exc)), retry=exc.kind != "tls")

    def _wait(self, attempt: int, asked: float | None) -> float:
        """Seconds before the next attempt. The jitter keeps calls that failed together from coming back together."""
        if asked is not None:
            return asked * random.uniform(1.0, 1.1)
        return min(self._retry_delay * 2.0 ** min(attempt, 60), _LONGEST_BACKOFF) * random.uniform(0.5, 1.0)

    async def _final(self, failure: wire.Failure, attempt: int, name: str, pool: Pool) -> Exception:
        """The error of the last attempt, with what helps to mend it."""
        error = failure.error
        text = self._clean(error)
        if isinstance(error, ModelNotFoundError) and error.status in (400, 404, 405):
            pool.memo.pop(self._memo_key, None)
            models = [str(entry.get("id")) for entry in await self._models(pool)]
            if models and name not in models:
                text = f"there is no model {name!r} at {self._base}; it has {', '.join(models[:20])} ({text})"
            else:
                text = f"no chat completions of model {name!r} at {self._chat} ({text}); base_url usually ends in /v1"
        else:
            text = f"{text} [{name} at {self._base}{f', {attempt + 1} attempts' if attempt else ''}]"
            if failure.retry:
                # Whatever answers there next may be another server with another window.
                pool.memo.pop(self._memo_key, None)
        return type(error)(self._clean(text), status=error.status)

    def _clean(self, text: object) -> str:
        return wire.redact(str(text), self._secrets)

    @property
    def _memo_key(self) -> str:
        return f"models of {self._base}"

    async def _models(self, pool: Pool) -> list[dict[str, Any]]:
        """The server's model list, empty if it cannot be had."""
        loop = asyncio.get_running_loop()
        known: tuple[asyncio.Task[list[dict[str, Any]] | None], float] | None = pool.memo.get(self._memo_key)
        if known is not None:
            task, asked_at = known
            failed = task.done() and (task.cancelled() or task.exception() or task.result() is None)
            if failed and loop.time() - asked_at > _LIST_AGAIN_AFTER:
                known = None
        if known is None:
            task = loop.create_task(self._fetch_models(pool))
            pool.memo[self._memo_key] = (task, loop.time())
        # Shielded: the one who asked first may be cancelled, and the others still wait.
        await asyncio.wait([task])
        return [] if task.cancelled() or task.exception() else task.result() or []

    async def _fetch_models(self, pool: Pool) -> list[dict[str, Any]] | None:
        try:
            answer = await pool.request("GET", self._list, headers=self._headers, timeout=_LIST_TIMEOUT)
        except self._transport.TransportError as exc:
            logger.info("no model list at %s: %s", self._base, self._clean(exc))
            return None
        return wire.decode_models(answer.body) if answer.status == 200 else None
