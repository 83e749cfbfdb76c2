"""Defects known from other engines, tried over a real server. Those of the REPL and of answers are tested with the REPL and
the answers."""

from __future__ import annotations

import warnings

from rlm import RLM
from rlm.testing import FINISH, ChatRequest, Reply, repl_block, serve


def make(url: str, max_iterations: int = 30) -> RLM:
    kwargs = {"model_name": "scripted", "base_url": url}
    return RLM(
        backend="vllm", backend_kwargs=kwargs, max_concurrent_subcalls=64, max_iterations=max_iterations
    )


def test_every_batch_over_one_client_is_answered() -> None:
    code = (
        "for _ in range(5):\n"
        "    r = llm_query_batched([str(i) for i in range(20)])\n"
        "    assert r == [f'<{i}>' for i in range(20)], r\n"
        "    assert not any(isinstance(item, SubcallError) for item in r)\n"
        "print('all answered')"
    )

    def policy(request: ChatRequest) -> str:
        if request.is_subcall:
            return f"<{request.text}>"
        return FINISH if request.turn else repl_block(code)

    with serve(policy) as server, make(server.base_url) as rlm:
        for _ in range(3):
            completion = rlm.completion("x", "What?")
            assert completion.iterations[0].observation.startswith("Output:\nall answered\n")
            assert completion.stats.subcall_failures == 0


def test_a_batch_of_the_size_that_the_prompt_recommends_is_answered() -> None:
    code = "r = llm_query_batched(['x' * 100_000] * 20)\nprint(r == ['100000'] * 20)"

    def policy(request: ChatRequest) -> str:
        if request.is_subcall:
            return str(len(request.text))
        return FINISH if request.turn else repl_block(code)

    with serve(policy) as server, make(server.base_url) as rlm:
        completion = rlm.completion("x", "What?")
    assert completion.iterations[0].observation.startswith("Output:\nTrue\n")


def test_a_reply_without_content_gets_an_instruction() -> None:
    replies: list[str | Reply] = [
        Reply(None, refusal="I will not."),
        Reply(None, finish_reason="length"),
        Reply(None, reasoning="I thought, and thought."),
        FINISH,
    ]
    with serve(lambda request: replies[request.turn]) as server, make(server.base_url) as rlm:
        completion = rlm.completion("x", "What?")
    assert completion.response == "done"
    assert completion.stats.truncated == 1
    assert all("nothing was run" in iteration.observation for iteration in completion.iterations[:3])


def test_each_item_of_a_batch_has_its_own_usage() -> None:
    def policy(request: ChatRequest) -> str:
        if request.is_subcall:
            return "word " * len(request.text)
        return FINISH if request.turn else repl_block("llm_query_batched(['a', 'bbbb', 'cccccccc' * 50])")

    with serve(policy) as server, make(server.base_url) as rlm:
        completion = rlm.completion("x", "What?")
    records = completion.iterations[0].code_blocks[0].rlm_calls
    assert len({record.output_tokens for record in records}) == 3
    assert sum(record.input_tokens for record in records) == completion.stats.sub_input_tokens
    assert sum(record.output_tokens for record in records) == completion.stats.sub_output_tokens


def test_the_last_call_does_not_end_with_the_assistant() -> None:
    with serve(lambda request: "no code") as server, make(server.base_url, max_iterations=3) as rlm:
        rlm.completion("x", "What?")
        asked = [request.messages for request in server.requests]
    assert len(asked) == 4
    for messages in asked:
        roles = [message["role"] for message in messages]
        assert roles == ["system", *["user", "assistant"] * len(asked)][: len(roles)]
        assert roles[-1] == "user"


def test_the_output_of_a_child_process_is_shown() -> None:
    code = "import os\nos.system('echo from a child')\nprint(input.__name__)"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with serve(lambda r: FINISH if r.turn else repl_block(code)) as server, make(server.base_url) as rlm:
            completion = rlm.completion("x", "What?")
    assert completion.iterations[0].observation.startswith("Output:\nfrom a child\ninput\n")
