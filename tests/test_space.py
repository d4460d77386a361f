"""A search space's file: what it may say, and that everything wrong with it is reported at once."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from leebert.config import TrainConfig
from leebert.errors import ConfigError
from leebert.findings import Findings
from leebert.methods import METHODS, applies
from leebert.yaml import dump_yaml, load_yaml, parse_yaml
from tune import pruners
from tune.space import SweepSpec, config_id, effective, load_space, resolved_yaml
from tune.space.plugins import PRUNERS, Number, PrunerPlugin, Warmed
from tune.space.values import Range, ValueList, options, read_space

HEAD = "task: mrpc\nbackbone: albert/albert-base-v2\n"
SPACE = "space: {lr_theta: [1e-5, 2e-5]}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "space.yaml"


def spec_of(**keys: Any) -> SweepSpec:
    base = {"task": "mrpc", "backbone": "x", "space": {"lr_theta": [1e-5, 2e-5]}}
    return SweepSpec.model_validate(base | keys)


def errors(file: Path, text: str, *overrides: str) -> list[str]:
    """The lines of the one error that a text gives, without the file's name."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_space(file, overrides)
    lines = str(caught.value).splitlines()
    assert all(line.startswith((f"{file}: ", f"{file}, line ", "--set: ")) for line in lines)
    return [line.removeprefix(f"{file}: ").removeprefix(f"{file}, ") for line in lines]


def test_a_wrong_value_of_set_names_set_and_not_the_file(file: Path) -> None:
    text = "task: mrpc\nbackbone: x\nspace: {lr_theta: [1e-5]}\nseeds: wrong\n"
    of_set, of_file = sorted(errors(file, text, "folds=0"))
    assert of_set.startswith("--set: folds: 0: ")
    assert of_file.startswith("seeds: ")


def test_defaults(file: Path) -> None:
    file.write_text(HEAD + SPACE, encoding="utf-8")
    spec = load_space(file)
    assert (spec.algorithms, spec.folds, spec.seeds, spec.max_epochs) == (("clo-v2",), 5, (0,), 10)
    assert (spec.searcher.name, spec.pruner.name, spec.resources.cpus) == ("grid", "none", 1)
    assert spec.model.pooling == "pooler"
    assert spec.task_name == "mrpc"


@pytest.mark.parametrize("written", ["1e-5", "1E-5", '"1e-5"', "0.00001", "1.0e-05"])
def test_every_spelling_of_a_rate_is_the_same_number(file: Path, written: str) -> None:
    file.write_text(HEAD + f"space: {{lr_theta: [{written}]}}\n", encoding="utf-8")
    assert load_space(file).space["lr_theta"] == ValueList((1e-5,))


def test_the_development_split_is_opened_only_where_nothing_is_searched(file: Path) -> None:
    fixed = "algorithms: [clo-v2, uniform]\nspace: {}\ntraining: {lr_theta: 1e-4, cycle_length: 4}\nevaluate: dev\n"
    file.write_text(HEAD + fixed, encoding="utf-8")
    spec = load_space(file)
    assert [v["algorithm"] for v in spec.configurations()] == ["clo-v2", "uniform"]
    assert spec.digest != spec.model_copy(update={"evaluate": None}).digest
    searched = "space: {lr_theta: [1e-5, 2e-5]}\nevaluate: dev\nsearcher: random\npruner: racing\nfolds: 3\n"
    lines = errors(file, HEAD + searched)
    assert [line.split(":")[0] for line in lines] == ["space.lr_theta", "searcher", "pruner"]
    assert all("so the sweep must not search" in line for line in lines)


def test_short_forms(file: Path) -> None:
    file.write_text(
        HEAD + "space: {batch_size: 16}\nalgorithms: blo\nseeds: 3\nsearcher: random\npruner: halving\n",
        encoding="utf-8",
    )
    spec = load_space(file)
    assert spec.space["batch_size"] == ValueList((16,))
    assert (spec.algorithms, spec.seeds, spec.searcher.name, spec.pruner.name) == (
        ("blo",),
        (0, 1, 2),
        "random",
        "halving",
    )


# What is wrong with one key: the text after the head, and the lines that it gives.
WRONG = {
    "rate zero": ("space: {lr_theta: [0]}", ["space.lr_theta: 0: should be a finite number above 0"]),
    "rate negative": ("space: {lr_omega: -1e-4}", ["space.lr_omega: -0.0001: should be a finite number"]),
    "rate NaN": ("space: {lr_theta: [.nan]}", ["space.lr_theta: nan: should be a finite number"]),
    "rate a word": ("space: {lr_theta: [fast]}", ["space.lr_theta: 'fast': should be a valid number"]),
    "cycle below 1": ("space: {cycle_length: [0, 4]}", ["space.cycle_length: 0: should be greater than or equal to 1"]),
    "cycle broken": ("space: {cycle_length: [2.5]}", ["space.cycle_length: 2.5: should be a valid integer"]),
    "truth as number": ("space: {batch_size: [true]}", ["space.batch_size: true: should be a number"]),
    "cost only": ("space: {accumulate: [1, 2]}", ["space.accumulate: [1, 2]: changes memory and speed, but no result"]),
    "name misspelt": ("space: {teachers: [lea]}", ["space.teachers: 'lea': should be 'lae', 'lle', 'last' or 'none' (did"]),
    "option misspelt": ("space: {lr_teta: [1]}", ["space.lr_teta: [1]: unknown option (did you mean 'lr_theta'?)"]),
    "seed in space": ("space: {seed: [1]}", ["space.seed: [1]: not an option of a configuration: use the key `seeds`"]),
    "algorithm in space": ("space: {algorithm: [blo]}", ["space.algorithm: ['blo']: use the key `algorithms`"]),
    "twice": ("space: {lr_theta: [1e-5, 0.00001]}", ["space.lr_theta: 1e-05: is in the list twice"]),
    "empty list": ("space: {lr_theta: []}", ["space.lr_theta: []: should have at least one value"]),
    "empty space": ("space: {}", ["space: {}: should have at least one option"]),
    "no space": ("space:", ["space: null: should be a mapping of options to values"]),
    "no number has a range": ("space: {teachers: {range: [1, 2]}}", ["space.teachers: {'range': [1, 2]}: is no number"]),
    "range falls": ("space: {lr_theta: {range: [2, 1]}}", ["space.lr_theta.range: [2, 1]: should rise"]),
    "range of one": ("space: {lr_theta: {range: [1]}}", ["space.lr_theta.range: [1]: should be [lowest, highest]"]),
    "range from zero": (
        "space: {weight_decay: {log_range: [0, 1]}}",
        ["space.weight_decay.log_range: [0, 1]: should begin above 0, since zero has no logarithm"],
    ),
    "range of wrong values": (
        "space: {warmup: {range: [-1, 2]}}",
        ["space.warmup.range: -1: should be greater than or equal to 0", "space.warmup.range: 2: should be less than 1"],
    ),
    "two ranges": ("space: {warmup: {range: [0, 1], log_range: [1, 2]}}", ["space.warmup: {'range': [0, 1], 'log_range'"]),
    "range misspelt": ("space: {warmup: {rang: [0, 1]}}", ["space.warmup.rang: [0, 1]: unknown key (did you mean 'range'?)"]),
    "step too long": (
        "space: {batch_size: {range: [1, 4], step: 4}}",
        ["space.batch_size.step: 4: should be a whole number above 0 and at most 3"],
    ),
    "step of a log range": (
        "space: {batch_size: {log_range: [1, 4], step: 1}}",
        ["space.batch_size.step: 1: a `log_range` has no step"],
    ),
    "training wrong": (SPACE + "training: {max_epochs: 0}", ["training.max_epochs: 0: should be greater than or equal"]),
    "training a list": (SPACE + "training: {max_epochs: [1]}", ["training.max_epochs: [1]: should be a valid integer"]),
    "in both": (
        SPACE + "training: {lr_theta: 1e-4}",
        ["training.lr_theta: 0.0001: is also in `space`: keep one of the two"],
    ),
    "algorithm misspelt": (SPACE + "algorithms: [clo_v2]", ["algorithms.0: 'clo_v2': should be one of finetune, "]),
    "algorithm twice": (SPACE + "algorithms: [blo, blo]", ["algorithms: 'blo': is in the list twice"]),
    "no algorithm": (SPACE + "algorithms: []", ["algorithms: []: should have at least one method"]),
    "unused in space": (
        "algorithms: [blo]\nspace: {cycle_length: [2, 4]}",
        ["space.cycle_length: [2, 4]: none of the listed methods uses it, only fastbert-clo-v2, lle, hyper-v2, clo-v2"],
    ),
    "unused in training": (
        SPACE + "algorithms: [uniform, rand]\ntraining: {lr_omega: 1e-3}",
        ["training.lr_omega: 0.001: none of the listed methods uses it, only fastbert-clo-v2, lle, uncertainty, slo, blo, hyper, hyper-v2, clo-v1, clo-v2"],
    ),
    "range in a grid": (
        "space: {lr_theta: {log_range: [1e-5, 1e-4]}}",
        ["space.lr_theta: {'log_range': [1e-05, 0.0001]}: a grid needs lists"],
    ),
    "number of a grid": (SPACE + "searcher: {name: grid, configurations: 3}", ["searcher.configurations: 3: a grid runs all"]),
    "range without end": (
        "space: {lr_theta: {log_range: [1e-5, 1e-4]}}\nsearcher: random",
        ["searcher: 'random': needs `configurations` (or `budget.trials`)"],
    ),
    "searcher misspelt": (SPACE + "searcher: tpee", ["searcher.name: 'tpee': should be one of grid, random, tpe (did you mean 'tpe'?)"]),
    "pruner with one cell": (SPACE + "folds: 1\npruner: halving", ["pruner: 'halving': has nothing to prune"]),
    "pruner over unequal schedules": (
        "space: {max_epochs: [2, 4]}\npruner: halving",
        ["space.max_epochs: [2, 4]: the pruner halving compares epochs of equal schedules"],
    ),
    "pruner too late": (
        SPACE + "folds: 2\ntraining: {max_epochs: 3}\npruner: {name: halving, min_epochs: 6}",
        ["pruner.min_epochs: 6: should be below 6"],
    ),
    "pruner halves nothing": (SPACE + "pruner: {name: halving, eta: 1}", ["pruner.eta: 1: should be greater than or equal to 2"]),
    "folds": (SPACE + "folds: 0", ["folds: 0: should be greater than or equal to 1"]),
    "folds a truth": (SPACE + "folds: true", ["folds: true: should be a number"]),
    "no seed": (SPACE + "seeds: 0", ["seeds: 0: should be at least 1 seed"]),
    "no seeds": (SPACE + "seeds: []", ["seeds: []: should be a number of seeds, or a list of at least one"]),
    "seeds": (
        SPACE + "seeds: [1, -2, 1]",
        ["seeds: -2: should be a whole number of at least 0", "seeds: 1: is in the list twice"],
    ),
    "budget": (SPACE + "budget: {hours: 0}", ["budget.hours: 0: should be greater than 0"]),
    "budget of no GPU": (SPACE + "budget: {gpu_hours: 2}", ["budget.gpu_hours: 2.0: is never reached"]),
    "cpus": (SPACE + "resources: {cpu: 2}", ["resources.cpu: 2: unknown key (did you mean 'cpus'?)"]),
    "subset": (SPACE + "data: {subset: {row: 9}}", ["data.subset.rows: missing: is required", "data.subset.row: 9: unknown"]),
    "first stage": (
        "space: {lr_theta: [1e-4]}\ntraining: {first_epochs: 2}",
        ["training.first_epochs: 2: has no effect here: clo-v2 has no first stage without finetune_first"],
    ),
    "both names": (
        SPACE + "algorithm: blo\nalgorithms: [clo-v2]",
        ["algorithm: 'blo': is also given as `algorithms`: keep one of the two"],
    ),
    "top level": (SPACE + "serchers: grid", ["serchers: 'grid': unknown key (did you mean 'searcher'?)"]),
    "key a number": (SPACE + "1: 2", ["1: 1: Keys should be strings"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_name_key_value_and_expectation(file: Path, name: str) -> None:
    text, expected = WRONG[name]
    lines = errors(file, HEAD + text + "\n")
    assert len(lines) == len(expected), lines
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize("name", ["stsb", "STS-B", "sts_b"])
def test_a_known_regression_is_refused_for_what_it_is(file: Path, name: str) -> None:
    (line,) = errors(file, f"task: {name}\nbackbone: x\n" + SPACE)
    assert line.startswith(f"task: '{name}': is a regression: exit criteria compare the predicted classes")


def test_algorithm_is_another_name_of_algorithms(file: Path) -> None:
    file.write_text(HEAD + SPACE + "algorithm: [clo-v2, pabee]\n")
    assert load_space(file).algorithms == ("clo-v2", "pabee")
    assert load_space(file, ["algorithm=blo"]).algorithms == ("blo",)
    assert resolved_yaml(load_space(file)) == resolved_yaml(load_space(file, ["algorithms=[clo-v2, pabee]"]))


def test_all_errors_at_once(file: Path) -> None:
    lines = errors(
        file,
        "task: mrcp\nalgorithms: [blo]\nspace:\n  lr_theta: [1e-5, -1]\n  lr_theta: [0, x]\n  cycle_lenght: [2]\n"
        "folds: 0\ntraining: {cycle_length: 3}\nbudget: {gpu_hours: 1}\n",
        "data.sbset=3",
    )
    assert [line.split(": ")[0] for line in lines] == [
        "space.lr_theta",  # twice in the file
        "--set",
        "task",
        "backbone",
        "space.lr_theta",
        "space.cycle_lenght",
        "folds",
        "training.cycle_length",  # checks across keys that are sound themselves
        "budget.gpu_hours",
    ]


def test_duplicate_keys_name_both_lines(file: Path) -> None:
    lines = errors(file, HEAD + "space:\n  lr_theta: [1e-5]\n  batch_size: 8\n  lr_theta: [1e-4]\nfolds: 3\nfolds: 2\n")
    assert lines == [
        "space.lr_theta: line 6: duplicate key, first in line 4",
        "folds: line 8: duplicate key, first in line 7",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "null: should be a mapping"),
        ("- 1\n", "[1]: should be a mapping"),
        ("task: [1\n", "line 2: while parsing a flow sequence"),
        ("task: mrpc\n\tfolds: 3\n", "line 2: "),
        ("task: 1\n---\ntask: 2\n", "line 2: expected a single document"),
        ("task: !!python/object:os.system x\n", "line 1: could not determine a constructor"),
        ("task: &a [*a]\n", "an alias (`*name`) is inside its own anchor"),
    ],
)
def test_what_is_no_yaml_mapping(file: Path, text: str, line: str) -> None:
    assert errors(file, text)[0].startswith(line)


def test_every_file_is_read_by_the_same_rules(file: Path) -> None:
    """Best files, tasks and configurations of a run as search spaces: all duplicates with both lines, no shared aliases."""
    file.write_text("a: &d {x: 1}\nb: *d\n")
    content = load_yaml(file)
    content["a"]["x"] = 2
    assert content == {"a": {"x": 2}, "b": {"x": 1}}
    file.write_text("a: 1\nb: {c: 2,\n  c: 3}\na: 4\n")
    with pytest.raises(ConfigError) as error:
        load_yaml(file)
    first, second = (
        f"{file}: b.c: line 3: duplicate key, first in line 2",
        f"{file}: a: line 4: duplicate key, first in line 1",
    )
    assert str(error.value).splitlines() == [first, second]
    with pytest.raises(ConfigError, match="is inside its own anchor"):
        parse_yaml("task: &a [*a]\n", "file")


def test_the_writer_writes_null_and_reads_back_what_it_wrote() -> None:
    values = {
        "a": "1e-5",
        "b": "on",
        "c": None,
        "d": 1e-05,
        "e": [{"f": "2026-01-31"}],
        "g": "a: b",
        "h": " x\n",
        "i": {},
    }
    text = dump_yaml(values)
    assert "c: null\n" in text
    assert parse_yaml(text, "text") == values
    assert list(parse_yaml(text, "text")) == list(values)


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "mrpc.yaml").touch()
    with pytest.raises(ConfigError, match=r"no such file \(did you mean 'mrpc.yaml'\?\)"):
        load_space(tmp_path / "mprc.yaml")


def test_file_in_another_encoding(file: Path) -> None:
    file.write_bytes(b"task: \xff\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_space(file)


def test_overrides(file: Path) -> None:
    file.write_text(HEAD + SPACE + "searcher: random\n", encoding="utf-8")
    overrides = [
        "space.lr_theta=[1e-4, 3e-4]",
        "folds=3",
        "training.max_epochs=2",
        "searcher.configurations=4",
        "data.subset={rows: 50}",
        "data.subset.seed=2",
        "backbone=package:name/model",
        "space.weight_decay={range: [0, 0.1]}",
    ]
    spec = load_space(file, overrides)
    assert spec.space["lr_theta"] == ValueList((1e-4, 3e-4))
    assert spec.space["weight_decay"] == Range(0.0, 0.1)
    assert (spec.folds, spec.max_epochs, spec.backbone) == (3, 2, "package:name/model")
    assert (spec.searcher.name, spec.searcher.configurations) == ("random", 4)
    assert spec.data.subset is not None
    assert (spec.data.subset.rows, spec.data.subset.seed) == (50, 2)


def test_the_valid_keys_are_listed_once_whatever_the_overrides(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Any] = []
    monkeypatch.setattr("tune.space.file.options", lambda: listed.append(1) or options())
    keys = [f"training.{key}" for key in ("max_epochs=2", "warmup=0.2", "patience=3")]
    file.write_text(HEAD + SPACE)
    load_space(file, keys)
    assert listed == [], "no key is one of a plugin"
    with pytest.raises(ConfigError, match="unknown key"):
        load_space(file, [*keys, "training.nothing=1", "space.nothing=1"])
    assert listed == [1]


def test_override_replaces_what_is_wrong_or_missing(file: Path) -> None:
    file.write_text("task: mrpc\nspace: {lr_theta: [-1]}\n", encoding="utf-8")
    assert load_space(file, ["backbone=x", "space.lr_theta=1e-5"]).size == 1


def test_override_reaches_one_alias_only(file: Path) -> None:
    file.write_text(HEAD + SPACE + "data: &d {dir: here}\ntracking: *d\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tracking.dir: 'here'"):
        load_space(file, ["data.dir=there"])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("space.lr_thta=1", "unknown key (did you mean 'space.lr_theta'?)"),
        ("pruner.mini=1", "unknown key\n"),
        ("lr_theta=1", "unknown key (did you mean 'space.lr_theta' or 'training.lr_theta'?)"),
        ("lr=1", "unknown key (did you mean 'space.lr_theta' or 'space.lr_omega' or 'training.lr_theta'?)"),
        ("trainig.lr_theta=1", "unknown key (did you mean 'training.lr_theta'?)"),
        ("trainig.lr=1", "unknown key (did you mean 'training'?)"),
        ("fold=1", "unknown key (did you mean 'folds'?)"),
        ("folds.k=1", "unknown key: `folds` has no keys below it"),
        ("task.metric=f1", "`task` is 'mrpc', not a mapping with keys"),
        ("folds", "should be key=value"),
        ("folds=[1", "is not YAML"),
    ],
)
def test_wrong_overrides(file: Path, override: str, line: str) -> None:
    (only,) = errors(file, HEAD + SPACE, override)
    assert f"{only}\n".startswith(f"--set: {override!r}: {line}")


@pytest.mark.parametrize("name", ["MRPC", "Mrpc"])
def test_a_tasks_name_in_another_case_is_the_same_task(file: Path, name: str) -> None:
    file.write_text(f"task: {name}\nbackbone: x\n{SPACE}", encoding="utf-8")
    assert load_space(file).task_name == "mrpc"


def test_own_task_is_kept_as_it_is(file: Path) -> None:
    file.write_text(
        "task: {name: mine, files: {train: a.jsonl, dev: b.jsonl}, text: [s], label: y, labels: [n, p], metric: accuracy}\n"
        f"backbone: x\n{SPACE}",
        encoding="utf-8",
    )
    spec = load_space(file, ["task.metric=matthews"])
    assert spec.task_name == "mine"
    assert isinstance(spec.task, dict)
    assert spec.task["metric"] == "matthews"


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            "{name: mine, lable: y}",
            [
                "task.text: missing: is required",
                "task.label: missing: is required",
                "task.labels: missing: is required",
                "task.lable: 'y': unknown key (did you mean 'label'?)",
            ],
        ),
        (
            "{name: mrpc, files: {train: a.jsonl}, text: s, label: y, labels: [n, p]}",
            ["task: name: 'mrpc' is a built-in task; choose another name"],
        ),
        ("3", ["task: 3: should be the name of a task, or a mapping that declares one"]),
    ],
)
def test_wrong_own_tasks(file: Path, task: str, expected: list[str]) -> None:
    for line, start in zip(errors(file, f"task: {task}\nbackbone: x\n{SPACE}"), expected, strict=True):
        assert line.startswith(start)


def test_cells_are_seed_by_seed_and_fold_by_fold() -> None:
    assert spec_of(seeds=[3, 1], folds=2).cells() == ((3, 0), (3, 1), (1, 0), (1, 1))


def test_every_effective_configuration_once() -> None:
    spec = spec_of(
        algorithms=["clo-v2", "blo", "uniform"],
        space={"cycle_length": [2, 4], "lr_omega": [1e-4, 1e-3], "lr_theta": [1e-5, 2e-5]},
    )
    values = list(spec.configurations())
    assert len(values) == spec.size == 8 + 4 + 2
    assert len({config_id(v) for v in values}) == 14
    assert all(v == effective(v) for v in values)
    assert values[0] == {"algorithm": "clo-v2", "cycle_length": 2, "lr_omega": 1e-4, "lr_theta": 1e-5}
    assert {frozenset(v) for v in values if v["algorithm"] == "blo"} == {
        frozenset({"algorithm", "lr_omega", "lr_theta"})
    }


def test_wherever_a_grid_stops_it_has_pairs() -> None:
    """After any prefix, each algorithm has been tried with every λ1, λ2 that the others have, but for the last."""
    spec = spec_of(
        algorithms=["clo-v2", "blo"],
        space={"cycle_length": [2, 4, 8], "lr_omega": [1e-4, 1e-3], "lr_theta": [1e-5, 2e-5]},
    )
    values = list(spec.configurations())
    for stop in range(1, len(values) + 1):
        tried = {
            algorithm: {(v["lr_theta"], v["lr_omega"]) for v in values[:stop] if v["algorithm"] == algorithm}
            for algorithm in spec.algorithms
        }
        assert len(tried["clo-v2"] ^ tried["blo"]) <= 1


def test_config_id_is_stable() -> None:
    values = {"algorithm": "clo-v2", "lr_theta": 1e-5, "cycle_length": 4}
    assert config_id(values) == "80eafde9"
    assert config_id(dict(reversed(values.items()))) == config_id(values)
    assert config_id(values | {"lr_theta": 2e-5}) != config_id(values)
    assert config_id({"algorithm": "blo", "cycle_length": 4}) == config_id({"algorithm": "blo", "cycle_length": 8})
    assert config_id({"algorithm": "blo", "temperature": 1}) == config_id({"algorithm": "blo", "temperature": 1.0})


def test_digest_holds_what_is_measured_not_where() -> None:
    spec = spec_of()
    same = [{"resources": {"cpus": 4}}, {"budget": {"hours": 1}}, {"storage": "s3://x"}, {"data": {"dir": "/d"}}]
    same += [{"training": {"accumulate": 4, "eval_batch_size": 8}}]
    for keys in same:
        assert spec_of(**keys).digest == spec.digest, keys
    other = [{"folds": 4}, {"fold_seed": 1}, {"seeds": 2}, {"backbone": "y"}, {"training": {"max_epochs": 2}}]
    other += [{"space": {"lr_theta": [1e-5]}}, {"data": {"subset": {"rows": 9}}}, {"pruner": "halving"}]
    digests = {spec_of(**keys).digest for keys in other}
    assert len(digests | {spec.digest}) == len(other) + 1


def test_theta_updates_count_every_epoch_of_every_cell() -> None:
    spec = spec_of(space={"batch_size": [16, 32]}, training={"max_epochs": 3}, folds=4, seeds=2)
    # 75 of 100 rows, half of them in D1: 2 steps of 16 rows, 1 of 32.
    assert spec.theta_updates(100) == 8 * 3 * (2 + 1)
    assert spec_of(space={"batch_size": [10]}, folds=1).theta_updates(100) == 10 * 4  # 90 of 100 rows
    assert spec_of(space={"batch_size": [10]}, folds=1, data={"subset": {"rows": 50}}).theta_updates(100) == 10 * 2
    assert spec_of(space={"batch_size": [16, 32]}, folds=4, budget={"trials": 1}).theta_updates(100) == 4 * 10 * 2


def test_theta_updates_of_drawn_configurations_are_their_mean() -> None:
    spec = spec_of(
        space={"batch_size": [16, 32], "lr_theta": {"log_range": [1e-5, 1e-4]}},
        searcher={"name": "random", "configurations": 7},
        training={"max_epochs": 2},
        folds=4,
    )
    assert spec.theta_updates(100) == 7 * 4 * 2 * (2 + 1) / 2


def test_train_config_joins_values_and_training() -> None:
    spec = spec_of(training={"max_epochs": 2, "teachers": "lle"})
    config = spec.train_config({"algorithm": "blo", "lr_theta": 2e-5}, seed=7)
    assert config == TrainConfig(algorithm="blo", lr_theta=2e-5, max_epochs=2, teachers="lle", seed=7)


def test_range_values() -> None:
    assert Range(1, 4).listed() == (1, 2, 3, 4)
    assert Range(16, 60, step=16).listed() == (16, 32, 48)
    assert Range(0.1, 0.3, step=0.1).listed() == (0.1, 0.2, 0.3)
    assert Range(0.1, 0.3).listed() is None


@given(
    low=st.integers(1, 50), span=st.integers(1, 50), whole=st.booleans(), log=st.booleans(), seed=st.integers(0, 2**32)
)
def test_draws_stay_inside_and_keep_their_type(low: int, span: int, whole: bool, log: bool, seed: int) -> None:
    values = Range(low, low + span, log=log) if whole else Range(low / 10, (low + span) / 10, log=log)
    drawn = values.draw(Random(seed))
    assert values.low <= drawn <= values.high  # type: ignore[operator]
    assert isinstance(drawn, int) == whole


def test_draws_of_a_log_range_are_uniform_in_the_logarithm() -> None:
    rng = Random(0)
    drawn = [Range(1e-5, 1e-1, log=True).draw(rng) for _ in range(2000)]
    assert sum(d < 1e-3 for d in drawn) / 2000 == pytest.approx(0.5, abs=0.05)
    whole = [Range(1, 4, log=True).draw(rng) for _ in range(2000)]
    assert set(whole) == {1, 2, 3, 4}


numbers = st.floats(1e-8, 1.0, allow_nan=False)


@given(
    rates=st.lists(numbers, min_size=1, max_size=4, unique=True),
    sizes=st.lists(st.integers(1, 512), min_size=1, max_size=4, unique=True),
    names=st.lists(st.sampled_from(sorted(METHODS)), min_size=1, unique=True),
    bounds=st.tuples(numbers, numbers).filter(lambda b: b[0] < b[1]),
    seeds=st.lists(st.integers(0, 99), min_size=1, unique=True),
)
def test_resolved_yaml_round_trips(
    tmp_path_factory: pytest.TempPathFactory, rates: Any, sizes: Any, names: Any, bounds: Any, seeds: Any
) -> None:
    spec = spec_of(
        algorithms=names,
        space={"lr_theta": rates, "batch_size": sizes, "clip_norm": {"log_range": list(bounds)}},
        searcher={"name": "random", "configurations": 3},
        seeds=seeds,
    )
    file = tmp_path_factory.getbasetemp() / "resolved.yaml"
    file.write_text(resolved_yaml(spec), encoding="utf-8")
    again = load_space(file)
    assert again == spec
    assert again.digest == spec.digest
    assert SweepSpec.model_validate(spec.model_dump(mode="json")) == spec


@given(
    lists=st.fixed_dictionaries(
        {},
        optional={
            "lr_theta": st.lists(numbers, min_size=1, max_size=3, unique=True),
            "lr_omega": st.lists(numbers, min_size=1, max_size=3, unique=True),
            "cycle_length": st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
            "omega_forward": st.lists(st.sampled_from(["train", "eval"]), min_size=1, unique=True),
        },
    ).filter(bool),
    names=st.lists(st.sampled_from(sorted(METHODS)), min_size=1, unique=True).map(lambda n: sorted({*n, "clo-v2"})),
)
def test_size_counts_the_configurations(lists: dict[str, Any], names: list[str]) -> None:
    spec = spec_of(space=lists, algorithms=names)
    values = list(spec.configurations())
    assert len(values) == spec.size
    assert len({config_id(v) for v in values}) == spec.size
    expected = {
        config_id({"algorithm": name, **dict(zip(lists, combination, strict=True))})
        for name in names
        for combination in itertools.product(*lists.values())
    }
    assert {config_id(v) for v in values} == expected
    assert all(applies(option, v["algorithm"]) for v in values for option in v if option != "algorithm")


@given(raw=st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists))
def test_no_value_breaks_the_reader(raw: Any) -> None:
    for option in ("lr_theta", "batch_size", "teachers", "detach_teacher"):
        for value in (raw, [raw], {"range": raw}, {"log_range": [raw, raw]}, {"range": [1, 2], "step": raw}):
            with contextlib.suppress(Findings):
                assert list(read_space({option: value})) == [option]


def test_imports_nothing_slow() -> None:
    slow = ("torch", "ray", "mlflow", "transformers", "optuna")
    code = f"import sys, tune.space, tune.searchers, tune.pruners; print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Cautious(Warmed):
    """Options of a pruner of another package."""

    margin: Number = Field(default=0.1, gt=0, description="points behind the best")


CAUTIOUS = PrunerPlugin(
    name="cautious",
    title="never",
    source="this test",
    make=lambda spec, options: options,
    options=Cautious,
)


@pytest.fixture
def cautious() -> Iterator[None]:
    PRUNERS.register(CAUTIOUS)
    yield
    PRUNERS.unregister("cautious")


def test_a_pruner_of_another_package_has_options_of_its_own(file: Path, cautious: None) -> None:
    text = HEAD + SPACE + "folds: 3\npruner: {name: cautious, margin: 0.3}\n"
    file.write_text(text)
    spec = load_space(file, ["pruner.min_epochs=2"])
    assert pruners.make_pruner(spec) == Cautious(margin=0.3, min_epochs=2)
    file.write_text(resolved_yaml(spec))
    assert load_space(file) == spec
    assert errors(file, text.replace("margin", "margn")) == ["pruner.margn: 0.3: unknown key (did you mean 'margin'?)"]
    assert errors(file, text.replace("0.3", "0")) == ["pruner.margin: 0: should be greater than 0"]
    PRUNERS.unregister("cautious")
    (line,) = errors(file, text)
    assert line.startswith("pruner.name: 'cautious': should be one of none, racing, halving; if a package brings ")


def test_options_of_all_pruners_in_a_space_of_an_older_version_change_nothing() -> None:
    def digest(pruner: Any, searcher: Any = "grid") -> str:
        return spec_of(folds=3, pruner=pruner, searcher=searcher).digest

    written = digest({"name": "racing", "alpha": 0.1, "eta": 3, "min_epochs": 1}, {"name": "grid", "seed": 0})
    assert digest("racing") == written == "2422ac887bed9a3c"
    assert digest({"name": "racing", "eta": 5}) not in (written, digest({"name": "racing", "eta": 6}))
