"""The command line: `rlm run`, `rlm doctor`, `rlm completion`.

A command prints its result to stdout and everything else to stderr. `rlm.cli.status` has the exit codes, and `docs/cli.md`
explains them.
"""

from __future__ import annotations

import argparse
import traceback
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from rlm.cli import completion, doctor, run
from rlm.cli.printing import ClosedPipeError, emit, say
from rlm.cli.status import ExitCode, exit_code_of
from rlm.cli.version import own_version
from rlm.errors import RLMError

__all__ = ["main", "make_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after the program's name. None: the words of this process.

    Returns:
        The exit code. Never raises.
    """
    parser = make_parser()
    completion.answer_shell(parser)
    debug = False
    try:
        options, unknown = parser.parse_known_args(argv)
        if unknown:
            _refuse(parser, options.parser, unknown)
        debug = options.debug
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return int(options.command(options))
    except SystemExit as end:  # argparse: --help, or a usage error
        return end.code if isinstance(end.code, int) else ExitCode.USAGE
    except ClosedPipeError as error:
        return exit_code_of(error)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        say(_error_text(error))
        return exit_code_of(error)


def _error_text(error: BaseException) -> str:
    """The text for an error that ends a command."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, RLMError):
        return str(error)
    if isinstance(error, OSError):
        return f"the system refused: {error}"
    return f"{type(error).__name__}: {error}\nThis is a bug in rlm: please report it with the traceback that --debug shows."


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands. The parsed options hold `command`, the function that runs the command, and `parser`, the
    command's own parser."""
    parser = argparse.ArgumentParser(
        prog="rlm",
        description="Recursive language models: answer questions about inputs far longer than a model's window.",
        epilog="`rlm COMMAND --help` says more. Exit codes: docs/cli.md.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="the version of this program")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, prog="rlm")
    for module in (run, doctor, completion):
        command = commands.add_parser(
            module.NAME,
            help=module.SUMMARY,
            usage=module.USAGE,
            description=module.DESCRIPTION,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        module.add_options(command)
        command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        command.set_defaults(command=module.main, parser=command)
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions, and leaves room for the names of commands and options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        emit(f"rlm {own_version()}")
        parser.exit()


def _refuse(
    parser: argparse.ArgumentParser, command: argparse.ArgumentParser, unknown: list[str]
) -> NoReturn:
    word = next((word for word in unknown if word.startswith("-")), None)
    if word is None:
        command.error(
            f"there is more than one question: {unknown[0]!r}. Put a question of several words in quotes"
        )
    known = [name for action in command._actions for name in action.option_strings]
    near = get_close_matches(word.partition("=")[0], known, n=1)
    command.error(
        f"there is no option {word.partition('=')[0]}{f'; did you mean {near[0]}?' if near else ''}"
    )


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    say(f"warning: {message}")
