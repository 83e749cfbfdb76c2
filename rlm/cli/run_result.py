"""How `rlm run` reports the end of a run: its exit code, a note for the user, and the object that `--json` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlm.cli.status import ExitCode, exit_code_of

if TYPE_CHECKING:
    from rlm import RLMChatCompletion, RLMError


def exit_code(
    completion: RLMChatCompletion, error: RLMError | None, signalled: ExitCode | None = None
) -> ExitCode:
    """The exit code of a run.

    Args:
        signalled: exit code for the signal that ended the run.
    """
    if error is not None:
        return signalled or exit_code_of(error)
    has_answer = completion.stats.answered or completion.stats.forced_answer or bool(completion.response)
    return ExitCode.ANSWERED if has_answer else ExitCode.NO_ANSWER


def note(completion: RLMChatCompletion, error: RLMError | None, signalled: ExitCode | None) -> str | None:
    """A note for the user about the end of the run; None if there is nothing to add to the answer."""
    if signalled is not None:
        text = "interrupted"
    elif error is not None or completion.error is not None:
        text = str(error or completion.error)
    elif completion.stats.forced_answer:
        text = "the turns ran out: this is what the model answered when it was asked once more"
    elif not completion.response:
        text = f"there is no answer ({completion.stop.value})"
    else:
        return None
    if error is not None:
        text += (
            "; what is printed is the best answer so far" if completion.response else "; there is no answer"
        )
    return text


def report(completion: RLMChatCompletion, error: RLMError | None, code: ExitCode) -> dict[str, Any]:
    """The object that `--json` prints for a run."""
    usage = completion.usage_summary
    return {
        **completion.to_dict(),
        "parsed": completion.parsed,
        "error_type": None if error is None else type(error).__name__,
        "exit_code": int(code),
        "usage": {
            "calls": usage.total_calls,
            "input_tokens": usage.total_input_tokens,
            "output_tokens": usage.total_output_tokens,
            "cost": usage.total_cost,
        },
    }


def failure(error: BaseException) -> dict[str, Any]:
    """The object that `--json` prints for an error without a run."""
    return {
        "response": "",
        "error": str(error),
        "error_type": type(error).__name__,
        "exit_code": int(exit_code_of(error)),
    }
