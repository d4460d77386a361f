"""The list of names: whole, equal to its page, accepted by MLflow, and readable."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from leebert.methods import METHODS
from tune.analysis import labels
from tune.running.system_usage import SystemUsage
from tune.tracking import names
from tune.tracking.feed import epoch_metrics

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "metrics.md").read_text()
HEADINGS = {"Metrics": "metric", "Parameters": "param", "Tags": "tag"}


def rows(heading: str) -> list[tuple[str, ...]]:
    """The body of the table under a heading of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in table]


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_page_agrees_with_the_list(heading: str) -> None:
    listed = [line for line in names.NAMES if line.family == HEADINGS[heading]]
    cells = [(f"`{n.pattern}`", ", ".join(n.runs), n.unit, n.step, n.meaning) for n in listed]
    assert rows(heading) == [tuple(cell for cell in row if cell) for row in cells]


def test_no_name_is_listed_twice_for_a_kind_of_run() -> None:
    seen = [(line.family, line.pattern, kind) for line in names.NAMES for kind in line.runs]
    assert len(seen) == len(set(seen))


def test_steps_of_one_metric_never_mix() -> None:
    """A chart's axis is one thing: what counts by layer and what counts by epoch have different names."""
    metrics = [line for line in names.NAMES if line.family == "metric"]
    assert all(line.step in ("epoch", "layer", "point", "none") for line in metrics)
    assert all((line.step == "epoch") == (line.runs == ("fold",)) for line in metrics)


@pytest.mark.parametrize("line", names.NAMES, ids=lambda line: f"{line.family}-{line.pattern}-{line.runs[0]}")
def test_mlflow_accepts_every_name(line: names.Name) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    example = line.pattern.replace("{exit}", "03").replace("{term}", "loss_theta").replace("{option}", "batch_size")
    example = (
        example.replace("{split}", "dev")
        .replace("{criterion}", "entropy")
        .replace("{measure}", "cpu_utilization_percentage")
    )
    {"metric": _validate_metric_name, "param": _validate_param_name, "tag": _validate_tag_name}[line.family](example)
    found = names.find(line.family, example)
    assert found is not None
    assert found.pattern == line.pattern


def test_exit_metrics_count_from_one_and_sort() -> None:
    assert names.exit_metric("score", 3) == "score/exit_03"
    made = [names.exit_metric("loss", exit) for exit in range(1, 25)]
    assert made == sorted(made)
    assert all(names.find("metric", name) for name in made)
    with pytest.raises(ValueError, match="count from 1"):
        names.exit_metric("score", 0)


def test_an_epoch_with_the_use_of_its_worker_has_system_metrics() -> None:
    epoch = {"score": 0.5, "theta_updates": 1, "seconds": 1.0, "train_loss": 0.1, "exits": {}, "weights": {}}
    used = {"system": dict(SystemUsage()())}
    made = epoch_metrics({**epoch, **used, "collapsed": []})
    system = {name.removeprefix("system/") for name in made if name.startswith("system/")}
    assert system == used["system"].keys() >= {"cpu_utilization_percentage", "process_memory_megabytes"}
    assert all(names.find("metric", name) for name in made)
    assert not any(name.startswith("system/") for name in epoch_metrics({**epoch, "collapsed": []}))


@pytest.mark.parametrize("name", ["score/exit_3", "exit_03/score", "score/exit_03/x", "accuracy", "depth/exit_03"])
def test_other_names_are_not_on_the_list(name: str) -> None:
    assert names.find("metric", name) is None


def test_labels_and_colours() -> None:
    assert labels.algorithm_label("clo-v2") == "CLO-v2"
    assert labels.algorithm_label("my-method") == "my-method"
    assert (labels.algorithm_colour("clo-v2"), labels.algorithm_colour("blo")) == ("#2272b4", "#de7921")
    assert labels.algorithm_colour("my-method") is None
    assert labels.present("pabee minus clo-v2 C=2") == "PABEE minus CLO-v2 C=2"  # of an older sweep
    assert labels.present("CLO-v2 minus my-method") == "CLO-v2 minus my-method"
    colours = [method.colour or "" for method in METHODS.values()]
    channels = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours]
    distances = [
        sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5 for x, y in itertools.combinations(channels, 2)
    ]
    assert min(distances) > 60, "two algorithms look alike"


def _luminance(channels: Sequence[int]) -> float:
    """The relative luminance of an sRGB colour (WCAG 2)."""
    linear = [
        c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (channel / 255 for channel in channels)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_can_be_seen_on_light_and_on_dark_pages() -> None:
    dark = _luminance((0x11, 0x17, 0x1C))  # MLflow's background
    for method in METHODS.values():
        own = _luminance([int((method.colour or "")[i : i + 2], 16) for i in (1, 3, 5)])
        assert (own + 0.05) / (dark + 0.05) >= 2.9, f"{method.name} on a dark page"
        assert 1.05 / (own + 0.05) >= 1.9, f"{method.name} on a light page"


def test_run_names() -> None:
    name = names.config_run_name(4, {"algorithm": "clo-v2", "lr_theta": 1e-4, "cycle_length": 4})
    assert name == "CLO-v2 04 · λ1=0.0001 C=4"
    assert names.config_run_name(4, {"algorithm": "clo-v2"}) == "CLO-v2 04"
    assert names.fold_run_name(names.prefix_of(name), 0, 1) == "CLO-v2 04 s0 f1"
    assert names.summary_run_name("CLO-v2 minus BLO") == "Summary · CLO-v2 minus BLO"


def test_run_names_are_unique_within_a_sweep() -> None:
    configs = [(algorithm, index) for index, algorithm in enumerate(["clo-v2", "blo"] * 60)]
    made = [names.config_run_name(index, {"algorithm": algorithm}) for algorithm, index in configs]
    made += [
        names.fold_run_name(names.config_prefix(algorithm, index), seed, fold)
        for algorithm, index in configs
        for seed in range(3)
        for fold in range(12)
    ]
    assert len(made) == len(set(made))


def test_parameters_hold_logarithms_of_the_rates() -> None:
    values = {"algorithm": "clo-v2", "lr_theta": 1e-4, "lr_omega": 3e-3, "batch_size": 16}
    logarithms = {"log10_lr_theta": -4.0, "log10_lr_omega": -2.5229}
    assert names.config_params(values) == {**values, **logarithms, "variant": "CLO-v2"}
    without = {"algorithm": "uniform", "lr_omega": None}
    assert names.config_params(without) == {**without, "variant": "Uniform"}


def test_one_word_names_the_method_and_its_c() -> None:
    assert names.config_params({"algorithm": "clo-v2", "cycle_length": 4})["variant"] == "CLO-v2 C=4"
