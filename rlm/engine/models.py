"""The models of a run by name, and how a run calls them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rlm._wording import a
from rlm.clients.base import MOST_TOKENS, Client, ModelReply
from rlm.clients.prices import Price
from rlm.engine.ledger import Ledger
from rlm.engine.model_window import UNCOUNTED, Counted, ModelWindow
from rlm.errors import BadReplyError, ConfigError, ModelError, RLMError
from rlm.types import Message, SamplingArgs

_ASKED_OF_ANY_MODEL = 16_384
"""Output tokens that every current model accepts as a cap. Used if the size of the window is unknown."""

_CAPS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class Model:
    """One model, and how this run calls it."""

    name: str
    """The code's name for it."""
    client: Client
    sampling: SamplingArgs
    window: ModelWindow
    price: Price | None = None

    async def ask(
        self, messages: Sequence[Message], ledger: Ledger, *, root: bool, counted: Counted = UNCOUNTED
    ) -> ModelReply:
        """Makes one call and books it. A prompt that cannot fit the window or the limits is refused before it is sent.

        Args:
            root: whether the usage is the root's.
            counted: the beginning of the messages, if the server has counted it before.

        Raises:
            ModelError: the call failed for good. An exception of a client that is no RLMError becomes the cause of one.
            LimitError: the prompt needs more than a limit leaves.
        """
        with self._failing():
            await self.window.check(messages, counted)
        if not ledger.bounded:
            reply = await self._complete(messages, self.sampling)
            ledger.book(self.client.model, reply.usage, root=root)
        else:
            size = self.window.bound(messages, counted)
            async with ledger.claim(size, self.price, self._own_cap()) as cap:
                sampling = await self._capped(cap, size)
                reply = await self._complete(messages, sampling)
                ledger.book(self.client.model, reply.usage, root=root)
        self.window.observe(messages, reply.usage.input_tokens)
        return reply

    async def _complete(self, messages: Sequence[Message], sampling: SamplingArgs) -> ModelReply:
        with self._failing():
            reply = await self.client.complete(messages, sampling=sampling)
            _check(reply)
            return self._priced(reply)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Turns an exception of a client that is no RLMError into a ModelError, which ends one call and not the batch."""
        try:
            yield
        except RLMError:
            raise
        except Exception as error:
            raise ModelError(
                f"the client of {self.client.model!r} failed: {type(error).__name__}: {error}"
            ) from error

    def _priced(self, reply: ModelReply) -> ModelReply:
        """The reply with its cost: the provider's own figure, otherwise the cost by price, otherwise none."""
        if reply.usage.cost is not None or self.price is None:
            return reply
        return replace(reply, usage=replace(reply.usage, cost=self.price.cost(reply.usage)))

    def _own_cap(self) -> int | None:
        """The most output tokens that the sampling arguments allow; None: they set no limit."""
        for sampling in (self.sampling, self.client.sampling_args):
            for name in _CAPS:
                if isinstance(sampling.get(name), int):
                    return int(sampling[name])
        return None

    async def _capped(self, cap: int | None, prompt_tokens: int) -> SamplingArgs:
        """The sampling arguments with `cap` as token limit, if it is less than the model would allow anyway."""
        if cap is None or cap == self._own_cap():
            return self.sampling
        window = await self.window.size()
        most = _ASKED_OF_ANY_MODEL if window is None else window - prompt_tokens * 9 // 8 - 64
        if self._own_cap() is None and cap >= most:
            return self.sampling  # servers refuse a cap that is larger than the window
        name = next((name for name in _CAPS if name in self.sampling), _CAPS[0])
        return {**self.sampling, name: cap}


class Models:
    """The root's model and the sub-models, by name and by depth."""

    def __init__(
        self,
        root: Client,
        others: Mapping[str, Client],
        sampling: SamplingArgs,
        sub_sampling: SamplingArgs,
        *,
        depth_models: Sequence[str] = (),
        price: Callable[[Client], Price | None] = lambda _: None,
    ) -> None:
        """
        Args:
            root: client of the root's model.
            others: clients of the sub-models by name. The first answers sub-calls that name no model, and drives child runs;
                without any, the root's model does both.
            sampling: sampling arguments of the root's calls.
            sub_sampling: sampling arguments of all calls below the root.
            depth_models: names of the models that answer at depth 1, 2, ... in place of the first of `others`; the last one
                answers at all greater depths too.
            price: gives the price of a client's model; None: unknown.

        Raises:
            ConfigError: a name in `depth_models` is not the name of a model.
        """
        self.sub_sampling = sub_sampling
        self.root = Model(root.model, root, sampling, ModelWindow(root), price(root))
        subs = {
            name: Model(name, client, sub_sampling, ModelWindow(client), price(client))
            for name, client in others.items()
        }
        subs.setdefault(root.model, replace(self.root, sampling=sub_sampling))
        self._by_name = subs
        for name in depth_models:
            if name not in subs:
                raise ConfigError(
                    f"depth_models names {name!r}, and the models of this run are {', '.join(self.names)}"
                )
        default = next(iter(subs))
        self._by_depth = list(depth_models) or [default]

    @property
    def by_depth(self) -> list[str]:
        """Names of the default models at depth 1, 2, ...; the last one is the default at all greater depths too."""
        return list(self._by_depth)

    def named(self, name: str | None, depth: int) -> Model | None:
        """The model of a name; None if this run has no such model.

        Args:
            name: None: the default model of the depth.
            depth: depth of the sub-call; 1 below the root.
        """
        if name is None:
            name = self._by_depth[min(depth, len(self._by_depth)) - 1]
        return self._by_name.get(name)

    def describe(self) -> dict[str, dict[str, str]]:
        """The provider's name of each model, and the provider, by the code's name. The default is first."""
        return {
            model.name: {"model": model.client.model, "provider": provider_of(model.client)} for model in self
        }

    def __iter__(self) -> Iterator[Model]:
        """The models that the code can name. The default is first."""
        first = self._by_depth[0]
        return iter(sorted(self._by_name.values(), key=lambda model: model.name != first))

    @property
    def names(self) -> list[str]:
        return sorted(self._by_name)


def _check(reply: ModelReply) -> None:
    """Checks the reply of a client, which may be the caller's own.

    Raises:
        BadReplyError: the reply cannot be used.
    """
    if not isinstance(reply, ModelReply):
        raise BadReplyError(f"the client must return a ModelReply, and returned {a(reply)}")
    if not isinstance(reply.content, str):
        raise BadReplyError(
            f"the content of the client's reply must be a str, empty if there is none, and is {a(reply.content)}"
        )
    usage = reply.usage
    counts = usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.cache_write_tokens
    if not all(0 <= count <= MOST_TOKENS for count in counts):
        raise BadReplyError(
            "the client's reply has an impossible usage: a number of tokens is negative or too large"
        )
    if usage.cost is not None and not 0 <= usage.cost < math.inf:
        raise BadReplyError(f"the client's reply has an impossible usage: a cost of {usage.cost} USD")


def provider_of(client: Client) -> str:
    """The name of a client's provider."""
    return client.provider or type(client).__name__
