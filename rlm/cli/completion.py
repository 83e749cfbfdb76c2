"""`rlm completion`: completes commands, options and their values in a shell.

argcomplete does the work: the script that a shell loads calls this program when Tab is pressed, and the program answers from
its own parser.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence

from rlm.cli.printing import emit
from rlm.cli.status import ExitCode

NAME = "completion"
USAGE = "rlm completion SHELL"
SUMMARY = "print a completion script for bash, zsh or fish"
DESCRIPTION = """\
Print a script by which a shell completes commands, options and their values. To load it in every new shell:

  bash   echo 'eval "$(rlm completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(rlm completion zsh)"' >> ~/.zshrc      (after compinit)
  fish   rlm completion fish > ~/.config/fish/completions/rlm.fish
"""

SHELLS = ("bash", "zsh", "fish")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")


def main(options: argparse.Namespace) -> int:
    """Prints the script."""
    from argcomplete.shell_integration import shellcode

    emit(shellcode(["rlm"], use_defaults=False, shell=options.shell))
    return ExitCode.ANSWERED


def answer_shell(parser: argparse.ArgumentParser) -> None:
    """Prints the words that fit a command line and ends the process, if a shell's script asks for them. Else does nothing."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete
    from argcomplete.completers import DirectoriesCompleter, FilesCompleter, SuppressCompleter

    for action in _actions(parser):
        if action.metavar == "FILE":
            action.completer = FilesCompleter()  # type: ignore[attr-defined]
        elif action.metavar == "DIR":
            action.completer = DirectoriesCompleter()  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, default_completer=SuppressCompleter())


def suggest(action: argparse.Action, values: Callable[[], Sequence[str]]) -> None:
    """Lets shells offer values for an option that takes other values too.

    Args:
        values: gives the values. It is called when Tab is pressed.
    """
    action.completer = lambda **_: values()  # type: ignore[attr-defined]


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The actions of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
