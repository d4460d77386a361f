"""What a backbone is known by: every shard of its weights, its configuration and its tokenizer."""

import json

import pytest
import torch
from encoders import save_backbone
from safetensors.torch import load_file, save_file

from leebert.files import write_atomically
from leebert.provenance import backbone_differences, backbone_identity


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
    assert said.startswith("files can't be compared: of the one revision is known, of the other weights, config")


def test_a_file_that_can_not_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "täglich")
    assert path.read_text(encoding="utf-8") == "täglich"
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text(encoding="utf-8") == "täglich"
    assert list(tmp_path.iterdir()) == [path]
