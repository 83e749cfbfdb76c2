"""A scripted model in process, without HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlm.clients import chat_format
from rlm.clients.base import Client, ModelReply
from rlm.clients.failures import failure_of
from rlm.errors import ModelUnavailableError
from rlm.testing.model import ScriptedModel, body_bytes
from rlm.testing.policy import ChatRequest, Fault, Policy
from rlm.types import Message, SamplingArgs


class ScriptedClient(Client):
    """A `Client` whose model is a policy.

    It gives the replies, token counts and errors that `OpenAIClient` gives with a `ModelServer` of the same policy. It does not
    retry: a `Fault` becomes the error that a client raises after its last attempt.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        model: str = "scripted",
        max_model_len: int | None = None,
        latency: float = 0.0,
        sampling_args: SamplingArgs | None = None,
        record: bool = True,
    ) -> None:
        """
        Args:
            policy: answers the requests.
            model: the name under which usage is counted. Requests for other names are answered too.
            max_model_len: window in tokens. None: no limit.
            latency: seconds before every reply.
            sampling_args: arguments of every call.
            record: keep every request in `requests`.

        Raises:
            ConfigError: a sampling argument cannot be sent.
            TypeError, ValueError: another argument does not fit.
        """
        self.model = model
        self.sampling_args = dict(sampling_args or {})
        chat_format.check_sampling(self.sampling_args)
        self._scripted = ScriptedModel(
            policy, models=None, max_model_len=max_model_len, latency=latency, record=record
        )

    @property
    def requests(self) -> list[ChatRequest]:
        """The requests so far, in the order of arrival. Empty without `record`."""
        return self._scripted.requests

    @property
    def peak(self) -> int:
        """The largest number of calls that were in flight at the same time."""
        return self._scripted.peak

    async def complete(
        self, messages: Sequence[Message], *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> ModelReply:
        """See `rlm.clients.base.Client.complete`."""
        name = model or self.model
        merged = chat_format.merge_sampling(self.sampling_args, sampling)
        copies: list[dict[str, Any]] = [{**message} for message in messages]
        answer = await self._scripted.answer(ChatRequest(copies, name, merged))
        if isinstance(answer, Fault):
            return _raise(answer, name)
        return ModelReply(
            content=answer.content or "",
            model=name,
            usage=answer.usage,
            finish_reason=answer.finish_reason,
            reasoning=answer.reasoning,
            refusal=answer.refusal,
        )

    async def context_length(self, model: str | None = None) -> int | None:
        """The window in tokens, `max_model_len`."""
        return self._scripted.max_model_len


def _raise(fault: Fault, model: str) -> ModelReply:
    """Raises the error that a fault stands for. A fault of status 200 may hold a reply, which is returned."""
    if fault.drop is not None:
        raise ModelUnavailableError("the connection was lost: the script dropped it")
    body = body_bytes(fault)
    if 200 <= fault.status < 300:
        outcome = chat_format.decode_reply(body, model=model, request_bytes=0, retries=0)
        if isinstance(outcome, ModelReply):
            return outcome
    else:
        outcome = failure_of(fault.status, {k.lower(): v for k, v in fault.headers.items()}, body)
    if outcome.refusal is not None:
        return chat_format.refused(outcome, model=model, request_bytes=0, retries=0)
    error = outcome.error
    try:
        raise error
    finally:
        del outcome, error  # breaks the cycle of this frame, the error and its traceback
