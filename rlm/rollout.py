"""One run: ask the root, parse, execute, observe, until there is an answer or a limit."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from rlm import prompts
from rlm.clients.base import ModelReply
from rlm.context import Context
from rlm.environments.base import REPL, AnswerState, CellResult, SessionSpec
from rlm.errors import (
    ErrorThresholdExceededError,
    RLMError,
)
from rlm.history import History, observation
from rlm.models import Model
from rlm.parsing import ParsedReply, answer_text, parse_reply
from rlm.subcalls import Subcalls
from rlm.tree import Outcome, Tree, stop_reason
from rlm.types import CodeBlock, Iteration, RunStats, StopReason

_log = logging.getLogger(__name__)

# Seconds that a cell gets when the reply that holds it has already used up the tokens of the run: enough to set an answer.
_LAST_CELL_SECONDS = 5.0


@dataclass(slots=True)
class _State:
    """What one run has so far."""

    history: History
    stats: RunStats = field(default_factory=RunStats)
    iterations: list[Iteration] = field(default_factory=list)
    answer: AnswerState = field(default_factory=lambda: AnswerState("", ready=False))
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
        parent: Rollout | None = None,
    ) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.depth: int = 0 if parent is None else parent.depth + 1
        self._parent = parent
        self._tree = tree
        self._model = model
        self._context = context
        self._question = question
        self._subcalls = Subcalls(tree, self)
        settings = tree.settings
        first = prompts.first_message(
            context, question, prologue=settings.prologue, max_iterations=settings.max_iterations
        )
        self._state = _State(History(settings.system_prompt, first))

    def child(self, model: Model, context: Context) -> Rollout:
        """A run below this one."""
        return Rollout(self._tree, model, context, None, parent=self)

    @property
    def observed(self) -> bool:
        """Whether anybody listens."""
        return bool(self._tree.listeners)

    def emit(self, type: str, /, **data: Any) -> None:  # noqa: A002 - the field's name in the log
        """Tells the listeners what happened."""
        if not self.observed:
            return
        parent = self._parent.id if self._parent is not None else None
        event = {
            "type": type,
            "time": time.time(),
            "run": self.id,
            "parent": parent,
            "depth": self.depth,
            **{name: _plain(value) for name, value in data.items()},
        }
        for listener in self._tree.listeners:
            try:
                listener(event)
            except Exception:  # a full disk under the log, a closed terminal: nothing flows back into the run
                _log.exception("an event of run %s was lost", self.id)

    async def run(self) -> Outcome:
        """Runs to the end. Errors of the run are part of the outcome.

        Raises:
            asyncio.CancelledError: the caller was cancelled. The REPL is gone by then.
        """
        if self.observed:
            messages = self._state.history.messages
            self.emit(
                "run_start",
                model=self._model.name,
                question=self._question,
                # In a thread: the hash of 100 MB takes a tenth of a second.
                context=await asyncio.to_thread(self._context.describe),
                system_prompt=messages[0]["content"],
                first_message=messages[1]["content"],
                max_iterations=self._tree.settings.max_iterations,
            )
        response, stop, error = "", StopReason.CANCELLED, None
        try:
            response, stop, error = await self._run()
        finally:
            outcome = self._outcome(response, stop, error)
            self.emit(
                "run_end",
                stop=stop.value,
                response=response,
                error=None if error is None else f"{type(error).__name__}: {error}",
                stats=outcome.stats,
                usage=self._tree.ledger.summary.to_dict() if self._parent is None else None,
            )
        return outcome

    async def _run(self) -> tuple[str, StopReason, RLMError | None]:
        try:
            response, stop = await self._turns()
            # An answer that was found counts, also when a limit was reached on the way; the limit is noted.
            return response, stop, self._tree.ledger.error
        except RLMError as error:
            return self._state.answer.content, stop_reason(error), error

    async def _turns(self) -> tuple[str, StopReason]:
        settings, state = self._tree.settings, self._state
        spec = SessionSpec(contexts=[self._context], **settings.session)
        async with self._tree.ledger.guard():
            repl = await self._tree.environment.open(spec, self._subcalls.answer)
        try:
            for number in range(1, settings.max_iterations + 1):
                await self._turn(repl, number)
                if _is_answered(state.answer):
                    state.stats.answered = True
                    return state.answer.content, StopReason.ANSWERED
        finally:
            await _close(repl)
        reply = await self._ask()
        state.stats.forced_answer = True
        return answer_text(reply.content) or state.answer.content, StopReason.MAX_ITERATIONS

    async def _turn(self, repl: REPL, number: int) -> None:
        started = time.perf_counter()
        state = self._state
        reply = await self._ask()
        state.stats.turns += 1
        parsed = parse_reply(reply.content, truncated=reply.finish_reason == "length")
        cells, blocks = await self._execute(repl, parsed)
        done = _is_answered(state.answer)
        text = "" if done else self._observe(cells, parsed, number)
        if not done:
            state.history.add_observation(text)
        iteration = Iteration(
            number=number,
            response=reply.content,
            code_blocks=blocks,
            observation=text,
            final_answer=state.answer.content if done else None,
            iteration_time=time.perf_counter() - started,
        )
        state.iterations.append(iteration)
        self.emit(
            "turn",
            turn=number,
            observation=text,
            final_answer=iteration.final_answer,
            seconds=iteration.iteration_time,
        )
        if not done:
            self._tree.ledger.check()
            self._check_errors(cells)

    async def _ask(self) -> ModelReply:
        """The root's next reply, added to the history.

        A limit that this very reply crosses does not throw it away: it is paid for, and may hold the answer.
        """
        state = self._state
        messages = state.history.messages
        started = time.perf_counter()
        try:
            async with self._tree.ledger.guard():
                reply = await self._model.ask(messages, self._tree.ledger, root=self.depth == 0)
        finally:
            seconds = time.perf_counter() - started
            state.stats.model_seconds += seconds
        if reply.finish_reason == "length":
            state.stats.truncated += 1
        state.history.add_reply(reply.message)
        self.emit(
            "reply",
            content=reply.content,
            reasoning=reply.reasoning,
            finish_reason=reply.finish_reason,
            usage=reply.usage,
            retries=reply.retries,
            seconds=seconds,
        )
        return reply

    async def _execute(self, repl: REPL, parsed: ParsedReply) -> tuple[list[CellResult], list[CodeBlock]]:
        """Runs the blocks of a reply in order, until one sets the answer or the REPL had to stop one."""
        state, ledger = self._state, self._tree.ledger
        cells: list[CellResult] = []
        blocks: list[CodeBlock] = []
        for number, code in enumerate(parsed.blocks, 1):
            cell = await self._execute_cell(repl, code)
            calls = self._subcalls.take_records()
            cells.append(cell)
            blocks.append(
                CodeBlock(code, cell.stdout, cell.stderr, cell.error, cell.locals, cell.seconds, calls)
            )
            state.answer = cell.answer
            state.stats.cells += 1
            state.stats.cell_errors += cell.status != "ok"
            state.errors_in_a_row = 0 if cell.status == "ok" else state.errors_in_a_row + 1
            state.stats.repl_seconds += cell.seconds
            self.emit(
                "cell",
                number=number,
                code=code,
                status=cell.status,
                stdout=cell.stdout,
                stderr=cell.stderr,
                error=cell.error,
                locals=cell.locals,
                answer=cell.answer,
                seconds=cell.seconds,
            )
            if _is_answered(cell.answer) or cell.status in ("interrupted", "killed", "died") or ledger.error:
                break
        return cells, blocks

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
        if self._parent is None:
            state.stats.subcalls = ledger.subcalls
            state.stats.subcall_failures = ledger.subcall_failures
            state.stats.root_input_tokens = ledger.root.input_tokens
            state.stats.root_output_tokens = ledger.root.output_tokens
            state.stats.sub_input_tokens = ledger.sub.input_tokens
            state.stats.sub_output_tokens = ledger.sub.output_tokens
        return Outcome(response, stop, error, state.stats, state.history.messages, state.iterations)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _is_answered(answer: AnswerState) -> bool:
    return answer.ready and bool(answer.content)


async def _close(repl: REPL) -> None:
    """Closes the REPL to the end, however often the caller is cancelled meanwhile: a limit and the end of the cell above
    may both do so."""
    closing = asyncio.ensure_future(repl.close())
    interrupted: asyncio.CancelledError | None = None
    while not closing.done():
        try:
            await asyncio.wait([closing])
        except asyncio.CancelledError as error:
            interrupted = error
    closing.result()
    if interrupted is not None:
        raise interrupted
