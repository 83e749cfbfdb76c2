"""The published rows of OOLONG, `oolongbench/oolong-synth` and `oolongbench/oolong-real`, through the library `datasets`.

A data set is given by its name on the hub, by a local folder of parquet files, or by one parquet file with the same columns.
Its rows become examples of the same form as ours. The context stays in the data set and is read by row number.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from oolong.example import Example, text_sha256
from oolong.published_rows import TEXT_COLUMN, PublishedRow, load_rows
from oolong.sources.source import SourceError

SYNTH_COLUMNS = (
    "id", "context_len", "dataset", "context_window_text", "question", "task_group", "task", "answer", "answer_type",
    "input_subset", "num_labels", "context_window_id",
)  # fmt: skip
REAL_COLUMNS = (
    "id",
    "context_window_id",
    "context_window_text",
    "question",
    "answer",
    "question_type",
    "campaign",
)


def load_published(
    dataset: str = "oolongbench/oolong-synth",
    *,
    split: str = "validation",
    config: str | None = None,
    revision: str | None = None,
    sources: tuple[str, ...] = (),
    max_context_len: int | None = None,
    min_context_len: int = 0,
    answer_types: tuple[str, ...] = (),
    limit: int | None = None,
) -> list[Example]:
    """Reads the published rows as examples.

    Args:
        dataset: name on the hub, folder of parquet files, or parquet file.
        split: "validation" or "test".
        config: "dnd" or "toy_dnd" for oolong-real; None for oolong-synth.
        revision: revision of the data set on the hub; None: the newest.
        sources: keep only rows of these sources (`trec_coarse`, `spam`, ...; campaigns of oolong-real); all if empty.
        min_context_len, max_context_len: bounds of the column `context_len`, in the data set's tokens, both included; for
            oolong-synth. The published evaluation takes lengths over 1,024 up to 131,072.
        answer_types: keep only these types of answers; all if empty.
        limit: most examples; None: all.

    Raises:
        SourceError: the data set cannot be read, or is not of the published form.
    """
    rows = load_rows(dataset, split, config, revision)
    names = set(rows.column_names)
    if "context_len" in names or "answer_type" in names:
        read, needed = _synth_example, list(SYNTH_COLUMNS)
    else:
        read, needed = _real_example, list(REAL_COLUMNS)
    missing = [column for column in needed if column not in names]
    if missing:
        raise SourceError(f"{dataset}: no column {missing[0]!r}; it has {', '.join(sorted(names))}")
    # Contexts are large, so they are read only for the rows that are kept.
    light = rows.remove_columns([column for column in names if column.startswith(TEXT_COLUMN)])
    examples: list[Example] = []
    for index, record in enumerate(light):
        if limit is not None and len(examples) >= limit:
            break
        if sources and str(record.get("dataset", record.get("campaign"))) not in sources:
            continue
        length = record.get("context_len")
        if length is not None and (
            length < min_context_len or (max_context_len is not None and length > max_context_len)
        ):
            continue
        where = PublishedRow(dataset, split, index, config, revision)
        try:
            example = read(record, where, answer_types)
        except (ValueError, SyntaxError, TypeError, KeyError) as error:
            raise SourceError(f"{dataset}, split {split}, row {index}: {error}") from None
        if example is not None:
            examples.append(example)
    return examples


def parse_answer(answer: str, answer_type: str) -> tuple[str, ...]:
    """Turns a published answer, the text of a Python list, into ours: `"['spam']"`, `"[datetime.date(2023, 1, 2)]"`, `"[12]"`.

    Raises:
        ValueError: the answer is not a list of at least one item.
    """
    found = re.fullmatch(r"\[datetime\.date\((\d{4}), (\d{1,2}), (\d{1,2})\)\]", answer.strip())
    if found:
        year, month, day = map(int, found.groups())
        return (f"{year:04d}-{month:02d}-{day:02d}",)
    values = ast.literal_eval(answer)
    if not isinstance(values, list) or not values:
        raise ValueError(f"the answer {answer!r} is not a list of at least one item")
    return tuple(str(value) for value in values)


def labels_in(text: str) -> tuple[str, ...]:
    """The labels that the header of a published window lists in quotes; empty if it lists none."""
    found = re.search(
        r"categories: ((?:'[^'\n]+'(?:, )?)+)|relationships: ((?:'[^'\n]+'(?:, )?)+)", text[:2000]
    )
    if not found:
        return ()
    return tuple(re.findall(r"'([^'\n]+)'", found.group(1) or found.group(2)))


def _synth_example(
    record: dict[str, Any], where: PublishedRow, answer_types: tuple[str, ...]
) -> Example | None:
    answer_type = str(record["answer_type"]).removeprefix("ANSWER_TYPE.")
    if answer_types and answer_type not in answer_types:
        return None
    text = where.text()
    return Example(
        id=str(record["id"]),
        seed=0,
        source=str(record["dataset"]),
        split=where.split,
        mode="published",
        task_group=str(record["task_group"]),
        task_type=str(record["task"]).removeprefix("TASK_TYPE."),
        answer_type=answer_type,
        prompt=str(record["question"]),
        answer=parse_answer(str(record["answer"]), answer_type),
        input_subset=str(record["input_subset"]) == "True",
        labels=labels_in(text),
        context=where,
        n_rows=len(re.findall(r"^Date: ", text, re.MULTILINE)),
        context_size=len(text),
        context_sha256=text_sha256(text),
    )


def _real_example(
    record: dict[str, Any], where: PublishedRow, answer_types: tuple[str, ...]
) -> Example | None:
    answer = str(record["answer"]).strip()
    answer_type = "NUMERIC" if re.fullmatch(r"[+-]?\d+", answer) else "LIST" if "," in answer else "TEXT"
    if answer_types and answer_type not in answer_types:
        return None
    text = where.text()
    return Example(
        id=str(record["id"]),
        seed=0,
        source=str(record["campaign"]),
        split=where.split,
        mode="published",
        task_group="real",
        task_type=str(record["question_type"]),
        answer_type=answer_type,
        prompt=str(record["question"]),
        answer=(answer,),
        input_subset=False,
        labels=(),
        context=where,
        n_rows=text.count("\n") + 1,
        context_size=len(text),
        context_sha256=text_sha256(text),
    )
