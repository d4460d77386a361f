"""The training loop, the same for every method, task and model: text, images or plain tensors.

:func:`train_epochs` is a generator that yields a report after each epoch; whoever drives it may stop in between.
It knows models only as `record(batch) → Record` and data only as rows that collate into tensors.
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
from leebert.data.batches import plan_epoch, updates_per_epoch
from leebert.errors import CheckpointError, ConfigError
from leebert.evaluate import HeldOut, layers_of, record_all
from leebert.level import StageLevel
from leebert.majority import AgainstMajority, against_majority
from leebert.metrics import collapsed, per_exit
from leebert.objective import State
from leebert.record import Batch, Rows
from leebert.runtime import Runtime, derive_seed
from leebert.stages import Examined, Stage, check, epochs_of, last_training, method

Ended = Literal["max_epochs", "patience", "updates", "diverged"]


@dataclasses.dataclass(frozen=True)
class EpochReport:
    """What one epoch left behind. Arrays are per exit, (M,); scores are fractions; all of it is plain numbers.

    `score` is the mean over exits of the task's metric on the held-out rows (the selection score), None where nothing
    is held out or the run diverged. `ended` is None while the run goes on. `held_out` is set on a new best epoch.
    """

    epoch: int
    stage: str
    theta_updates: int
    last_stage_updates: int  # of those, in the last stage that trains
    last_stage_epochs: int  # its epochs so far
    seconds: float  # of training and evaluation, in a stage's first epoch with what its start takes
    train_loss: float | None
    score: float | None
    exits: dict[str, list[float]]  # each measure, `score` and `loss` by exit
    weights: dict[str, list[float]]  # w by exit: `ce`, and `kd` summed over the exit's teachers
    collapsed: list[int]  # exits (from 0) that predict one class throughout
    best_epoch: int | None
    ended: Ended | None = None
    negative_weights: int = 0  # loss weights below 0: their terms are being increased
    majority: dict[str, Any] | None = None  # the scores beside the majority class's (AgainstMajority.as_dict)
    omega: dict[str, float] | None = None  # how far the loss weights are from their start: `moved`, `spread`
    held_out: HeldOut | None = dataclasses.field(default=None, repr=False, compare=False)
    model: Any = dataclasses.field(default=None, repr=False, compare=False)  # a stage may have replaced it
    checkpoint: str | None = dataclasses.field(
        default=None, compare=False
    )  # its digest, where one was written just now

    def plain(self) -> dict[str, Any]:
        """The report as JSON-ready values, without held-out logits, model and checkpoint."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished run: its reports, why it ended, and the best epoch's held-out logits where rows were held out."""

    reports: list[EpochReport]
    held_out: HeldOut | None

    @property
    def model(self) -> Any:
        """The trained model: the one given, unless a stage has replaced it."""
        return self.reports[-1].model

    @property
    def ended(self) -> Ended:
        return self.reports[-1].ended or "max_epochs"

    @property
    def best(self) -> EpochReport:
        """The report of the best epoch (the last one where nothing was held out)."""
        best = self.reports[-1].best_epoch
        return self.reports[-1] if best is None else next(r for r in self.reports if r.epoch == best)


@dataclasses.dataclass
class _Progress:
    """Where a run stands; all of it is in the checkpoint."""

    stage: int = 0
    stage_epoch: int = 0  # epochs done in this stage
    position: int = 0  # in the algorithm's cycle
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


def train_epochs(
    model: Any,
    rows: Rows,
    config: TrainConfig,
    *,
    held_out: Rows | None = None,
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
    """Train `model` in place by a method's stages; yields an :class:`EpochReport` after each epoch.

    An epoch is ⌊|D_train| / 2B⌋ updates of θ. With `held_out` rows, all exits are scored on them at each epoch's end;
    the best epoch by :func:`preference` counts, `on_best(epoch, model)` is called on each new one, and a stage stops early
    after `config.patience` epochs without a better one. `updates` stops the method's last stage that trains after
    exactly so many updates of θ (the schedule's horizon stays that of `max_epochs`). `seed` is (seed,) or (seed, fold), by default `config.seed`.
    With `checkpoints` every epoch's end is kept, and a run that finds one goes on from it, bit for bit on the CPU,
    yielding the earlier epochs' reports again first. `on_step` is told the count of θ updates after each. `identity`
    says what else (data, backbone) must be equal for a checkpoint to be gone on from.

    A non-finite loss, gradient or weight ends the run with `ended="diverged"`; the last finite checkpoint is kept.
    Raises DataError for a batch larger than half of the data, CheckpointError for a damaged or foreign checkpoint.
    """
    runtime = runtime or Runtime.of(config.precision)
    seed = seed or (config.seed,)
    stages = stages or method(config, model.num_exits)
    lengths = np.asarray(rows.lengths)
    per_epoch = updates_per_epoch(len(rows), config.batch_size)
    longest = epochs_of(stages, config)
    limited = last_training(longest)  # the stage whose updates `updates` counts
    horizon = per_epoch * longest[limited]
    if updates is not None and updates > horizon:
        raise ConfigError(
            f"theta_updates {updates}: max_epochs {config.max_epochs} at batch size {config.batch_size} is a schedule of "
            f"{horizon} updates on {len(rows)} rows; raise max_epochs"
        )
    run = {**_identity(config, stages, len(rows), seed, updates, runtime), **(identity or {})}

    check(stages, model, config)
    model.to(runtime.device)
    examined = Examined(lambda: _examined(rows, config, runtime), runtime, config.accumulate)
    teachers: dict[str, Any] = {}  # by the name of the stage at whose end they were the model
    at = _Progress()
    reports: list[EpochReport] = []
    best: HeldOut | None = None
    level: StageLevel | None = None
    snapshot = checkpoints.load() if checkpoints else None
    if snapshot is not None:
        if snapshot.meta["identity"] != run:
            differs = [k for k in run if snapshot.meta["identity"].get(k) != run[k]]
            raise CheckpointError(
                f"the checkpoint in {checkpoints.folder} belongs to another run: {', '.join(differs) or 'keys'} differ(s); "  # type: ignore[union-attr]
                "use another folder, or delete it"
            )
        at = _Progress(**snapshot.meta["progress"])
        for index, stage in enumerate(stages[: at.stage + 1]):
            model = _enter(model, stage, at.plans.get(stage.name), runtime)
            if index < at.stage and _needed(stage.name, stages[at.stage :]):
                teachers[stage.name] = _as_teacher(model)
        level = _restore(model, stages[at.stage], config, runtime, seed, snapshot, teachers)
        reports = [EpochReport(**r) for r in snapshot.meta["reports"]]
        if "best/logits" in snapshot.tensors:
            best = HeldOut(
                snapshot.tensors["best/logits"].numpy(), snapshot.tensors["best/labels"].numpy(), *layers_of(model)
            )
        for report in reports:
            # The checkpoint holds one set of logits, the best epoch's.
            yield dataclasses.replace(report, held_out=best if report.epoch == at.best_epoch else None, model=model)
        if reports[-1].ended:
            return

    while True:
        started = time.perf_counter()  # what a stage's start takes, a look at all rows perhaps, is its first epoch's
        if at.stage_over:
            if _needed(stages[at.stage].name, stages[at.stage + 1 :]):
                teachers[stages[at.stage].name] = _as_teacher(model)
            at = dataclasses.replace(
                at, stage=at.stage + 1, stage_epoch=0, stage_updates=0, position=0, stage_over=False
            )
            level = None
        stage, is_last = stages[at.stage], at.stage == len(stages) - 1
        stage_epochs = longest[at.stage]
        if level is None:
            if stage.transform:
                at.plans[stage.name] = stage.transform.plan(model, examined)
            model = _enter(model, stage, at.plans.get(stage.name), runtime)
            teachers = {name: teacher for name, teacher in teachers.items() if _needed(name, stages[at.stage :])}
            level = StageLevel(model, stage, config, runtime, seed, teachers.get(stage.teacher or ""))
        epoch = len(reports)
        # One seed per epoch instead of a saved generator state: a resumed run meets the same dropout masks. They are θ's
        # alone: what is done for ω draws from streams of its own (`StageLevel`).
        torch.manual_seed(derive_seed(*seed, stage.name, "dropout", at.stage_epoch))
        plan = plan_epoch(lengths, config.batch_size, stage.algorithm.splits_data, (*seed, stage.name), at.stage_epoch)
        level.start_epoch((rows.collate(index) for index in plan.d2()), at.stage_epoch)
        steps = 0
        for index in plan.d1 if stage_epochs else ():
            level.rate = level.lr_theta * level.schedule(at.stage_updates, stage_epochs * per_epoch, config.warmup)
            if stage.pace:
                stage.pace(model, at.stage_updates / (stage_epochs * per_epoch))
            level.progress = (at.stage_updates + 1) / (stage_epochs * per_epoch)
            at.position = stage.algorithm.step(level, level.to_device(rows.collate(index)), at.position)
            at.theta_updates += 1
            at.stage_updates += 1
            at.last_stage_updates += at.stage == limited
            steps += 1
            if on_step:
                on_step(at.theta_updates)
            if at.last_stage_updates == updates:
                break
            if steps % 16 == 0 and not level.finite.item():
                break  # asked now and then only: on a GPU the question waits for all earlier work
        at.stage_epoch += 1
        at.last_stage_epochs += at.stage == limited

        ended: Ended | None = None
        outcome: HeldOut | None = None
        score: float | None = None
        against: AgainstMajority | None = None
        exits: dict[str, list[float]] = {}
        stuck: list[int] = []
        if not level.is_finite():
            ended = "diverged"
        elif at.last_stage_updates == updates and at.stage >= limited:
            at.stage_over, ended = True, "updates"
        if ended != "diverged" and held_out is not None:
            outcome = record_all(model, held_out, runtime, config.eval_batch_size)
            exits, score = _scores(outcome, metric)
            stuck = np.flatnonzero(collapsed(outcome.logits)).tolist()
            assert outcome.labels is not None
            against = against_majority(outcome.logits, outcome.labels, metric)
            rank = preference(against, score)
            if at.stage_epoch == 1 or rank > (at.best_above, at.best_score):
                (at.best_above, at.best_score), at.last_better = rank, at.stage_epoch
                if is_last:
                    at.best_epoch, best = epoch, outcome
                    if on_best:
                        on_best(epoch, model)
            if ended is None and stage.stops_early and at.stage_epoch - at.last_better >= config.patience:
                at.stage_over, ended = True, "patience"
        if ended is None and at.stage_epoch >= stage_epochs:
            at.stage_over, ended = True, "max_epochs"
        if at.stage_over and not is_last:
            ended = None  # the stage is over, the run is not
        report = EpochReport(
            epoch=epoch,
            stage=stage.name,
            theta_updates=at.theta_updates,
            seconds=time.perf_counter() - started,
            last_stage_updates=at.last_stage_updates,
            last_stage_epochs=at.last_stage_epochs,
            train_loss=None if ended == "diverged" or not steps else level.loss_sum.item() / steps,
            score=score,
            exits=exits,
            weights=_weights(stage, level.state),
            collapsed=stuck,
            best_epoch=at.best_epoch,
            ended=ended,
            negative_weights=int((stage.objective.weights(level.state) < 0).sum()),
            majority=against.as_dict() if against else None,
            omega=level.travelled(),
            held_out=outcome if at.best_epoch == epoch else None,
            model=model,
        )
        reports.append(report)
        if report.negative_weights and ended != "diverged":
            _warn_of_negative(report.negative_weights)
        if checkpoints and ended != "diverged":
            digest = checkpoints.save(_snapshot(model, level, at, reports, best, run, teachers), epoch)
            report = dataclasses.replace(report, checkpoint=digest)
        yield report
        if ended:
            return


def preference(against: AgainstMajority | None, score: float) -> tuple[bool, float]:
    """What epochs are ordered by: first that an exit scores above the majority class, then the mean over exits.

    A metric may give a model that answers one class throughout more than one that has learned (74.05 against 73.66 on MRPC).
    """
    return against is None or against.above, score


def fit(
    model: Any, rows: Rows, config: TrainConfig, *, report: Callable[[EpochReport], None] | None = None, **options: Any
) -> TrainResult:
    """Run :func:`train_epochs` to its end; `report` is told of each epoch. Options are those of :func:`train_epochs`."""
    reports: list[EpochReport] = []
    best: HeldOut | None = None
    for epoch in train_epochs(model, rows, config, **options):
        reports.append(epoch)
        best = epoch.held_out or best
        if report:
            report(epoch)
    return TrainResult(reports, best)


def _enter(model: Any, stage: Stage, plan: Any, runtime: Runtime) -> Any:
    return stage.transform.apply(model, plan).to(runtime.device) if stage.transform else model


def _examined(rows: Rows, config: TrainConfig, runtime: Runtime) -> Iterator[Batch]:
    """All training rows in the order of their length, on the device: what a transformation may look at."""
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


def _scores(outcome: HeldOut, metric: str) -> tuple[dict[str, list[float]], float]:
    """Each measure by exit, and the selection score: the mean over exits of the task's metric."""
    assert outcome.labels is not None
    exits = {name: values.tolist() for name, values in per_exit(metric, outcome.labels, outcome.logits).items()}
    return {**exits, "loss": outcome.losses().tolist()}, float(np.mean(exits["score"]))


def _weights(stage: Stage, state: State) -> dict[str, list[float]]:
    layout = getattr(stage.objective, "layout", None)
    if layout is None:
        return {}
    ce, kd = layout.split(stage.objective.weights(state).detach().cpu())
    return {"ce": ce.tolist(), "kd": kd.sum(dim=1).tolist()}


NEGATIVE = (
    "loss weight(s) turned negative: their terms are now being increased; "
    "use parametrisation softplus, exit_softmax or group_softmax"
)


def _warn_of_negative(count: int) -> None:
    warnings.warn(f"{count} {NEGATIVE}", stacklevel=3)


def _identity(
    config: TrainConfig,
    stages: tuple[Stage, ...],
    rows: int,
    seed: tuple[int | str, ...],
    updates: int | None,
    runtime: Runtime,
) -> dict[str, Any]:
    """What must be equal for a checkpoint to be gone on from."""
    settings = config.model_dump(mode="json", exclude={*COST_ONLY, "precision", "seed"})
    return {
        **settings, "stages": [s.name for s in stages], "rows": rows, "seed": list(seed), "updates": updates,
        "precision": runtime.precision,
    }  # fmt: skip


def _snapshot(
    model: Any,
    level: StageLevel,
    at: _Progress,
    reports: list[EpochReport],
    best: HeldOut | None,
    identity: dict[str, Any],
    teachers: Mapping[str, Any],
) -> Snapshot:
    tensors = {f"model/{name}": t for name, t in model.state_dict().items()} | level.optimizer_tensors()
    for stage, teacher in teachers.items():
        tensors |= {f"teacher/{stage}/{name}": t for name, t in teacher.state_dict().items()}
    if best is not None:
        assert best.labels is not None
        tensors["best/logits"] = torch.from_numpy(best.logits)
        tensors["best/labels"] = torch.from_numpy(best.labels)
    meta = {"identity": identity, "progress": dataclasses.asdict(at), "reports": [r.plain() for r in reports]}
    return Snapshot(tensors, meta)


def _restore(
    model: Any,
    stage: Stage,
    config: TrainConfig,
    runtime: Runtime,
    seed: tuple[int | str, ...],
    snapshot: Snapshot,
    teachers: Mapping[str, Any],
) -> StageLevel:
    try:
        for prefix, module in (("model/", model), *((f"teacher/{name}/", t) for name, t in teachers.items())):
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in snapshot.tensors.items() if k.startswith(prefix)}
            )
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint does not fit the model: {str(error).splitlines()[0]}") from None
    level = StageLevel(model, stage, config, runtime, seed, teachers.get(stage.teacher or ""))
    level.load_optimizer_tensors(
        {k: v for k, v in snapshot.tensors.items() if k.split("/")[0] in ("theta", "omega", "state")}
    )
    return level
