"""The questions' wordings in our own mode, and the way from a template to a regular expression that reads it back."""

from __future__ import annotations

import re
from collections.abc import Mapping

ALL = "Consider all lines."
USERS = "Consider only the lines of the users {users}."
MONTH = "Consider only the lines dated in {month}, whatever the year."
RANGE = "Consider only the lines dated from {first} to {last}, both days included."

LABEL_FORM = "Answer in the form 'Label: X', where X is one of these labels: {labels}."
NUMBER_FORM = "Answer in the form 'Answer: N', where N is a whole number in digits."
COMPARISON_FORM = (
    "Answer in the form 'Answer: X', where X is one of: more common, less common, same frequency."
)
USER_FORM = "Answer in the form 'User: N', where N is the ID of the user."
DATE_FORM = "Answer in the form 'Date: YYYY-MM-DD'."
MONTH_FORM = (
    "Answer in the form 'Answer: Month YYYY', with the English name of the month and the year in four digits."
)
TIES = "If several are tied for it, name any one of them."

MOST_COMMON = "{scope} Which label is the most frequent among these lines? " + f"{TIES} {LABEL_FORM}"
LEAST_COMMON = (
    "{scope} Which label is the least frequent among these lines, a label that none of them has counting as 0? "
    f"{TIES} {LABEL_FORM}"
)
COMPARE = (
    "{scope} Is the label '{a}' more common among these lines than the label '{b}', less common, or exactly as common? "
    + COMPARISON_FORM
)
HOW_MANY = "{scope} How many of these lines have the label '{label}'? " + NUMBER_FORM

TOP_USER = "{scope} Which user has the most of these lines? " + f"{TIES} {USER_FORM}"
SECOND_USER = "{scope} Which user has the second most of these lines? " + f"{TIES} {USER_FORM}"
USER_WITH_LABEL = (
    "{scope} Which user has the most of these lines with the label '{label}'? " + f"{TIES} {USER_FORM}"
)
USER_OF_TWO = "{scope} Which of the users {a} and {b} has more lines with the label '{label}'? " + USER_FORM

TOP_DATE = "{scope} Which date is on the most of these lines? " + f"{TIES} {DATE_FORM}"
SECOND_DATE = "{scope} Which date is on the second most of these lines? " + f"{TIES} {DATE_FORM}"
DATES_N_TIMES = "{scope} How many different dates are on exactly {n} of these lines each? " + NUMBER_FORM
BEFORE_AFTER = (
    "{scope} Compare the share of the label '{label}' in the lines dated before {day} with its share in the lines dated after "
    "{day}; lines of that day itself do not count. Is the label more common before than after, less common, or exactly as "
    "common? " + COMPARISON_FORM
)
FIRST_MONTH = (
    "{scope} Go through the calendar months in order of time. Which is the first month with more lines of the label '{a}' than "
    "of the label '{b}'? " + MONTH_FORM
)
MONTHS_MORE = (
    "{scope} In how many calendar months are there more lines of the label '{a}' than of the label '{b}'? The same month of "
    "two years counts as two. " + NUMBER_FORM
)
MONTHS_TOP = (
    "{scope} In how many calendar months is '{label}' the single most frequent label? A month in which another label is as "
    "frequent does not count; the same month of two years counts as two. " + NUMBER_FORM
)


def pattern(template: str, fields: Mapping[str, str]) -> re.Pattern[str]:
    """A regular expression that matches what `template.format(...)` can give.

    Args:
        template: with `{name}` fields; a field may occur several times and then has to be the same text.
        fields: regular expression of each field.
    """
    parts = re.split(r"\{(\w+)\}", template)
    out = [re.escape(parts[0])]
    seen: set[str] = set()
    for name, literal in zip(parts[1::2], parts[2::2], strict=True):
        out.append(f"(?P={name})" if name in seen else f"(?P<{name}>{fields[name]})")
        out.append(re.escape(literal))
        seen.add(name)
    return re.compile("".join(out))
