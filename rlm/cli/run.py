"""`rlm run`: one question, one answer."""

from __future__ import annotations

import argparse
import traceback
from typing import TYPE_CHECKING, Any, get_args

from rlm.cli import run_result
from rlm.cli.completion import suggest
from rlm.cli.inputs import read_context, read_json, read_text, split_question, stdin_is_piped
from rlm.cli.model_options import add_model_options, client_options, name_model
from rlm.cli.printing import ClosedPipeError, UnwrittenError, emit, emit_json, require_stdout, say
from rlm.cli.run_signals import RunSignals
from rlm.cli.status import ExitCode
from rlm.cli.values import add_values, prices_of, values_of
from rlm.errors import ConfigError, RLMError

if TYPE_CHECKING:
    from rlm import RLM, RLMChatCompletion

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
        "question", nargs="?", help="what to ask; leave it out if the input itself holds the question"
    )
    parser.add_argument(
        "-c",
        "--context",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="files, patterns in quotes ('logs/**/*.txt'), or - for stdin (default: stdin, if it is piped)",
    )
    parser.add_argument(
        "--encoding",
        help="encoding of text files (default: UTF-8, and a file that is not valid UTF-8 is given as bytes)",
    )
    add_model_options(parser)

    group = parser.add_argument_group("limits, for the whole tree of calls")
    group.add_argument(
        "--max-iterations", type=int, default=30, metavar="N", help="turns of a run (default: %(default)s)"
    )
    group.add_argument(
        "--max-depth",
        type=int,
        default=1,
        metavar="N",
        help="levels of runs with a REPL; 1: no child runs, 0: no REPL (default: %(default)s)",
    )
    group.add_argument("--max-timeout", type=float, metavar="SECONDS", help="seconds of wall-clock time")
    group.add_argument("--max-tokens", type=int, metavar="N", help="input and output tokens")
    group.add_argument("--max-budget", type=float, metavar="USD", help="USD that the calls may cost")
    group.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="MODEL=IN,OUT",
        help="price of a model that is not in the table: USD per million input and output tokens",
    )
    group.add_argument("--max-errors", type=int, metavar="N", help="cells in a row that may fail")

    group = parser.add_argument_group("the REPL")
    isolation = group.add_argument(
        "--isolation",
        metavar="LEVEL",
        help="what protects this machine from the code: sandbox (default), sandbox! (fail without one), process",
    )
    suggest(isolation, _levels)
    group.add_argument(
        "--cell-timeout", type=float, metavar="SECONDS", help="seconds for one cell (default: 300)"
    )
    place = group.add_argument(
        "--environment", default="local", metavar="PLACE", help="where the code runs (default: %(default)s)"
    )
    suggest(place, _places)
    add_values(group, "--environment-option", "another setting of the place or of its REPLs")

    group = parser.add_argument_group("how to answer")
    group.add_argument("--temperature", type=float, metavar="T", help="the same as --set temperature=T")
    add_values(group, "--set", "a sampling argument of every call, under the provider's name for it")
    add_values(group, "--sub-set", "a sampling argument of the calls below the root")
    group.add_argument(
        "--system-prompt", metavar="FILE", help="file with a system prompt in place of the default one"
    )
    group.add_argument(
        "--response-schema",
        metavar="FILE",
        help="file with a JSON schema; the answer is JSON that fits it",
    )

    group = parser.add_argument_group("output")
    group.add_argument(
        "--json",
        action="store_true",
        help="one JSON object on stdout: answer, usage, reason of the end, messages",
    )
    group.add_argument("-v", "--verbose", action="store_true", help="show the run on stderr as it happens")
    group.add_argument(
        "--log-dir", metavar="DIR", help="folder where every event is appended to a JSONL file"
    )


def _levels() -> tuple[str, ...]:
    from rlm.environments.isolation import Isolation

    return get_args(Isolation)


def _places() -> tuple[str, ...]:
    from rlm.environments import names

    return tuple(names())


def main(options: argparse.Namespace) -> int:
    """Runs the command. Returns its exit code; see `rlm.cli.status`."""
    require_stdout()  # without stdout the answer would be lost
    try:
        return _run(options)
    except (ClosedPipeError, UnwrittenError):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if options.json:
            emit_json(run_result.failure(error))  # a program that reads stdout gets an object in every case
        raise


def _run(options: argparse.Namespace) -> int:
    import asyncio  # here, because the import takes 40 ms that --help does not need

    question, words = split_question(options.question, options.context)
    if question is not None and not question.strip():
        raise ConfigError("the question is empty: give one, or leave it out if the input holds it")
    context = _context(words, options.encoding)
    if context is None:
        if question is None:
            raise ConfigError(
                "there is nothing to ask: give a question, and files with --context or on stdin"
            )
        context, question = question, None
    signals = RunSignals()
    completion, error = asyncio.run(_ask(options, context, question, signals))
    if completion is None:
        assert error is not None
        raise error
    if error is not None and options.debug:
        traceback.print_exception(error)
    code = run_result.exit_code(completion, error, signals.exit_code)
    if options.json:
        emit_json(run_result.report(completion, error, code))
    elif completion.response or code == ExitCode.ANSWERED:
        emit(completion.response)
    note = run_result.note(completion, error, signals.exit_code)
    if note is not None:
        say(note)
    return code


def _context(words: list[str], encoding: str | None) -> Any:
    if words:
        return read_context(words, encoding)
    if not stdin_is_piped():
        return None
    return read_context(["-"], encoding) or None  # an empty pipe is no input


async def _ask(
    options: argparse.Namespace, context: Any, question: str | None, signals: RunSignals
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
    """The JSON schema in a file.

    Raises:
        ConfigError: the file cannot be read, or does not hold a JSON object.
    """
    schema = read_json(name)
    if not isinstance(schema, dict):
        raise ConfigError(f"{name!r} must hold a JSON schema, which is an object")
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
        raise ConfigError(
            f"--log-dir {options.log_dir!r} cannot be used: {error.strerror or error}"
        ) from None
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
