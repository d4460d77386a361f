"""Folders from strangers: what is in them is data. Nothing is executed, and nothing outside of them is removed or written."""

import json
import pickle
from pathlib import Path

import pytest
from encoders import save_backbone
from test_driver import driver, run_all

from leebert.checkpoint import Checkpoints
from leebert.errors import LeebertError, SweepError
from tune.analysis.overview import status_of
from tune.running.crossval import run_attempt
from tune.store.folder import SweepFolder
from tune.store.held_out import load_held_out
from tune.store.ledger import Ledger, encode


class Payload:
    """What a pickle can do: here it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.fixture
def payload(tmp_path):
    """A pickle that must not be opened; the test fails if it was."""
    mark = tmp_path / "executed"
    data = pickle.dumps(Payload(mark))
    pickle.loads(data)
    assert mark.exists(), "the payload works"
    mark.unlink()
    yield data
    assert not mark.exists()


def everything(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


SPEC = {
    "task": "mrpc", "backbone": "b", "algorithms": ["blo"], "folds": 2, "space": {"lr_theta": [1e-2, 1e-3]},
    "training": {"max_epochs": 2, "batch_size": 8},
}  # fmt: skip


@pytest.fixture
def stranger(tmp_path):
    """A sweep's folder as somebody else has left it: one configuration begun, one epoch done."""
    folder = tmp_path / "storage" / "s"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"spec": SPEC}))
    d = driver(folder)
    running = run_attempt(d.study, d.next_attempt("t"))
    next(running)
    running.close()
    d.records.writer.close()
    return folder


def add(stranger, *records, number=1):
    """LedgerAccess with good checksums at the end of a driver's."""
    folder = stranger / "ledger" / "driver" / f"{number:04d}"
    seq = sum(1 for _ in Ledger(stranger / "ledger")._read(folder))
    lines = b"".join(
        encode({"seq": seq + i, "time": 1.0, **r} if isinstance(r, dict) else r) for i, r in enumerate(records)
    )
    (folder / "00000009.jsonl").write_bytes(lines + encode({"seq": seq + len(records), "time": 1.0, "kind": "unknown"}))


FOREIGN = "clo-v2-0.01"


@pytest.mark.parametrize(
    "records",
    [
        [{"kind": "suggest", "config": "../../x", "index": 2, "values": {}}],
        [{"kind": "suggest", "config": "/etc", "index": 2, "values": {}}],
        [{"kind": "suggest", "config": "", "index": 2, "values": {}}],
        [{"kind": "suggest", "config": "..", "index": 2, "values": {}}],
        [{"kind": "suggest", "config": "a\0b", "index": 2, "values": {}}],
        [{"kind": "suggest", "config": "driver", "index": 2, "values": {}}],
        [{"kind": "suggest", "config": 7, "index": 2, "values": {}}],
        [{"kind": "grant", "config": "../../x", "attempt": 1, "fences": {}}],
        [{"kind": "grant", "config": FOREIGN, "attempt": "../../../x", "fences": {}}],
        [{"kind": "grant", "config": FOREIGN, "attempt": 2, "driver": "../../x", "fences": {}}],
        [{"kind": "grant", "config": FOREIGN, "attempt": 2, "fences": {"../x": 1}}],
        [{"kind": "grant", "config": FOREIGN, "attempt": 2, "fences": [1]}],
        [{"kind": "complete", "config": "unheard-of"}],
        [{"kind": "fail"}],
        [{"kind": "end"}, [1, 2, 3]],
        ["a line"],
    ],
    ids=lambda records: json.dumps(records)[:60],
)  # fmt: skip
def test_a_record_that_no_sweep_writes_is_an_error_that_names_it(stranger, records):
    add(stranger, *records)
    before = everything(stranger.parents[1])
    with pytest.raises(SweepError, match="ledger") as error:
        Ledger(stranger / "ledger").read()
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(SweepError):
        status_of(SweepFolder(stranger))
    assert everything(stranger.parents[1]) == before


@pytest.mark.parametrize("kind", ["apply", "history", "__init__", "cell", "counts", "set"])
def test_a_kind_of_record_is_no_name_of_a_method(stranger, kind):
    before = Ledger(stranger / "ledger").read().history()
    add(stranger, {"kind": kind, "config": FOREIGN, "state": "complete"})
    assert Ledger(stranger / "ledger").read().history() == before


@pytest.mark.parametrize("file", ["ledger", "manifest.json", "lease", "held-out"])
def test_a_pickle_in_a_sweeps_folder_is_never_opened(stranger, payload, file):
    if file == "ledger":
        (stranger / "ledger" / "driver" / "0001" / "00000007.jsonl").write_bytes(payload + b"\n" + payload + b"\n")
        with pytest.raises(SweepError, match="00000007.jsonl, line 1.*damaged"):
            Ledger(stranger / "ledger").read()
    elif file == "manifest.json":
        (stranger / "manifest.json").write_bytes(payload)
        with pytest.raises(SweepError, match="manifest.json can't be read"):
            status_of(SweepFolder(stranger))
    elif file == "lease":
        (stranger / "lease").mkdir()
        (stranger / "lease" / "0001.json").write_bytes(payload)
        assert status_of(SweepFolder(stranger))["state"] == "died"
    else:
        (stranger / "x.parquet").write_bytes(payload)
        with pytest.raises(SweepError, match="x.parquet can't be read as a run's validation logits"):
            load_held_out(stranger / "x.parquet")


@pytest.mark.parametrize(
    "manifest", [[], {}, {"spec": []}, {"spec": {**SPEC, "task": {"__reduce__": "x"}}}, {"spec": {"folds": -1}}]
)
def test_a_manifest_of_anything_else_is_one_clear_error(stranger, cli, manifest):
    (stranger / "manifest.json").write_text(json.dumps(manifest))
    for command in (["status", stranger], ["best", stranger], ["resume", stranger]):
        ran = cli("leebert-tune", *command)
        assert ran.code == 1
        assert ran.err.startswith("error: "), ran.err
        assert "manifest.json" in ran.err
    assert cli("leebert-tune", "list", "--storage", stranger.parent).code == 0


def test_a_checkpoint_with_a_pickle_is_passed_over(stranger, payload):
    d = driver(stranger, fresh=False)
    (checkpoint,) = stranger.glob("checkpoints/*/*/epoch-0000")
    (checkpoint / "state.safetensors").write_bytes(payload)
    assert Checkpoints(checkpoint.parent, restart=True).load() is None
    assert run_all(d) == "finished"


@pytest.fixture
def model_folder(tmp_path):
    """An early-exit model as `leebert train` saves it."""
    from leebert.backbone import load_tokenizer
    from leebert.model import build_model

    save_backbone(tmp_path / "backbone")
    build_model(str(tmp_path / "backbone"), ("no", "yes")).save_pretrained(tmp_path / "model")
    load_tokenizer(str(tmp_path / "backbone")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def predicted(cli, folder):
    rows = folder.parent / "rows.txt"
    rows.write_text("the cat\n")
    return cli("leebert", "predict", folder, rows)


def test_code_in_a_model_folder_is_not_run(tmp_path, model_folder, payload, cli):
    (model_folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    config = json.loads((model_folder / "config.json").read_text())
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer")
    config["auto_map"] = dict.fromkeys(names, "modeling_evil.Evil")
    (model_folder / "config.json").write_text(json.dumps(config))
    ran = predicted(cli, model_folder)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["label"] in ("no", "yes")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_a_pickle_are_refused(model_folder, payload, cli, name):
    (model_folder / "model.safetensors").unlink()
    (model_folder / name).write_bytes(payload)
    ran = predicted(cli, model_folder)
    assert ran.code == 1
    assert ran.err.startswith(f"error: the model in {model_folder} is damaged: ")


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"curves": []}', '{"curves": {"entropy": [[1]]}}', '{"curves": {"entropy": 7}}']
)
def test_a_table_of_thresholds_that_is_none_is_one_clear_error(model_folder, text):
    from leebert.serving import Served

    (model_folder / "exits.json").write_text(text)
    with pytest.raises(LeebertError, match=r"exits\.json: curves: no table of thresholds") as error:
        Served(model_folder)
    assert len(str(error.value).splitlines()) == 1


def test_a_model_folder_without_its_exits_weights_is_refused(model_folder, cli):
    from safetensors.torch import load_file, save_file

    weights = load_file(model_folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("heads.")}
    save_file(kept, model_folder / "model.safetensors", {"format": "pt"})
    ran = predicted(cli, model_folder)
    assert ran.code == 1
    assert "is damaged: 8 weights are missing, such as heads.0.bias" in ran.err


def test_a_model_configuration_that_is_a_list_is_one_clear_error(model_folder, cli):
    (model_folder / "config.json").write_text("[]")
    ran = predicted(cli, model_folder)
    assert ran.code == 1
    assert ran.err.startswith(f"error: {model_folder} holds no early-exit model")


def test_a_pickle_as_a_table_of_thresholds_is_never_opened(model_folder, payload):
    from leebert.serving import Served

    (model_folder / "exits.json").write_bytes(payload)
    with pytest.raises(LeebertError, match=r"exits\.json can't be read"):
        Served(model_folder)


@pytest.mark.parametrize("command", ["verify", "refit"])
def test_a_best_file_of_a_stranger_constructs_nothing(tmp_path, payload, cli, command):
    path = tmp_path / "best.yaml"
    path.write_text(f"task: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'executed'}]\nfound: {{}}\n")
    ran = cli("leebert-tune", command, path)
    assert ran.code == 1
    assert ran.err.startswith(f"error: {path}, line 1: ")
    path.write_bytes(payload)
    ran = cli("leebert-tune", command, path)
    assert ran.code == 1
    assert ran.err.startswith(f"error: {path}")


@pytest.mark.parametrize("where", ["checkpoints", "ledger/clo-v2-0.01", "cells", "hung", "lease", "STOP"])
def test_a_link_out_of_the_folder_is_refused_before_anything_is_written(stranger, cli, where):
    outside = stranger.parents[1] / "outside"
    (outside / "my-s0-files").mkdir(parents=True)
    (outside / "my-s0-files" / "thesis.txt").write_text("years of work")
    place = stranger / where
    if place.is_dir():
        place.rename(stranger.parents[1] / "moved")
    place.symlink_to(outside, target_is_directory=True)
    before = everything(stranger.parents[1])
    ran = cli("leebert-tune", "resume", stranger)
    assert ran.code == 1
    assert f"{place} is a symbolic link" in ran.err
    assert everything(stranger.parents[1]) == before
