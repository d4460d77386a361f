"""Options that several commands of `leebert` and `leebert-tune` have: one name, one type, one help text, one default."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

#: Former spellings of options: they still work in this release, with a warning.
RENAMED = {"--strategy": "--criterion", "--rule": "--criterion"}

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Texts = Annotated[list[str] | None, typer.Option("--text", help="Names of the text columns; the task's by default.")]
Task = Annotated[
    str | None,
    typer.Option(
        help="cola, mnli, mrpc, qnli, qqp, rte, sst2, cifar10, cifar100, or a YAML file that declares a task."
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        help="Folder in GLUE's release layout, of an image task's Parquet files, or of your own task's files; else the Hugging "
        "Face hub."
    ),
]
#: The help of `--backbone`, which one command requires.
BACKBONE = "Hub id[@revision], folder, or package:NAME/path; for images a name as resnet56."
Backbone = Annotated[str | None, typer.Option(help=BACKBONE)]
Pooling = Annotated[str | None, typer.Option(help="Pooling before each classifier: pooler (by default), cls or mean.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="key=value of the configuration or search space; repeatable.")
]
Precision = Annotated[str | None, typer.Option(help="auto, fp32 or bf16; that of the model's training by default.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows per forward pass; changes only speed and memory.")]
Criterion = Annotated[
    str | None,
    typer.Option(
        help="Exit criterion, of those that `leebert criteria` lists. By default a saved model's own; for a new model the best for "
        "its aim; for scores of sweeps normalised_entropy."
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        min=1, help="How many exits in a row, for criteria that count them (pcee, f-pabee); theirs by default."
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(help="Aim of the threshold: the earliest exits that cost at most so many points of score."),
]
SpeedUp = Annotated[
    float | None, typer.Option(help="Aim of the threshold: a layer speed-up, depth / mean layers, such as 2.")
]
Experiment = Annotated[str | None, typer.Option(help="MLflow experiment; by default the sweep's own, or leebert-TASK.")]


class Command(TyperCommand):
    """A command that takes former spellings of its options, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace former spellings by the present ones, each with a warning of one line on stderr."""
        present = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*(_renamed(arg, present) for arg in args[:end]), *args[end:]])


def _renamed(arg: str, present: set[str]) -> str:
    option, separator, value = arg.partition("=")
    new = RENAMED.get(option)
    if new is None or option in present or new not in present:
        return arg
    print(f"warning: {option} is deprecated and will be removed in the next release: use {new}", file=sys.stderr)
    return f"{new}{separator}{value}"
