"""What may change when a sweep is resumed with another file."""

import shutil

import pytest
from encoders import save_backbone

from leebert.errors import SweepError
from leebert.provenance import backbone_identity
from tune.running.extend import at_its_old_place, extended
from tune.space import SweepSpec

BASE = {
    "task": "mrpc", "backbone": "b", "algorithms": ["clo-v2", "blo"], "folds": 3,
    "space": {"lr_theta": [1e-4, 3e-4], "cycle_length": [2, 4]}, "training": {"max_epochs": 3, "batch_size": 8},
    "data": {"dir": "/data", "subset": {"rows": 100}},
}  # fmt: skip


def spec(**change):
    return SweepSpec.model_validate({**BASE, **change})


def suggested(of):
    return list(of.configurations())


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"space": {"lr_theta": [1e-4, 3e-4, 1e-3], "cycle_length": [2, 4]}},
        {"space": {"cycle_length": [8, 4, 2], "lr_theta": [3e-4, 1e-4]}},
        {"algorithms": ["slo", "blo", "clo-v2"]},
        {"seeds": 3},
        {"resources": {"cpus": 4}, "budget": {"hours": 1}, "storage": "elsewhere", "tracking": {"uri": "http://h"}},
    ],
    ids=["nothing", "values", "order", "algorithms", "seeds", "circumstances"],
)
def test_more_configurations_and_seeds_are_taken(change):
    new = extended(spec(), spec(**change), suggested(spec()), "s")
    assert {**new.model_dump(), "seeds": 0} == {**spec(**change).model_dump(), "seeds": 0}


def test_old_cells_stay_first_in_their_order():
    new = extended(spec(seeds=[5, 2]), spec(seeds=[1, 2, 5]), [], "s")
    assert new.seeds == (5, 2, 1)
    assert new.cells()[:6] == spec(seeds=[5, 2]).cells()


def test_the_datas_folder_is_kept_where_the_file_names_none():
    assert extended(spec(), spec(data={"subset": {"rows": 100}}), [], "s").data.dir == "/data"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"folds": 5}, "folds: 3 → 5"),
        ({"fold_seed": 1}, "fold_seed: 0 → 1"),
        ({"data": {"subset": {"rows": 50}}}, "data.subset.rows: 100 → 50"),
        ({"data": {}}, "data.subset.rows: 100 → removed"),
        ({"data": {"subset": {"rows": 100}, "group_by": "none"}}, "data.group_by: not set → "),
        ({"training": {"max_epochs": 4, "batch_size": 8}}, "training.max_epochs: 3 → 4"),
        ({"training": {"max_epochs": 3, "batch_size": 8, "warmup": 0.2}}, "training.warmup: not set → 0.2"),
        ({"task": "rte"}, "task: mrpc → rte"),
        ({"backbone": "c"}, "backbone: b → c"),
        ({"pruner": "halving"}, "pruner.name: none → halving"),
        ({"seeds": [1]}, "seeds: 0 is missing"),
        ({"space": {"lr_theta": [1e-4], "cycle_length": [2, 4]}}, "no longer contains {'algorithm': 'clo-v2', 'lr_theta': 0.0003"),
        ({"algorithms": ["clo-v2"]}, "no longer contains {'algorithm': 'blo'"),
    ],
)  # fmt: skip
def test_what_would_mix_incompatible_results_is_refused_with_the_difference(change, said):
    with pytest.raises(SweepError) as refused:
        extended(spec(), spec(**change), suggested(spec()), "s")
    assert said in str(refused.value)
    assert "start another sweep" in str(refused.value)


def test_an_option_that_moves_between_training_and_space_is_another_sweep():
    moved = {"training": {"max_epochs": 3}, "space": {**BASE["space"], "batch_size": [8, 16]}}
    with pytest.raises(SweepError, match="training.batch_size: 8 → removed"):
        extended(spec(), spec(**moved), suggested(spec()), "s")


def test_values_outside_of_a_new_range_are_lost_and_those_inside_are_not():
    old = spec(searcher={"name": "random", "configurations": 4}, space={"lr_theta": {"log_range": [1e-5, 1e-3]}})
    tried = [{"algorithm": "blo", "lr_theta": 2e-4}]
    wider = spec(searcher={"name": "random", "configurations": 9}, space={"lr_theta": {"log_range": [1e-6, 1e-2]}})
    assert extended(old, wider, tried, "s").searcher.configurations == 9
    narrow = spec(searcher={"name": "random", "configurations": 9}, space={"lr_theta": {"log_range": [1e-6, 1e-4]}})
    with pytest.raises(SweepError, match="no longer contains"):
        extended(old, narrow, tried, "s")


def test_a_backbone_that_has_moved_is_the_same_by_its_files_and_keeps_its_name(tmp_path):
    was, moved = save_backbone(tmp_path / "was", layers=2), tmp_path / "moved"
    identity = backbone_identity(str(was))
    shutil.copytree(was, moved)
    save_backbone(tmp_path / "other", layers=2, seed=1)
    old = spec(backbone=str(was))
    assert at_its_old_place(spec(backbone=str(was)), old, {}, "s").backbone == str(was), "nothing is read"
    shutil.rmtree(was)
    new = at_its_old_place(spec(backbone=str(moved), seeds=2), old, identity, "s")
    assert (new.backbone, new.seeds) == (str(was), (0, 1))
    assert extended(old, new, suggested(old), "s").digest == new.digest
    with pytest.raises(
        SweepError,
        match=r"sweep s: backbone .*other differs from the sweep.s backbone .*was: weights was \w+, is \w+; .*--backbone",
    ):
        at_its_old_place(spec(backbone=str(tmp_path / "other")), old, identity, "s")
