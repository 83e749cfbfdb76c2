"""Which model answers a call, and what the call costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlm import RLM
from rlm.clients.base import Client, ModelReply, as_client
from rlm.clients.prices import Price
from rlm.errors import BudgetExceededError, ConfigError, ModelError
from rlm.testing import ChatRequest, Reply, ScriptedClient, finish, repl_block
from rlm.types import Message, SamplingArgs, StopReason, Usage


class Named(ScriptedClient):
    """Answers a plain call with its name. In a run it queries a sub-model, and answers with its name and the reply."""

    def __init__(self, name: str, model: str = "", **options: Any) -> None:
        self.name = name
        super().__init__(self._answer, model=model or name, **options)

    def _answer(self, request: ChatRequest) -> str:
        if not request.is_subcall:
            return finish(f"'{self.name}(' + rlm_query(context) + ')'")
        return self.name


async def ask(code: str, root: Any = None, **options: Any) -> Any:
    root = root or ScriptedClient(lambda _: finish(code), model="root")
    async with RLM(client=root, **options) as rlm:
        return await rlm.acompletion("text", "Which?")


async def test_each_depth_has_its_own_model() -> None:
    others = [Named("a"), Named("b"), Named("c")]
    completion = await ask("rlm_query('x')", other_clients=others, depth_models=["b", "c"], max_depth=4)
    assert completion.response == "b(c(c(c)))"
    flat = await ask("[llm_query('x'), llm_query('x', model='a')]", other_clients=others, depth_models=["b"])
    assert flat.response == "['b', 'a']"


async def test_without_depth_models_the_first_sub_model_answers_at_every_depth() -> None:
    completion = await ask("rlm_query('x')", other_clients=[Named("a"), Named("b")], max_depth=3)
    assert completion.response == "a(a(a))"


async def test_a_mapping_names_two_models_of_the_same_name() -> None:
    others = {"near": Named("near", "llama"), "far": Named("far", "llama")}
    code = "[llm_query('x'), llm_query('x', model='far'), llm_query('x', model='llama')]"
    completion = await ask(code, other_clients=others)
    heard = completion.response
    assert (
        heard.startswith("['near', 'far', \"Error: there is no model named 'llama'") or "far, near" in heard
    )
    assert completion.usage_summary.model_usage_summaries["llama"].total_calls == 2
    with pytest.raises(ConfigError, match="two sub-models named 'llama'"):
        RLM(client=Named("root"), other_clients=list(others.values()))


async def test_a_call_costs_what_the_provider_or_the_price_table_says() -> None:
    def sub(request: ChatRequest) -> Reply:
        cost = 0.5 if request.text == "dear" else None
        return Reply("ok", usage=Usage(1_000, 1_000, cost))

    def root(request: ChatRequest) -> Reply:
        return Reply(finish("llm_query_batched(['dear', 'cheap'])"), usage=Usage(1_000_000, 0))

    completion = await ask(
        "",
        ScriptedClient(root, model="root"),
        other_clients=[ScriptedClient(sub, model="sub")],
        prices={"root": {"input": 3, "output": 15}, "sub": Price(1, 9)},
    )
    summaries = completion.usage_summary.model_usage_summaries
    assert summaries["root"].total_cost == pytest.approx(3.0)
    assert summaries["sub"].total_cost == pytest.approx(0.5 + 0.01)
    records = completion.iterations[0].code_blocks[0].rlm_calls
    assert sorted(record.cost for record in records) == pytest.approx([0.01, 0.5])


async def test_a_budget_ends_the_run_with_its_best_answer() -> None:
    code = repl_block("answer['content'] = 'so far'\nfor i in range(100): llm_query('x' * 400)")
    client = ScriptedClient(lambda r: Reply("ok", usage=Usage(100, 100)) if r.is_subcall else code, model="m")
    async with RLM(client=client, max_budget=0.1, prices={"m": Price(10, 50)}) as rlm:
        with pytest.raises(BudgetExceededError) as caught:
            await rlm.acompletion("text", "Which?")
    assert caught.value.partial_answer == "so far"
    completion = caught.value.completion
    assert completion is not None
    assert completion.stop is StopReason.BUDGET
    assert (completion.usage_summary.total_cost or 0) <= 0.1 + 0.006  # the limit, and one call
    assert 5 <= completion.stats.subcalls <= 20


class Reporting(ScriptedClient):
    """A client whose replies report their cost."""

    reports_cost = True


async def test_a_budget_that_cannot_be_kept_ends_the_run() -> None:
    code = repl_block("answer['content'] = 'so far'\nfor i in range(100): llm_query('x')")

    def policy(request: ChatRequest) -> Reply:
        root = not request.is_subcall
        return Reply(code if root else "ok", usage=Usage(10, 10, 0.001 if root else None))

    client = Reporting(policy, model="m")
    async with RLM(client=client, max_budget=1.0) as rlm:
        with pytest.raises(ConfigError, match=r"max_budget cannot be kept: .*prices=\{'m'") as caught:
            await rlm.acompletion("text", "Which?")
    assert caught.value.partial_answer == "so far"
    assert caught.value.completion is not None
    assert caught.value.completion.usage_summary.total_calls == 2
    async with RLM(client=client, max_budget=0.0025, prices={"m": Price(0, 50)}) as rlm:
        with pytest.raises(BudgetExceededError):
            await rlm.acompletion("text", "Which?")


async def test_sub_calls_beyond_max_subcalls_fail_and_the_run_goes_on() -> None:
    completion = await ask("[str(r)[:5] for r in llm_query_batched(['x'] * 4)]", max_subcalls=3)
    assert completion.response.count("Error") == 1
    assert completion.stats.subcalls == 3
    assert completion.stats.subcall_failures == 1


class Broken(Client):
    """A client that fails in the way that the prompt names. The root's code writes the prompts."""

    model = "m"

    def __init__(self, code: str) -> None:
        self.code = code

    async def complete(
        self, messages: Sequence[Message], *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> Any:
        said = str(messages[-1]["content"])
        if messages[0]["role"] == "system" and self.code:
            code, self.code = self.code, ""
            return ModelReply(code, "m", Usage(1, 1))
        match said:
            case "raise":
                raise ValueError("not today")
            case "str":
                return "no reply"
            case "none":
                return ModelReply(None, "m")  # type: ignore[arg-type]
            case "many":
                return ModelReply("x", "m", Usage(10**400, 1))
            case "negative":
                return ModelReply("x", "m", Usage(1, -1))
            case "dear":
                return ModelReply("x", "m", Usage(1, 1, float("nan")))
            case "fine":
                return ModelReply("fine", "m", Usage(1, 1))
        raise ValueError("not today")


async def test_a_broken_client_fails_one_call_and_not_the_batch() -> None:
    prompts = ["fine", "raise", "str", "none", "many", "negative", "dear", "fine"]
    code = finish(f"'|'.join(llm_query_batched({prompts}))")
    completion = await ask("", Broken(code), prices={"m": Price(1, 1)})
    first, raised, text, none, many, negative, dear, last = completion.response.split("|")
    assert first == last == "fine"
    assert raised == "Error: the client of 'm' failed: ValueError: not today"
    assert "returned a str" in text
    assert "is None" in none
    assert "negative or too large" in many
    assert "negative or too large" in negative
    assert "nan USD" in dear
    assert completion.stats.subcall_failures == 6


async def test_an_exception_of_the_roots_client_keeps_the_best_answer() -> None:
    async with RLM(client=Broken(repl_block("answer['content'] = 'so far'"))) as rlm:
        with pytest.raises(ModelError, match="ValueError: not today") as caught:
            await rlm.acompletion("text", "Which?")
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.partial_answer == "so far"
    assert caught.value.completion is not None
    assert caught.value.completion.usage_summary.total_calls == 1


async def test_a_plain_object_with_a_model_and_complete_can_be_a_client() -> None:
    class Least:
        def __init__(self, model: str) -> None:
            self.model = model

        async def complete(self, messages: Sequence[Message], *, sampling: SamplingArgs) -> ModelReply:
            is_subcall = "Question:" not in str(messages[-1]["content"])
            return ModelReply("yes" if is_subcall else finish("llm_query('x')"), self.model)

    class Most(Least):
        provider = "acme"
        sampling_args: dict[str, Any] = {"max_tokens": 7}  # noqa: RUF012
        reports_cost = True

        async def context_length(self, model: str | None = None) -> int | None:
            return 10_000 if model is None else None

    root: Any = Least("root")
    completion = await ask("", root=root, other_clients=[Most("sub")])
    assert completion.response == "yes"
    assert list(completion.usage_summary.model_usage_summaries) == ["root", "sub"]
    least, most = as_client(root), as_client(Most("sub"))
    assert (least.provider, dict(least.sampling_args), least.reports_cost) == ("Least", {}, False)
    assert await least.context_length() is None
    assert (most.provider, most.sampling_args, most.reports_cost) == ("acme", {"max_tokens": 7}, True)
    assert (await most.context_length(), await most.context_length("other")) == (10_000, None)
