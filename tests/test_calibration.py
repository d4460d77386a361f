"""`leebert calibrate`: thresholds chosen on unlabelled texts, kept where prediction and service read them."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from encoders import graded_rows
from saved_models import LAYERS, save_model

from leebert.evaluate import RecordedLogits
from leebert.milliseconds import ExitMilliseconds
from leebert.serving import Served
from leebert.thresholds import MISSED, choose, layer_speed_up, rows_needed, speed_up_interval

ROWS = 400
OWN = {"name": "pairs", "files": {"train": "x.csv"}, "text": ["a", "b"], "label": "label", "labels": ["no", "yes"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A saved model that no test may change, and texts in the formats that `predict` reads."""
    folder = tmp_path_factory.mktemp("calibration")
    save_model(folder / "model", OWN, ("no", "yes"))
    pd.DataFrame(graded_rows(ROWS)).to_csv(folder / "texts.csv", index=False)
    pd.DataFrame(graded_rows(ROWS)).assign(label="no label at all").to_json(
        folder / "texts.jsonl", orient="records", lines=True
    )
    return folder


@pytest.fixture
def model(place, tmp_path):
    return shutil.copytree(place / "model", tmp_path / "model")


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def layers_of(ran):
    assert ran.code == 0, ran.err
    return np.array([json.loads(line)["exit_layer"] for line in ran.out.splitlines()])


# The choice.


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "asked"), [("entropy", 1.5), ("normalised_entropy", 2), ("confidence", 2)])
def test_the_model_exits_at_the_threshold_that_reaches_the_speed_up(place, model, cli, rule, asked):
    ran = cli("leebert", "calibrate", model, place / "texts.csv", "--speed-up", asked, "--criterion", rule, "--json")
    assert ran.code == 0, ran.err
    ratio = LAYERS / layers_of(cli("leebert", "predict", model, place / "texts.csv")).mean()
    assert ratio == pytest.approx(asked, rel=0.02)
    assert ran.json["rows"] == ROWS
    assert ran.json["chosen"][rule]["reached"] == pytest.approx(ratio, rel=0.01)
    low, high = ran.json["chosen"][rule]["expected"]
    assert low < asked < high
    saved = json.loads((model / "config.json").read_text())
    assert (saved["exit_strategy"], saved["exit_threshold"]) == (rule, ran.json["chosen"][rule]["threshold"])


@pytest.mark.slow
def test_patience_takes_the_nearest_that_it_attains_and_reports_it(place, model, cli):
    ran = cli("leebert", "calibrate", model, place / "texts.csv", "--speed-up", 3.2, "--criterion", "patience")
    assert ran.code == 0, ran.err
    ratios = {
        p: LAYERS
        / layers_of(
            cli("leebert", "predict", model, place / "texts.csv", "--criterion", "patience", "--threshold", p)
        ).mean()
        for p in range(1, LAYERS)
    }
    nearest = min(ratios, key=lambda p: abs(np.log(ratios[p] / 3.2)))
    assert json.loads((model / "config.json").read_text())["exit_threshold"] == nearest
    assert f"exit criterion patience does not reach a layer speed-up of 3.2, since its thresholds are whole numbers: the nearest is {ratios[nearest]:.2f}" in ran.out  # fmt: skip


def test_the_models_own_criterion_stays_where_none_is_given_and_labels_change_nothing(place, model, cli, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    first = cli("leebert", "calibrate", model, place / "texts.csv", "--speed-up", 2)
    assert first.code == 0, first.err
    text = (place / "texts.jsonl").read_text()
    again = cli("leebert", "calibrate", other, "-", "--speed-up", 2, stdin=text)
    assert again.code == 0, again.err
    saved, same = (json.loads((m / "config.json").read_text()) for m in (model, other))
    assert saved == same
    assert saved["exit_strategy"] == "entropy"
    curves, others = (json.loads((m / "exits.json").read_text()) for m in (model, other))
    assert curves.pop("chosen_on") == f"{ROWS} unlabelled texts of texts.csv, recorded with this model"
    assert others.pop("chosen_on") == f"{ROWS} unlabelled texts of stdin, recorded with this model"
    assert curves == others
    assert f"now uses exit criterion entropy, threshold {saved['exit_threshold']:.6g}" in first.out
    assert {p for p in contents(model) if contents(model)[p] != contents(place / "model").get(p)} == {
        (model / name).relative_to(model) for name in ("config.json", "exits.json")
    }


def test_a_patience_of_the_models_own_has_its_curve_afterwards(place, model, cli):
    config = json.loads((model / "config.json").read_text())
    own = {"exit_strategy": "pcee", "exit_threshold": 0.9, "exit_patience": 3}
    (model / "config.json").write_text(json.dumps(config | own))
    ran = cli("leebert", "calibrate", model, place / "texts.csv", "--speed-up", 1.2)
    assert ran.code == 0, ran.err
    found = json.loads((model / "exits.json").read_text())["curves"]
    assert {"pcee, patience 2", "pcee, patience 3"} <= set(found)
    answers = Served(model).predict(pd.read_csv(place / "texts.csv"), {"speed_up": 1.2})
    assert LAYERS / answers["exit_layer"].mean() == pytest.approx(1.2, rel=0.03)


@pytest.mark.slow
def test_a_largest_time_per_text_gives_the_slowest_threshold_within_it(place, model, cli, monkeypatch):
    """With times that are proportional to layers, half of the time is a layer speed-up of 2."""
    times = ExitMilliseconds(
        tuple(float(i + 1) for i in range(LAYERS)), tuple(range(1, LAYERS + 1)), "PyTorch, made up"
    )
    monkeypatch.setattr("leebert.latency.exit_milliseconds", lambda *_: times)
    options = ("--criterion", "entropy", "--latency", f"{LAYERS / 2}ms")
    ran = cli("leebert", "calibrate", model, place / "texts.csv", *options)
    assert ran.code == 0, ran.err
    assert f"ms per text on average, {LAYERS} ms for all layers (at batch size 1 in PyTorch, made up)" in ran.out
    layers = layers_of(cli("leebert", "predict", model, place / "texts.csv")).mean()
    assert layers == pytest.approx(LAYERS / 2, rel=0.03)
    ran = cli("leebert", "calibrate", model, place / "texts.csv", "--criterion", "entropy", "--latency", "0.5ms")
    assert ran.code == 1
    assert "latency 0.5 ms: exit criterion entropy takes from 1 to 4 ms per sample" in ran.err


def test_columns_of_other_names_and_texts_that_are_cut(place, model, cli, tmp_path):
    rows = pd.DataFrame(graded_rows(ROWS)).rename(columns={"a": "x", "b": "y"})
    rows.loc[7, "x"] = "cat " * 99
    rows.to_parquet(tmp_path / "rows.parquet")
    options = ("--speed-up", 2, "--text", "x", "--text", "y")
    ran = cli("leebert", "calibrate", model, tmp_path / "rows.parquet", *options)
    assert ran.code == 0, ran.err
    assert "1 texts were truncated" in ran.out


@pytest.mark.slow
def test_a_service_takes_speed_ups_from_the_calibrated_curves(place, model, cli):
    rows = pd.read_csv(place / "texts.csv")
    ran = cli("leebert", "calibrate", model, place / "texts.csv", "--speed-up", 2)
    assert ran.code == 0, ran.err
    served = Served(model)
    for asked in (1.5, 2, 3):
        for rule in ("entropy", "confidence"):
            answers = served.predict(rows, {"criterion": rule, "speed_up": asked})
            assert LAYERS / answers["exit_layer"].mean() == pytest.approx(asked, rel=0.03)
    assert (
        served.predict(rows)["exit_layer"].tolist()
        == layers_of(cli("leebert", "predict", model, place / "texts.csv")).tolist()
    )


def test_the_card_names_once_what_the_thresholds_were_chosen_on(place, model, cli):
    (model / "README.md").write_text(
        "---\ntags: [leebert]\n---\n\n# pairs\n\nA model. By default a row leaves by the rule **entropy** at 0.5.\n\n"
        "## Use\n\nSo.\n\n## On dev: 40 rows\n\nMeasured.\n"
    )
    for asked in (1.5, 2):
        ran = cli(
            "leebert",
            "calibrate",
            model,
            place / "texts.csv",
            "--speed-up",
            asked,
            "--criterion",
            "confidence",
            "--json",
        )
        assert ran.code == 0, ran.err
    card = (model / "README.md").read_text()
    threshold = ran.json["chosen"]["confidence"]["threshold"]
    assert (
        f"A model. By default a sample exits by the criterion **confidence** at {threshold:.6g}.\n\n## Calibrated"
        in card
    )
    assert card.count("## Calibrated thresholds") == card.count("unlabelled texts of texts.csv") == 1
    assert "a layer speed-up of 2, chosen on 400 unlabelled texts of texts.csv, recorded with this model" in card
    assert "| confidence |" in card
    assert card.endswith("\n\n## Use\n\nSo.\n\n## On dev: 40 rows\n\nMeasured.\n")
    again = cli("leebert", "calibrate", model, place / "texts.csv", "--speed-up", 2)
    assert "this replaces the thresholds chosen on 400 unlabelled texts of texts.csv, recorded with this model" in (
        again.out
    )


# How far a choice holds.


def population(rows, seed=0):
    """Exits that grow surer with depth, each row at its own pace."""
    rng = np.random.default_rng(seed)
    pace = rng.gamma(2.0, 0.5, rows)
    logits = rng.normal(size=(6, rows, 2))
    logits[:, :, 0] += np.arange(1, 7)[:, None] * pace
    return RecordedLogits(logits.astype(np.float32), None)


@pytest.mark.slow
def test_the_interval_covers_other_samples_as_often_as_it_claims():
    everything = population(20_000)
    rng = np.random.default_rng(1)
    held = []
    for _ in range(120):
        sample = RecordedLogits(everything.logits[:, rng.choice(20_000, 300, replace=False)], None)
        chosen = choose(sample, "entropy", 2)
        low, high = speed_up_interval(sample, "entropy", chosen.threshold)
        held.append(low <= layer_speed_up(everything, "entropy", chosen.threshold) <= high)
    assert 0.89 <= np.mean(held) <= 0.995  # 95 %, give or take what 120 draws say


@pytest.mark.parametrize(("exits", "asked"), [(6, 2), (12, 2), (12, 1.5), (4, 3)])
def test_so_many_rows_are_enough_even_where_each_exits_first_or_last(exits, asked):
    rows = rows_needed(asked, range(1, exits + 1), exits)
    mean = exits / asked
    late = (mean - 1) / (exits - 1)  # the share of rows that run through all layers
    for count, enough in ((rows, True), (rows - rows // 10, False)):
        error = 1.96 * (exits - 1) * np.sqrt(late * (1 - late) / count)
        assert (error <= MISSED * mean) == enough


# What is wrong is said, and nothing is overwritten.

NEEDED = rows_needed(2, range(1, LAYERS + 1), LAYERS)
WRONG = {
    "no texts": ("a,b\n", ("--speed-up", "2"), ["texts.csv: no texts", f"at least {NEEDED}"]),
    "too few": (
        "a,b\nx,y\nx,z\n",
        ("--speed-up", "2"),
        ["texts.csv: 2 different texts", f"at least {NEEDED}"],
    ),
    "too fast": (None, ("--speed-up", "4.5"), ["speed-up 4.5: should lie between 1 (all layers) and 4"]),
    "too slow": (None, ("--speed-up", "0.5"), ["--speed-up 0.5", "a layer speed-up of at least 1"]),
    "no such rule": (None, ("--speed-up", "2", "--criterion", "hope"), ["'hope'", "not known here (patience, entropy"]),
    "never": (None, ("--speed-up", "2", "--criterion", "never"), ["no threshold of the exit criterion 'never'"]),
    "wrong columns": ("x,y\nx,y\n", ("--speed-up", "2"), ["texts.csv: no column 'a'", "--text"]),
    "repeated": (
        "a,b\n" + "cat,dog\nbird,dog\n" * ROWS,
        ("--speed-up", "2"),
        ["texts.csv: 2 different texts", f"at least {NEEDED}"],
    ),
    "all alike to the model": (
        "a,b\n" + "".join(f"unknown{i},dog\n" for i in range(ROWS)),
        ("--speed-up", "1.7"),
        ["samples exit together", "give other texts"],
    ),
    "no file": ("", ("--speed-up", "2"), ["texts.csv: no such file"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_texts_and_options_change_nothing(place, model, cli, tmp_path, case):
    text, options, parts = WRONG[case]
    path = place / "texts.csv" if text is None else tmp_path / "texts.csv"
    if text:
        path.write_text(text)
    ran = cli("leebert", "calibrate", model, path, *options)
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    for part in parts:
        assert part in ran.err
    assert contents(model) == contents(place / "model")


def test_a_file_that_cannot_be_written_leaves_all_as_they_were(place, model, cli, monkeypatch):
    (model / "README.md").write_text("By default a row leaves by the rule **entropy** at 0.5.\n")
    monkeypatch.setattr("leebert.files.secrets.token_hex", lambda length: "token")
    (model / ".README.md.token.tmp").mkdir()  # where the new card would be written first
    before = contents(model)
    ran = cli("leebert", "calibrate", model, place / "texts.csv", "--speed-up", 2)
    assert ran.code == 1
    assert "README.md" in ran.err
    assert contents(model) == before


def test_a_damaged_table_is_named_and_kept(place, model, cli):
    (model / "exits.json").write_text("{")
    before = contents(model)
    ran = cli("leebert", "calibrate", model, place / "texts.csv", "--speed-up", 2)
    assert ran.code == 1
    assert f"{model / 'exits.json'} can't be read" in ran.err
    assert contents(model) == before
