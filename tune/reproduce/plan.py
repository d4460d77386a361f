"""Check a request and plan its sweeps: one for all methods, and one per further share that reduced networks keep."""

from __future__ import annotations

import copy
import dataclasses
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from leebert.data.tasks import named_or_declared
from leebert.errors import ConfigError, nearest
from leebert.images.tasks import IMAGE_TASKS
from leebert.methods import METHODS, UNIT, applies
from tune.reproduce.paper import (
    OF_IMAGES,
    TABLE_1,
    TABLE_3,
    TARGETS,
    PaperFigure,
    PaperRow,
    PaperTable,
    PaperTarget,
    Role,
    slug,
)
from tune.reproduce.results import VARIED
from tune.space import SweepSpec, make_space
from tune.space.file import canonical
from tune.store.folder import check_name
from tune.store.ledger import SweepState

#: The paper's number of seeds.
SEEDS = 5

#: The value of `--tasks` for all tasks of the paper's table.
ALL = "all"

#: The share that a reduced network keeps where a row names none.
KEEP = 0.5

#: Keys of a space that the command sets itself.
_OWN = (
    "task",
    "backbone",
    "pooling",
    "algorithms",
    "space",
    "seeds",
    "folds",
    "searcher",
    "pruner",
    "evaluate",
    "storage",
)

#: Training options that the command sets itself.
_OWN_TRAINING = ("training.algorithm", "training.keep", "training.seed")


@dataclasses.dataclass(frozen=True)
class ReproductionRequest:
    """The options of `leebert-tune reproduce`, with the meaning, defaults and names of its command line (`set_` is `--set`)."""

    target: str
    task: str | None
    backbone: str
    pooling: str = "pooler"
    methods: tuple[str, ...] = ()
    seeds: int | None = None
    budget: str | None = None
    set_: tuple[str, ...] = ()
    best: Path | None = None
    data_dir: str | None = None
    out: Path = Path("reproduced")
    name: str | None = None
    storage: str | None = None
    tracking_uri: str | None = None
    address: str | None = None
    device: str = "auto"
    tasks: tuple[str, ...] = ()

    def includes(self, method: str) -> bool:
        """Return whether a method is trained and shown: every one, unless `methods` names some."""
        return not self.methods or method in self.methods

    @property
    def continue_command(self) -> str:
        """The command that continues the request, without its budget."""
        default = {field.name: field.default for field in dataclasses.fields(self)}
        words = ["leebert-tune", "reproduce", self.target]
        for option, value in (
            ("task", self.task), ("tasks", ",".join(self.tasks) or ()), ("backbone", self.backbone), ("pooling", self.pooling),
            ("methods", ",".join(self.methods) or ()), ("seeds", self.seeds), ("best", self.best),
            ("data_dir", self.data_dir), ("out", self.out), ("name", self.name), ("storage", self.storage),
            ("tracking_uri", self.tracking_uri), ("address", self.address), ("device", self.device),
        ):  # fmt: skip
            if option in ("task", "backbone") or value != default[option]:
                words += [f"--{option.replace('_', '-')}", str(value)] if value is not None else []
        for assignment in self.set_:
            words += ["--set", assignment]
        return shlex.join(words)


@dataclasses.dataclass(frozen=True)
class Part:
    """The sweeps of one share kept.

    Attributes:
        name: The name of the first sweep.
        keep: The share of layers that reduced networks keep.
        methods: The methods.
    """

    name: str
    keep: float
    methods: tuple[str, ...]

    def kept(self, method: str) -> float | None:
        """Return the share that a method's network keeps; None for a method that does not reduce it."""
        return self.keep if uses_keep(method) else None


@dataclasses.dataclass(frozen=True)
class ReproductionPlan:
    """A checked request.

    Attributes:
        request: The request.
        target: The paper's table or figure.
        rows: The rows to show.
        parts: The sweeps.
        common: The keys of a space that all sweeps share.
        name: The name of the results file and of the first sweep.
        kept: Rows that an earlier command added to the table: shown, not trained.
    """

    request: ReproductionRequest
    target: PaperTarget
    rows: tuple[PaperRow, ...]
    parts: tuple[Part, ...]
    common: dict[str, Any]
    name: str
    kept: tuple[PaperRow, ...] = ()

    @property
    def task_name(self) -> str:
        task = self.common["task"]
        return task if isinstance(task, str) else str(task["name"])

    @property
    def stem(self) -> Path:
        """The path of the table's or figure's files, without suffix."""
        return self.request.out / f"{self.target.name}-{self.name.removeprefix('reproduce-')}"

    def keeping(self, methods: Iterable[str]) -> ReproductionPlan:
        """Return the plan with a further row for each of these methods that its table lacks."""
        rows = {row.method for row in self.rows}
        kept = (_own_row(self.target, method) for method in dict.fromkeys(methods) if method not in rows)
        return dataclasses.replace(self, kept=tuple(kept))

    def spec(self, part: Part, algorithms: Sequence[str], seeds: Sequence[int]) -> SweepSpec:
        """Make the space of one of the plan's sweeps.

        Args:
            part: The share of layers that its shortened networks keep.
            algorithms: Its methods.
            seeds: Its seeds.

        Returns:
            The validated space.
        """
        raw = copy.deepcopy(self.common)  # `--set` changes its sections
        raw |= {"algorithms": list(algorithms), "seeds": list(seeds), "space": {}, "evaluate": "dev"}
        if any(uses_keep(method) for method in algorithms):
            raw["space"] = {"keep": [part.keep]}
        return make_space(raw, self.request.set_, "leebert-tune reproduce")

    def any_spec(self) -> SweepSpec:
        """Make a space with one method, for what all sweeps share."""
        return self.spec(Part(self.name, KEEP, ()), (UNIT,), (0,))


def uses_keep(method: str) -> bool:
    """Return whether a method reduces its network by the option `keep`."""
    return applies("keep", method)


def tasks_of(target: str, text: str) -> tuple[str, ...]:
    """Read the value of `--tasks`.

    Args:
        target: The table's name.
        text: `all`, or names of tasks separated by commas.

    Returns:
        The tasks.

    Raises:
        ConfigError: The target is no table of scores, or a task is not in the paper's table.
    """
    target_table = TARGETS.get(target)
    tables = [name for name, one in TARGETS.items() if isinstance(one, PaperTable) and one.kind == "scores"]
    if not isinstance(target_table, PaperTable) or target_table.kind != "scores":
        raise ConfigError(f"--tasks: {target} is of one task; give --task NAME, or one of {', '.join(tables)}")
    if text.strip() == ALL:
        return target_table.tasks
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",")))
    for name in names:
        if name not in target_table.tasks:
            raise ConfigError(
                f"--tasks {text}: {target} has no task {name!r}{nearest(name, target_table.tasks)}; its tasks are "
                f"{', '.join(target_table.tasks)}, or {ALL}"
            )
    return names


def make_plan(request: ReproductionRequest) -> ReproductionPlan:
    """Check a request as far as possible without data.

    Args:
        request: The request.

    Returns:
        The plan.

    Raises:
        ConfigError: An option is wrong; the message names it.
    """
    if request.target not in TARGETS:
        every = [*TARGETS, TABLE_3]
        raise ConfigError(
            f"reproduce {request.target}: unknown{nearest(request.target, every)}; choose one of {', '.join(every)}"
        )
    target = TARGETS[request.target]
    rows = _rows(target, request.methods)
    task = named_or_declared(request.task or (target.tasks[0] if isinstance(target, PaperFigure) else ""))
    task_name = task if isinstance(task, str) else str(task.get("name", "task"))
    _check_kind(target, task_name, request.methods)
    _check_options(request)
    training = dict(OF_IMAGES) if task_name in IMAGE_TASKS else {}
    training |= _of_best(request.best) if request.best else {}
    common: dict[str, Any] = {
        "task": task,
        "backbone": request.backbone, "pooling": request.pooling, "folds": 1, "training": training,
        "storage": request.storage, "data": {"dir": request.data_dir} if request.data_dir else {},
        "tracking": {"uri": request.tracking_uri} if request.tracking_uri else {},
    }  # fmt: skip
    name = check_name(request.name or f"reproduce-{task_name}-{slug(request.backbone)}"[:90])
    plan = ReproductionPlan(request, target, rows, _parts(name, request, rows), common, name)
    plan.any_spec()  # reports all errors of the options at once
    return plan


def _check_options(request: ReproductionRequest) -> None:
    """Raise ConfigError for `--set`, `--seeds` or `--budget` that the command can't take."""
    for assignment in request.set_:
        path = assignment.partition("=")[0].strip()
        if canonical(path).split(".")[0] in _OWN or path in _OWN_TRAINING:
            raise ConfigError(
                f"--set {assignment}: `{path}` follows from the table and the other options (--methods, --seeds); remove it"
            )
    if request.seeds is not None and request.seeds < 1:
        raise ConfigError(f"--seeds {request.seeds}: give at least 1")
    _budget(request.budget)


def _parts(name: str, request: ReproductionRequest, rows: Sequence[PaperRow]) -> tuple[Part, ...]:
    """Group the requested methods by the share that their networks keep."""
    shares: dict[float, list[str]] = {}
    for row in rows:
        if request.includes(row.method):
            methods = shares.setdefault(KEEP if row.keep is None else row.keep, [])
            if row.method not in methods:
                methods.append(row.method)
    return tuple(
        Part(name if keep == KEEP else f"{name}-keep-{keep:g}", keep, tuple(methods))
        for keep, methods in shares.items()
    )


def _check_kind(target: PaperTarget, task: str, methods: Sequence[str]) -> None:
    """Raise ConfigError for a task of the wrong kind (texts or images), and for a curve of a method with one exit."""
    if isinstance(target, PaperFigure):
        if one := [m for m in methods if METHODS[m].one_exit]:
            raise ConfigError(
                f"--methods {one[0]}: it has a single exit and no patience; {target.name} shows methods with several exits"
            )
        return
    if (task in IMAGE_TASKS) != (target.tasks[0] in IMAGE_TASKS):
        fitting = [
            t.name
            for t in TARGETS.values()
            if isinstance(t, PaperTable) and (t.tasks[0] in IMAGE_TASKS) == (task in IMAGE_TASKS)
        ]
        kinds = ("texts", "images") if task in IMAGE_TASKS else ("images", "texts")
        raise ConfigError(f"{target.name} has {kinds[0]}, and {task} has {kinds[1]}; choose {', '.join(fitting)}")


class Allowance:
    """The remaining budget of one command over all of its sweeps, from `90m`, `1.5h` or `fold_epochs=40`."""

    def __init__(self, text: str | None) -> None:
        self.remaining = _budget(text)

    @property
    def used_up(self) -> bool:
        return any(value <= 0 for value in self.remaining.values())

    def beyond(self, used: SweepState) -> dict[str, Any]:
        """Return the budget keys of a sweep, which has used some budget already."""
        return {unit: value + _used(used)[unit] for unit, value in self.remaining.items()}

    def spend(self, before: SweepState, after: SweepState) -> None:
        """Subtract what a sweep has used between two states."""
        for unit in self.remaining:
            self.remaining[unit] -= _used(after)[unit] - _used(before)[unit]


def _used(state: SweepState) -> dict[str, Any]:
    running = state.session[1] - state.session[0] if state.session else 0.0
    return {"hours": (state.elapsed + running) / 3600, "fold_epochs": state.fold_epochs}


def _budget(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    if time := re.fullmatch(r"(\d+(?:\.\d+)?)([mh])", text):
        hours = float(time[1]) / (60 if time[2] == "m" else 1)
        if hours > 0:
            return {"hours": hours}
    elif (epochs := re.fullmatch(r"fold_epochs=(\d+)", text)) and int(epochs[1]):
        return {"fold_epochs": int(epochs[1])}
    raise ConfigError(f"--budget {text}: not minutes, hours or epochs; write, for example, 90m, 1.5h or fold_epochs=40")


def _rows(target: PaperTarget, methods: Sequence[str]) -> tuple[PaperRow, ...]:
    """Return the target's rows, and one for each requested method that it lacks."""
    for method in methods:
        if method not in METHODS:
            raise ConfigError(
                f"--methods {method}: unknown method{nearest(method, METHODS)}; choose from {', '.join(METHODS)}"
            )
    return (
        *target.rows,
        *(_own_row(target, method) for method in dict.fromkeys(methods) if method not in target.methods),
    )


def _own_row(target: PaperTarget, method: str) -> PaperRow:
    """Make the row of a method that a target lacks.

    It has the method's own exit criterion and its role of table 1; where the target compares criteria, it joins the group
    of its criterion.
    """
    entry = METHODS[method]
    roles = {row.method: row.role for row in TABLE_1.rows}
    unknown: Role = "variant" if entry.group == "learned weights" else "baseline"
    return PaperRow(
        entry.title, method, entry.exits, keep=KEEP if uses_keep(method) else None, role=roles.get(method, unknown),
        group=entry.exits if entry.exits in {row.group for row in target.rows} else "",
    )  # fmt: skip


def _of_best(path: Path) -> dict[str, Any]:
    """Read the training options of a best file, which apply to all methods."""
    from tune.models.best_file import read_best

    return read_best(path).config.training.model_dump(mode="json", exclude=VARIED)
