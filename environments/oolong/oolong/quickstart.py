"""OOLONG rollouts end to end: `python -m oolong.quickstart`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlm_train import quickstart

if TYPE_CHECKING:
    from oolong.policies.reference import ReferencePolicy

ACCURACY = 0.95
"""Share of lines that the reference policy's sub-model labels rightly."""
SIZES = (8_000, 12_000, 18_000, 27_000, 40_000, 60_000, 90_000, 130_000)
"""Characters of the contexts."""


def reference_policy() -> ReferencePolicy:
    from oolong.policies.reference import (
        ReferencePolicy,  # imported on first use: a named server does not need it
    )

    return ReferencePolicy(accuracy=ACCURACY, sources=["wordnet"])


OOLONG = quickstart.Quickstart(
    task="oolong",
    tasks=8,
    rollouts=2,
    reference_model="oolong-reference",
    reference_policy=reference_policy,
    taskset={"sizes": SIZES},
)
"""8 questions about real text, two rollouts each."""


def main(argv: Sequence[str] | None = None) -> int:
    return quickstart.main(OOLONG, argv)


if __name__ == "__main__":
    sys.exit(main())
