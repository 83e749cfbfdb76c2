"""Training samples, held against what the model server saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rlm.testing import ChatRequest


@dataclass(frozen=True, slots=True)
class Generation:
    """One answered call for tokens."""

    prompt_ids: tuple[int, ...]
    """As they came in the request."""
    completion_ids: tuple[int, ...]
    """As they were sent back, the token that ended the reply included."""
    logprobs: tuple[float, ...]
    """One for each of `completion_ids`."""
    model: str
    """The name that was asked for: the base model, or an adapter."""
    session: str | None
    """The rollout's id, as the training client sends it."""
    cache_salt: str | None
    versions: tuple[int, int]
    """Of the weights: when the call began, and when it was answered."""
    request: ChatRequest = field(repr=False)
    """The prompt's messages, read from its tokens, and the sampling parameters."""


class SampleMismatchError(AssertionError):
    """A sample has tokens or log-probabilities that the server did not send, or in another place."""


def generations_of(
    token_ids: Sequence[int],
    mask: Sequence[bool],
    logprobs: Sequence[float],
    generations: Iterable[Generation],
) -> list[Generation]:
    """The calls that a training sample is made of, in their order.

    Every run of trained tokens must be the whole completion of one call, what stands before it that call's whole
    prompt, and the log-probabilities of the run the call's; those of all other tokens must be 0.

    Args:
        token_ids: the sample's tokens.
        mask: which of them are trained; as long as `token_ids`.
        logprobs: as long as `token_ids`.
        generations: what the server recorded.

    Raises:
        SampleMismatchError: something of this does not hold.
    """
    if not len(token_ids) == len(mask) == len(logprobs):
        raise SampleMismatchError(f"{len(token_ids)} tokens, {len(mask)} marks, {len(logprobs)} log-probs")
    ids = tuple(token_ids)
    known: defaultdict[tuple[int, ...], list[Generation]] = defaultdict(list)
    for generation in generations:
        known[generation.prompt_ids].append(generation)
    found = []
    end = 0
    for start, stop in _runs(mask):
        if any(logprobs[end:start]):
            raise SampleMismatchError(f"tokens {end} to {start} were not sampled, and have log-probabilities")
        candidates = known[ids[:start]]
        if not candidates:
            raise SampleMismatchError(f"no call had the {start} tokens before token {start} as its prompt")
        values = tuple(logprobs[start:stop])
        matching = [g for g in candidates if g.completion_ids == ids[start:stop] and g.logprobs == values]
        if not matching:
            raise SampleMismatchError(
                f"tokens {start} to {stop} or their log-probabilities are not what a call with that prompt answered"
            )
        found.append(matching[0])
        end = stop
    if any(logprobs[end:]):
        raise SampleMismatchError(f"tokens from {end} on were not sampled, and have log-probabilities")
    return found


def _runs(mask: Sequence[bool]) -> Iterator[tuple[int, int]]:
    start: int | None = None
    for position, marked in enumerate([*mask, False]):
        if marked and start is None:
            start = position
        elif not marked and start is not None:
            yield start, position
            start = None
