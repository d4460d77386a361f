"""The contract of a method, and the tiny networks that its tests train."""

from __future__ import annotations

import contextlib
import functools
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args
from unittest import mock

import pytest
import torch
from torch import nn

from leebert.checkpoint import Checkpoints
from leebert.config import TrainConfig
from leebert.level import StageLevel
from leebert.methods import METHODS, UNIT, UNIT_ON_D1, Method, most_epochs, stage_costs
from leebert.optim.contract import OmegaRule
from leebert.record import Batch, Keep, Record, TensorSamples
from leebert.stages import epochs_of, method
from leebert.testing.rows import registered
from leebert.train import TrainResult, fit, train_epochs

#: A second value for every option that only some methods read.
CHANGED: Mapping[str, Any] = {
    "lr_omega": 0.5, "cycle_length": 2, "teachers": "lle", "temperature": 3.0, "distillation": "kl", "keep": 0.25,
    "alpha": 0.9, "beta": 1.0, "annealing": 1.5, "two_stage": True, "first_epochs": 2, "finetune_first": True,
    "prune_rounds": 1, "layerdrop": 0.5, "replacing_rate": 0.9, "omega_in_cycle": False, "omega_forward": "eval",
    "parametrisation": "raw", "omega_optimizer": "sgd", "detach_teacher": False, "gradient_equilibrium": True,
}  # fmt: skip

#: Further options that an option needs to have an effect: with a detached teacher, KL is cross-entropy plus a constant; DBT's
#: temperature rises only while the teacher is confident; a few draws at 0.3 and 0.9 can be equal.
ALSO: Mapping[str, Mapping[str, Any]] = {
    "first_epochs": {"finetune_first": True},
    "distillation": {"detach_teacher": False},
    "annealing": {"temperature": 0.1},
    "replacing_rate": {"replacing_rate": 0.01},
}


class ThreeExitMLP(nn.Module):
    """Three layers of tanh units on feature vectors, with a linear exit after each.

    Args:
        features: Size of a feature vector.
        hidden: Units of each layer.
        classes: K.
        dropout: Probability of dropping an input of an exit.
    """

    num_exits = 3
    depth = 3

    def __init__(self, features: int = 6, hidden: int = 12, classes: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        sizes = [features, hidden, hidden, hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.heads = nn.ModuleList(nn.Linear(hidden, classes) for _ in range(self.num_exits))
        self.dropout = nn.Dropout(dropout)
        self.exit_layers = tuple(range(1, self.num_exits + 1))

    def record(self, batch: Batch, keep: Keep = "logits") -> Record:
        """Run all exits on one batch.

        Args:
            batch: `features` (B, features) and optionally `labels` (B,).
            keep: What the record holds besides logits.

        Returns:
            Logits (M, B, K), labels, and what `keep` asks for.
        """
        x, logits, states = batch["features"], [], []
        for index, layer in enumerate(self.layers):
            x = torch.tanh(layer(x))
            states.append(x)
            if index + 1 in self.exit_layers:
                logits.append(self.heads[self.exit_layers.index(index + 1)](self.dropout(x)))
        hidden = torch.stack([states[layer - 1] for layer in self.exit_layers])
        return Record(
            torch.stack(logits).float(),
            batch.get("labels"),
            hidden if keep != "logits" else None,
            torch.stack(states) if keep == "states" else None,
        )

    def keep_exits(self, layers: Sequence[int]) -> None:
        """Remove all exits except those after these layers, from 1."""
        self.heads = nn.ModuleList(self.heads[self.exit_layers.index(layer)] for layer in layers)
        self.exit_layers = tuple(layers)
        self.num_exits = len(layers)


def toy_rows(n: int = 96, features: int = 6, seed: int = 0, classes: int = 2) -> TensorSamples:
    """Make samples whose label depends on the sign of a product of two features, which one layer cannot represent.

    Args:
        n: Number of samples.
        features: Number of features, at least 3.
        seed: Random seed.
        classes: K; at most classes 0 and 1 occur.

    Returns:
        `features` (n, features) float32 and `labels` (n,).
    """
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=g)
    labels = ((x[:, 0] * x[:, 1] + 0.5 * x[:, 2]) > 0).long() % classes
    return TensorSamples(features=x, labels=labels)


def toy_mlp(seed: int = 0, **options: float) -> ThreeExitMLP:
    """Make a small network with seeded parameters.

    Args:
        seed: Seed of torch's global generator, from which the parameters are drawn.
        **options: Arguments of :class:`ThreeExitMLP`.

    Returns:
        The network, in training mode.
    """
    torch.manual_seed(seed)
    return ThreeExitMLP(**options)  # type: ignore[arg-type]


def tiny_encoder(seed: int = 0) -> Any:
    """Make an early-exit model of a random BERT: four layers, 32 hidden units, an exit on each layer, two classes."""
    from transformers import AutoConfig, AutoModel

    from leebert.config import ExitConfig
    from leebert.model import build_model

    torch.manual_seed(seed)
    shape = AutoConfig.for_model(
        "bert", vocab_size=64, hidden_size=32, num_attention_heads=2, intermediate_size=48, num_hidden_layers=4,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return build_model(AutoModel.from_config(shape), ("no", "yes"), exits=ExitConfig(criterion="never"))


def tiny_texts(n: int = 24, seed: int = 0) -> TensorSamples:
    """Make samples of 12 random tokens, labelled by the half of the vocabulary that most of their tokens are from.

    Args:
        n: Number of samples.
        seed: Random seed.

    Returns:
        `input_ids` and `attention_mask` (n, 12), and `labels` (n,), 0 or 1.
    """
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    high = torch.where(torch.rand(n, 12, generator=g) < 0.8, labels[:, None], 1 - labels[:, None])
    ids = torch.randint(5, 32, (n, 12), generator=g) + 28 * high
    return TensorSamples(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)


class MethodContract:
    """Tests that a method passes. Subclass it, name the subclass ``Test…`` and set `method`.

    Attributes:
        method: The method.
        on_encoder: Whether to train a BERT of four layers, for methods that remove layers or heads of an encoder; else three
            layers of tanh units.
        module: The module that defines it, which must not import torch before a function is called; empty: the module
            of its functions.
        changed: Another value for own options for which the contract can't choose one.
    """

    method: ClassVar[Method]
    on_encoder: ClassVar[bool] = False
    module: ClassVar[str] = ""
    changed: ClassVar[Mapping[str, Any]] = {}

    def config(self, **options: Any) -> TrainConfig:
        """Make a training configuration of the method for the tiny networks.

        Args:
            **options: Options to change.

        Returns:
            The validated configuration.
        """
        defaults = {
            "algorithm": self.method.name, "lr_theta": 3e-3 if self.on_encoder else 1e-2, "lr_omega": 1e-2,
            "batch_size": 4 if self.on_encoder else 8, "max_epochs": 2, "first_epochs": 1, "prune_rounds": 2, "precision": "fp32",
        }  # fmt: skip
        return TrainConfig.model_validate({**defaults, **options})

    def network(self, seed: int = 0, on_encoder: bool | None = None) -> Any:
        """Make an untrained network.

        Args:
            seed: Seed of its parameters.
            on_encoder: Whether it is an encoder; None: as the class says.

        Returns:
            :func:`tiny_encoder` or :func:`toy_mlp`.
        """
        encoder = self.on_encoder if on_encoder is None else on_encoder
        return tiny_encoder(seed) if encoder else toy_mlp(seed)

    def samples(self, seed: int = 0, on_encoder: bool | None = None) -> TensorSamples:
        """Make samples for :meth:`network`.

        Args:
            seed: 0: training samples; any other: validation samples.
            on_encoder: Whether the network is an encoder; None: as the class says.

        Returns:
            At most 96 labelled samples.
        """
        if self.on_encoder if on_encoder is None else on_encoder:
            return tiny_texts(24 if seed == 0 else 10, seed)
        return toy_rows(96 if seed == 0 else 40, seed=seed)

    def fit(self, config: TrainConfig, on_encoder: bool | None = None) -> TrainResult:
        """Train an untrained network.

        Args:
            config: The configuration.
            on_encoder: Whether the network is an encoder; None: as the class says.

        Returns:
            The result, with the trained model and its reports.
        """
        samples, held_out = self.samples(0, on_encoder), self.samples(1, on_encoder)
        with self.available():
            return fit(self.network(0, on_encoder), samples, config, validation=held_out)

    def _fit_watched(self, config: TrainConfig, network: Any = None) -> TrainResult:
        """Train for a test that watches calls; :meth:`fit` may be overridden to return an earlier result."""
        return fit(network or self.network(), self.samples(), config, validation=self.samples(1))

    def available(self) -> contextlib.AbstractContextManager[None]:
        """Context in which the method is registered, also if its package is not installed."""
        return registered(METHODS, self.method)

    @pytest.fixture(autouse=True)
    def _registered(self) -> Iterator[None]:
        """Register the method for each test."""
        with self.available():
            yield

    def test_its_row_is_complete(self) -> None:
        """The method is valid and has the texts of tables."""
        row = self.method
        METHODS.check(row)
        for field in ("title", "source", "trains", "cost", "differs"):
            assert getattr(row, field).strip(), f"{row.name}: {field} is empty"
        assert all(field.description for field in row.own_fields.values()), "own_options: each needs a description"

    def test_it_can_be_sent_to_a_worker(self) -> None:
        """The method can be pickled."""
        unpickled = pickle.loads(pickle.dumps(self.method))
        assert unpickled.as_dict() == self.method.as_dict()  # partial functions have no equality

    def test_its_module_needs_no_torch(self) -> None:
        """The module of the method imports without torch."""
        functions = [f for f in (self.method.stages, self.method.omega, self.method.costs) if hasattr(f, "__module__")]
        module = self.module or str(functions[0].__module__)
        code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert not ran.returncode, f"{module} imports torch: import it inside functions\n{ran.stderr}"

    def test_its_stages_and_their_costs_agree(self) -> None:
        """Names and teachers of the stages are valid, and `costs`, `samples` and `splits_data` agree with the stages."""
        with self.available():
            config, exits = self.config(), self.network().num_exits
            stages, costs = method(config, exits), stage_costs(config)
            names = [stage.name for stage in stages]
            assert len(set(names)) == len(names), f"stages of one name: {names}"
            for i, stage in enumerate(stages):
                assert stage.teacher is None or stage.teacher in names[:i], (
                    f"{stage.name}: its teacher is no earlier stage"
                )
            assert (len(costs) > 1) == (len(stages) > 1), f"costs of {len(costs)} stages, and {len(stages)} stages"
            assert most_epochs(config) == sum(epochs_of(stages, config))
            assert all(cost > 0 and epochs >= 0 for epochs, cost in costs), f"costs {costs}"
            split = any(stage.algorithm.splits_data for stage in stages)
            assert split == (self.method.samples != "all"), (
                f"samples is {self.method.samples!r} and splits_data {split}: 'D1' and 'D1 and D2' go with True, 'all' with False"
            )

    def test_its_costs_count_its_forward_and_backward_passes(self) -> None:
        """Without stages of its own, `costs` is (forward passes + 2 · backward passes) / 3 per update of θ."""
        if self.method.stages is not None:
            return
        config = self.config(max_epochs=1, **({"cycle_length": 2} if self.method.reads("cycle_length") else {}))
        network, passes = self.network(), {"forward": 0, "backward": 0}
        record = network.record
        backward: Callable[..., None] = torch.Tensor.backward

        def counted_record(*args: Any, **options: Any) -> Record:
            passes["forward"] += network.training  # validation runs in eval mode
            result: Record = record(*args, **options)
            return result

        def counted_backward(self: torch.Tensor, *args: Any, **options: Any) -> None:
            passes["backward"] += 1
            backward(self, *args, **options)

        network.record = counted_record
        with mock.patch.object(torch.Tensor, "backward", counted_backward):
            trained = self._fit_watched(config, network)
        measured = (passes["forward"] + 2 * passes["backward"]) / (3 * trained.reports[-1].theta_updates)
        ((_, cost),) = stage_costs(config)
        assert abs(measured - cost) < 1e-6, f"costs: {cost:.3f} for an update of θ; {measured:.3f} measured"

    def test_omega_learns_from_d1_if_its_row_declares_it(self) -> None:
        """`omega_on_d1` holds for methods that update ω with the terms of θ's batches."""
        original, at_lr_theta = StageLevel.omega_step, []

        def omega_step(level: StageLevel, **terms: Any) -> None:
            at_lr_theta.append(terms.get("at_lr_theta") is not None)
            original(level, **terms)

        with mock.patch.object(StageLevel, "omega_step", omega_step):
            self._fit_watched(self.config(max_epochs=1))
        assert any(at_lr_theta) == self.method.omega_on_d1, f"omega_on_d1 is {self.method.omega_on_d1}"

    def test_it_learns_deterministically_and_resumes_bit_for_bit(self, tmp_path: Path) -> None:
        """Training lowers the loss, and an interrupted and resumed run equals an uninterrupted one bit for bit."""
        config = self.config()
        expected = self.fit(config)
        assert expected.ended == "max_epochs"
        loss = expected.reports[-1].exits["loss"]
        assert all(map(math.isfinite, loss)), f"losses {loss}"
        with self.available():
            torn = train_epochs(
                self.network(), self.samples(), config, validation=self.samples(1), checkpoints=Checkpoints(tmp_path)
            )
            epochs = len(expected.reports)
            for _ in range(min(epochs // 2 + 1, epochs - 1)):
                next(torn)
            torn.close()  # type: ignore[attr-defined]
            resumed = fit(
                self.network(7), self.samples(), config, validation=self.samples(1), checkpoints=Checkpoints(tmp_path)
            )
        assert [r.exits for r in resumed.reports] == [r.exits for r in expected.reports]
        assert [r.weights for r in resumed.reports] == [r.weights for r in expected.reports]
        same_parameters(expected.model, resumed.model)
        untrained = self.fit(config.model_copy(update={"lr_theta": 1e-12, "max_epochs": 1}))
        assert loss[-1] < untrained.reports[-1].exits["loss"][-1], "training does not lower the last exit's loss"

    def test_it_keeps_as_many_exits_as_its_row_declares(self) -> None:
        """The trained model has one exit if the criterion of the method is `never`, else several."""
        trained = self.fit(self.config()).model
        assert (trained.num_exits == 1) == self.method.one_exit, (
            f"exits {self.method.exits!r}, {trained.num_exits} exits"
        )

    def test_it_reads_every_option_that_it_declares(self) -> None:
        """Another value of each declared option trains another model."""
        for option in sorted({*self.method.options, *self.method.own_fields}):
            needed = ALSO.get(option, {})
            with self.available():
                before = self.config(**needed)
                after = self.config(**{**needed, option: self._other_value(option, before)})
            encoder = self.on_encoder or option == "gradient_equilibrium"  # only encoders support it
            a, b = self.fit(before, encoder).model, self.fit(after, encoder).model
            equal = len(list(a.parameters())) == len(list(b.parameters())) and all(
                torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True) if x.shape == y.shape
            )
            assert not equal, (
                f"option {option!r}: {_value(before, option)!r} and {_value(after, option)!r} train the same model; "
                "remove it from options, or override `config` so that it has an effect on the tiny network"
            )

    def test_weights_that_it_learns_move_and_at_no_rate_it_is_its_control(self) -> None:
        """At a λ2 near 0, ω stays, and training equals uniform weights on the same samples, bit for bit."""
        if not self.method.learns_omega or self.method.stages is not None:
            return
        assert self.fit(self.config()).reports[-1].weights != self.fit(self._control()).reports[-1].weights, (
            "the loss weights do not move: check that ω is updated, with a gradient that its parametrisation does not cancel"
        )
        unmoved = self.fit(self.config(lr_omega=1e-12))
        same_parameters(unmoved.model, self.fit(self._control()).model)

    def test_its_own_rule_of_omega_keeps_all_state_in_its_memory(self) -> None:
        """Without the option `omega_optimizer`, the method's own rule updates ω; equal calls give equal results."""
        if not self.method.learns_omega or self.method.reads("omega_optimizer"):
            return
        original, rules = StageLevel.omega_step, []

        def omega_step(level: StageLevel, *, rule: OmegaRule | None = None, **terms: Any) -> None:
            rules.append(rule)
            original(level, rule=rule and functools.partial(_twice, rule), **terms)

        with mock.patch.object(StageLevel, "omega_step", omega_step):
            self._fit_watched(self.config(max_epochs=1))
        assert rules, "it never calls level.omega_step"
        assert all(rules), "omega_step gets no rule, so it uses omega_optimizer: add that to options"

    def _control(self) -> TrainConfig:
        """The configuration with uniform weights, on the samples that train θ."""
        config = self.config(**({"teachers": self.method.teachers} if self.method.teachers else {}))
        name = UNIT if self.method.samples == "all" else UNIT_ON_D1
        return TrainConfig.model_validate({**config.model_dump(exclude=set(self.method.own_fields)), "algorithm": name})

    def _other_value(self, option: str, before: TrainConfig) -> Any:
        """Choose another value for an option."""
        if option in self.changed:
            return self.changed[option]
        if option in CHANGED:
            default = TrainConfig.model_fields[option].default
            return CHANGED[option] if CHANGED[option] != getattr(before, option) else default
        field = self.method.own_fields[option]
        if isinstance(field.default, bool):
            return not field.default
        if isinstance(field.default, int | float):
            return field.default + 1 if isinstance(field.default, int) else field.default * 2 or 0.5
        return next(value for value in get_args(field.annotation) if value != field.default)


def _twice(
    rule: OmegaRule, omega: torch.Tensor, gradient: torch.Tensor, rate: float, memory: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Call a rule with copies of its arguments and with its arguments; returns the next ω."""
    copied = {name: value.clone() for name, value in memory.items()}
    once, again = rule(omega.clone(), gradient.clone(), rate, copied), rule(omega, gradient, rate, memory)
    alike = copied.keys() == memory.keys() and all(torch.equal(copied[name], memory[name]) for name in memory)
    alike = alike and torch.equal(once, again)
    assert alike, "two equal calls of the rule differ, so a resumed run would differ: store its state in `memory`"
    return again


def _value(config: TrainConfig, option: str) -> Any:
    return config.own[option] if option in config.own else getattr(config, option)


def same_parameters(a: nn.Module, b: nn.Module) -> None:
    """Assert that two networks have equal parameters, bit for bit.

    Args:
        a: A network.
        b: Another one with the same names of parameters.

    Raises:
        AssertionError: A parameter differs.
    """
    for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.equal(x, y), f"{name} differs"
