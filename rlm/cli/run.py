"""`rlm run`: one question, one answer."""

from __future__ import annotations

import argparse
import contextlib
import signal
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

from rlm.cli.completion import suggest
from rlm.cli.inputs import read_context, read_json, read_text, split_question, stdin_is_piped
from rlm.cli.model_options import add_model_options, client_options, name_model
from rlm.cli.output import ClosedPipeError, UnwrittenError, emit, emit_json, require_stdout, say
from rlm.cli.status import ExitCode, exit_code_of
from rlm.cli.values import add_values, prices_of, values_of
from rlm.errors import ConfigError, RLMError

if TYPE_CHECKING:
    from rlm import RLM, RLMChatCompletion
    from rlm.cancellation import CancelToken

NAME = "run"
USAGE = "rlm run [options] --context FILE... QUESTION"
SUMMARY = "ask a question about files, or about stdin"
DESCRIPTION = """\
Ask a question about an input of almost any length. The answer, and nothing else, goes to stdout.

  rlm run --model gpt-5 --context report.txt "What was decided?"
  rlm run --base-url http://localhost:8000/v1 --context 'src/**/*.py' "Where are sockets opened?"
  journalctl | rlm run --model gpt-5 --max-timeout 300 "Which service failed most often?"

One file is the text `context` (bytes if it is not UTF-8); several are a list of {"path": ..., "text": ...}. The code that the
model writes runs on this machine, isolated as `rlm doctor` says.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "question", nargs="?", help="what to ask; without it the input itself holds the question"
    )
    parser.add_argument(
        "-c",
        "--context",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="files, patterns in quotes ('logs/**/*.txt'), or - for stdin; without it, what is piped in",
    )
    parser.add_argument(
        "--encoding",
        help="of text files; by default UTF-8, and a file that is not valid in it is given as bytes",
    )
    add_model_options(parser)

    group = parser.add_argument_group("limits, for the whole tree of calls")
    group.add_argument("--max-iterations", type=int, default=30, metavar="N", help="turns of a run (30)")
    group.add_argument(
        "--max-depth", type=int, default=1, metavar="N", help="1 (default): no child runs; 0: no REPL at all"
    )
    group.add_argument("--max-timeout", type=float, metavar="SECONDS", help="wall-clock time")
    group.add_argument("--max-tokens", type=int, metavar="N", help="input and output tokens")
    group.add_argument("--max-budget", type=float, metavar="USD", help="what the calls may cost")
    group.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="MODEL=IN,OUT",
        help="USD per million tokens of input and of output, for --max-budget with a model of unknown price",
    )
    group.add_argument("--max-errors", type=int, metavar="N", help="cells in a row that may fail")

    group = parser.add_argument_group("the REPL")
    isolation = group.add_argument(
        "--isolation",
        metavar="LEVEL",
        help="what keeps the code from this machine: sandbox (default), sandbox! (that or nothing), process",
    )
    suggest(isolation, _levels)
    group.add_argument("--cell-timeout", type=float, metavar="SECONDS", help="time of one cell (300)")
    place = group.add_argument(
        "--environment", default="local", metavar="PLACE", help="where the code runs (local)"
    )
    suggest(place, _places)
    add_values(group, "--environment-option", "a further setting of the place or of its REPLs")

    group = parser.add_argument_group("how to answer")
    group.add_argument("--temperature", type=float, metavar="T", help="as --set temperature=T")
    add_values(group, "--set", "a sampling argument of every call, as the provider names it")
    add_values(group, "--sub-set", "a sampling argument of the calls below the root")
    group.add_argument("--system-prompt", metavar="FILE", help="a file with a system prompt in place of ours")
    group.add_argument(
        "--response-schema",
        metavar="FILE",
        help="a JSON schema that the answer must fit; the answer is then JSON",
    )

    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", action="store_true", help="one JSON object on stdout: answer, usage, why it ended, messages"
    )
    group.add_argument("-v", "--verbose", action="store_true", help="show the run on stderr as it happens")
    group.add_argument("--log-dir", metavar="DIR", help="append every event to a JSONL file in this folder")


def _levels() -> tuple[str, ...]:
    from rlm.environments.isolation import Isolation

    return get_args(Isolation)


def _places() -> tuple[str, ...]:
    from rlm.environments import names

    return tuple(names())


def main(options: argparse.Namespace) -> int:
    """Runs the command. Returns its exit code; see `rlm.cli.status`."""
    require_stdout()  # nobody could have the answer
    try:
        return _run(options)
    except (ClosedPipeError, UnwrittenError):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if options.json:
            # Whoever reads stdout by a program gets an object in every case.
            emit_json(
                {
                    "response": "",
                    "error": str(error),
                    "error_type": type(error).__name__,
                    "exit_code": int(exit_code_of(error)),
                }
            )
        raise


def _run(options: argparse.Namespace) -> int:
    import asyncio  # 40 ms, which --help need not take

    question, words = split_question(options.question, options.context)
    if question is not None and not question.strip():
        raise ConfigError("the question is empty: say what to ask, or leave it out if the input holds it")
    context = _context(words, options.encoding)
    if context is None:
        if question is None:
            raise ConfigError(
                "there is nothing to ask: give a question, and files with --context or on stdin"
            )
        context, question = question, None
    signals = _Signals()
    completion, error = asyncio.run(_ask(options, context, question, signals))
    if completion is None:
        assert error is not None
        raise error
    if error is not None and options.debug:
        traceback.print_exception(error)
    code = _exit_code(completion, error, signals)
    if options.json:
        emit_json(_report(completion, error, code))
    elif completion.response or code == ExitCode.ANSWERED:
        emit(completion.response)
    note = _note(completion, error, signals)
    if note is not None:
        say(note)
    return code


def _context(words: list[str], encoding: str | None) -> Any:
    if words:
        return read_context(words, encoding)
    if not stdin_is_piped():
        return None
    return read_context(["-"], encoding) or None  # nothing was piped in: there is no input


async def _ask(
    options: argparse.Namespace, context: Any, question: str | None, signals: _Signals
) -> tuple[RLMChatCompletion | None, RLMError | None]:
    from rlm.cancellation import CancelToken

    schema = {} if options.response_schema is None else {"response_format": _schema(options.response_schema)}
    token = CancelToken()
    async with await _make(options) as rlm:
        with signals.cancelling(token):
            try:
                return await rlm.acompletion(context, question, cancel=token, **schema), None
            except RLMError as error:
                return error.completion, error


def _schema(name: str) -> dict[str, Any]:
    """
    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    schema = read_json(name)
    if not isinstance(schema, dict):
        raise ConfigError(f"{name!r} holds no JSON schema, which is an object")
    return schema


async def _make(options: argparse.Namespace) -> RLM:
    from rlm import RLM
    from rlm.logger import RLMLogger

    sampling = values_of("--set", options.set)
    if options.temperature is not None:
        sampling["temperature"] = options.temperature
    environment = values_of("--environment-option", options.environment_option)
    for name in ("isolation", "cell_timeout"):
        if getattr(options, name) is not None:
            environment[name] = getattr(options, name)
    root, sub = client_options(options)
    await name_model(root, "--model")
    if sub is not None:
        await name_model(sub, "--sub-model")
    try:
        logger = None if options.log_dir is None else RLMLogger(options.log_dir)
    except OSError as error:
        raise ConfigError(f"{options.log_dir!r} cannot hold a log: {error.strerror or error}") from None
    return RLM(
        root.backend,
        root.kwargs,
        environment=options.environment,
        environment_kwargs=environment,
        max_depth=options.max_depth,
        max_iterations=options.max_iterations,
        max_budget=options.max_budget,
        max_timeout=options.max_timeout,
        max_tokens=options.max_tokens,
        max_errors=options.max_errors,
        custom_system_prompt=None if options.system_prompt is None else read_text(options.system_prompt),
        other_backends=None if sub is None else [sub.backend],
        other_backend_kwargs=None if sub is None else [sub.kwargs],
        logger=logger,
        prices=prices_of(options.price) or None,
        verbose=options.verbose,
        sampling_args=sampling,
        sub_sampling_args={**sampling, **values_of("--sub-set", options.sub_set)},
    )


class _Signals:
    """The first signal cancels the run, which keeps its best answer; the second ends it as it is."""

    def __init__(self) -> None:
        self.exit_code: ExitCode | None = None
        """Of the signal that came."""

    @contextlib.contextmanager
    def cancelling(self, token: CancelToken) -> Iterator[None]:
        """Has signals cancel the token, while the block runs."""
        from asyncio import get_running_loop

        loop = get_running_loop()
        codes = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}

        def cancel(number: signal.Signals) -> None:
            self.exit_code = codes[number]
            loop.remove_signal_handler(number)
            token.cancel()

        for number in codes:
            loop.add_signal_handler(number, cancel, number)
        try:
            yield
        finally:
            for number in codes:
                loop.remove_signal_handler(number)


def _exit_code(completion: RLMChatCompletion, error: RLMError | None, signals: _Signals) -> ExitCode:
    if error is not None:
        return signals.exit_code or exit_code_of(error)
    has_answer = completion.stats.answered or completion.stats.forced_answer or bool(completion.response)
    return ExitCode.ANSWERED if has_answer else ExitCode.NO_ANSWER


def _note(completion: RLMChatCompletion, error: RLMError | None, signals: _Signals) -> str | None:
    """What the user should know besides the answer."""
    if signals.exit_code is not None:
        said = "interrupted"
    elif error is not None or completion.error is not None:
        said = str(error or completion.error)
    elif completion.stats.forced_answer:
        said = "the turns ran out: this is what the model answered when it was asked once more"
    elif not completion.response:
        said = f"there is no answer ({completion.stop.value})"
    else:
        return None
    if error is not None:
        said += (
            "; what is printed is the best answer so far" if completion.response else "; there is no answer"
        )
    return said


def _report(completion: RLMChatCompletion, error: RLMError | None, code: ExitCode) -> dict[str, Any]:
    """What `--json` prints."""
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
