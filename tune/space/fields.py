"""The keys of a search space, each valid by itself, and the space's configurations."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from leebert.config import COST_ONLY, LARGEST, AlgorithmName, Frozen, ModelConfig, Pooling, TrainConfig
from leebert.data.tasks import NO_REGRESSION, TASKS, OwnTask, canonical_name, is_regression
from leebert.errors import ConfigError, nearest
from leebert.findings import Finding, Findings, findings_of, keys_below, shown
from leebert.images.tasks import IMAGE_TASKS
from leebert.methods import applies, most_epochs
from leebert.training_options import canonical, train_config
from tune.space.plugins import Whole
from tune.space.sections import Budget, Data, PrunerSpec, Resources, SearcherSpec, Tracking, expand_name, several
from tune.space.values import Range, Scalar, Values, read_space, read_training

#: Sections on place and duration of a sweep, not on its results; a sweep can resume with other values.
CIRCUMSTANCES = frozenset({"resources", "budget", "tracking", "storage", "keep_checkpoints"})


#: Options that older versions wrote into every space, whatever its searcher and pruner; digests always include them.
_ONCE_WRITTEN: Mapping[str, Mapping[str, Any]] = {
    "searcher": {"names": ("grid", "random", "tpe"), "defaults": {"seed": 0}},
    "pruner": {"names": ("none", "racing", "halving"), "defaults": {"alpha": 0.1, "eta": 3, "min_epochs": 1}},
}

#: The largest number of seeds and of folds.
MOST_SEEDS = MOST_FOLDS = 10_000


def _read_task(raw: Any) -> str | dict[str, Any]:
    if isinstance(raw, str):
        names = (*TASKS, *IMAGE_TASKS)
        if is_regression(raw):
            raise ValueError(f"is a regression: {NO_REGRESSION}")
        if (name := canonical_name(raw)) not in names:
            raise ValueError(
                f"should be one of {', '.join(names)}{nearest(raw.lower(), names)}, or a mapping that declares a task"
            )
        return name
    if not isinstance(raw, Mapping):
        raise ValueError("should be the name of a task, or a mapping that declares one")
    try:
        OwnTask.model_validate(raw)
    except ValidationError as error:
        keys = keys_below(OwnTask, "task")
        raise Findings(findings_of(error, keys, "task")) from None
    return dict(raw)


def _read_seeds(raw: Any) -> tuple[int, ...]:
    if isinstance(raw, int) and not isinstance(raw, bool):
        if raw < 1:
            raise ValueError("should be at least 1 seed, or a list of seeds")
        if raw > MOST_SEEDS:
            raise ValueError(f"should be at most {MOST_SEEDS} seeds; a list names certain ones: [{shown(raw)}]")
        return tuple(range(raw))
    if not isinstance(raw, list | tuple) or not raw:
        raise ValueError("should be a number of seeds, or a list of at least one")
    wrong = [seed for seed in raw if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0]
    twice = sorted({seed for seed in raw if seed not in wrong and list(raw).count(seed) > 1})
    large = [seed for seed in raw if seed not in wrong and seed > LARGEST]
    findings = [Finding("", shown(seed), "should be a whole number of at least 0") for seed in wrong]
    findings += [Finding("", shown(seed), f"should be at most {LARGEST}") for seed in large]
    findings += [Finding("", shown(seed), "is in the list twice") for seed in twice]
    if findings:
        raise Findings(findings)
    return tuple(raw)


def _read_space(raw: Any, info: ValidationInfo) -> dict[str, Values]:
    return read_space(raw, info.data.get("algorithms", ()))


def _read_training(raw: Any, info: ValidationInfo) -> dict[str, Scalar]:
    return read_training(raw, info.data.get("algorithms", ()))


def plain_space(space: Mapping[str, Values]) -> dict[str, Any]:
    return {option: values.plain() for option, values in space.items()}


class SweepFields(Frozen):
    """A sweep's keys: its configurations, data, folds, seeds, searcher, pruner and resources.

    Each key is valid by itself; :class:`tune.space.spec.SweepSpec` also checks them together.
    """

    task: Annotated[str | dict[str, Any], PlainValidator(_read_task)] = Field(
        description="One of the paper's seven tasks, cifar10, cifar100, or a mapping that declares a task."
    )
    backbone: str = Field(
        min_length=1,
        description="A hub id (with optional @revision), a folder, or package:NAME/path; for images a name such as resnet56.",
    )
    pooling: Pooling = Field(
        default="pooler",
        description="Pooling before each classifier: shared pretrained pooler, CLS state, or mean.",
    )
    max_length: Whole = Field(
        default=128, ge=4, description="Tokens per sample; longer samples are truncated and counted."
    )
    algorithms: Annotated[tuple[AlgorithmName, ...], BeforeValidator(several)] = Field(
        default=("clo-v2",), description="Methods; each is combined with the options that it uses."
    )
    space: Annotated[dict[str, Values], PlainValidator(_read_space), PlainSerializer(plain_space)] = Field(
        description="Option of TrainConfig → a list, a range or a log range."
    )
    training: Annotated[dict[str, Scalar], PlainValidator(_read_training)] = Field(
        default_factory=dict, description="Option of TrainConfig → its value in every configuration."
    )
    data: Data = Field(default_factory=Data)
    folds: Whole = Field(
        default=5, ge=1, le=MOST_FOLDS, description="k of the cross-validation; 1 is one fixed hold-out of 10 %."
    )
    fold_seed: Whole = Field(default=0, ge=0, description="Seed of the division into folds.")
    seeds: Annotated[tuple[int, ...], BeforeValidator(_read_seeds)] = Field(
        default=(0,), description="Seeds of the training; a number n means 0 to n - 1."
    )
    searcher: Annotated[SearcherSpec, BeforeValidator(expand_name)] = Field(default_factory=SearcherSpec)
    pruner: Annotated[PrunerSpec, BeforeValidator(expand_name)] = Field(default_factory=PrunerSpec)
    resources: Resources = Field(default_factory=Resources)
    budget: Budget = Field(default_factory=Budget)
    tracking: Tracking = Field(default_factory=Tracking)
    storage: str | None = Field(default=None, description="Folder of the sweeps; None: LEEBERT_STORAGE, else ./sweeps.")
    keep_checkpoints: bool = Field(default=False, description="Keep a run's checkpoint after its end.")
    evaluate: Literal["dev"] | None = Field(
        default=None,
        description="Also save each run's logits on the development split(s) at its best epoch; for `reproduce`, which "
        "selects nothing: one value per option, no pruner.",
    )

    @field_validator("algorithms")
    @classmethod
    def _distinct(cls, algorithms: tuple[str, ...]) -> tuple[str, ...]:
        if not algorithms:
            raise ValueError("should have at least one method")
        twice = sorted({name for name in algorithms if algorithms.count(name) > 1})
        if twice:
            raise Findings(Finding("", shown(name), "is in the list twice") for name in twice)
        return algorithms

    @property
    def task_name(self) -> str:
        """The task's name, also for a task that the file declares."""
        return self.task if isinstance(self.task, str) else str(self.task["name"])

    @property
    def model(self) -> ModelConfig:
        """The encoder and its pooling, as `leebert train` configures them."""
        return ModelConfig(backbone=self.backbone, pooling=self.pooling, max_length=self.max_length)

    @property
    def max_epochs(self) -> int:
        """The schedule's number of epochs; the largest one if it is searched."""
        if "max_epochs" in self.space:
            values = self.space["max_epochs"]
            return int(values.high) if isinstance(values, Range) else max(int(v) for v in values.values)
        return int(self.training.get("max_epochs", TrainConfig.model_fields["max_epochs"].default))

    def train_config(self, values: Mapping[str, Any], seed: int = 0) -> TrainConfig:
        """Return the training configuration of a run.

        Args:
            values: Option → value of the configuration; they override the fixed options of `training`.
            seed: Seed of the run.
        """
        return train_config(self.training, values, seed)

    def cells(self) -> tuple[tuple[int, int], ...]:
        """Return (seed, fold) of every run, in the order of training: seed by seed, fold by fold.

        The order is the same for all configurations, so that the runs of a shorter configuration are common to both of any two.
        """
        return tuple(itertools.product(self.seeds, range(self.folds)))

    @property
    def size(self) -> int | None:
        """The number of effective configurations; None if an option is a continuum."""
        total = 0
        for algorithm in self.algorithms:
            counts = [values.count for option, values in self.space.items() if applies(option, algorithm)]
            if None in counts:
                return None
            total += math.prod(count for count in counts if count is not None)
        return total

    @property
    def limit(self) -> int | None:
        """The number of configurations that a random searcher proposes: its own, else the budget's; None: no limit."""
        return self.searcher.configurations or self.budget.trials

    @property
    def planned(self) -> int | None:
        """The number of configurations if no other limit ends the sweep first; None if unbounded."""
        bounds = (self.size, self.searcher.configurations, self.budget.trials)
        return min((bound for bound in bounds if bound is not None), default=None)

    def configurations(self) -> Iterator[dict[str, Any]]:
        """Iterate over every effective configuration once, in a fixed order.

        Methods alternate in the innermost loop, and options that few methods use change fastest: at whatever point a sweep stops,
        nearly every configuration has its partners under the other methods.

        Raises:
            ConfigError: If an option is a continuum.
        """
        options = sorted(self.space, key=lambda option: -sum(applies(option, a) for a in self.algorithms))
        lists = [self.space[option].listed() for option in options]
        for option, listed in zip(options, lists, strict=True):
            if listed is None:
                raise ConfigError(
                    f"space.{option}: {self.space[option].plain()}: has infinitely many values; use a list"
                )
        ids: set[str] = set()
        for combination in itertools.product(*(listed for listed in lists if listed is not None)):
            chosen = dict(zip(options, combination, strict=True))
            for algorithm in self.algorithms:
                values = self.configuration(algorithm, chosen)
                identity = config_id(values)
                if identity not in ids:
                    ids.add(identity)
                    yield values

    def configuration(self, algorithm: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return an effective configuration: the method, and the values that it uses, in the file's order.

        Args:
            algorithm: Name of the method.
            chosen: Option → value, for all options of `space`.
        """
        return effective({"algorithm": algorithm, **{option: chosen[option] for option in self.space}})

    def cell_updates(self, values: Mapping[str, Any], train_rows: int) -> int:
        """Return the θ updates of one run without early stopping: epochs of all stages × ⌊training samples / 2B⌋.

        Args:
            values: Option → value of the configuration.
            train_rows: Samples of the training split, before a subset is taken.
        """
        config = self.train_config(values)
        rows = min(train_rows, self.data.subset.rows) if self.data.subset else train_rows
        training_folds, folds = (self.folds - 1, self.folds) if self.folds > 1 else (9, 10)
        return most_epochs(config) * (rows * training_folds // (folds * 2 * config.batch_size))

    def theta_updates(self, train_rows: int) -> int:
        """Return the θ updates of the whole sweep, without early stopping or pruning.

        Exact for a grid up to one update per epoch, as folds differ by a few samples. For random draws, the mean cost of a
        uniform draw times their number.

        Args:
            train_rows: The number of samples of the training split, validation folds included.

        Raises:
            ConfigError: If the number of configurations is unbounded.
        """
        planned = self.planned
        if planned is None:
            raise ConfigError("nothing bounds the number of configurations, so their cost is unknown")
        if self.searcher.row.lists:
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
        """Digest of the measured quantities and the search; resuming a sweep requires a file with the same digest.

        It does not cover where a sweep runs (resources, tracking, storage, the data's folder, options that only change
        memory) and how long (budget, number of configurations), so that a sweep can be moved and extended.
        """
        return _digest(self.measured())[:16]

    def measured(self) -> dict[str, Any]:
        """Return the content of the digest, as plain values."""
        content = self.model_dump(mode="json", exclude=set(CIRCUMSTANCES))
        del content["data"]["dir"]
        content["searcher"].pop("configurations", None)
        for key, options in _ONCE_WRITTEN.items():
            if content[key]["name"] in options["names"]:
                content[key] = {**options["defaults"], **content[key]}
        if self.evaluate is None:  # keeps the digests of older versions without this key
            del content["evaluate"]
        content["training"] = {o: value for o, value in content["training"].items() if o not in COST_ONLY}
        if isinstance(content["task"], dict):
            content["task"].pop("files", None)  # the data's fingerprint is compared separately
        return content


def effective(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the options that the method doesn't use, so that equal trainings have equal values."""
    return {
        option: value
        for option, value in values.items()
        if option == "algorithm" or applies(option, values["algorithm"])
    }


def config_id(values: Mapping[str, Any]) -> str:
    """Return the id of an effective configuration, eight hexadecimal digits, the same in every sweep and machine."""
    algorithm = values["algorithm"]
    return _digest({option: canonical(option, algorithm, v) for option, v in effective(values).items()})[:8]


def _digest(content: Mapping[str, Any]) -> str:
    # json writes a float as its repr: the shortest digits that read back as the same float.
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
