"""A method of another package: options of its own in configurations and search spaces, and what its absence does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import Field
from toys import toy_mlp, toy_rows

from leebert.config import Frozen, TrainConfig, parse
from leebert.errors import ConfigError
from leebert.findings import Findings
from leebert.methods import METHODS, Method, applies, register
from leebert.methods.common import DISTILLATION, JOINT, OMEGA
from leebert.testing import MethodContract
from leebert.train import fit
from tune.space import SweepSpec
from tune.space.fields import config_id


class Options(Frozen):
    """What `often` reads beside TrainConfig's fields."""

    every: int = Field(2, ge=1, le=8, description="Steps of θ per step of ω.")
    damping: float = Field(0.5, gt=0, le=1, description="Factor on the loss terms that ω sees.")
    first: Literal["theta", "omega"] = Field("theta", description="Which of the two moves first in a cycle.")


@dataclasses.dataclass(frozen=True)
class Often:
    """SLO once in some steps, on damped losses."""

    every: int
    damping: float
    first: str
    splits_data: bool = False

    def step(self, level: Any, b1: Any, position: int) -> int:
        losses = level.theta_step(b1)
        if position == (0 if self.first == "omega" else self.every - 1):
            level.omega_step(at_lr_omega=self.damping * losses)
        return (position + 1) % self.every


def omega(config: TrainConfig) -> Often:
    return Often(**config.own)


OFTEN = Method(
    name="often", title="Often", label="Often", group="learned weights", source="this test",
    trains="θ, and ω once in some steps", exits="patience", cost="1", differs="no paper's",
    options=DISTILLATION | OMEGA | JOINT, own_options=Options, omega=omega,
)  # fmt: skip


class TestOften(MethodContract):
    method = OFTEN
    test_its_module_needs_no_torch: Any = None  # this module trains

    def config(self, **options: Any) -> TrainConfig:
        # A step of Adam has its rate's size, whatever the gradient.
        return super().config(**{"omega_optimizer": "sgd", "lr_omega": 0.2, **options})


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(OFTEN)
    yield
    METHODS.unregister("often")


def test_its_options_are_those_of_a_configuration() -> None:
    config = TrainConfig.model_validate({"algorithm": "often", "every": "3"})
    assert config.own == {"every": 3, "damping": 0.5, "first": "theta"}
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.model_copy(update={"accumulate": 2}).own == config.own
    assert config != TrainConfig(algorithm="often")
    assert TrainConfig().own == {}
    assert TrainConfig.model_json_schema()["properties"]["algorithm"]["enum"] == list(METHODS)
    assert (applies("every", "often"), applies("every", "slo"), applies("batch_size", "often")) == (True, False, True)


def test_what_is_wrong_is_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        parse(TrainConfig, {"algorithm": "often", "every": 9, "dampin": 0.1, "batch_size": 0}, "file")
    assert str(error.value).splitlines() == [
        "file: batch_size: 0: should be greater than or equal to 1",
        "file: every: 9: should be less than or equal to 8",
        "file: dampin: 0.1: unknown key (did you mean 'damping'?)",
    ]
    with pytest.raises(ConfigError, match="file: every: 2: only often has this option"):
        parse(TrainConfig, {"algorithm": "slo", "every": 2}, "file")


def test_its_options_change_what_it_trains() -> None:
    def weights(**options: Any) -> Any:
        config = TrainConfig.model_validate(
            {
                "algorithm": "often",
                "lr_omega": 0.5,
                "omega_optimizer": "sgd",
                "batch_size": 8,
                "max_epochs": 2,
                **options,
            }
        )
        return fit(toy_mlp(), toy_rows(), config).reports[-1].weights

    assert weights() != weights(damping=0.1)
    assert weights() == weights(every=2)


SPACE = {
    "task": "mrpc", "backbone": "none", "algorithms": ["often", "slo"], "space": {"damping": [0.1, 1], "lr_theta": [1e-3]},
    "training": {"every": 3},
}  # fmt: skip


def test_a_space_searches_its_options_for_it_alone() -> None:
    spec = SweepSpec.model_validate(SPACE)
    found = list(spec.configurations())
    assert [(v["algorithm"], v.get("damping")) for v in found] == [("often", 0.1), ("slo", None), ("often", 1.0)]
    assert [spec.train_config(v).own.get("every") for v in found] == [3, None, 3]
    assert config_id({"algorithm": "often", "damping": 1}) == config_id({"algorithm": "often", "damping": 1.0})
    ranged = {
        **SPACE,
        "space": {"every": {"range": [1, 8]}},
        "training": {},
        "searcher": {"name": "random", "configurations": 2},
    }
    assert SweepSpec.model_validate(ranged).space["every"].count == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"damping": [0.1, 3]}}, "should be less than or equal to 1"),
        ({"space": {"evry": [1]}}, "unknown option (did you mean 'every'?)"),
        ({"algorithms": ["slo"]}, "none of the listed methods uses it, only often"),
        ({"space": {"first": {"range": [1, 2]}}}, "is no number and has no range"),
    ],
)
def test_what_a_space_says_of_its_options_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, Findings)) as error:
        SweepSpec.model_validate({**SPACE, **changes})
    causes = [details.get("ctx", {}).get("error") for details in error.value.errors()]  # type: ignore[union-attr]
    assert message in str([cause.findings for cause in causes if cause])


def test_where_its_package_is_missing_one_line_says_so() -> None:
    METHODS.unregister("often")
    with pytest.raises(ConfigError) as error:
        parse(TrainConfig, {"algorithm": "often"}, "runs/mine/training.json")
    (line,) = str(error.value).splitlines()
    assert line.startswith("runs/mine/training.json: algorithm: 'often': should be one of finetune, truncated, ")
    assert line.endswith(
        "if a package brings 'often', install that package, or name in LEEBERT_PLUGINS a module that registers it"
    )


def test_a_name_belongs_to_one_method() -> None:
    with pytest.raises(ConfigError, match=f"method 'slo' is claimed by leebert and by {__name__}; rename one"):
        register(dataclasses.replace(OFTEN, name="slo"))
    with pytest.raises(ConfigError, match="method 'other' .* does not fit: colour 'red' should be #rrggbb"):
        register(dataclasses.replace(OFTEN, name="other", colour="red"))


@dataclasses.dataclass(frozen=True)
class ByRule:
    """SLO by a rule of its own."""

    rule: Any
    splits_data: bool = False

    def step(self, level: Any, b1: Any, position: int) -> int:
        level.omega_step(at_lr_omega=level.theta_step(b1), rule=self.rule)
        return 0


def counting(config: TrainConfig) -> ByRule:
    calls: list[int] = []

    def rule(omega: Any, gradient: Any, rate: float, memory: dict[str, Any]) -> Any:
        calls.append(1)
        return omega - rate * len(calls) * gradient

    return ByRule(rule)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (counting, "two equal calls of the rule differ"),
        (lambda config: ByRule(None), "add that to options"),
    ],
)
def test_a_rule_of_omega_with_hidden_state_breaks_the_contract(make: Any, message: str) -> None:
    contract = MethodContract()
    row = dataclasses.replace(OFTEN, name="by-rule", omega=make, options=OFTEN.options - {"omega_optimizer"})
    contract.method = row  # type: ignore[misc]
    with contract.available(), pytest.raises(AssertionError, match=message):
        contract.test_its_own_rule_of_omega_keeps_all_state_in_its_memory()


class Without(Frozen):
    every: int


def test_an_option_of_its_own_needs_a_default() -> None:
    with pytest.raises(ConfigError, match="does not fit: its own option 'every' needs a default"):
        register(dataclasses.replace(OFTEN, name="other", own_options=Without))
