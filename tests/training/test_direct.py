"""`train_subcalls = "direct"`: sub-calls go straight to the model server, and the root's calls through the endpoint."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import verifiers.v1 as vf

from rlm.clients.pool import open_pools
from rlm.testing import ChatRequest, Fault, ModelServer, Reply, finish, repl_block
from rlm_train.direct_client import DirectClient
from rlm_train.testing import InferenceServer

ASK = repl_block('replies = llm_query_batched(["one", "two", "one"])\nprint(replies)')
ASK_CHILD = repl_block('print(rlm_query("count the letters"))')
CHILD = finish('"7"')
ANSWER = finish("str(len(context.split()))")


def policy(request: ChatRequest) -> Any:
    if request.is_subcall:
        return Fault(400, "no") if request.text == "break" else f"echo {request.text}"
    if "of 17 characters" in request.messages[1]["content"]:
        return CHILD
    return [ASK, ASK_CHILD, ANSWER][request.turn]


def is_root(request: ChatRequest) -> bool:
    return not request.is_subcall and "How many fruits" in request.messages[1]["content"]


async def test_only_the_root_is_in_the_trace(run: Any) -> None:
    server = ModelServer(policy)
    trace = await run(policy, server=server, train_subcalls="direct", max_depth=2)
    assert trace.ok
    assert trace.reward == 1.0
    assert [node.message.content for node in trace.nodes if node.sampled] == [ASK, ASK_CHILD, ANSWER]
    assert len(trace.calls) == 3
    assert trace.info["rlm"]["root_nodes"] == list(range(len(trace.nodes)))
    assert "echo two" in trace.nodes[3].message.content
    # Only verifiers' own calls carry the id of the trace.
    passed = {is_root(request): "x-session-id" in request.headers for request in server.requests}
    assert passed == {True: True, False: False}


async def test_direct_calls_are_summed_up_in_the_trace(run: Any) -> None:
    trace = await run(policy, train_subcalls="direct", max_depth=2)
    direct, stats = trace.info["rlm"]["direct"], trace.info["rlm"]["stats"]
    assert (direct["calls"], direct["failures"], direct["retries"]) == (4, 0, 0)
    assert direct["input_tokens"] == stats["sub_input_tokens"] > 0
    assert direct["output_tokens"] == stats["sub_output_tokens"] > 0
    assert direct["seconds"] > 0
    assert stats["subcalls"] == 4
    [usage] = trace.extra_usage
    assert usage.input_tokens == direct["input_tokens"]
    assert usage.completion_tokens == direct["output_tokens"]


async def test_without_direct_calls_the_trace_has_no_sum(run: Any) -> None:
    trace = await run(policy, max_depth=2)
    assert "direct" not in trace.info["rlm"]
    assert trace.extra_usage == []


async def test_one_branch_and_only_the_roots_tokens_are_trained(train_run: Any, token_server: Any) -> None:
    server = token_server(policy)
    trace = await train_run(policy, server=server, train_subcalls="direct", max_depth=2)
    assert trace.reward == 1.0
    [branch] = trace.branches
    sampled = [node for node in branch.nodes if node.sampled]
    assert [node.message.content for node in sampled] == [ASK, ASK_CHILD, ANSWER]
    assert all(sum(node.mask) == len(node.logprobs) > 0 for node in sampled)
    assert all(node.loss_weights is None for node in branch.nodes)
    # The root's calls ask for tokens, the calls below it for chat completions.
    assert [generation.request.turn for generation in server.generations] == [0, 1, 2]
    assert sorted(request.turn for request in server.requests) == [0] * 4


async def test_direct_calls_have_the_runs_sampling(
    tokenizer_path: Path, token_client: Any, task: Any
) -> None:
    """The trainer sets the adapter and the sampling. The renderer's setting for thinking goes to the chat template."""
    async with InferenceServer(policy, tokenizer_path, models=("base", "adapter-7")) as server:
        agent = vf.Agent(
            vf.AgentConfig.model_validate(
                {
                    "model": "adapter-7",
                    "client": {
                        **token_client,
                        "base_url": server.base_url,
                        "headers": {"X-Team": "blue"},
                        "api_key_var": "RLM_TEST_KEY",
                    },
                    "sampling": {
                        "temperature": 0.7,
                        "max_completion_tokens": 500,
                        "logprobs": True,
                        "extra_body": {"top_k": 20, "cache_salt": "3", "return_token_ids": True},
                    },
                    "harness": {"id": "rlm-train", "train_subcalls": "direct"},
                    "runtime": {"type": "subprocess"},
                }
            )
        )
        async with agent:
            trace = await agent.run(task())
    assert trace.reward == 1.0
    sub_calls = [request for request in server.requests if not is_root(request)]
    assert len(sub_calls) == 4
    for request in sub_calls:
        assert request.model == "adapter-7"
        assert request.headers["x-team"] == "blue"
        assert request.sampling == {
            "temperature": 0.7,
            "max_tokens": 500,
            "top_k": 20,
            "cache_salt": "3",
            "chat_template_kwargs": {"enable_thinking": False},
        }


async def test_a_failed_sub_call_is_one_failed_item(run: Any) -> None:
    code = repl_block('reply = llm_query("break")\nassert isinstance(reply, SubcallError)')
    trace = await run(
        lambda request: [code, ANSWER][request.turn] if is_root(request) else policy(request),
        train_subcalls="direct",
    )
    assert trace.reward == 1.0
    assert trace.info["rlm"]["direct"]["failures"] == 1
    assert trace.metrics["subcall_failures"] == 1
    assert not any(call.error for call in trace.calls)


async def test_token_limits_count_direct_calls(run: Any) -> None:
    trace = await run(policy, train_subcalls="direct", max_tokens=1000)
    assert trace.info["rlm"]["stop"] == "token_limit"
    assert trace.stop_condition == "max_total_tokens"


async def test_a_prompt_over_the_servers_window_is_not_sent(run: Any) -> None:
    code = repl_block('reply = llm_query("long " * 10_000)\nassert isinstance(reply, SubcallError)')
    server = ModelServer(
        lambda request: [code, ANSWER][request.turn] if is_root(request) else "no", max_model_len=8_000
    )
    trace = await run(None, server=server, train_subcalls="direct")
    assert trace.reward == 1.0
    assert trace.metrics["subcall_failures"] == 1
    assert all(is_root(request) for request in server.requests)


class TokensOnly(ModelServer):
    """A server without chat completions."""

    def routes(self) -> list[Any]:
        return [route for route in super().routes() if route[1] != "/v1/chat/completions"]


async def test_a_server_without_chat_completions_is_a_config_failure(run: Any) -> None:
    trace = await run(None, server=TokensOnly(policy), train_subcalls="direct")
    failure = trace.info["rlm"]["failure"]
    assert trace.ok
    assert trace.rewards["correct"].score == 0.0
    assert (failure["where"], failure["type"]) == ("config", "ConfigError")
    assert 'train_subcalls = "direct" needs chat completions at http://' in failure["message"]


def context(url: str, **sampling: Any) -> vf.ModelContext:
    client = vf.EvalClientConfig.model_validate({"base_url": url, "api_key_var": "RLM_TEST_KEY"})
    return vf.ModelContext(
        model="scripted", client=client, sampling=vf.SamplingConfig.model_validate(sampling)
    )


async def test_the_check_for_chat_completions_is_made_once_per_server() -> None:
    async with TokensOnly(policy) as server:
        before = server.connections
        clients = [DirectClient(context(server.base_url)) for _ in range(8)]
        results = await asyncio.gather(*(client.check() for client in clients), return_exceptions=True)
        assert len({str(result) for result in results}) == 1
        assert server.connections - before == 1


async def test_a_server_that_does_not_answer_passes_the_check() -> None:
    server = ModelServer(policy)
    async with server:
        url = server.base_url
    client = DirectClient(context(url))
    await client.check()
    server = ModelServer(policy, port=server.port)
    async with server:
        await client.check()
        assert (await client.complete([{"role": "user", "content": "one"}])).content == "echo one"


async def test_rollouts_share_the_connections_to_the_server() -> None:
    async with ModelServer(lambda request: Reply("ok", delay=0.01)) as server:
        before = open_pools()
        clients = [DirectClient(context(server.base_url)) for _ in range(5)]
        for client in clients:
            await client.complete([{"role": "user", "content": "one"}])
        assert open_pools() - before == 1
        assert server.connections == 1
    assert [client.usage.calls for client in clients] == [1] * 5


@pytest.mark.parametrize(
    ("url", "sampling", "words"),
    [
        ("ftp://host/v1", {}, "http"),
        ("http://host/v1", {"n": 2}, "n must be 1"),
    ],
)
def test_a_url_that_cannot_be_a_model_server_is_refused(
    url: str, sampling: dict[str, Any], words: str
) -> None:
    ctx = context(url, **sampling)
    with pytest.raises(ValueError, match=words):
        DirectClient(ctx)
