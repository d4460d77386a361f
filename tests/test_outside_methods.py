"""A method of another package: options of its own in configurations and search spaces, and what its absence does."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError
from toys import toy_mlp, toy_rows
from typer.testing import CliRunner

from leebert.cli import app
from leebert.config import Frozen, TrainConfig, parse
from leebert.errors import ConfigError
from leebert.exits import CRITERIA, usable, with_threshold
from leebert.findings import Findings
from leebert.methods import METHODS, Method, applies
from leebert.methods.common import DISTILLATION, JOINT, OMEGA
from leebert.metrics import METRICS
from leebert.testing import MethodContract
from leebert.train import fit
from leebert.training_options import train_config
from tune.analysis.labels import algorithm_label
from tune.space import SweepSpec, load_space
from tune.space.fields import config_id
from tune.space.plugins import PRUNERS, SEARCHERS


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

    @pytest.mark.slow  # the longest contract
    def test_it_reads_every_option_that_it_declares(self) -> None:
        super().test_it_reads_every_option_that_it_declares()

    def config(self, **options: Any) -> TrainConfig:
        # A step of Adam has its rate's size, whatever the gradient.
        return super().config(**{"omega_optimizer": "sgd", "lr_omega": 0.2, **options})


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    METHODS.register(OFTEN)
    yield
    METHODS.unregister("often")


def test_its_options_are_those_of_a_configuration() -> None:
    config = TrainConfig.model_validate({"algorithm": "often", "every": "3"})
    assert config.own == {"every": 3, "damping": 0.5, "first": "theta"}
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.model_copy(update={"accumulate": 2}).own == config.own
    assert config != TrainConfig(algorithm="often")
    assert TrainConfig(algorithm="slo").own == {}
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
def test_what_a_space_sets_of_its_options_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, Findings)) as error:
        SweepSpec.model_validate({**SPACE, **changes})
    causes = [details.get("ctx", {}).get("error") for details in error.value.errors()]  # type: ignore[union-attr]
    assert message in str([cause.findings for cause in causes if cause])


def test_where_its_package_is_missing_one_line_reports_it() -> None:
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
        METHODS.register(dataclasses.replace(OFTEN, name="slo"))
    with pytest.raises(ConfigError, match="method 'other' .* does not fit: colour 'red' should be #rrggbb"):
        METHODS.register(dataclasses.replace(OFTEN, name="other", colour="red"))


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


class Taken(Frozen):
    lr_theta: float = 0.5


class Loose(BaseModel):
    every: int = 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"own_options": Without}, "its own option 'every' needs a default"),
        ({"own_options": Taken}, "its own option 'lr_theta' is a field of TrainConfig: name it in options"),
        ({"own_options": Loose}, "own_options should be a subclass of leebert.standard_options.Frozen or None"),
        (
            {"options": OFTEN.options | {"lr_omgea"}},
            "options: 'lr_omgea' is no field of TrainConfig .did you mean 'lr_omega'",
        ),
        ({"exits": "margin"}, "exits: exit criterion 'margin' is not known here"),
        ({"teachers": "lea"}, "teachers 'lea' should be one of lae, lle, last, none .did you mean 'lle'"),
        ({"costs": None}, "costs should be a function, not None"),
        ({"label": "x" * 60}, "label 'x+' should have 1 to 20 characters"),
        (
            {"group": "others"},
            "group should be one of whole network, static, early exit, learned weights, not 'others'",
        ),
        ({"name": "a, b"}, "name 'a, b' should have small letters"),
        ({"source": None}, "source should be a text, not None"),
    ],
)
def test_a_method_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"does not fit: {message}"):
        METHODS.register(dataclasses.replace(OFTEN, **{"name": "other", **changes}))
    assert "other" not in METHODS


def test_built_in_parts_fit() -> None:
    for registry in (METHODS, CRITERIA, METRICS, PRUNERS, SEARCHERS):
        for name in registry.built_in:
            registry.check(registry[name])  # type: ignore[attr-defined]


def test_its_options_follow_the_method_of_a_copy() -> None:
    config = TrainConfig.model_validate({"algorithm": "often", "every": 3})
    assert config.model_copy(update={"algorithm": "slo"}) == TrainConfig(algorithm="slo")
    assert config.model_copy(update={"every": 4, "lr_theta": 1.0}).own["every"] == 4
    assert TrainConfig(algorithm="slo").model_copy(update={"algorithm": "often"}).own == Options().model_dump()
    for wrong in ({"every": 9}, {"algorithm": "slo", "every": 3}):
        with pytest.raises(ValidationError):
            config.model_copy(update=wrong)
    assert TrainConfig.model_json_schema()["additionalProperties"] is False
    assert config.model_dump(exclude={"every", "seed"}).keys() == {*TrainConfig.model_fields, "damping", "first"} - {
        "seed"
    }
    assert pickle.loads(pickle.dumps(config)) == config


class Floats(Frozen):
    every: float = Field(2.0, ge=1, description="As an option of `often`, but a number.")


@pytest.fixture
def another() -> Iterator[None]:
    """A method whose name comes before `often`, with an option of the same name and another type."""
    METHODS.register(dataclasses.replace(OFTEN, name="another", own_options=Floats))
    yield
    METHODS.unregister("another")


def test_the_identity_of_a_configuration_depends_on_its_own_method_alone(request: pytest.FixtureRequest) -> None:
    values = {"algorithm": "often", "every": 2}
    alone = config_id(values), SweepSpec.model_validate(SPACE).digest
    request.getfixturevalue("another")
    assert (config_id(values), SweepSpec.model_validate(SPACE).digest) == alone
    assert config_id({"algorithm": "another", "every": 2}) == config_id({"algorithm": "another", "every": 2.0})


@pytest.mark.parametrize("algorithms", [["often", "another"], ["another", "often"]])
def test_an_option_of_two_methods_is_checked_and_written_as_each_has_it(another: None, algorithms: list[str]) -> None:
    keys = {"algorithms": algorithms, "space": {"every": [2, 4]}, "training": {}}
    spec = SweepSpec.model_validate({**SPACE, **keys})
    assert {config_id(v) for v in spec.configurations()} == {
        config_id({"algorithm": algorithm, "every": every}) for algorithm in algorithms for every in (2, 4)
    }
    assert {type(spec.train_config(v).own["every"]) for v in spec.configurations()} == {int, float}
    for space, message in (
        ([2.5], "should be a valid integer"),
        ([9], "should be less than or equal to 8"),
        ({"range": [1, 8]}, "is of another type under some of the methods"),
    ):
        with pytest.raises(ValidationError) as error:
            SweepSpec.model_validate({**SPACE, **keys, "space": {"every": space}})
        assert message in str(error.value.errors()[0]["ctx"]["error"])


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with a plugin of every kind, whose modules need one that is absent."""
    for registry in (METHODS, CRITERIA, METRICS, PRUNERS, SEARCHERS):
        point = EntryPoint("broken", "leebert_no_such:PART", registry.group)
        monkeypatch.setattr(registry, "_entry_points", {"broken": [point]})
        monkeypatch.setattr(registry, "_skipped", set())


def test_a_broken_package_stops_nothing_that_needs_no_plugin_of_it(broken: None, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("task: mrpc\nbackbone: x\nalgorithms: slo\nspace: {lr_theta: [1.0e-5]}\n")
    spec = load_space(tmp_path / "space.yaml")
    assert spec.train_config(next(spec.configurations())) == train_config({}, {"algorithm": "slo"}, 0)
    assert not applies("damping", "slo")
    with pytest.warns(UserWarning, match="skipped: method 'broken'"):
        assert algorithm_label("broken") == "broken"
    METHODS._skipped.clear()
    with pytest.raises(ConfigError, match="method 'broken' of leebert_no_such can't be loaded .ModuleNotFoundError"):
        TrainConfig(algorithm="broken")
    with pytest.warns(UserWarning, match="skipped: exit criterion 'broken' of leebert_no_such can't be loaded"):
        assert "broken" not in with_threshold()
    assert [row.name for row in usable(1)] == ["entropy", "confidence"]  # without another warning
    with pytest.warns(UserWarning, match="skipped: method 'broken'"):
        result = CliRunner().invoke(app, ["methods", "--json"])
    assert [row["name"] for row in json.loads(result.stdout)] == [*METHODS.built_in, "often"]


def test_a_package_that_claims_a_built_in_name_stops_only_what_uses_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, name in ((METHODS, "rand"), (CRITERIA, "patience"), (PRUNERS, "halving"), (SEARCHERS, "tpe")):
        monkeypatch.setattr(registry, "_entry_points", {name: [EntryPoint(name, "mine:PLUGIN", registry.group)]})
        monkeypatch.setattr(registry, "_plugins", {})
        monkeypatch.setattr(registry, "_skipped", set())
    spec = SweepSpec.model_validate({**SPACE, "algorithms": ["slo"], "space": {"lr_theta": [1e-3]}, "training": {}})
    assert spec.train_config({"algorithm": "slo"}).algorithm == "slo"
    claims = "claimed by leebert and by mine; rename one"
    with pytest.raises(ConfigError, match=f"method 'rand' is {claims}"):
        TrainConfig(algorithm="rand")
    with pytest.warns(UserWarning, match=f"skipped: exit criterion 'patience' is {claims}"):
        assert [row.name for row in usable(1)] == ["entropy", "confidence"]
    for registry in (METHODS, CRITERIA, PRUNERS, SEARCHERS):
        assert [row.name for row in registry.own()] == list(registry.built_in)  # type: ignore[attr-defined]
