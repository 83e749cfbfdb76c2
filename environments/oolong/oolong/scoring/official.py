"""The published scoring rule of OOLONG."""

from __future__ import annotations

import importlib
import warnings
from datetime import datetime
from itertools import pairwise
from typing import Any

from oolong.scoring.scored import MAX_ANSWER_CHARS, PARTIAL, Scored


def official(output: object, example: Scored) -> float:
    """Scores an answer by the published rule, for reports that are compared with published figures.

    The text after the last colon counts, without asterisks and square brackets. Only the first of several right answers
    counts. Case and a full stop matter. A number that is off by d scores 0.75**d. Dates are read by `dateutil`. For rows of
    oolong-real the text in `\\boxed{}` counts, and a list scores the share of right items that it names, even if it names
    others too. (Source: `src/eval/eval_helpers.py` of https://github.com/abertsch72/oolong.) Where the published code fails
    with an error, the score is 0.
    """
    if not isinstance(output, str):
        return 0.0
    if example.task_group == "real":
        return _official_real(output, example)
    gold: str | datetime = example.answer[0]
    if example.answer_type == "DATE":
        gold = datetime.fromisoformat(example.answer[0])
    parsed = official_parse(output)
    if parsed is None:
        return 0.0
    if parsed == str(gold):
        return 1.0
    if parsed in ("more common", "less common", "same frequency"):
        return 1.0 if parsed in str(gold) else 0.0
    if example.answer_type == "NUMERIC":
        try:
            return float(PARTIAL ** abs(int(str(gold)) - int(parsed)))
        except (ValueError, OverflowError):
            return 0.0
    if example.answer_type == "DATE":
        return float(len(parsed) <= MAX_ANSWER_CHARS and _loose_date(parsed) == gold)
    return 0.0


def official_parse(output: str) -> str | None:
    """The part of an output that the published scoring takes for the answer; None where the published code fails."""
    if ":" not in output:
        if len(output) < 20:
            return output
        words = output.split()
        return words[-1] if words else None
    candidate = output.split(":")[-1].strip()
    candidate = candidate.replace("*", "").replace("[", "").replace("]", "")
    if len(candidate) >= 20:
        for phrase in ("more common", "less common", "same frequency"):
            if phrase in candidate:
                return phrase
    return candidate


def _official_real(output: str, example: Scored) -> float:
    boxed = _boxed(output)
    found = output if boxed is None else _real_value(boxed)
    gold = _real_value(example.answer[0])
    if isinstance(gold, int) and isinstance(found, int):
        try:
            return float(PARTIAL ** abs(gold - found))
        except OverflowError:
            return 0.0
    if isinstance(gold, str) and isinstance(found, str):
        return float(gold.strip().lower() == found.strip().lower())
    if isinstance(gold, list) and isinstance(found, list):
        return len(set(gold) & set(found)) / len(gold) if gold else 0.0
    return 0.0


def _loose_date(text: str) -> datetime | None:
    """The date that dateutil reads in a text, with missing parts taken from today; None if it reads none."""
    parser: Any = importlib.import_module("dateutil.parser")
    with warnings.catch_warnings():  # dateutil warns of unknown time zones
        warnings.simplefilter("ignore")
        try:
            found: datetime = parser.parse(text)
            return found
        except (ValueError, OverflowError, TypeError):
            return None


def _boxed(output: str) -> str | None:
    r"""The first `\boxed{\text{...}}`, else the first `\boxed{...}`; in time linear in the text."""
    parts = output.split("}")
    for part, following in pairwise(parts):
        _, mark, inner = part.partition("\\boxed{\\text{")
        if mark and following == "":
            return inner
    _, mark, rest = output.partition("\\boxed{")
    return rest.lstrip("{").partition("}")[0] if mark and "}" in rest else None


def _real_value(text: str) -> int | str | list[str]:
    try:
        return int(text)
    except ValueError:
        pass
    if "," in text:
        return [item.strip() for item in text.split(",") if item.strip()]
    return text
