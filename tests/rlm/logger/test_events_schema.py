"""The schema of the event log: it fits the classes, the document and the logs of real runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from rlm import RLM
from rlm.errors import ModelUnavailableError
from rlm.events import EVENTS
from rlm.logger import RLMLogger
from rlm.logger.event_log import FORMAT_VERSION
from rlm.logger.schema import SCHEMA_FILE, field_docs, log_schema
from rlm.testing import ChatRequest, Fault, Reply, ScriptedClient, finish, repl_block

DOCUMENT = Path(__file__).parents[3] / "docs" / "events.md"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_shipped_schema_is_made_from_the_classes() -> None:
    """If this fails, run `python -m rlm.logger.schema`. A change other than a new event or a new field with a default needs a
    new version of the format."""
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == log_schema()
    assert SCHEMA_FILE.name == f"events.v{FORMAT_VERSION}.schema.json"


def test_the_schema_describes_fields_by_their_docstrings() -> None:
    assert field_docs(EVENTS["cell_start"])["number"] == "Position of the block in its reply, counted from 1."
    batch = log_schema()["$defs"]["batch_start"]["properties"]
    assert batch["size"] == {"type": "integer", "description": "Number of prompts."}


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"v": 1, "type": "turn_start", "time": 1, "run": "r", "parent": None, "depth": 0, "turn": 1},
        {"v": 2, "type": "turn_start", "time": 1, "run": "r", "parent": None, "depth": 0},
        {"v": 2, "type": "turn_start", "time": 1, "run": "r", "parent": None, "depth": 0, "turn": "1"},
        {"v": 2, "type": "turn_start", "time": 1, "run": "r", "parent": None, "depth": 0, "turn": 1, "x": 1},
        {"v": 2, "type": "completed", "time": 1, "run": "r", "parent": None, "depth": 0},
    ],
)
def test_the_schema_refuses_a_line_that_is_no_event(
    validator: Draft202012Validator, line: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        validator.validate(line)


def policy(request: ChatRequest) -> str | Reply | Fault:
    if request.is_subcall:
        return Fault(400, "no") if request.text == "bad" else Reply("fine", reasoning="hm")
    if "Question: Top?" not in request.messages[1]["content"]:
        return finish("tool(1)")
    if "write now" in request.text:
        return "notes"
    codes = [
        "print(llm_query_batched(['good', 'bad']))\nundefined",
        "print(rlm_query('below'), llm_query('good', model='other'))",
        "pass",
        "answer.update(content='done', ready=True)",
    ]
    return Reply(repl_block(codes[min(request.turn, 3)]), reasoning="well", usage=None)


async def test_the_logs_of_real_runs_fit_the_schema(validator: Draft202012Validator, tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=tmp_path)
    client = ScriptedClient(policy, model="root", max_model_len=4000)
    async with RLM(
        client=client,
        other_clients=[ScriptedClient(policy, model="other")],
        logger=logger,
        max_depth=2,
        compaction=True,
        compaction_threshold_pct=0.2,
        custom_tools={"tool": lambda number: number + 1},
        sampling_args={"temperature": 0.5},
    ) as rlm:
        assert (await rlm.acompletion(["some", "text"], "Top?")).response == "done"
    broken = ScriptedClient(lambda request: Fault(503))
    async with RLM(client=broken, logger=logger, max_timeout=60, max_tokens=1000) as rlm:
        with pytest.raises(ModelUnavailableError):
            await rlm.acompletion("text", "Top?")
    spent = ScriptedClient(lambda request: Reply(repl_block("1")), model="spent")
    async with RLM(client=spent, logger=logger, max_tokens=1000) as rlm:
        with pytest.raises(Exception, match="max_tokens"):
            await rlm.acompletion("text", "Top?")
    assert logger.path is not None
    seen = set()
    for line in logger.path.read_text(encoding="ascii").splitlines():
        event = json.loads(line)
        validator.validate(event)
        seen.add(event["type"])
    assert seen == set(EVENTS)


def test_the_document_lists_each_event_with_its_fields() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    documented = {name: re.findall(r"`(\w+)`", fields) for name, fields in rows}
    head = ["v", "type", "time", "run", "parent", "depth"]
    schema = log_schema()["$defs"]
    written = {name: [f for f in schema[name]["properties"] if f not in head] for name in EVENTS}
    assert documented == written
