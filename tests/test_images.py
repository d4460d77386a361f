"""Images from Parquet to predictions: readers, the cache of pixels, augmentation, and the trainer that texts have."""

import dataclasses
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import CLASSES, pixels, png, write_cifar, write_parquet

from leebert.checkpoint import Checkpoints
from leebert.config import ModelConfig, Subset, TrainConfig
from leebert.data.folds import make_folds
from leebert.data.sources import subset
from leebert.data.tasks import get_task
from leebert.errors import ConfigError, DataError
from leebert.images.arrays import ImageRows, cached, decode
from leebert.images.predict import read_folder_or_file
from leebert.images.preprocess import Preprocess, augment
from leebert.images.problem import ImageProblem
from leebert.images.sources import read_images
from leebert.images.tasks import IMAGE_TASKS
from leebert.kinds import kind_of
from leebert.record import TensorSamples
from leebert.runtime import Runtime
from leebert.stages import steps
from leebert.train import fit, train_epochs
from leebert.training_data import DataConfig, effective_task, load_training_data
from tune.running.crossval import Attempt, run_attempt
from tune.running.prepare import prepare
from tune.space import load_space

TASK = IMAGE_TASKS["cifar10"]
CPU = Runtime.of("fp32", "cpu")
SETTINGS = {
    "batch_size": 8, "max_epochs": 2, "theta_optimizer": "sgd", "lr_theta": 0.05, "lr_omega": 0.01,
    "omega_optimizer": "sgd", "schedule": "steps", "warmup": 0, "cycle_length": 2, "precision": "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    return write_cifar(tmp_path_factory.mktemp("pictures") / "cifar10")


# reading


def test_both_tasks_have_the_data_sets_labels_in_order():
    assert [len(IMAGE_TASKS[name].label_names) for name in ("cifar10", "cifar100")] == [10, 100]
    for task in IMAGE_TASKS.values():
        assert list(task.label_names) == sorted(set(task.label_names))  # as the data sets number them


def test_a_folder_is_read_in_each_layout(cifar, tmp_path):
    plain = read_images(TASK, "train", cifar)
    assert (len(plain), plain.labels.tolist()) == (80, [i % 10 for i in range(80)])
    table = pq.read_table(cifar / "train.parquet")
    for i, part in enumerate((table.slice(0, 30), table.slice(30))):
        path = tmp_path / "hub" / "plain_text" / f"train-{i:05d}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(part, path)
    for folder in (cifar.parent, tmp_path / "hub"):  # the folder that holds the task's, and the hub's shards
        assert read_images(TASK, "train", folder).fingerprint() == plain.fingerprint()
    assert read_images(TASK, "test", cifar, labelled=False).labels is None


def test_the_hub_is_read_by_its_own_library(cifar, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_cifar(tmp_path / "copy" / "data")
    task = dataclasses.replace(TASK, hub=str(tmp_path / "copy"))
    examples = read_images(task, "train")
    assert examples.source.startswith("hub:")
    assert examples.fingerprint() == read_images(TASK, "train", cifar).fingerprint()


def test_an_unreachable_hub_offers_the_folder():
    task = dataclasses.replace(TASK, hub="nobody/no-copy-of-this")
    with pytest.raises(DataError, match=r"hub:nobody/no-copy-of-this.*--data-dir FOLDER"):
        read_images(task, "train")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"img": None, "image": [b"x"] * 60}, r"no column 'img' \(did you mean 'image'"),
        ({"label": None}, "no column 'label'"),
        ({"label": [10] + [1] * 59}, "row 0, column 'label': 10 is not a label of task cifar10; labels are 0 to 9"),
        ({"label": [None] + [1] * 59}, "row 0, column 'label': None"),
        ({"label": ["cat", "kitten"] * 30}, "row 1, column 'label': 'kitten' is not a label .* 0 to 9, or their names"),
        ({"label": [i % 9 for i in range(60)]}, "no row has the label truck"),
        ({"img": ["a.png"] * 60}, "encoded images"),
        ({"img": [{"bytes": None, "path": "a.png"}] * 60}, "row 0: no image"),
    ],
)
def test_what_is_wrong_with_a_file_is_reported(tmp_path, columns, said):
    write_parquet(tmp_path / "train.parquet", **columns)
    with pytest.raises(DataError, match=said):
        read_images(TASK, "train", tmp_path)


def test_what_is_wrong_with_a_folder_is_reported(tmp_path, cifar):
    with pytest.raises(DataError, match="no such folder"):
        read_images(TASK, "train", tmp_path / "none")
    with pytest.raises(DataError, match=r"no train.parquet.*the folder holds nothing"):
        read_images(TASK, "train", tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_images(TASK, "train", tmp_path)
    with pytest.raises(DataError, match=r"no split 'dev'.*train, test"):
        read_images(TASK, "dev", cifar)


def test_labels_in_another_order_are_another_data_set(tmp_path):
    path = write_parquet(tmp_path / "train.parquet")
    names = list(TASK.label_names)
    names[0], names[1] = names[1], names[0]
    table = pq.read_table(path)
    told = {"info": {"features": {"label": {"names": names}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(told)}), path)
    with pytest.raises(DataError, match="'automobile' has another id"):
        read_images(TASK, "train", tmp_path)


# pixels


def test_pixels_are_decoded_once_and_shared(cifar, tmp_path):
    examples = read_images(TASK, "train", cifar)
    rows = cached(examples, 32, tmp_path)
    made = Path(rows.path).stat().st_mtime_ns
    again = cached(read_images(TASK, "train", cifar), 32, tmp_path)
    assert (again.path, Path(again.path).stat().st_mtime_ns) == (rows.path, made)
    assert np.array_equal(rows.images, pixels(80)[0])
    assert not rows.images.flags.owndata, "a copy, not the mapped file"
    assert not rows.images.flags.writeable
    pickled = pickle.dumps(rows)
    assert len(pickled) < 500
    batch = pickle.loads(pickled).collate([3, 1])
    assert np.array_equal(batch["images"], pixels(80)[0][[3, 1]])
    assert batch["images"].dtype == torch.uint8
    assert batch["labels"].tolist() == [3, 1]
    assert cached(examples.take(range(40)), 32, tmp_path).path != rows.path


def test_a_damaged_file_of_pixels_is_refused_and_made_again_by_who_has_the_images(cifar, tmp_path):
    path = Path(cached(read_images(TASK, "train", cifar), 32, tmp_path).path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    whole = path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(DataError, match="the pixel file is damaged"):
        ImageRows.open(path)
    with pytest.warns(UserWarning, match="the pixel file is damaged .*; the file is rebuilt"):
        cached(read_images(TASK, "train", cifar), 32, tmp_path)
    assert path.read_bytes() == whole


def test_an_image_that_cant_be_taken_is_named():
    image = pixels(1)[0][0]
    assert np.array_equal(decode(png(image), 32, "x"), image)
    assert np.array_equal(decode(png(image[:, :, 0]), 32, "x"), image[:, :, [0, 0, 0]])  # grey
    with pytest.raises(DataError, match=r"row 7: 16 × 16 pixels, but the network takes 32 × 32"):
        decode(png(image[:16, :16]), 32, "row 7")
    for broken in (b"", b"no image", png(image)[:200]):
        with pytest.raises(DataError, match="row 7: not a readable image"):
            decode(broken, 32, "row 7")


def test_subset_and_folds_are_those_of_texts(cifar):
    examples = read_images(TASK, "train", cifar)
    part = subset(examples, 40, 3)
    assert np.bincount(part.labels).tolist() == [4] * CLASSES
    assert part.fingerprint() == subset(examples, 40, 3).fingerprint() != subset(examples, 40, 4).fingerprint()
    folds = make_folds(part, TASK, 4, 0)
    assert all(np.bincount(part.labels[folds.held_out(f)]).tolist() == [1] * CLASSES for f in range(4))
    assert folds.grouping == "none"
    assert folds.digest == make_folds(part, TASK, 4, 0).digest


def test_an_augmented_image_is_a_crop_of_its_padded_self_or_of_its_mirror():
    images = torch.from_numpy(pixels(64, 8)[0])
    torch.manual_seed(0)
    changed = augment(images, 2)
    padded = np.pad(images.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)))
    kinds = set()
    for before, after in zip(padded, changed.numpy(), strict=True):
        crops = {(t, l): before[t : t + 8, l : l + 8] for t in range(5) for l in range(5)}
        fits = [(*at, m) for at, c in crops.items() for m in (0, 1) if np.array_equal(c[:, ::-1] if m else c, after)]
        assert len(fits) == 1
        kinds.add(fits[0])
    assert len(kinds) > 20  # of 50
    assert {m for *_, m in kinds} == {0, 1}
    torch.manual_seed(0)
    assert torch.equal(augment(images, 2), changed)


def test_images_are_augmented_in_training_only_and_normalised_always():
    images = torch.from_numpy(pixels(16)[0])
    preprocess = Preprocess((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    expected = (images.float() / 255 - torch.tensor((0.5, 0.4, 0.3))) / torch.tensor((0.2, 0.25, 0.3))
    assert torch.allclose(preprocess.eval()(images), expected.permute(0, 3, 1, 2), atol=1e-6)
    assert not torch.allclose(preprocess.train()(images), expected.permute(0, 3, 1, 2), atol=0.1)


# training


def small(n=64, seed=0, size=8):
    images, labels = pixels(n, size, seed)
    return TensorSamples(images=torch.from_numpy(images), labels=torch.from_numpy(labels))


def network(config, seed=0):
    torch.manual_seed(seed)
    return ImageProblem("", "resnet8", TASK.label_names, "accuracy", TASK.mean, TASK.std).model(config)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["uniform", "clo-v2"])
def test_a_network_learns(algorithm):
    config = TrainConfig(**{**SETTINGS, "max_epochs": 8}, algorithm=algorithm)
    result = fit(network(config), small(160), config, validation=small(40, 1), runtime=CPU)
    assert result.ended == "max_epochs"
    assert result.best.score > 0.5  # chance is 0.1
    assert len(result.best.exits["score"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["slo", "blo"])
def test_other_optimisers_of_omega_train_a_network(algorithm):
    config = TrainConfig(**{**SETTINGS, "max_epochs": 3}, algorithm=algorithm)
    result = fit(network(config), small(80), config, validation=small(40, 1), runtime=CPU)
    assert result.ended == "max_epochs"
    assert len(result.best.exits["score"]) == 3
    losses = [report.train_loss for report in result.reports]
    assert losses == sorted(set(losses), reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["uniform", "clo-v2"])
def test_a_resumed_run_meets_the_same_crops_bit_for_bit(tmp_path, algorithm):
    config = TrainConfig(**{**SETTINGS, "max_epochs": 4, "cycle_length": 3}, algorithm=algorithm)
    options = {"validation": small(20, seed=1), "runtime": CPU}
    whole = network(config)
    expected = fit(whole, small(), config, **options)
    torn = train_epochs(network(config), small(), config, checkpoints=Checkpoints(tmp_path), **options)
    next(torn), next(torn)
    torn.close()
    torch.manual_seed(12345)
    resumed = network(config, seed=9)
    result = fit(resumed, small(), config, checkpoints=Checkpoints(tmp_path), **options)
    assert [r.score for r in result.reports] == [r.score for r in expected.reports]
    assert [r.train_loss for r in result.reports] == [r.train_loss for r in expected.reports]
    found = resumed.state_dict()
    assert all(torch.equal(t, found[name]) for name, t in whole.state_dict().items())


def test_steps_fall_to_a_tenth_at_35_60_and_85_percent():
    factors = [steps(i, 100, 0.0) for i in range(100)]
    assert [i for i in range(1, 100) if factors[i] != factors[i - 1]] == [35, 60, 85]
    assert sorted(set(factors), reverse=True) == pytest.approx([1, 0.1, 0.01, 0.001])
    assert [steps(i, 100, 0.04) for i in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])


def test_sgd_moves_by_momentum_and_decay_as_it_is_defined():
    """Two steps on one batch, followed by hand: v ← m·v + g + wd·θ, θ ← θ − λ1·v, without Nesterov's look-ahead."""
    from leebert.stages import sgd

    config = TrainConfig(momentum=0.5, weight_decay=0.1)
    theta = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = sgd([theta], 0.1, config)
    expected, velocity = theta.detach().clone(), torch.zeros(2)
    for gradient in (torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.5])):
        velocity = 0.5 * velocity + gradient + 0.1 * expected
        expected = expected - 0.1 * velocity
        theta.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(theta.detach(), expected)


# the whole way


def write_space(folder, cifar, **keys):
    path = folder / "space.yaml"
    space = {
        "task": "cifar10", "backbone": "resnet8", "algorithms": ["clo-v2", "uniform"], "space": {"lr_theta": [0.05]},
        "training": {k: v for k, v in SETTINGS.items() if k != "lr_theta"}, "data": {"dir": str(cifar)}, "folds": 2,
    }  # fmt: skip
    path.write_text(json.dumps({**space, **keys}))  # JSON is YAML
    return path


@pytest.mark.slow
def test_a_search_space_of_images_runs_through_cross_validation(cifar, tmp_path):
    spec = load_space(write_space(tmp_path, cifar))
    prepared = prepare(spec, tmp_path / "cache")
    assert len(pickle.dumps(prepared.problem)) < 1000
    assert prepared.facts["rows"] == 80
    assert prepared.facts["label_names"] == list(TASK.label_names)
    values = next(iter(spec.configurations()))
    study = prepared.study(tmp_path / "sweep", "cpu")
    ends = [r for records in run_attempt(study, Attempt("c", values, 1)) for r in records if r["kind"] == "cell_end"]
    assert [(r["fold"], r["ended"]) for r in ends] == [(0, "max_epochs"), (1, "max_epochs")]
    assert all(len(r["exits"]["score"]) == 3 for r in ends)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"backbone": "bert-base-uncased"}, "backbone: 'bert-base-uncased': an image task takes resnet20"),
        (
            {"backbone": "resnet51"},
            "backbone: 'resnet51': a residual network has 6n + 2 layers; the nearest is resnet50",
        ),
        ({"pooling": "mean"}, "pooling: 'mean': applies to texts only, and cifar10 has images"),
        ({"max_length": 32}, "max_length: 32: applies to texts only"),
        ({"data": {"group_by": ["img"]}}, "data.group_by: ['img']: applies to text columns only"),
        ({"task": "mrpc"}, "backbone: 'resnet8': is a network for images, and mrpc has texts"),
        ({"task": "cifar"}, "did you mean 'cifar10'"),
    ],
)
def test_a_space_that_mixes_texts_and_images_is_refused(cifar, tmp_path, keys, line):
    with pytest.raises(ConfigError) as error:
        load_space(write_space(tmp_path, cifar, **keys))
    assert line in str(error.value)


def test_before_any_training_texts_and_images_are_distinguished():
    with pytest.raises(ConfigError, match="network for images, and mrpc has texts"):
        kind_of("mrpc").check_model(get_task("mrpc"), ModelConfig(backbone="resnet56"))
    with pytest.raises(ConfigError, match="cifar10 is an image task"):
        get_task("cifar10")
    with pytest.raises(ConfigError, match="data.group_by"):
        effective_task("cifar10", ("img",))


@pytest.fixture(scope="module")
def trained(cifar, cli, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "model"
    settings = [f"training.{k}={v}" for k, v in {**SETTINGS, "max_epochs": 4, "algorithm": "clo-v2"}.items()]
    sets = [part for setting in (*settings, "data.subset.rows=70") for part in ("--set", setting)]
    ran = cli(
        "leebert",
        "train",
        "--task",
        "cifar10",
        "--backbone",
        "resnet8",
        "--data-dir",
        cifar,
        "--out",
        out,
        "--json",
        *sets,
    )
    assert ran.code == 0, ran.err
    return out, ran.json


def test_train_writes_a_network(trained):
    out, told = trained
    assert {p.name for p in out.iterdir()} == {"config.json", "exits.json", "model.safetensors", "training.json"}
    assert (told["rows"], told["held_out_rows"], told["truncated_rows"]) == (56, 14, 0)
    assert told["score"] > 0.3  # chance is 0.1


def test_evaluate_scores_the_test_split(trained, cifar, cli):
    ran = cli("leebert", "evaluate", trained[0], "--data-dir", cifar, "--timed-rows", "4", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["test"]["rows"] == 20
    assert len(ran.json["test"]["exits"]["accuracy"]) == 3
    assert {told["criterion"] for told in ran.json["test"]["wall_clock"]} >= {"never", "patience", "entropy", "beem"}
    wrong = cli("leebert", "evaluate", trained[0], "--split", "dev", "--data-dir", cifar)
    assert "no split 'dev'" in wrong.err


def test_predict_answers_folders_lists_and_parquet_alike(trained, cifar, cli, tmp_path):
    out, _ = trained
    for i, image in enumerate(pixels(20, seed=1)[0]):
        (tmp_path / f"{i:02d}.png").write_bytes(png(image))
    (tmp_path / "notes.md").write_text("no image")
    rule = ("--criterion", "never", "--batch-size", "7")
    by_folder = cli("leebert", "predict", out, tmp_path, *rule)
    assert by_folder.code == 0, by_folder.err
    answers = [json.loads(line) for line in by_folder.out.splitlines()]
    assert [a["file"] for a in answers] == [f"{i:02d}.png" for i in range(20)]
    assert {a["exit_layer"] for a in answers} == {3}
    assert {a["label"] for a in answers} <= set(TASK.label_names)
    paths = "".join(f"{tmp_path / a['file']}\n" for a in answers)
    (tmp_path / "list.txt").write_text(paths)
    parquet = cli("leebert", "predict", out, cifar / "test.parquet", *rule)
    for other in (
        parquet,
        cli("leebert", "predict", out, "-", *rule, stdin=paths),
        cli("leebert", "predict", out, tmp_path / "list.txt", *rule),
    ):
        found = [json.loads(line) for line in other.out.splitlines()]
        assert [{**f, "file": a["file"]} for f, a in zip(found, answers, strict=True)] == answers
    assert [json.loads(line)["file"] for line in parquet.out.splitlines()] == [str(i) for i in range(20)]
    table = cli(
        "leebert", "predict", out, tmp_path / "00.png", "--format", "csv", "--criterion", "patience", "--threshold", "1"
    )
    assert table.out.splitlines()[0] == "row,file,label,probability,exit_layer"
    assert len(table.out.splitlines()) == 2


def test_what_can_be_wrong_with_pictures_is_reported(trained, cli, tmp_path):
    out, _ = trained
    (tmp_path / "large.png").write_bytes(png(pixels(1, 64)[0][0]))
    (tmp_path / "empty").mkdir()
    write_parquet(tmp_path / "other.parquet", img=None)
    for given, said in (
        (("large.png",), "64 × 64 pixels, but the network takes 32 × 32"),
        (("nothing.png",), "no such file or folder"),
        (("empty",), "no image file in this folder"),
        (("other.parquet",), "no column 'img'; the columns are 'label'"),
        (("large.csv",), "no such file or folder"),
    ):
        ran = cli("leebert", "predict", out, tmp_path / given[0])
        assert ran.code != 0
        assert said in ran.err
    ran = cli("leebert", "predict", out, "-", stdin="there/is/none.png\n")
    assert "stdin, line 1: 'there/is/none.png' can't be read" in ran.err
    ran = cli("leebert", "predict", out, tmp_path, "--text", "sentence")
    assert "--text sentence: applies to texts only, and this model takes images" in ran.err


def test_a_row_without_an_image_is_named_wherever_it_is(tmp_path):
    images = [b"png"] * 1030
    images[1027] = b""
    pq.write_table(pa.table({"img": images}), tmp_path / "images.parquet")
    with pytest.raises(DataError, match="images.parquet, row 1027: no image"):
        list(read_folder_or_file(tmp_path / "images.parquet"))


def test_a_method_that_cuts_encoders_is_refused_before_any_image_is_decoded(cifar, cli, tmp_path):
    options = ("--task", "cifar10", "--backbone", "resnet56", "--data-dir", cifar, "--out", tmp_path / "out")
    ran = cli("leebert", "train", *options, "--set", "training.algorithm=headprune")
    assert ran.code == 1
    assert "EarlyExitResNet has no attention heads to remove" in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", "cifar10", "--backbone", "albert/albert-base-v2"), "an image task takes resnet20"),
        (("--task", "cifar10", "--backbone", "resnet8", "--pooling", "mean"), "pooling mean: applies to texts only"),
        (
            ("--task", "cifar10", "--backbone", "resnet8", "--set", "model.max_length=64"),
            "max_length 64: applies to texts only",
        ),
        (("--task", "cifar10", "--backbone", "resnet8", "--set", "data.group_by=containing"), "data.group_by"),
        (("--task", "cifar11", "--backbone", "resnet8"), "did you mean 'cifar10'"),
        (("--task", "mrpc", "--backbone", "resnet56"), "is a network for images, and mrpc has texts"),
    ],
)
def test_train_refuses_what_does_not_fit_before_it_reads_anything(cli, tmp_path, options, said):
    ran = cli("leebert", "train", *options, "--data-dir", tmp_path / "none", "--out", tmp_path / "out")
    assert ran.code != 0
    assert said in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_real_cifar10_is_read_and_learned_from(tmp_path):
    root = Path(os.environ.get("LEEBERT_DATA", "nowhere")) / "cifar10"
    if not root.is_dir():
        pytest.skip("LEEBERT_DATA holds no cifar10: this test needs the real images")
    data = load_training_data(
        TASK, DataConfig(dir=str(root), subset=Subset(rows=400)), ModelConfig(backbone="resnet8"), tmp_path
    )
    assert data.split_rows == 50_000
    assert np.bincount(data.examples.labels).tolist() == [40] * 10
    shown = data.rows.images / 255
    assert shown.mean(axis=(0, 1, 2)) == pytest.approx(TASK.mean, abs=0.02)
    assert shown.std(axis=(0, 1, 2)) == pytest.approx(TASK.std, abs=0.02)
    config = TrainConfig(**{**SETTINGS, "batch_size": 20}, algorithm="uniform")
    result = fit(data.problem().model(config), data.rows, config, runtime=CPU)
    losses = [r.train_loss for r in result.reports]
    assert losses[-1] < losses[0]
