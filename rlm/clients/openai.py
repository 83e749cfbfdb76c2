"""OpenAI-compatible servers: OpenAI itself, vLLM, SGLang, llama.cpp, gateways, and the endpoints of training."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rlm._redaction import protect
from rlm.clients import chat_format
from rlm.clients.arguments import checked_url, headers_of, is_str
from rlm.clients.base import Client, ModelReply
from rlm.clients.failures import Failure, failure_of, failure_without_answer, redact
from rlm.clients.retry import Retry
from rlm.errors import BadReplyError, ConfigError, ModelError, ModelNotFoundError
from rlm.types import Message, SamplingArgs

if TYPE_CHECKING:
    from yarl import URL

    from rlm.clients.pool import Pool, Response, TransportError

OPENAI_URL = "https://api.openai.com/v1"

_LIST_TIMEOUT = 10.0
_OTHER_FIELD: dict[chat_format.TokensField, chat_format.TokensField] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}
# Words in which servers refuse a field that they do not know, or no longer know.
_UNKNOWN_FIELD = re.compile(
    r"unsupported|unrecognized|unknown|unexpected|not supported|not permitted|not allowed|forbidden|deprecated",
    re.IGNORECASE,
)

logger = logging.getLogger("rlm.clients")


class OpenAIClient(Client):
    """One model of an OpenAI-compatible server.

    A client is not bound to an event loop or a process: any number of tasks, loops, threads and forked children can use it,
    and it needs no closing.

    A call is retried after 408, 409, 429, 5xx, time-outs, and refused or dropped connections. `rlm.clients.retry.Retry`
    defines the waits. All attempts of a call have the same body and the same `Idempotency-Key`. Retries also have
    `x-stainless-retry-count`, by which training endpoints recognise that they are not a new turn.
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
        max_tokens_field: chat_format.TokensField | None = None,
        dialect: chat_format.Dialect = chat_format.PLAIN,
    ) -> None:
        """
        Args:
            model_name: the model's name at the server.
            base_url: the URL before `/chat/completions`. It ends in `/v1` at most servers.
            api_key: the key, which is sent as a bearer token. None: no key is sent.
            timeout: seconds for one attempt.
            max_retries: attempts after the first.
            retry_delay: seconds before the first retry, at most.
            default_headers: headers of every request. They take precedence over the client's own.
            sampling_args: fields of the body of every request, under the provider's names.
            echo_reasoning: send the thinking of a reply back in the chat (`ModelReply.echo`). For servers whose chat template
                keeps earlier thinking; other servers refuse it.
            max_tokens_field: the field in which the sampling argument `max_tokens` is sent. None: the dialect's field, and
                the other one once the server has refused it.
            dialect: how the server differs from others.

        Raises:
            ConfigError: an argument does not fit.
        """
        # aiohttp is imported here and not in the first call, where the import would block an event loop.
        from yarl import URL

        from rlm.clients import pool

        if not is_str(model_name):
            raise ConfigError("model_name is missing: the model's name at the server, a str")
        if not isinstance(sampling_args, Mapping | None):
            raise ConfigError(f"sampling_args must be a dict, not {type(sampling_args).__name__}")
        if max_tokens_field not in (None, *_OTHER_FIELD):
            raise ConfigError(
                f"max_tokens_field must be one of {', '.join(_OTHER_FIELD)}, not {max_tokens_field!r}"
            )
        self.model = model_name
        self.provider = dialect.provider
        self.sampling_args = dict(sampling_args or {})
        self.reports_cost = dialect.reports_cost
        chat_format.check_sampling(self.sampling_args)
        self._dialect = dialect
        self._base = URL(checked_url(base_url), encoded=True)
        self._chat = URL(f"{self._base}{dialect.chat_path}", encoded=True)
        self._list = URL(f"{self._base}/models", encoded=True)
        self._origin = self._base.origin()
        self._retry = Retry(timeout=timeout, max_retries=max_retries, retry_delay=retry_delay)
        self._echo_reasoning = bool(echo_reasoning)
        self._tokens_field = max_tokens_field or dialect.tokens_field
        self._tokens_field_is_fixed = max_tokens_field is not None
        self._learned_fields: dict[str, chat_format.TokensField] = {}
        self._headers, self._secrets = headers_of(api_key, default_headers, dialect.key_header)
        protect(self, self._secrets)
        self._transport = pool

    @property
    def base_url(self) -> str:
        """The URL before `/chat/completions`."""
        return str(self._base)

    def __repr__(self) -> str:
        return f"OpenAIClient({self.model!r}, base_url={self.base_url!r})"

    async def complete(
        self, messages: Sequence[Message], *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> ModelReply:
        """Asks for one reply; see `rlm.clients.base.Client.complete`.

        If the task is cancelled, the connection is closed, which tells servers to stop.

        Raises:
            ModelError: the call failed, retries included. The subclasses in `rlm.errors` say how.
            ConfigError: a sampling argument or a part of a message cannot be sent.
        """
        name = model or self.model
        call = _ChatCall(name, messages, sampling, {**self._headers, "Idempotency-Key": os.urandom(16).hex()})
        self._encode(call, self._learned_fields.get(name, self._tokens_field))
        pool = await self._transport.pool_for(self._origin)
        outcome, attempts = await self._retry.run(
            partial(self._attempt, pool, call), partial(self._report, name)
        )
        if isinstance(outcome, ModelReply):
            return outcome
        raise await self._final(outcome, attempts, name, pool) from call.cause

    async def context_length(self, model: str | None = None) -> int | None:
        """The model's window in tokens, from `GET /models`; None if the server does not list it. See
        `chat_format.window_of`.

        If the server lists one model only, the answer is that model's window for every name: training endpoints serve one
        model under any name. The list is requested once for each event loop and endpoint, and again 30 s after a failure.
        Never raises.
        """
        if not self._dialect.lists_models:
            return None
        models = await self._models(await self._transport.pool_for(self._origin))
        name = model or self.model
        by_name = {entry.get("id"): entry for entry in models}
        entry = by_name.get(name) or (models[0] if len(models) == 1 else None)
        while entry is not None:
            if size := chat_format.window_of(entry):
                return size
            # vLLM lists a LoRA adapter without a window, and names its base model as parent.
            by_name.pop(entry.get("id"), None)
            entry = by_name.get(entry.get("parent"))
        return None

    def _chat_url(self, name: str) -> URL:
        if "{model}" not in self._dialect.chat_path:
            return self._chat
        path = self._dialect.chat_path.replace("{model}", quote(self._dialect.name_of(name), safe=""))
        return type(self._base)(f"{self._base}{path}", encoded=True)

    def _encode(self, call: _ChatCall, field: chat_format.TokensField) -> None:
        call.field = field
        sampling = chat_format.merge_sampling(self.sampling_args, call.sampling, field)
        call.has_field = field in sampling
        call.body = chat_format.encode_request(call.name, call.messages, sampling, self._dialect)

    async def _attempt(self, pool: Pool, call: _ChatCall, failed: int) -> ModelReply | Failure:
        if failed:
            call.headers["x-stainless-retry-count"] = str(failed)
        outcome = await self._send(pool, call, failed)
        if isinstance(outcome, Failure) and self._refuses_field(outcome, call):
            # Repeat the attempt once with the other field. If that works, later calls use it from the start.
            self._encode(call, _OTHER_FIELD[call.field])
            call.reworded = True
            outcome = await self._send(pool, call, failed)
        if call.reworded and isinstance(outcome, ModelReply):
            self._learned_fields[call.name] = call.field
        return outcome

    async def _send(self, pool: Pool, call: _ChatCall, failed: int) -> ModelReply | Failure:
        call.cause = None
        try:
            response = await pool.request(
                "POST",
                self._chat_url(call.name),
                headers=call.headers,
                body=call.body,
                timeout=self._retry.timeout,
            )
        except self._transport.TransportError as exc:
            call.cause = exc
            return failure_without_answer(exc)
        return self._read(response, call, failed)

    def _read(self, response: Response, call: _ChatCall, failed: int) -> ModelReply | Failure:
        sent = len(call.body)
        if not 200 <= response.status < 300:
            failure = failure_of(response.status, response.headers, response.body)
            if failure.refusal is not None:
                return chat_format.refused(
                    failure, model=call.name, request_bytes=sent, retries=failed, dialect=self._dialect
                )
            return failure
        try:
            return chat_format.decode_reply(
                response.body,
                model=call.name,
                request_bytes=sent,
                retries=failed,
                echo_reasoning=self._echo_reasoning,
                dialect=self._dialect,
            )
        except BadReplyError as exc:
            return Failure(exc, retry=False)

    def _refuses_field(self, failure: Failure, call: _ChatCall) -> bool:
        if self._tokens_field_is_fixed or call.reworded or not call.has_field:
            return False
        text = str(failure.error)
        return (
            type(failure.error) is ModelError
            and failure.error.status in (400, 422)
            and call.field in text
            and _UNKNOWN_FIELD.search(text) is not None
        )

    def _report(self, name: str, number: int, wait: float, failure: Failure) -> None:
        logger.info("%s: attempt %d in %.1f s: %s", name, number, wait, self._clean(failure.error))

    async def _final(self, failure: Failure, attempts: int, name: str, pool: Pool) -> Exception:
        """The error of the last attempt, with advice on what to do."""
        error = failure.error
        text = self._clean(error)
        if isinstance(error, ModelNotFoundError) and error.status in (400, 404, 405):
            pool.memo.pop(self._memo_key, None)
            models = [str(entry.get("id")) for entry in await self._models(pool)]
            if models and name not in models:
                text = f"there is no model {name!r} at {self._base}; it has {', '.join(models[:20])} ({text})"
            else:
                hint = (
                    "base_url usually ends in /v1" if self._dialect.lists_models else "is it deployed there?"
                )
                text = f"no chat completions of model {name!r} at {self._chat_url(name)} ({text}); {hint}"
        else:
            text = f"{text} [{name} at {self._base}{f', {attempts} attempts' if attempts > 1 else ''}]"
            if failure.retry:
                # Forget the model list: the next server at this URL may have another window.
                pool.memo.pop(self._memo_key, None)
        return type(error)(self._clean(text), status=error.status)

    def _clean(self, text: object) -> str:
        return redact(str(text), self._secrets)

    @property
    def _memo_key(self) -> str:
        return f"models of {self._base}"

    async def _models(self, pool: Pool) -> list[dict[str, Any]]:
        """The server's model list; empty if the server has no list."""
        if not self._dialect.lists_models:
            return []
        return await pool.remembered(self._memo_key, lambda: self._fetch_models(pool)) or []

    async def _fetch_models(self, pool: Pool) -> list[dict[str, Any]] | None:
        try:
            response = await pool.request("GET", self._list, headers=self._headers, timeout=_LIST_TIMEOUT)
        except self._transport.TransportError as exc:
            logger.info("no model list at %s: %s", self._base, self._clean(exc))
            return None
        return chat_format.decode_models(response.body) if response.status == 200 else None


@dataclass(slots=True)
class _ChatCall:
    """The state of one call over all its attempts."""

    name: str
    messages: Sequence[Message]
    sampling: SamplingArgs | None
    headers: dict[str, str]
    field: chat_format.TokensField = "max_tokens"
    has_field: bool = False
    body: bytes = b""
    reworded: bool = False
    cause: TransportError | None = None
