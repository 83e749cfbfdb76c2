"""OOLONG as a verifiers taskset, and its configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, cast

import verifiers.v1 as vf
from pydantic import Field, model_validator

from oolong.example import Example, Mode
from oolong.generator import Unit, generate
from oolong.official_questions import Compat
from oolong.published import load_published
from oolong.questions import ANSWER_TYPES, GROUPS, AnswerType, TaskGroup
from oolong.scoring.scorers import Scorer
from oolong.sources.catalog import open_source
from oolong.sources.labelled_files import file_ref, looks_like_file
from oolong.sources.source import Split
from oolong.task import OolongData, OolongTask, OolongTaskConfig

AnyAnswerType = Literal[AnswerType, "LIST", "TEXT"]
"""Types of answers of all modes: only oolong-real has LIST and TEXT."""

PUBLISHED = "oolongbench/oolong-synth"
"""Data set of mode "published" unless `source` names another."""


class FileConfig(vf.BaseConfig):
    """How a file of labelled text is read. For a `source` that is the path of a file."""

    text_column: str = "text"
    """Column, or JSON field, of the text."""
    label_column: str = "label"
    """Column, or JSON field, of the label."""
    items: str = "texts"
    """Name of what a line holds, in the plural, for the header of contexts."""
    meaning: str = "which class the text belongs to"
    """What the label of a line says, as the end of "The label says ..."."""


class PublishedConfig(vf.BaseConfig):
    """Which of the published rows are taken. For mode "published"."""

    config: str | None = None
    """Configuration of the data set: "dnd" or "toy_dnd" for oolong-real, none for oolong-synth."""
    revision: str | None = None
    """Revision of the data set on the hub; the newest if unset."""
    sources: list[str] = Field(default_factory=list)
    """Only rows of these sources ("trec_coarse", "spam", ...); all if empty."""
    min_context_len: int = Field(default=0, ge=0)
    """Least length of a context, in the data set's tokens."""
    max_context_len: int | None = Field(default=None, ge=1)
    """Greatest length of a context, in the data set's tokens."""


class CompatConfig(vf.BaseConfig, Compat):  # type: ignore[misc] # not frozen: a loader sets fields one by one
    """Known defects of the published generator, in mode "official": true reproduces it, false corrects it."""


class OolongConfig(vf.TasksetConfig):
    """Which questions are asked, over which text."""

    mode: Mode = "fixed"
    """"fixed": questions in our own wording, spread evenly over task groups and answer types. "official": the published
    procedure with its wordings and its defects (`compat`). "published": the published rows."""
    source: str | None = None
    """Labelled text: "wordnet" (embedded, the default), "trec_coarse" or "spam" (after `make oolong-sources`), or the
    path of a .csv, .tsv, .jsonl or .parquet file. In mode "published": a data set on the hub (by default
    oolongbench/oolong-synth), a folder of parquet files or one such file."""
    file: FileConfig = FileConfig()
    """How `source` is read if it is a file."""
    split: Literal["train", "eval", "all", "validation", "test"] = "eval"
    """"train" and "eval" share no text; "all" holds both. In mode "published": "validation" or "test"."""
    sizes: list[int] = Field(default_factory=lambda: [8_000, 16_000, 32_000, 64_000, 128_000], min_length=1)
    """Sizes of contexts, used in turn."""
    unit: Unit = "chars"
    """Unit of `sizes`. Tokens are estimated."""
    task_groups: list[TaskGroup] = Field(default_factory=list)
    """Only questions of these groups; all if empty. Not for mode "published"."""
    answer_types: list[AnyAnswerType] = Field(default_factory=list)
    """Only questions with these types of answers; all if empty. Only oolong-real has LIST and TEXT."""
    num_tasks: int = Field(default=50, ge=1)
    """Number of questions. In mode "fixed" a larger number only adds questions at the end."""
    order: Literal["mixed", "short_first"] = "mixed"
    """"mixed": sizes and types of questions take turns. "short_first": sorted by the size of the context, for trainers that
    take tasks in order."""
    seed: int = Field(default=0, ge=0)
    """Another seed gives other contexts and questions."""
    questions_per_window: int = Field(default=1, ge=1)
    """Number of questions that share a context, in mode "fixed"."""
    scorer: Scorer = "strict"
    """"strict" reads the whole answer as one answer, and withstands answers that hedge. "official" is the published rule."""
    task: OolongTaskConfig = OolongTaskConfig()
    """Weights of rewards, and gates."""
    compat: CompatConfig = CompatConfig()
    """Defects of the published generator. For mode "official"."""
    published: PublishedConfig = PublishedConfig()
    """Which of the published rows are taken. For mode "published"."""

    @model_validator(mode="after")
    def _check(self) -> OolongConfig:
        OolongTask.check(self.task)
        if any(size < 1 for size in self.sizes):
            raise ValueError(f"sizes must be numbers of {self.unit} from 1 up, not {self.sizes}")
        published = self.mode == "published"
        if (self.split in ("validation", "test")) != published:
            splits = '"validation" and "test"' if published else '"train", "eval" and "all"'
            raise ValueError(f'mode "{self.mode}" has the splits {splits}, not "{self.split}"')
        for name, mode in (("compat", "official"), ("published", "published")):
            value = getattr(self, name)
            if self.mode != mode and value != type(value)():
                raise ValueError(f'{name} is for mode "{mode}", and the mode is "{self.mode}"')
        if self.questions_per_window != 1 and self.mode != "fixed":
            raise ValueError('questions_per_window is for mode "fixed"')
        if published and self.task_groups:
            raise ValueError('task_groups is not for mode "published"')
        if not published:
            if extra := set(self.answer_types) - set(ANSWER_TYPES):
                raise ValueError(f'answer type {min(extra)} is for mode "published"')
            if self.file != FileConfig() and not looks_like_file(self.source or ""):
                raise ValueError(
                    f"file is for a source that is the path of a file, and {self.source!r} is not"
                )
            # Opened now, so that a missing source is an error before anything runs. The process keeps it.
            open_source(self.source_ref)
        return self

    @property
    def source_ref(self) -> str | dict[str, Any]:
        """The labelled text, in the form that `oolong.sources.catalog.open_source` takes."""
        if self.source is not None and looks_like_file(self.source):
            return file_ref(self.source, **self.file.model_dump())
        return self.source or "wordnet"


class OolongTaskset(vf.Taskset[OolongTask, OolongConfig]):
    """Questions about long lists of labelled lines whose labels are not shown."""

    def load(self) -> Iterable[OolongTask]:
        """Makes the tasks.

        Raises:
            SourceError: the labelled text is missing or cannot be read.
            ValueError: there is nothing to ask about contexts of these sizes.
        """
        chosen = self._examples()
        if self.config.order == "short_first":
            chosen = sorted(chosen, key=lambda example: example.context_size)
        scorer = self.config.scorer
        return [OolongTask(OolongData.of(example, scorer), self.config.task) for example in chosen]

    def _examples(self) -> list[Example]:
        config = self.config
        if config.mode == "published":
            options = {**config.published.model_dump(), "sources": tuple(config.published.sources)}
            return load_published(
                config.source or PUBLISHED,
                split=config.split,
                answer_types=tuple(config.answer_types),
                limit=config.num_tasks,
                **options,
            )
        return generate(
            config.num_tasks,
            source=config.source_ref,
            split=cast(Split, config.split),
            sizes=config.sizes,
            unit=config.unit,
            seed=config.seed,
            mode=config.mode,
            task_groups=config.task_groups or GROUPS,
            answer_types=config.answer_types or ANSWER_TYPES,
            questions_per_window=config.questions_per_window,
            compat=config.compat if config.mode == "official" else None,
        )
