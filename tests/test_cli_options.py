"""Options of both programs: one type, help text and default each; former spellings; former keys in files."""

import collections
import sys

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import leebert
import leebert.cli
import leebert.recipe
import tune.cli
from leebert.cli_options import RENAMED, Command, Criterion
from leebert.config import ExitConfig, TrainConfig, parse
from leebert.errors import ConfigError
from leebert.exits.stored import with_criterion
from leebert.testing.methods import toy_mlp, toy_rows

#: Options whose meaning or default differs from command to command, and why.
DIFFER = {
    "--anyway": "each command says what it does all the same",
    "--device": "Ray gives trials their GPUs; `verify` repeats what was recorded",
    "--name": "`refit` names a registered model, the others a sweep",
    "--out": "each command writes something else",
    "--precision": "`verify` repeats what was recorded, so `auto` is no choice",
    "--seeds": "`refit` makes models, `reproduce` runs per method",
    "--speed-up": "`compare` compares at several",
    "--tracking-uri": "commands on a finished sweep write where it wrote",
}


def options():
    """Every visible option of both programs → (type, default, help text) → the commands that have it so."""
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for program, app in (("leebert", leebert.cli.app), ("leebert-tune", tune.cli.app)):
        for name, command in get_command(app).commands.items():
            for option in command.params:
                for spelling in (o for o in option.opts if o.startswith("--") and not option.hidden):
                    annotation = getattr(option, "type_descriptor", None)
                    kind = str(getattr(annotation, "annotation", getattr(option, "type", None))), option.multiple
                    found[spelling][(*kind, str(option.default), option.help)].append(f"{program} {name}")
    return found


def test_an_option_has_one_type_default_and_help_text_in_all_commands():
    several = {name: list(uses.values()) for name, uses in options().items() if len(uses) > 1}
    assert several.keys() == DIFFER.keys()


def test_former_spellings_appear_in_no_help():
    assert not RENAMED.keys() & options().keys()
    assert set(RENAMED.values()) <= options().keys()


@pytest.mark.parametrize("former", [["--strategy", "entropy"], ["--rule", "entropy"], ["--rule=entropy"]])
def test_former_spellings_work_with_a_warning_of_one_line(former):
    app, seen = typer.Typer(), []

    @app.command(cls=Command)
    def show(file: str, criterion: Criterion = None):
        seen.append((file, criterion))

    ran = CliRunner().invoke(app, [*former, "--", "--rule"])
    assert ran.exit_code == 0
    assert seen == [("--rule", "entropy")]
    assert ran.stderr.splitlines() == [
        f"warning: {former[0].partition('=')[0]} is deprecated and will be removed in the next release: use --criterion"
    ]


def test_former_keys_of_files_are_read():
    assert ExitConfig.model_validate({"strategy": "pcee", "threshold": 0.3}) == ExitConfig(
        criterion="pcee", threshold=0.3
    )
    assert with_criterion({"strategy": "never", "inner": {"strategy": "a"}}) == {
        "criterion": "never",
        "inner": {"strategy": "a"},  # where no file of an earlier version has it
    }
    for values, message in (
        (
            {"strategy": "never", "criterion": "patience"},
            "`strategy` is the former name of `criterion`: keep one of the two",
        ),
        ({"rule": "patience"}, "rule: 'patience': unknown key"),
        ({"strategy": "never", "rule": "patience"}, "rule: 'patience': unknown key"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(ExitConfig, values, "file")


@pytest.mark.parametrize("key", ["strategy", "criterion"])
@pytest.mark.parametrize("override", [None, "strategy", "criterion"])
def test_former_and_new_keys_mix_in_a_file_and_its_overrides(tmp_path, monkeypatch, key, override):
    """Each former key is one line of warning; an override replaces the file's value, whatever the spelling."""
    trained = []
    monkeypatch.setattr(leebert.recipe, "train_model", lambda config, out, **_: trained.append(config) or sys.exit(0))
    (tmp_path / "run.yaml").write_text(
        f"task: mrpc\nmodel: {{backbone: x}}\nexits: {{{key}: entropy, threshold: 0.2}}\n"
    )
    words = ["train", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "m")]
    words += ["--set", f"exits.{override}=confidence"] if override else []
    ran = CliRunner().invoke(leebert.cli.app, words)
    assert [config.exits.criterion for config in trained] == ["confidence" if override else "entropy"], ran.output
    former = [f"{tmp_path}/run.yaml: exits.strategy"] * (key == "strategy") + ["--set exits.strategy"] * (
        override == "strategy"
    )
    assert [line.split(" is deprecated")[0] for line in ran.stderr.splitlines()] == [
        f"warning: {one}" for one in former
    ]


def test_former_names_of_the_library_warn():
    with pytest.warns(DeprecationWarning, match="leebert.make_strategy is deprecated: use leebert.make_criterion"):
        assert leebert.make_strategy is leebert.make_criterion
    with pytest.warns(DeprecationWarning, match="leebert.TensorRows is deprecated: use leebert.TensorSamples"):
        assert leebert.TensorRows is leebert.TensorSamples
    with pytest.warns(DeprecationWarning, match="use criterion"):
        assert ExitConfig().strategy == "patience"


def test_former_arguments_and_attributes_of_training_warn():
    settings = TrainConfig(algorithm="uniform", max_epochs=1)
    with pytest.warns(DeprecationWarning, match="fit: argument .* is deprecated: use") as warned:
        result = leebert.fit(toy_mlp(), rows=toy_rows(), config=settings, held_out=toy_rows(seed=1))
    assert [str(warning.message).rpartition(" ")[2] for warning in warned] == ["samples", "validation"]
    assert {warning.filename for warning in warned} == {__file__}
    assert result.validation is not None
    for held in (result, result.best):
        with pytest.warns(DeprecationWarning, match="held_out is deprecated: use validation"):
            assert held.held_out is held.validation
