"""Print what `leebert export` has written."""

from __future__ import annotations

import shlex
from pathlib import Path

from leebert.console import next_step, sentence, table
from leebert.exits import named
from leebert.export.card import curve_rows, score_rows
from leebert.export.result import Exported
from leebert.operating_point import in_words


def print_exported(out: Path, exported: Exported) -> None:
    """Print scores, times, the choice of exits and the next command.

    Args:
        out: The folder.
        exported: What it holds.
    """
    from rich.console import Console

    manifest, console = exported.manifest, Console()
    columns: tuple[str, ...] = ("exit layer", "PyTorch", manifest.precision, "ms up to here")
    title = f"{manifest.metric} by exit, {exported.source}"
    console.print(table(columns, score_rows(manifest), title=title, whole=1, lean=True, left=0))
    if rows := curve_rows(manifest):
        own = manifest.exits
        columns = ("threshold", "layer speed-up", "layers", "ms", manifest.metric)
        title = f"score against time: {named(own.criterion, own.patience)}"
        console.print(table(columns, rows, title=title, whole=1, lean=True, left=0))
    for line in _choice(exported):
        sentence(line)
    if exported.tuned:
        sentence(
            "warning: thresholds were chosen on a development split, since the model has no validation fold; scores there are optimistic"
        )
    if exported.chosen:
        sentence(in_words(exported.chosen))
    sentence(f"{out}: {len(manifest.segments)} segment(s), {manifest.precision}, {exported.size / 1e6:.1f} MB")
    if manifest.kind == "texts":
        next_step(f"leebert-tune serve {shlex.quote(str(out))}")


def _choice(exported: Exported) -> list[str]:
    """The choice of exits, in words."""
    choice = exported.choice
    if choice is None:
        return []
    costs = choice.costs
    kept = [str(layer) for layer in exported.manifest.exit_layers]
    dropped = len(costs.layers) - len(kept)
    words = f"an exit costs {costs.exit_:.3f} ms, a layer {float(costs.layers.mean()):.3f} ms"
    if not dropped:
        return [f"{words}: all exits are kept, {choice.expected:.2f} ms expected per sample"]
    return [
        f"{words}: {dropped} of {len(costs.layers)} exits cost more than they save and are left out; exits after layers "
        f"{', '.join(kept)} are kept: {choice.expected:.2f} ms expected per sample, {choice.before:.2f} ms with all exits"
    ]
