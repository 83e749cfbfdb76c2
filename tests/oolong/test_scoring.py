"""Scorers: right answers score, and answers that only look right do not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oolong.scoring.official import official, official_parse
from oolong.scoring.scored import MAX_ANSWER_CHARS
from oolong.scoring.scorers import score
from oolong.scoring.strict import strict

LABELS = ("ham", "spam", "human being", "description and abstract concept")

COMPARE = (
    "In the above data, is label 'ham' more common, less common, or the same frequency as label 'spam'? Give your final answer "
    "in the form 'Answer: ham is [X] spam', where [X] is 'more common than', 'less common than', or 'same frequency as'."
)
BEFORE = (
    "In the above data, was label 'ham' more common, less common, or the same frequency before 2023-05-01, as compared to "
    "after 2023-05-01? Give your final answer in the form 'Answer: ham is [X] before 2023-05-01', where [X] is 'more common', "
    "'less common', or 'the same frequency'."
)
MOST = "Which label is the most frequent? Answer in the form 'Label: X', where X is one of these labels: 'ham', 'spam'."


@dataclass
class Asked:
    answer_type: str
    answer: tuple[str, ...]
    question: str = MOST
    task_group: str = "counting"


def strictly(
    output: object, answer_type: str, *answer: str, question: str = MOST, task_group: str = "counting"
) -> float:
    return strict(output, Asked(answer_type, answer, question, task_group))


RIGHT = [
    ("ham", "LABEL", "ham"),
    (" Ham \n", "LABEL", "ham"),
    ("Label: ham", "LABEL", "ham"),
    ("label : ham.", "LABEL", "ham"),
    ("Answer: ham", "LABEL", "ham"),
    ("FINAL ANSWER: ham", "LABEL", "ham"),
    ("**Label: ham**", "LABEL", "ham"),
    ("**Label:** ham", "LABEL", "ham"),
    ("**Label**: `ham`", "LABEL", "ham"),
    ("Label: **ham**.", "LABEL", "ham"),
    ("Label: 'ham'", "LABEL", "ham"),
    ('Label: "ham."', "LABEL", "ham"),
    ("Label: [ham]", "LABEL", "ham"),
    ("_ham_", "LABEL", "ham"),
    ("Label: Human Being", "LABEL", "human being"),
    ("Label: description and abstract concept", "LABEL", "description and abstract concept"),
    ("Sci/Tech", "LABEL", "Sci/Tech"),
    ("Label: A.", "LABEL", "A."),
    ("cafe\u0301", "LABEL", "caf\u00e9"),
    ("Stra\u00dfe", "LABEL", "stra\u00dfe"),
    ("42", "NUMERIC", "42"),
    ("Answer: 42", "NUMERIC", "42"),
    ("Answer: **42**.", "NUMERIC", "42"),
    ("0", "NUMERIC", "0"),
    ("1,542", "NUMERIC", "1542"),
    ("12,345,678", "NUMERIC", "12345678"),
    ("User: 12345", "USER", "12345"),
    ("12345", "USER", "12345"),
    ("User: User 12345", "USER", "12345"),
    ("user id: 12345", "USER", "12345"),
    ("Date: 2023-03-04", "DATE", "2023-03-04"),
    ("Date: 03/04/2023", "DATE", "2023-03-04"),
    ("3/4/2023", "DATE", "2023-03-04"),
    ("Mar 04, 2023", "DATE", "2023-03-04"),
    ("March 4, 2023", "DATE", "2023-03-04"),
    ("Answer: March 2023", "MONTH_YEAR", "March 2023"),
    ("mar 2023", "MONTH_YEAR", "March 2023"),
    ("March, 2023", "MONTH_YEAR", "March 2023"),
    ("Answer: more common", "COMPARISON", "more common"),
    ("less common than", "COMPARISON", "less common"),
    ("Answer: the same frequency", "COMPARISON", "same frequency"),
    ("same frequency as", "COMPARISON", "same frequency"),
]


@pytest.mark.parametrize(("output", "answer_type", "answer"), RIGHT)
def test_strict_accepts_an_answer_with_usual_decoration(output: str, answer_type: str, answer: str) -> None:
    assert strictly(output, answer_type, answer) == 1.0


WRONG = {
    "the other label": ("spam", "LABEL", "ham"),
    "all labels": ("ham, spam", "LABEL", "ham"),
    "all labels, one a line": ("ham\nspam", "LABEL", "ham"),
    "all labels in brackets": ("[ham, spam]", "LABEL", "ham"),
    "a or b": ("Answer: ham or spam", "LABEL", "ham"),
    "a/b": ("ham/spam", "LABEL", "ham"),
    "a negation": ("not ham", "LABEL", "ham"),
    "a longer negation": ("it is definitely not ham", "LABEL", "ham"),
    "a label inside a word": ("hamster", "LABEL", "ham"),
    "a label that holds the label": ("incorrect", "LABEL", "correct"),
    "a sentence": ("The most common label is ham", "LABEL", "ham"),
    "two prefixed answers": ("Label: ham Label: spam", "LABEL", "ham"),
    "two prefixes": ("Label: Label: ham", "LABEL", "ham"),
    "a second thought": ("spam\nLabel: ham", "LABEL", "ham"),
    "an answer after reasoning": ("I counted.\nLabel: ham", "LABEL", "ham"),
    "the prefix of another type": ("User: ham", "LABEL", "ham"),
    "a repeated label": ("ham ham", "LABEL", "ham"),
    "emphasis inside": ("h*a*m", "LABEL", "ham"),
    "nothing": ("", "LABEL", "ham"),
    "a prefix alone": ("Label:", "LABEL", "ham"),
    "decoration alone": ("****", "LABEL", "ham"),
    "the question": (MOST, "LABEL", "ham"),
    "a Cyrillic letter": ("h\u0430m", "LABEL", "ham"),
    "full-width letters": ("\uff48\uff41\uff4d", "LABEL", "ham"),
    "a zero-width space": ("ha\u200bm", "LABEL", "ham"),
    "a zero-width joiner at the end": ("ham\u200d", "LABEL", "ham"),
    "a soft hyphen": ("h\u00adam", "LABEL", "ham"),
    "right-to-left marks": ("\u202emah\u202c", "LABEL", "ham"),
    "the Kelvin sign": ("\u212a", "LABEL", "k"),
    "the long s": ("\u017fpam", "LABEL", "spam"),
    "a ligature": ("\ufb01sh", "LABEL", "fish"),
    "NUL": ("ham\x00", "LABEL", "ham"),
    "markup": ("<b>ham</b>", "LABEL", "ham"),
    "JSON": ('{"label": "ham"}', "LABEL", "ham"),
    "several full stops": ("ham...", "LABEL", "ham"),
    "a number in words": ("forty-two", "NUMERIC", "42"),
    "a number with its unit": ("42 lines", "NUMERIC", "42"),
    "two numbers": ("42 43", "NUMERIC", "42"),
    "a range": ("40-44", "NUMERIC", "42"),
    "about": ("about 42", "NUMERIC", "42"),
    "a float": ("42.0", "NUMERIC", "42"),
    "an exponent": ("4.2e1", "NUMERIC", "42"),
    "1e3": ("1e3", "NUMERIC", "1000"),
    "nan": ("nan", "NUMERIC", "42"),
    "inf": ("inf", "NUMERIC", "42"),
    "a sum": ("40+2", "NUMERIC", "42"),
    "a plus sign": ("+42", "NUMERIC", "42"),
    "a minus sign": ("-42", "NUMERIC", "42"),
    "a leading zero": ("042", "NUMERIC", "42"),
    "hexadecimal": ("0x2a", "NUMERIC", "42"),
    "underscores": ("4_2", "NUMERIC", "42"),
    "Arabic digits": ("\u0664\u0662", "NUMERIC", "42"),
    "full-width digits": ("\uff14\uff12", "NUMERIC", "42"),
    "a superscript": ("4\u00b2", "NUMERIC", "42"),
    "a separator in the wrong place": ("15,42", "NUMERIC", "1542"),
    "a separator at the end": ("1,542,", "NUMERIC", "1542"),
    "a decimal comma": ("42,0", "NUMERIC", "42"),
    "spaces between digits": ("1 542", "NUMERIC", "1542"),
    "a number of many digits": ("9" * 900, "NUMERIC", "42"),
    "two users": ("12345, 12346", "USER", "12345"),
    "user or user": ("User: 12345 or 12346", "USER", "12345"),
    "a user with zeros before": ("0012345", "USER", "12345"),
    "Arabic digits of a user": ("\u0661\u0662\u0663\u0664\u0665", "USER", "12345"),
    "two dates": ("2023-03-04, 2023-03-05", "DATE", "2023-03-04"),
    "day first": ("13/04/2023", "DATE", "2023-04-13"),
    "a short year": ("03/04/23", "DATE", "2023-03-04"),
    "a date with a time": ("2023-03-04 00:00", "DATE", "2023-03-04"),
    "no such day": ("2023-02-30", "DATE", "2023-03-02"),
    "a month for a date": ("March 2023", "DATE", "2023-03-01"),
    "two months": ("March 2023 or April 2023", "MONTH_YEAR", "March 2023"),
    "a month without year": ("March", "MONTH_YEAR", "March 2023"),
    "a year without month": ("2023", "MONTH_YEAR", "March 2023"),
    "no month": ("Marsh 2023", "MONTH_YEAR", "March 2023"),
    "all phrases": ("more common, less common, same frequency", "COMPARISON", "more common"),
    "a negated phrase": ("not more common", "COMPARISON", "more common"),
    "a phrase or a phrase": ("more common or less common", "COMPARISON", "more common"),
    "more": ("more", "COMPARISON", "more common"),
}


@pytest.mark.parametrize("attack", WRONG)
def test_strict_gives_no_points_for_hedges_and_tricks(attack: str) -> None:
    output, answer_type, answer = WRONG[attack]
    assert strictly(output, answer_type, answer) == 0.0


@pytest.mark.parametrize("output", [None, 42, ["ham"], {"ham": 1}, b"ham", True])
def test_values_that_are_not_strings_score_0(output: object) -> None:
    assert strictly(output, "LABEL", "ham") == 0.0
    assert official(output, Asked("LABEL", ("ham",))) == 0.0


def test_strict_accepts_any_of_several_right_answers() -> None:
    assert strictly("spam", "LABEL", "ham", "spam") == 1.0
    assert strictly("ham", "LABEL", "ham", "spam") == 1.0
    assert strictly("ham, spam", "LABEL", "ham", "spam") == 0.0


def test_numbers_that_are_near_score_a_part() -> None:
    assert strictly("41", "NUMERIC", "42") == 0.75
    assert strictly("Answer: 45.", "NUMERIC", "42") == 0.75**3
    assert strictly("100000000000", "NUMERIC", "42") == 0.0
    assert strictly("12346", "USER", "12345") == 0.0


def test_comparisons_may_be_whole_sentences_in_the_order_of_the_question() -> None:
    def said(output: str, answer: str, question: str) -> float:
        return strictly(output, "COMPARISON", answer, question=question)

    assert said("Answer: ham is less common than spam", "less common than", COMPARE) == 1.0
    assert said("Ham is less common than spam.", "less common than", COMPARE) == 1.0
    assert said("less common", "less common than", COMPARE) == 1.0
    assert said("Answer: spam is more common than ham", "less common than", COMPARE) == 0.0
    assert said("Answer: ham is more common than spam", "less common than", COMPARE) == 0.0
    assert said("Answer: ham is not less common than spam", "less common than", COMPARE) == 0.0
    assert said("ham is less common than spam is less common than spam", "less common than", COMPARE) == 0.0
    assert said("Answer: ham is the same frequency before 2023-05-01", "the same frequency", BEFORE) == 1.0
    assert said("Answer: ham is the same frequency after 2023-05-01", "the same frequency", BEFORE) == 0.0
    assert said(COMPARE, "less common than", COMPARE) == 0.0


def test_huge_and_hostile_answers_score_0_quickly() -> None:
    for text in (
        "ham " * 1_000_000,
        " " * 5_000_000 + "ham",
        "*" * 3_000_000,
        "Label: " * 500_000,
        "[" * 1_000_000,
    ):
        assert strictly(text, "LABEL", "ham") == 0.0
    assert strictly(" " * (MAX_ANSWER_CHARS - 3) + "ham", "LABEL", "ham") == 1.0
    for text in (
        "*" * 999,
        "[" * 499 + "]" * 499,
        "answer " * 140,
        "**answer" * 120,
        "1," * 490,
        "\u0130" * 999,
    ):
        for answer_type in ("LABEL", "NUMERIC", "USER", "DATE", "MONTH_YEAR", "COMPARISON", "LIST"):
            assert strictly(text, answer_type, "42") == 0.0


GOLDS = {
    "LABEL": "human being",
    "NUMERIC": "42",
    "USER": "12345",
    "DATE": "2023-03-04",
    "MONTH_YEAR": "March 2023",
    "COMPARISON": "more common",
    "LIST": "Fireball, Mage Hand",
    "TEXT": "Fireball",
}
ANYTHING = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="*_`'\"[]. :,0123456789-/\\{}", max_size=30),
    st.lists(
        st.sampled_from(
            [
                "ham",
                "spam",
                "not",
                "or",
                "Label:",
                "Answer:",
                "42",
                "2023",
                "March",
                "more common",
                "**",
                "\n",
            ]
        )
    ).map(" ".join),
)


@settings(max_examples=400, deadline=None)
@given(
    output=ANYTHING, answer_type=st.sampled_from(sorted(GOLDS)), group=st.sampled_from(["counting", "real"])
)
def test_no_text_raises_or_scores_outside_of_0_to_1(output: str, answer_type: str, group: str) -> None:
    example = Asked(answer_type, (GOLDS[answer_type],), COMPARE, group)
    assert 0.0 <= strict(output, example) <= 1.0
    assert 0.0 <= official(output, example) <= 1.0


@settings(max_examples=400, deadline=None)
@given(before=st.text(max_size=12), after=st.text(max_size=12))
def test_only_decoration_is_accepted_around_a_right_label(before: str, after: str) -> None:
    if strictly(f"{before}ham{after}", "LABEL", "ham") == 1.0:
        rest = (before + after).lower()
        for word in ("final answer", "answer", "label"):
            rest = rest.replace(word, "", 1)
        assert all(char in "*_`'\"[]. :" or char.isspace() for char in rest)


@given(value=st.integers(0, 10**6), gold=st.integers(0, 10**6))
def test_numbers_score_by_their_distance(value: int, gold: int) -> None:
    expected = 0.75 ** abs(value - gold)
    assert strictly(str(value), "NUMERIC", str(gold)) == pytest.approx(expected)
    assert strictly(f"{value:,}", "NUMERIC", str(gold)) == pytest.approx(expected)


# The published rule

OFFICIAL = [
    # output, answer type, gold, score
    ("Label: spam", "LABEL", "spam", 1.0),
    ("**Label: [spam]**", "LABEL", "spam", 1.0),
    ("spam", "LABEL", "spam", 1.0),
    ("Label: Spam", "LABEL", "spam", 0.0),
    ("Label: spam.", "LABEL", "spam", 0.0),
    ("After a long count I say spam", "LABEL", "spam", 1.0),
    ("After a long count I say spam.", "LABEL", "spam", 0.0),
    ("Label: ham\nNo wait: spam", "LABEL", "spam", 1.0),
    ("Answer: 12", "NUMERIC", "12", 1.0),
    ("Answer: 14", "NUMERIC", "12", 0.75**2),
    ("Answer: 1,542", "NUMERIC", "1542", 0.0),
    ("Answer: -12", "NUMERIC", "12", 0.75**24),
    ("Answer: twelve", "NUMERIC", "12", 0.0),
    ("Answer: 1_2", "NUMERIC", "12", 1.0),
    ("Answer: " + "9" * 5_000, "NUMERIC", "12", 0.0),
    ("Answer: " + "9" * 400, "NUMERIC", "12", 0.0),
    ("User: 12345", "USER", "12345", 1.0),
    ("User: User 12345", "USER", "12345", 0.0),
    ("Date: 03/04/2023", "DATE", "2023-03-04", 1.0),
    ("Date: March 4th, 2023", "DATE", "2023-03-04", 1.0),
    ("Date: 4 Mar 2023", "DATE", "2023-03-04", 1.0),
    ("Date: 04/03/2023", "DATE", "2023-03-04", 0.0),
    ("Date: someday", "DATE", "2023-03-04", 0.0),
    ("Date: " + "9" * 500, "DATE", "2023-03-04", 0.0),
    ("Answer: March 2023", "MONTH_YEAR", "March 2023", 1.0),
    ("Answer: march 2023", "MONTH_YEAR", "March 2023", 0.0),
    ("Answer: ham is more common than spam", "COMPARISON", "more common than", 1.0),
    ("Answer: ham is not less common but more common than spam", "COMPARISON", "more common than", 1.0),
    ("Answer: less common", "COMPARISON", "less common than", 1.0),
    ("Answer: less common", "COMPARISON", "more common than", 0.0),
    ("Answer: more common than", "COMPARISON", "more common than", 1.0),
    ("Answer: ham is the same frequency before 2023-05-01", "COMPARISON", "the same frequency", 1.0),
    ("", "LABEL", "spam", 0.0),
    (" " * 40, "LABEL", "spam", 0.0),
]


@pytest.mark.parametrize(("output", "answer_type", "gold", "expected"), OFFICIAL)
def test_official_gives_the_published_scores(
    output: str, answer_type: str, gold: str, expected: float
) -> None:
    assert official(output, Asked(answer_type, (gold,))) == pytest.approx(expected, abs=1e-12)


def test_official_accepts_only_the_first_of_tied_answers() -> None:
    assert official("Label: ham", Asked("LABEL", ("ham", "spam"))) == 1.0
    assert official("Label: spam", Asked("LABEL", ("ham", "spam"))) == 0.0


def test_official_reads_the_text_after_the_last_colon() -> None:
    assert official_parse("short") == "short"
    assert official_parse("this is longer than twenty characters") == "characters"
    assert official_parse("a: b: *[c]*") == "c"
    assert official_parse(" " * 30) is None


REAL = [
    (r"\boxed{42}", "42", 1.0),
    (r"The count is \boxed{\text{40}}.", "42", 0.75**2),
    (r"\boxed{fireball}", "Fireball", 1.0),
    ("fireball", "Fireball", 1.0),
    (r"\boxed{Fireball, Shield, Wish}", "Fireball, Mage Hand", 0.5),
    (r"\boxed{Mage Hand, Fireball}", "Fireball, Mage Hand", 1.0),
    (r"\boxed{Fireball}", "Fireball, Mage Hand", 0.0),
    (r"\boxed{42", "42", 0.0),
    ("42", "42", 0.0),
    (r"\boxed{" * 200_000, "42", 0.0),
    (r"\boxed{\text{" * 100_000 + "}", "42", 0.0),
]


@pytest.mark.parametrize(("output", "gold", "expected"), REAL, ids=[case[0][:30] for case in REAL])
def test_official_scores_oolong_real_by_the_published_rule(output: str, gold: str, expected: float) -> None:
    assert official(output, Asked("TEXT", (gold,), task_group="real")) == pytest.approx(expected)


def test_strict_lists_of_oolong_real_lose_points_for_wrong_items() -> None:
    def real(output: str, answer_type: str, gold: str) -> float:
        return strictly(output, answer_type, gold, task_group="real")

    assert real(r"\boxed{42}", "NUMERIC", "42") == 1.0
    assert real(r"\boxed{\text{Fireball}}", "TEXT", "fireball") == 1.0
    assert real("Mage Hand, fireball", "LIST", "Fireball, Mage Hand") == 1.0
    assert real(r"\boxed{Fireball, Shield}", "LIST", "Fireball, Mage Hand") == 0.5
    assert real("Fireball", "LIST", "Fireball, Mage Hand") == pytest.approx(2 / 3)


def test_scorers_are_chosen_by_name() -> None:
    example = Asked("LABEL", ("ham",))
    assert score("Label: ham.", example) == 1.0
    assert score("Label: ham.", example, "official") == 0.0
    with pytest.raises(ValueError, match="no scorer 'kind'"):
        score("ham", example, "kind")  # type: ignore[arg-type] # the mistake that is tested
