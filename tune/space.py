"""A search space: a YAML file becomes a checked, frozen :class:`SweepSpec`, or one error that lists all that is wrong.

search_spaces/README.md is the grammar. This module imports neither torch, ray, mlflow nor optuna, so that `--help` and
`--dry-run` answer at once.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from leebert.config import (
    COST_ONLY,
    AlgorithmName,
    Frozen,
    ModelConfig,
    Pooling,
    Subset,
    TrainConfig,
    applies,
    nearest,
)
from leebert.data.tasks import TASKS, OwnTask
from leebert.errors import ConfigError
from tune.values import (
    OPTIONS,
    Choice,
    Finding,
    Findings,
    Range,
    Scalar,
    Values,
    message,
    read_space,
    read_training,
    shown,
)

SearcherName = Literal["grid", "random", "tpe"]
PrunerName = Literal["none", "halving"]

#: Sections that say where and how far a sweep runs, not what it measures; a sweep may be resumed with others.
CIRCUMSTANCES = frozenset({"resources", "budget", "tracking", "storage", "keep_checkpoints"})


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")  # pydantic would take true for 1
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]


def _named(value: Any) -> Any:
    """The short form ``searcher: grid`` for ``searcher: {name: grid}``."""
    return {"name": value} if isinstance(value, str) else value


def _several(value: Any) -> Any:
    """A single name where a list of names is expected."""
    return [value] if isinstance(value, str) else value


class Data(Frozen):
    """Which rows, and which of them stay together in a fold."""

    dir: str | None = Field(default=None, description="Folder of the task's files.")
    subset: Subset | None = Field(default=None, description="A stratified part of the training split.")
    group_by: Annotated[tuple[str, ...], BeforeValidator(_several)] | None = Field(
        default=None,
        description="Text columns whose equal values stay on one side of a fold, `containing`, `none`, or None: the task's.",
    )


class SearcherSpec(Frozen):
    """Who proposes configurations."""

    name: SearcherName = Field(default="grid", description="All of the grid, seeded draws, or Optuna's TPE.")
    configurations: Whole | None = Field(
        default=None, ge=1, description="How many to propose; a grid has all of its own."
    )
    seed: Whole = Field(default=0, ge=0, description="Seed of the draws.")


class PrunerSpec(Frozen):
    """Who stops a configuration before its last cell."""

    name: PrunerName = Field(default="none", description="Nobody, or paired successive halving.")
    eta: Whole = Field(default=3, ge=2, description="One configuration in so many passes a rung.")
    min_epochs: Whole = Field(
        default=1, ge=1, description="Epochs before the first rung; the next are at eta, eta², … times that."
    )


class Resources(Frozen):
    """What one trial occupies, and how many run at once."""

    cpus: Number = Field(default=1.0, gt=0, description="CPU cores of one trial.")
    gpus: Number = Field(default=0.0, ge=0, description="GPUs of one trial; 0.5 lets two share one.")
    concurrent: Whole | None = Field(
        default=None, ge=1, description="Trials at once; None: as many as the resources allow."
    )
    hang_minutes: Number = Field(
        default=30.0, gt=0, description="A trial that asks for no batch in so long is ended and tried again."
    )


class Budget(Frozen):
    """When the sweep stops early; whichever comes first."""

    trials: Whole | None = Field(default=None, ge=1, description="Configurations started.")
    fold_epochs: Whole | None = Field(default=None, ge=1, description="Epochs of all cells together.")
    hours: Number | None = Field(default=None, gt=0, description="Hours by the clock.")
    gpu_hours: Number | None = Field(default=None, gt=0, description="Hours times the GPUs of the running trials.")


class Tracking(Frozen):
    """Where MLflow is."""

    uri: str | None = Field(
        default=None, description="Tracking server or folder; None: MLFLOW_TRACKING_URI, else MLflow's default."
    )
    experiment: str | None = Field(default=None, description="Name of the experiment; None: chosen by the sweep.")


def _read_task(raw: Any) -> str | dict[str, Any]:
    if isinstance(raw, str):
        if raw not in TASKS:
            raise ValueError(
                f"should be one of {', '.join(TASKS)}{nearest(raw, TASKS)}, or a mapping that declares a task"
            )
        return raw
    if not isinstance(raw, Mapping):
        raise ValueError("should be the name of a task, or a mapping that declares one")
    try:
        OwnTask.model_validate(raw)
    except ValidationError as error:
        raise Findings(finding for details in error.errors() for finding in _findings(details, "task")) from None
    return dict(raw)


def _read_seeds(raw: Any) -> tuple[int, ...]:
    if isinstance(raw, int) and not isinstance(raw, bool):
        if raw < 1:
            raise ValueError("should be at least 1 seed, or a list of seeds")
        return tuple(range(raw))
    if not isinstance(raw, list | tuple) or not raw:
        raise ValueError("should be a number of seeds, or a list of at least one")
    wrong = [seed for seed in raw if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0]
    twice = sorted({seed for seed in raw if seed not in wrong and list(raw).count(seed) > 1})
    findings = [Finding("", shown(seed), "should be a whole number of at least 0") for seed in wrong]
    findings += [Finding("", shown(seed), "is in the list twice") for seed in twice]
    if findings:
        raise Findings(findings)
    return tuple(raw)


def _plain_space(space: Mapping[str, Values]) -> dict[str, Any]:
    return {option: values.plain() for option, values in space.items()}


class SweepSpec(Frozen):
    """One sweep: which configurations, on which cells, of which data, with what."""

    task: Annotated[str | dict[str, Any], PlainValidator(_read_task)] = Field(
        description="One of the paper's seven tasks, or a mapping that declares an own one."
    )
    backbone: str = Field(
        min_length=1, description="A hub id (with optional @revision), a folder, or package:NAME/path."
    )
    pooling: Pooling = Field(
        default="pooler", description="What the exits see: shared pretrained pooler, CLS state, or mean."
    )
    max_length: Whole = Field(default=128, ge=4, description="Tokens per row; longer rows are cut and counted.")
    algorithms: Annotated[tuple[AlgorithmName, ...], BeforeValidator(_several)] = Field(
        default=("clo-v2",), description="How ω is learned; each is combined with the options that it uses."
    )
    space: Annotated[dict[str, Values], PlainValidator(read_space), PlainSerializer(_plain_space)] = Field(
        description="Option of TrainConfig → a list, a range or a log range."
    )
    training: Annotated[dict[str, Scalar], PlainValidator(read_training)] = Field(
        default_factory=dict, description="Option of TrainConfig → the one value that every configuration has."
    )
    data: Data = Field(default_factory=Data)
    folds: Whole = Field(default=5, ge=1, description="k of the cross-validation; 1 is one fixed hold-out of 10 %.")
    fold_seed: Whole = Field(default=0, ge=0, description="Alone fixes the folds.")
    seeds: Annotated[tuple[int, ...], BeforeValidator(_read_seeds)] = Field(
        default=(0,), description="Seeds of the training; a number n means 0 to n - 1."
    )
    searcher: Annotated[SearcherSpec, BeforeValidator(_named)] = Field(default_factory=SearcherSpec)
    pruner: Annotated[PrunerSpec, BeforeValidator(_named)] = Field(default_factory=PrunerSpec)
    resources: Resources = Field(default_factory=Resources)
    budget: Budget = Field(default_factory=Budget)
    tracking: Tracking = Field(default_factory=Tracking)
    storage: str | None = Field(
        default=None, description="Where sweeps are kept; None: LEEBERT_STORAGE, else ./sweeps."
    )
    keep_checkpoints: bool = Field(default=False, description="Keep a cell's checkpoint after its end.")

    @field_validator("algorithms")
    @classmethod
    def _distinct(cls, algorithms: tuple[str, ...]) -> tuple[str, ...]:
        if not algorithms:
            raise ValueError("should have at least one algorithm")
        twice = sorted({name for name in algorithms if algorithms.count(name) > 1})
        if twice:
            raise Findings(Finding("", shown(name), "is in the list twice") for name in twice)
        return algorithms

    @field_validator("space")
    @classmethod
    def _not_empty(cls, space: dict[str, Values]) -> dict[str, Values]:
        if not space:
            raise ValueError("should have at least one option")
        return space

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> SweepSpec:
        broken: frozenset[str] = (info.context or {}).get("broken", frozenset())
        findings = [f for reads, check in _CHECKS if not broken.intersection(reads) for f in check(self)]
        if findings:
            raise Findings(findings)
        return self

    @property
    def task_name(self) -> str:
        """The task's name, also where the file declares the task."""
        return self.task if isinstance(self.task, str) else str(self.task["name"])

    @property
    def model(self) -> ModelConfig:
        """Which encoder, and what its exits see."""
        return ModelConfig(backbone=self.backbone, pooling=self.pooling, max_length=self.max_length)

    @property
    def max_epochs(self) -> int:
        """The schedule's horizon where it is the same for all configurations; the largest where it is searched."""
        if "max_epochs" in self.space:
            values = self.space["max_epochs"]
            return int(values.high) if isinstance(values, Range) else max(int(v) for v in values.values)
        return int(self.training.get("max_epochs", TrainConfig.model_fields["max_epochs"].default))

    def train_config(self, values: Mapping[str, Any], seed: int = 0) -> TrainConfig:
        """How one configuration is trained: its values over the fixed options of `training`."""
        return TrainConfig.model_validate({**self.training, **values, "seed": seed})

    def cells(self) -> tuple[tuple[int, int], ...]:
        """(seed, fold) of every cell, in the order in which every trial takes them: seed by seed, fold by fold.

        The order is the same for all, so that any two configurations share the cells of the one that got less far.
        """
        return tuple(itertools.product(self.seeds, range(self.folds)))

    @property
    def size(self) -> int | None:
        """How many effective configurations there are; None where an option is a continuum."""
        total = 0
        for algorithm in self.algorithms:
            counts = [values.count for option, values in self.space.items() if applies(option, algorithm)]
            if None in counts:
                return None
            total += math.prod(count for count in counts if count is not None)
        return total

    @property
    def limit(self) -> int | None:
        """How many configurations a drawing searcher proposes: its own number, else the budget's; None: no limit."""
        return self.searcher.configurations or self.budget.trials

    @property
    def planned(self) -> int | None:
        """How many configurations are to run if no other budget ends the sweep first; None if nothing bounds them."""
        bounds = (self.size, self.searcher.configurations, self.budget.trials)
        return min((bound for bound in bounds if bound is not None), default=None)

    def configurations(self) -> Iterator[dict[str, Any]]:
        """Every effective configuration once, in a fixed order; a :class:`ConfigError` where an option is a continuum.

        The algorithms alternate innermost, and what few of them use changes fastest: wherever a sweep stops, nearly
        every configuration has its partners under the other algorithms.
        """
        options = sorted(self.space, key=lambda option: -sum(applies(option, a) for a in self.algorithms))
        lists = [self.space[option].listed() for option in options]
        for option, listed in zip(options, lists, strict=True):
            if listed is None:
                raise ConfigError(f"space.{option}: {self.space[option].plain()}: has no end of values; use a list")
        seen: set[str] = set()
        for combination in itertools.product(*(listed for listed in lists if listed is not None)):
            chosen = dict(zip(options, combination, strict=True))
            for algorithm in self.algorithms:
                values = self.configuration(algorithm, chosen)
                identity = config_id(values)
                if identity not in seen:
                    seen.add(identity)
                    yield values

    def configuration(self, algorithm: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """An effective configuration: the algorithm and those chosen values that it uses, in the file's order."""
        return effective({"algorithm": algorithm, **{option: chosen[option] for option in self.space}})

    def cell_updates(self, values: Mapping[str, Any], train_rows: int) -> int:
        """θ updates of one cell without early stopping: epochs × ⌊(training rows of the fold) / 2B⌋."""
        config = self.train_config(values)
        rows = min(train_rows, self.data.subset.rows) if self.data.subset else train_rows
        kept, of = (self.folds - 1, self.folds) if self.folds > 1 else (9, 10)
        return config.max_epochs * (rows * kept // (of * 2 * config.batch_size))

    def theta_updates(self, train_rows: int) -> int:
        """θ updates of the whole sweep on `train_rows` rows (held-out ones included), without early stops or pruning.

        A count for a grid. Where configurations are drawn, what a uniform draw costs on average times their number.
        A fold may differ by a few rows, which changes a cell by one update an epoch at most.
        """
        planned = self.planned
        if planned is None:
            raise ConfigError("nothing bounds the number of configurations, so their cost is unknown")
        if self.searcher.name == "grid":
            costs = [self.cell_updates(v, train_rows) for v in itertools.islice(self.configurations(), planned)]
            return len(self.cells()) * sum(costs)
        costly: dict[str, tuple[Scalar, ...]] = {
            o: self.space[o].listed() or () for o in ("batch_size", "max_epochs") if o in self.space
        }
        drawn = [dict(zip(costly, combination, strict=True)) for combination in itertools.product(*costly.values())]
        mean = sum(self.cell_updates(v, train_rows) for v in drawn) / len(drawn)
        return round(len(self.cells()) * planned * mean)

    @property
    def digest(self) -> str:
        """Digest of what is measured and how it is searched: a sweep may only be resumed with a file of equal digest.

        Where it runs (resources, tracking, storage, the data's folder, options that only change memory) and how long
        (budget, number of configurations) are left out, so that a sweep can be moved and extended.
        """
        content = self.model_dump(mode="json", exclude=set(CIRCUMSTANCES))
        del content["data"]["dir"], content["searcher"]["configurations"]
        content["training"] = {o: value for o, value in content["training"].items() if o not in COST_ONLY}
        if isinstance(content["task"], dict):
            content["task"].pop("files", None)  # the data's fingerprint is compared anyway
        return _digest(content)[:16]


def effective(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without the options that their algorithm doesn't use, so that equal trainings are equal values."""
    return {
        option: value
        for option, value in values.items()
        if option == "algorithm" or applies(option, values["algorithm"])
    }


def config_id(values: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that name an effective configuration, the same in every sweep and on every machine."""
    floats = {option for option, field in TrainConfig.model_fields.items() if field.annotation is float}
    canonical = {o: float(v) if o in floats else v for o, v in effective(values).items()}
    return _digest(canonical)[:8]


def _digest(content: Mapping[str, Any]) -> str:
    # json writes a float as its repr: the shortest digits that read back as the same float.
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def resolved_yaml(spec: SweepSpec) -> str:
    """The whole of a sweep as YAML, defaults and overrides included; reading it gives an equal :class:`SweepSpec`."""
    yaml: Any = YAML(typ="safe", pure=True)  # its options have no types
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 120
    out = io.StringIO()
    yaml.dump(spec.model_dump(mode="json", exclude_none=True), out)
    return out.getvalue()


# What no single key shows: each check names the keys that it reads, and is left out while one of these is wrong itself.


def _in_both(spec: SweepSpec) -> Iterator[Finding]:
    for option in spec.space.keys() & spec.training.keys():
        yield Finding(f"training.{option}", shown(spec.training[option]), "is also in `space`: keep one of the two")


def _unused(section: str, spec: SweepSpec) -> Iterator[Finding]:
    options = _plain_space(spec.space) if section == "space" else spec.training
    for option, value in options.items():
        if not any(applies(option, algorithm) for algorithm in spec.algorithms):
            users = ", ".join(name for name in get_args(AlgorithmName) if applies(option, name))
            expected = f"none of the algorithms listed uses it, only {users}"
            yield Finding(f"{section}.{option}", shown(value), expected)


def _lists_in_a_grid(spec: SweepSpec) -> Iterator[Finding]:
    if spec.searcher.name == "grid":
        for option, values in spec.space.items():
            if isinstance(values, Range):
                expected = "a grid needs lists; ranges are for the searchers random and tpe"
                yield Finding(f"space.{option}", shown(values.plain()), expected)
        if spec.searcher.configurations is not None:
            expected = "a grid runs all its configurations: use `budget.trials` to stop earlier"
            yield Finding("searcher.configurations", shown(spec.searcher.configurations), expected)


def _bounded(spec: SweepSpec) -> Iterator[Finding]:
    ranges = [option for option, values in spec.space.items() if isinstance(values, Range)]
    if spec.searcher.name != "grid" and ranges and spec.limit is None:
        expected = f"needs `configurations` (or `budget.trials`): the range of {', '.join(ranges)} has no natural end"
        yield Finding("searcher", shown(spec.searcher.name), expected)


def _prunable(spec: SweepSpec) -> Iterator[Finding]:
    if spec.pruner.name == "none":
        return
    name = shown(spec.pruner.name)
    if len(spec.cells()) == 1:
        expected = "has nothing to prune: folds × seeds is one cell; use more folds or seeds, or `pruner: none`"
        yield Finding("pruner", name, expected)
    if "max_epochs" in spec.space:
        expected = f"the pruner {spec.pruner.name} compares epochs of equal schedules: move it to `training`"
        yield Finding("space.max_epochs", shown(spec.space["max_epochs"].plain()), expected)
    elif spec.pruner.min_epochs >= (total := len(spec.cells()) * spec.max_epochs):
        expected = f"should be below {total}, the epochs of a configuration, else nothing is ever pruned"
        yield Finding("pruner.min_epochs", shown(spec.pruner.min_epochs), expected)


def _payable(spec: SweepSpec) -> Iterator[Finding]:
    if spec.budget.gpu_hours is not None and not spec.resources.gpus:
        yield Finding("budget.gpu_hours", shown(spec.budget.gpu_hours), "never runs out with `resources.gpus` at 0")


_CHECKS: tuple[tuple[tuple[str, ...], Callable[[SweepSpec], Iterator[Finding]]], ...] = (
    (("space", "training"), _in_both),
    (("space", "algorithms"), partial(_unused, "space")),
    (("training", "algorithms"), partial(_unused, "training")),
    (("space", "searcher"), _lists_in_a_grid),
    (("space", "searcher", "budget"), _bounded),
    (("space", "training", "pruner", "folds", "seeds"), _prunable),
    (("budget", "resources"), _payable),
)

#: Stand-ins for required keys that are missing or wrong, so that the checks of the others can still run.
_STAND_INS: dict[str, Any] = {"task": "mrpc", "backbone": "?", "space": {"batch_size": Choice((32,))}}


def load_space(path: str | Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """The sweep that a file describes, with ``key=value`` overrides (dotted keys, YAML values).

    Everything that is wrong is in one :class:`ConfigError`, a line ``file: key: value: what was expected`` each.
    """
    raw, findings = _read_yaml(_text(Path(path)), str(path))
    findings += _override(raw, overrides)
    spec, more = _validate(raw)
    if spec is None or findings:
        raise ConfigError("\n".join(finding.line(str(path)) for finding in (*findings, *more)))
    return spec


def _validate(raw: Mapping[str, Any]) -> tuple[SweepSpec | None, list[Finding]]:
    try:
        return SweepSpec.model_validate(raw), []
    except ValidationError as error:
        findings = [finding for details in error.errors() for finding in _findings(details)]
        broken = frozenset(str(details["loc"][0]) for details in error.errors() if details["loc"])
    if broken:  # the checks across keys haven't run: run those that the sound keys allow
        sound = {key: value for key, value in raw.items() if str(key) not in broken}
        try:
            SweepSpec.model_validate({**_STAND_INS, **sound}, context={"broken": broken})
        except ValidationError as error:
            findings += [finding for details in error.errors() for finding in _findings(details)]
    return None, findings


def _findings(details: Any, inside: str = "") -> list[Finding]:
    """One error of pydantic, for a model that stands under the key `inside`, as findings."""
    *parents, last = [str(part) for part in details["loc"]] or [""]
    key, value = _dotted(*parents, last), shown(details["input"])
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, Findings):
        return [finding.under(key) for finding in cause.findings]
    if details["type"] == "extra_forbidden":
        return [Finding(key, value, f"unknown key{nearest(last, _KEYS.get(_dotted(inside, *parents), ()))}")]
    if details["type"] == "missing":
        return [Finding(key, "missing", "is required")]
    return [Finding(key, value, message(details))]


def _dotted(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _keys(model: type[BaseModel], prefix: str = "") -> dict[str, tuple[str, ...]]:
    """The keys below each dotted prefix."""
    keys = {prefix: tuple(model.model_fields)}
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys |= _keys(kind, _dotted(prefix, name))
    return keys


_KEYS: dict[str, tuple[str, ...]] = {
    **_keys(SweepSpec),
    "space": OPTIONS,
    "training": OPTIONS,
    **_keys(OwnTask, "task"),
    "task.files": ("train", "dev"),
}


def _override(raw: dict[str, Any], overrides: Sequence[str]) -> list[Finding]:
    """Write ``key=value`` overrides into the file's mapping; returns what is wrong with them."""
    findings: list[Finding] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        path = path.strip()
        wrong = _unknown_path(path)
        if not equals:
            findings.append(Finding("--set", shown(override), "should be key=value"))
        elif wrong:
            findings.append(Finding("--set", shown(override), wrong))
        else:
            try:
                value = _yaml().load(text)
                _put(raw, path.split("."), value)
            except YAMLError as error:
                findings.append(Finding("--set", shown(override), f"is no YAML: {_problem(error)[1]}"))
            except TypeError as error:
                findings.append(Finding("--set", shown(override), str(error)))
    return findings


def _unknown_path(path: str) -> str:
    """Why a dotted path names no key; an empty string where it does."""
    parts = path.split(".")
    for depth, part in enumerate(parts):
        prefix = ".".join(parts[:depth])
        if prefix not in _KEYS:
            return f"unknown key: `{prefix}` has no keys below it"
        if part not in _KEYS[prefix]:
            tails = [_dotted(prefix, key) for key in _KEYS[prefix]]
            return f"unknown key{nearest(path, tails) or nearest(path, _leaves())}"
    return ""


def _leaves() -> list[str]:
    return [_dotted(prefix, key) for prefix, keys in _KEYS.items() for key in keys]


def _put(raw: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    target = raw
    for depth, part in enumerate(parts[:-1]):
        below = target.get(part)
        if below is None:
            below = {}
        elif part in ("searcher", "pruner"):
            below = _named(below)
        if not isinstance(below, dict):
            raise TypeError(f"`{'.'.join(parts[: depth + 1])}` is {shown(below)}, not a mapping with keys")
        target[part] = below
        target = below
    target[parts[-1]] = value


def _yaml() -> YAML:
    """A reader of YAML 1.2: `1e-5` is a number, `on` a text; the safe one, which builds plain values only."""
    return YAML(typ="safe", pure=True)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent
        names = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        raise ConfigError(f"{path}: no such file{nearest(path.name, names)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as text in UTF-8: {error}") from None


def _read_yaml(text: str, where: str) -> tuple[dict[str, Any], list[Finding]]:
    """The mapping that a text holds, and its duplicate keys: all of them, where the parser would stop at the first."""
    yaml = _yaml()
    yaml.allow_duplicate_keys = True
    try:
        node = _yaml().compose(text)
        content = yaml.load(text)
    except YAMLError as error:
        line, problem = _problem(error)
        raise ConfigError(f"{where}: line {line}: {problem}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: {shown(content)}: should be a mapping, see search_spaces/README.md")
    try:
        return _unshared(content), list(_duplicates(node))
    except RecursionError:
        raise ConfigError(f"{where}: an alias (`*name`) stands inside its own anchor (`&name`)") from None


def _unshared(value: Any) -> Any:
    """A copy in which the aliases of one anchor are separate values: an override of one must not reach the others."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _problem(error: YAMLError) -> tuple[int, str]:
    """Line and description of what the parser stopped at."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        return error.problem_mark.line + 1, ", ".join(filter(None, (error.context, error.problem)))
    return 1, str(error).splitlines()[0]


def _duplicates(node: Node | None, prefix: str = "") -> Iterator[Finding]:
    if isinstance(node, SequenceNode):
        for item in node.value:
            yield from _duplicates(item, prefix)
    if isinstance(node, MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name, line = _dotted(prefix, str(key.value)), key.start_mark.line + 1
            if name in first:
                yield Finding(name, f"line {line}", f"the key is there already, in line {first[name]}")
            first.setdefault(name, line)
            yield from _duplicates(value, name)
