"""Wrong data, wrong configurations, wrong models: one message on stderr that says what and where, and nothing destroyed."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import quick
from encoders import encoder, save_backbone, text_rows, tokenizer, write_task

from leebert.yaml import dump_yaml

SCRIPTS = Path(sys.executable).parent
HEADER = "a\tb\tlabel"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A sound task, backbone and trained model, which no test may change."""
    folder = tmp_path_factory.mktemp("bad")
    save_backbone(folder / "backbone", layers=3)
    write_task(folder / "data", n=60)
    return folder


@pytest.fixture(scope="module")
def model(place, cli):
    config = run_file(place / "run.yaml", own(place / "data" / "train.jsonl"), place / "backbone")
    ran = cli("leebert", "train", "--config", config, "--out", place / "model")
    assert ran.code == 0, ran.err
    return place / "model"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Defaults such as ./runs, ./sweeps and ./mlflow.db lie in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("LEEBERT_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def own(train, **more):
    files = {"train": str(train), "dev": str(Path(train).with_stem("dev"))}
    return {"name": "own", "files": files, "text": ["a", "b"], "label": "label", "labels": ["no", "yes"], **more}


def run_file(path, task, backbone, **more):
    values = {
        "task": task,
        "model": {"backbone": str(backbone), "max_length": 32},
        "training": {"batch_size": 4, "max_epochs": 1, "precision": "fp32"},
    }
    path.write_text(dump_yaml(values | more))
    return path


def space(path, task, backbone, **more):
    values = {
        "task": task, "backbone": str(backbone), "max_length": 32, "algorithms": ["blo"], "space": {"lr_theta": [1e-3]},
        "training": {"batch_size": 4, "max_epochs": 1, "precision": "fp32"}, "folds": 2,
    }  # fmt: skip
    path.write_text(dump_yaml(values | more))
    return path


def refuses(ran, *parts, code=1):
    """One error on stderr with all these parts in it, nothing on stdout."""
    assert ran.code == code, (ran.code, ran.out, ran.err)
    assert "Traceback" not in ran.err
    assert ran.err.startswith("error: ")
    assert ran.err.count("error: ") == 1
    assert ran.out == ""
    for part in parts:
        assert str(part) in ran.err
    return ran.err


def tsv(*lines):
    return ("\n".join((HEADER, *lines)) + "\n").encode()


def rows(n=40):
    return [f"{r['a']}\t{r['b']}\t{r['label']}" for r in text_rows(n)]


# Data, through both programs.

SOUND = rows()
CURES = object()  # what to do about it, by an option of the command that was typed
DATA = {
    "too few columns": (tsv(*SOUND[:3], "only one", *SOUND[3:]), ["line 5", "expected 3 columns, got 1", "only one"]),
    "too many columns": (tsv(*SOUND[:3], "a\tb\tno\tx", *SOUND[3:]), ["line 5", "expected 3 columns, got 4"]),
    "empty text": (tsv(*SOUND, "the cat\t  \tyes"), ["line 42", "'b'", "empty"]),
    "unknown label": (tsv(*SOUND, "the cat\ta dog\tyess"), ["line 42", "'yess'", "did you mean 'yes'"]),
    "missing label": (tsv(*SOUND, "the cat\ta dog\t"), ["line 42", "'label'", "missing"]),
    "hidden labels": (tsv(*(line[: line.rindex("\t")] + "\t-1" for line in SOUND)), ["line 2", "-1", "hidden"]),
    "not UTF-8": (tsv(*SOUND).replace(b"the", b"th\xe9", 1), ["line", "not UTF-8", "0xe9"]),
    "null byte": (tsv(*SOUND).replace(b"the", b"th\0", 1), ["line", "null byte"]),
    "UTF-16": ("\n".join((HEADER, *SOUND)).encode("utf-16"), ["null byte", "UTF-16"]),
    "duplicate column": (tsv(*SOUND).replace(b"a\tb\tl", b"a\ta\tl", 1), ["header", "duplicate column 'a'"]),
    "no such column": (tsv(*SOUND).replace(b"label", b"labels", 1), ["no column 'label'", "did you mean 'labels'"]),
    "one label only": (tsv(*(line for line in SOUND if line.endswith("no"))), ["no row has the label 'yes'"]),
    "empty file": (b"", ["the file is empty"]),
    "header only": (tsv(), ["no rows"]),
    "too few of a label": (tsv(*(r for r in SOUND if r.endswith("no")), "the cat\ta dog\tyes"), ["'yes'", CURES]),
    "one group": (tsv(*(f"the same cat\t{r}" for r in (line.split("\t", 1)[1] for line in SOUND))), ["groups", CURES]),
}  # fmt: skip


@pytest.mark.parametrize("defect", DATA)
def test_bad_data_stops_training(place, cli, tmp_path, defect):
    data, parts = DATA[defect]
    parts = ["--no-hold-out" if part is CURES else part for part in parts]
    (tmp_path / "train.tsv").write_bytes(data)
    config = run_file(tmp_path / "run.yaml", own(tmp_path / "train.tsv"), place / "backbone")
    err = refuses(cli("leebert", "train", "--config", config, "--out", tmp_path / "m"), tmp_path / "train.tsv", *parts)
    assert "folds" not in err, "training has none"
    assert not (tmp_path / "m" / "config.json").exists()


@pytest.mark.parametrize("defect", DATA)
def test_bad_data_stops_a_sweep_before_it_has_a_folder(place, cli, tmp_path, mlflow_app, defect):
    data, parts = DATA[defect]
    parts = ["use fewer folds" if part is CURES else part for part in parts]
    (tmp_path / "train.tsv").write_bytes(data)
    path = space(tmp_path / "space.yaml", own(tmp_path / "train.tsv"), place / "backbone")
    ran = cli("leebert-tune", "sweep", path, "--name", "s", "--tracking-uri", mlflow_app.url)
    refuses(ran, tmp_path / "train.tsv", *parts)
    assert not (tmp_path / "sweeps" / "s").exists()


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ({"algorithms": ["blo", "theseus"], "training": {"keep": 0.67}}, ["method theseus", "groups of equal size"]),
        (
            {"algorithms": ["blo", "theseus"], "space": {"lr_theta": [1e-3], "keep": [0.34, 0.67]}},
            ["method theseus"],
        ),
    ],
)
def test_a_method_that_the_network_is_not_made_for_stops_a_sweep_before_it_has_a_folder(
    place, cli, tmp_path, mlflow_app, method, parts
):
    (tmp_path / "train.tsv").write_bytes(tsv(*SOUND))
    save_backbone(tmp_path / "three", layers=3)
    training = {"batch_size": 4, "max_epochs": 1, "precision": "fp32", **method.pop("training", {})}
    path = space(tmp_path / "space.yaml", own(tmp_path / "train.tsv"), tmp_path / "three", training=training, **method)
    ran = cli("leebert-tune", "sweep", path, "--name", "s", "--tracking-uri", mlflow_app.url)
    refuses(ran, *parts)
    assert not (tmp_path / "sweeps" / "s").exists()


def test_an_option_that_a_method_has_not_stops_training(place, cli, tmp_path):
    (tmp_path / "train.tsv").write_bytes(tsv(*SOUND))
    config = run_file(tmp_path / "run.yaml", own(tmp_path / "train.tsv"), place / "backbone")
    for value in ("0.5", "0.3"):  # the default or not
        ran = cli("leebert", "train", "--config", config, "--out", tmp_path / "m", "--set", "training.algorithm=pabee", "--set", f"training.keep={value}")  # fmt: skip
        refuses(ran, "training.keep", "pabee has no such option", "leebert methods")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (
            ("training.algorithm=truncated", "exits.criterion=patience"),
            ["'patience' compares successive exits", "one exit"],
        ),
        (("training.algorithm=theseus",), ["2 layers can't replace 3"]),
    ],
)
def test_what_a_model_has_no_use_for_is_refused_before_its_rows_are_tokenised(place, cli, tmp_path, options, parts):
    config = run_file(tmp_path / "run.yaml", own(place / "data" / "train.jsonl"), place / "backbone")
    sets = [part for option in options for part in ("--set", option)]
    refuses(cli("leebert", "train", "--config", config, "--out", tmp_path / "m", *sets), *parts)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("keep", "bound"), [("1.5", "less than or equal to 1"), ("0", "greater than 0")])
def test_a_share_that_is_none_stops_training(place, cli, tmp_path, keep, bound):
    (tmp_path / "train.tsv").write_bytes(tsv(*SOUND))
    config = run_file(tmp_path / "run.yaml", own(tmp_path / "train.tsv"), place / "backbone")
    ran = cli("leebert", "train", "--config", config, "--out", tmp_path / "m", "--set", "training.algorithm=truncated", "--set", f"training.keep={keep}")  # fmt: skip
    refuses(ran, "training.keep", keep, bound)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("program", ["leebert", "leebert-tune"])
def test_a_missing_split_is_named_with_the_splits_that_exist(place, cli, tmp_path, program, mlflow_app):
    task = own(tmp_path / "nowhere" / "train.tsv")
    if program == "leebert":
        config = run_file(tmp_path / "run.yaml", task, place / "backbone")
        ran = cli(program, "train", "--config", config)
    else:
        path = space(tmp_path / "space.yaml", task, place / "backbone")
        ran = cli(program, "sweep", path, "--tracking-uri", mlflow_app.url)
    refuses(ran, tmp_path / "nowhere" / "train.tsv", "no such file", "'train'", "no such folder")


def test_a_missing_data_folder_is_named(place, cli, tmp_path):
    ran = cli(
        "leebert", "train", "--task", "mrpc", "--backbone", place / "backbone", "--data-dir", tmp_path / "none",
        "--set", "model.max_length=32",
    )  # fmt: skip
    refuses(ran, tmp_path / "none", "no such folder", "MRPC/")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_damaged_files_of_other_formats(place, cli, tmp_path, suffix):
    path = tmp_path / f"train{suffix}"
    path.write_text('a,b,label\n"an open quote,b,no\n' if suffix == ".csv" else '{"a": "x", "b": \n')
    config = run_file(tmp_path / "run.yaml", own(path), place / "backbone")
    refuses(cli("leebert", "train", "--config", config), path)


def test_byte_order_mark_and_windows_line_ends_change_nothing(place, cli, tmp_path):
    plain, windows = tmp_path / "plain" / "train.tsv", tmp_path / "windows" / "train.tsv"
    for path, data in ((plain, tsv(*SOUND)), (windows, b"\xef\xbb\xbf" + tsv(*SOUND).replace(b"\n", b"\r\n"))):
        path.parent.mkdir()
        path.write_bytes(data)
        config = run_file(path.parent / "run.yaml", own(path), place / "backbone")
        ran = cli("leebert", "train", "--config", config, "--out", path.parent / "m")
        assert ran.code == 0, ran.err
    told = [json.loads((path.parent / "m" / "training.json").read_text()) for path in (plain, windows)]
    assert told[0]["data_fingerprint"] == told[1]["data_fingerprint"]
    assert told[0]["score"] == told[1]["score"]
    weights = [(path.parent / "m" / "model.safetensors").read_bytes() for path in (plain, windows)]
    assert weights[0] == weights[1]


def test_a_fold_with_one_class_is_named(place, cli, tmp_path, mlflow_app):
    # Every "yes" shares a text with another "yes": one group, so one of two folds has none.
    lines = [line if line.endswith("no") else "the one cat\t" + line.split("\t", 1)[1] for line in SOUND]
    (tmp_path / "train.tsv").write_bytes(tsv(*lines))
    path = space(tmp_path / "space.yaml", own(tmp_path / "train.tsv"), place / "backbone")
    ran = cli("leebert-tune", "sweep", path, "--name", "s", "--tracking-uri", mlflow_app.url)
    refuses(
        ran, tmp_path / "train.tsv", "fold", "only the label 'no'", "fewer folds, another seed (fold_seed) or other"
    )


# Configurations of one training.

ERRORS = {
    "unknown key": ({"trainig": {}}, ["trainig", "did you mean 'training'"]),
    "found is no mapping": ({"found": "hello"}, ["found", "dictionary", "'hello'"]),
    "unknown key inside": ({"training": {"lr_tetha": 1e-3}}, ["training.lr_tetha", "did you mean 'lr_theta'"]),
    "lambda 1 of zero": ({"training": {"lr_theta": 0}}, ["training.lr_theta", "above 0"]),
    "lambda 1 below zero": ({"training": {"lr_theta": -1e-5}}, ["training.lr_theta", "above 0", "-1e-05"]),
    "lambda 2 of zero": ({"training": {"lr_omega": 0}}, ["training.lr_omega", "above 0"]),
    "lambda that is no number": ({"training": {"lr_theta": "fast"}}, ["training.lr_theta", "number", "fast"]),
    "lambda that is infinite": ({"training": {"lr_theta": float("inf")}}, ["training.lr_theta"]),
    "C of zero": ({"training": {"cycle_length": 0}}, ["training.cycle_length", "greater than or equal to 1"]),
    "no batch": ({"training": {"batch_size": 0}}, ["training.batch_size"]),
    "an algorithm": ({"training": {"algorithm": "clo"}}, ["training.algorithm", "clo-v2"]),
    "seed below zero": ({"training": {"seed": -1}}, ["training.seed"]),
    "more updates than its schedule has": ({"theta_updates": 20}, ["theta_updates 20", "raise max_epochs"]),
    "no updates": ({"theta_updates": 0}, ["theta_updates"]),
    "a strategy without its threshold": ({"exits": {"criterion": "entropy"}}, ["exits", "needs a threshold"]),
    "a patience of half": ({"exits": {"threshold": 1.5}}, ["exits", "whole number"]),
    "a subset of nothing": ({"data": {"subset": {"rows": 0}}}, ["data.subset.rows"]),
    "a subset larger than the data": ({"data": {"subset": {"rows": 999}}}, ["999", "train.jsonl"]),
    "an unknown group": ({"data": {"group_by": ["c"]}}, ["group_by", "c", "a, b"]),
    "a batch larger than the data": ({"training": {"batch_size": 500}}, ["batch size 500", "at most"]),
    "an unknown task": ({"task": "mprc"}, ["'mprc'", "did you mean 'mrpc'"]),
    "a task without its label": (
        {"task": {"name": "x", "text": "a", "labels": ["0", "1"]}},
        ["label: missing: is required"],
    ),
    "a task without data": (
        {"task": {"name": "x", "text": "a", "label": "l", "labels": ["0", "1"]}},
        ["either files or hub"],
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_wrong_configuration_of_a_training(place, cli, tmp_path, name):
    change, parts = ERRORS[name]
    values = {"task": own(place / "data" / "train.jsonl"), **change}
    config = run_file(tmp_path / "run.yaml", values.pop("task"), place / "backbone", **values)
    refuses(cli("leebert", "train", "--config", config, "--out", tmp_path / "m"), *parts)
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_all_errors_of_a_configuration_are_reported_at_once(place, cli, tmp_path):
    wrong = {"training": {"lr_theta": 0, "batchsize": 8, "cycle_length": 0}, "exit": {}}
    config = run_file(tmp_path / "run.yaml", own(place / "data" / "train.jsonl"), place / "backbone", **wrong)
    err = refuses(cli("leebert", "train", "--config", config), config)
    assert len(err.splitlines()) == 4
    for part in ("training.lr_theta", "did you mean 'batch_size'", "training.cycle_length", "did you mean 'exits'"):
        assert part in err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("task: rte\ntask: mrpc\n", ["line 2", "task"]),
        ("task: [rte\n", ["line"]),
        ("- a\n- b\n", ["expected a mapping of keys"]),
        ("just text", ["expected a mapping of keys"]),
        ("\tx: 1\n", ["line 1"]),
        ("task: rte\n", ["--backbone"]),
    ],
)
def test_files_that_are_no_configuration(cli, tmp_path, text, parts):
    (tmp_path / "run.yaml").write_text(text)
    refuses(cli("leebert", "train", "--config", tmp_path / "run.yaml"), *parts)


def test_a_configuration_that_does_not_exist_or_is_no_text(cli, tmp_path):
    refuses(cli("leebert", "train", "--config", "none.yaml"), "none.yaml", "no such file")
    (tmp_path / "run.yaml").write_bytes(b"task: \xff\n")
    refuses(cli("leebert", "train", "--config", "run.yaml"), "run.yaml", "UTF-8")


def test_errors_of_a_training_name_the_option_or_the_file(place, cli, tmp_path):
    config = run_file(tmp_path / "run.yaml", "rte", place / "backbone", training={"lr_theta": 0}, data={"subset": None})
    ran = cli(
        "leebert", "train", "--config", config, "--pooling", "max", "--set", "training.seed=-1", "--set", "data.sbset=1",
        "--set", "task.metric=f1", "--set", "data.subset.rows=1",
    )  # fmt: skip
    assert refuses(ran).splitlines() == [
        "error: --set: 'data.sbset=1': unknown key (did you mean 'data.subset'?)",
        "--set: 'task.metric=f1': `task` is 'rte', not a mapping with keys",
        "--pooling: model.pooling: 'max': should be 'pooler', 'cls' or 'mean'",
        "--set: data.subset.rows: 1: should be greater than or equal to 2",
        f"{config}: training.lr_theta: 0: should be a finite number above 0",
        "--set: training.seed: -1: should be greater than or equal to 0",
    ]
    ran = cli("leebert", "train", "--task", "rte", "--backbone", place / "backbone", "--set", "training.batch_size=0")
    assert refuses(ran) == "error: --set: training.batch_size: 0: should be greater than or equal to 1\n"


@pytest.mark.parametrize("assignment", ["training", "=3", "task.name.x=3", "training.max_epochs=[1"])
def test_a_set_that_sets_nothing(cli, tmp_path, assignment, place):
    ran = cli("leebert", "train", "--task", "rte", "--backbone", place / "backbone", "--set", assignment)
    refuses(ran, "--set")


def test_a_quoted_number_is_a_number(place, cli, tmp_path):
    config = tmp_path / "run.yaml"
    run_file(config, own(place / "data" / "train.jsonl"), place / "backbone", training={"lr_theta": "RATE"})
    config.write_text(config.read_text().replace("RATE", '"1e-5"'))
    ran = cli(
        "leebert", "train", "--config", config, "--out", tmp_path / "m", "--json", "--set", "training.batch_size=4",
        "--set", "training.max_epochs=1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["config"]["training"]["lr_theta"] == 1e-5


def test_a_device_that_does_not_exist(place, cli, tmp_path):
    config = run_file(tmp_path / "run.yaml", own(place / "data" / "train.jsonl"), place / "backbone")
    refuses(cli("leebert", "train", "--config", config, "--device", "cuda:77"), "cuda:77", "--device cpu")
    refuses(cli("leebert", "train", "--config", config, "--device", "gpu"), "--device gpu", "cuda:N")


def test_usage_errors_end_with_two(cli):
    for args in (("leebert", "train", "--no-such-option"), ("leebert-tune", "compare"), ("leebert", "evaluate")):
        ran = cli(*args)
        assert ran.code == 2
        assert "Usage" in ran.err
        assert "Traceback" not in ran.err


# Search spaces.

SPACES = {
    "unknown key": ({"fold": 3}, ["fold", "unknown key", "did you mean 'folds'"]),
    "unknown option": ({"space": {"lr_tetha": [1e-3]}}, ["space.lr_tetha", "did you mean 'lr_theta'"]),
    "lambda of zero": ({"space": {"lr_theta": [1e-3, 0]}}, ["space.lr_theta", "0", "above 0"]),
    "C of zero": ({"algorithms": ["clo-v2"], "space": {"cycle_length": [4, 0]}}, ["space.cycle_length", "0"]),
    "k of zero": ({"folds": 0}, ["folds", "0", "greater than or equal to 1"]),
    "k of a half": ({"folds": 2.5}, ["folds", "2.5"]),
    "k as a truth": ({"folds": True}, ["folds", "true", "a number"]),
    "k beyond the rows": ({"folds": 61}, ["folds: 61", "fewer folds"]),
    "an empty space": ({"space": {}}, ["space", "at least one option"]),
    "an empty list": ({"space": {"lr_theta": []}}, ["space.lr_theta", "at least one value"]),
    "a value twice": ({"space": {"lr_theta": [1e-3, "1e-3"]}}, ["space.lr_theta", "twice"]),
    "a grid with a range": ({"space": {"lr_theta": {"log_range": [1e-5, 1e-3]}}}, ["space.lr_theta", "a grid needs lists"]),
    "a range from zero": (
        {"searcher": "random", "space": {"lr_theta": {"log_range": [0, 1e-3]}}}, ["space.lr_theta.log_range", "above 0"],
    ),
    "a random search without end": (
        {"searcher": "random", "space": {"lr_theta": {"log_range": [1e-5, 1e-3]}}}, ["searcher", "configurations"],
    ),
    "a pruner with one cell": ({"pruner": "halving", "folds": 1}, ["pruner", "nothing to prune"]),
    "an unknown pruner": ({"pruner": "halvng"}, ["pruner", "did you mean 'halving'"]),
    "an unknown algorithm": ({"algorithms": ["clo-v3"]}, ["algorithms", "clo-v3"]),
    "C where none uses it": ({"space": {"cycle_length": [2]}}, ["space.cycle_length", "clo-v2"]),
    "in both sections": ({"space": {"batch_size": [4]}}, ["training.batch_size", "also in `space`"]),
    "more than one GPU": ({"resources": {"gpus": 2}}, ["resources.gpus", "one GPU or a share of one"]),
    "a GPU and a half": ({"resources": {"gpus": 1.5}}, ["resources.gpus", "at most 1"]),
    "GPU hours without GPUs": ({"budget": {"gpu_hours": 1}}, ["budget.gpu_hours", "resources.gpus"]),
    "no seeds": ({"seeds": []}, ["seeds"]),
    "tokens beyond the encoder": ({"max_length": 999}, ["max_length 999", "at most 64"]),
    "a subset larger than the data": ({"data": {"subset": {"rows": 999}}}, ["999", "train.jsonl"]),
    "a batch larger than the data": (
        {"space": {"batch_size": [4, 500]}, "training": {"max_epochs": 1}}, ["batch size 500", "at most"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("dry", [True, False], ids=["dry run", "sweep"])
def test_a_wrong_space(place, cli, tmp_path, mlflow_app, name, dry):
    change, parts = SPACES[name]
    path = space(tmp_path / "space.yaml", own(place / "data" / "train.jsonl"), place / "backbone", **change)
    options = ["--dry-run"] if dry else ["--tracking-uri", mlflow_app.url]
    refuses(cli("leebert-tune", "sweep", path, "--name", "s", *options), *parts)
    assert not (tmp_path / "sweeps" / "s").exists()


def test_all_errors_of_a_space_are_reported_at_once_and_duplicates_too(place, cli, tmp_path):
    path = space(
        tmp_path / "space.yaml", own(place / "data" / "train.jsonl"), place / "backbone", fold=3, pruner="x", seeds=0
    )
    path.write_text(path.read_text() + "seeds: 2\nmax_length: 16\n")
    err = refuses(cli("leebert-tune", "sweep", path), path)
    for part in ("did you mean 'folds'", "pruner", "seeds: line", "max_length: line", "duplicate key"):
        assert part in err


@pytest.mark.parametrize("options", [["--power"], ["--std", "0.5"], ["--std-from", "s"]])
def test_options_of_a_dry_run_belong_to_one(cli, options):
    refuses(cli("leebert-tune", "sweep", "mrpc_small", *options), f"{options[0]} belongs to --dry-run")


@pytest.mark.parametrize("name", ["a/b", "..", "../x", "a..b", ".hidden", "", "x" * 101, "ä", "-x", "a b"])
def test_a_sweep_is_never_named_out_of_its_storage(place, cli, tmp_path, name):
    path = space(tmp_path / "space.yaml", own(place / "data" / "train.jsonl"), place / "backbone")
    refuses(cli("leebert-tune", "sweep", path, f"--name={name}"), "--name", "letters, digits")
    assert {p.name for p in tmp_path.iterdir()} == {"space.yaml"}


@pytest.mark.parametrize("command", ["status", "resume", "stop", "best", "compare"])
@pytest.mark.parametrize("name", ["nothing", "../nothing", "no/where"])
def test_a_sweep_that_does_not_exist(cli, command, name):
    sides = ("--a", "clo-v2", "--b", "blo") if command == "compare" else ()
    refuses(cli("leebert-tune", command, name, *sides), name)


def test_a_space_file_with_a_near_name_is_offered(cli, tmp_path):
    (tmp_path / "mrpc.yaml").write_text("task: mrpc\n")
    refuses(cli("leebert-tune", "sweep", "mprc.yaml"), "mprc.yaml", "no such file", "did you mean 'mrpc.yaml'")


# Backbones, through both programs.


def broken_backbone(folder, kind):
    if kind == "one layer":
        return save_backbone(folder, layers=1), ["1 layer", "at least two"]
    if kind == "no tokenizer":
        encoder("bert", layers=3).save_pretrained(folder)
        return folder, ["no tokenizer", "tokenizer.json"]
    if kind == "not there":
        return folder, ["no folder"]
    if kind == "an empty folder":
        folder.mkdir()
        return folder, ["no config.json"]
    if kind == "pickled weights":
        import torch

        model = encoder("bert", layers=3)
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        tokenizer().save_pretrained(folder)
        return folder, ["model.safetensors", "never"]
    save_backbone(folder, layers=3)
    if kind == "damaged weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        return folder, [str(folder)]
    config = json.loads((folder / "config.json").read_text())
    if kind == "remote code":
        config |= {"model_type": "mystery", "auto_map": {"AutoConfig": "code.MyConfig", "AutoModel": "code.MyModel"}}
        (folder / "code.py").write_text("raise SystemExit('this code ran')\n")
    elif kind == "another family":
        config |= {"model_type": "gpt2"}
    else:
        (folder / "config.json").write_text("{")
        return folder, [str(folder)]
    (folder / "config.json").write_text(json.dumps(config))
    return folder, {"remote code": ["code from its repository"], "another family": ["'gpt2' is not supported"]}[kind]


@pytest.mark.parametrize("program", ["leebert", "leebert-tune"])
@pytest.mark.parametrize(
    "kind",
    [
        "one layer", "no tokenizer", "not there", "an empty folder", "pickled weights", "damaged weights", "remote code",
        "another family", "damaged configuration",
    ],
)  # fmt: skip
def test_a_backbone_that_cannot_be_used(place, cli, tmp_path, mlflow_app, program, kind):
    folder, parts = broken_backbone(tmp_path / "encoder", kind)
    task = own(place / "data" / "train.jsonl")
    if program == "leebert":
        ran = cli(program, "train", "--config", run_file(tmp_path / "run.yaml", task, folder), "--out", tmp_path / "m")
    else:
        path = space(tmp_path / "space.yaml", task, folder)
        ran = cli(program, "sweep", path, "--name", "s", "--tracking-uri", mlflow_app.url)
    refuses(ran, f"backbone {folder}", *parts)
    assert not (tmp_path / "sweeps" / "s").exists()
    assert not (tmp_path / "m" / "config.json").exists()


@pytest.mark.parametrize("program", ["leebert", "leebert-tune"])
def test_a_hub_that_cannot_be_reached(place, cli, tmp_path, mlflow_app, program):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    if program == "leebert":
        ran = cli(program, "train", "--task", "rte", "--backbone", "nobody/nothing")
    else:
        path = space(tmp_path / "space.yaml", own(place / "data" / "train.jsonl"), "nobody/nothing")
        ran = cli(program, "sweep", path, "--name", "s", "--tracking-uri", mlflow_app.url)
    refuses(ran, "backbone nobody/nothing", "hub can't be reached", "--backbone")


def test_data_on_a_hub_that_cannot_be_reached(place, cli):
    ran = cli("leebert", "train", "--task", "rte", "--backbone", place / "backbone", "--set", "model.max_length=32")
    refuses(ran, "hub:nyu-mll/glue/rte", "could not be reached", "--data-dir")


@pytest.mark.parametrize("spec", ["package:no_such_package/model", "package:leebert/../tune", "package:a b/x"])
def test_a_package_without_a_backbone(place, cli, tmp_path, spec):
    config = run_file(tmp_path / "run.yaml", own(place / "data" / "train.jsonl"), spec)
    refuses(cli("leebert", "train", "--config", config), f"backbone {spec}")


def test_a_trained_model_is_no_backbone(model, cli, place, tmp_path):
    config = run_file(tmp_path / "run.yaml", own(place / "data" / "train.jsonl"), model)
    refuses(cli("leebert", "train", "--config", config), str(model), "already holds an early-exit model")


# Models.


@pytest.fixture
def copied(model, tmp_path):
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize("damage", ["weights", "no weights", "config", "foreign", "nothing", "tokenizer"])
def test_a_model_that_is_damaged(copied, cli, place, command, damage):
    weights = copied / "model.safetensors"
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "config":
        (copied / "config.json").write_text("{")
    elif damage == "foreign":
        shutil.copy(place / "backbone" / "config.json", copied / "config.json")
    elif damage == "tokenizer":
        (copied / "tokenizer.json").unlink()
    else:
        shutil.rmtree(copied)
    refuses(cli("leebert", command, copied, stdin="the\tcat\n"), copied)


def test_a_damaged_checkpoint_of_a_training_is_named_and_kept(place, cli, tmp_path):
    training = {"batch_size": 4, "max_epochs": 3, "precision": "fp32"}
    config = run_file(tmp_path / "run.yaml", own(place / "data" / "train.jsonl"), place / "backbone", training=training)
    from leebert.recipe import RunConfig, train_model
    from leebert.yaml import load_yaml

    class Killed(Exception):
        pass

    def kill(epoch):
        raise Killed

    with pytest.raises(Killed):
        train_model(RunConfig(**load_yaml(config)), tmp_path / "m", device="cpu", report=kill)
    (damaged,) = (tmp_path / "m" / ".checkpoints").glob("epoch-*")
    (damaged / "state.safetensors").write_bytes(b"nothing")
    refuses(
        cli("leebert", "train", "--config", config, "--out", tmp_path / "m"),
        damaged,
        "can't be used",
        "to restart this run",
    )
    assert (damaged / "state.safetensors").read_bytes() == b"nothing"


def test_a_model_is_never_trained_over(copied, cli, place):
    before = {p.name: p.read_bytes() for p in copied.iterdir() if p.is_file()}
    ran = cli("leebert", "train", "--config", place / "run.yaml", "--out", copied)
    refuses(ran, "--out", copied, "already holds a model")
    assert {p.name: p.read_bytes() for p in copied.iterdir() if p.is_file()} == before


def test_evaluate_names_a_split_that_does_not_exist_and_leaves_an_earlier_result(model, cli, tmp_path):
    out = tmp_path / "earlier.json"
    out.write_text("earlier")
    refuses(cli("leebert", "evaluate", model, "--split", "devv", "--out", out), "'devv'", "did you mean 'dev'")
    assert out.read_text() == "earlier"


# Rows to be answered.

GOOD = {"a": "the cat", "b": "a dog"}
INPUT = {
    "rows.jsonl": {
        "not JSON": ('{"a": "x", \n', ["line 3", "not valid JSON"]),
        "no such column": ('{"a": "x", "c": "y"}\n', ["line 3", "no column 'b'", "'a', 'c'", "--text"]),
        "empty text": ('{"a": " ", "b": "y"}\n', ["line 3, column 'a': the text is empty"]),
        "no text": ('{"a": "x", "b": null}\n', ["line 3, column 'b': the text is empty"]),
        "half a character": ('{"a": "\\ud800", "b": "y"}\n', ["line 3, column 'a'", "surrogate"]),
        "a null character": ('{"a": "\\u0000", "b": "y"}\n', ["line 3, column 'a'", "null character"]),
        "a null byte": (b'{"a": "\0", "b": "y"}\n', ["line 3: a null byte"]),
        "a key twice": ('{"a": "x", "a": "z", "b": "y"}\n', ["line 3", "duplicate key 'a'"]),
        "a text": ("the cat\ta dog\n", ["line 3: not valid JSON"]),
        "an array": ('[{"a": "x", "b": "y"}]\n', ["line 3", "is not a JSON object"]),
        "not UTF-8": (b"\xff\n", ["not UTF-8"]),
        "a number": ('{"a": 7, "b": "y"}\n', ["line 3, column 'a': 7 is not text but int"]),
        "no number": ('{"a": NaN, "b": "y"}\n', ["line 3, column 'a': nan is not text but float"]),
        "a truth": ('{"a": "x", "b": true}\n', ["line 3, column 'b': True is not text but bool"]),
    },
    "rows.csv": {
        "empty text": ("x,\n", ["line 4, column 'b': the text is empty"]),
        "a null byte": (b"x\0,y\n", ["line 4: a null byte"]),
        "too few columns": ("x\n", ["line 4", "expected 2 columns, got 1"]),
        "not UTF-8": (b"\xff,x\n", ["not UTF-8"]),
        "a field without end": ('"' + "x" * 200_000 + ",y\nx,y\n", ["line 4: not valid CSV"]),
        "a long field": ('"' + "the cat " * 25_000 + '",y\n', None),
    },
    "rows.tsv": {
        "empty text": ("\tx\n", ["line 4, column 'a': the text is empty"]),
        "too many columns": ("x\ty\tz\n", ["line 4"]),
        "a blank line": ("\nx\ty\n", ["line 4: expected 2 columns, got 1"]),
        "blank lines at the end": ("x\ty\n\n\n", None),
        "a long field": ("the cat " * 25_000 + "\ty\n", None),
    },
    "rows.txt": {
        "too few texts": ("only one\n", ["line 3", "1 text(s) where the model takes 2"]),
        "a blank line": ("\nx\ty\n", ["line 3: the text is empty"]),
        "blank lines at the end": ("x\ty\n\n \n", None),
        "not JSON": ("{x}\ty\n", ["line 3", "not valid JSON"]),
    },
}  # fmt: skip


#: The same defects in another format are read by the same functions.
SOME = [
    ("rows.jsonl", "not JSON"), ("rows.jsonl", "half a character"), ("rows.jsonl", "a number"), ("rows.csv", "too few columns"),
    ("rows.csv", "a long field"), ("rows.csv", "a field without end"), ("rows.tsv", "a blank line"), ("rows.tsv", "empty text"),
    ("rows.txt", "too few texts"), ("rows.txt", "blank lines at the end"), ("rows.txt", "a blank line"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "defect"), quick.only(SOME, [(f, d) for f, ds in INPUT.items() for d in ds]))
def test_a_bad_row_ends_predict_and_leaves_earlier_answers_as_they_were(model, cli, tmp_path, file, defect):
    data, parts = INPUT[file][defect]
    data = data if isinstance(data, bytes) else data.encode()
    between = {".jsonl": None, ".csv": ",", ".tsv": "\t", ".txt": None}[Path(file).suffix]
    if file == "rows.txt":
        good = ("\t".join(GOOD.values()) + "\n").encode() * 2
    elif between:
        good = (between.join(GOOD) + "\n" + (between.join(GOOD.values()) + "\n") * 2).encode()
    else:
        good = (json.dumps(GOOD) + "\n").encode() * 2
    (tmp_path / file).write_bytes(good + data)
    out = tmp_path / "answers.jsonl"
    out.write_text("earlier")
    ran = cli("leebert", "predict", model, tmp_path / file, "--out", out)
    if parts is None:
        assert ran.code == 0, ran.err
        assert [json.loads(line)["row"] for line in out.read_text().splitlines()] == [0, 1, 2]
        return
    refuses(ran, tmp_path / file, *parts, "no predictions were written")
    assert out.read_text() == "earlier"
    assert {p.name for p in tmp_path.iterdir()} == {file, "answers.jsonl"}


def test_files_that_are_no_input(model, cli, tmp_path):
    refuses(cli("leebert", "predict", model, tmp_path / "none.csv"), tmp_path / "none.csv", "no such file")
    (tmp_path / "cat.png").write_bytes(b"")
    for images in (tmp_path, tmp_path / "cat.png"):
        refuses(cli("leebert", "predict", model, images), images, "takes texts")
    pq.write_table(pa.table({"a": [{"bytes": b"png"}], "b": ["a dog"]}), tmp_path / "img.parquet")
    refuses(cli("leebert", "predict", model, tmp_path / "img.parquet"), "row 0, column 'a'", "is not text but dict")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    refuses(cli("leebert", "predict", model, tmp_path / "x.parquet"), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("a,a,b\nx,y,z\n")
    refuses(cli("leebert", "predict", model, tmp_path / "x.csv"), tmp_path / "x.csv", "duplicate column 'a'")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--format", "xml"), ["--format xml", "jsonl, csv or parquet"]),
        (("--out", "answers.txt"), ["txt", "jsonl, csv or parquet"]),
        (("--format", "parquet"), ["--format parquet: is for files only"]),
        (("--glue", "g", "--processes", "2"), ["--processes 2: --glue predicts in one process"]),
        (("--criterion", "hope"), ["criterion", "patience"]),
        (("--criterion", "entropy"), ["needs a threshold"]),
        (("--criterion", "confidence", "--threshold", "2"), ["between 0 and 1"]),
        (("--criterion", "entropy", "--threshold", "0.9"), ["between 0 and ln 2 = 0.6931", "normalised_entropy"]),
        (("--criterion", "pcee", "--threshold", "0.5", "--patience", "9"), ["patience 9 of pcee", "between 1 and"]),
        (("--criterion", "patience", "--patience", "2"), ["'patience' has no parameter 'patience'"]),
        (("--criterion", "patience", "--threshold", "9"), ["patience 9", "between 1 and"]),
        (("--precision", "fp64"), ["--precision fp64: should be auto, fp32 or bf16"]),
        (("--criterion", "patience", "--threshold", "0.5"), ["whole number"]),
    ],
)
def test_wrong_options_of_predict(model, cli, options, parts):
    refuses(cli("leebert", "predict", model, *options, stdin="the\tcat\n"), *parts)


def test_an_output_folder_under_a_file(place, cli, tmp_path, mlflow_app):
    (tmp_path / "file").write_text("mine")
    config = run_file(tmp_path / "run.yaml", own(place / "data" / "train.jsonl"), place / "backbone")
    refuses(cli("leebert", "train", "--config", config, "--out", tmp_path / "file" / "m"), tmp_path / "file")
    path = space(tmp_path / "space.yaml", own(place / "data" / "train.jsonl"), place / "backbone")
    ran = cli(
        "leebert-tune", "sweep", path, "--name", "s", "--storage", tmp_path / "file", "--tracking-uri",
        mlflow_app.url,
    )  # fmt: skip
    refuses(ran, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# As a person sees it: the real programs, their real stderr.


@pytest.mark.parametrize(
    ("command", "real"),
    [
        pytest.param(("leebert", "train", "--config", "none.yaml"), True, marks=pytest.mark.slow),
        (("leebert", "predict", "none"), False),
        (("leebert", "train", "--task", "rte", "--backbone", "nobody/nothing"), False),
        pytest.param(("leebert-tune", "sweep", "none.yaml"), True, marks=pytest.mark.slow),
        (("leebert-tune", "status", "none"), False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_program_prints_one_line_and_exits_with_one(command, real, cli, tmp_path, monkeypatch):
    """Of each program one command in a process of its own, the others in this one."""
    monkeypatch.chdir(tmp_path)
    if real:
        done = subprocess.run([SCRIPTS / command[0], *command[1:]], capture_output=True, text=True, timeout=120)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        ran = cli(*command)
        code, out, err = ran.code, ran.out, ran.err
    assert code == 1, err
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_stdin_that_is_no_text(model, tmp_path):
    done = subprocess.run(
        [SCRIPTS / "leebert", "predict", model], input=b"the\tcat\n\xff\n", capture_output=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["row"] == 0, "lines before it have predictions"
    assert b"Traceback" not in done.stderr
    assert b"\nerror: stdin, line 2: not UTF-8" in done.stderr
    assert b"(no predictions from row 1 on)" in done.stderr


def test_an_output_that_cannot_be_written_is_reported_before_the_work(model, place, cli):
    rows = place / "data" / "dev.jsonl"
    taken = Path("taken").absolute()
    taken.write_text("whatever lay here")
    for command in (
        ["train", "--config", place / "run.yaml", "--out", taken],
        ["predict", model, rows, "--out", taken / "answers.jsonl"],
        ["evaluate", model, "--out", taken / "scores.json"],
        ["predict", model, "--glue", taken],
    ):
        ran = cli("leebert", *command)
        assert ran.code == 1
        assert f"error: {command[-2]} {taken}: can't be written to" in ran.err
    assert taken.read_text() == "whatever lay here"


def test_a_folder_is_no_file_to_write_and_a_model_must_be_writable_before_it_is_calibrated(
    model, place, cli, tmp_path, monkeypatch
):
    rows = place / "data" / "dev.jsonl"
    monkeypatch.setattr("leebert.model.load_model", None)  # nothing is done
    for command in (["predict", model, rows, "-o", tmp_path], ["evaluate", model, "--out", tmp_path]):
        refuses(cli("leebert", *command), f"--out {tmp_path}: is a folder")
    monkeypatch.undo()

    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("leebert.files.tempfile.TemporaryFile", read_only)
    monkeypatch.setattr("leebert.calibration.record_all", None)
    ran = cli("leebert", "calibrate", model, rows, "--speed-up", 1.5)
    refuses(ran, f"model {model}: can't be written to (Read-only file system)")


def test_texts_of_another_number_than_the_model_takes_are_refused_and_no_rows_are_reported(model, place, cli, tmp_path):
    rows = place / "data" / "dev.jsonl"
    ran = cli("leebert", "predict", model, rows, "--text", "a")
    assert ran.code == 1
    assert "--text a: this model takes 2 text column(s), such as a, b" in ran.err
    (tmp_path / "header.tsv").write_text("a\tb\n")
    ran = cli("leebert", "predict", model, tmp_path / "header.tsv")
    assert ran.code == 0
    assert ran.err.startswith("0 predictions")
