"""The paper's tables and figures as data: rows, their methods and the printed numbers (Zhu, ACL 2021).

Scores are per cent on the development split, speed-ups are layer speed-ups, minutes are those to the best checkpoint on
one V100. Titles name a network by its share of the layers, since the number of layers depends on the backbone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from leebert.exits import DEFAULT

#: The paper tunes thresholds of DeeBERT and Shallow-Deep to a speed-up in this window (section 4.4). Here its middle is
#: the aim for all methods; for other aims the window scales in proportion.
WINDOW = (1.80, 2.10)
AIM = sum(WINDOW) / 2

GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")

#: The role of a row in a table's comparisons: the paper's own method, a baseline, a variant of the own method, or the
#: whole network.
Role = Literal["subject", "baseline", "variant", "base"]


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One row of a table, or one curve of a figure.

    Attributes:
        title: The row's title.
        method: The method's name.
        criterion: The exit criterion.
        paper: The printed number by task.
        speed_ups: The printed layer speed-up by task.
        keep: The share of layers that a reduced network keeps.
        role: The row's role in comparisons.
        group: Rows are compared only within a group.
    """

    title: str
    method: str
    criterion: str = DEFAULT
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    speed_ups: Mapping[str, float] = dataclasses.field(default_factory=dict)
    keep: float | None = None
    role: Role = "baseline"
    group: str = ""


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        name: The name on the command line.
        title: The title.
        backbone: The paper's backbone.
        tasks: The paper's tasks.
        rows: The rows.
        kind: `scores` at a layer speed-up, or `costs` of training.
        aims: The layer speed-up that thresholds are chosen for, by task; :data:`AIM` for others.
    """

    name: str
    title: str
    backbone: str
    tasks: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    kind: Literal["scores", "costs"] = "scores"
    aims: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def aim(self, task: str) -> float:
        """Return the layer speed-up that every row's threshold is chosen for, on validation samples."""
        return self.aims.get(task, AIM)

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.method for row in self.rows))


@dataclasses.dataclass(frozen=True)
class PaperFigure:
    """One figure: mean exit layer or score against patience, one curve per row."""

    name: str
    title: str
    shows: Literal["layers", "score"]
    tasks: tuple[str, ...]
    rows: tuple[PaperRow, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(row.method for row in self.rows)


PaperTarget = PaperTable | PaperFigure


def _rows(
    tasks: Sequence[str],
    *lines: tuple[str, str, str, float | None, Role, float | Sequence[float], Sequence[float]],
) -> tuple[PaperRow, ...]:
    """Make rows from (title, method, criterion, keep, role, speed-up for all tasks or one per task, a number per task)."""
    rows = []
    for title, method, criterion, keep, role, speed, numbers in lines:
        speeds = speed if isinstance(speed, Sequence) else [speed] * len(tasks)
        rows.append(
            PaperRow(
                title,
                method,
                criterion,
                dict(zip(tasks, numbers, strict=True)),
                dict(zip(tasks, speeds, strict=True)),
                keep,
                role,
            )
        )
    return tuple(rows)


_IN_5 = ("mnli", "mrpc", "sst2")
_IMAGES = ("cifar10", "cifar100")

# One line per row, as in the paper's tables.
# fmt: off
TABLE_1 = PaperTable("table1", "Static compression and early exits", "ALBERT-base", GLUE, _rows(
    GLUE,
    ("whole network", "finetune", "never", None, "base", 1.00, (57.4, 84.6, 89.5, 89.2, 89.6, 75.6, 91.8)),
    ("half of the layers", "truncated", "never", 0.5, "baseline", 1.96, (51.9, 80.2, 85.8, 84.7, 86.8, 70.6, 88.8)),
    ("three quarters of the layers", "truncated", "never", 0.75, "baseline", 1.30, (53.8, 81.2, 87.1, 86.2, 88.3, 72.9, 90.3)),
    ("LayerDrop", "layerdrop", "never", 0.5, "baseline", 1.96, (52.2, 79.8, 85.9, 84.5, 87.3, 71.3, 89.7)),
    ("HeadPrune", "headprune", "never", 0.5, "baseline", 1.22, (52.6, 80.3, 86.2, 84.3, 88.0, 72.1, 89.5)),
    ("DeeBERT", "deebert", "entropy", None, "baseline", 1.88, (53.7, 81.7, 87.2, 86.4, 87.4, 72.4, 89.6)),
    ("Shallow-Deep", "shallow-deep", "confidence", None, "baseline", 1.95, (54.1, 81.5, 87.1, 86.7, 87.8, 72.2, 89.7)),
    ("PABEE", "pabee", "patience", None, "baseline", 1.91, (56.4, 83.9, 88.7, 88.6, 88.9, 74.4, 90.5)),
    ("FastBERT", "fastbert", "patience", None, "baseline", 1.94, (57.1, 84.7, 89.1, 89.0, 89.3, 75.6, 90.9)),
    ("FastBERT-CLO-v2", "fastbert-clo-v2", "patience", None, "variant", 1.95, (57.2, 85.0, 89.2, 89.3, 89.5, 76.3, 91.1)),
    ("LLE", "lle", "patience", None, "variant", 1.96, (57.5, 85.1, 89.5, 89.4, 89.8, 76.7, 91.3)),
    ("rand", "rand", "patience", None, "baseline", 1.95, (57.0, 84.8, 89.2, 89.1, 89.2, 75.8, 91.0)),
    ("uniform", "uniform", "patience", None, "baseline", 1.95, (57.1, 84.9, 89.1, 89.0, 89.3, 75.9, 91.0)),
    ("SLO", "slo", "patience", None, "baseline", 1.94, (57.2, 85.0, 89.2, 89.3, 89.6, 76.0, 90.9)),
    ("BLO", "blo", "patience", None, "baseline", 1.93, (57.4, 85.1, 89.5, 89.4, 89.8, 76.4, 91.3)),
    ("CLO-v1", "clo-v1", "patience", None, "variant", 1.95, (57.9, 85.4, 89.9, 89.7, 90.3, 76.9, 91.8)),
    ("LeeBERT", "clo-v2", "patience", None, "subject", 1.96, (57.8, 85.4, 89.7, 89.7, 90.2, 76.8, 91.8)),
))

_MINUTES = ("mrpc", "sst2")
TABLE_2 = PaperTable("table2", "Minutes to the best checkpoint", "ALBERT-base", _MINUTES, (
    PaperRow("no early exits", "finetune", "never", dict(zip(_MINUTES, (6.4, 113.0), strict=True)), role="base"),
    PaperRow("PABEE", "pabee", "patience", dict(zip(_MINUTES, (6.2, 109.0), strict=True))),
    PaperRow("FastBERT", "fastbert", "patience", dict(zip(_MINUTES, (6.0, 102.0), strict=True))),
    PaperRow("CLO-v1", "clo-v1", "patience", dict(zip(_MINUTES, (13.2, 226.0), strict=True)), role="variant"),
    PaperRow("LeeBERT (CLO-v2)", "clo-v2", "patience", dict(zip(_MINUTES, (6.5, 118.0), strict=True)), role="subject"),
), "costs")

_RULES = _rows(
    _IN_5,
    ("DeeBERT, entropy", "deebert", "entropy", None, "baseline", 1.88, (81.7, 87.2, 90.6)),
    ("LeeBERT, entropy", "clo-v2", "entropy", None, "subject", 1.92, (83.9, 88.6, 91.8)),
    ("Shallow-Deep, maximum probability", "shallow-deep", "confidence", None, "baseline", 1.95, (81.5, 87.1, 90.7)),
    ("LeeBERT, maximum probability", "clo-v2", "confidence", None, "subject", 2.04, (83.7, 88.9, 91.7)),
)
TABLE_4 = PaperTable(
    "table4", "Other exit criteria", "ALBERT-base", _IN_5, tuple(dataclasses.replace(row, group=row.criterion) for row in _RULES)
)

TABLE_5 = PaperTable("table5", "Shorter, distilled and replaced networks, and early exits", "BERT-base", _IN_5, _rows(
    _IN_5,
    ("whole network", "finetune", "never", None, "base", 1.00, (83.5, 88.3, 91.5)),
    ("half of the layers", "truncated", "never", 0.5, "baseline", 1.96, (79.1, 83.9, 89.6)),
    ("three quarters of the layers", "truncated", "never", 0.75, "baseline", 1.30, (80.4, 85.8, 90.5)),
    ("DistilBERT", "distilled", "never", 0.5, "baseline", 1.96, (79.8, 85.3, 89.3)),
    ("PKD", "pkd", "never", 0.5, "baseline", 1.96, (80.6, 85.5, 89.7)),
    ("BERT-of-Theseus", "theseus", "never", 0.5, "baseline", 1.96, (80.7, 85.4, 89.6)),
    ("PABEE", "pabee", "patience", None, "baseline", 1.86, (81.5, 86.2, 90.4)),
    ("FastBERT", "fastbert", "patience", None, "baseline", 1.95, (82.1, 86.7, 90.8)),
    ("LeeBERT", "clo-v2", "patience", None, "subject", 1.97, (83.1, 88.5, 91.8)),
))

#: Training options for images (of `leebert.config.TrainConfig`), as in search_spaces/cifar10.yaml. Batch size, learning
#: rates, SGD and C are the paper's; the paper omits the rest, which is Shallow-Deep's, with our own clipping.
OF_IMAGES: Mapping[str, Any] = {
    "lr_theta": 0.1, "lr_omega": 0.01, "cycle_length": 4, "batch_size": 128, "theta_optimizer": "sgd", "momentum": 0.9,
    "weight_decay": 1e-4, "schedule": "steps", "warmup": 0.0, "omega_optimizer": "sgd", "exit_dropout": 0.0,
    "max_epochs": 200, "patience": 200,
}

# The paper omits the patience but prints the speed-ups; their middle is the aim. The row of Shallow-Deep is our addition.
TABLE_6 = PaperTable("table6", "Early exits on images", "ResNet-56", _IMAGES, (*_rows(
    _IMAGES,
    ("whole network", "finetune", "never", None, "base", 1.00, (91.8, 68.6)),
    ("PABEE", "pabee", "patience", None, "baseline", (1.26, 1.22), (91.9, 69.0)),
    ("DBT", "dbt", "patience", None, "baseline", (1.28, 1.25), (92.1, 69.3)),
    ("LeeBERT", "clo-v2", "patience", None, "subject", (1.30, 1.27), (92.5, 69.6)),
), PaperRow("Shallow-Deep", "shallow-deep", "confidence")), aims={"cifar10": 1.28, "cifar100": 1.25})

#: Table 3: the options that the paper's search selected for LeeBERT (CLO-v2), by task.
SETTINGS: Mapping[str, Mapping[str, float]] = {
    task: dict(zip(("lr_theta", "lr_omega", "batch_size", "cycle_length"), values, strict=True))
    for task, *values in (
        ("cola", 2e-5, 1e-3, 16, 2),
        ("mnli", 1e-5, 1e-5, 128, 4),
        ("mrpc", 1e-5, 1e-4, 32, 4),
        ("qnli", 1e-5, 1e-5, 128, 8),
        ("qqp", 1e-5, 1e-5, 128, 4),
        ("rte", 2e-5, 1e-3, 16, 4),
        ("sst2", 2e-5, 1e-4, 128, 4),
    )
}

#: The name of table 3 on the command line. It shows selected options, not results of training.
TABLE_3 = "table3"

_CURVES = (PaperRow("PABEE", "pabee"), PaperRow("FastBERT", "fastbert"), PaperRow("LeeBERT", "clo-v2", role="subject"))
TARGETS: Mapping[str, PaperTarget] = {target.name: target for target in (
    TABLE_1, TABLE_2, TABLE_4, TABLE_5, TABLE_6,
    PaperFigure("figure2", "Mean exit layer against patience", "layers", ("mrpc",), _CURVES),
    PaperFigure("figure3", "Score against patience", "score", ("mrpc",), _CURVES),
    PaperFigure("figure4", "Score against patience", "score", ("sst2",), _CURVES),
)}
# fmt: on


def aims(task: str) -> tuple[float, ...]:
    """Return the layer speed-ups that any table aims at on a task."""
    return tuple(sorted({target.aim(task) for target in TARGETS.values() if isinstance(target, PaperTable)}))


#: Backbones whose pretraining used a task's samples, by a part of the name without punctuation, from their model cards.
#: This one also lists SQuAD, from which QNLI is derived.
CONTAMINATED: Mapping[str, frozenset[str]] = {"allminilml6v2": frozenset({"mnli", "qqp", "qnli"})}

#: The paper's backbones, by the last part of their ids.
_BACKBONES = {
    "ALBERT-base": {"albert-base-v1", "albert-base-v2"},
    "BERT-base": {"bert-base-uncased", "bert-base-cased"},
    "ResNet-56": {"resnet56"},
}


def _plain(backbone: str) -> str:
    return "".join(c for c in backbone.lower() if c.isalnum())


def contaminated(backbone: str, task: str) -> bool:
    """Return whether a backbone's pretraining used a task's data."""
    return any(name in _plain(backbone) and task in tasks for name, tasks in CONTAMINATED.items())


def slug(backbone: str) -> str:
    """Return a backbone's short name for files and sweeps."""
    name = backbone.partition("@")[0].removeprefix("package:").removesuffix("/model").rstrip("/")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.rpartition("/")[2] or name).strip(".-") or "backbone"


def is_papers(backbone: str, papers: str) -> bool:
    """Return whether a backbone is the one of a paper's table, by the name of its folder or its id on the hub."""
    return slug(backbone).lower() in _BACKBONES[papers]
