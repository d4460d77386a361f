"""What is asked for, checked, and the sweeps that it takes: one for all methods, one more for each other share kept."""

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
from tune.reproduce.paper import OF_IMAGES, TABLE_1, TARGETS, Figure, Role, Row, Table, Target, slug
from tune.reproduce.results import VARIED
from tune.space import SweepSpec, make_space
from tune.space.file import canonical
from tune.store.folder import check_name
from tune.store.ledger import SweepState

#: The paper's number of seeds.
SEEDS = 5

#: The share that a reduced network keeps where a row names none.
KEEP = 0.5

#: Keys of a space that are the command's own.
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

#: Options of training that are the command's own, too.
_OWN_TRAINING = ("training.algorithm", "training.keep", "training.seed")


@dataclasses.dataclass(frozen=True)
class Request:
    """The command's options, as they were given."""

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

    def asks(self, method: str) -> bool:
        """Whether a method is to be trained and shown: every one, unless some are named."""
        return not self.methods or method in self.methods

    @property
    def again(self) -> str:
        """The command that goes on, without its budget."""
        default = {field.name: field.default for field in dataclasses.fields(self)}
        words = ["leebert-tune", "reproduce", self.target]
        for option, value in (
            ("task", self.task), ("backbone", self.backbone), ("pooling", self.pooling),
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
    """One sweep: its name, and the methods whose reduced networks keep this share."""

    name: str
    keep: float
    methods: tuple[str, ...]

    def kept(self, method: str) -> float | None:
        """The share that a method's cells are known by; None for one that reduces nothing."""
        return self.keep if uses_keep(method) else None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked request: the rows to be shown, the sweeps, and what each of these is like (but for its methods).

    kept: rows that the table has from an earlier command: shown again, not trained.
    """

    request: Request
    target: Target
    rows: tuple[Row, ...]
    parts: tuple[Part, ...]
    common: dict[str, Any]
    name: str
    kept: tuple[Row, ...] = ()

    @property
    def task_name(self) -> str:
        task = self.common["task"]
        return task if isinstance(task, str) else str(task["name"])

    @property
    def stem(self) -> Path:
        """The files of the table or figure, without their ending."""
        return self.request.out / f"{self.target.name}-{self.name.removeprefix('reproduce-')}"

    def keeping(self, methods: Iterable[str]) -> Plan:
        """The same plan, whose table also has a row for each of these methods."""
        rows = {row.method for row in self.rows}
        kept = (_own_row(self.target, method) for method in dict.fromkeys(methods) if method not in rows)
        return dataclasses.replace(self, kept=tuple(kept))

    def spec(self, part: Part, algorithms: Sequence[str], seeds: Sequence[int]) -> SweepSpec:
        """The space of a sweep."""
        raw = copy.deepcopy(self.common)  # what is set goes into its sections
        raw |= {"algorithms": list(algorithms), "seeds": list(seeds), "space": {}, "evaluate": "dev"}
        if any(uses_keep(method) for method in algorithms):
            raw["space"] = {"keep": [part.keep]}
        return make_space(raw, self.request.set_, "leebert-tune reproduce")

    def any_spec(self) -> SweepSpec:
        """A space of these options, for what all of them share."""
        return self.spec(Part(self.name, KEEP, ()), (UNIT,), (0,))


def uses_keep(method: str) -> bool:
    """Whether a method reduces its network by the option `keep`."""
    return applies("keep", method)


def make_plan(request: Request) -> Plan:
    """Check all that can be checked without data. Raises ConfigError."""
    if request.target not in TARGETS:
        raise ConfigError(
            f"reproduce {request.target}: unknown{nearest(request.target, TARGETS)}; known are {', '.join(TARGETS)}"
        )
    target = TARGETS[request.target]
    rows = _rows(target, request.methods)
    task = named_or_declared(request.task or (target.tasks[0] if isinstance(target, Figure) else ""))
    task_name = task if isinstance(task, str) else str(task.get("name", "task"))
    _check_kind(target, task_name, request.methods)
    for assignment in request.set_:
        path = assignment.partition("=")[0].strip()
        if canonical(path).split(".")[0] in _OWN or path in _OWN_TRAINING:
            raise ConfigError(
                f"--set {assignment}: `{path}` follows from the table and the other options (--methods, --seeds)"
            )
    if request.seeds is not None and request.seeds < 1:
        raise ConfigError(f"--seeds {request.seeds}: at least 1")
    _budget(request.budget)
    training = dict(OF_IMAGES) if task_name in IMAGE_TASKS else {}
    training |= _of_best(request.best) if request.best else {}
    common: dict[str, Any] = {
        "task": task,
        "backbone": request.backbone, "pooling": request.pooling, "folds": 1, "training": training,
        "storage": request.storage, "data": {"dir": request.data_dir} if request.data_dir else {},
        "tracking": {"uri": request.tracking_uri} if request.tracking_uri else {},
    }  # fmt: skip
    name = check_name(request.name or f"reproduce-{task_name}-{slug(request.backbone)}"[:90])
    shares: dict[float, list[str]] = {}
    for row in rows:
        if request.asks(row.method):
            methods = shares.setdefault(KEEP if row.keep is None else row.keep, [])
            if row.method not in methods:
                methods.append(row.method)
    parts = tuple(
        Part(name if keep == KEEP else f"{name}-keep-{keep:g}", keep, tuple(methods))
        for keep, methods in shares.items()
    )
    plan = Plan(request, target, rows, parts, common, name)
    plan.any_spec()  # all that is wrong with the options, at once
    return plan


def _check_kind(target: Target, task: str, methods: Sequence[str]) -> None:
    """Raises ConfigError for images where texts are expected and the other way round, and for curves of one exit."""
    if isinstance(target, Figure):
        if one := [m for m in methods if METHODS[m].one_exit]:
            raise ConfigError(
                f"--methods {one[0]}: has one exit, so no patience; {target.name} shows those with several"
            )
        return
    if (task in IMAGE_TASKS) != (target.tasks[0] in IMAGE_TASKS):
        fitting = [
            t.name
            for t in TARGETS.values()
            if isinstance(t, Table) and (t.tasks[0] in IMAGE_TASKS) == (task in IMAGE_TASKS)
        ]
        what = ("texts", "images") if task in IMAGE_TASKS else ("images", "texts")
        raise ConfigError(
            f"{target.name} is of {what[0]}, and {task} has {what[1]}: for it there is {', '.join(fitting)}"
        )


class Allowance:
    """What one run of the command may still use, over all of its sweeps: of `90m`, `1.5h` or `fold_epochs=40`."""

    def __init__(self, text: str | None) -> None:
        self.left = _budget(text)

    @property
    def used_up(self) -> bool:
        return any(value <= 0 for value in self.left.values())

    def beyond(self, used: SweepState) -> dict[str, Any]:
        """The budget of a sweep that has used some already."""
        return {what: value + _used(used)[what] for what, value in self.left.items()}

    def spend(self, before: SweepState, after: SweepState) -> None:
        """Take off what a sweep has used since."""
        for what in self.left:
            self.left[what] -= _used(after)[what] - _used(before)[what]


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
    raise ConfigError(f"--budget {text}: expected minutes, hours or epochs, such as 90m, 1.5h or fold_epochs=40")


def _rows(target: Target, methods: Sequence[str]) -> tuple[Row, ...]:
    """The target's rows, and one for each method asked for that it lacks."""
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"--methods {method}: unknown{nearest(method, METHODS)}; known are {', '.join(METHODS)}")
    return (
        *target.rows,
        *(_own_row(target, method) for method in dict.fromkeys(methods) if method not in target.methods),
    )


def _own_row(target: Target, method: str) -> Row:
    """A row of a method that a target lacks: under its own exit criterion, and compared as in table 1, with those of its
    criterion where a target compares criteria."""
    told = METHODS[method]
    roles = {row.method: row.role for row in TABLE_1.rows}
    unknown: Role = "variant" if told.group == "learned weights" else "rival"
    return Row(
        told.title, method, told.exits, keep=KEEP if uses_keep(method) else None, role=roles.get(method, unknown),
        group=told.exits if told.exits in {row.group for row in target.rows} else "",
    )  # fmt: skip


def _of_best(path: Path) -> dict[str, Any]:
    """The training options of a best file, for all methods."""
    from tune.models.best_file import read_best

    return read_best(path).config.training.model_dump(mode="json", exclude=VARIED)
