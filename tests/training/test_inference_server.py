"""`rlm_train.testing.InferenceServer`, with the requests of verifiers and prime-rl."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rlm.testing import ChatRequest, Reply
from rlm_train.testing import (
    ControlCall,
    Generation,
    InferenceServer,
    SampleMismatchError,
    build_tokenizer,
    generations_of,
)


class Chat:
    """Requests made with the real tokenizer and renderer."""

    def __init__(self, folder: Path, **renderer: Any) -> None:
        from renderers import Qwen3RendererConfig, create_renderer
        from renderers.base import load_tokenizer

        self.tokenizer: Any = load_tokenizer(str(folder))
        config = Qwen3RendererConfig(**{"enable_thinking": False, **renderer})
        self.renderer: Any = create_renderer(self.tokenizer, config)

    def ids(self, *messages: dict[str, Any]) -> list[int]:
        return list(self.renderer.render_ids(list(messages), add_generation_prompt=True))

    def body(self, *messages: dict[str, Any], **sampling: Any) -> dict[str, Any]:
        end = self.renderer.get_stop_token_ids()
        params = {"logprobs": 1, "stop_token_ids": end, "skip_special_tokens": False, **sampling}
        return {"model": "scripted", "token_ids": self.ids(*messages), "sampling_params": params}


SYSTEM = {"role": "system", "content": "Be brief.\n"}
HELLO = {"role": "user", "content": "Hello <b>you</b> é\n\n"}


@pytest.fixture(scope="module")
def chat(tokenizer_path: Path) -> Chat:
    return Chat(tokenizer_path)


def upper(request: ChatRequest) -> str:
    return request.text.upper()


async def post(server: InferenceServer, path: str, body: Any = None, **query: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session:
        sent = session.post(server.url + path, json=body, params=query, headers={"X-Session-ID": "r7"})
        async with sent as response:
            return response.status, await response.json()


async def generate(server: InferenceServer, body: dict[str, Any]) -> tuple[int, Any]:
    return await post(server, "/inference/v1/generate", body)


async def test_generate_takes_and_gives_tokens(chat: Chat, tokenizer_path: Path) -> None:
    body = chat.body(SYSTEM, HELLO, temperature=0.5, max_tokens=100, cache_salt="v3")
    async with InferenceServer(upper, tokenizer_path) as server:
        status, answer = await generate(server, body)
    [choice] = answer["choices"]
    assert status == 200
    assert chat.tokenizer.decode(choice["token_ids"]) == HELLO["content"].upper() + "<|im_end|>"
    assert choice["finish_reason"] == "stop"
    logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
    assert tokens == [f"token_id:{token}" for token in choice["token_ids"]]
    assert all(-1 <= value < 0 for value in logprobs)
    [generation] = server.generations
    assert generation.prompt_ids == tuple(body["token_ids"])
    assert generation.completion_ids == tuple(choice["token_ids"])
    assert generation.logprobs == tuple(logprobs)
    assert (generation.session, generation.cache_salt, generation.versions) == ("r7", "v3", (0, 0))
    assert generation.request.messages == [SYSTEM, HELLO]
    assert generation.request.sampling["temperature"] == 0.5


async def test_equal_calls_have_different_log_probabilities(chat: Chat, tokenizer_path: Path) -> None:
    async with InferenceServer(upper, tokenizer_path) as server:
        for _ in range(3):
            await generate(server, chat.body(HELLO))
    one, two, three = server.generations
    assert one.prompt_ids == two.prompt_ids == three.prompt_ids
    assert one.completion_ids == two.completion_ids == three.completion_ids
    size = len(one.prompt_ids)
    ids = [*two.prompt_ids, *two.completion_ids]
    mask = [False] * size + [True] * (len(ids) - size)
    assert generations_of(ids, mask, [0.0] * size + [*two.logprobs], server.generations) == [two]


async def test_the_policy_gets_the_messages_of_the_tokens(chat: Chat, tokenizer_path: Path) -> None:
    thought = Reply("yes", reasoning="Let me\n\nthink.")
    thinking = Chat(tokenizer_path, enable_thinking=True)
    async with InferenceServer(lambda _: thought, tokenizer_path) as server:
        await generate(server, thinking.body(HELLO))
        first = server.generations[0]
        # The renderer's prompt that extends sampled tokens, and its prompt for the same conversation rendered anew.
        later = thinking.renderer.bridge_to_next_turn(
            list(first.prompt_ids),
            list(first.completion_ids),
            [{"role": "tool", "content": "7"}, {"role": "user", "content": "And?"}],
        )
        assert later is None
        said = {"role": "assistant", "content": "yes", "reasoning_content": "Let me\n\nthink."}
        await generate(server, thinking.body(HELLO, said, HELLO))
        await generate(server, chat.body(HELLO, {"role": "assistant", "content": "no"}, HELLO))
        answers = chat.tokenizer.decode(list(first.completion_ids))
    assert answers == "<think>\nLet me\n\nthink.\n</think>\n\nyes<|im_end|>"
    messages = [generation.request.messages for generation in server.generations]
    # Qwen3's template drops the thoughts before the last question.
    assert messages[1] == [HELLO, {"role": "assistant", "content": "yes"}, HELLO]
    assert messages[2] == [HELLO, {"role": "assistant", "content": "no"}, HELLO]


async def test_replies_can_be_spelled_in_single_characters(chat: Chat, tokenizer_path: Path) -> None:
    text = "<think>\nprint the answer\n</think>\n\nprint the answer"
    async with InferenceServer(lambda _: text, tokenizer_path, spell=True) as server:
        _, answer = await generate(server, chat.body(HELLO))
    ids = answer["choices"][0]["token_ids"]
    assert chat.tokenizer.decode(ids) == f"{text}<|im_end|>"
    assert len(ids) == len(text) - len("<think></think>") + 3
    assert len(chat.tokenizer.encode(text)) < len(ids) / 2


async def test_limits_are_counted_in_tokens(chat: Chat, tokenizer_path: Path) -> None:
    prompt = len(chat.ids(HELLO))
    async with InferenceServer(lambda _: "a b c d e f", tokenizer_path, max_model_len=prompt + 4) as server:
        _, answer = await generate(server, chat.body(HELLO, max_tokens=3))
        _, room = await generate(server, chat.body(HELLO))
        over, message = await generate(server, chat.body(HELLO, max_tokens=5))
        long, _ = await generate(server, chat.body(HELLO, HELLO))
    assert [len(a["choices"][0]["token_ids"]) for a in (answer, room)] == [3, 4]
    assert answer["choices"][0]["finish_reason"] == room["choices"][0]["finish_reason"] == "length"
    assert (over, long) == (400, 400)
    assert f"This model's maximum context length is {prompt + 4} tokens" in message["error"]["message"]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"prompt": "x"}, 400, "unknown fields: prompt"),
        ({"model": "other"}, 404, "`other` does not exist"),
        ({"token_ids": []}, 400, "token_ids"),
        ({"token_ids": ["1"]}, 400, "token_ids"),
        ({"token_ids": [1, 2, 3]}, 400, "does not begin with a message"),
        ({"token_ids": [10**6]}, 400, "token ids must be from 0"),
        ({"sampling_params": {"temprature": 1}}, 400, "unknown sampling parameters: temprature"),
        ({"sampling_params": {"logprobs": 5}}, 400, "logprobs must be 1"),
        ({"sampling_params": {"logprobs": 1}}, 400, "stop_token_ids"),
        ({"sampling_params": None}, 400, "sampling_params must be an object"),
    ],
)
async def test_requests_that_vllm_would_refuse_are_refused(
    chat: Chat, tokenizer_path: Path, change: dict[str, Any], status: int, words: str
) -> None:
    async with InferenceServer(upper, tokenizer_path) as server:
        got, answer = await generate(server, {**chat.body(HELLO), **change})
        unfinished = chat.body(HELLO)
        unfinished["token_ids"] = chat.renderer.render_ids([HELLO], add_generation_prompt=False)
        cut, _ = await generate(server, unfinished)
    assert (got, cut) == (status, 400)
    assert words in answer["error"]["message"]
    assert server.generations == []


async def test_new_weights_need_a_pause_and_keep_requests_in_flight(
    chat: Chat, tokenizer_path: Path, tmp_path: Path
) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()

    async def policy(_: ChatRequest) -> str:
        asked.set()
        await answered.wait()
        return "late"

    async with InferenceServer(policy, tokenizer_path) as server:
        weights = {"weight_dir": str(tmp_path)}
        assert (await post(server, "/update_weights", weights))[0] == 409
        flight = asyncio.create_task(generate(server, chat.body(HELLO)))
        await asked.wait()
        assert (await post(server, "/pause", mode="keep", clear_cache="false"))[0] == 200
        answered.set()
        next_one = asyncio.create_task(generate(server, chat.body(HELLO)))
        assert (await post(server, "/update_weights", {"weight_dir": str(tmp_path / "no")}))[0] == 404
        assert (await post(server, "/update_weights", {"weights": "x"}))[0] == 400
        assert (await post(server, "/update_weights", weights))[0] == 200
        assert not flight.done()
        assert (await post(server, "/resume"))[0] == 200
        assert [(await flight)[0], (await next_one)[0]] == [200, 200]
        assert (await post(server, "/pause", mode="abort"))[0] == 400
    assert server.version == 1
    assert sorted(generation.versions for generation in server.generations) == [(0, 1), (1, 1)]
    assert server.calls == [
        ControlCall("/pause", {"mode": "keep", "clear_cache": "false"}),
        ControlCall("/update_weights", weights),
        ControlCall("/resume", {}),
    ]


async def test_an_adapter_is_a_model_once_it_is_loaded(
    chat: Chat, tokenizer_path: Path, tmp_path: Path
) -> None:
    async with InferenceServer(upper, tokenizer_path) as server:
        body = {**chat.body(HELLO), "model": "r16"}
        assert (await generate(server, body))[0] == 404
        adapter = {"lora_name": "r16", "lora_path": str(tmp_path)}
        assert (await post(server, "/load_lora_adapter", {**adapter, "lora_path": "/no"}))[0] == 404
        assert (await post(server, "/load_lora_adapter", {"lora_name": "r16"}))[0] == 400
        assert (await post(server, "/load_lora_adapter", adapter))[0] == 200
        assert (await generate(server, body))[0] == 200
        chatted = await post(server, "/v1/chat/completions", {"model": "r16", "messages": [HELLO]})
        assert chatted[0] == 200
        async with aiohttp.ClientSession() as session, session.get(f"{server.base_url}/models") as response:
            names = [entry["id"] for entry in (await response.json())["data"]]
    assert names == ["scripted", "r16"]
    assert server.version == 1


async def test_metrics_can_be_scraped(tokenizer_path: Path) -> None:
    async with (
        InferenceServer(upper, tokenizer_path) as server,
        aiohttp.ClientSession() as session,
        session.get(f"{server.url}/metrics") as response,
    ):
        text = await response.text()
    assert 'vllm:num_requests_running{engine="0",model_name="scripted"} 0.0' in text.splitlines()
    assert "# TYPE vllm:num_preemptions counter" in text.splitlines()
    assert 'kv_cache_size_tokens="4194304"' in text


def test_the_tokenizer_is_the_same_each_time(tokenizer_path: Path, tmp_path: Path) -> None:
    again = build_tokenizer(tmp_path / "made")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (tokenizer_path / name).read_bytes()


def generation(prompt: list[int], completion: list[int]) -> Generation:
    logprobs = tuple(-token / 10 for token in completion)
    request = ChatRequest([], "m")
    return Generation(tuple(prompt), tuple(completion), logprobs, "m", None, None, (0, 0), request)


FIRST = generation([1, 2], [3, 4])
SECOND = generation([1, 2, 3, 4, 5], [6])
SAMPLE = (
    [1, 2, 3, 4, 5, 6, 7],
    [False, False, True, True, False, True, False],
    [0, 0, -0.3, -0.4, 0, -0.6, 0],
)


def test_the_calls_of_a_sample_are_found() -> None:
    assert generations_of(*SAMPLE, [SECOND, FIRST]) == [FIRST, SECOND]
    assert generations_of([1, 2], [False, False], [0.0, 0.0], [FIRST]) == []


@pytest.mark.parametrize(
    ("part", "place", "value", "words"),
    [
        (0, 0, 9, "no call had the 2 tokens"),
        (0, 4, 9, "no call had the 5 tokens"),
        (0, 3, 9, "differ from every answer"),
        (1, 3, False, "differ from every answer"),
        (1, 6, True, "differ from every answer"),
        (2, 3, -0.5, "differ from every answer"),
        (2, 1, -0.5, "tokens 0 to 2"),
        (2, 4, -0.5, "tokens 4 to 5"),
        (2, 6, -0.5, "tokens from 6"),
    ],
)
def test_a_sample_that_differs_from_the_servers_calls_is_refused(
    part: int, place: int, value: Any, words: str
) -> None:
    changed: list[Any] = [list(column) for column in SAMPLE]
    changed[part][place] = value
    with pytest.raises(SampleMismatchError, match=words):
        generations_of(changed[0], changed[1], changed[2], [FIRST, SECOND])
    with pytest.raises(SampleMismatchError, match="6 marks"):
        generations_of(SAMPLE[0], SAMPLE[1][:-1], SAMPLE[2], [FIRST, SECOND])
