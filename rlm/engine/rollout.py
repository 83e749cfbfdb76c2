"""One run: ask the model, run its code, send it the output, until there is an answer or a limit is reached."""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from typing import Any

from rlm.aio.waiting import until_done
from rlm.context import Context
from rlm.engine import prompts
from rlm.engine.answer_format import AnswerFormat
from rlm.engine.call_tree import CallTree, Outcome, stop_reason
from rlm.engine.code_runner import CodeRunner
from rlm.engine.dialogue import Dialogue
from rlm.engine.emitter import Emitter
from rlm.engine.final_answer import FinalAnswer
from rlm.engine.history import History, observation
from rlm.engine.models import Model
from rlm.engine.parsing import ParsedReply, answer_text, parse_reply
from rlm.engine.subcalls import Subcalls
from rlm.errors import AnswerFormatError, LimitError, RLMError
from rlm.repl.interface import REPL, CellResult, SessionSpec
from rlm.repl.persistent import Conversation
from rlm.repl.tools import ToolReport
from rlm.types import RunStats, StopReason


class Rollout:
    """One run of one model over one context. Not reusable."""

    def __init__(
        self,
        tree: CallTree,
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
            model: the model that writes the code.
            question: None: the context holds it.
            depth: 0 for the root.
            parent: id of the run above; None for the root.
            call: id of the sub-call that this run answers; None for the root.
            conversation: the REPL, if it outlives the run; None: the run has a REPL of its own.
            answer_format: the form of the answer; None: any text.
        """
        self._depth = depth
        self._is_root = parent is None
        self._call = call
        self._tree = tree
        self._context = context
        self._question = question
        self._conversation = conversation
        settings = tree.settings
        self._setup = settings.root if self._is_root else settings.below
        self._stats = RunStats()
        self._answer = FinalAnswer(answer_format)
        run_id = os.urandom(6).hex()
        self._emitter = Emitter(tree.listeners, run_id, parent, depth, tree.record if self._is_root else None)
        run_child = partial(_run_child, tree, depth + 1, run_id)
        self._subcalls = Subcalls(tree, depth + 1, self._emitter, run_child)
        instructions = self._answer.instructions
        if settings.max_depth == 0:
            history = History(None, prompts.plain_call(context, question, instructions))
        else:
            first = prompts.first_message(
                context,
                question,
                prologue=settings.prologue,
                max_iterations=settings.max_iterations,
                earlier=0 if conversation is None else len(conversation.contexts),
                answer_format=instructions,
            )
            history = History(self._setup.system_prompt, first)
        self._dialogue = Dialogue(tree, model, history, self._stats, self._emitter, root=self._is_root)

    async def run(self) -> Outcome:
        """Runs to the end. Errors of the run are part of the outcome.

        Raises:
            asyncio.CancelledError: the caller was cancelled. The REPL of the run has ended.
        """
        started = time.perf_counter()
        if self._emitter.listened:
            # In a thread: hashing 100 MB takes a tenth of a second.
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

    async def _run(self) -> tuple[str, StopReason, RLMError | None]:
        ledger = self._tree.ledger
        try:
            response, stop = await (self._turns() if self._tree.settings.max_depth else self._plain_call())
            # An answer counts even if a limit was reached on the way. The limit is noted.
            return response, stop, ledger.error
        except RLMError as error:
            if isinstance(error, LimitError) and ledger.error is None and self._is_root:
                _emit_limit(self._emitter, error)  # a limit of this run alone: the ledger has not reported it
            return self._answer.content, stop_reason(error), error

    async def _turns(self) -> tuple[str, StopReason]:
        settings = self._tree.settings
        repl = await self._open()
        try:
            runner = CodeRunner(
                repl, self._answer, self._tree.ledger, self._stats, self._emitter, settings.max_errors
            )
            for number in range(1, settings.max_iterations + 1):
                await self._turn(repl, runner, number)
                if self._answer.done:
                    self._stats.answered = True
                    return self._answer.content, StopReason.ANSWERED
        finally:
            if self._conversation is None:
                await _close(repl)
        self._stats.forced_answer = True
        return await self._ask_for_answer(), StopReason.MAX_ITERATIONS

    async def _plain_call(self) -> tuple[str, StopReason]:
        """Runs without REPL and turns: the prompt is the input. This is the baseline of comparisons."""
        response = await self._ask_for_answer()
        self._stats.turns, self._stats.answered = 1, bool(response)
        return response, StopReason.ANSWERED

    async def _open(self) -> REPL:
        on_tool = partial(_emit_tool, self._emitter)
        settings = self._tree.settings.repl_of_one_run
        if self._conversation is not None:
            settings = self._tree.settings.repl
        spec = SessionSpec([self._context], tools=self._setup.tools, on_tool=on_tool, settings=settings)
        async with self._tree.ledger.guard():
            if self._conversation is not None:
                return await self._conversation.open(spec, self._subcalls.answer)
            return await self._tree.environment.open(spec, self._subcalls.answer)

    async def _turn(self, repl: REPL, runner: CodeRunner, number: int) -> None:
        started = time.perf_counter()
        callbacks = self._tree.settings.callbacks
        self._dialogue.turn = number
        if self._emitter.listened:
            self._emitter.emit("turn_start", turn=number)
        callbacks.iteration_start(self._depth, number)
        earlier = [] if self._conversation is None else self._conversation.histories
        await self._dialogue.compact(repl, earlier)
        reply = await self._dialogue.ask()
        self._stats.turns += 1
        parsed = parse_reply(reply.content, truncated=reply.finish_reason == "length")
        cells = await runner.run(number, parsed.blocks)
        done = self._answer.done
        text = "" if done else self._observe(cells, parsed, number)
        if not done:
            self._dialogue.history.add_observation(text)
        seconds = time.perf_counter() - started
        self._emitter.emit(
            "turn",
            turn=number,
            observation=text,
            final_answer=self._answer.content if done else None,
            seconds=seconds,
        )
        callbacks.iteration_complete(self._depth, number, seconds)
        if not done:
            self._tree.ledger.check()
            runner.check_errors()

    def _observe(self, cells: list[CellResult], parsed: ParsedReply, number: int) -> str:
        settings = self._tree.settings
        notes = [parsed.problem] if parsed.problem else []
        skipped = len(parsed.blocks) - len(cells)
        if skipped > 0:
            notes.append(f"The {skipped} block(s) after it were not run.")
        if cells and cells[-1].answer.note:
            notes.append(cells[-1].answer.note)
        if self._answer.problem is not None:
            notes.append(prompts.bad_answer(self._answer.problem))
        if number < settings.max_iterations:
            notes.append(prompts.turn_header(number + 1, settings.max_iterations))
        else:
            notes.append(prompts.FORCED_ANSWER)
        return observation(cells, notes)

    async def _ask_for_answer(self) -> str:
        """Asks the model for the answer alone, without code; twice if the first answer does not have the form.

        Raises:
            AnswerFormatError: the second answer does not have the form either.
        """
        answer, dialogue = self._answer, self._dialogue
        dialogue.turn += 1
        if self._emitter.listened:
            self._emitter.emit("turn_start", turn=dialogue.turn)
        reply = await dialogue.ask("answer")
        text = answer_text(reply.content) or answer.content
        problem = answer.check(text)
        if problem is not None:
            dialogue.history.add_observation(prompts.bad_last_word(problem))
            text = answer_text((await dialogue.ask("answer")).content)
            problem = answer.check(text)
        answer.content = text
        if problem is not None:
            raise AnswerFormatError(f"the answer does not fit response_format: {problem}")
        return text

    def _emit_start(self, context: dict[str, Any], window: int | None) -> None:
        messages = self._dialogue.history.messages
        settings, models = self._tree.settings, self._tree.models
        self._emitter.emit(
            "run_start",
            model=self._dialogue.model.name,
            question=self._question,
            context=context,
            earlier_contexts=0 if self._conversation is None else len(self._conversation.contexts),
            system_prompt=messages[0]["content"] if messages[0]["role"] == "system" else "",
            # The first message of a plain call is the input, which is not logged.
            first_message=messages[1]["content"] if settings.max_depth else "",
            max_iterations=settings.max_iterations,
            max_depth=settings.max_depth,
            call=self._call,
            context_length=window,
            sampling=self._dialogue.model.sampling,
            sub_sampling=models.sub_sampling,
            models=models.describe() if self._is_root else {},
        )

    def _outcome(self, response: str, stop: StopReason, error: RLMError | None) -> Outcome:
        stats, ledger = self._stats, self._tree.ledger
        if self._is_root:
            stats.subcalls = ledger.subcalls
            stats.subcall_failures = ledger.subcall_failures
            stats.root_input_tokens = ledger.root.input_tokens
            stats.root_output_tokens = ledger.root.output_tokens
            stats.sub_input_tokens = ledger.sub.input_tokens
            stats.sub_output_tokens = ledger.sub.output_tokens
        return Outcome(response, stop, error, stats, self._dialogue.history.messages, self._answer.parsed)


# REPL and ledger keep the functions below for longer than the run. They are no methods: those would keep the run, and with it
# its input, in memory.


async def _run_child(
    tree: CallTree, depth: int, parent: str, model: Model, context: Context, call: str
) -> Outcome:
    return await Rollout(tree, model, context, None, depth=depth, parent=parent, call=call).run()


def _emit_limit(emitter: Emitter, error: RLMError) -> None:
    emitter.emit("limit", error_type=type(error).__name__, message=str(error))


def _emit_tool(emitter: Emitter, report: ToolReport) -> None:
    emitter.emit("tool_call", name=report.name, error=report.error, seconds=report.seconds)


async def _close(repl: REPL) -> None:
    """Closes the REPL completely, however often the caller is cancelled meanwhile. A limit can cancel it, and so can the end of
    the cell that started this run."""
    closing = asyncio.ensure_future(repl.close())
    try:
        await until_done(closing)
    finally:
        closing.result()
