"""Chooses which sampled tokens of a trace are trained.

Root turns and sub-calls go through the same endpoint into the same trace. Without marks a trainer gives the root's
advantage to all of them, so that a rollout with hundreds of sub-calls would train mostly sub-calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import verifiers.v1 as vf
    from verifiers.v1.graph import MessageNode

    from rlm.types import Message

    AnyTrace: TypeAlias = vf.Trace[Any, Any, Any]


def root_nodes(trace: AnyTrace, history: Sequence[Message]) -> set[int]:
    """Numbers of the nodes of `trace` that hold the root's messages.

    Messages are compared by role and text. verifiers' own hash includes reasoning, which is in a reply's node but not in
    the history, so that hash would miss the node. A prefix that was rendered to tokens in several ways has several nodes
    for one message, and all of them are the root's.

    Args:
        trace: the rollout's trace.
        history: the root's messages (system, user, assistant, ...), as the engine sent and received them.
    """
    children: dict[int | None, list[int]] = {}
    for number, node in enumerate(trace.nodes):
        children.setdefault(node.parent, []).append(number)
    found: set[int] = set()
    parents: list[int | None] = [None]
    for message in history:
        level = [
            child
            for parent in parents
            for child in children.get(parent, ())
            if _same(trace.nodes[child], message)
        ]
        if not level:
            break
        found.update(level)
        parents = list(level)
    return found


def assign(trace: AnyTrace, roots: set[int], train_subcalls: str | float) -> int:
    """Marks the sampled tokens below the root.

    Call it when no model call can add to the trace any more. Earlier marks would miss late calls, and verifiers could
    not extend a child run's tokens without rendering them again.

    Args:
        trace: the rollout's trace.
        roots: numbers of the root's nodes, from `root_nodes`.
        train_subcalls: "mask" or "direct": the tokens are not trained and stay in the trace. "train": they are trained
            with the root's advantage. A weight in (0, 1]: they are trained with that weight in the RL loss.

    Returns:
        The number of sampled nodes below the root.
    """
    below = [node for number, node in enumerate(trace.nodes) if node.sampled and number not in roots]
    for node in below:
        _mark(node, train_subcalls)
    return len(below)


# A header that marks calls below the root. verifiers puts it into the call's record, and does not send it on.
BELOW_HEADERS = {"X-ACP-Model-Request-ID": "rlm-below-root"}


def streams(trace: AnyTrace) -> bool:
    """Whether the nodes of this trace are sent at once. The environment server of verifiers 0.4 sends each node once, right
    after its call; later changes of the node stay in the worker."""
    return getattr(trace, "_on_change", None) is not None


def mark_as_they_come(trace: AnyTrace, train_subcalls: str | float) -> None:
    """Marks the nodes of calls made with `BELOW_HEADERS` before they are sent. For a trace that `streams`, where `assign`
    comes too late.

    A masked reply cannot be extended without rendering it again. This only costs a child run some time.
    """
    send = trace._on_change
    seen = 0

    def changed(trace: AnyTrace) -> None:
        nonlocal seen
        for call in trace.calls[seen:]:
            if (
                call.node is not None
                and call.acp is not None
                and call.acp.request_id in BELOW_HEADERS.values()
            ):
                _mark(trace.nodes[call.node], train_subcalls)
        seen = len(trace.calls)
        if send is not None:
            send(trace)

    trace.watch(changed)


def _mark(node: MessageNode, train_subcalls: str | float) -> None:
    if train_subcalls == "train":
        return
    if train_subcalls in ("mask", "direct"):
        _mask(node)
    else:
        node.loss_weights = {"rl": [float(train_subcalls)] * len(node.token_ids)}


def _mask(node: MessageNode) -> None:
    node.mask = [False] * len(node.token_ids)
    node.logprobs = []
    # The rows of allowed tokens belong to sampled tokens. verifiers 0.4 and 0.3 name them differently.
    name = "sampling_mask" if "sampling_mask" in type(node).model_fields else "kept_tokens"
    setattr(node, name, None)


def _same(node: MessageNode, message: Message) -> bool:
    return node.message.role == message["role"] and (node.message.content or "") == message["content"]
