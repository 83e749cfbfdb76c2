"""One run: ask the root, parse, execute, observe, until there is an answer or a limit."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from rlm.aio.waiting import until_done
from rlm.context import Context
from rlm.engine import prompts
from rlm.engine.answer_format import AnswerFormat
from rlm.engine.call_tree import Outcome, Tree, stop_reason
from rlm.engine.chat import Dialogue
from rlm.engine.emitter import Emitter
from rlm.engine.history import History, observation
from rlm.engine.models import Model
from rlm.engine.parsing import ParsedReply, answer_text, parse_reply
from rlm.engine.subcalls import Subcalls
from rlm.errors import (
    AnswerFormatError,
    ErrorThresholdExceededError,
    LimitError,
    RLMError,
)
from rlm.repl.interface import REPL, AnswerState, CellResult, SessionSpec
from rlm.repl.persistent import Conversation
from rlm.repl.tools import ToolReport
from rlm.types import Message, RunStats, StopReason

# Seconds that a cell gets when the reply that holds it has already used up the tokens of the run: enough to set an answer.
_LAST_CELL_SECONDS = 5.0

# And to end when the run is stopped: C code does not hear of it, and nothing that it goes on to do is of use any more.
_STOP_GRACE = 0.08


@dataclass(slots=True)
class _State:
    """What one run has so far."""

    stats: RunStats = field(default_factory=RunStats)
    answer: AnswerState = field(default_factory=lambda: AnswerState("", ready=False))
    done: bool = False
    """The answer is ready, and of the form that was asked for."""
    parsed: object = None
    problem: str | None = None
    """What is wrong with the form of an answer that was set ready."""
    errors_in_a_row: int = 0


class Rollout:
    """One run of one model over one context. Not reusable."""

    def __init__(
        self,
        tree: Tree,
        model: Model,
        context: Context,
        question: str | None,
        *,
        depth: int = 0,
        parent: str | None = None,
        call: str | None = None,
        conversation: Conversation | None = None,
        answer_format: AnswerFormat | None = None,
    ) -> None:
        """
        Args:
            model: plays this run.
            question: None: the context holds it.
            depth: 0 for the root.
            parent: id of the run above; None for the root.
            call: id of the sub-call that this run answers; None for the root.
            conversation: has the REPL, where that outlives the run.
            answer_format: of the answer.
        """
        self._depth = depth
        self._is_root = parent is None
        self._call = call
        self._tree = tree
        self._context = context
        self._question = question
        self._conversation = conversation
        self._format = answer_format
        settings = tree.settings
        self._setup = settings.root if self._is_root else settings.below
        run_id = os.urandom(6).hex()
        self._emitter = Emitter(tree.listeners, run_id, parent, depth, tree.record if self._is_root else None)
        self._subcalls = Subcalls(
            tree, depth + 1, self._emitter, partial(_run_child, tree, depth + 1, run_id)
        )
        self._state = _State()
        if settings.max_depth == 0:
            history = History(None, prompts.plain_call(context, question, self._instructions))
        else:
            first = prompts.first_message(
                context,
                question,
                prologue=settings.prologue,
                max_iterations=settings.max_iterations,
                earlier=0 if conversation is None else len(conversation.contexts),
                answer_format=self._instructions,
            )
            history = History(self._setup.system_prompt, first)
        self._dialogue = Dialogue(tree, model, history, self._state.stats, self._emitter, root=self._is_root)

    @property
    def _instructions(self) -> str | None:
        return None if self._format is None else self._format.instructions

    async def run(self) -> Outcome:
        """Runs to the end. Errors of the run are part of the outcome.

        Raises:
            asyncio.CancelledError: the caller was cancelled. The REPL is gone by then.
        """
        started = time.perf_counter()
        if self._emitter.listened:
            # In a thread: the hash of 100 MB takes a tenth of a second.
            context = await asyncio.to_thread(self._context.describe)
            self._emit_start(context, await self._dialogue.model.window.size())
        elif self._emitter.active:
            self._emit_start({"kind": self._context.kind, "size": self._context.size}, None)
        if self._is_root:
            self._tree.ledger.on_trip = partial(_emit_limit, self._emitter)
        response, stop, error = "", StopReason.CANCELLED, None
        try:
            response, stop, error = await self._run()
        finally:
            del self._context  # a traceback may keep this run for longer
            outcome = self._outcome(response, stop, error)
            self._emitter.emit(
                "run_end",
                stop=stop.value,
                response=response,
                error=None if error is None else f"{type(error).__name__}: {error}",
                stats=outcome.stats,
                usage=self._tree.ledger.summary.to_dict() if self._is_root else None,
                seconds=time.perf_counter() - started,
            )
        return outcome

    def _emit_start(self, context: dict[str, Any], window: int | None) -> None:
        messages = self._dialogue.history.messages
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        settings, models = self._tree.settings, self._tree.models
        self._emitter.emit(
            "run_start",
            model=self._dialogue.model.name,
            question=self._question,
            context=context,
            earlier_contexts=0 if self._conversation is None else len(self._conversation.contexts),
            system_prompt=system,
            # That of a plain call is the input.
            first_message=messages[1]["content"] if settings.max_depth else "",
            max_iterations=settings.max_iterations,
            max_depth=settings.max_depth,
            call=self._call,
            context_length=window,
            sampling=self._dialogue.model.sampling,
            sub_sampling=models.sub_sampling,
            models=models.describe() if self._is_root else {},
        )

    async def _run(self) -> tuple[str, StopReason, RLMError | None]:
        ledger = self._tree.ledger
        try:
            response, stop = await (self._turns() if self._tree.settings.max_depth else self._plain_call())
            # An answer that was found counts, also when a limit was reached on the way; the limit is noted.
            return response, stop, ledger.error
        except RLMError as error:
            if isinstance(error, LimitError) and ledger.error is None and self._is_root:
                _emit_limit(self._emitter, error)  # one that only this run has come to
            return self._state.answer.content, stop_reason(error), error

    async def _turns(self) -> tuple[str, StopReason]:
        settings, state = self._tree.settings, self._state
        repl = await self._open()
        try:
            for number in range(1, settings.max_iterations + 1):
                await self._turn(repl, number)
                if state.done:
                    state.stats.answered = True
                    return state.answer.content, StopReason.ANSWERED
        finally:
            if self._conversation is None:
                await _close(repl)
        state.stats.forced_answer = True
        return await self._last_word(), StopReason.MAX_ITERATIONS

    async def _plain_call(self) -> tuple[str, StopReason]:
        """No REPL and no turns, the model gets the input as its prompt: the baseline that a run is compared with."""
        stats = self._state.stats
        response = await self._last_word()
        stats.turns, stats.answered = 1, bool(response)
        return response, StopReason.ANSWERED

    async def _open(self) -> REPL:
        on_tool = partial(_emit_tool, self._emitter)
        settings = self._tree.settings.session
        if settings.stop_grace is None and self._conversation is None:
            settings = replace(settings, stop_grace=_STOP_GRACE)
        spec = SessionSpec([self._context], tools=self._setup.tools, on_tool=on_tool, settings=settings)
        async with self._tree.ledger.guard():
            if self._conversation is not None:
                return await self._conversation.open(spec, self._subcalls.answer)
            return await self._tree.environment.open(spec, self._subcalls.answer)

    async def _last_word(self) -> str:
        """Asks for the answer alone.

        Raises:
            AnswerFormatError: it does not have the form that it should, also when the model was told so once.
        """
        state = self._state
        self._dialogue.turn += 1
        self._emitter.emit("turn_start", turn=self._dialogue.turn)
        reply = await self._dialogue.ask("answer")
        text = answer_text(reply.content) or state.answer.content
        if self._format is None:
            return text
        state.parsed, problem = self._format.parse(text)
        if problem is not None:
            self._dialogue.history.add_observation(prompts.bad_last_word(problem))
            text = answer_text((await self._dialogue.ask("answer")).content)
            state.parsed, problem = self._format.parse(text)
        state.answer = AnswerState(text, ready=problem is None)
        if problem is not None:
            raise AnswerFormatError(f"the answer does not fit response_format: {problem}")
        return text

    async def _turn(self, repl: REPL, number: int) -> None:
        started = time.perf_counter()
        state, callbacks = self._state, self._tree.settings.callbacks
        self._dialogue.turn = number
        self._emitter.emit("turn_start", turn=number)
        callbacks.iteration_start(self._depth, number)
        await self._dialogue.compact(repl, self._histories())
        reply = await self._dialogue.ask()
        state.stats.turns += 1
        parsed = parse_reply(reply.content, truncated=reply.finish_reason == "length")
        cells = await self._execute(repl, parsed)
        text = "" if state.done else self._observe(cells, parsed, number)
        if not state.done:
            self._dialogue.history.add_observation(text)
        seconds = time.perf_counter() - started
        self._emitter.emit(
            "turn",
            turn=number,
            observation=text,
            final_answer=state.answer.content if state.done else None,
            seconds=seconds,
        )
        callbacks.iteration_complete(self._depth, number, seconds)
        if not state.done:
            self._tree.ledger.check()
            self._check_errors(cells)

    async def _execute(self, repl: REPL, parsed: ParsedReply) -> list[CellResult]:
        """Runs the blocks of a reply in order, until one sets the answer or the REPL had to stop one."""
        state, ledger = self._state, self._tree.ledger
        cells: list[CellResult] = []
        state.problem = None
        for number, code in enumerate(parsed.blocks, 1):
            self._emitter.emit("cell_start", turn=self._dialogue.turn, number=number, code=code)
            cell = await self._execute_cell(repl, code)
            cells.append(cell)
            state.answer = cell.answer
            state.stats.cells += 1
            state.stats.cell_errors += cell.status != "ok"
            state.errors_in_a_row = 0 if cell.status == "ok" else state.errors_in_a_row + 1
            state.stats.repl_seconds += cell.seconds
            if self._emitter.active:
                self._emit_cell(number, code, cell)
            if (
                self._is_final(cell.answer)
                or cell.status in ("interrupted", "killed", "died")
                or ledger.error
            ):
                break
        return cells

    def _emit_cell(self, number: int, code: str, cell: CellResult) -> None:
        self._emitter.emit(
            "cell",
            turn=self._dialogue.turn,
            number=number,
            code=code,
            status=cell.status,
            stdout=cell.stdout,
            stderr=cell.stderr,
            error=cell.error,
            locals=cell.locals,
            answer=asdict(cell.answer),
            seconds=cell.seconds,
        )

    def _histories(self) -> list[list[Message]]:
        """Of earlier completions in the same REPL."""
        return [] if self._conversation is None else self._conversation.histories

    def _is_final(self, answer: AnswerState) -> bool:
        """Whether an answer is the end of the turn: of the run, or of what can be done before the model hears what is wrong
        with it."""
        state = self._state
        if not (answer.ready and answer.content):
            return False
        if self._format is not None:
            state.parsed, state.problem = self._format.parse(answer.content)
        state.done = state.problem is None
        return True

    async def _execute_cell(self, repl: REPL, code: str) -> CellResult:
        ledger = self._tree.ledger
        if ledger.error is not None:
            return await repl.execute(code, timeout=_LAST_CELL_SECONDS)

        def stop(limit: RLMError) -> None:
            repl.interrupt(str(limit))

        with ledger.interruptible(stop):
            return await repl.execute(code)

    def _observe(self, cells: list[CellResult], parsed: ParsedReply, number: int) -> str:
        settings = self._tree.settings
        notes = [parsed.problem] if parsed.problem else []
        skipped = len(parsed.blocks) - len(cells)
        if skipped > 0:
            notes.append(f"The {skipped} block(s) after it were not run.")
        if cells and cells[-1].answer.note:
            notes.append(cells[-1].answer.note)
        if self._state.problem is not None:
            notes.append(prompts.bad_answer(self._state.problem))
        if number < settings.max_iterations:
            notes.append(prompts.turn_header(number + 1, settings.max_iterations))
        else:
            notes.append(prompts.FORCED_ANSWER)
        return observation(cells, notes)

    def _check_errors(self, cells: list[CellResult]) -> None:
        threshold = self._tree.settings.max_errors
        count = self._state.errors_in_a_row
        if threshold is not None and count >= threshold:
            raise ErrorThresholdExceededError(count, threshold, cells[-1].error or "" if cells else "")

    def _outcome(self, response: str, stop: StopReason, error: RLMError | None) -> Outcome:
        state, ledger = self._state, self._tree.ledger
        if self._is_root:
            state.stats.subcalls = ledger.subcalls
            state.stats.subcall_failures = ledger.subcall_failures
            state.stats.root_input_tokens = ledger.root.input_tokens
            state.stats.root_output_tokens = ledger.root.output_tokens
            state.stats.sub_input_tokens = ledger.sub.input_tokens
            state.stats.sub_output_tokens = ledger.sub.output_tokens
        return Outcome(response, stop, error, state.stats, self._dialogue.history.messages, state.parsed)


async def _run_child(
    tree: Tree, depth: int, parent: str, model: Model, context: Context, call: str
) -> Outcome:
    return await Rollout(tree, model, context, None, depth=depth, parent=parent, call=call).run()


# Functions of the emitter rather than of the run: REPL and ledger keep them, and the run would hold its input in memory.


def _emit_limit(emitter: Emitter, error: RLMError) -> None:
    emitter.emit("limit", error_type=type(error).__name__, message=str(error))


def _emit_tool(emitter: Emitter, call: ToolReport) -> None:
    emitter.emit("tool_call", name=call.name, error=call.error, seconds=call.seconds)


async def _close(repl: REPL) -> None:
    """Closes the REPL to the end, however often the caller is cancelled meanwhile: a limit and the end of the cell above
    may both do so."""
    closing = asyncio.ensure_future(repl.close())
    try:
        await until_done(closing)
    finally:
        closing.result()
