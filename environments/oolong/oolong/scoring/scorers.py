"""Scorers: how right an answer is, from 0 to 1.

`strict` is the default, and the scorer for training. The whole answer must be one answer of the type that the question asks
for. The scorer does not search inside a longer text, so listing all labels, hedging, or repeating the question earns nothing.
It accepts:

- one prefix `Answer:`, `Final answer:`, or the prefix of the type (`Label:`, `User:`, `Date:`), in any case;
- around the answer or its prefix: white space, markdown emphasis, one pair of quotes or square brackets, a full stop;
- any case, and for labels that are not ASCII any Unicode normal form. An ASCII label equals only ASCII text;
- a number with well-formed thousands separators (`1,542`), without sign, leading zero, decimals or words;
- a date in the form YYYY-MM-DD, MM/DD/YYYY, or that of the lines (`Mar 04, 2023`); a month by its full name or its first
  three letters, with a four-digit year;
- a comparison by its phrase, with or without `than`, `as`, `the`; for the published questions also the full sentence with the
  two sides in the order of the question.

A well-formed number that is off by d scores 0.75**d, as in the published rule. All other wrong answers score 0.

`official` is the published rule with its quirks; `oolong.scoring.official.official` describes it.
"""

from __future__ import annotations

from typing import Literal

from oolong.scoring.official import official
from oolong.scoring.scored import Scored
from oolong.scoring.strict import strict

Scorer = Literal["strict", "official"]


def score(output: object, example: Scored, scorer: Scorer = "strict") -> float:
    """Scores an answer. Never raises for anything in `output`.

    Args:
        output: the final answer, unchanged; a value that is not a string scores 0.
        example: the question and its right answers.
        scorer: name of the rule.

    Raises:
        ValueError: the name is unknown.
    """
    if scorer == "strict":
        return strict(output, example)
    if scorer == "official":
        return official(output, example)
    raise ValueError(f"there is no scorer {scorer!r}; scorers are strict and official")
