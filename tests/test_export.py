"""`leebert export`: segments answer as the model does, in int8 nearly so; measured exits, calibrated curves, refusals."""

import errno
import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from encoders import FAMILIES, batch, encoder, graded_rows, write_task
from hypothesis import given
from hypothesis import strategies as st
from pictures import pixels, write_cifar
from saved_models import save_model

from leebert.errors import ConfigError, DataError
from leebert.evaluate import RecordedLogits
from leebert.exits import CRITERIA
from leebert.exits.replay import replay
from leebert.export import command, write
from leebert.export.exits import Costs, choose_by_time
from leebert.export.pieces import trace
from leebert.export.quantise import activations, quantised
from leebert.export.ranges import measure_ranges
from leebert.export.samples import read_samples
from leebert.export.segments import compose
from leebert.export.timing import Times, timed
from leebert.exported.manifest import Exits, read_manifest, verify_files
from leebert.exported.model import ExportedModel
from leebert.images.resnet import build_resnet
from leebert.kinds import kind_of_saved
from leebert.model import build_model

LABELS = ("no", "yes")


def model_of(family, pooling="mean", layers=3, **options):
    torch.manual_seed(1)
    model = build_model(encoder(family, layers), LABELS, pooling=pooling, **options)
    with torch.no_grad():
        for parameter in model.parameters():  # no two are equal, as in trained models
            parameter.add_(0.02 * torch.randn_like(parameter))
        for head in model.heads:
            head.weight.mul_(20)
    return model.eval()


def run(graphs, inputs):
    """The logits (E, B, K) of segments."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    values, logits = dict(inputs), []
    for graph in graphs:
        session = onnxruntime.InferenceSession(graph.model.SerializeToString(), options)
        outputs = session.run(list(graph.outputs), {name: values[name] for name in graph.inputs})
        values.update(zip(graph.outputs, outputs, strict=True))
        logits.append(values["logits"])
    return np.stack(logits)


def texts(rows, length, seed=0):
    made = {name: t for name, t in batch(rows, length, seed).items() if name != "labels"}
    types = (torch.arange(length) >= length // 2).expand(rows, length).long()
    return {**made, "token_type_ids": types * made["attention_mask"]}


def slimmed(model):
    """Two of three layers, other numbers of heads and neurons in each, embeddings of lower rank, exits after both."""
    model.reduce(layers=[0, 2], heads=[[1], [0, 1]], neurons=[range(8), range(20)], embedding_rank=4)
    return model


def one_exit(model):
    model.keep_exits([2])
    return model


CASES = {
    **{family: lambda family=family: model_of(family) for family in FAMILIES},
    "bert, pooler": lambda: model_of("bert", "pooler"),
    "albert, pooler": lambda: model_of("albert", "pooler"),
    "roberta, cls": lambda: model_of("roberta", "cls"),
    "slimmed": lambda: slimmed(model_of("bert")),
    "one exit": lambda: one_exit(model_of("bert")),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_segments_answer_as_the_model_for_any_batch(case):
    model = CASES[case]()
    pieces = trace(model)
    segments, last = compose(pieces, model.exit_layers), compose(pieces, model.exit_layers[-1:])
    int8 = [quantised(graph) for graph in segments]
    for shape in ((1, 5), (4, 11), (3, 30)):
        given = texts(*shape)
        with torch.no_grad():
            expected = model.record(given).logits.numpy()
        given = {name: t.numpy() for name, t in given.items()}
        assert np.abs(run(segments, given) - expected).max() < 1e-4
        assert np.abs(run(last, given) - expected[-1:]).max() < 1e-4
        assert np.abs(run(int8, given) - expected).max() < 0.1 * np.abs(expected).max()
    operators = {node.op_type for graph in int8 for node in graph.model.graph.node}
    assert {"QAttention", "DynamicQuantizeMatMul"} <= operators
    assert not operators & {"Attention", "Softmax"}


@pytest.mark.slow
def test_segments_of_a_residual_network_answer_as_the_network():
    torch.manual_seed(0)
    network = build_resnet("resnet8", tuple("abc"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)).eval()
    network.config.image_size = 8
    images = torch.from_numpy(pixels(5, 8, 0)[0])
    pieces = trace(network)
    with torch.no_grad():
        expected = network.record({"images": images}).logits.numpy()
    given = {"pixel_values": images.numpy()}
    assert np.abs(run(compose(pieces, (1, 2, 3)), given) - expected).max() < 1e-4
    assert np.abs(run(compose(pieces, (2, 3)), given) - expected[1:]).max() < 1e-4


@pytest.mark.slow
def test_a_trained_residual_network_is_exported_in_float32_and_in_static_int8(cli, tmp_path):
    data, model = write_cifar(tmp_path / "cifar10", train=160, test=40), tmp_path / "model"
    settings = [part for one in ("max_epochs=1", "batch_size=32", "lr_theta=0.05", "theta_optimizer=sgd", "precision=fp32")
                for part in ("--set", f"training.{one}")]  # fmt: skip
    ran = cli(
        "leebert", "train", "--task", "cifar10", "--data-dir", data, "--backbone", "resnet8", "--out", model, *settings
    )
    assert ran.code == 0, ran.err
    exports = {}
    for name, options in {"fp32": (), "int8": ("--int8",)}.items():
        out = tmp_path / name
        ran = cli("leebert", "export", model, "--out", out, "--exits", "all", "--criterion", "entropy", *options)
        assert ran.code == 0, ran.err
        exports[name] = ExportedModel.load(out)
    assert exports["int8"].manifest.precision == "int8-static"
    assert "128 training samples" in (tmp_path / "int8" / "README.md").read_text()
    sizes = {name: sum(f.stat().st_size for f in (tmp_path / name).glob("*.onnx")) for name in exports}
    assert sizes["int8"] < 0.5 * sizes["fp32"]
    network, _ = kind_of_saved(model).load(model)
    images = pixels(40, 32, 3)[0]
    with torch.no_grad():
        expected = network.eval().record({"images": torch.from_numpy(images)}).logits.numpy()
    batch_ = {"pixel_values": images}
    assert np.abs(exports["fp32"].all_logits(batch_) - expected).max() < 1e-4
    assert np.abs(exports["int8"].all_logits(batch_) - expected).max() < 0.1 * np.abs(expected).max()
    for threshold in [p.threshold for p in exports["fp32"].manifest.curve("entropy").points[::20]]:
        criterion = exports["fp32"].criterion(Exits(criterion="entropy", threshold=threshold))
        answer = exports["fp32"].infer(batch_, criterion)
        exits = replay(criterion, expected)
        assert answer.layers.tolist() == [exports["fp32"].manifest.exit_layers[i] for i in exits]
    assert "faster in float32" in refused(cli, model, "--out", tmp_path / "dynamic", "--int8", "dynamic")


@pytest.mark.slow
def test_static_ranges_hold_for_any_segments_and_weights_of_7_bits_stay_below_64():
    model = model_of("bert", layers=2)
    pieces = trace(model)
    given = [{name: t.numpy() for name, t in texts(1, length, length).items()} for length in (4, 9, 20)]
    fine, whole = compose(pieces, (1, 2)), compose(pieces, (2,))
    ranges = measure_ranges(fine, given)
    again = measure_ranges(whole, given)
    assert ranges.keys() == again.keys()
    assert np.allclose(list(ranges.values()), list(again.values()), atol=1e-5)
    assert set(ranges) == {name for graph in fine for name in activations(graph)}
    with torch.no_grad():
        expected = model.record(texts(1, 20, 20)).logits.numpy()
    for reduced in (False, True):
        graphs = [quantised(graph, ranges, reduced=reduced) for graph in fine]
        assert np.abs(run(graphs, given[-1]) - expected).max() < 0.1 * np.abs(expected).max()
        most = max(
            int(np.abs(np.frombuffer(tensor.raw_data, np.int8).astype(int)).max())
            for graph in graphs
            for tensor in graph.model.graph.initializer
            if tensor.name.endswith(".int8")
        )
        assert most == (63 if reduced else 127)


class Bessel(torch.nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


@pytest.mark.slow
def test_an_operator_that_onnx_lacks_is_named_with_its_layer():
    model = model_of("bert", layers=2)
    model.backbone.encoder.layer[1].output.LayerNorm = Bessel()
    with pytest.raises(
        ConfigError, match=r"^layer 2 can't be exported: ONNX has no operator for \S*bessel_j0\S*;[^\n]*$"
    ):
        trace(model)


#: A model whose three exits are right on growing shares of the samples, surer where they are right.
def recorded(shares=(0.6, 0.8, 0.9), samples=200):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, samples)
    order = rng.random(samples)
    logits = []
    for share in shares:
        right = order < share
        sign = np.where(right, 1, -1) * np.where(labels == 1, 1, -1)
        sure = np.where(right, 3.0, 0.1) * sign
        logits.append(np.stack([-sure, sure], axis=1))
    return RecordedLogits(np.array(logits, np.float32), labels)


def test_an_exit_that_costs_more_than_it_saves_is_left_out():
    cheap = choose_by_time(recorded(), Costs(np.ones(3), 0.01), "accuracy", "entropy", None, 0.01)
    assert cheap.kept == (0, 1, 2)
    assert cheap.expected < 2
    useless = choose_by_time(recorded((0.6, 0.601, 0.9)), Costs(np.ones(3), 0.2), "accuracy", "entropy", None, 0.01)
    assert useless.kept == (0, 2)
    assert useless.expected < useless.before
    dear = choose_by_time(recorded(), Costs(np.ones(3), 10.0), "accuracy", "entropy", None, 0.01)
    assert dear.kept == (2,)
    assert dear.expected == pytest.approx(13)


@given(
    st.lists(st.floats(0.01, 5), min_size=3, max_size=3), st.floats(0, 5), st.floats(0, 0.3),
    st.sampled_from(["entropy", "confidence", "patience", "pcee"]),
)  # fmt: skip
def test_the_last_exit_is_kept_and_the_expected_time_never_grows(layers, exit_, loss, criterion):
    patience = CRITERIA[criterion].counted(None, 3)
    choice = choose_by_time(recorded(), Costs(np.array(layers), exit_), "accuracy", criterion, patience, loss)
    assert choice.kept[-1] == 2
    assert choice.expected <= choice.before <= sum(layers) + 3 * exit_ + 1e-9


def test_costs_are_what_several_segments_take_beyond_one():
    costs = Costs.of(Times(np.array([2.0, 2.0, 2.0]), 6.6), Times(np.array([5.8]), 5.8))
    assert costs.exit_ == pytest.approx(0.4)
    assert costs.up_to((0, 2)) == pytest.approx([2.0, 5.6])
    assert Costs.of(Times(np.array([2.0, 2.0]), 4.0), Times(np.array([4.5]), 4.5)).exit_ == 0


def test_timed_samples_are_spread_over_lengths():
    assert timed(np.arange(100)[::-1], 4).tolist() == [87, 62, 37, 12]
    assert sorted(timed(np.ones(3), 10)) == [0, 1, 2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model with its task's files, without a summary of its training."""
    folder = tmp_path_factory.mktemp("saved")
    task = write_task(folder / "data")
    return save_model(folder / "model", task, LABELS, layers=2, metric="accuracy", exit_threshold=0.65)


@pytest.fixture(scope="module")
def exported(saved, cli):
    """The folder that `leebert export` wrote, and what it printed."""
    out = saved.parent / "exported"
    done = cli("leebert", "export", saved, "--out", out, "--exits", "all")
    assert done.code == 0, done.err
    return out, done.out


@pytest.mark.slow
def test_an_export_holds_scores_curves_and_times_of_its_own_and_answers_as_the_model(saved, exported, cli):
    folder, printed = exported
    manifest = read_manifest(folder)
    assert manifest.exit_layers == (1, 2)
    assert [score.exported for score in manifest.scores] == [score.model for score in manifest.scores]
    assert manifest.exits.criterion == "entropy"
    curve = manifest.curve("entropy")
    assert [p.speed_up for p in curve.points] == sorted(p.speed_up for p in curve.points)
    assert curve.points[0].mean_exit_layer == 2
    assert curve.points[0].milliseconds == pytest.approx(sum(manifest.timing.segments))
    assert curve.points[-1].milliseconds == pytest.approx(manifest.timing.segments[0])
    assert {c.criterion for c in manifest.curves} == {n for n, c in CRITERIA.items() if c.has_threshold}
    model = ExportedModel.load(folder)
    rows = [("the cat sat", "a dog ran"), ("happy happy book", "sad"), ("on the old red roof", "the bird flew")]
    predictions = model.predict(rows, model.choose(criterion="entropy", threshold=0.65))
    file = saved.parent / "rows.jsonl"
    file.write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in rows))
    lines = cli("leebert", "predict", saved, file, "--criterion", "entropy", "--threshold", 0.65).out.splitlines()
    expected = [(one["label"], one["exit_layer"]) for one in map(json.loads, lines)]
    assert [(p.label, p.exit_layer) for p in predictions] == expected
    assert "40 samples of the split dev" in printed
    assert "optimistic" in printed
    assert "all exits are kept" in printed
    card = (folder / "README.md").read_text()
    assert "| layer | PyTorch | exported | ms up to here |" in card
    assert "leebert-sweep[serve]" in card


@pytest.mark.slow
def test_an_exported_folder_is_calibrated_on_texts_in_place(exported, cli, tmp_path):
    folder, texts = tmp_path / "exported", tmp_path / "texts.jsonl"
    shutil.copytree(exported[0], folder)
    rows = [*graded_rows(150, 5), {"a": "cat " * 40, "b": "dog"}]
    texts.write_text("".join(json.dumps({"a": row["a"], "b": row["b"]}) + "\n" for row in rows))
    before = read_manifest(folder)
    ran = cli("leebert", "calibrate", folder, texts, "--speed-up", 1.4, "--criterion", "confidence")
    assert ran.code == 0, ran.err
    assert "1 texts were truncated" in ran.out
    assert "ms per text on average" in ran.out
    model = ExportedModel.load(folder)
    verify_files(folder, model.manifest)
    assert model.manifest.exits.criterion == "confidence"

    def layers(exits):
        answers = model.predict([(row["a"], row["b"]) for row in rows], exits, truncate=True)
        return np.mean([one.exit_layer for one in answers])

    assert 2 / layers(None) == pytest.approx(1.4, rel=0.03)
    # The curves have the layers and times of these texts, and the scores of the validation samples.
    curve, former = model.manifest.curve("entropy"), before.curve("entropy")
    assert [(p.threshold, p.score) for p in curve.points] == [(p.threshold, p.score) for p in former.points]
    middle = curve.points[len(curve.points) // 2]
    exits = Exits(criterion="entropy", threshold=middle.threshold)
    assert middle.mean_exit_layer == pytest.approx(layers(exits), abs=0.03)
    times = model.manifest.timing.segments
    assert middle.milliseconds == pytest.approx(times[0] + (middle.mean_exit_layer - 1) * times[1])
    for options in (("--latency", f"{times[0] + times[1] / 2}ms"), ("--max-loss", 100)):
        assert cli("leebert", "calibrate", folder, texts, *options).code == 0
    assert ExportedModel.load(folder).manifest.exits.criterion == "confidence"
    assert (folder / "README.md").read_text().count("## Calibration") == 1
    ran = cli("leebert", "calibrate", folder, texts, "--latency", "1e-6ms")
    assert "latency 1e-06 ms: exit criterion confidence takes from" in ran.err
    with (folder / "README.md").open("a") as file:
        file.write("mine")
    assert "README.md was altered" in cli("leebert", "calibrate", folder, texts, "--speed-up", 1.4).err


@pytest.mark.slow
def test_int8_replaces_an_earlier_export_and_says_how_it_was_made(saved, exported, cli, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(exported[0], out)
    done = cli("leebert", "export", saved, "--int8", "--exits", "all", "--out", out, "--json", "--latency", "1000ms")
    assert done.code == 0, done.err
    manifest = read_manifest(out)
    curve = manifest.curve(manifest.exits.criterion, manifest.exits.patience)
    own = next(point for point in curve.points if point.threshold == manifest.exits.threshold)
    assert own.score == max(point.score for point in curve.points), "the best within a time that all points keep"
    assert manifest.precision == done.json["precision"] == "int8-static"
    assert "Ranges of int8 were measured on" in (out / "README.md").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["again"]
    assert ExportedModel.load(out).predict([("the cat", "a dog")])
    assert sum(f.stat().st_size for f in out.glob("*.onnx")) < sum(f.stat().st_size for f in exported[0].glob("*.onnx"))


def refused(cli, *args):
    done = cli("leebert", "export", *args)
    assert done.code != 0
    assert len(done.err.strip().splitlines()) == 1, done.err
    return done.err


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused_in_one_line(saved, cli, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert "no config.json" in refused(cli, tmp_path, "--out", out)
    assert "--int8" not in refused(cli, saved, "--out", out, "--to", "tensorrt")
    assert "should be auto or all" in refused(cli, saved, "--out", out, "--exits", "some")
    assert "static" in refused(cli, saved, "--out", out, "--calibration", saved / "config.json")
    assert "no such file" in refused(
        cli, saved, "--out", out, "--int8", "static", "--calibration", tmp_path / "none.txt"
    )
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert "other files" in refused(cli, saved, "--out", other)
    few = tmp_path / "few.jsonl"
    few.write_text('{"a": "the cat", "b": "a dog"}\n')
    assert "at least 30 samples" in refused(cli, saved, "--out", out, "--int8", "static", "--calibration", few)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'leebert-sweep[export]'" in refused(cli, saved, "--out", out)
    assert not out.exists()


@pytest.mark.slow
def test_a_plain_encoder_and_a_model_without_task_or_samples_are_refused(saved, cli, tmp_path):
    plain = tmp_path / "plain"
    encoder("bert", 2).save_pretrained(plain)
    assert "not an early-exit one" in refused(cli, plain, "--out", tmp_path / "out")
    without = save_model(tmp_path / "without", None, LABELS, layers=2)
    assert "no task" in refused(cli, without, "--out", tmp_path / "out")
    task = write_task(tmp_path / "data")
    del task["files"]["dev"]
    undivided = save_model(tmp_path / "undivided", task, LABELS, layers=2)
    assert "no labelled samples" in refused(cli, undivided, "--out", tmp_path / "out")


def test_a_criterion_that_needs_torch_is_refused_by_name(saved, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "takes_arrays", lambda *args: False)
    assert "'entropy' takes tensors of torch only" in refused(cli, saved, "--out", tmp_path / "out")


def test_built_in_criteria_take_arrays():
    assert all(command.takes_arrays(name, 3, 2) for name in CRITERIA.built_in)


@pytest.mark.slow
def test_the_validation_fold_of_training_is_reproduced(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("leebert.export.samples.LEAST", 20)
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    model, tokenizer = kind_of_saved(folder).load(folder)
    summary = {"config": {"task": model.config.task, "model": {"backbone": "some/encoder"}}, "held_out_rows": 24}
    (folder / "training.json").write_text(json.dumps(summary))
    samples = read_samples(folder, model, tokenizer, tmp_path, ranges=True)
    assert not samples.tuned
    assert len(samples.scored) + len(samples.texts) == 120
    assert "validation samples" in samples.source
    (folder / "training.json").write_text(json.dumps({**summary, "data_fingerprint": "another"}))
    with pytest.raises(DataError, match="not the one .* --data-dir"):
        read_samples(folder, model, tokenizer, tmp_path)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    out = tmp_path / "out"

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(write.StorageError, match="No space left"), write.replaced_folder(out) as fresh:
        full(fresh)
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "export.json").write_text("before")
    monkeypatch.setattr(write, "fsync_folder", full)
    with pytest.raises(write.StorageError, match="nothing was changed"), write.replaced_folder(out) as fresh:
        (fresh / "export.json").write_text("after")
    assert (out / "export.json").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
