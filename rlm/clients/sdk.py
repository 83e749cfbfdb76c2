"""The base class of clients that call a vendor's SDK."""

from __future__ import annotations

import abc
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypedDict, TypeVar

from rlm._redaction import protect
from rlm.clients import chat_format
from rlm.clients.arguments import checked_key, checked_url, headers_of, is_str
from rlm.clients.base import Client, ModelReply
from rlm.clients.failures import Failure, redact
from rlm.clients.retry import Retry
from rlm.errors import BadReplyError, ConfigError
from rlm.types import Message, SamplingArgs

logger = logging.getLogger("rlm.clients")

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class SDKOptions(TypedDict, total=False):
    """Arguments that all of these backends take; see `SDKClient`."""

    timeout: float
    max_retries: int
    retry_delay: float
    default_headers: Mapping[str, str] | None
    sampling_args: SamplingArgs | None


class SDKClient(Client, Generic[RequestT, ResponseT]):
    """One model of a provider, called through the provider's SDK.

    Any number of tasks, loops, threads and forked children can use a client, and it needs no closing. It retries as
    `OpenAIClient` does; the SDK's own retries are off.
    """

    def __init__(
        self,
        model_name: str,
        *,
        base_url: str,
        api_key: str,
        timeout: float = 600.0,
        max_retries: int = 5,
        retry_delay: float = 0.5,
        default_headers: Mapping[str, str] | None = None,
        sampling_args: SamplingArgs | None = None,
    ) -> None:
        """
        Args:
            model_name: the model's name at the provider.
            base_url: the provider's URL, without a version.
            api_key: the provider's key.
            timeout: seconds for one attempt.
            max_retries: attempts after the first.
            retry_delay: seconds before the first retry, at most.
            default_headers: headers of every request.
            sampling_args: arguments of every call, under the provider's names.

        Raises:
            ConfigError: an argument does not fit.
        """
        from rlm.clients import pool, transport

        if not is_str(model_name):
            raise ConfigError("model_name is missing: the model's name at the provider, a str")
        if not isinstance(sampling_args, Mapping | None):
            raise ConfigError(f"sampling_args must be a dict, not {type(sampling_args).__name__}")
        self.model = model_name
        self.sampling_args = self._sampling = dict(sampling_args or {})
        self._base = checked_url(base_url)
        self._key = checked_key(api_key)
        self._retry = Retry(timeout=timeout, max_retries=max_retries, retry_delay=retry_delay)
        _, secrets = headers_of(self._key, default_headers)
        self._extra_headers = dict(default_headers or {})
        self._secrets = secrets
        protect(self, secrets)
        self._pool, self._transport = pool, transport
        self._prepare(model_name, [{"role": "user", "content": "?"}], None)  # checks the sampling arguments

    @property
    def base_url(self) -> str:
        """The provider's URL."""
        return self._base

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, base_url={self._base!r})"

    async def complete(
        self, messages: Sequence[Message], *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> ModelReply:
        """Asks for one reply; see `rlm.clients.base.Client.complete`.

        Raises:
            ModelError: the call failed, retries included. The subclasses in `rlm.errors` say how.
            ConfigError: a sampling argument or a part of a message cannot be sent.
        """
        name = model or self.model
        request = self._prepare(name, messages, sampling)
        noted = self._transport.Exchange()

        async def attempt(failed: int) -> ModelReply | Failure:
            nonlocal noted
            noted = self._transport.Exchange()
            return await self._attempt(name, request, noted, failed)

        def report(number: int, wait: float, failure: Failure) -> None:
            logger.info("%s: attempt %d in %.1f s: %s", name, number, wait, self._clean(failure.error))

        outcome, attempts = await self._retry.run(attempt, report)
        if isinstance(outcome, ModelReply):
            return outcome
        tried = f", {attempts} attempts" if attempts > 1 else ""
        text = self._clean(f"{outcome.error} [{name} at {self._base}{tried}]")
        raise type(outcome.error)(text, status=outcome.error.status) from noted.cause

    async def context_length(self, model: str | None = None) -> int | None:
        """The model's window in tokens, from the provider's list of models; None if the list does not have it.

        It is requested once for each event loop and model, and again 30 s after a failure. Never raises.
        """
        from yarl import URL

        name = model or self.model
        pool = await self._pool.pool_for(URL(self._base, encoded=True).origin())
        return await pool.remembered(f"window of {name} at {self._base}", lambda: self._ask_window(name))

    @abc.abstractmethod
    def _prepare(self, name: str, messages: Sequence[Message], sampling: SamplingArgs | None) -> RequestT:
        """The arguments of the SDK for a call.

        Raises:
            ConfigError: the call cannot be sent.
        """

    @abc.abstractmethod
    async def _send(self, request: RequestT) -> ResponseT:
        """Makes one attempt with the SDK."""

    @abc.abstractmethod
    def _read(self, name: str, response: ResponseT, request_bytes: int, retries: int) -> ModelReply | Failure:
        """The reply in a response, or the failure if the response wraps an error."""

    @abc.abstractmethod
    async def _window(self, name: str) -> int | None:
        """Asks the SDK for the model's window in tokens."""

    async def _attempt(self, name: str, request: RequestT, noted: Any, failed: int) -> ModelReply | Failure:
        token = self._transport.exchange.set(noted)
        problem = ""
        try:
            response = await self._send(request)
            return self._read(name, response, noted.request_bytes, failed)
        except Exception as exc:
            problem = f"{type(exc).__name__}: {exc}"
        finally:
            self._transport.exchange.reset(token)
        # Outside of the handler: an SDK's error holds the headers of the request, and with them the key, which must not
        # become part of the error below.
        if noted.failure is not None:
            if noted.failure.refusal is None:
                failure: Failure = noted.failure
                return failure
            return chat_format.refused(
                noted.failure, model=name, request_bytes=noted.request_bytes, retries=failed
            )
        if noted.answered:
            return Failure(BadReplyError(f"the reply cannot be read: {problem}", status=200), retry=False)
        raise ConfigError(self._clean(f"the SDK could not send the request: {problem}"))

    async def _ask_window(self, name: str) -> int | None:
        token = self._transport.exchange.set(self._transport.Exchange())
        try:
            size = await self._window(name)
        except Exception as exc:
            logger.info("no window of %s at %s: %s", name, self._base, self._clean(exc))
            return None
        finally:
            self._transport.exchange.reset(token)
        return size if type(size) is int and size > 0 else None

    def _clean(self, text: object) -> str:
        return redact(str(text), self._secrets)


def token_limit(fields: dict[str, Any]) -> Any:
    """Removes the token limit of a reply from the sampling arguments and returns it; None: there is none. If it was given
    under several names, the smallest one counts."""
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    given = [fields.pop(name) for name in names if name in fields]
    return min(given) if given and all(type(value) is int for value in given) else next(iter(given), None)


def stop_sequences(fields: dict[str, Any]) -> Any:
    """Removes the stop sequences from the sampling arguments and returns them. They have OpenAI's name or the provider's."""
    stop = fields.pop("stop", None)
    stop = fields.pop("stop_sequences", stop)
    return [stop] if isinstance(stop, str) else stop
