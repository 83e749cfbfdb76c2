"""Scorers: how right an answer is, from 0 to 1.

`strict` is the default, and the one for training. The whole answer has to be one answer of the kind that was asked for:
nothing is searched for inside a longer text, so that listing all labels, hedging, or repeating the question earns nothing.
What is forgiven:

- one prefix `Answer:`, `Final answer:`, or the one of the type (`Label:`, `User:`, `Date:`), in any case;
- around the answer or its prefix: white space, markdown emphasis, one pair of quotes or square brackets, a full stop;
- case, and for labels that are not ASCII the Unicode normal form. To an ASCII answer nothing but ASCII is equal;
- a number with well-formed thousands separators (`1,542`); it has no sign, no leading zero, no decimals, no words;
- a date in the form YYYY-MM-DD, MM/DD/YYYY, or as the lines have it (`Mar 04, 2023`); a month by full name or its first three
  letters, with a four-digit year;
- for comparisons the phrase with or without `than`, `as`, `the`, and in the published questions the full sentence with the
  two sides in the order of the question.

A well-formed number that is off by d scores 0.75**d, as in the published rule, anything else that is not right 0.

`official` is the published rule, with its quirks: see the function.
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
        output: the final answer as it was given; what is no string scores 0.
        example: the question and its right answers.
        scorer: which rule.

    Raises:
        ValueError: there is no such scorer.
    """
    if scorer == "strict":
        return strict(output, example)
    if scorer == "official":
        return official(output, example)
    raise ValueError(f"there is no scorer {scorer!r}; scorers are strict and official")


# Strict


# Official
