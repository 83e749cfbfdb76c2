"""The floor of `make bench-env`: a harness that makes the model calls of a rollout and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import aiohttp
import verifiers.v1 as vf

from benchmarks.scripted_policy import shape_of
from rlm_train.garbage_collector import settle_collector
from rlm_train.rollout_info import RolloutInfo

if TYPE_CHECKING:
    from rlm_train.token_masks import AnyTrace

__all__ = ["BareHarness"]


_sessions: list[AsyncGenerator[aiohttp.ClientSession]] = []
_session: aiohttp.ClientSession | None = None


async def _session_of_this_loop() -> aiohttp.ClientSession:
    """The session of this process. The end of the event loop closes it."""
    global _session
    if _session is None:

        async def live() -> AsyncGenerator[aiohttp.ClientSession]:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                yield session

        _sessions.append(live())
        _session = await anext(_sessions[0])
    return _session


class BareHarness(vf.Harness[vf.HarnessConfig]):
    """Makes the model calls that the engine makes for the same question, with messages of the same size."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = False
    EXECUTES_CODE = True
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: AnyTrace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        settle_collector()  # the engine's harness does it too, so the floor has the same conditions
        session = await _session_of_this_loop()
        question = str(data.prompt)
        shape = shape_of(question)

        async def ask(messages: list[dict[str, Any]]) -> str:
            async with session.post(
                f"{endpoint}/chat/completions",
                json={"model": ctx.model, "messages": messages},
                headers={"Authorization": f"Bearer {secret}"},
            ) as response:
                reply = await response.json()
                return str(reply["choices"][0]["message"]["content"])

        history = [
            {"role": "system", "content": "x" * 3000},
            {"role": "user", "content": f"Question: {question}"},
        ]
        for turn in range(shape.turns):
            history.append({"role": "assistant", "content": await ask(history)})
            if turn == 0:
                prompts = [{"role": "user", "content": f"p{number}"} for number in range(shape.subcalls)]
                slots = asyncio.Semaphore(shape.at_once)

                async def one(prompt: dict[str, Any], slots: asyncio.Semaphore = slots) -> None:
                    async with slots:
                        await ask([prompt])

                await asyncio.gather(*map(one, prompts))
            history.append({"role": "user", "content": "y" * 200})
        RolloutInfo(answer=f"task {data.model_dump()['number']}").store(trace)
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")
