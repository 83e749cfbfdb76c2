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
        train_subcalls: "mask": not trained, still in the trace. "train": trained with the root's advantage. A
            weight in (0, 1]: trained with that weight in the RL loss.

    Returns:
        The number of sampled nodes below the root.
    """
    below = [node for number, node in enumerate(trace.nodes) if node.sampled and number not in roots]
    for node in below:
        if train_subcalls == "mask":
            _mask(node)
        elif train_subcalls != "train":
            node.loss_weights = {"rl": [float(train_subcalls)] * len(node.token_ids)}
    return len(below)


def _mask(node: MessageNode) -> None:
    node.mask = [False] * len(node.token_ids)
    node.logprobs = []
    # The rows of allowed tokens, which belong to sampled tokens; 0.4 and 0.3 of verifiers name them differently.
    name = "sampling_mask" if "sampling_mask" in type(node).model_fields else "kept_tokens"
    setattr(node, name, None)


def _same(node: MessageNode, message: Message) -> bool:
    return node.message.role == message["role"] and (node.message.content or "") == message["content"]
