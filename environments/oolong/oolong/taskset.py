"""OOLONG's questions as verifiers tasks."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import verifiers.v1 as vf
from pydantic import Field, model_validator

from oolong import example as examples
from oolong import generator, gold_check
from oolong.official_questions import Compat
from oolong.questions import ANSWER_TYPES, GROUPS
from oolong.scoring import scorers, strict
from oolong.sources import catalog, files
from oolong.sources.base import Split
from rlm_train.context_task import ContextTaskData
from rlm_train.rewards import RLMTask, RLMTaskConfig
from rlm_train.rollout_info import answer_of

if TYPE_CHECKING:
    from rlm_train.token_masks import AnyTrace

TaskGroup = Literal["counting", "user", "timeline"]
AnswerType = Literal["LABEL", "NUMERIC", "COMPARISON", "USER", "DATE", "MONTH_YEAR", "LIST", "TEXT"]

PUBLISHED = "oolongbench/oolong-synth"


class FileConfig(vf.BaseConfig):
    """How a file of labelled text is read, where `source` is the path of one."""

    text_column: str = "text"
    """Column, or JSON field, of the text."""
    label_column: str = "label"
    """Column, or JSON field, of the label."""
    items: str = "texts"
    """What a line holds, in the plural, as questions call it."""
    meaning: str = "which class the text belongs to"
    """What the label says, as the end of "The label says ..."."""


class PublishedConfig(vf.BaseConfig):
    """Which of the published rows are taken, in mode "published"."""

    config: str | None = None
    """"dnd" or "toy_dnd" for oolong-real."""
    revision: str | None = None
    """Revision of the data set on the hub."""
    sources: list[str] = Field(default_factory=list)
    """Keep rows of these only ("trec_coarse", "spam", ...); all if empty."""
    min_context_len: int = Field(default=0, ge=0)
    """Least length of a context, in the data set's tokens."""
    max_context_len: int | None = Field(default=None, ge=1)
    """Greatest length of a context, in the data set's tokens."""


class CompatConfig(vf.BaseConfig):
    """Known defects of the published generator, in mode "official": true does as it does, false corrects it.
    `oolong.official_questions.Compat` describes each."""

    month_year_bug: bool = True
    """Months are asked for only where the first one is the answer."""
    single_user_subset: bool = True
    """Subsets of users hold one user."""
    top50_dates: bool = True
    """Dates are counted within the 50 most frequent ones."""
    first25: bool = True
    """The first 25 questions of a window are kept, so hardly ever timelines."""
    named_first: bool = True
    """Of two users the one with more lines is named first."""
    least_first: bool = True
    """Labels tied for least common are asked for."""
    subset_labels: bool = True
    """Questions about a part of the lines list only its labels."""
    set_iteration: bool = True
    """Some loops run in random order."""


class OolongTaskConfig(RLMTaskConfig):
    """How answers are rewarded: see `rlm_train.rewards`."""

    numeric_tolerance: float = Field(default=0.1, gt=0, le=1)
    """Of the reward `numeric`: the share of the right number by which an answer may be off before it earns nothing."""


class OolongConfig(vf.TasksetConfig):
    """Which questions are asked, over which text."""

    mode: Literal["fixed", "official", "published"] = "fixed"
    """"fixed": questions of our own wording, spread evenly over groups and answer types. "official": the published
    procedure, its wordings and its defects (`compat`). "published": the published rows."""
    source: str | None = None
    """Labelled text: "wordnet" (embedded, the default), "trec_coarse" or "spam" (after `make oolong-sources`), or the
    path of a .csv, .tsv, .jsonl or .parquet file. In mode "published": a data set on the hub (by default
    oolongbench/oolong-synth), a folder of parquet files or one such file."""
    file: FileConfig = FileConfig()
    """How the file is read, if `source` is one."""
    split: Literal["train", "eval", "all", "validation", "test"] = "eval"
    """"train" and "eval" share no text; "all" is both. The published rows have "validation" and "test"."""
    sizes: list[int] = Field(default_factory=lambda: [8_000, 16_000, 32_000, 64_000, 128_000], min_length=1)
    """Sizes of contexts, used in turn."""
    unit: Literal["chars", "tokens", "rows"] = "chars"
    """What `sizes` counts. Tokens are estimated."""
    task_groups: list[TaskGroup] = Field(default_factory=list)
    """Only these groups of questions; all if empty. Not for mode "published"."""
    answer_types: list[AnswerType] = Field(default_factory=list)
    """Only these types of answers; all if empty. LIST and TEXT occur in oolong-real alone."""
    num_tasks: int = Field(default=50, ge=1)
    """Questions. More of them leave the first ones as they are, in mode "fixed"."""
    order: Literal["mixed", "short_first"] = "mixed"
    """"mixed": sizes and types of questions take turns. "short_first": by size of the context, for trainers that take
    tasks in order."""
    seed: int = Field(default=0, ge=0)
    """Another seed, other contexts and questions."""
    questions_per_window: int = Field(default=1, ge=1)
    """Questions that share a context, in mode "fixed"."""
    scorer: scorers.Scorer = "strict"
    """"strict" takes the whole answer and cannot be talked into points; "official" is the published rule."""
    task: OolongTaskConfig = OolongTaskConfig()
    """Weights of rewards, and gates."""
    compat: CompatConfig = CompatConfig()
    """Defects of the published generator, in mode "official"."""
    published: PublishedConfig = PublishedConfig()
    """Which of the published rows, in mode "published"."""

    @model_validator(mode="after")
    def _check(self) -> OolongConfig:
        OolongTask.check(self.task)
        if any(size < 1 for size in self.sizes):
            raise ValueError(f"sizes are numbers of {self.unit} from 1 up, not {self.sizes}")
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
            if self.file != FileConfig() and not files.looks_like_file(self.source or ""):
                raise ValueError(f"file is for a source that is a file, and {self.source!r} is none")
            # Opened now, so that what is missing is said before anything runs. It stays open for the process.
            catalog.open_source(self.source_ref)
        return self

    @property
    def source_ref(self) -> str | dict[str, Any]:
        """The labelled text as `oolong.sources.catalog.open_source` takes it."""
        if self.source is not None and files.looks_like_file(self.source):
            return files.file_ref(self.source, **self.file.model_dump())
        return self.source or "wordnet"


class OolongData(ContextTaskData):
    """One question. It describes its context, and does not hold it."""

    id: str | None = None
    """The example's name. A field of every task from verifiers 0.4 on."""
    answer: tuple[str, ...]
    """Right answers; any of them is right."""
    answer_type: str
    task_group: str
    task_type: str
    """MOST_FREQ, NUMERIC_ONE_CLASS, ...: the field `task` of the published rows."""
    source: str
    split: str
    mode: Literal["fixed", "official", "published"]
    seed: int
    scorer: scorers.Scorer
    labels: tuple[str, ...]
    num_labels: int
    """Labels of the context; 0 where they are not known."""
    input_subset: bool
    """Whether the question is about a part of the lines."""
    n_rows: int
    """Lines of the context."""
    compat: tuple[str, ...] = ()
    """Defects of the published procedure that were switched on."""
    context: dict[str, Any]
    """What the context is made from: see `oolong.generator.context_from_dict`."""

    @classmethod
    def of(cls, example: examples.Example, scorer: scorers.Scorer) -> OolongData:
        data = json.loads(json.dumps(example.to_dict()))
        return cls(
            id=example.id,
            name=f"{example.task_group} {example.answer_type.lower()} {example.chars:,} chars",
            prompt=data.pop("question"),
            category=f"{example.task_group}: {example.answer_type.lower().replace('_', '-')}",
            scorer=scorer,
            context_size=data.pop("chars"),
            context_sha256=data.pop("sha256"),
            task_type=data.pop("task"),
            num_labels=len(example.labels),
            **{name: value for name, value in data.items() if name != "id"},
        )

    @property
    def question(self) -> str:
        return self.prompt_text

    def to_example(self) -> examples.Example:
        """The example that the task was made from."""
        return examples.Example.from_dict(
            {
                "id": self.id,
                "seed": self.seed,
                "source": self.source,
                "split": self.split,
                "mode": self.mode,
                "task_group": self.task_group,
                "task": self.task_type,
                "answer_type": self.answer_type,
                "question": self.question,
                "answer": self.answer,
                "input_subset": self.input_subset,
                "labels": self.labels,
                "context": self.context,
                "n_rows": self.n_rows,
                "chars": self.context_size,
                "sha256": self.context_sha256,
                "compat": self.compat,
            }
        )

    def materialise(self) -> str:
        return examples.materialise(self.context)


class OolongTask(RLMTask[OolongData, OolongTaskConfig]):
    """Scores the answer that the RLM set, and nothing else of what it wrote."""

    OPTIONAL: ClassVar[frozenset[str]] = RLMTask.OPTIONAL | {"numeric"}

    @property
    def key(self) -> str:
        """The same for a question wherever it stands in the taskset, so that what a trainer knows of a task stays true when
        the taskset is made longer, or put in another order."""
        digest = hashlib.sha256(f"{self.data.context_sha256}\n{self.data.question}".encode()).hexdigest()
        return f"{self.data.id}-{digest[:12]}"

    @vf.reward
    async def correct(self, task: OolongData, trace: AnyTrace) -> float:
        """From 0 to 1, by the task's scorer; see `oolong.scoring.scorers`."""
        return scorers.score(answer_of(trace), task, task.scorer)

    @vf.reward(weight=0.0)
    async def numeric(self, task: OolongData, trace: AnyTrace) -> float:
        """What `oolong.scoring.scorers.nearness` gives to a number beyond what `correct` gives."""
        near = strict.nearness(answer_of(trace), task, self.config.numeric_tolerance)
        return max(0.0, near - scorers.score(answer_of(trace), task, task.scorer))

    @vf.metric
    async def exact(self, task: OolongData, trace: AnyTrace) -> float:
        """1 if the score is full; a number that is near scores a part."""
        return float(scorers.score(answer_of(trace), task, task.scorer) == 1.0)

    @vf.metric
    async def curriculum(self, task: OolongData) -> dict[str, float]:
        """The figures by which tasks differ in difficulty: their means tell what a curriculum is choosing."""
        return {
            "context_size": float(task.context_size),
            "n_rows": float(task.n_rows),
            "num_labels": float(task.num_labels),
        }

    async def validate(self, runtime: vf.Runtime) -> bool | None:
        """Counts the right answers again from the labelled text, and has the scorer take them. None for the published
        rows: their known defects make some of their answers wrong.

        Raises:
            GoldError: the recorded answer is another.
        """
        if self.data.mode == "published":
            return None
        await asyncio.to_thread(gold_check.verify, self.data.to_example())
        return scorers.score(self.data.answer[0], self.data, self.data.scorer) == 1.0


class OolongTaskset(vf.Taskset[OolongTask, OolongConfig]):
    """Questions about long lists of labelled lines whose labels are not shown."""

    def load(self) -> Iterable[OolongTask]:
        """
        Raises:
            SourceError: the text cannot be had.
            ValueError: nothing can be asked about contexts of this size.
        """
        chosen = self._examples()
        if self.config.order == "short_first":
            chosen = sorted(chosen, key=lambda example: example.chars)
        scorer = self.config.scorer
        return [OolongTask(OolongData.of(example, scorer), self.config.task) for example in chosen]

    def _examples(self) -> list[examples.Example]:
        config = self.config
        if config.mode == "published":
            from oolong.published import load_published

            options = {**config.published.model_dump(), "sources": tuple(config.published.sources)}
            return load_published(
                config.source or PUBLISHED,
                split=config.split,
                answer_types=tuple(config.answer_types),
                limit=config.num_tasks,
                **options,
            )
        return generator.generate(
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
            compat=Compat(**config.compat.model_dump()) if config.mode == "official" else None,
        )
