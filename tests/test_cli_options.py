"""Options of both programs: one type, help text and default each; former spellings; former keys in files."""

import collections
import inspect
import sys
from typing import Annotated

import numpy as np
import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import leebert
import leebert.cli
import leebert.recipe
import tune.cli
from leebert.calibration import calibrate, saved_subject
from leebert.cli_options import RENAMED, Command, Criterion
from leebert.config import ExitConfig, TrainConfig, parse
from leebert.errors import ConfigError
from leebert.evaluate import RecordedLogits
from leebert.exits.stored import with_criterion
from leebert.recipe import train_model
from leebert.report import evaluate_split
from leebert.submission import submit
from leebert.testing.methods import toy_mlp, toy_rows
from tune.analysis.choose import choose, choose_each
from tune.analysis.compare_sweeps import compare_sweeps
from tune.models.refit import RefitPlan, refit
from tune.models.verify import verify
from tune.reproduce.plan import ReproductionRequest
from tune.running.doctor import examine
from tune.running.simulate import simulate
from tune.running.sweep import new_sweep, resume_sweep
from tune.tracking.artifacts import deliver
from tune.tracking.publish import show
from tune.tracking.rebuild import rebuild

#: Options whose meaning or default differs from command to command, and why.
DIFFER = {
    "--anyway": "each command says what it does all the same",
    "--device": "Ray gives trials their GPUs; `verify` repeats what was recorded",
    "--format": "one file of `leebert predict` has the ending of --out, shards of `leebert-tune predict` have none",
    "--label": "`init` guesses it, `load` needs it for the score only",
    "--max-loss": "of `serve` the floor while the threshold moves, elsewhere the target of one threshold",
    "--name": "`refit` names a registered model, the others a sweep",
    "--out": "each command writes something else",
    "--p99-ms": "`serve` aims at it, `load` reports it",
    "--precision": "`verify` repeats what was recorded, so `auto` is no choice",
    "--seed": "of orders in `simulate`, of arrivals in `load`",
    "--seeds": "`refit` makes models, `reproduce` runs per method",
    "--speed-up": "`compare` compares at several",
    "--threads": "of `predict` per process, of `verify` as they were recorded",
    "--threshold": "of `serve` whatever the load, instead of a target",
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


def test_no_help_text_has_brackets():
    """The terminal would take them for markup, and leave them out."""
    commands = [*get_command(leebert.cli.app).commands.values(), *get_command(tune.cli.app).commands.values()]
    texts = {text for command in commands for text in (command.help, *(getattr(p, "help", "") for p in command.params))}
    assert len(texts) > 40
    assert [text for text in texts if "[" in (text or "")] == []


#: Command → the library functions behind it.
BEHIND = {
    "train": (train_model,),
    "evaluate": (evaluate_split, RefitPlan),  # a refit evaluates its models as `evaluate` does
    "predict": (submit,),
    "calibrate": (calibrate, saved_subject),
    "sweep": (new_sweep,),
    "doctor": (examine,),
    "resume": (resume_sweep,),
    "best": (choose_each, choose),
    "verify": (verify,),
    "refit": (RefitPlan, refit),
    "rebuild-mlflow": (rebuild,),
    "views": (show,),
    "compare": (compare_sweeps, deliver),
    "report": (deliver,),
    "simulate": (simulate,),
    "reproduce": (ReproductionRequest,),
}

#: Options that a command passes on in another form.
PASSED_ON = {("reproduce", "methods"), ("reproduce", "pooling"), ("reproduce", "set_"), ("reproduce", "tasks")}


def test_the_library_has_the_defaults_of_the_options():
    commands = {**get_command(leebert.cli.app).commands, **get_command(tune.cli.app).commands}
    seen = set()
    for name, functions in BEHIND.items():
        options = {option.name: option.default for option in commands[name].params}
        for function in functions:
            for parameter in inspect.signature(function).parameters.values():
                option = parameter.name
                if option in options and parameter.default is not parameter.empty and (name, option) not in PASSED_ON:
                    assert options[option] == parameter.default, (name, option)
                    seen.add((name, option))
    assert len(seen) > 40
    assert {(name, "batch_size") for name in ("evaluate", "predict", "calibrate")} <= seen


def test_former_spellings_appear_in_no_help():
    assert not RENAMED.keys() & options().keys()
    assert set(RENAMED.values()) <= options().keys()


@pytest.mark.parametrize(
    ("former", "present"),
    [
        (["--strategy", "entropy"], "--criterion"),
        (["--rule", "entropy"], "--criterion"),
        (["--rule=entropy"], "--criterion"),
        (["--front"], "--pareto"),
    ],
)
def test_former_spellings_work_with_a_warning_of_one_line(former, present):
    app, seen = typer.Typer(), []

    @app.command(cls=Command)
    def show(file: str, criterion: Criterion = None, pareto: Annotated[bool, typer.Option("--pareto")] = False):
        seen.append((file, "entropy" if pareto else criterion))

    ran = CliRunner().invoke(app, [*former, "--", "--rule"])
    assert ran.exit_code == 0
    assert seen == [("--rule", "entropy")]
    assert ran.stderr.splitlines() == [
        f"warning: {former[0].partition('=')[0]} is deprecated and will be removed in the next release: use {present}"
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


def test_the_former_argument_strategy_warns():
    recorded = RecordedLogits(np.eye(2, dtype=np.float32)[np.zeros((3, 4), int)], np.zeros(4, int))
    with pytest.warns(DeprecationWarning, match="argument strategy is deprecated: use criterion"):
        layers = leebert.replay(
            strategy=leebert.make_criterion("never", None, num_exits=3, num_classes=2), logits=recorded.logits
        )
    assert layers.tolist() == [2] * 4
    with pytest.warns(DeprecationWarning, match="argument strategy is deprecated: use criterion"):
        point = leebert.replay_point(recorded, "accuracy", strategy="never", threshold=None)
    with pytest.warns(DeprecationWarning, match="Point.strategy is deprecated: use criterion"):
        assert point.strategy == "never"
