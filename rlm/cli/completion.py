"""`rlm completion`: what a shell needs to complete the words of these commands.

The scripts are made from the parser itself, so they know every option. They start no Python when Tab is pressed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rlm.cli.status import ExitCode
from rlm.cli.streams import emit

NAME = "completion"
USAGE = "rlm completion SHELL"
SUMMARY = "print a completion script for bash, zsh or fish"
DESCRIPTION = """\
Print a script by which a shell completes commands, options and their values. To have it in every shell:

  bash   echo 'eval "$(rlm completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(rlm completion zsh)"' >> ~/.zshrc      (after compinit)
  fish   rlm completion fish > ~/.config/fish/completions/rlm.fish
"""

SHELLS = ("bash", "zsh", "fish")

Values = Literal["none", "any", "file", "folder"]


@dataclass(frozen=True, slots=True)
class Option:
    """An option, or what a command takes without one."""

    names: Sequence[str]
    text: str
    values: Values
    choices: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """A command and what it takes."""

    name: str
    text: str
    options: Sequence[Option]
    words: Option


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("shell", choices=SHELLS, help="whose script to print")


def main(options: argparse.Namespace) -> int:
    """Prints the script."""
    from rlm.cli import make_parser

    emit(script(make_parser(), options.shell))
    return ExitCode.ANSWERED


def suggest(action: argparse.Action, choices: Callable[[], Sequence[str]]) -> None:
    """Has shells offer values for an option that takes others too. They are asked for when a script is made."""
    action.suggestions = choices  # type: ignore[attr-defined]


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for one of `SHELLS`."""
    own = [_option(action) for action in _options(parser)]
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](parser.prog, own, list(_commands(parser)))


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings]


def _commands(parser: argparse.ArgumentParser) -> Iterator[Command]:
    for group in parser._actions:
        if not isinstance(group, argparse._SubParsersAction):
            continue
        texts = {choice.dest: choice.help or "" for choice in group._choices_actions}
        for name, command in group.choices.items():
            positional = [_option(action) for action in command._actions if not action.option_strings]
            words = positional[0] if positional else Option((), "", "none")
            if any(
                option.values == "file" and option.names[0] == "-c"
                for option in map(_option, _options(command))
            ):
                words = Option((), "file", "file")  # more files of --context; nobody can complete a question
            yield Command(name, texts[name], [_option(action) for action in _options(command)], words)


def _option(action: argparse.Action) -> Option:
    choices: Iterable[object] = action.choices or getattr(action, "suggestions", list)()
    values: Values = "any"
    if action.nargs == 0:
        values = "none"
    elif action.metavar == "FILE":
        values = "file"
    elif action.metavar == "DIR":
        values = "folder"
    return Option(action.option_strings, action.help or "", values, [str(choice) for choice in choices])


def _bash(program: str, own: Sequence[Option], commands: Sequence[Command]) -> str:
    known = [command.name for command in commands]
    cases = []
    for command in commands:
        arms: dict[str, list[str]] = {}
        for option in command.options:
            if option.values != "none":
                arms.setdefault(_bash_offer(program, option), []).extend(option.names)
        by_option = "".join(
            f"        {'|'.join(names)}) {offer}; return ;;\n" for offer, names in arms.items()
        )
        flags = " ".join(name for option in command.options for name in option.names)
        cases.append(
            f"    {command.name})\n"
            f"        case $prev in\n{by_option}        esac\n"
            f'        case $cur in\n        -*) _{program}_words "{flags}" ;;\n'
            f"        *) {_bash_offer(program, command.words)} ;;\n        esac ;;\n"
        )
    first = " ".join([*known, *(name for option in own for name in option.names)])
    return f"""\
# bash completion of {program}
_{program}_words() {{
    local IFS=$' \\t\\n'
    COMPREPLY=($(compgen -W "$1" -- "$cur"))
}}
_{program}_paths() {{
    local IFS=$'\\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen "$1" -- "$cur"))
}}
_{program}() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} command="" i
    COMPREPLY=()
    if [[ $cur == "=" ]]; then
        cur=""
    elif [[ $prev == "=" ]]; then
        prev=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
        {"|".join(known)}) command=${{COMP_WORDS[i]}}; break ;;
        esac
    done
    case $command in
    "") _{program}_words "{first}" ;;
{"".join(cases)}    esac
}}
complete -F _{program} {program}"""


def _bash_offer(program: str, option: Option) -> str:
    if option.choices:
        return f'_{program}_words "{" ".join(option.choices)}"'
    return {"file": f"_{program}_paths -f", "folder": f"_{program}_paths -d"}.get(option.values, ":")


def _zsh(program: str, own: Sequence[Option], commands: Sequence[Command]) -> str:
    listed = " ".join(_quoted(f"{command.name}:{_escaped(command.text, ':')}") for command in commands)
    cases = []
    for command in commands:
        specs = [_zsh_option(option) for option in command.options]
        words = _zsh_values(command.words)
        if words:
            specs.append(_quoted(f"*{words}"))
        cases.append(f"        {command.name}) _arguments -S {' '.join(specs)} ;;\n")
    return f"""\
#compdef {program}
_{program}() {{
    local curcontext="$curcontext" state line
    local -a commands=({listed})
    _arguments -C {" ".join(_zsh_option(option) for option in own)} '1:command:->command' '*::word:->words'
    case $state in
    command) _describe command commands ;;
    words)
        case $line[1] in
{"".join(cases)}        esac ;;
    esac
}}
if [[ $funcstack[1] == _{program} ]]; then _{program} "$@"; else compdef _{program} {program}; fi"""


def _zsh_option(option: Option) -> str:
    text = _escaped(option.text, "[]:")
    return " ".join(_quoted(f"*{name}[{text}]{_zsh_values(option)}") for name in option.names)


def _zsh_values(option: Option) -> str:
    if option.choices:
        return f":value:({' '.join(option.choices)})"
    return {"file": ":file:_files", "folder": ":folder:_files -/", "any": ":value:"}.get(option.values, "")


def _fish(program: str, own: Sequence[Option], commands: Sequence[Command]) -> str:
    lines = [f"# fish completion of {program}", f"complete -c {program} -f"]
    lines += [_fish_line(program, "__fish_use_subcommand", option) for option in own]
    for command in commands:
        text = _quoted(command.text)
        lines.append(f"complete -c {program} -n __fish_use_subcommand -a {command.name} -d {text}")
    for command in commands:
        condition = f"'__fish_seen_subcommand_from {command.name}'"
        lines += [_fish_line(program, condition, option) for option in [*command.options, command.words]]
    return "\n".join(line for line in lines if line)


def _fish_line(program: str, condition: str, option: Option) -> str:
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    if option.choices:
        values = (
            f"-x -a {_quoted(' '.join(option.choices))}"
            if names
            else f"-a {_quoted(' '.join(option.choices))}"
        )
    elif option.values == "file":
        values = "-r -F" if names else "-F"
    elif option.values == "folder":
        values = "-x -a '(__fish_complete_directories)'"
    else:
        values = "-x" if option.values == "any" else ""
    if not names and (option.values == "none" or not values):
        return ""
    return " ".join(
        part
        for part in (f"complete -c {program} -n {condition}", *names, values, f"-d {_quoted(option.text)}")
        if part
    )


def _escaped(text: str, characters: str) -> str:
    return re.sub(f"([\\\\{re.escape(characters)}])", r"\\\1", text)


def _quoted(text: str) -> str:
    """As one word of zsh and of fish."""
    return "'" + text.replace("'", "'\\''") + "'"
