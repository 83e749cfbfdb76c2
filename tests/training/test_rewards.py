"""Rewards that a configuration switches on, in real rollouts of the harness."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, ClassVar

import pytest
import verifiers.v1 as vf
from pydantic import ValidationError

from rlm.testing import Fault, Reply, Script, finish, repl_block
from rlm_train import RLMTask, RLMTaskConfig
from rlm_train.rollout_info import answer_of

ANSWER = finish("str(len(context.split()))")
WRONG = finish('"17"')
LOOK = repl_block("print(context)")
ASK = repl_block('print(llm_query_batched(["one", "two"]))')


class FruitTask(RLMTask[Any]):
    @vf.reward
    async def correct(self, task: Any, trace: Any) -> float:
        return float(answer_of(trace) == task.gold)

    @vf.metric
    async def length(self, trace: Any) -> float:
        return float(len(answer_of(trace)))


def settings(**fields: Any) -> RLMTaskConfig:
    return RLMTaskConfig.model_validate(fields)


def weights(**rewards: float) -> RLMTaskConfig:
    return settings(rewards={name: {"weight": weight} for name, weight in rewards.items()})


def policy(*turns: Any) -> Any:
    """A policy whose root follows a script, and whose sub-models repeat their prompts."""
    return Script(turns, subcalls=lambda request: f"echo {request.text}")


@pytest.fixture
def play(run: Any, task: Any) -> Any:
    """A rollout of the fruit task under a configuration of its rewards."""

    async def play(config: RLMTaskConfig | None, *turns: Any, **harness: Any) -> Any:
        return await run(policy(*turns), FruitTask(task().data, config), **harness)

    return play


async def test_by_default_correct_is_the_only_reward(play: Any) -> None:
    for config in (None, settings(), vf.TaskConfig()):
        trace = await play(config, LOOK, ANSWER)
        assert set(trace.rewards) == {"correct"}
        assert trace.reward == 1.0
        assert not [name for name in trace.metrics if "gate" in name]


async def test_the_settings_hold_for_a_task_that_names_no_configuration_class() -> None:
    assert FruitTask.config_type() is RLMTaskConfig
    plain = vf.TaskConfig.model_validate({"rewards": {"correct": {"weight": 3}}})
    assert FruitTask(None, plain).config.rewards["correct"].weight == 3  # type: ignore[arg-type]


async def test_correct_can_be_weighed(play: Any) -> None:
    assert (await play(weights(correct=2.5), ANSWER)).reward == 2.5


@pytest.mark.parametrize(
    ("turns", "gates", "missed"),
    [
        ([ANSWER], {"min_iterations": 2}, ["min_iterations"]),
        ([LOOK, ANSWER], {"min_iterations": 2}, []),
        ([LOOK, ANSWER], {"min_subcalls": 1}, ["min_subcalls"]),
        ([ASK, ANSWER], {"min_subcalls": 2}, []),
        ([ASK, ANSWER], {"min_subcalls": 3}, ["min_subcalls"]),
        ([LOOK, ANSWER], {"min_reward": 1.0}, []),
        ([ANSWER], {"min_iterations": 2, "min_subcalls": 1, "min_reward": 0.5}, ["min_iterations", "min_subcalls"]),
    ],
    ids=str,
)  # fmt: skip
async def test_a_missed_gate_sets_the_reward_to_0(
    play: Any, turns: list[str], gates: dict[str, float], missed: list[str]
) -> None:
    trace = await play(settings(gates=gates), *turns)
    assert trace.ok
    assert trace.reward == float(not missed)
    assert trace.metrics["ungated_reward"] == 1.0
    assert trace.metrics["gated"] == float(bool(missed))
    assert {name for name in gates if trace.metrics[f"gate_{name}"]} == set(missed)


async def test_a_reward_below_min_reward_becomes_0(play: Any) -> None:
    config = settings(gates={"min_reward": 0.5}, rewards={"correct": {"weight": 0.4}})
    trace = await play(config, ANSWER)
    assert (trace.reward, trace.metrics["ungated_reward"]) == (0.0, 0.4)


async def test_failed_calls_do_not_count_for_a_gate(play: Any, run: Any, task: Any) -> None:
    graded = FruitTask(task().data, settings(gates={"min_subcalls": 1}))
    code = finish("str(len(context.split()))", 'assert isinstance(llm_query("x"), SubcallError)')
    trace = await run(Script([code], subcalls=lambda request: Fault(400, "no")), graded)
    assert trace.metrics["subcalls"] == 1
    assert trace.reward == 0.0


async def test_a_missed_gate_keeps_penalties(play: Any) -> None:
    config = settings(gates={"min_iterations": 3}, rewards={"format": {"weight": 0.5}})
    trace = await play(config, "I only think.", ANSWER)
    assert trace.rewards["format"].score == -0.5
    assert trace.reward == -0.25
    assert trace.metrics["ungated_reward"] == 0.75


async def test_format_counts_turns_without_code(play: Any) -> None:
    on = weights(format=0.2)
    assert (await play(on, LOOK, ANSWER)).reward == 1.0
    assert (await play(on, "Hm.", LOOK, "Hm.", ANSWER)).reward == pytest.approx(0.9)
    assert (await play(on, repl_block("1/0"), ANSWER)).reward == 1.0  # code that fails still counts as code


async def test_no_answer_is_charged_only_for_the_rollouts_own_failures(play: Any) -> None:
    on = weights(no_answer=0.5)
    assert (await play(on, LOOK, WRONG)).reward == 0.0
    assert (await play(on, LOOK, LOOK, " ", max_iterations=2)).reward == -0.5
    assert (await play(on, LOOK, "It is 3.", max_iterations=1)).reward == 0.0
    broken = await play(on, LOOK, Fault(400, "gone"))
    assert (broken.info["rlm"]["failure"]["where"], broken.reward) == ("model", 0.0)
    limited = await play(on, *[repl_block("1/0")] * 3, max_errors=2)
    assert (limited.info["rlm"]["failure"]["where"], limited.reward) == ("limit", -0.5)


async def test_truncated_is_charged_for_a_cut_reply_or_run(play: Any) -> None:
    on = weights(truncated=0.5)
    assert (await play(on, LOOK, ANSWER)).reward == 1.0
    assert (await play(on, Reply("Let me thi", finish_reason="length"), ANSWER)).reward == 0.5
    assert (await play(on, LOOK, "3", max_iterations=1)).reward == 0.5
    assert (await play(on, *[ASK] * 9, max_tokens=2500)).reward == -0.5


async def test_a_configuration_can_add_a_reward_function(play: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent("""\
        async def brief(trace):
            return 1 / trace.metrics["length"]
        """)
    )
    own = {"brief": {"fn": f"{path}:brief", "weight": -0.5}}
    assert (await play(settings(rewards=own), ANSWER)).reward == 0.5


async def test_a_rollout_of_another_harness_misses_gates(task: Any) -> None:
    graded = FruitTask(task().data, settings(gates={"min_iterations": 1}))
    trace: Any = vf.Trace(
        task=vf.TraceTask(type="FruitTask", data=graded.data),
        agent=vf.AgentInfo(config=vf.AgentConfig.model_validate({"runtime": {"type": "subprocess"}})),
    )
    await graded.score(trace)
    assert trace.metrics["gated"] == 1.0


async def test_scoring_again_gives_the_same(play: Any, task: Any) -> None:
    graded = FruitTask(task().data, settings(gates={"min_iterations": 2}))
    trace = await play(graded.config, ANSWER)
    await graded.score(trace)
    assert (trace.reward, trace.metrics["ungated_reward"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gates": {"min_turns": 1}}, "min_turns"),
        ({"gates": {"min_iterations": -1}}, "min_iterations"),
        ({"gates": {"min_subcalls": 0}}, "min_subcalls"),
        ({"gates": {"min_subcalls": 1.5}}, "min_subcalls"),
        ({"gates": {"min_reward": float("nan")}}, "min_reward"),
        ({"gates": {"min_reward": -1}}, "min_reward"),
        ({"rewards": {"format": {"weight": float("nan")}}}, "weight"),
        ({"rewards": {"format": {"weight": "much"}}}, "weight"),
        ({"rewards": {"format": {"wieght": 1}}}, "wieght"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_when_they_are_read(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"rewards": {"fromat": {"weight": 0.1}}},
            r"no reward 'fromat': there is correct, format, no_answer",
        ),
        ({"rewards": {"format": {"weight": -0.1}}}, r"'format' must be from 0 to 1, and is -0.1"),
        ({"rewards": {"truncated": {"weight": 7}}}, r"'truncated' must be from 0 to 1, and is 7"),
        ({"rewards": {"mine": {"fn": "no_such_module.fn"}}}, "reward 'mine': No module named"),
        ({"rewards": {"mine": {"fn": "rlm.types:CODE"}}}, "reward 'mine': .* is not a function"),
        ({"rewards": {"mine": {"fn": "nothing"}}}, "reward 'mine'"),
        ({"rewards": {"mine": {"fn": "/no/such/file.py:fn"}}}, "reward 'mine'"),
        ({"metrics": {"lenght": {"priority": 1}}}, "no metric 'lenght': there is length"),
        ({"stops": {"soon": {"priority": 1}}}, "no stop 'soon': there is none"),
    ],
    ids=str,
)
def test_settings_for_unknown_rewards_are_refused_at_load(
    task: Any, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        FruitTask(task().data, settings(**fields))


def test_a_task_can_have_its_own_optional_rewards(task: Any) -> None:
    class Brief(FruitTask):
        OPTIONAL: ClassVar[frozenset[str]] = FruitTask.OPTIONAL | {"brief"}

        @vf.reward(weight=0.0)
        async def brief(self, trace: Any) -> float:
            return -1.0

    assert [hook.__name__ for hook in Brief(task().data).hooks("reward")] == ["correct"]
    on = Brief(task().data, weights(brief=0.3))
    assert [hook.__name__ for hook in on.hooks("reward")] == ["brief", "correct"]
