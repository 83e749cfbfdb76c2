"""The models of a run, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlm.clients.base import Client, ModelReply
from rlm.limits import Ledger
from rlm.tokens import Window
from rlm.types import Message, SamplingArgs


@dataclass(frozen=True, slots=True)
class Model:
    """One model and how this run asks it."""

    client: Client
    sampling: SamplingArgs
    window: Window

    @property
    def name(self) -> str:
        return self.client.model

    async def ask(self, messages: Sequence[Message], ledger: Ledger, *, root: bool) -> ModelReply:
        """One call, refused before it is sent if the prompt cannot fit, and booked once.

        Raises:
            ModelError: the call failed for good.
        """
        await self.window.check(messages)
        reply = await self.client.complete(messages, sampling=self.sampling)
        ledger.book(self.name, reply.usage, root=root)
        if root:
            self.window.observe(messages, reply.usage.input_tokens)
        return reply


class Models:
    """The root's model, the sub-models, and which one answers what."""

    def __init__(
        self, root: Client, others: Sequence[Client], sampling: SamplingArgs, sub_sampling: SamplingArgs
    ) -> None:
        """
        Args:
            root: answers the root's turns.
            others: sub-models. The first answers sub-calls that name no model, and drives child runs; without any, the
                root's model does.
            sampling: arguments of the root's calls.
            sub_sampling: arguments of all calls below the root.
        """
        self.root = Model(root, sampling, Window(root))
        subs = [Model(client, sub_sampling, Window(client)) for client in (*others, root)]
        self.sub = subs[0]
        self._by_name = {model.name: model for model in reversed(subs)}

    def named(self, name: str | None) -> Model | None:
        """The sub-model of that name, the default for None; None if this run has no such model."""
        return self.sub if name is None else self._by_name.get(name)

    @property
    def names(self) -> list[str]:
        return sorted(self._by_name)
