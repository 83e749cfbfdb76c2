"""The check of training samples against the calls that the model server answered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rlm.testing import ChatRequest


@dataclass(frozen=True, slots=True)
class Generation:
    """One answered call for tokens."""

    prompt_ids: tuple[int, ...]
    """Tokens of the request."""
    completion_ids: tuple[int, ...]
    """Tokens of the answer, with the token that ended the reply."""
    logprobs: tuple[float, ...]
    """Log-probabilities of `completion_ids`."""
    model: str
    """Requested name: the base model or an adapter."""
    session: str | None
    """Id of the rollout, as the training client sends it."""
    cache_salt: str | None
    versions: tuple[int, int]
    """Versions of the weights when the call began and when it was answered."""
    request: ChatRequest = field(repr=False)
    """Messages of the prompt, read from its tokens, and sampling parameters."""


class SampleMismatchError(AssertionError):
    """A sample has tokens or log-probabilities that the server did not send, or not in that place."""


def generations_of(
    token_ids: Sequence[int],
    mask: Sequence[bool],
    logprobs: Sequence[float],
    generations: Iterable[Generation],
) -> list[Generation]:
    """Finds the calls that a training sample is made of, in their order.

    Every unbroken run of trained tokens must be the whole completion of one call, with that call's log-probabilities. The
    tokens before the run must be that call's whole prompt. The log-probabilities of all other tokens must be 0.

    Args:
        token_ids: tokens of the sample.
        mask: True for trained tokens; as long as `token_ids`.
        logprobs: log-probabilities; as long as `token_ids`.
        generations: calls that the server recorded.

    Raises:
        SampleMismatchError: the sample does not meet these conditions.
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
            raise SampleMismatchError(f"tokens {end} to {start} were not sampled, but have log-probabilities")
        candidates = known[ids[:start]]
        if not candidates:
            raise SampleMismatchError(f"no call had the {start} tokens before token {start} as its prompt")
        values = tuple(logprobs[start:stop])
        matching = [g for g in candidates if g.completion_ids == ids[start:stop] and g.logprobs == values]
        if not matching:
            raise SampleMismatchError(
                f"tokens {start} to {stop} or their log-probabilities differ from every answer to a call with that prompt"
            )
        found.append(matching[0])
        end = stop
    if any(logprobs[end:]):
        raise SampleMismatchError(f"tokens from {end} on were not sampled, but have log-probabilities")
    return found


def _runs(mask: Sequence[bool]) -> Iterator[tuple[int, int]]:
    start: int | None = None
    for position, marked in enumerate([*mask, False]):
        if marked and start is None:
            start = position
        elif not marked and start is not None:
            yield start, position
            start = None
