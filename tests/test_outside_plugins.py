"""Parts of other packages in a sweep: what is recorded, and how a trial's process gets them or says that it can't."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from leebert.config import TrainConfig
from leebert.errors import ConfigError, SweepError
from leebert.exits import CRITERIA
from leebert.methods import METHODS, Method
from leebert.metrics import METRICS
from leebert.outside import origins, refuse_missing, same_origin
from leebert.plugins import Origin
from leebert.provenance import differences, digest_of
from leebert.testing import CriterionContract, MethodContract, MetricContract, toy_mlp, toy_rows
from leebert.train import fit
from tune.machines.nodes import Stamp
from tune.pruners import PRUNERS
from tune.running.outside import OutsidePlugin, OutsidePlugins, recorded
from tune.running.trial import CellTrial
from tune.searchers import SEARCHERS
from tune.space import SweepSpec
from tune.testing import PrunerContract, SearcherContract
from tune.tracking import views

ACCURACY = METRICS["accuracy"].measures["accuracy"]
MINE = dataclasses.replace(METHODS["slo"], name="mine", label="Mine")


def spec_of(algorithm: str = "mine", **keys: Any) -> SweepSpec:
    base = {"task": "mrpc", "backbone": "x", "algorithms": [algorithm, "slo"], "space": {"lr_theta": [1e-5, 2e-5]}}
    return SweepSpec.model_validate(base | keys)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A module that registers the method `mine`, and that another process could import."""
    (tmp_path / "my_parts.py").write_text(
        "import dataclasses\nfrom leebert.methods import METHODS\n"
        "METHODS.register(dataclasses.replace(METHODS['slo'], name='mine', label='Mine'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    yield "my_parts"
    METHODS.unregister("mine")


def test_a_registered_part_is_recorded_with_its_module_and_imported_from_it(module: str) -> None:
    source = Path(importlib.import_module(module).__file__ or "")
    spec = spec_of()
    record = recorded(spec, "accuracy")
    assert record == {"method mine": f"my_parts (code {digest_of(source)})"}
    assert recorded(spec_of("blo"), "accuracy") == {}
    plugins = OutsidePlugins.of(spec, "accuracy")
    assert plugins.plugins == (OutsidePlugin("method mine", Origin("my_parts", code=digest_of(source))),)
    METHODS.unregister("mine")  # as a trial's process begins
    del sys.modules[module]
    plugins.make_available()
    assert METHODS["mine"].label == "Mine"

    source.write_text(source.read_text() + "# changed\n")  # the digest stays that of the code in use
    assert recorded(spec, "accuracy") == record
    METHODS.unregister("mine")
    del sys.modules[module]
    with pytest.raises(
        SweepError, match=r"method mine is of my_parts \(code .*\), the driver's of my_parts \(code .*\); copy"
    ):
        plugins.make_available()
    changed = origins(record)
    (line,) = differences({"parts": record}, {"parts": changed})
    assert line == f"parts method mine was {record['method mine']}, is {changed['method mine']}"
    assert differences({"parts": {"method mine": "my_parts"}}, {"parts": changed}) == []  # of an older version


def test_a_part_of_a_script_travels_by_value() -> None:
    METHODS.register(MINE, module="__main__")
    plugins = OutsidePlugins.of(spec_of(), "accuracy")
    METHODS.unregister("mine")
    plugins.make_available()
    try:
        assert METHODS["mine"] == MINE
        assert plugins.plugins[0].origin.module == "__main__"
    finally:
        METHODS.unregister("mine")


@pytest.mark.parametrize(
    ("plugin", "line"),
    [
        (
            OutsidePlugin("method mine", Origin("ext.mine", "ext 1.0")),
            "node .*: method mine of ext 1.0 is missing; install it there",
        ),
        (
            OutsidePlugin("method mine", Origin("no_such")),
            "node .*: method mine of no_such: its module can't be imported",
        ),
        (
            OutsidePlugin("method mine", Origin("json")),
            "node .*: method mine of json is missing; let module json register",
        ),
    ],
)
def test_what_is_missing_on_a_node_is_one_line_and_stops_the_sweep(plugin: OutsidePlugin, line: str) -> None:
    with pytest.raises(SweepError, match=line) as error:
        OutsidePlugins(plugins=(plugin,)).make_available()
    assert "\n" not in str(error.value)
    trial: Any = CellTrial.__new__(CellTrial)
    trial.study = type("Study", (), {"outside": OutsidePlugins(plugins=(plugin,)), "stamp": None})()
    refusal = trial._refusal()
    assert (refusal.kind, refusal.message) == ("mismatch", str(error.value))


def test_another_version_on_a_node_is_refused() -> None:
    METHODS.register(MINE, module="ext.mine")
    METHODS._registered["mine"] = Origin("ext.mine", "ext 1.1")  # as an entry point has it
    with pytest.raises(SweepError, match="method mine is of ext 1.1, the driver's of ext 1.0; install the same"):
        OutsidePlugins(plugins=(OutsidePlugin("method mine", Origin("ext.mine", "ext 1.0")),)).make_available()
    METHODS.unregister("mine")


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("ext.mine", "ext 1.0 (ext.mine)", True),  # of an older version, which recorded the module alone
        ("ext.mine", "other", False),
        ("ext 1.0 (ext.mine)", "ext 1.1 (ext.mine)", False),
        ("ext.mine (code 01)", "ext.mine (code 02)", False),
        ("ext.mine (code 01)", "ext 1.0 (ext.mine)", False),
    ],
)
def test_an_origin_is_compared_as_far_as_it_is_recorded(before: str, after: str, same: bool) -> None:
    assert same_origin(before, after) is same_origin(after, before) is same


def test_the_modules_of_the_environment_reach_a_trial(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEEBERT_PLUGINS", module)
    plugins = OutsidePlugins.of(spec_of("blo"), "accuracy")
    monkeypatch.setenv("LEEBERT_PLUGINS", "json")  # the node's own list
    METHODS.unregister("mine")
    sys.modules.pop(module, None)
    plugins.make_available()
    assert "mine" in METHODS
    assert os.environ["LEEBERT_PLUGINS"] == f"{module},json"
    monkeypatch.delenv("LEEBERT_PLUGINS")
    with pytest.raises(SweepError, match="node .*: LEEBERT_PLUGINS: module no_such can't be imported"):
        OutsidePlugins("no_such").make_available()
    monkeypatch.delenv("LEEBERT_PLUGINS")


def test_nodes_compare_the_packages_of_parts() -> None:
    here = Stamp.local(("pytest", "no-such-package"))
    assert here.versions["pytest"] == pytest.__version__
    there = {**here.versions, "pytest": "1.0", "no-such-package": "2.0"}
    assert here.differences(there, here.code) == [
        ("pytest", "1.0", pytest.__version__),
        ("no-such-package", "2.0", "none"),
    ]


def test_a_record_whose_part_is_missing_here_is_refused_in_one_line() -> None:
    record = {"pruner median": "leebert-extension 1.0 (leebert_extension.median)"}
    with pytest.raises(ConfigError) as error:
        refuse_missing(record, "sweeps/a/manifest.json")
    assert str(error.value) == (
        f"sweeps/a/manifest.json: {PRUNERS.unknown('median')}; it came from leebert-extension 1.0 (leebert_extension.median)"
    )
    refuse_missing(None, "an older file")
    refuse_missing({"method slo": "x"}, "a built-in plugin")
    assert origins(["method slo", "method mine", f"exit criterion {next(iter(CRITERIA))}"]) == {}
    assert isinstance(METHODS["slo"], Method)


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (
            dataclasses.replace(CRITERIA["entropy"], name="mine", unit_of="zzz"),
            "unit_of should name another criterion: .*'zzz'",
        ),
        (dataclasses.replace(CRITERIA["entropy"], name="mine", make=None), "make should be a function, not None"),
        (
            dataclasses.replace(CRITERIA["entropy"], name="mine", colour="purple-ish"),
            "colour 'purple-ish' should be #rrggbb",
        ),
        (
            dataclasses.replace(CRITERIA["entropy"], name="mine, patience 3"),
            "name 'mine, patience 3' should have small",
        ),
        (
            dataclasses.replace(METRICS["accuracy"], name="mine", measures={"x": 3}),
            "measures should be a mapping of Measure",
        ),
        (dataclasses.replace(METRICS["accuracy"], name="mine", measures={}), "it has no measure"),
        *(
            (dataclasses.replace(METRICS["accuracy"], name="mine", measures={name: ACCURACY}), message)
            for name, message in (
                ("loss", "measure 'loss': every exit already has a value of this name"),
                ("score", "measure 'score': every exit already has a value of this name"),
                ("a b", "measure 'a b' should have small letters"),
            )
        ),
        (dataclasses.replace(PRUNERS["racing"], name="mine", options=int), "options should be a subclass of .*Frozen"),
        (dataclasses.replace(SEARCHERS["grid"], name="Mine"), "name 'Mine' should have small letters"),
    ],
)
def test_a_plugin_that_does_not_fit(plugin: Any, message: str) -> None:
    (registry,) = (
        r for r in (CRITERIA, METRICS, PRUNERS, SEARCHERS) if isinstance(plugin, type(next(iter(r.values()))))
    )
    with pytest.raises(ConfigError, match=f"does not fit: {message}"):
        registry.register(plugin)  # type: ignore[attr-defined]


def test_a_kind_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"manifest.json: parts: encoder mine: there is no kind of plugin 'encoder', only method"
    ):
        refuse_missing({"encoder mine": "ext 1.0"}, "manifest.json")
    with pytest.raises(ConfigError, match="there is no kind of plugin 'encoder'"):
        origins(["encoder mine"])


def test_the_parts_of_contributing_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of code is run as it stands, and what it adds meets the contract of its kind."""
    page = (Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text()
    *plugins, view = re.findall(r"```python\n(.*?)```", page.partition("## Add your own")[2], re.S)
    assert len(plugins) == 5
    for code in (*plugins, view):
        assert len([line for line in code.splitlines() if line.strip()]) <= 25
    shown = ModuleType("contributing")
    monkeypatch.setitem(sys.modules, shown.__name__, shown)  # pickle looks there
    try:
        for code in plugins:
            exec(compile(code, "CONTRIBUTING.md", "exec"), vars(shown))
        spec = spec_of("every-third", pruner={"name": "above-half", "min_epochs": 2}, searcher="backwards")
        assert recorded(spec, "recall").keys() == {
            "method every-third", "metric recall", "searcher backwards", "pruner above-half",
        }  # fmt: skip
        assert fit(toy_mlp(), toy_rows(), TrainConfig(algorithm="every-third", max_epochs=1)).reports
        assert METRICS["recall"].measured(np.array([1, 1, 0]), np.array([1, 0, 0]))["score"] == 0.5
        method = MethodContract()
        method.method = METHODS["every-third"]  # type: ignore[misc]
        method.test_its_row_is_complete()
        method.test_it_can_be_sent_to_a_worker()
        criterion, metric = CriterionContract(), MetricContract()
        criterion.criterion, metric.metric = CRITERIA["norm"], METRICS["recall"]  # type: ignore[misc]
        criterion.test_inference_equals_replay(5, 3)
        criterion.test_curve_equals_replay()
        metric.test_scores_are_fractions()
        pruner, searcher = PrunerContract(), SearcherContract()
        pruner.pruner, searcher.searcher = PRUNERS["above-half"], SEARCHERS["backwards"]  # type: ignore[misc]
        pruner.test_decisions_depend_on_the_history_alone()
        pruner.test_nothing_stops_before_min_epochs()
        searcher.test_finite_space_ends_after_each_configuration_once()
        searcher.test_proposals_depend_on_the_history_alone()
    finally:
        for registry, name in (
            (METHODS, "every-third"), (CRITERIA, "norm"), (METRICS, "recall"), (PRUNERS, "above-half"),
            (SEARCHERS, "backwards"),
        ):  # fmt: skip
            registry.unregister(name)
    names = dict(vars(views))
    exec(compile(view, "CONTRIBUTING.md", "exec"), names)
    state = names["_layers"]("a", views.ViewContents(("slo",)))
    assert [section["name"] for section in state["compareRunSections"]][1:] == ["Score against mean exit layer"]


def test_a_registered_model_requires_the_package_of_its_criterion(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tune.models.register import REQUIREMENTS, _requirements

    built_in = _requirements(REQUIREMENTS, {"exit criterion patience": "leebert"})
    assert [line.partition("==")[0] for line in built_in] == list(REQUIREMENTS)
    origin = Origin("ruamel.yaml", "ruamel.yaml 0")  # a package that is installed here, in place of a plugin's
    monkeypatch.setattr("tune.models.register.origin_of", lambda key: origin)
    with_plugin = _requirements(REQUIREMENTS, {"exit criterion margin": str(origin), "method mine": str(origin)})
    assert [line.partition("==")[0] for line in with_plugin] == [*REQUIREMENTS, "ruamel.yaml"]
    monkeypatch.setattr("tune.models.register.origin_of", lambda key: Origin("my_parts"))
    assert _requirements(REQUIREMENTS, {"exit criterion margin": "my_parts"}) == built_in
    assert "needs module my_parts for exit criterion margin where it is served" in caplog.text
