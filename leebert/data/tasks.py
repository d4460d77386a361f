"""Text tasks: the seven of GLUE, and tasks that users declare in YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from leebert.config import Frozen, parse
from leebert.data.labels import LabelIds, as_written
from leebert.data.readers import FORMATS
from leebert.errors import ConfigError, nearest
from leebert.images.tasks import IMAGE_TASKS, ImageTask
from leebert.metrics import METRICS
from leebert.yaml import load_yaml

#: Columns that group samples: those with an equal text in any of them stay together. (): no groups. "containing": see `folds`.
GroupBy = tuple[str, ...] | Literal["containing"]
_HUB_SPLITS: Mapping[str, str] = {"train": "train", "dev": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub, with the names of its columns and splits.

    Attributes:
        repo: Its id, `owner/name`.
        config: Its configuration; None if it has one only.
        text_columns: Names of its text columns.
        label_column: Name of its label column.
        splits: Split → its name on the hub.
        revision: Revision; None: the newest.
    """

    repo: str
    config: str | None
    text_columns: tuple[str, ...]
    label_column: str = "label"
    splits: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(_HUB_SPLITS))
    revision: str | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """Text classification with one text or a pair of texts.

    Attributes:
        name: The name of the task.
        text_columns: One or two columns.
        label_column: The column of the label.
        label_names: Class names in the order of their ids.
        metric: The name of a metric (:data:`leebert.metrics.METRICS`).
        group_by: What keeps samples in one fold.
        splits: Split → file name (in `folder` for GLUE's release, a path for declared tasks).
        eval_splits: Labelled splits for evaluation.
        folder: The folder of the task in GLUE's release; empty for declared tasks.
        hub: The data set on the hub; None if there is none.
        headerless: Split → column names, for files without a header.
        skipped_label: The label of unlabelled rows, which are skipped.
        skip_broken: Whether malformed rows are skipped, as in GLUE's release of QQP; else they are errors.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str
    label_names: tuple[str, ...]
    metric: str
    group_by: GroupBy
    splits: Mapping[str, str]
    eval_splits: tuple[str, ...] = ("dev",)
    folder: str = ""
    hub: Hub | None = None
    headerless: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    skipped_label: str | None = None
    skip_broken: bool = False
    kind: ClassVar[str] = "texts"  # in leebert.kinds.KINDS

    @property
    def request_columns(self) -> tuple[str, ...]:
        """Names of the texts in requests to a served model: the hub's names if the task has a hub data set."""
        return self.hub.text_columns if self.hub else self.text_columns

    @property
    def text_names(self) -> tuple[tuple[str, ...], ...]:
        """For each text column, its names in files and requests: the release's, then the hub's."""
        pairs = zip(self.text_columns, self.request_columns, strict=True)
        return tuple(tuple(dict.fromkeys(pair)) for pair in pairs)

    @property
    def label_column_names(self) -> tuple[str, ...]:
        """Names of the label column: the release's, then the hub's."""
        return tuple(dict.fromkeys((self.label_column, self.hub.label_column if self.hub else self.label_column)))

    @property
    def num_labels(self) -> int:
        return len(self.label_names)

    def label_ids(self) -> dict[str, int]:
        """Map labels, as files hold them, to class ids: the names, and the ids unless a name is a number.

        :class:`leebert.data.labels.LabelIds` also accepts other spellings.
        """
        ids = {name: i for i, name in enumerate(self.label_names)}
        if LabelIds(self.label_names).by_id:
            ids |= {str(i): i for i in range(self.num_labels)}
        return ids


#: A task of any kind.
AnyTask = Task | ImageTask

_SPLITS = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}
_MATCHED = ("dev_matched", "dev_mismatched", "test_matched", "test_mismatched")


#: Why regression tasks are refused.
NO_REGRESSION = (
    "exit criteria compare the predicted classes of exits, and a regression predicts numbers; declare a task whose labels "
    "are classes"
)


def _glue(config: str, *text_columns: str, splits: Mapping[str, str] = _HUB_SPLITS) -> Hub:
    return Hub("nyu-mll/glue", config, text_columns, splits=splits)


def _hub_name(split: str) -> str:
    return split.replace("dev", "validation")


_COLA_COLUMNS = ("source", "label", "star", "sentence")

#: The paper's seven GLUE tasks, in the layout of GLUE's release; label ids in the order of the hub's data set.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="cola",
            text_columns=("sentence",),
            label_column="label",
            label_names=("unacceptable", "acceptable"),
            metric="matthews",
            group_by=("sentence",),
            splits=_SPLITS,
            folder="CoLA",
            hub=_glue("cola", "sentence"),
            headerless={"train": _COLA_COLUMNS, "dev": _COLA_COLUMNS},
        ),
        Task(
            name="mnli",
            text_columns=("sentence1", "sentence2"),
            label_column="gold_label",
            label_names=("entailment", "neutral", "contradiction"),
            metric="accuracy",
            # Writers made three hypotheses for each premise, one per label.
            group_by=("sentence1",),
            splits={split: f"{split}.tsv" for split in ("train", *_MATCHED)},
            eval_splits=("dev_matched", "dev_mismatched"),
            folder="MNLI",
            hub=_glue(
                "mnli", "premise", "hypothesis", splits={split: _hub_name(split) for split in ("train", *_MATCHED)}
            ),
            skipped_label="-",  # the annotators had no majority
        ),
        Task(
            name="mrpc",
            text_columns=("#1 String", "#2 String"),
            label_column="Quality",
            label_names=("not_equivalent", "equivalent"),
            metric="acc_f1",
            group_by=("#1 String", "#2 String"),
            splits=_SPLITS,
            folder="MRPC",
            hub=_glue("mrpc", "sentence1", "sentence2"),
        ),
        Task(
            name="qnli",
            text_columns=("question", "sentence"),
            label_column="label",
            label_names=("entailment", "not_entailment"),
            metric="accuracy",
            # A question is paired with several sentences of its paragraph, and a sentence with several questions. Grouping
            # by both keeps each paragraph in one fold.
            group_by=("question", "sentence"),
            splits=_SPLITS,
            folder="QNLI",
            hub=_glue("qnli", "question", "sentence"),
        ),
        Task(
            name="qqp",
            text_columns=("question1", "question2"),
            label_column="is_duplicate",
            label_names=("not_duplicate", "duplicate"),
            metric="acc_f1",
            group_by=("question1", "question2"),
            splits=_SPLITS,
            folder="QQP",
            hub=_glue("qqp", "question1", "question2"),
            skip_broken=True,  # some questions of the release contain a line break, which splits their row
        ),
        Task(
            name="rte",
            text_columns=("sentence1", "sentence2"),
            label_column="label",
            label_names=("entailment", "not_entailment"),
            metric="accuracy",
            group_by=("sentence1",),
            splits=_SPLITS,
            folder="RTE",
            hub=_glue("rte", "sentence1", "sentence2"),
        ),
        Task(
            name="sst2",
            text_columns=("sentence",),
            label_column="label",
            label_names=("negative", "positive"),
            metric="accuracy",
            # Most rows are phrases of other rows: `dataclasses.replace(task, group_by="containing")` groups these.
            group_by=("sentence",),
            splits=_SPLITS,
            folder="SST-2",
            hub=_glue("sst2", "sentence"),
        ),
    )
}


def _label_text(value: Any) -> Any:
    """Convert labels such as 0, 0.5 or true, which YAML reads as numbers and booleans, to text."""
    return as_written(value) if isinstance(value, bool | int | float) else value


def _no_regression(value: Any) -> Any:
    if value in ("pearson", "spearman", "mse", "mae", "rmse", "r2"):
        raise ValueError(f"{value!r} is a metric of regression: {NO_REGRESSION}")
    return value


def _metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(METRICS.unknown(name))
    return name


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class OwnTask(Frozen):
    """A task declared by the user: files with named columns, or a data set on the hub."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="The task's name, used in names of runs and files."
    )
    files: dict[str, str] | None = Field(
        None, description="Split → path (.tsv, .csv, .jsonl, .json or .parquet), relative to the working directory."
    )
    hub: str | None = Field(
        None, description="Instead of `files`: the id of a data set on the hub, optionally with @revision."
    )
    hub_config: str | None = Field(None, description="The hub data set's configuration, if it has several.")
    hub_splits: dict[str, str] = Field(
        default_factory=lambda: {"train": "train", "dev": "validation"}, description="Split → its name on the hub."
    )
    text: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = Field(
        min_length=1, max_length=2, description="The column of the text, or the two columns of a pair."
    )
    label: str = Field(description="The column of the label.")
    labels: tuple[Annotated[str, BeforeValidator(_label_text)], ...] = Field(
        min_length=2, description="The labels' names, in the order of their ids."
    )
    metric: Annotated[str, BeforeValidator(_no_regression), AfterValidator(_metric)] = Field(
        "accuracy", description="The score: one of those that `leebert metrics` lists, such as accuracy or matthews."
    )
    group_by: tuple[str, ...] | Literal["containing", "none"] | None = Field(
        None,
        description="Samples with an equal text in one of these columns stay in one fold (default: every text column); "
        "containing: samples whose texts are contained in one longer text; none: no groups.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> OwnTask:
        errors = [*self._file_errors(), *self._column_errors()]
        if errors:
            raise ValueError("; ".join(errors))
        return self

    def _file_errors(self) -> list[str]:
        errors = (
            [f"name: {self.name!r} is a built-in task; choose another name"]
            if self.name in (*TASKS, *IMAGE_TASKS)
            else []
        )
        if (self.files is None) == (self.hub is None):
            errors.append("give either files or hub")
        splits = self.hub_splits if self.files is None else self.files
        if "train" not in splits:
            errors.append(f"no split 'train'; the splits are {', '.join(splits) or 'none'}")
        for split, path in (self.files or {}).items():
            if Path(path).suffix.lower() not in FORMATS:
                errors.append(
                    f"files.{split}: {path!r}: unknown file type; the suffix must be one of {', '.join(FORMATS)}"
                )
        return errors

    def _column_errors(self) -> list[str]:
        errors = []
        for kind, names in (("column", [*self.text, self.label]), ("label", list(self.labels))):
            errors += [f"duplicate {kind} {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
        if (needed := METRICS[self.metric].classes) not in (None, len(self.labels)):
            alternatives = " or ".join(name for name, metric in METRICS.items() if metric.classes is None)
            errors.append(f"metric: {self.metric} needs {needed} labels, not {len(self.labels)}; use {alternatives}")
        if self.group_by == "containing" and len(self.text) != 1:
            errors.append("group_by: containing is for tasks of one text column")
        for column in self.group_by if isinstance(self.group_by, tuple) else ():
            if column not in self.text:
                available = f"{', '.join(self.text)}{nearest(column, self.text)}"
                errors.append(f"group_by: {column!r} is not a text column; these are {available}")
        return errors

    def task(self, base: Path | None = None) -> Task:
        """Return the task; relative paths start at the folder `base`."""
        files = {split: str((base or Path()) / path) for split, path in (self.files or {}).items()}
        repo, _, revision = (self.hub or "").partition("@")
        splits = files or self.hub_splits
        return Task(
            name=self.name,
            text_columns=self.text,
            label_column=self.label,
            label_names=self.labels,
            metric=self.metric,
            group_by=() if self.group_by == "none" else self.text if self.group_by is None else self.group_by,
            splits=splits,
            eval_splits=tuple(split for split in splits if split != "train" and not split.startswith("test")),
            hub=Hub(repo, self.hub_config, self.text, self.label, self.hub_splits, revision or None) if repo else None,
        )


def own_task(spec: Mapping[str, Any] | OwnTask, base: Path | None = None) -> Task:
    """Make a task from a user's declaration.

    Args:
        spec: The declaration.
        base: Folder that relative paths start at; by default the working folder.

    Raises:
        ConfigError: The declaration is invalid; the message lists all errors.
    """
    declared = spec if isinstance(spec, OwnTask) else parse(OwnTask, spec, "task")
    return declared.task(base)


def _folded(name: str) -> str:
    """A task's name without case, hyphens and underscores: GLUE itself writes SST-2 and CoLA."""
    return name.lower().replace("-", "").replace("_", "")


def is_regression(name: str) -> bool:
    """Whether a name is that of STS-B, GLUE's only regression task."""
    return _folded(name) == "stsb"


def canonical_name(name: str) -> str:
    """Return the canonical name of a built-in task (`mrpc` for `MRPC`, `sst2` for `SST-2`); other names unchanged."""
    return next((task for task in (*TASKS, *IMAGE_TASKS) if _folded(task) == _folded(name)), name)


def any_task(task: str | Mapping[str, Any] | OwnTask, base: Path | None = None) -> AnyTask:
    """Look up a task of texts or images.

    Args:
        task: The name of a built-in task, or a declaration.
        base: Folder that relative paths of a declaration start at.

    Raises:
        ConfigError: The name is unknown, or the declaration is invalid.
    """
    if not isinstance(task, str):
        return own_task(task, base)
    tasks: dict[str, AnyTask] = {**TASKS, **IMAGE_TASKS}
    if is_regression(task):
        raise ConfigError(f"task {task!r}: a regression: {NO_REGRESSION}")
    if (name := canonical_name(task)) not in tasks:
        hint = nearest(task.lower(), tasks)
        raise ConfigError(f"unknown task {task!r}{hint}; use one of {', '.join(tasks)}, or declare a task")
    return tasks[name]


def named_or_declared(value: str) -> str | dict[str, Any]:
    """Read the value of `--task`: the name of a built-in task, or the path of a YAML file with a declaration.

    Raises:
        ConfigError: The value is missing, or neither of the two.
    """
    if not value:
        names = ", ".join([*TASKS, *IMAGE_TASKS])
        raise ConfigError(f"--task is missing: one of {names}, or a YAML file that declares a task")
    if Path(value).suffix.lower() in (".yaml", ".yml"):
        declared: Any = load_yaml(value)
        if not isinstance(declared, Mapping):
            raise ConfigError(f"--task {value}: expected a mapping that declares a task")
        inner = declared.get("task", declared)
        return dict(inner) if isinstance(inner, Mapping) else any_task(str(inner)).name
    return any_task(value).name


def get_task(task: str | Mapping[str, Any] | OwnTask, base: Path | None = None) -> Task:
    """Look up a task of texts, as :func:`any_task` does.

    Args:
        task: The name of a built-in task, a declaration, or a task.
        base: The folder to which a declaration's paths are relative; None: the working directory.

    Returns:
        The task.

    Raises:
        ConfigError: The task is unknown or invalid, or is an image task.
    """
    result = any_task(task, base)
    if not isinstance(result, Task):
        raise ConfigError(f"task {result.name} is an image task; a text task is needed here")
    return result
