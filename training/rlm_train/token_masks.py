"""Which of a trace's sampled tokens are trained.

Root turns and sub-calls go through the same endpoint into the same trace. Left alone, a trainer gives all of
them the root's advantage, and a rollout with hundreds of sub-calls would train mostly those.
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
    """Ids of the nodes of `trace` on the path of the root's message list.

    Messages are compared by role and text. A reply that came with reasoning has it in its node and not in the
    history, where it is not sent back, so verifiers' own hash, which includes it, would miss the node. A prefix
    that was rendered to tokens in several ways has several nodes for one message: all of them are the root's.

    Args:
        history: system, user, assistant, ... as the engine sent and received them.
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

    Call it once no model call can commit to the trace any more. Marks made earlier would miss late commits, and
    would keep verifiers from extending a child run's tokens without rendering them again.

    Args:
        roots: what `root_nodes` found.
        train_subcalls: "mask" or "direct": not trained, still in the trace. "train": trained with the root's advantage. A
            weight in (0, 1]: trained with that weight in the RL loss.

    Returns:
        The number of sampled nodes below the root.
    """
    below = [node for number, node in enumerate(trace.nodes) if node.sampled and number not in roots]
    for node in below:
        _mark(node, train_subcalls)
    return len(below)


# Says of a call that it is not the root's, in a header that verifiers puts into the call's record and sends no further.
BELOW_HEADERS = {"X-ACP-Model-Request-ID": "rlm-below-root"}


def streams(trace: AnyTrace) -> bool:
    """Whether somebody gets the nodes of this trace as they come: the environment server of verifiers 0.4 sends each
    node once, right after its call, and what is changed on it later stays behind in the worker."""
    return getattr(trace, "_on_change", None) is not None


def mark_as_they_come(trace: AnyTrace, train_subcalls: str | float) -> None:
    """Does for a trace that `streams` what `assign` does at the end, for calls made with `BELOW_HEADERS`, before their
    nodes are sent.

    A masked reply cannot be extended without rendering it again, which costs a child run some time and nothing else.
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
    # The rows of allowed tokens, which belong to sampled tokens; 0.4 and 0.3 of verifiers name them differently.
    name = "sampling_mask" if "sampling_mask" in type(node).model_fields else "kept_tokens"
    setattr(node, name, None)


def _same(node: MessageNode, message: Message) -> bool:
    return node.message.role == message["role"] and (node.message.content or "") == message["content"]
