"""Numbers beyond any machine and files nested thousands deep: one line that names file and key, and no traceback."""

import pytest
from made_sweep import made_sweep
from pydantic import ValidationError

from leebert.config import LARGEST, Subset, TrainConfig
from leebert.errors import ConfigError, LeebertError
from leebert.files import parse_json
from leebert.yaml import parse_yaml
from tune.space import load_space
from tune.space.fields import MOST_SEEDS
from tune.space.sections import Budget
from tune.store.folder import SweepFolder
from tune.store.lease import holder

BASE = "task: mrpc\nbackbone: b\nspace: {lr_theta: [1e-5]}\n"
HUGE = "9" * 20


@pytest.fixture
def refused(tmp_path):
    """What is said of a space with more lines, without the file's name."""
    path = tmp_path / "space.yaml"

    def said(more, overrides=(), where=str(path)):
        path.write_text(BASE + more)
        with pytest.raises(ConfigError) as error:
            load_space(path, overrides)
        (line,) = str(error.value).splitlines()
        assert line.startswith(where)
        return line.removeprefix(where)

    return said


@pytest.mark.parametrize("text", ["[" * 10_000 + "]" * 10_000, "[" * 10_000, "{a: " * 5_000, "\n" + "- " * 3_000 + "1"])
def test_a_file_that_is_nested_too_deeply_is_one_line_with_file_and_line(refused, tmp_path, text):
    if "-" in text:
        with pytest.raises(ConfigError, match=r"^F: lists or mappings are nested too deeply to be read$"):
            parse_yaml(text, "F")
        return
    assert refused(f"data: {text}\n") == ", line 4: lists or mappings are nested too deeply to be read"
    with pytest.raises(ConfigError, match=r"^F, line 1: lists or mappings are nested too deeply to be read$"):
        parse_yaml(text, "F")


def test_an_override_that_is_nested_too_deeply_is_one_line(refused):
    assert refused("", ["data.dir=" + "[" * 10_000], where="--set").endswith("nested too deeply to be read")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seeds: {}", "seeds"), ("seeds: [{}]", "seeds"), ("fold_seed: {}", "fold_seed"), ("folds: {}", "folds"),
        ("max_length: {}", "max_length"), ("training: {{batch_size: {}}}", "training.batch_size"),
        ("training: {{max_epochs: {}}}", "training.max_epochs"), ("data: {{subset: {{rows: {}}}}}", "data.subset.rows"),
        ("data: {{subset: {{rows: 9, seed: {}}}}}", "data.subset.seed"), ("budget: {{trials: {}}}", "budget.trials"),
        ("searcher: {{name: tpe, seed: {}}}", "searcher.seed"), ("resources: {{concurrent: {}}}", "resources.concurrent"),
        ("pruner: {{name: halving, eta: {}}}", "pruner.eta"),
    ],
)  # fmt: skip
def test_whole_numbers_beyond_any_machine_are_refused_by_their_key(refused, text, key):
    said = refused(text.format(HUGE))
    assert said.startswith(f": {key}: {HUGE}: should be ")
    assert "at most" in said or "less than or equal to" in said
    assert refused(text.format("1e400")).startswith(f": {key}: inf: ")
    assert refused(text.format(".nan")).startswith(f": {key}: nan: ")


def test_the_bounds_themselves_are_values(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(BASE + f"seeds: {MOST_SEEDS}\nfold_seed: {LARGEST}\n")
    assert len(load_space(path).seeds) == MOST_SEEDS
    assert TrainConfig(seed=LARGEST).seed == LARGEST
    for make in (
        lambda: TrainConfig(seed=LARGEST + 1),
        lambda: Subset(rows=LARGEST + 1),
        lambda: Budget(trials=10**30),
    ):
        with pytest.raises(ValidationError, match=f"should be at most {LARGEST}"):
            make()


def test_numbers_with_thousands_of_digits_and_dates_that_are_none_are_named_by_their_line(refused):
    assert refused(f"folds: 5\nseeds: {'9' * 5_000}\n").startswith(", line 5: a value can't be read: Exceeds the limit")
    assert refused("folds: 2001-99-99\n") == ", line 4: a value can't be read: month must be in 1..12"
    assert "can't be read" in refused("", [f"seeds={'9' * 5_000}"], where="--set")


def test_aliases_of_aliases_are_refused_before_they_fill_the_memory():
    levels = "".join(f"  - &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))
    with pytest.raises(ConfigError, match="^F: more than 1000000 values with all aliases written out$"):
        parse_yaml(f"a:\n  - &a0 [x]\n{levels}", "F")


def test_a_range_is_not_listed_where_it_holds_millions(refused):
    said = refused("", ["space.batch_size={range: [1, 2000000000]}"], where="--set")
    assert "has 2000000000 values: at most 1000000" in said


def test_json_that_is_nested_too_deeply_is_damaged_json(tmp_path, cli):
    deep = "[" * 100_000
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(deep)
    folder = made_sweep(tmp_path / "s", "sqlite:///nowhere.db", configs=2).path
    (folder / "lease").mkdir()
    (folder / "lease" / "0001.json").write_text(deep)
    assert holder(folder).facts == {}
    (folder / "lease" / "0001.json").unlink()  # `resume` would wait ten seconds for a sign of its holder
    (folder / "manifest.json").write_text(deep)
    with pytest.raises(LeebertError, match=r"manifest\.json can't be read: brackets are nested too deeply"):
        _ = SweepFolder(folder).manifest
    for command in (["list", "--json"], ["status", "s"], ["best", "s"], ["resume", "s"]):
        ran = cli("leebert-tune", *command, "--storage", tmp_path)
        assert ran.code == (command[0] != "list"), ran.err
        assert "manifest.json" in ran.out + ran.err
