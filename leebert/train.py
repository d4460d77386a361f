"""The training loop for every method, task and model: texts, images or plain tensors.

:func:`train_epochs` is a generator that yields a report after each epoch, and the caller may stop between epochs.
It uses models only through `record(batch) → Record`, and data only as rows that collate into tensors.
"""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch

from leebert.checkpoint import Checkpoints, Snapshot
from leebert.config import COST_ONLY, TrainConfig
from leebert.data.batches import plan_epoch, size_of_fixed_d2, updates_per_epoch
from leebert.data.noise import NoisyLabels
from leebert.deprecated import renamed_arguments, warn_renamed
from leebert.errors import CheckpointError, ConfigError
from leebert.evaluate import RecordedLogits, layers_of, record_all
from leebert.level import StageLevel
from leebert.majority import AgainstMajority, against_majority
from leebert.metrics import collapsed, per_exit
from leebert.record import Batch, SampleSet
from leebert.runtime import Runtime, derive_seed
from leebert.stages import Examined, Stage, check, epochs_of, last_training, method

Ended = Literal["max_epochs", "patience", "updates", "diverged"]


@dataclasses.dataclass(frozen=True)
class EpochReport:
    """The results of one epoch. Arrays have one value per exit, (M,); scores are fractions.

    Attributes:
        epoch: Number of the epoch over all stages, from 0.
        stage: Name of its stage.
        theta_updates: Updates of θ so far.
        last_stage_updates: Updates of θ so far in the last stage that trains.
        last_stage_epochs: Epochs so far of that stage.
        seconds: Seconds of training and evaluation; a stage's first epoch includes its start.
        train_loss: Mean training loss; None if the run diverged, or the stage does not train.
        score: Validation score: the mean over exits of the task's metric. None without a validation fold, or if the run
            diverged.
        exits: Each measure, `score` and `loss` by exit.
        weights: Loss weights w by exit: `ce`, and `kd` summed over the exit's teachers.
        collapsed: The exits, from 0, that predict a single class.
        best_epoch: Number of the best epoch so far.
        ended: Why the run ended; None if it has not ended.
        negative_weights: Number of loss weights below 0, whose terms the optimiser increases.
        majority: Comparison with the majority class (:meth:`leebert.majority.AgainstMajority.as_dict`).
        omega: Distance of the loss weights from their start: `moved`, `spread`.
        validation: Validation logits of a new best epoch; else None.
        term_weights: (n,) weights of all loss terms, in the order of :class:`leebert.weights.Terms`; None in reports that a
            resumed run repeats.
        model: The model, which a stage may have replaced.
        checkpoint: Digest of the checkpoint of this epoch; None if none was written.
    """

    epoch: int
    stage: str
    theta_updates: int
    last_stage_updates: int
    last_stage_epochs: int
    seconds: float
    train_loss: float | None
    score: float | None
    exits: dict[str, list[float]]
    weights: dict[str, list[float]]
    collapsed: list[int]
    best_epoch: int | None
    ended: Ended | None = None
    negative_weights: int = 0
    majority: dict[str, Any] | None = None
    omega: dict[str, float] | None = None
    validation: RecordedLogits | None = dataclasses.field(default=None, repr=False, compare=False)
    term_weights: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    model: Any = dataclasses.field(default=None, repr=False, compare=False)
    checkpoint: str | None = dataclasses.field(default=None, compare=False)

    @property
    def held_out(self) -> RecordedLogits | None:
        """The former name of `validation`."""
        warn_renamed("EpochReport.held_out", "validation")
        return self.validation

    def plain(self) -> dict[str, Any]:
        """Return JSON-ready values, without validation logits, term weights, model and checkpoint."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        reports: One report per epoch.
        validation: Validation logits of the best epoch; None without a validation fold.
    """

    reports: list[EpochReport]
    validation: RecordedLogits | None

    @property
    def held_out(self) -> RecordedLogits | None:
        """The former name of `validation`."""
        warn_renamed("TrainResult.held_out", "validation")
        return self.validation

    @property
    def model(self) -> Any:
        """The trained model: the given one, unless a stage has replaced it."""
        return self.reports[-1].model

    @property
    def ended(self) -> Ended:
        """Why the run ended."""
        return self.reports[-1].ended or "max_epochs"

    @property
    def best(self) -> EpochReport:
        """The report of the best epoch; the last one without a validation fold."""
        best = self.reports[-1].best_epoch
        return self.reports[-1] if best is None else next(r for r in self.reports if r.epoch == best)


@dataclasses.dataclass
class _Progress:
    """The position of a run; the checkpoint holds all of it."""

    stage: int = 0
    stage_epoch: int = 0  # completed epochs of this stage
    position: int = 0  # in the cycle of the optimiser of ω
    theta_updates: int = 0
    last_stage_updates: int = 0
    last_stage_epochs: int = 0
    stage_updates: int = 0
    best_epoch: int | None = None
    best_score: float | None = None
    best_above: bool = True  # whether an exit was above the majority class then
    last_better: int = 0  # the stage's epoch count at the best epoch, for early stopping
    stage_over: bool = False
    plans: dict[str, Any] = dataclasses.field(default_factory=dict)  # of each stage's transformation, by its name


@renamed_arguments(rows="samples", held_out="validation")
def train_epochs(
    model: Any,
    samples: SampleSet,
    config: TrainConfig,
    *,
    validation: SampleSet | None = None,
    metric: str = "accuracy",
    stages: tuple[Stage, ...] | None = None,
    runtime: Runtime | None = None,
    seed: tuple[int | str, ...] | None = None,
    updates: int | None = None,
    checkpoints: Checkpoints | None = None,
    on_best: Callable[[int, Any], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Iterator[EpochReport]:
    """Train a model in place with the stages of a method.

    An epoch is ⌊|D_train| / 2B⌋ updates of θ. A non-finite loss, gradient or weight ends the run with
    `ended="diverged"`; the last finite checkpoint stays.

    Args:
        model: A multi-exit model (:class:`leebert.record.MultiExit`).
        samples: The training samples.
        config: The training options.
        validation: The validation fold. All exits are scored on it after each epoch, :func:`preference` selects the best
            epoch, and a stage stops early after `config.patience` epochs without a better one.
        metric: Name of the task's metric.
        stages: The stages; None: those of `config.algorithm`.
        runtime: Device and precision; None: as configured.
        seed: (seed,) or (seed, fold); None: `config.seed`.
        updates: Stop the last stage that trains after exactly this many updates of θ. The schedule keeps the horizon of
            `max_epochs`.
        checkpoints: Where each epoch's end is saved. A run that finds a checkpoint resumes from it, bit for bit on the
            CPU, and yields the reports of earlier epochs again.
        on_best: Called with epoch and model on each new best epoch.
        on_step: Called with the number of θ updates after each update.
        identity: Further settings (data, backbone) that must match to resume from a checkpoint.

    Yields:
        A report after each epoch.

    Raises:
        DataError: A batch is larger than half of the data.
        CheckpointError: The checkpoint is damaged, or belongs to other settings.
        ConfigError: The model lacks what a stage needs, or `updates` exceeds the schedule.
    """
    training = _Training(
        model, samples, config, validation, metric, stages or method(config, model.num_exits),
        runtime or Runtime.of(config.precision), seed or (config.seed,), updates, on_best, on_step,
    )  # fmt: skip
    run = {**training.identity(), **(identity or {})}
    snapshot = checkpoints.load() if checkpoints else None
    if snapshot is not None:
        assert checkpoints is not None
        stored = {**training.defaults(), **snapshot.meta["identity"]}
        if stored != run:
            differs = [k for k in run if stored.get(k) != run[k]]
            raise CheckpointError(
                f"the checkpoint in {checkpoints.folder} belongs to another run: {', '.join(differs) or 'keys'} differ(s); "
                "use another folder, or delete it"
            )
        yield from training.resume(snapshot)
    while not training.ended:
        report = training.epoch()
        if checkpoints and report.ended != "diverged":
            report = dataclasses.replace(report, checkpoint=checkpoints.save(training.snapshot(run), report.epoch))
        yield report


@dataclasses.dataclass(frozen=True)
class _Scored:
    """The validation results of an epoch."""

    outcome: RecordedLogits
    exits: dict[str, list[float]]
    score: float
    against: AgainstMajority | None
    collapsed: list[int]


@dataclasses.dataclass
class _Training:
    """The state of a run of :func:`train_epochs`, with its parameters."""

    model: Any
    rows: SampleSet
    config: TrainConfig
    validation: SampleSet | None
    metric: str
    stages: tuple[Stage, ...]
    runtime: Runtime
    seed: tuple[int | str, ...]
    updates: int | None
    on_best: Callable[[int, Any], None] | None
    on_step: Callable[[int], None] | None

    def __post_init__(self) -> None:
        config, samples = self.config, len(self.rows)
        if config.label_noise:
            seed = derive_seed(*self.seed, "label noise")
            exits = config.label_noise_exits
            if exits is not None and exits >= self.model.num_exits:
                raise ConfigError(
                    f"label_noise_exits: {exits}, but the model has {self.model.num_exits} exits; at least the last one needs "
                    "the right labels: set it lower, or to null for all exits"
                )
            self.rows = NoisyLabels(self.rows, config.label_noise, seed, exits)
        if share := config.own.get("fixed_d2"):
            size_of_fixed_d2(samples, config.batch_size, share)
        self.lengths = np.asarray(self.rows.lengths)
        self.per_epoch = updates_per_epoch(samples, config.batch_size)
        self.longest = epochs_of(self.stages, config)
        self.limited = last_training(self.longest)  # the stage whose updates `updates` counts
        horizon = self.per_epoch * self.longest[self.limited]
        if self.updates is not None and self.updates > horizon:
            raise ConfigError(
                f"theta_updates {self.updates}: exceeds the schedule of {horizon} updates (max_epochs {config.max_epochs} at batch "
                f"size {config.batch_size} on {samples} samples); raise max_epochs"
            )
        check(self.stages, self.model, config)
        self.model.to(self.runtime.device)
        self.examined = Examined(lambda: _examined(self.rows, config, self.runtime), self.runtime, config.accumulate)
        self.teachers: dict[str, Any] = {}  # by the name of the stage at whose end they were the model
        self.at = _Progress()
        self.reports: list[EpochReport] = []
        self.best: RecordedLogits | None = None
        self.level: StageLevel | None = None

    @property
    def ended(self) -> bool:
        """Whether the last epoch has been trained."""
        return bool(self.reports) and self.reports[-1].ended is not None

    @property
    def stage(self) -> Stage:
        return self.stages[self.at.stage]

    def defaults(self) -> dict[str, Any]:
        """The options at their defaults, which hold for options that are newer than a checkpoint."""
        return _options(TrainConfig(algorithm=self.config.algorithm))

    def identity(self) -> dict[str, Any]:
        """The settings that must match to resume from a checkpoint."""
        settings = _options(self.config)
        return {
            **settings, "stages": [s.name for s in self.stages], "rows": len(self.rows), "seed": list(self.seed),
            "updates": self.updates, "precision": self.runtime.precision,
        }  # fmt: skip

    def snapshot(self, identity: dict[str, Any]) -> Snapshot:
        """Collect the contents of a checkpoint at the end of an epoch."""
        assert self.level is not None
        tensors = {f"model/{name}": t for name, t in self.model.state_dict().items()} | self.level.optimizer_tensors()
        for stage, teacher in self.teachers.items():
            tensors |= {f"teacher/{stage}/{name}": t for name, t in teacher.state_dict().items()}
        if self.best is not None:
            assert self.best.labels is not None
            tensors["best/logits"] = torch.from_numpy(self.best.logits)
            tensors["best/labels"] = torch.from_numpy(self.best.labels)
        reports = [r.plain() for r in self.reports]
        return Snapshot(tensors, {"identity": identity, "progress": dataclasses.asdict(self.at), "reports": reports})

    def resume(self, snapshot: Snapshot) -> Iterator[EpochReport]:
        """Resume from a checkpoint, and yield the reports of its epochs again."""
        self.at = _Progress(**snapshot.meta["progress"])
        later = self.stages[self.at.stage :]
        for index, stage in enumerate(self.stages[: self.at.stage + 1]):
            self.model = _enter(self.model, stage, self.at.plans.get(stage.name), self.runtime)
            if index < self.at.stage and _needed(stage.name, later):
                self.teachers[stage.name] = _as_teacher(self.model)
        self.level = self._restored(snapshot)
        self.reports = [EpochReport(**r) for r in snapshot.meta["reports"]]
        if "best/logits" in snapshot.tensors:
            logits, labels = (snapshot.tensors[f"best/{name}"].numpy() for name in ("logits", "labels"))
            self.best = RecordedLogits(logits, labels, *layers_of(self.model))
        for report in self.reports:
            # The checkpoint holds one set of logits, the best epoch's.
            validation = self.best if report.epoch == self.at.best_epoch else None
            yield dataclasses.replace(report, validation=validation, model=self.model)

    def _restored(self, snapshot: Snapshot) -> StageLevel:
        """The stage's level with the model, teachers and optimisers of a checkpoint."""
        modules = [("model/", self.model), *((f"teacher/{name}/", t) for name, t in self.teachers.items())]
        try:
            for prefix, module in modules:
                module.load_state_dict(
                    {k.removeprefix(prefix): v for k, v in snapshot.tensors.items() if k.startswith(prefix)}
                )
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint does not fit the model: {str(error).splitlines()[0]}; remove the checkpoint folder to train "
                "from the start"
            ) from None
        level = self._new_level()
        level.load_optimizer_tensors(snapshot.tensors)
        return level

    def _new_level(self) -> StageLevel:
        teacher = self.teachers.get(self.stage.teacher or "")
        return StageLevel(self.model, self.stage, self.config, self.runtime, self.seed, teacher)

    def epoch(self) -> EpochReport:
        """Train and score one epoch."""
        started = time.perf_counter()  # a stage's start, such as a pass over all rows, counts to its first epoch
        level = self._level()
        steps = self._train(level)
        self.at.stage_epoch += 1
        self.at.last_stage_epochs += self.at.stage == self.limited
        ended, scored = self._end_of_epoch(level)
        term_weights = level.weights().cpu()
        report = EpochReport(
            epoch=len(self.reports),
            stage=self.stage.name,
            theta_updates=self.at.theta_updates,
            seconds=time.perf_counter() - started,
            last_stage_updates=self.at.last_stage_updates,
            last_stage_epochs=self.at.last_stage_epochs,
            train_loss=None if ended == "diverged" or not steps else level.loss_sum.item() / steps,
            score=scored.score if scored else None,
            exits=scored.exits if scored else {},
            weights=_weights(self.stage, term_weights),
            collapsed=scored.collapsed if scored else [],
            best_epoch=self.at.best_epoch,
            ended=ended,
            negative_weights=int((term_weights < 0).sum()),
            majority=scored.against.as_dict() if scored and scored.against else None,
            omega=level.travelled(),
            validation=scored.outcome if scored and self.at.best_epoch == len(self.reports) else None,
            term_weights=term_weights.numpy().copy(),
            model=self.model,
        )
        self.reports.append(report)
        if report.negative_weights and ended != "diverged":
            _warn_of_negative(report.negative_weights)
        return report

    def _level(self) -> StageLevel:
        """The level of the next epoch's stage; a new one if a stage starts."""
        at = self.at
        if at.stage_over:
            if _needed(self.stage.name, self.stages[at.stage + 1 :]):
                self.teachers[self.stage.name] = _as_teacher(self.model)
            at = self.at = dataclasses.replace(
                at, stage=at.stage + 1, stage_epoch=0, stage_updates=0, position=0, stage_over=False
            )
            self.level = None
        if self.level is None:
            stage, later = self.stage, self.stages[at.stage :]
            if stage.transform:
                at.plans[stage.name] = stage.transform.plan(self.model, self.examined)
            self.model = _enter(self.model, stage, at.plans.get(stage.name), self.runtime)
            self.teachers = {name: teacher for name, teacher in self.teachers.items() if _needed(name, later)}
            self.level = self._new_level()
        return self.level

    def _train(self, level: StageLevel) -> int:
        """Train θ and ω for one epoch; returns the number of steps."""
        at, stage, rows = self.at, self.stage, self.rows
        # One seed per epoch instead of a saved generator state, so that a resumed run has the same dropout masks. The masks
        # are for θ only; forward passes for ω draw from their own streams (`StageLevel`).
        torch.manual_seed(derive_seed(*self.seed, stage.name, "dropout", at.stage_epoch))
        split, names = stage.algorithm.splits_data, (*self.seed, stage.name)
        fixed = self.config.own.get("fixed_d2", 0.0)
        plan = plan_epoch(self.lengths, self.config.batch_size, split, names, at.stage_epoch, fixed)
        level.start_epoch((rows.collate(index) for index in plan.d2()), at.stage_epoch)
        horizon = self.longest[at.stage] * self.per_epoch
        steps = 0
        for index in plan.d1 if self.longest[at.stage] else ():
            level.rate = level.lr_theta * level.schedule(at.stage_updates, horizon, self.config.warmup)
            if stage.pace:
                stage.pace(self.model, at.stage_updates / horizon)
            level.progress = (at.stage_updates + 1) / horizon
            at.position = stage.algorithm.step(level, level.to_device(rows.collate(index)), at.position)
            at.theta_updates += 1
            at.stage_updates += 1
            at.last_stage_updates += at.stage == self.limited
            steps += 1
            if self.on_step:
                self.on_step(at.theta_updates)
            if at.last_stage_updates == self.updates:
                break
            if steps % 16 == 0 and not level.finite.item():
                break  # checked only sometimes, since the check waits for all earlier GPU work
        return steps

    def _end_of_epoch(self, level: StageLevel) -> tuple[Ended | None, _Scored | None]:
        """Score the model on the validation fold, if any; returns why the run has ended, or None."""
        at, is_last = self.at, self.at.stage == len(self.stages) - 1
        if not level.is_finite():
            return "diverged", None
        ended: Ended | None = None
        scored: _Scored | None = None
        if at.last_stage_updates == self.updates and at.stage >= self.limited:
            at.stage_over, ended = True, "updates"
        if self.validation is not None:
            scored = self._score(self.validation)
            self._keep_best(scored, is_last)
            if ended is None and self.stage.stops_early and at.stage_epoch - at.last_better >= self.config.patience:
                at.stage_over, ended = True, "patience"
        if ended is None and at.stage_epoch >= self.longest[at.stage]:
            at.stage_over, ended = True, "max_epochs"
        return (ended if is_last else None), scored

    def _score(self, validation: SampleSet) -> _Scored:
        outcome = record_all(self.model, validation, self.runtime, self.config.eval_batch_size)
        assert outcome.labels is not None
        against = against_majority(outcome.logits, outcome.labels, self.metric)
        stuck = np.flatnonzero(collapsed(outcome.logits)).tolist()
        return _Scored(outcome, *_scores(outcome, self.metric), against, stuck)

    def _keep_best(self, scored: _Scored, is_last: bool) -> None:
        """Record the epoch if it is the best of its stage; the run's best epoch is that of the last stage."""
        at, rank = self.at, preference(scored.against, scored.score)
        if at.stage_epoch == 1 or rank > (at.best_above, at.best_score):
            (at.best_above, at.best_score), at.last_better = rank, at.stage_epoch
            if is_last:
                at.best_epoch, self.best = len(self.reports), scored.outcome
                if self.on_best:
                    self.on_best(len(self.reports), self.model)


def preference(against: AgainstMajority | None, score: float) -> tuple[bool, float]:
    """Rank an epoch: first by whether an exit scores above the majority class, then by the mean over exits.

    A metric may score a model that predicts a single class above one that has learned (74.05 against 73.66 on MRPC).

    Args:
        against: The comparison with the majority class; None if there is none.
        score: Validation score, mean over exits.

    Returns:
        A key for sorting, larger for better epochs.
    """
    return against is None or against.above, score


@renamed_arguments(rows="samples", held_out="validation")
def fit(
    model: Any,
    samples: SampleSet,
    config: TrainConfig,
    *,
    report: Callable[[EpochReport], None] | None = None,
    **options: Any,
) -> TrainResult:
    """Train a model to the end with :func:`train_epochs`.

    Args:
        model: A multi-exit model.
        samples: The training samples.
        config: The training options.
        report: Called with each epoch's report.
        **options: Further arguments of :func:`train_epochs`.

    Returns:
        All reports, and the validation logits of the best epoch.

    Raises:
        DataError, CheckpointError, ConfigError: As :func:`train_epochs`.
    """
    reports: list[EpochReport] = []
    best: RecordedLogits | None = None
    for epoch in train_epochs(model, samples, config, **options):
        reports.append(epoch)
        best = epoch.validation or best
        if report:
            report(epoch)
    return TrainResult(reports, best)


def _options(config: TrainConfig) -> dict[str, Any]:
    """Return the options that decide the result of a run with one seed in one precision."""
    return config.model_dump(mode="json", exclude={*COST_ONLY, "precision", "seed"})


def _enter(model: Any, stage: Stage, plan: Any, runtime: Runtime) -> Any:
    return stage.transform.apply(model, plan).to(runtime.device) if stage.transform else model


def _examined(rows: SampleSet, config: TrainConfig, runtime: Runtime) -> Iterator[Batch]:
    """All training samples in batches of rising length, on the device, for a stage's transformation."""
    order = np.argsort(np.asarray(rows.lengths), kind="stable")
    for start in range(0, len(order), config.batch_size):
        batch = rows.collate(order[start : start + config.batch_size])
        yield {name: t.to(runtime.device) for name, t in batch.items()}


def _needed(name: str, later: tuple[Stage, ...]) -> bool:
    return any(stage.teacher == name for stage in later)


def _as_teacher(model: Any) -> Any:
    """A frozen copy of the model, without dropout."""
    teacher = copy.deepcopy(model).eval()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher


def _scores(outcome: RecordedLogits, metric: str) -> tuple[dict[str, list[float]], float]:
    """Each measure by exit, and the selection score: the mean over exits of the task's metric."""
    assert outcome.labels is not None
    exits = {name: values.tolist() for name, values in per_exit(metric, outcome.labels, outcome.logits).items()}
    return {**exits, "loss": outcome.losses().tolist()}, float(np.mean(exits["score"]))


def _weights(stage: Stage, weights: torch.Tensor) -> dict[str, list[float]]:
    layout = getattr(stage.objective, "layout", None)
    if layout is None:
        return {}
    ce, kd = layout.split(weights)
    return {"ce": ce.tolist(), "kd": kd.sum(dim=1).tolist()}


NEGATIVE = (
    "loss weight(s) are negative, so the optimiser increases their terms; "
    "set parametrisation to softplus, exit_softmax, group_softmax or exit_teacher"
)


def _warn_of_negative(count: int) -> None:
    warnings.warn(f"{count} {NEGATIVE}", stacklevel=4)
