"""What a backbone is known by: every shard of its weights, its configuration and its tokenizer."""

import json

import pytest
import torch
from encoders import save_backbone
from safetensors.torch import load_file, save_file
from scored_sweep import scored_sweep

from leebert.files import replaced, write_atomically
from leebert.numerics import kernels
from leebert.provenance import backbone_differences, backbone_identity, differences, uneven
from leebert.runtime import Runtime, limited_threads
from tune.analysis.choose import choose_each
from tune.analysis.compare_sweeps import compare_sweeps
from tune.analysis.settings import uneven_settings
from tune.analysis.tradeoff import RankingObjective
from tune.store.ledger import decode, encode


@pytest.fixture
def folder(tmp_path):
    save_backbone(tmp_path / "backbone")
    return tmp_path / "backbone"


def test_a_change_of_any_part_is_named(folder):
    was = backbone_identity(str(folder))
    assert backbone_differences(was, was) == []

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.5}))
    (said,) = backbone_differences(was, backbone_identity(str(folder)))
    assert said.startswith("config was ")
    (folder / "config.json").write_text(json.dumps(config))

    was = backbone_identity(str(folder))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    (said,) = backbone_differences(was, backbone_identity(str(folder)))
    assert said.startswith("tokenizer_files was ")


def test_shards_are_weights_too(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for shard, part in (("model-00001-of-00002", names[::2]), ("model-00002-of-00002", names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"{shard}.safetensors")
    was = backbone_identity(str(folder))
    changed = {name: tensors[name] + torch.ones_like(tensors[name]) for name in names[1::2]}
    save_file(changed, folder / "model-00002-of-00002.safetensors")
    (said,) = backbone_differences(was, backbone_identity(str(folder)))
    assert said.startswith("weights was ")


def test_a_hubs_copy_and_a_folder_are_compared_by_what_both_know():
    hub = {"name": "org/model@abc", "revision": "abc", "weights": "1", "config": "2", "tokenizer": "3"}
    local = {"name": "/models/copy", "weights": "1", "config": "2", "tokenizer": "3", "tokenizer_files": "4"}
    assert backbone_differences(hub, local) == []
    assert backbone_differences(hub, {**local, "weights": "9"}) == ["weights was 1, is 9"]
    only_revision = {"name": "org/model", "revision": "abc"}
    assert backbone_differences(only_revision, hub) == []
    assert backbone_differences(only_revision, {**hub, "revision": "def"}) == ["revision was abc, is def"]
    (said,) = backbone_differences(only_revision, local)
    assert said.startswith("files can't be compared: recorded are revision, present are weights, config")


def test_a_file_that_can_not_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "täglich")
    assert path.read_text(encoding="utf-8") == "täglich"
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text(encoding="utf-8") == "täglich"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_write_to_different_places(tmp_path):
    """On a shared folder two hosts may have processes of one number: the last to finish wins, whole."""
    path = tmp_path / "a.json"
    with replaced(path) as first, replaced(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_kernels_report_the_threads_in_use_and_what_steers_them():
    with limited_threads(1):
        one = kernels({"MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "64", "HOME": "/"})
    assert one["mkl_threads"] == one["omp_threads"] == 1, "those in use, not those of the environment"
    assert one["steered_by"] == {"MKL_CBWR": "COMPATIBLE"}
    assert one["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    with limited_threads(2):
        assert kernels({})["mkl_threads"] == 2
    assert kernels({}).items() <= Runtime.of("fp32", "cpu").describe().items() or kernels()["steered_by"]
    json.dumps(one)


def test_of_a_runtime_only_what_both_know_is_compared():
    old = {"runtime": {"threads": 1, "precision": "fp32"}, "versions": {"torch": "2"}}
    now = {
        "runtime": {"threads": 2, "precision": "fp32", "cpu_capability": "AVX2"},
        "versions": {"torch": "2", "ray": "1"},
    }
    assert differences(old, now) == ["versions ray was None, is 1", "runtime threads was 1, is 2"]
    known = {"runtime": {**old["runtime"], "cpu_capability": "AVX512", "steered_by": {}}}
    assert differences(known, {"runtime": {**now["runtime"], "threads": 1, "steered_by": {"MKL_CBWR": "AVX2"}}}) == [
        "runtime cpu_capability was AVX512, is AVX2",
        "runtime steered_by was {}, is {'MKL_CBWR': 'AVX2'}",
    ]


def test_only_the_parts_that_are_asked_for_are_compared():
    was = {"task": "rte", "training": {"lr_theta": 1e-5, "batch_size": 16}, "code": "1"}
    now = {"task": "mrpc", "training": {"lr_theta": 2e-5, "max_epochs": 3}, "code": "2"}
    assert differences(was, now) == ["code was 1, is 2"]
    assert differences(was, now, ("task", "training")) == [
        "task was rte, is mrpc",
        "training lr_theta was 1e-05, is 2e-05",
    ]


def test_settings_that_were_not_the_same_in_all_results_are_counted():
    same = {"threads": 1, "steered_by": {}}
    assert uneven([same, same, {}]) == []
    assert uneven([same, {**same, "threads": 2}, same, {"threads": 1}]) == ["threads 1 in 3, 2 in 1"]
    assert uneven([{"precision": "fp32"}, {"precision": "bf16"}]) == ["precision fp32 in 1, bf16 in 1"]


def test_cells_that_were_trained_on_other_settings_are_reported_by_best_and_compare(tmp_path, log_lines):
    def settings(seed, fold, config):
        return {"runtime": {"threads": 2 if (config, fold) == (odd, 1) else 1}, "placement": {"accumulate": 1}}

    folder = scored_sweep(tmp_path / "uneven", lambda values, seed, fold: 0.5 + fold / 100)
    odd = next(c.id for c in folder.ledger.read().history() if c.values["algorithm"] == "blo")
    ends(folder, lambda seed, fold, config: {"runtime": {"threads": 1}})
    objective = RankingObjective.of("score")
    choose_each([folder], objective)
    assert not [line for line in log_lines() if "different settings" in line]
    ends(folder, settings)
    choose_each([folder], objective)
    (line,) = (line for line in log_lines() if "different settings" in line)
    assert line.startswith("warning: sweep uneven: runs were trained with different settings")
    assert line.endswith("threads 1 in 17, 2 in 1 of 18 runs")
    (told,) = compare_sweeps([folder], "clo-v2", "blo")
    assert line.removeprefix("warning: ") in told.scores.warnings
    parts = uneven_settings("uneven", folder.ledger.read(), [odd])
    assert [part.rpartition(": ")[2] for part in parts] == ["threads 1 in 2, 2 in 1 of 3 runs"]
    ends(folder, lambda seed, fold, config: {"runtime": {"threads": 1}, "placement": {"accumulate": 1 + fold % 2}})
    (part,) = uneven_settings("uneven", folder.ledger.read())
    assert part.endswith("micro-batches 1 in 12, 2 in 6 of 18 runs")


def ends(folder, more):
    """Writes more into the records of cells' ends."""
    for path in (folder.path / "ledger").glob("*/*/*.jsonl"):
        records = [decode(line) for line in path.read_bytes().splitlines()]
        for record in records:
            if record["kind"] == "cell_end":
                record |= more(record["seed"], record["fold"], record["config"])
        path.write_bytes(b"".join(encode(record) for record in records))
