"""What version 0.1.0 left behind opens in the present version, with the values that version 0.1.0 gave.

`fixtures/old_version/make.py` made the artefacts and says how. Each test works on a copy: data, encoder and MLflow lie at
another place than when the artefacts were made. A stored key may be renamed only where the old one is still read; a key
of an answer that is renamed gets a line in RENAMED.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import shutil
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow_server import contents

HERE = Path(__file__).resolve().parent / "fixtures" / "old_version"
#: Where the artefacts were made: on the machine that runs the tests it does not exist.
ROOT = "/srv/leebert"
#: Keys of JSON answers that the present version writes under another name: old → new.
RENAMED = {"rule": "criterion", "strategy": "criterion"}
#: Parameters of MLflow runs that version 0.1.0 had no option for.
NEW_OPTIONS = {("outer",), ("label_noise",), ("label_noise_exits",), ("fixed_d2",)}
#: Sentences in answers that the present version words otherwise: old → new.
REWORDED = {
    "score at speed-up 1.5 under pcee with patience 1": "score at layer speed-up 1.5 under pcee with patience 1",
    "this sweep was pruned (2 configurations, 2 of them on these two sides): what is left was selected, differences may be "
    "biased": "this sweep was pruned (2 configuration(s), 2 of them on these two sides): the completed configurations are a "
    "selection, so differences may be biased",
}
#: Sentences for people, and what depends on place, time, machine or the package's own code.
NOT_COMPARED = frozenset({
    "conclusion", "note", "picked", "verdict", "views", "mlflow", "file", "folder", "path", "out", "host", "code", "versions",
    "runtime", "digest", "seconds", "wall_seconds", "started", "elapsed", "time", "storage", "held_out", "differs", "foreign",
})  # fmt: skip
#: Fields of a difference by another estimator than that of version 0.1.0, the names of its sides, and sentences about both.
ESTIMATED = frozenset({"a", "b", "low", "high", "p", "p_folds", "std", "warnings", "tuned"})
#: MLflow's metrics of the same.
ESTIMATED_METRICS = re.compile(r"paired/.*(low|high|p|p_folds)$")
#: Probabilities and scores on other CPUs than those that the artefacts were made on.
TOLERANCE = 1e-5
#: Scores of what is trained again, in which another CPU may change the answer to a sample or two.
TRAINED = 2e-2


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What the commands of version 0.1.0 answered."""
    return json.loads(gzip.decompress((HERE / "expected.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that version 0.1.0 worked in; read-only."""
    folder = tmp_path_factory.mktemp("old_version")
    with tarfile.open(HERE / "place.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def place(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that the test may change, as the working folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("LEEBERT_STORAGE", raising=False)
    folder = shutil.copytree(unpacked, tmp_path / "place")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def database(place: Path) -> Path:
    """The MLflow database of version 0.1.0, whose artifacts lie in the copy."""
    text = gzip.decompress((HERE / "mlflow.sql.gz").read_bytes()).decode()
    path = place / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(text.replace(f"{ROOT}/mlruns", f"{place}/mlruns"))
    return path


def possible(value: Any, where: str) -> Any:
    """An end of an interval of scores as it is now: the old version's passed 0 and 100 %."""
    most = 100.0 if "_pct_" in where else 1.0
    if not re.search(r"summary/(score|exit)(_pct)?_(low|high)", where):
        return value
    if isinstance(value, tuple):  # step, value, time
        return (value[0], min(max(value[1], 0.0), most), *value[2:])
    return min(max(value, 0.0), most)


def agree(now: Any, old: Any, where: str = "", within: float = TOLERANCE) -> None:
    """Assert that an answer holds every value of the old one, numbers within a tolerance."""
    if isinstance(old, dict):
        for key, value in old.items():
            if key not in NOT_COMPARED:
                name = key if key in now else RENAMED.get(key, key)
                assert name in now, f"{where}: no {name}"
                agree(now[name], value, f"{where}.{key}", within)
    elif isinstance(old, list):
        assert len(now) == len(old), where
        for index, (one, other) in enumerate(zip(now, old, strict=True)):
            agree(one, other, f"{where}[{index}]", within)
    elif isinstance(old, float):
        assert now == pytest.approx(possible(old, where), rel=within, abs=within, nan_ok=True), where
    else:
        assert now == (REWORDED.get(old, old) if isinstance(old, str) else possible(old, where)), where


def answered(ran: Any) -> Any:
    """The JSON that a command printed."""
    assert ran.code == 0, ran.err
    return ran.json


# Sweeps.


def test_finished_and_interrupted_sweeps_have_their_status(place, cli, expected):
    agree(answered(cli("leebert-tune", "status", "finished", "--json")), expected["status"])
    agree(answered(cli("leebert-tune", "status", "stopped", "--json")), expected["status_stopped"])
    agree(answered(cli("leebert-tune", "list", "--json")), expected["list"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("best", ()),
        ("best_at_speed_up", ("--objective", "speed-up=1.5", "--rule", "pcee", "--patience", 1)),
        ("best_by_area", ("--objective", "area")),
    ],
)
def test_best_chooses_the_same_configuration_by_the_same_numbers(place, cli, expected, name, options):
    agree(answered(cli("leebert-tune", "best", "finished", "--out", "new", "--json", *options)), expected[name])


def test_compare_reports_the_same_differences(place, cli, expected):
    options = ("--a", "clo-v2", "--b", "blo", "--speed-up", 1.5, "--rule", "entropy", "--json")
    answer = answered(cli("leebert-tune", "compare", "finished", *options))
    asked = [at for at in answer["at_speed_ups"] if at["speed_up"] == 1.5]  # those of the verdict are beside it
    agree({**answer, "at_speed_ups": asked}, without(expected["compare"], ESTIMATED))
    assert answer["tuned"]["difference"]["mean"] == pytest.approx(expected["compare"]["tuned"]["difference"]["mean"])


def without(answer: Any, keys: frozenset[str]) -> Any:
    """An answer without some of its keys, at any depth."""
    if isinstance(answer, dict):
        return {key: without(value, keys) for key, value in answer.items() if key not in keys}
    return [without(value, keys) for value in answer] if isinstance(answer, list) else answer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "command"),
    [
        ("sweeps/finished/report.html", ("report", "finished", "--out", "new.html")),
        ("compare.html", ("compare", "finished", "--a", "clo-v2", "--b", "blo", "--html", "new.html")),
    ],
)
def test_pages_show_the_same_numbers(place, database, cli, expected, old, command):
    ran = cli("leebert-tune", *command, "--tracking-uri", f"sqlite:///{database}")
    assert ran.code == 0, ran.err
    new = table_rows(Path("new.html"))
    # Of a difference, the estimate is the same; its interval and p-values are by another estimator.
    rows = [row[:1] if old == "compare.html" and row and row[0][0] in "+-" else row for row in expected["pages"][old]]
    rows = [[re.sub(r"^1\d\d\.\d+$", "100.00", text) for text in row] for row in rows]  # ends of intervals of scores
    missing = [row for row in rows if not any(contains(other, row) for other in new)]
    assert not missing


def table_rows(page: Path) -> list[list[str]]:
    """The numbers with decimals of each row of a page's tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", page.read_text(), re.DOTALL)
    return [re.findall(r"[-+]?\d+\.\d+", re.sub(r"<[^>]+>", " ", row).replace("−", "-")) for row in rows]


def contains(row: list[str], other: list[str]) -> bool:
    """Whether a row has all numbers of another one, each as often."""
    return all(other.count(number) <= row.count(number) for number in other)


def test_a_copy_of_scores_is_simulated_to_the_same_figures(place, cli, expected):
    ran = cli("leebert-tune", "simulate", "recorded", "--orders", 4, "--set", "budget.fold_epochs=null", "--json")
    agree(answered(ran), expected["simulate"])


@pytest.mark.slow
def test_an_interrupted_sweep_is_resumed_from_its_checkpoint_to_the_same_scores(
    place, database, cli_without_ray, expected
):
    moved = ("--data-dir", place / "data", "--backbone", place / "backbone")
    tracking = f"tracking.uri=sqlite:///{database}"
    options = ("--set", "budget.fold_epochs=null", "--set", tracking)
    ran = cli_without_ray("leebert-tune", "resume", "stopped", *moved, *options)
    assert ran.code == 0, ran.err
    table = pd.read_parquet("sweeps/stopped/results.parquet").drop(columns=["sweep", "task", "seconds"])
    table = table.sort_values(["configuration", "seed", "fold", "epoch", "metric", "exit"])
    agree(table.to_numpy().tolist(), expected["resumed"], within=TRAINED)
    assert not list((place / "sweeps/stopped/checkpoints").iterdir())


# Best files.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")
def test_a_best_file_is_verified_and_refitted_beside_the_old_models(place, database, cli, expected):
    moved = ("--data-dir", place / "data", "--backbone", place / "backbone")
    ran = cli("leebert-tune", "verify", "best/pairs.yaml", *moved, "--anyway", "--json")
    agree(
        ran.json,
        {key: value for key, value in expected["verify"].items() if key in ("recorded", "now")},
        within=TRAINED,
    )
    assert [cell["now"] for cell in ran.json["cells"]] == pytest.approx(
        [cell["now"] for cell in expected["verify"]["cells"]], abs=TRAINED
    )
    tracking = ("--tracking-uri", f"sqlite:///{database}")
    criterion = ("--strategy", "pcee", "--patience", 1, "--speed-up", 1.5, "--export", "none")
    taken = cli("leebert-tune", "refit", "best/pairs.yaml", *moved, *tracking, *criterion)
    assert "refits/pairs: it already holds a refit" in taken.err
    ran = cli("leebert-tune", "refit", "best/pairs.yaml", *moved, *tracking, *criterion, "--out", "again", "--json")
    now, old = answered(ran), expected["refit"]
    thresholds = (
        "task",
        "configuration",
        "seeds",
        "registered_seed",
        "chosen",
        "theta_updates",
        "cross_validated",
        "majority",
    )
    agree(now, {key: old[key] for key in thresholds})
    evaluated = old["evaluations"]["0"]["dev"]
    agree(
        now["evaluations"]["0"]["dev"],
        {key: evaluated[key] for key in ("rows", "exits", "mean_over_exits")},
        within=TRAINED,
    )
    assert old["mlflow"]["version"] == 1
    assert now["mlflow"]["version"] == 2
    assert "models:/leebert-pairs@champion moves from version 1, which is kept, to version 2" in ran.err
    with contextlib.closing(sqlite3.connect(database)) as connection:
        runs = connection.execute("SELECT name FROM runs WHERE name LIKE 'Refit%' ORDER BY name").fetchall()
        names = [
            set(connection.execute(f"SELECT key FROM {table} WHERE run_uuid = ?", (run,)))
            for run in (old["mlflow"]["runs"]["0"], now["mlflow"]["runs"]["0"])
            for table in ("metrics", "params", "tags")
        ]
    assert [name for (name,) in runs] == ["Refit · pairs BLO s0", "Refit · pairs BLO s0 no. 2"]
    names[1] |= NEW_OPTIONS
    assert all(was <= now for was, now in zip(names[:3], names[3:], strict=True)), "no name of MLflow's is lost"


def test_a_results_file_of_the_papers_tables_shows_the_same_numbers(place, cli, expected):
    ran = cli(
        "leebert-tune", "reproduce", "table4", "--task", "task.yaml", "--data-dir", "data", "--backbone", "backbone",
        "--pooling", "mean", "--methods", "clo-v2,pabee", "--out", "reproduced", "--no-run", "--json",
    )  # fmt: skip
    numbers = [re.findall(r"\d+\.\d+", text) for text in (answered(ran)["text"], expected["reproduce"]["text"])]
    assert numbers[0] == numbers[1]
    assert numbers[0]


# Saved models.


@pytest.mark.slow
@pytest.mark.parametrize("model", ["chosen", "own", "best", "calibrated", "images"])
def test_a_saved_model_gives_the_same_answers(place, cli, expected, model):
    texts = "pictures" if model == "images" else "texts.jsonl"
    for criterion, answers in expected["predict"][model].items():
        options = () if criterion == "own" else ("--strategy", criterion, *OPTIONS[criterion])
        agree(lines(cli("leebert", "predict", f"models/{model}", texts, *options)), answers, criterion)


#: Second and third options of each exit criterion that the artefacts' answers were given by.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "patience": ("--threshold", 1),
    "entropy": ("--threshold", 0.5),
    "normalised_entropy": ("--threshold", 0.7),
    "confidence": ("--threshold", 0.75),
    "pcee": ("--threshold", 0.7, "--patience", 2),
    "f-pabee": ("--threshold", 0.2, "--patience", 1),
    "beem": ("--threshold", 0.9),
    "never": (),
}


def lines(ran: Any) -> list[Any]:
    """The answers of `predict`."""
    assert ran.code == 0, ran.err
    return [json.loads(line) for line in ran.out.splitlines()]


def test_a_saved_model_is_evaluated_and_calibrated_to_the_same_numbers(place, cli, expected):
    ran = cli("leebert", "evaluate", "models/chosen", "--data-dir", "data", "--timed-rows", 0, "--json")
    # The paper's speed-up of 1.95 was a default beside 2; now there is one default.
    old = {key: value for key, value in expected["evaluate"]["dev"].items() if key != "at_paper_speed_up"}
    agree(answered(ran), {"dev": old})
    options = ("--speed-up", 1.5, "--strategy", "entropy", "--json")
    ran = cli("leebert", "calibrate", "models/chosen", "texts.jsonl", *options)
    agree(answered(ran), expected["calibrate"])


@pytest.mark.slow
def test_a_best_file_is_trained_by_train_config(place, cli, expected):
    moved = ("--data-dir", place / "data", "--backbone", place / "backbone")
    ran = cli("leebert", "train", "--config", "best/pairs.yaml", *moved, "--out", "new", "--json")
    now, old = answered(ran), expected["train"]["best"]
    agree({key: now[key] for key in ("rows", "theta_updates")}, {key: old[key] for key in ("rows", "theta_updates")})
    answers = cli("leebert", "predict", "new", "texts.jsonl")
    labels = [[one["label"] for one in some] for some in (lines(answers), expected["predict"]["best"]["own"])]
    assert sum(map(str.__ne__, *labels)) <= TRAINED * len(labels[0])


@pytest.mark.slow
def test_a_killed_training_run_is_finished_from_its_checkpoint(place, cli, expected):
    train = (
        "train", "--task", "task.yaml", "--data-dir", "data", "--backbone", "backbone", "--pooling", "mean",
        "--set", "model.max_length=32", "--set", "training.batch_size=4", "--set", "training.max_epochs=4",
        "--set", "training.lr_theta=1e-2", "--set", "training.precision=fp32", "--set", "training.seed=1",
    )  # fmt: skip
    ran = cli("leebert", *train, "--out", "models/killed", "--json")
    old = expected["train"]["killed"]
    agree(
        answered(ran),
        {key: old[key] for key in ("rows", "theta_updates", "best_epoch", "score", "majority")},
        within=TRAINED,
    )


def test_configurations_with_the_old_keys_of_exits_are_read(place, cli):
    moved = ("--data-dir", "data", "--backbone", "backbone", "--out", "models/own")
    keys = ("--set", "exits.strategy=pcee", "--set", "exits.threshold=0.7", "--set", "exits.patience=1")
    for source in (("--task", "task.yaml", *keys), ("--config", "best-at/pairs.yaml")):
        ran = cli("leebert", "train", *source, *moved)
        assert "the folder already holds a model" in ran.err, "which is looked at when the configuration has been read"


# MLflow.

#: Tags that hold sentences, in which words may change.
SENTENCES = frozenset({"mlflow.note.content"})
#: A summary's digest covers its note: a summary with other words is written again, with the same values and times.
COVERS_SENTENCES = {"summary": frozenset({"digest"})}


#: The completed and pruned configurations of the old sweep.
MENDED = 4


def stored(database: Path) -> dict[str, Any]:
    """A sweep's runs in MLflow by name, without sentences."""
    runs = contents(database, "finished")
    runs = {name: run for name, run in runs.items() if run["tags"]["kind"] != "refit"}
    for run in runs.values():
        words = SENTENCES | COVERS_SENTENCES.get(run["tags"]["kind"], frozenset())
        run["tags"] = {key: value for key, value in run["tags"].items() if key not in words}
        run["metrics"] = {key: value for key, value in run["metrics"].items() if not ESTIMATED_METRICS.match(key)}
    return runs


@pytest.mark.slow
def test_rebuild_finds_the_old_runs_complete_and_would_write_them_the_same(place, database, cli, expected):
    command = ("rebuild-mlflow", "finished", "--tracking-uri", f"sqlite:///{database}", "--json")
    before = stored(database)
    # Configurations get the series and tags that the old version did not write.
    agree(answered(cli("leebert-tune", *command)), {**expected["rebuild"], "mended": MENDED})
    whole = contents(database, "finished")
    after = stored(database)
    assert after.keys() >= before.keys()
    for name, run in before.items():
        agree(after[name], run, name)
    answered(cli("leebert-tune", *command))
    assert contents(database, "finished") == whole, "words and digests included"
    # The same database without runs: the present version writes the old values, and names of
    # configurations' runs end in their options instead of a digest.
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for table in ("latest_metrics", "metrics", "params", "tags", "runs"):
            connection.execute(f"DELETE FROM {table}")
        connection.commit()
    ran = answered(cli("leebert-tune", *command))
    assert ran["unsent"] == ran["rejected"] == 0
    assert not ran["differences"]
    after = {_numbered(name): run for name, run in stored(database).items()}
    for name, run in before.items():
        agree(*({**one, "tags": _named(one["tags"])} for one in (after[_numbered(name)], run)), name)


def _named(tags: dict[str, str]) -> dict[str, str]:
    """Tags with the names of configurations' runs up to their numbers."""
    names = ("mlflow.parentRunId", "mlflow.runName")
    return {key: _numbered(value) if key in names else value for key, value in tags.items()}


def _numbered(name: str) -> str:
    """The name of a configuration's run up to its number; other names as they are."""
    return name if name.startswith(("Summary", "Refit")) else name.split(" · ")[0]


def test_saved_views_keep_their_addresses(place, database, cli, expected):
    told = answered(cli("leebert-tune", "views", "finished", "--tracking-uri", f"sqlite:///{database}", "--json"))
    assert sorted(told["views"].values()) == sorted(expected["views"]["views"].values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")
def test_the_registered_model_is_loaded_and_serves_the_same_answers(place, database, expected, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    model = mlflow.pyfunc.load_model("models:/leebert-pairs@champion")
    texts = pd.read_json("texts.jsonl", lines=True, dtype=False)
    for params, answers in expected["served"]:
        agree(model.predict(texts, params=params).to_dict("records"), answers, str(params))
