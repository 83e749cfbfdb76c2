"""One finding of `rlm doctor`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["ok", "off", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check of `rlm doctor`."""

    name: str
    status: Status
    """off: the checked thing is missing, and `rlm run` does not need it."""
    detail: str
    advice: str | None = None
    """What the user can do about it."""
    data: dict[str, Any] = field(default_factory=dict)
    """The same facts for programs."""

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON has it."""
        return asdict(self)
