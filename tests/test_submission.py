"""`leebert predict --glue`: the files of GLUE's evaluation server."""

import json
import random

import pytest
import quick
from encoders import WORDS
from saved_models import LAYERS, save_model

from leebert.data.tasks import TASKS
from leebert.submission import SERVER_FILES

#: task → its test files in the release's layout, the name of the index column, and the server's files.
RELEASE = {
    "cola": ({"CoLA/test.tsv": "index\tsentence"}, ["CoLA.tsv"]),
    "sst2": ({"SST-2/test.tsv": "index\tsentence"}, ["SST-2.tsv"]),
    "mrpc": ({"MRPC/test.tsv": "index\t#1 ID\t#2 ID\t#1 String\t#2 String"}, ["MRPC.tsv"]),
    "qqp": ({"QQP/test.tsv": "id\tquestion1\tquestion2"}, ["QQP.tsv"]),
    "qnli": ({"QNLI/test.tsv": "index\tquestion\tsentence"}, ["QNLI.tsv"]),
    "rte": ({"RTE/test.tsv": "index\tsentence1\tsentence2"}, ["RTE.tsv"]),
    "mnli": (
        {
            "MNLI/test_matched.tsv": "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2",
            "MNLI/test_mismatched.tsv": "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2",
            "diagnostic/diagnostic.tsv": "index\tsentence1\tsentence2",
        },
        ["MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"],
    ),
}
WORDED = {"mnli": TASKS["mnli"].label_names, "qnli": TASKS["qnli"].label_names, "rte": TASKS["rte"].label_names}
ROWS = 24
TEXTS = {"sentence", "sentence1", "sentence2", "question", "question1", "question2", "#1 String", "#2 String"}


def write_test(path, header, seed=0):
    """A test file of the release, its rows in an order of their own and with quotes that quote nothing."""
    rng = random.Random(seed)
    columns = header.split("\t")
    numbers = rng.sample(range(100), ROWS)
    lines = [
        "\t".join(
            [str(n), *(" ".join(['"', *rng.choices(WORDS, k=6)]) if c in TEXTS else str(seed) for c in columns[1:])]
        )
        for n in numbers
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A saved model of each task that is asked for."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def of(task):
        if task not in made:
            made[task] = save_model(folder / task, task, TASKS[task].label_names)
        return made[task]

    return of


@pytest.fixture
def mrpc(tmp_path):
    """MRPC's test file, of too few rows."""
    write_test(tmp_path / "glue" / "MRPC" / "test.tsv", RELEASE["mrpc"][0]["MRPC/test.tsv"])
    return tmp_path / "glue"


def lines_of(path):
    header, *rows = path.read_text().splitlines()
    assert header == "index\tprediction"
    return [row.split("\t") for row in rows]


def refused(ran, *parts):
    assert ran.code == 1, ran.out
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert str(part) in line, line


@pytest.mark.parametrize("task", quick.only(["mrpc", "mnli"], RELEASE))
def test_each_tasks_files_hold_the_answers_of_predict_by_the_files_own_index(models, cli, tmp_path, task):
    files, names = RELEASE[task]
    for seed, (file, header) in enumerate(files.items()):
        write_test(tmp_path / "glue" / file, header, seed)
    model = models(task)
    ran = cli("leebert", "predict", model, "--glue", tmp_path / "out", "--data-dir", tmp_path / "glue", "--any-rows")
    assert ran.code == 0, ran.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(names)
    for file, name in zip(files, names, strict=True):
        answered = cli("leebert", "predict", model, tmp_path / "glue" / file)
        answers = [json.loads(line) for line in answered.out.splitlines()]
        found = lines_of(tmp_path / "out" / name)
        numbers = [line.split("\t")[0] for line in (tmp_path / "glue" / file).read_text().splitlines()[1:]]
        assert [number for number, _ in found] == numbers
        labels = [answer["label"] for answer in answers]
        assert len(set(labels)) > 1, "a constant model shows nothing"
        if task in WORDED:
            assert [prediction for _, prediction in found] == labels
        else:
            assert [prediction for _, prediction in found] == [str(TASKS[task].label_names.index(n)) for n in labels]
        layers = sum(answer["exit_layer"] for answer in answers) / ROWS
        line = f"{name}: {ROWS} rows, mean exit layer {layers:.2f} of {LAYERS}, {LAYERS / layers:.2f}× layer speed-up"
        assert line in ran.out


def test_the_labels_are_those_of_the_server():
    assert {file.task: file.constant for file in SERVER_FILES if file.task in WORDED} == dict.fromkeys(
        WORDED, "entailment"
    )
    assert WORDED["qnli"] == WORDED["rte"] == ("entailment", "not_entailment")
    assert set(WORDED["mnli"]) == {"entailment", "neutral", "contradiction"}
    for name in ("CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "QQP.tsv"):
        (file,) = [file for file in SERVER_FILES if file.name == name]
        assert [file.prediction(label) for label in file.data.label_names] == ["0", "1"]


def test_the_criterion_that_is_asked_for_answers(models, cli, mrpc, tmp_path):
    def layers(*rule):
        ran = cli(
            "leebert", "predict", models("mrpc"), "--glue", tmp_path / "out", "--data-dir", mrpc, "--any-rows", *rule
        )
        assert ran.code == 0, ran.err
        return ran.out.splitlines()[0]

    assert f"{LAYERS}.00 of {LAYERS}, 1.00× layer" in layers("--criterion", "never")
    assert "1.00 of 4, 4.00× layer speed-up" in layers("--criterion", "confidence", "--threshold", 0.5)


def test_a_release_without_the_diagnostic_set_lacks_its_file_alone(models, cli, tmp_path):
    for file, header in RELEASE["mnli"][0].items():
        if file.startswith("MNLI"):
            write_test(tmp_path / "glue" / file, header)
    ran = cli(
        "leebert", "predict", models("mnli"), "--glue", tmp_path / "out", "--data-dir", tmp_path / "glue", "--any-rows"
    )
    assert ran.code == 0, ran.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["MNLI-m.tsv", "MNLI-mm.tsv"]
    assert "missing: AX.tsv, CoLA.tsv, MRPC.tsv, QNLI.tsv, QQP.tsv, RTE.tsv, SST-2.tsv, STS-B.tsv, WNLI.tsv" in (
        ran.out
    )


def test_a_question_that_is_empty_is_answered_too(models, cli, tmp_path):
    (tmp_path / "QQP").mkdir()
    (tmp_path / "QQP" / "test.tsv").write_text("id\tquestion1\tquestion2\n0\tthe cat\t\n1\tthe dog\ta dog\n")
    ran = cli("leebert", "predict", models("qqp"), "--glue", tmp_path / "out", "--data-dir", tmp_path, "--any-rows")
    assert ran.code == 0, ran.err
    assert [number for number, _ in lines_of(tmp_path / "out" / "QQP.tsv")] == ["0", "1"]


@pytest.mark.slow
def test_what_is_missing_is_filled_with_one_answer_and_answers_are_kept(models, cli, mrpc, tmp_path):
    out = tmp_path / "out"
    options = ("--glue", out, "--data-dir", mrpc, "--any-rows")
    assert cli("leebert", "predict", models("mrpc"), *options).code == 0
    mine = (out / "MRPC.tsv").read_bytes()
    ran = cli("leebert", "predict", models("mrpc"), *options, "--fill")
    assert ran.code == 0, ran.err
    assert (out / "MRPC.tsv").read_bytes() == mine
    assert "missing:" not in ran.out
    # The rows of the test splits on the hub's data card.
    rows = {
        "AX": 1104, "CoLA": 1063, "MNLI-m": 9796, "MNLI-mm": 9847, "QNLI": 5463, "QQP": 390965, "RTE": 3000,
        "SST-2": 1821, "STS-B": 1379, "WNLI": 146,
    }  # fmt: skip
    assert {p.stem for p in out.iterdir()} == {*rows, "MRPC"}
    for name, count in rows.items():
        found = lines_of(out / f"{name}.tsv")
        assert [number for number, _ in found] == [str(i) for i in range(count)]
        assert len({prediction for _, prediction in found}) == 1
        assert f"{name}.tsv: {count} rows, constant prediction {found[0][1]}" in ran.out


def test_a_test_file_of_another_length_is_refused_and_an_earlier_answer_stays(models, cli, mrpc, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "MRPC.tsv").write_text("earlier")
    ran = cli("leebert", "predict", models("mrpc"), "--glue", tmp_path / "out", "--data-dir", mrpc)
    refused(ran, "MRPC/test.tsv: 24 rows, but GLUE's test split has 1725", "--any-rows")
    assert (tmp_path / "out" / "MRPC.tsv").read_text() == "earlier"


DEFECTS = {
    "no index": ("#1 String\t#2 String\na\tb\n", ["test.tsv: no column 'index'"]),
    "an index twice": (
        "index\t#1 String\t#2 String\n3\ta\tb\n3\ta\tc\n",
        ["line 3, column 'index': '3' is a duplicate row number"],
    ),
    "no number": ("index\t#1 String\t#2 String\nx\ta\tb\n", ["line 2, column 'index': 'x' is not a row number"]),
    "a broken line": ("index\t#1 String\t#2 String\n0\ta\n", ["line 2: expected 3 columns, got 2"]),
    "no rows": ("index\t#1 String\t#2 String\n", ["test.tsv: no rows"]),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_test_file_that_is_no_release_is_named(models, cli, tmp_path, defect):
    text, parts = DEFECTS[defect]
    (tmp_path / "MRPC").mkdir()
    (tmp_path / "MRPC" / "test.tsv").write_text(text)
    options = ("--glue", tmp_path / "out", "--data-dir", tmp_path, "--any-rows")
    refused(cli("leebert", "predict", models("mrpc"), *options), *parts)
    assert not (tmp_path / "out").exists()


def test_a_missing_test_split_another_task_and_options_that_do_not_fit(models, cli, mrpc, tmp_path):
    out = tmp_path / "out"
    ran = cli("leebert", "predict", models("rte"), "--glue", out, "--data-dir", mrpc)
    refused(ran, "test.tsv: no such file (split 'test' of task rte)", "holds RTE/test.tsv")
    own = {"name": "pairs", "files": {"train": "x.csv"}, "text": ["a", "b"], "label": "y", "labels": ["no", "yes"]}
    for task, named in ((own, "'pairs'"), (None, "has no task")):
        model = save_model(tmp_path / named, task, ("no", "yes"))
        refused(cli("leebert", "predict", model, "--glue", out), "--glue needs a model of a GLUE task (cola, ", named)
    model = models("mrpc")
    refused(cli("leebert", "predict", model, mrpc / "MRPC" / "test.tsv", "--glue", out), "leave out FILE")
    refused(cli("leebert", "predict", model, "--glue", out, "-o", out / "x.csv"), "leave out FILE, --out")
    for option in (("--data-dir", mrpc), ("--any-rows",), ("--fill",)):
        refused(cli("leebert", "predict", model, *option), "need --glue")
    assert not out.exists()


@pytest.mark.slow
def test_the_real_test_split_of_mrpc_is_answered_row_by_row(models, cli, glue, tmp_path):
    ran = cli("leebert", "predict", models("mrpc"), "--glue", tmp_path, "--data-dir", glue)
    assert ran.code == 0, ran.err
    found = lines_of(tmp_path / "MRPC.tsv")
    assert [number for number, _ in found] == [str(i) for i in range(1725)]
    assert {prediction for _, prediction in found} <= {"0", "1"}

    answered = cli("leebert", "predict", models("mrpc"), glue / "MRPC" / "test.tsv").out.splitlines()
    labels = [TASKS["mrpc"].label_names.index(json.loads(line)["label"]) for line in answered]
    assert [int(prediction) for _, prediction in found] == labels
