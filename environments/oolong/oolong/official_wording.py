"""The published form of OOLONG-synth: its wordings, word for word, and its budgets.

Wordings and constants: OOLONG, https://github.com/abertsch72/oolong (`src/data_gen/oolong-synth`) and Tables 15 to 17 of
Bertsch, Pratapa, Mitamura, Neubig, Gormley, "Oolong: Evaluating Long Context Reasoning and Aggregation Capabilities",
arXiv:2511.02817. Their spelling and quotation marks are kept as they are ("occuring", a label's missing end quote). The
notice of that work:

    MIT License

    Copyright (c) 2025 Amanda Bertsch

    Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
    documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
    rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
    persons to whom the Software is furnished to do so, subject to the following conditions:

    The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
    Software.

    THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
    WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
    COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
    OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

from __future__ import annotations

from collections.abc import Sequence

from oolong.sources.source import LabelledSource

GENERAL = (
    "{start} lines contain {n} {specific_text}\n\nYou will be asked to answer questions about the aggregate label statistics "
    "across all {n} examples in this dataset. Do not try to guess, estimate, or approximate the result. Calculate the exact "
    "answer given these datapoints.\n\n"
)

SPECIFIC_TEXT = {
    "trec_coarse": "general-knowledge questions, one per line. Each question has an answer that can be described as one of {k} "
    "categories: {labels}.",
    "spam": "text messages, one per line. Each text message can be classified as spam or ham (i.e., not spam).",
}

TOKEN_BUDGETS = {"trec_coarse": (168, 39), "spam": (142, 57)}
"""Tokens of the prompt and of a line."""

QUESTION_TOKENS = 250

LABEL_FORM = (
    "Give your final answer in the form 'Label: answer' where answer is one of the labels: {label_list}."
)
USER_FORM = "Give your final answer in the form 'User: [X]', where [X] is the user ID."
DATE_FORM = "Give your final answer in the form 'Date: [X]', where [X] is the date in the format MM/DD/YYYY."

ALL = "In the above data,"
USERS = (
    "For the following question, only consider the subset of instances that are associated with user IDs {users}. Among "
    "instances associated with these users,"
)
MONTH = (
    "For the following question, only consider the subset of instances that occur in {month} of any year. Among instances "
    "occuring in {month},"
)
RANGE = (
    "For the following question, only consider the subset of instances that occur between {first} and {last}, inclusive. "
    "Among instances occuring in this date range,"
)
USER_SUBSET = (
    "For the following question, only consider the subset of users with IDs {users}. Among these users,"
)

MOST_COMMON = "{scope} which of the labels is the most common? " + LABEL_FORM
LEAST_COMMON = "{scope} which of the labels is the least common? " + LABEL_FORM
COMPARE = (
    "{scope} is label '{a}' more common, less common, or the same frequency as label '{b}'? Give your final answer in the form "
    "'Answer: {a} is [X] {b}', where [X] is 'more common than', 'less common than', or 'same frequency as'."
)
HOW_MANY = (
    "{scope} how many data points should be classified as label '{label}'? Give your final answer in the form "
    "'Answer: number'."
)

TOP_USER = "{scope} which user is represented most often? " + USER_FORM
SECOND_USER = "{scope} which user is represented the second most often? " + USER_FORM
USER_WITH_LABEL = "{scope} which user has the most instances with the label {label}? " + USER_FORM
USER_OF_TWO = (
    "{scope} which user has more instances with the label {label}: User {a} or User {b}? " + USER_FORM
)

TOP_DATE = "In the above data, which date is represented most often? " + DATE_FORM
SECOND_DATE = "In the above data, which date is represented the second most often? " + DATE_FORM
DATES_N_TIMES = (
    "In the above data, how many dates are represented exactly {n} times? Give your final answer in the form 'Answer: [X]', "
    "where [X] is the number of dates represented exactly {n} times."
)
BEFORE_AFTER = (
    "In the above data, was label '{label}' more common, less common, or the same frequency before {day}, as compared to after "
    "{day}? Give your final answer in the form 'Answer: {label} is [X] before {day}', where [X] is 'more common', 'less "
    "common', or 'the same frequency'."
)
FIRST_MONTH = (
    "In which month did the label '{a} first occur more often than the label '{b}'? Give your final answer in the form "
    "'Answer: [month] [year]', where [month] is the name of the month and [year] is the four-digit year where '{a}' first "
    "occured more often than '{b}.'"
)
MONTHS_MORE = (
    "For how many months does the label '{a}' occur more frequently than the label '{b}'? Disregard months where there is a "
    "tie.  Give your final answer in the form 'Answer: [X]', where [X] is the number of months where '{a}' occurs more often "
    "than '{b}.'"
)
MONTHS_TOP = (
    "For how many months is the label '{label}' the single most frequently occuring label? Disregard months where there is a "
    "tie for the most common label.  Give your final answer in the form 'Answer: [X]', where [X] is the number of months "
    "where '{label}' is the most common label."
)


def frame(source: LabelledSource, labels: Sequence[str], n: int) -> tuple[str, str]:
    """Header and footer of a window of n lines. A source that OOLONG does not have is described in the same pattern."""
    listed = ", ".join(f"'{label}'" for label in labels)
    pattern = SPECIFIC_TEXT.get(source.id)
    if pattern is None:
        specific_text = f"{source.items}, one per line. Each can be classified as one of {len(labels)} categories: {listed}."
    else:
        specific_text = pattern.format(k=len(labels), labels=listed)
    return (
        GENERAL.format(start="The following", n=n, specific_text=specific_text),
        GENERAL.format(start="Recall: the preceding", n=n, specific_text=specific_text),
    )


def rows_for_tokens(source_id: str, tokens: int) -> int | None:
    """Lines that the published budget grants a window of so many tokens, None for a source that OOLONG does not have."""
    if source_id not in TOKEN_BUDGETS:
        return None
    prompt, line = TOKEN_BUDGETS[source_id]
    return int((tokens * 0.95 - prompt - QUESTION_TOKENS) // line)
