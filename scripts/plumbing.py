"""Checks of the engine that need a real vLLM: a scripted server cannot replace it.

Where a check needs certain code to run, the root is scripted. Every checked call goes to vLLM. Counts are compared with
vLLM's own counts (`/metrics`, `/tokenize`), so the server must have no other clients meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from rlm import RLM
from rlm.clients.openai import OpenAIClient
from rlm.errors import ContextLengthError, ModelNotFoundError
from rlm.testing import Script, ScriptedClient
from rlm.types import Message, RLMChatCompletion

SUBCALLS = 16
BLOCK = 256
"""Tokens: at least the size of a block in vLLM's prefix cache, which keeps only whole blocks."""
PATIENCE = 120.0
"""Seconds within which the server must reach an expected state."""


class CheckFailedError(Exception):
    """The server or the engine did not behave as expected."""


@dataclass(frozen=True, slots=True)
class VLLM:
    """The server under test."""

    base_url: str
    """URL of the API, with /v1 at its end."""
    model: str
    api_key: str | None = None

    def client(self, **sampling: Any) -> OpenAIClient:
        return OpenAIClient(
            self.model,
            base_url=self.base_url,
            api_key=self.api_key,
            sampling_args={"temperature": 0.0} | sampling,
        )

    async def metrics(self) -> dict[str, float]:
        """Values of `/metrics`, summed over all labels except `finished_reason`. Names are without the prefix `vllm:`."""
        values: dict[str, float] = {}
        for line in (await self._get("/metrics")).decode().splitlines():
            match = re.match(r"vllm:(\w+)(?:\{(.*)\})? (\S+)$", line)
            if match is None:
                continue
            name, labels, value = match.groups()
            reason = re.search(r'finished_reason="(\w+)"', labels or "")
            key = f"{name}:{reason[1]}" if reason else name
            values[key] = values.get(key, 0.0) + float(value)
        return values

    async def tokens(self, messages: Sequence[Message], *, for_reply: bool = True) -> list[int]:
        """The token ids of a chat, by the model's template and tokenizer."""
        body = {"model": self.model, "messages": list(messages), "add_generation_prompt": for_reply}
        reply = json.loads(await self._get("/tokenize", json.dumps(body).encode()))
        return [int(token) for token in reply["tokens"]]

    async def _get(self, path: str, body: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        url = self.base_url.removesuffix("/v1") + path
        request = urllib.request.Request(url, body, headers)

        def fetch() -> bytes:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return bytes(answer.read())

        return await asyncio.to_thread(fetch)

    async def wait_until(self, what: str, holds: Callable[[dict[str, float]], bool]) -> None:
        """Waits until the metrics meet a condition.

        Args:
            what: description of the condition.
            holds: the condition.

        Raises:
            CheckFailedError: they did not meet it within `PATIENCE` seconds.
        """
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while not holds(await self.metrics()):
            if asyncio.get_running_loop().time() > deadline:
                raise CheckFailedError(f"after {PATIENCE:.0f} s this did not hold: {what}")
            await asyncio.sleep(0.1)

    async def run_code(self, *cells: str, concurrency: int = SUBCALLS, **sampling: Any) -> RLMChatCompletion:
        """Runs an RLM whose root writes these cells, one per turn, and whose sub-calls go to the server."""
        script = Script([f"```repl\n{cell}\n```" for cell in cells])
        rlm = RLM(
            client=ScriptedClient(script),
            other_clients=[self.client(**sampling)],
            max_concurrent_subcalls=concurrency,
        )
        try:
            return await rlm.acompletion("no text", root_prompt="none")
        finally:
            await rlm.aclose()


def expect(condition: bool, problem: str) -> None:
    if not condition:
        raise CheckFailedError(problem)


def chat(turns: int) -> list[Message]:
    """A history in the engine's form: system, then user and assistant in turn, with a user message at the end."""
    messages: list[Message] = [{"role": "system", "content": "You are a careful worker. " * 40}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"It printed:\n{turn} " + "line of output\n" * 60})
        messages.append({"role": "assistant", "content": f"I look on.\n```repl\nprint({turn})\n```"})
    messages.append({"role": "user", "content": "Say: done"})
    return messages


async def chat_template(server: VLLM) -> str:
    """The model's template accepts alternating messages and always renders earlier turns in the same way, and the reported
    usage is the tokenizer's count."""
    history = chat(2)
    tokens = await server.tokens(history)
    for end in range(2, len(history), 2):
        earlier = await server.tokens(history[:end])
        later = await server.tokens([*history[:end], history[end]], for_reply=False)
        expect(
            later[: len(earlier)] == earlier,
            f"a later message changes how the template renders the first {end}",
        )
    reply = await server.client(max_tokens=4).complete(history)
    counted = reply.usage.input_tokens
    expect(counted == len(tokens), f"usage says {counted} prompt tokens, the tokenizer {len(tokens)}")
    expect(
        0 < reply.usage.output_tokens <= 4, f"usage says {reply.usage.output_tokens} tokens of a reply of 4"
    )
    return f"6 messages, {len(tokens)} tokens, each earlier turn a prefix of the next"


async def prefix_cache(server: VLLM) -> str:
    """Each turn finds the earlier turns in the prefix cache, and its reply reports them."""
    client = server.client(max_tokens=1)
    before = await server.metrics()
    shares = []
    previous = 0
    for turns in range(1, 4):
        usage = (await client.complete(chat(turns))).usage
        if previous:
            least = (previous - BLOCK) // BLOCK * BLOCK
            expect(
                usage.cached_tokens >= max(least, 1),
                f"{usage.cached_tokens} of {usage.input_tokens} tokens were cached; the previous turn had {previous}",
            )
            shares.append(f"{usage.cached_tokens}/{usage.input_tokens}")
        previous = usage.input_tokens
    hits = (await server.metrics())["prefix_cache_hits_total"] - before["prefix_cache_hits_total"]
    expect(hits > 0, "/metrics counts no hits of the prefix cache")
    return f"cached tokens by turn: {', '.join(shares)}"


async def context_length(server: VLLM) -> str:
    """A prompt that vLLM refuses as too long is a ContextLengthError, and the engine refuses it unsent."""
    client = server.client(max_tokens=4)
    window = await client.context_length()
    expect(window is not None, "the server does not report its window")
    assert window is not None
    try:
        await client.complete([{"role": "user", "content": "word " * (window + 100)}])
    except ContextLengthError as error:
        expect(error.status == 400, f"the status was {error.status}")
    else:
        raise CheckFailedError("a prompt over the window was answered")
    before = await server.metrics()
    done = await server.run_code(
        f"r = llm_query('word ' * {2 * window})\nprint(isinstance(r, SubcallError), r)",
        "answer['content'], answer['ready'] = str(isinstance(r, SubcallError)), True",
        max_tokens=4,
    )
    expect(done.response == "True" and done.stats.subcall_failures == 1, f"the code got {done.response!r}")
    expect(await server.metrics() == before, "the sub-call was sent to the server")
    return f"window {window:,}: 400 from vLLM is a ContextLengthError; refused unsent by the engine"


async def unknown_model(server: VLLM) -> str:
    """A call of an unknown model is a ModelNotFoundError that names the known models."""
    try:
        await server.client().complete([{"role": "user", "content": "hello"}], model="no-such-model")
    except ModelNotFoundError as error:
        expect(server.model in str(error), f"the error does not name the known models: {error}")
        return "404 is a ModelNotFoundError that names the models"
    raise CheckFailedError("an unknown model answered")


async def subcalls(server: VLLM) -> str:
    """Sub-calls run at once, return in order, and are counted once: the engine's sums are the server's."""
    before = await server.metrics()
    running: list[float] = []

    async def watch() -> None:
        while True:
            running.append((await server.metrics())["num_requests_running"])
            await asyncio.sleep(0.05)

    watcher = asyncio.create_task(watch())
    try:
        done = await server.run_code(
            f"prompts = [f'Write the number {{i}} and nothing else.' for i in range(10, {10 + SUBCALLS})]\n"
            "replies = llm_query_batched(prompts)\n"
            "failed = sum(isinstance(r, SubcallError) for r in replies)\n"
            "right = sum(str(i) in r for i, r in enumerate(replies, 10))",
            "answer['content'], answer['ready'] = f'{failed} {right}', True",
            max_tokens=8,
            ignore_eos=True,
        )
    finally:
        watcher.cancel()
    failed, right = map(int, done.response.split())
    expect(failed == 0, f"{failed} of {SUBCALLS} sub-calls failed")
    expect(right > SUBCALLS // 2, f"only {right} of {SUBCALLS} replies fit their prompts: out of order?")
    expect(max(running) > SUBCALLS // 2, f"at most {max(running):.0f} of {SUBCALLS} ran at once")
    after = await server.metrics()
    counted = done.usage_summary.model_usage_summaries[server.model]
    for name, ours in (
        ("prompt_tokens_total", counted.total_input_tokens),
        ("generation_tokens_total", counted.total_output_tokens),
    ):
        theirs = after[name] - before[name]
        expect(ours == theirs, f"the engine counted {ours} of {name}, the server counted {theirs:.0f}")
    expect(counted.total_calls == SUBCALLS, f"{counted.total_calls} calls were counted")
    sent, got = counted.total_input_tokens, counted.total_output_tokens
    return (
        f"{SUBCALLS} at once (server saw {max(running):.0f}), {right} echoed their number; "
        f"{sent} + {got} tokens, by the engine's and the server's count"
    )


async def cancelled(server: VLLM) -> str:
    """Cancelling a run ends its requests at the server."""
    before = await server.metrics()
    run = asyncio.create_task(
        server.run_code("llm_query_batched(['Count up from 1.'] * 4)", max_tokens=1000, ignore_eos=True)
    )
    try:
        await server.wait_until("four requests run", lambda now: now["num_requests_running"] == 4)
    finally:
        run.cancel()
        await asyncio.wait([run])
    expect(run.cancelled(), "the run did not end as cancelled")
    await server.wait_until("the server is idle", lambda now: now["num_requests_running"] == 0)
    after = await server.metrics()
    wasted = after["generation_tokens_total"] - before["generation_tokens_total"]
    expect(wasted < 4 * 1000, "the server generated all replies in full")
    return f"4 requests gone from the server, after {wasted:.0f} of 4,000 tokens"


CHECKS: dict[str, Callable[[VLLM], Coroutine[Any, Any, str]]] = {
    "chat template": chat_template,
    "prefix cache": prefix_cache,
    "context length": context_length,
    "unknown model": unknown_model,
    "sub-calls and usage": subcalls,
    "cancelled run": cancelled,
}
