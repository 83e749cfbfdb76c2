"""The texts that the model is sent: system prompt, first message, notes on its answers."""

from __future__ import annotations

from rlm.context import Context
from rlm.errors import ContextError

_SYSTEM = """\
You answer a question about an input that may be far longer than what you can read at once. You do not see the input. It \
is the variable `context` in a Python REPL, and you work on it by writing code: to look at it, to cut it into pieces, \
and to have sub-models read the pieces for you. You go on, turn by turn, until you have the answer.

Code that stands between a line "```repl" and a line "```" is run, and the next message shows you what it printed:

```repl
print(type(context), len(context))
print(context[:500])
```

The REPL is ordinary Python and keeps its variables from turn to turn. It holds:
- `context`: the input (`context_0`, `context_1`, ... if there are several; `context` is the newest).
- `llm_query(prompt, model=None) -> str`: asks a sub-model. It sees the prompt and nothing else: put the instructions and \
the text into it.
- `llm_query_batched(prompts, model=None) -> list[str]`: asks many at once; the answers come in the order of the prompts. \
Much faster than a loop.
- `rlm_query(prompt, model=None)` and `rlm_query_batched(prompts, model=None)`: the same, answered by a model with a REPL of \
its own whose `context` is the prompt, where this run allows that; for pieces that need several steps themselves.
- A query that failed returns a `SubcallError`, a str that begins with "Error: ". Test with `isinstance(r, SubcallError)`, \
and ask again or leave the item out.
- `SHOW_VARS()`: your variables and what they hold.
- `answer`: a dict, `{"content": "", "ready": False}`. To finish, run code that sets `answer["content"]` to the answer and \
`answer["ready"]` to True. Nothing else ends the run.

Output is cut in the middle when it is long, so do not print the input to read it: print small samples, and give slices to \
sub-models.

Look before you answer: first see what the input is and how it is built, then try an approach on a small part, then run it \
on everything and check the result. Each turn, say in a sentence or two what you do next and write one ```repl block. Do not \
answer before you have looked at the context."""

_ORCHESTRATOR = """\
You orchestrate; do not try to solve everything in your head:
- Write down first how the question splits into steps, and which of them code can do and which need reading.
- Where a search, a regular expression, a parser or a count does the work, use it. Filter in code first, so that less is left \
to read.
- Leave reading, judging and labelling of text to sub-models. One prompt may hold about 100,000 characters, fewer where every \
line matters; about 20 prompts make a good batch. Ask for a form that code can parse, and check that it came.
- Print small samples and the candidate answer, and look at them before you set `answer`.
- Keep your own words for decisions."""


def system_prompt(*, orchestrator: bool = True) -> str:
    """The default system prompt.

    Args:
        orchestrator: whether it advises to leave reading to sub-models.
    """
    return f"{_SYSTEM}\n\n{_ORCHESTRATOR}" if orchestrator else _SYSTEM


def tools(lines: str) -> str:
    """The part of the system prompt that lists custom tools.

    Args:
        lines: one line for each tool.
    """
    return f"The REPL also holds these functions and values, for this task:\n{lines}"


def first_message(
    context: Context,
    question: str | None,
    *,
    prologue: str | None,
    max_iterations: int,
    earlier: int = 0,
    answer_format: str | None = None,
) -> str:
    """The first user message: the question, what the context is, and the turn.

    Args:
        earlier: number of contexts of earlier completions in the same REPL.
        answer_format: instructions on the form of the answer.
    """
    if question is None:
        question = "The context itself holds the request: read it there, and answer it."
    parts = [f"Question: {question}", f"Context: {context.summary}."]
    if earlier:
        parts.append(
            f"This is completion {earlier + 1} in this REPL, which still holds its variables: the new context is "
            f"`context` and `context_{earlier}`, earlier ones are `context_0` to `context_{earlier - 1}`, and `history` has "
            "the messages of the earlier completions, each a list that ends with the answer. `answer` is empty again."
        )
    if answer_format is not None:
        parts.append(answer_format)
    parts.append(turn_header(1, max_iterations))
    if prologue:
        parts.insert(0, prologue)
    return "\n\n".join(parts)


def plain_call(context: Context, question: str | None, answer_format: str | None) -> str:
    """The only message of a run without a REPL: the input itself, then the question.

    Raises:
        ContextError: the input is no str.
    """
    if context.kind != "str":
        raise ContextError(f"max_depth=0 sends the input as the prompt: give a str, not a {context.kind}")
    parts = [
        context.value,
        question,
        answer_format and answer_format.replace('answer["content"]', "your reply"),
    ]
    return "\n\n".join(part for part in parts if part is not None)


def bad_answer(problem: str) -> str:
    """The note on an answer of the code that does not have the form."""
    return (
        f'answer["content"] does not have the form that is asked for, so the run goes on: {problem}. '
        'Set it again, to JSON text, with answer["ready"] = True.'
    )


def bad_last_word(problem: str) -> str:
    """The note on an answer of the last call, which is asked for without code, that does not have the form."""
    return f"That does not have the form that is asked for: {problem}. Reply once more, with the JSON text alone."


def turn_header(number: int, max_iterations: int) -> str:
    """The last paragraph of each user message."""
    header = f"Turn {number}/{max_iterations}"
    if number == max_iterations:
        header += ': the last one. Set `answer["content"]` and `answer["ready"] = True` in it.'
    return header


FORCED_ANSWER = (
    "There are no turns left, and no more code will run. Reply with your final answer to the question alone: "
    "the best that you can say from what you have seen, as plain text, in the form that the question asks for."
)
