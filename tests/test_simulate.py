"""Simulated sweeps: the driver's own decisions over a record, and what the default pruner saves on real records."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import Field, create_model
from test_driver import a_study, run_all

from leebert.errors import ConfigError, SweepError
from tune.pruners import PRUNERS, PrunerPlugin, Warmed, make_pruner
from tune.pruners.none import NoPruner
from tune.running.driver import Driver
from tune.running.recording import RecordedCell, RecordedConfiguration, Recording, recorded_configurations
from tune.running.simulate import InOrder, replay, simulate
from tune.searchers import SEARCHERS, SearcherPlugin
from tune.searchers.random import RandomSearcher
from tune.space import Budget, SweepSpec, config_id, load_space, resolved_yaml
from tune.space.plugins import Drawn
from tune.store.history import History
from tune.store.ledger import Ledger, SweepState

RECORDS = Path(__file__).parent.parent / "docs" / "results" / "pruning"
GRID = Path(__file__).parent.parent / "benchmarks" / "pruning_grid.yaml"
CELLS = tuple((0, fold) for fold in range(3))
EPOCHS = 4
RATES = [1e-5 * (i + 1) for i in range(12)]


def spec_of(pruner: object = "none", **more: object) -> SweepSpec:
    raw = {"task": "mrpc", "backbone": "x", "algorithms": ["clo-v2"], "space": {"lr_theta": RATES}}
    return SweepSpec.model_validate(
        {**raw, "training": {"max_epochs": EPOCHS}, "folds": 3, "searcher": "random", "pruner": pruner, **more}
    )


def synthetic(seed: int, folder: Path) -> Recording:
    """Scores as effects of configuration, fold and both, learning curves of different speed, and noise of each epoch."""
    rng = np.random.default_rng(seed)
    n, shape = len(RATES), (len(RATES), len(CELLS), EPOCHS)
    quality, hardness = rng.normal(0, 1, (n, 1, 1)), rng.normal(0, 2, (1, len(CELLS), 1))
    interaction, noise = rng.normal(0, 0.7, (n, len(CELLS), 1)), rng.normal(0, 0.4, shape)
    curve = 3 * np.exp(-np.arange(EPOCHS) / rng.uniform(0.7, 2, (n, 1, 1)))
    scores = (75 + quality + hardness + interaction - curve + noise) / 100
    spec = spec_of()
    folder.mkdir(exist_ok=True)
    (folder / "space.yaml").write_text(resolved_yaml(spec))
    configurations = [
        RecordedConfiguration(values, tuple(cell(fold, of.tolist()) for fold, of in enumerate(scores[i])))
        for i, values in enumerate(spec.configurations())
    ]
    return Recording("synthetic", folder / "space.yaml", tuple(configurations))


def cell(fold: int, scores: list[float], seconds: float = 1.0) -> RecordedCell:
    return RecordedCell(0, fold, tuple(scores), (seconds,) * len(scores), int(np.argmax(scores)), "max_epochs")


def known(recording: Recording) -> dict[str, RecordedConfiguration]:
    return {config_id(c.values): c for c in recording.configurations}


def in_order(configurations: dict[str, RecordedConfiguration]) -> InOrder:
    return InOrder({config: c.values for config, c in configurations.items()})


def told(state: SweepState) -> list[tuple[object, ...]]:
    """What became of every configuration, epoch by epoch."""
    return [
        (c.id, c.state, [(k.seed, k.fold, k.state, [(e.epoch, e.score) for e in k.epochs]) for k in c.cells])
        for c in state.history()
    ]


# Simulation and reality.


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory):
    """A function that really sweeps the toy problem with a pruner, and the space."""
    rates = [1e-1, 3e-2, 1e-2, 1e-3, 1e-4]
    raw = {"task": "mrpc", "backbone": "x", "algorithms": ["blo"], "space": {"lr_theta": rates}}
    spec = SweepSpec.model_validate({**raw, "training": {"max_epochs": 3}, "folds": 2})

    def sweep(pruner: str, **options: object) -> SweepState:
        folder = tmp_path_factory.mktemp(pruner)
        ledger = Ledger(folder / "ledger")
        writer = ledger.driver_writer(1)
        writer.append({"kind": "sweep"})
        writer.close()
        values = {config_id(v): v for v in spec.configurations()}
        chosen = make_pruner(with_pruner(spec, pruner, **options))
        driver = Driver(
            a_study(folder, max_epochs=3), ledger, InOrder(values), chosen, config_id=config_id
        )  # fmt: skip
        run_all(driver)
        return ledger.read()

    return spec, sweep, sweep("none")


def with_pruner(spec: SweepSpec, name: str, **options: object) -> SweepSpec:
    return spec.model_copy(update={"pruner": type(spec.pruner)(name=name, **options)})


@pytest.mark.slow
@pytest.mark.parametrize(("pruner", "options"), [("halving", {"eta": 2}), ("racing", {"alpha": 0.3})])
def test_a_simulation_decides_what_a_real_sweep_decides(toy, pruner, options):
    spec, sweep, unpruned = toy
    real = sweep(pruner, **options)
    recorded = {config_id(c.values): c for c in recorded_configurations(unpruned)}
    simulated = replay(recorded, spec.cells(), in_order(recorded), make_pruner(with_pruner(spec, pruner, **options)))
    assert told(simulated) == told(real)
    assert simulated.pruned
    assert simulated.pruned.keys() == real.pruned.keys()


@pytest.mark.slow
def test_without_a_pruner_everything_is_replayed(toy):
    spec, _, unpruned = toy
    recorded = {config_id(c.values): c for c in recorded_configurations(unpruned)}
    assert told(replay(recorded, spec.cells(), in_order(recorded), NoPruner())) == told(unpruned)


@dataclasses.dataclass
class Spy:
    """Notes at every decision how many epochs each configuration had reported."""

    seen: list[dict[str, int]] = dataclasses.field(default_factory=list)

    def decide(self, history: History, config_id: str, cell: tuple[int, int], epoch: int) -> bool:
        self.seen.append({c.id: sum(len(k.epochs) for k in c.cells) for c in history})
        return True


def test_reports_come_in_the_order_of_their_seconds():
    """Three configurations on two places; the first takes three times as long for an epoch as the others."""
    values = [{"algorithm": "clo-v2", "lr_theta": rate} for rate in (1e-5, 2e-5, 3e-5)]
    configurations = {
        config_id(v): RecordedConfiguration(v, (cell(0, [0.5, 0.6], 3.1 if i == 0 else 1.0),))
        for i, v in enumerate(values)
    }
    slow, fast, third = configurations
    spy = Spy()
    replay(configurations, ((0, 0), (0, 1)), in_order(configurations), spy, concurrent=2)
    assert spy.seen == [
        {slow: 0, fast: 1},
        {slow: 0, fast: 2},  # the end of its cell
        {slow: 0, fast: 2, third: 1},
        {slow: 1, fast: 2, third: 1},
        {slow: 1, fast: 2, third: 2},
        {slow: 2, fast: 2, third: 2},
    ]


def test_a_budget_ends_a_simulation(tmp_path):
    configurations = known(synthetic(0, tmp_path))
    trials = replay(configurations, CELLS, in_order(configurations), NoPruner(), budget=Budget(trials=5))
    assert [c.state for c in trials.history()] == ["complete"] * 5
    epochs = replay(configurations, CELLS, in_order(configurations), NoPruner(), budget=Budget(fold_epochs=30))
    assert epochs.fold_epochs == 30


# What it answers.


def test_nothing_pruned_is_nothing_saved_and_nothing_lost(tmp_path):
    answer = simulate(synthetic(0, tmp_path), spec_of(), orders=3).as_dict()
    assert (answer["spent_pct"]["mean"], answer["regret_points"]["mean"]) == (100.0, pytest.approx(0.0))
    assert (answer["best_picked_pct"], answer["pruned"]) == (100.0, 0.0)


def test_spent_and_regret_are_those_of_the_sweeps(tmp_path):
    recording = synthetic(1, tmp_path)
    spec = spec_of("halving")
    full = {config: c.score for config, c in known(recording).items()}
    for outcome in simulate(recording, spec, orders=5, seed=3).outcomes:
        assert 0 < outcome.spent < 1
        assert any(max(full.values()) - outcome.regret == pytest.approx(score) for score in full.values())
    assert simulate(recording, spec, orders=5, seed=3) == simulate(recording, spec, orders=5, seed=3)
    assert simulate(recording, spec, orders=5, seed=3) != simulate(recording, spec, orders=5, seed=4)


@pytest.mark.slow
def test_on_synthetic_grids_racing_saves_more_than_it_loses(tmp_path):
    """With a spread of configurations of one point, interaction of 0.7: less than 60 % spent, less than 0.1 lost."""
    outcomes = list(
        itertools.chain.from_iterable(
            simulate(synthetic(seed, tmp_path), spec_of("racing"), orders=10).outcomes for seed in range(12)
        )
    )
    assert np.mean([o.spent for o in outcomes]) < 0.6
    assert 100 * np.mean([o.regret for o in outcomes]) < 0.1


def test_tpe_searches_a_whole_grid_and_nothing_less(tmp_path):
    recording = synthetic(2, tmp_path)
    spec = spec_of(searcher={"name": "tpe", "configurations": 11})
    answer = simulate(recording, spec, orders=2).as_dict()
    assert answer["spent_pct"]["mean"] == pytest.approx(100 * 11 / 12)
    part = dataclasses.replace(recording, configurations=recording.configurations[1:])
    with pytest.raises(ConfigError, match="any of the grid's 12 configurations, of which 1 are not recorded"):
        simulate(part, spec, orders=1)


def test_what_was_measured_cannot_be_changed(tmp_path):
    recording = synthetic(0, tmp_path)
    with pytest.raises(ConfigError, match="may change only pruner, searcher and budget"):
        simulate(recording, recording.spec(["folds=2"]), orders=1)


# Where records come from.


def test_a_copy_replays_like_its_sweep(tmp_path):
    recording = dataclasses.replace(synthetic(0, tmp_path / "sweep"), left_out=2)
    recording.space.write_text(recording.space.read_text() + "storage: /somewhere\n")
    recording.save(tmp_path / "copy")
    copy = Recording.find(str(tmp_path / "copy"))
    assert copy.configurations == recording.configurations
    assert (copy.name, copy.left_out) == (recording.name, 2)
    assert "/somewhere" not in (tmp_path / "copy" / "space.yaml").read_text()
    assert simulate(copy, spec_of("racing"), orders=2) == simulate(recording, spec_of("racing"), orders=2)


def test_a_damaged_copy_is_an_error(tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps({"sweep": "x"}))
    with pytest.raises(SweepError, match=r"scores.json can't be read as a copy"):
        Recording.find(str(tmp_path))


def test_only_complete_configurations_are_replayed(tmp_path):
    """A pruned and an unfinished one are counted as left out; with less than two complete ones there is nothing to do."""
    configurations = known(synthetic(0, tmp_path))
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "space.yaml").write_text(resolved_yaml(spec_of()))
    ledger = Ledger(folder / "ledger")
    writer = ledger.driver_writer(1)
    writer.append({"kind": "sweep"})
    for index, (config, recorded) in enumerate(itertools.islice(configurations.items(), 4)):
        writer.append({"kind": "suggest", "config": config, "index": index + 1, "values": recorded.values})
        writer.append({"kind": "grant", "config": config, "attempt": 1, "fences": {}})
        trial = ledger.attempt_writer(config, "0001-0001")
        for _, records in recorded.reports[: 12 if index < 2 else 5]:
            for record in records:
                trial.append({k: v for k, v in record.items() if k not in ("seq", "time")})
        trial.close()
        if index == 1:
            with pytest.raises(SweepError, match="1 of its 2 configurations are complete"):
                Recording.find(str(folder))
        if index < 2:
            writer.append({"kind": "complete", "config": config})
    writer.append({"kind": "prune", "config": config, "seed": 0, "fold": 1, "epoch": 0})
    writer.close()
    recording = Recording.find(str(folder))
    assert recording.configurations == tuple(configurations.values())[:2]
    assert recording.left_out == 2


# The command, and the claim.


def test_the_command_answers_and_keeps_a_copy(tmp_path, cli):
    synthetic(0, tmp_path / "a").save(tmp_path / "b")
    ran = cli("leebert-tune", "simulate", tmp_path / "b", "--orders", 3, "--save", tmp_path / "c")
    assert ran.code == 0, ran.err
    assert "pruner racing" in ran.out
    again = cli(
        "leebert-tune",
        "simulate",
        tmp_path / "c",
        "--orders",
        3,
        "--pruner",
        "halving",
        "--set",
        "pruner.eta=2",
        "--json",
    )
    assert again.json["pruner"]["eta"] == 2
    assert 0 < again.json["spent_pct"]["mean"] < 100
    wrong = cli("leebert-tune", "simulate", tmp_path / "c", "--pruner", "rasing")
    assert (wrong.code, wrong.out) == (1, "")
    assert "pruner.name: 'rasing'" in wrong.err


class Cautious(Warmed):
    others: int = Field(default=2, ge=1)


def test_a_sweep_with_parts_of_another_package_is_simulated_with_any(tmp_path, cli):
    """Their own options go with them; those that other parts have as well stay, as between built-in parts."""
    pruner = PrunerPlugin(
        name="cautious", title="never", source="a test", options=Cautious, make=lambda spec, o: NoPruner()
    )
    searcher = SearcherPlugin(
        name="widely", title="at random", source="a test", options=create_model("Wide", __base__=Drawn, width=(int, 3)),
        make=lambda spec, options: RandomSearcher(spec, options.seed), reads_scores=False,
    )  # fmt: skip
    PRUNERS.register(pruner)
    SEARCHERS.register(searcher)
    try:
        recording = synthetic(0, tmp_path / "a")
        own = {"pruner": {"name": "cautious", "others": 3, "min_epochs": 2}, "searcher": {"name": "widely", "width": 4}}
        recording.space.write_text(resolved_yaml(spec_of(**own)))
        recording.save(tmp_path / "b")
        simulated = ("leebert-tune", "simulate", tmp_path / "b", "--orders", 2, "--json")
        answers = [
            cli(*simulated).json,
            cli(*simulated, "--pruner", "cautious", "--searcher", "widely", "--set", "pruner.others=4").json,
        ]
    finally:
        PRUNERS.unregister("cautious")
        SEARCHERS.unregister("widely")
    assert [answer["searcher"] for answer in answers] == ["random", "widely"]
    racing, cautious = (answer["pruner"] for answer in answers)
    assert (racing["name"], racing["min_epochs"], "others" in racing) == ("racing", 2, False)
    assert (cautious["name"], cautious["min_epochs"], cautious["others"]) == ("cautious", 2, 4)


#: The copies of real records → most fold-epochs spent (per cent), most points below the best.
LIMITS = {"mrpc": (60, 0.2), "sst2": (60, 0.2)}


@pytest.mark.slow
@pytest.mark.parametrize("record", sorted(RECORDS.glob("*/")), ids=lambda path: path.name)
def test_the_default_pruner_pays_on_real_records(record, cli):
    """Means over 50 orders, on the grid that the results page names."""
    answer = cli("leebert-tune", "simulate", record, "--orders", 50, "--json").json
    assert (answer["pruner"]["name"], answer["orders"], answer["left_out"]) == ("racing", 50, 0)
    spent, regret = LIMITS[record.name]
    assert answer["spent_pct"]["mean"] <= spent
    assert answer["regret_points"]["mean"] <= regret
    assert all(path.stat().st_size < 60_000 for path in record.iterdir())
    assert load_space(record / "space.yaml").digest == load_space(GRID, [f"task={record.name}"]).digest
