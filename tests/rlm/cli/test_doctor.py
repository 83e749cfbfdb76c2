"""`rlm doctor`: its findings, and whether `rlm run` can work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlm.testing import Fault, ModelServer, Script, serve

from .conftest import Run


def checks_of(report: dict[str, Any]) -> dict[str, Any]:
    return {check["name"]: check for check in report["checks"]}


def test_without_a_model_the_doctor_says_what_is_missing(rlm: Run) -> None:
    done = rlm("doctor")
    assert done.code == 1
    assert done.err == ""
    assert "rlm run cannot work yet. there is no model: set a provider's key, or name a server" in done.out
    done = rlm("doctor", "--json")
    report = json.loads(done.out)
    assert (done.code, report["ready"], len(report["missing"])) == (1, False, 1)
    checks = checks_of(report)
    assert checks["REPL"]["status"] == "ok"
    assert checks["REPL"]["data"]["milliseconds"] > 0
    assert checks["isolation"]["data"]["level"] in ("sandbox", "process")
    assert checks["Python"]["data"]["version"].startswith("3.")
    assert checks["temporary files"]["data"]["free_bytes"] > 0
    assert checks["openai"]["status"] == checks["anthropic"]["status"] == "off"
    assert "OPENAI_API_KEY" in checks["openai"]["detail"]


def test_a_key_is_enough_and_is_never_shown(rlm: Run) -> None:
    done = rlm("doctor", "--json", OPENAI_API_KEY="sk-never-to-be-seen")
    report = json.loads(done.out)
    assert (done.code, report["ready"], report["missing"]) == (0, True, [])
    assert checks_of(report)["openai"]["status"] == "ok"
    assert "never-to-be-seen" not in done.out + done.err


def test_a_server_is_asked_for_its_models_and_not_called(rlm: Run, server: ModelServer) -> None:
    done = rlm("doctor", "--base-url", server.base_url)
    assert done.code == 0, done.out
    assert f"{server.base_url}: scripted (131,072 tokens)" in done.out
    assert done.out.endswith("rlm run can work.\n")
    assert server.requests == []
    done = rlm("doctor", "--json", RLM_BASE_URL=server.base_url, RLM_MODEL="other")
    checks = checks_of(json.loads(done.out))
    assert (done.code, checks["server"]["status"]) == (1, "failed")
    assert checks["server"]["data"]["models"] == [{"name": "scripted", "window": 131072}]
    assert "has no model 'other'" in checks["server"]["detail"]


def test_a_call_shows_that_the_model_answers(rlm: Run) -> None:
    with serve(Script(["ok"])) as server:
        done = rlm("doctor", "--base-url", server.base_url, "--call")
        assert done.code == 0, done.out
        assert "scripted answered in" in done.out
        assert len(server.requests) == 1
    with serve(Script([Fault(400, "out of order")])) as server:
        done = rlm("doctor", "--base-url", server.base_url, "--call", "--json")
    checks = checks_of(json.loads(done.out))
    assert (done.code, checks["server"]["status"], checks["call"]["status"]) == (1, "ok", "failed")
    assert "out of order" in checks["call"]["detail"]


def test_a_server_that_cannot_be_reached_or_refuses_is_named(rlm: Run) -> None:
    done = rlm("doctor", "--base-url", "http://127.0.0.1:9/v1", OPENAI_API_KEY="k")
    assert done.code == 1
    assert "http://127.0.0.1:9/v1: no connection" in done.out
    with serve(Script(["ok"]), api_key="the-key-itself") as server:
        done = rlm("doctor", "--base-url", server.base_url)
        assert (done.code, "wants a key: name its environment variable with --api-key-env" in done.out) == (
            1,
            True,
        )
        done = rlm("doctor", "--base-url", server.base_url, "--api-key-env", "KEY", KEY="wrong-key")
        assert (done.code, "refused the key (HTTP 401)" in done.out) == (1, True)
        done = rlm("doctor", "--base-url", server.base_url, "--api-key-env", "KEY", KEY="the-key-itself")
        assert done.code == 0, done.out
        assert "the-key-itself" not in done.out
    assert rlm("doctor", "--base-url", "localhost:1").code == 1
    assert rlm("doctor", "--api-key-env", "NOT_SET").code == 1


def test_a_missing_temporary_folder_is_replaced_by_the_next_one(rlm: Run, tmp_path: Path) -> None:
    """Python then uses another folder. The doctor shows the one that REPLs will use."""
    done = rlm("doctor", "--json", TMPDIR=str(tmp_path))
    assert checks_of(json.loads(done.out))["temporary files"]["data"]["folder"] == str(tmp_path)
