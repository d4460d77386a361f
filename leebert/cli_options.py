"""Options shared by the commands of `leebert` and `leebert-tune`: one name, type, help text and default each."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from leebert.errors import ConfigError, DeviceError

#: Former spellings of options. They work in this release, with a warning.
RENAMED = {"--strategy": "--criterion", "--rule": "--criterion", "--front": "--pareto"}

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu|xla|hpu|meta)(:\d+)?")


def check_device(device: str | None) -> str | None:
    """Return the value of `--device`, whose name is checked before torch is loaded. Raises DeviceError."""
    if device is not None and not _DEVICE.fullmatch(device):
        raise DeviceError(f"--device {device}: unknown; use auto, cpu, cuda or cuda:N")
    return device


def check_criterion(criterion: str | None) -> str | None:
    """Return the value of `--criterion`, checked before torch is loaded. Raises ConfigError."""
    if criterion is not None:
        from leebert.exits import CRITERIA

        if criterion not in CRITERIA:
            raise ConfigError(f"--criterion {criterion}: {CRITERIA.unknown(criterion)}")
    return criterion


def check_precision(precision: str | None) -> str | None:
    """Return the value of `--precision`, checked before torch is loaded. Raises ConfigError."""
    if precision not in (None, "auto", "fp32", "bf16"):
        raise ConfigError(f"--precision {precision}: should be auto, fp32 or bf16")
    return precision


Device = Annotated[str, typer.Option(callback=check_device, help="auto, cpu, cuda or cuda:N.")]
Texts = Annotated[
    list[str] | None,
    typer.Option("--text", help="Name of a text column, twice for a pair; by default the task's (`init` guesses)."),
]
Task = Annotated[
    str | None,
    typer.Option(
        help="cola, mnli, mrpc, qnli, qqp, rte, sst2, cifar10, cifar100, or a YAML file that declares a task."
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        help="Data directory: GLUE's release layout, an image task's Parquet files, or the files of a declared task. By "
        "default the Hugging Face hub."
    ),
]
#: The help of `--backbone`, which one command requires.
BACKBONE = "Hub id or ID@REVISION, folder, or package:NAME/path; for images a name such as resnet56."
Backbone = Annotated[str | None, typer.Option(help=BACKBONE)]
Pooling = Annotated[str | None, typer.Option(help="Pooling before each classifier: pooler (default), cls or mean.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override key=value of the configuration or search space; repeatable.")
]
Precision = Annotated[
    str | None, typer.Option(callback=check_precision, help="auto, fp32 or bf16; by default as in training.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples per forward pass; changes only speed and memory.")]
Criterion = Annotated[
    str | None,
    typer.Option(
        callback=check_criterion,
        help="Exit criterion, one of `leebert criteria`. By default: for a saved model its own, for a new model the one that "
        "meets the target best, for scores of sweeps normalised_entropy.",
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of consecutive exits, for criteria that count them (pcee, f-pabee); by default the criterion's.",
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        help="Target of the threshold: the largest layer speed-up with a drop in score of at most this many points."
    ),
]
SpeedUp = Annotated[
    float | None, typer.Option(help="Target of the threshold: a layer speed-up, layers / mean exit layer, such as 2.")
]
Latency = Annotated[
    str | None,
    typer.Option(
        help="Target of the threshold: the largest mean time per sample at batch size 1, measured on this machine, such as 5ms."
    ),
]
Exported = Annotated[
    bool,
    typer.Option(
        "--exported", help="Measure milliseconds in the exported form (ONNX Runtime fp32, one thread), not in PyTorch."
    ),
]
Experiment = Annotated[str | None, typer.Option(help="MLflow experiment; by default the sweep's own, or leebert-TASK.")]


#: What `--int8` without a value means.
INT8 = "static"


class Command(TyperCommand):
    """A command that also accepts the former spellings of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace former spellings of options, with one warning line on stderr for each."""
        present = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*(_renamed(arg, present) for arg in args[:end]), *args[end:]])


class ExportCommand(Command):
    """A command whose option `--int8` may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give `--int8` its default value."""
        given = [*args, ""]
        bare = [
            arg == "--int8" and after not in ("dynamic", "static") for arg, after in zip(given, given[1:], strict=False)
        ]
        return super().parse_args(ctx, [f"--int8={INT8}" if b else arg for arg, b in zip(args, bare, strict=False)])


def warn_of_former(former: str, new: str) -> None:
    """Print one line on stderr about the former name of an option or a key."""
    print(f"warning: {former} is deprecated and will be removed in the next release: use {new}", file=sys.stderr)


def _renamed(arg: str, present: set[str]) -> str:
    option, separator, value = arg.partition("=")
    new = RENAMED.get(option)
    if new is None or option in present or new not in present:
        return arg
    warn_of_former(option, new)
    return f"{new}{separator}{value}"
