"""Google's Gemini models, through its SDK (`pip install 'rlms[gemini]'`)."""

from __future__ import annotations

import base64
import mimetypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from rlm.clients import chat_format
from rlm.clients.arguments import key_or_environment
from rlm.clients.base import ModelReply
from rlm.clients.message_parts import MediaPart, PlainText, RemoteImage, parts_of
from rlm.clients.sdk import SDKClient, SDKOptions, stop_sequences, token_limit
from rlm.clients.usage import count, estimated
from rlm.errors import ConfigError
from rlm.types import Message, SamplingArgs, Usage

if TYPE_CHECKING:
    from google.genai import types

GEMINI_URL = "https://generativelanguage.googleapis.com"

_PROVIDER = "gemini"
_EMPTY = "(empty)"  # the API refuses a turn without a part
_FINISH = {"STOP": "stop", "MAX_TOKENS": "length"}
_FILTERED = {
    *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR"),
    *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"),
}
_OURS = ("system_instruction", "http_options", "automatic_function_calling", "should_return_http_response")


def gemini(
    model_name: str, *, api_key: str | None = None, base_url: str | None = None, **options: Unpack[SDKOptions]
) -> GeminiClient:
    """Google's Gemini API.

    Args:
        model_name: the model's name.
        api_key: the key. None: GEMINI_API_KEY.
        base_url: the API's URL. None: GOOGLE_GEMINI_BASE_URL, or else Google's own URL.

    Raises:
        ConfigError: there is no key, the SDK is not installed, or an argument does not fit.
    """
    return GeminiClient(
        model_name,
        api_key=key_or_environment(api_key, "GEMINI_API_KEY", "gemini"),
        base_url=base_url or os.environ.get("GOOGLE_GEMINI_BASE_URL") or GEMINI_URL,
        **options,
    )


@dataclass(frozen=True, slots=True)
class _GeminiRequest:
    model: str
    contents: list[types.Content]
    config: types.GenerateContentConfig


class GeminiClient(SDKClient[_GeminiRequest, "types.GenerateContentResponse"]):
    """A model behind the Gemini API.

    System messages become the system instruction. Thoughts (sampling argument `thinking_config`, with `include_thoughts`)
    are `ModelReply.reasoning`. Signed parts are in `ModelReply.echo`, by which they are sent back unchanged. A blocked reply
    has no content, so it is not sent back.
    """

    provider = _PROVIDER

    def __init__(
        self, model_name: str, *, api_key: str, base_url: str = GEMINI_URL, **options: Unpack[SDKOptions]
    ) -> None:
        """
        Args:
            options: see `SDKClient`.

        Raises:
            ConfigError: the SDK is not installed, or an argument does not fit.
        """
        try:
            import httpx2
            from google import genai
            from google.genai import types
        except ImportError:
            raise ConfigError("backend 'gemini' needs Google's SDK: pip install 'rlms[gemini]'") from None
        self._types = types
        super().__init__(model_name, base_url=base_url, api_key=api_key, **options)
        self._sdk = genai.Client(
            vertexai=False,
            api_key=self._key,
            http_options=types.HttpOptions(
                base_url=self._base.removesuffix("/v1beta").removesuffix("/v1"),
                headers=self._extra_headers,
                httpx_client=httpx2.Client(
                    transport=httpx2.MockTransport(_unused_transport), trust_env=False
                ),
                httpx_async_client=httpx2.AsyncClient(
                    transport=self._transport.PoolTransport(self._retry.timeout), trust_env=False
                ),
            ),
        )

    def _prepare(
        self, name: str, messages: Sequence[Message], sampling: SamplingArgs | None
    ) -> _GeminiRequest:
        fields = chat_format.merge_sampling(self._sampling, sampling)
        fields.pop("n", None)
        for ours in _OURS:
            if ours in fields:
                raise ConfigError(f"{ours!r} is no sampling argument: the client sets it")
        if fields.get("candidate_count") not in (None, 1):
            raise ConfigError("sampling argument candidate_count must be 1: one call gives one reply")
        limit, stop = token_limit(fields), stop_sequences(fields)
        system, contents = self._chat(messages, name)
        try:
            config = self._types.GenerateContentConfig(
                **fields,
                max_output_tokens=limit,
                stop_sequences=stop,
                system_instruction=self._types.Content(parts=system) if system else None,
                automatic_function_calling=self._types.AutomaticFunctionCallingConfig(disable=True),
            )
        except ValueError as exc:
            raise ConfigError(f"Gemini's SDK refuses the sampling arguments: {_first_error(exc)}") from None
        return _GeminiRequest(name, contents, config)

    async def _send(self, request: _GeminiRequest) -> types.GenerateContentResponse:
        return await self._sdk.aio.models.generate_content(
            model=request.model, contents=list(request.contents), config=request.config
        )

    def _read(
        self, name: str, response: types.GenerateContentResponse, request_bytes: int, retries: int
    ) -> ModelReply:
        candidate = response.candidates[0] if response.candidates else None
        reason = candidate.finish_reason.value if candidate and candidate.finish_reason else None
        parts = (candidate.content.parts if candidate and candidate.content else None) or []
        content = "".join(part.text for part in parts if part.text and not part.thought)
        reasoning = "\n\n".join(part.text for part in parts if part.text and part.thought) or None
        refusal = _refusal(response, reason)
        if refusal is not None:
            content = ""
        echo: Message | None = None
        if content and any(part.thought_signature for part in parts):
            native = [_kept(part) for part in parts if part.text is not None]
            echo = {
                "role": "assistant",
                "content": content,
                "native": {"provider": _PROVIDER, "model": name, "content": native},
            }
        return ModelReply(
            content=content,
            model=name,
            usage=_usage(response.usage_metadata, request_bytes, f"{content}{reasoning or ''}"),
            finish_reason="content_filter"
            if refusal
            else _FINISH.get(reason or "", reason and reason.lower()),
            reasoning=reasoning,
            echo=echo,
            refusal=refusal,
            retries=retries,
        )

    async def _window(self, name: str) -> int | None:
        return (await self._sdk.aio.models.get(model=name)).input_token_limit

    def _chat(self, messages: Sequence[Message], model: str) -> tuple[list[types.Part], list[types.Content]]:
        """The parts of the system instruction, and the turns. Successive messages of the same role become one turn."""
        system: list[types.Part] = []
        turns: list[types.Content] = []
        for message in messages:
            native = message.get("native")
            if native and (native["provider"], native["model"]) == (_PROVIDER, model):
                parts = [self._signed(part) for part in native["content"]]
            else:
                parts = [self._part(part) for part in parts_of(message["content"])]
            if message["role"] == "system":
                system += parts
                continue
            if not parts and message["role"] == "assistant":
                continue
            role = "model" if message["role"] == "assistant" else "user"
            parts = parts or [self._types.Part(text=_EMPTY)]
            if turns and turns[-1].role == role:
                turns[-1] = self._types.Content(role=role, parts=[*(turns[-1].parts or []), *parts])
            else:
                turns.append(self._types.Content(role=role, parts=parts))
        if not turns:
            raise ConfigError("the Gemini API needs a message besides the system prompt")
        return system, turns

    def _part(self, part: PlainText | MediaPart | RemoteImage) -> types.Part:
        match part:
            case PlainText(text):
                return self._types.Part(text=text or _EMPTY)
            case MediaPart(media_type, data):
                blob = self._types.Blob(mime_type=media_type, data=base64.b64decode(data))
                return self._types.Part(inline_data=blob)
            case RemoteImage(url):
                kind = mimetypes.guess_type(url.partition("?")[0])[0]
                if kind is None:
                    raise ConfigError(
                        f"Gemini needs the type of the image {url[:200]}, and the URL does not end in a known suffix: send "
                        "the image itself as a data URL"
                    )
                return self._types.Part(file_data=self._types.FileData(file_uri=url, mime_type=kind))

    def _signed(self, part: dict[str, Any]) -> types.Part:
        """The part that `_kept` made plain data of."""
        signature = part.get("thought_signature")
        return self._types.Part(
            text=part["text"],
            thought=part.get("thought"),
            thought_signature=None if signature is None else base64.b64decode(signature),
        )


def _kept(part: types.Part) -> dict[str, Any]:
    """The fields of a part that must be sent back, as plain data."""
    kept: dict[str, Any] = {"text": part.text}
    if part.thought:
        kept["thought"] = True
    if part.thought_signature is not None:
        kept["thought_signature"] = base64.b64encode(part.thought_signature).decode()
    return kept


def _refusal(response: types.GenerateContentResponse, reason: str | None) -> str | None:
    if reason in _FILTERED:
        return f"the provider's filter ended the reply: {reason}"
    if response.candidates:
        return None
    feedback = response.prompt_feedback
    if feedback is not None and feedback.block_reason is not None:
        why = feedback.block_reason.value
        return feedback.block_reason_message or f"the provider's filter refused the prompt: {why}"
    return "the provider sent no reply and no reason"


def _usage(usage: types.GenerateContentResponseUsageMetadata | None, request_bytes: int, text: str) -> Usage:
    """The usage that the API reports, or else an estimate. Thoughts count as output, because they are charged as output."""
    if usage is None:
        return estimated(request_bytes, text)
    read = (count(usage.prompt_token_count) or 0) + (count(usage.tool_use_prompt_token_count) or 0)
    written = (count(usage.candidates_token_count) or 0) + (count(usage.thoughts_token_count) or 0)
    return Usage(read, written, None, min(count(usage.cached_content_token_count) or 0, read))


def _first_error(exc: ValueError) -> str:
    """The first error of pydantic, with its field."""
    errors = getattr(exc, "errors", None)
    if callable(errors) and (found := errors()):
        return f"{'.'.join(str(step) for step in found[0]['loc'])}: {found[0]['msg']}"
    return str(exc)


def _unused_transport(request: Any) -> Any:
    """The transport of the SDK's client for blocking calls. The SDK requires a transport, but nothing calls this one."""
    raise NotImplementedError
