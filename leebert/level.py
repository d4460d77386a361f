"""θ, ω and their optimisers in one stage: the operations from which optimisers of ω build their steps."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from leebert.config import TrainConfig
from leebert.errors import ConfigError
from leebert.look_ahead import TakenStep
from leebert.norms import statistics_kept, training_mode
from leebert.objective import ObjectiveState
from leebert.omega import travel
from leebert.optim.contract import OmegaRule
from leebert.optim.outer import OuterObjective
from leebert.record import Batch, Record, micro_batches
from leebert.runtime import RandomState, Runtime, derive_seed
from leebert.stages import OPTIMIZERS, SCHEDULES, Stage, balances


@dataclasses.dataclass(frozen=True)
class _Descent:
    """The results of a θ step: parts and their records, l (n,), the clipped gradients, and ‖g‖ before clipping."""

    parts: list[tuple[Batch, Record]]
    losses: torch.Tensor
    gradients: list[torch.Tensor | None]
    norm: torch.Tensor


class StageLevel:
    """θ, ω and their optimisers in one stage (:class:`leebert.optim.contract.Level`).

    Args:
        model: A multi-exit model (:class:`leebert.record.MultiExit`).
        stage: The stage.
        config: The training options.
        runtime: Device and precision.
        seed: (seed,) or (seed, fold), for the random streams.
        teacher: The stage's teacher, if it has one.
    """

    def __init__(
        self,
        model: Any,
        stage: Stage,
        config: TrainConfig,
        runtime: Runtime,
        seed: tuple[int | str, ...],
        teacher: Any = None,
    ) -> None:
        self.model, self.stage, self.config, self.runtime, self.teacher = model, stage, config, runtime, teacher
        if hasattr(model, "gradient_equilibrium"):
            model.gradient_equilibrium = balances(model, stage, config)
        if stage.pair:
            stage.pair(model, teacher)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(stage.trains(name))
        self.theta = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.lr_theta = stage.lr_theta or config.lr_theta
        optimizer = stage.optimizer or OPTIMIZERS[config.theta_optimizer]
        self.theta_optimizer = optimizer(self.theta.values(), self.lr_theta, config)
        self.schedule = SCHEDULES[config.schedule]
        start = stage.objective.initial(torch.Generator().manual_seed(derive_seed(*seed, stage.name, "objective")))
        self.state: ObjectiveState = {name: t.to(runtime.device) for name, t in start.items()}
        self.start = stage.objective.weights(self.state).clone()  # before a checkpoint's state replaces it
        self.omega_optimizer: torch.optim.Optimizer | None = None
        self.omega_optimizer_at_lr_theta: torch.optim.Optimizer | None = None  # adam_each: of the terms at λ1
        if "omega" in self.state:
            make = torch.optim.SGD if config.omega_optimizer == "sgd" else torch.optim.Adam
            self.omega_optimizer = make([self.state["omega"].requires_grad_(False)], lr=config.lr_omega)
            if config.omega_optimizer == "adam_each":
                self.omega_optimizer_at_lr_theta = make([self.state["omega"]], lr=self.lr_theta)
        self.memory: dict[str, torch.Tensor] = {}  # of a rule that replaces the optimiser of ω
        self.averages: dict[str, torch.Tensor] = {}  # of vectors of θ's size, by parameter
        self.d2: Iterator[Batch] = iter(())
        self.seed = (*seed, stage.name, "omega")
        self.epoch = self.steps = 0  # epoch of the stage; θ updates in the epoch
        self.draws = 0  # contexts for ω since the last θ update
        self.rate, self.progress = self.lr_theta, 0.0
        self.loss_sum = torch.zeros((), device=runtime.device)
        self.finite = torch.ones((), dtype=torch.bool, device=runtime.device)

    def start_epoch(self, d2: Iterator[Batch], epoch: int = 0) -> None:
        """Start an epoch of the stage.

        Args:
            d2: Yields the batches of D2.
            epoch: Number of the epoch in the stage, from 0.
        """
        training_mode(self.model, self.stage.trains)
        self.d2 = d2
        self.epoch, self.steps, self.draws = epoch, 0, 0
        self.loss_sum.zero_()

    def is_finite(self) -> bool:
        return bool(self.finite.item()) and all(bool(torch.isfinite(p).all()) for p in self.theta.values())

    def travelled(self) -> dict[str, float] | None:
        """Measure the distance of the loss weights from their start (:func:`leebert.omega.travel`); None without eq. 5."""
        layout = getattr(self.stage.objective, "layout", None)
        return layout and travel(self.weights(), self.start, layout.is_distillation)

    def to_device(self, batch: Batch) -> Batch:
        return {name: t.to(self.runtime.device, non_blocking=True) for name, t in batch.items()}

    def theta_step(self, batch: Batch, *, before: Callable[[torch.Tensor], None] | None = None) -> torch.Tensor:
        return self._descend(batch, before).losses

    def look_ahead(self, batch: Batch) -> TakenStep:
        start = {name: p.detach().clone() for name, p in self.theta.items()}
        random, state = RandomState.now(self.runtime.device), self.state
        descent = self._descend(batch)
        return TakenStep(
            model=self.model,
            optimizer=self.theta_optimizer,
            objective=self.stage.objective,
            state=state,
            start=start,
            random=random,
            parts=descent.parts,
            gradients=_filled(descent.gradients, self.theta.values()),
            clipped=(self.config.clip_norm / descent.norm).clamp(max=1),
            losses=descent.losses,
            exact=self.runtime.precision == "fp32",
        )

    def gradient(self, batch: Batch, outer: OuterObjective | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        samples = len(batch["labels"])
        with self._for_omega():
            parts = [
                self._backward(p, len(p["labels"]) / samples, outer=outer)
                for p in micro_batches(batch, self.config.accumulate)
            ]
        gradients = _filled([p.grad for p in self.theta.values()], self.theta.values())
        self.theta_optimizer.zero_grad(set_to_none=True)
        return torch.stack([losses for losses, _ in parts]).sum(dim=0), gradients

    def _descend(self, batch: Batch, before: Callable[[torch.Tensor], None] | None = None) -> _Descent:
        for group in self.theta_optimizer.param_groups:
            group["lr"] = self.rate
        samples = len(batch["labels"])
        batches = micro_batches(batch, self.config.accumulate)
        if before and len(batches) > 1:
            before(*self.losses(batch))
            before = None
        parts = [self._backward(part, len(part["labels"]) / samples, before) for part in batches]
        records = [record for _, record in parts]
        losses = torch.stack([losses for losses, _ in parts]).sum(dim=0)  # (n,)
        loss = self.weights() @ losses
        # ω is not in this list, so clipping ignores it.
        norm = torch.nn.utils.clip_grad_norm_(self.theta.values(), self.config.clip_norm)
        self.theta_optimizer.step()
        self.steps, self.draws = self.steps + 1, 0
        gradients = [p.grad for p in self.theta.values()]
        self.theta_optimizer.zero_grad(set_to_none=True)
        self.state = self.stage.objective.after_step(Record.joined(records), self.state, self.progress)
        self.loss_sum += loss
        self.finite &= torch.isfinite(loss) & torch.isfinite(norm)
        return _Descent(list(zip(batches, records, strict=True)), losses, gradients, norm)

    def _backward(
        self,
        part: Batch,
        share: float,
        before: Callable[[torch.Tensor], None] | None = None,
        outer: OuterObjective | None = None,
    ) -> tuple[torch.Tensor, Record]:
        """Add the gradient of a part that is this `share` of its batch; return the share's l, (n,), and the record.

        The gradient is that of L, with the weights that `before` leaves, or of an outer objective. The results hold no graph,
        so that its memory is free for the next part.
        """
        keep = self.stage.objective.keep
        with self.runtime.autocast():
            record = Record.of(self.model, part, keep)
            target = self._teach(part)
        losses = self.stage.objective.terms(record, self.state, target) * share
        if before:
            before(losses.detach())
        loss = outer(record) * share if outer else self.weights() @ losses
        if loss.requires_grad:  # False if only frozen layers were drawn (BERT-of-Theseus)
            loss.backward()
        # States are dropped: they are large, and nothing needs them after the step.
        return losses.detach(), Record(record.logits, record.labels).detach()

    def _teach(self, part: Batch) -> Record | None:
        """Run the stage's teacher on samples; None if the objective needs no teacher."""
        if self.teacher is None or not self.stage.objective.taught:
            return None
        with torch.no_grad():
            return Record.of(self.teacher, part, self.stage.objective.keep)

    @torch.no_grad()
    def losses(self, *batches: Batch) -> tuple[torch.Tensor, ...]:
        # One autocast context casts the weights once for all batches. One forward pass per batch, since a joint pass would
        # add padding and mix the batches in BatchNorm.
        keep = self.stage.objective.keep
        with self._for_omega(), self.runtime.autocast():
            records = [
                Record.joined(
                    [Record.of(self.model, part, keep) for part in micro_batches(batch, self.config.accumulate)]
                )
                for batch in batches
            ]
            targets = [self._teach(batch) for batch in batches]
        return tuple(
            self.stage.objective.terms(record, self.state, teacher)
            for record, teacher in zip(records, targets, strict=True)
        )

    @contextlib.contextmanager
    def _for_omega(self) -> Iterator[None]:
        """Context of forward passes for ω: dropout as configured, BatchNorm's running statistics unchanged.

        Random numbers come from separate streams (:meth:`_own_numbers`).
        """
        if self.config.omega_forward == "eval":
            self.model.eval()
        try:
            with statistics_kept(self.model), self._own_numbers():
                yield
        finally:
            training_mode(self.model, self.stage.trains)

    def _own_numbers(self) -> contextlib.AbstractContextManager[None]:
        """Context with a random stream of ω: a function of seed, fold, stage, epoch and the epoch's θ updates.

        θ's random numbers are not consumed, so that θ has the same masks on the same batches under every method, and methods
        differ only in ω. Each context between two updates has a separate stream.
        """
        self.draws += 1
        return RandomState.seeded(self.runtime.device, *self.seed, self.epoch, self.steps, self.draws).replayed()

    @torch.no_grad()
    def omega_step(
        self,
        *,
        at_lr_theta: torch.Tensor | None = None,
        at_lr_omega: torch.Tensor | None = None,
        rule: OmegaRule | None = None,
    ) -> None:
        assert self.omega_optimizer is not None, "a method that learns ω needs an objective with ω"
        omega = self.state["omega"]
        if rule is None:
            by_optimizer = self._omega_gradients(at_lr_theta, at_lr_omega)  # all at the present ω
            for optimizer, gradient in by_optimizer:
                omega.grad = gradient
                optimizer.step()
            omega.grad = None
        else:
            gradient = self._pulled_back(at_lr_theta, at_lr_omega)
            omega.copy_(self._checked(rule(omega.clone(), gradient, self.config.lr_omega, self.memory)))
        self.finite &= torch.isfinite(omega).all()

    def _omega_gradients(
        self, at_lr_theta: torch.Tensor | None, at_lr_omega: torch.Tensor | None
    ) -> list[tuple[torch.optim.Optimizer, torch.Tensor]]:
        """Return the optimisers of ω that step, each with its gradient."""
        assert self.omega_optimizer is not None
        if self.omega_optimizer_at_lr_theta is None:
            return [(self.omega_optimizer, self._pulled_back(at_lr_theta, at_lr_omega))]
        self.omega_optimizer_at_lr_theta.param_groups[0]["lr"] = self.rate
        each = ((self.omega_optimizer_at_lr_theta, at_lr_theta), (self.omega_optimizer, at_lr_omega))
        return [(optimizer, self._pulled_back(None, terms)) for optimizer, terms in each if terms is not None]

    def _pulled_back(self, at_lr_theta: torch.Tensor | None, at_lr_omega: torch.Tensor | None) -> torch.Tensor:
        """Compute the gradient of ω for a step at λ2 from terms l for either rate.

        Eq. 9 as one step at λ2: the gradient of L_B1 is scaled by the current λ1 / λ2, which is exact for SGD. The pullback is
        linear in l, so one pullback of the sum is the sum of the pullbacks.
        """
        scaled = [] if at_lr_theta is None else [(self.rate / self.config.lr_omega) * at_lr_theta]
        terms = scaled + ([] if at_lr_omega is None else [at_lr_omega])
        gradient: torch.Tensor = self.stage.objective.pullback(self.state, torch.stack(terms).sum(dim=0))  # type: ignore[attr-defined]
        return gradient

    def _checked(self, omega: torch.Tensor) -> torch.Tensor:
        """Return a rule's next ω. Raises ConfigError if it is of another shape, or the rule's memory can't be saved."""
        method, expected = self.config.algorithm, self.state["omega"].shape
        if omega.shape != expected:
            raise ConfigError(
                f"method {method}: its rule returns ω in shape {tuple(omega.shape)}; return {tuple(expected)}"
            )
        for name, value in self.memory.items():
            if not isinstance(value, torch.Tensor):
                raise ConfigError(
                    f"method {method}: its rule stores {name!r} as {type(value).__name__} in its memory; store a "
                    "tensor, so that checkpoints can save it"
                )
        return omega

    @torch.no_grad()
    def moving_average(self, v: Sequence[torch.Tensor], decay: float) -> Sequence[torch.Tensor]:
        for name, new in zip(self.theta, v, strict=True):
            if name in self.averages:
                self.averages[name].lerp_(new, 1 - decay)
            else:
                self.averages[name] = new.clone()
        return [self.averages[name] for name in self.theta]

    def weights(self) -> torch.Tensor:
        return self.stage.objective.weights(self.state).detach()

    def next_d2(self) -> Batch:
        with self._own_numbers():  # collating may augment samples
            return self.to_device(next(self.d2))

    # For checkpoints.

    def _omega_optimizers(self) -> list[tuple[str, torch.optim.Optimizer]]:
        """Return the optimisers of ω by the names of their tensors."""
        both = (("omega", self.omega_optimizer), ("omega_at_lr_theta", self.omega_optimizer_at_lr_theta))
        return [(name, optimizer) for name, optimizer in both if optimizer is not None]

    def optimizer_tensors(self) -> dict[str, torch.Tensor]:
        tensors = {}
        for name, parameter in self.theta.items():
            for key, value in self.theta_optimizer.state[parameter].items():
                tensors[f"theta/{key}/{name}"] = value
        for kind, optimizer in self._omega_optimizers():
            for key, value in optimizer.state[self.state["omega"]].items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{kind}/{key}"] = value
        tensors |= {f"memory/{name}": t.clone() for name, t in self.memory.items()}  # two may share their storage
        tensors |= {f"average/{name}": t for name, t in self.averages.items()}
        return tensors | {f"state/{name}": t for name, t in self.state.items()}

    def load_optimizer_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load the tensors of :meth:`optimizer_tensors`; other tensors of a checkpoint are ignored."""
        of_omega = dict(self._omega_optimizers())
        for full, value in tensors.items():
            kind, _, inner = full.partition("/")
            if kind == "state":
                self.state[inner].copy_(value)
            elif kind == "memory":
                self.memory[inner] = value.to(self.runtime.device)
            elif kind == "average":
                self.averages[inner] = value.to(self.theta[inner].device)
            elif kind in of_omega:
                # By default Adam keeps its step count on the CPU.
                moved = value if inner == "step" else value.to(self.runtime.device)
                of_omega[kind].state[self.state["omega"]][inner] = moved
            elif kind == "theta":
                key, _, name = inner.partition("/")
                parameter = self.theta[name]
                self.theta_optimizer.state[parameter][key] = value.to(parameter.device)


def _filled(gradients: Iterable[torch.Tensor | None], parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Replace missing gradients by zeros."""
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
