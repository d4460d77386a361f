"""Thresholds chosen on one's own texts, without labels: what reaches a speed-up on the very model and traffic that count.

Thresholds from cross-validation come from other models, which saw fewer rows and may be less sure of themselves than
the one that is served. Here the served one answers the texts itself, all layers once.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.card import recalibrated
from leebert.data.sources import Examples
from leebert.errors import ConfigError, DataError
from leebert.evaluate import HeldOut, record_all
from leebert.exits import with_threshold
from leebert.exits.checks import choosable
from leebert.files import parse_json, write_together
from leebert.kinds import kind_of_model
from leebert.majority import ADVICE
from leebert.metrics import collapsed
from leebert.operating_point import Aim, within_loss
from leebert.runtime import Runtime
from leebert.thresholds import (
    FILE,
    MISSED,
    Chosen,
    check_speed_up,
    choose,
    curves,
    curves_as_json,
    layer_ratio,
    ratio_interval,
    read_curves,
    rows_needed,
)
from leebert.tradeoff import Tradeoff


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a model's own pass over texts gave.

    own: the exit criterion that the model is to have. chosen: every criterion at the speed-up asked for. expected: for each, the
    layer ratio on other texts of the kind, (low, high) at 95 %. rows, cut: how many texts, and how many of them were
    longer than the model takes. curves: as in :func:`leebert.thresholds.curves`. single_class: whether every exit predicts
    one class for all texts, so that a speed-up costs nothing and says nothing.
    """

    own: Chosen
    chosen: dict[str, Chosen]
    expected: dict[str, tuple[float, float]]
    rows: int
    cut: int
    source: str
    num_exits: int
    curves: dict[str, list[list[float]]]
    single_class: bool = False

    @property
    def chosen_on(self) -> str:
        return f"{self.rows} unlabelled texts of {self.source}, answered by this model itself"

    def as_dict(self) -> dict[str, Any]:
        """All but the curves, as JSON-ready values."""
        told = {
            name: {**dataclasses.asdict(one), "expected": list(self.expected[name])}
            for name, one in self.chosen.items()
        }
        return {
            "criterion": self.own.criterion,
            "rows": self.rows,
            "cut": self.cut,
            "source": self.source,
            "single_class": self.single_class,
            "chosen": told,
        }


def calibrate(
    model: Any,
    tokenizer: Any,
    texts: Sequence[tuple[str, ...]],
    source: str,
    aim: Aim,
    criterion: str,
    runtime: Runtime,
    *,
    validated: Sequence[Tradeoff] = (),
    batch_size: int = 64,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Calibration:
    """Run the texts once through all layers and choose each criterion's threshold for `aim`; `criterion` is to be the own one.

    A layer speed-up is reached on the texts themselves. Texts have no labels, so what a threshold costs is known from the
    model's validation curves, `validated` (:func:`leebert.operating_point.saved_tradeoffs`), by which one within an allowed
    loss is chosen; the texts then tell the layer speed-up that it has on them.

    `source` is the texts' name. Raises ConfigError for an aim or criterion that the model can't have, DataError for no
    texts, for too few, and where samples exit together so that no threshold gives the speed-up.
    """
    if model.num_exits == 1:
        raise ConfigError("this model has one exit, and so one speed: there is nothing to calibrate")
    own_row = choosable(criterion)
    patience = model.config.exit_patience if own_row.name == model.config.exit_strategy else None
    patience = own_row.counted(patience, model.num_exits)
    if aim.max_loss is not None:
        speed_up = within_loss(validated, own_row.name, patience, aim.max_loss).reached
    else:
        assert aim.speed_up is not None
        speed_up = check_speed_up(aim.speed_up, model.exit_layers, model.depth)
    needed = rows_needed(speed_up, model.exit_layers, model.depth)
    differing = len(set(texts))  # a text that is repeated tells no more
    if differing < needed:
        there = f"{differing} different texts" if texts else "no texts"
        raise DataError(
            f"{source}: {there}, and a speed-up of {speed_up:g} with {model.depth} layers needs at least {needed}, so that "
            f"the mean layers on others are within {MISSED:.0%} of those on these"
        )
    recorded, cut = _recorded(model, tokenizer, texts, source, runtime, batch_size, progress)
    if aim.max_loss is not None:
        own = _on(recorded, within_loss(validated, own_row.name, patience, aim.max_loss))
        others = {curve.criterion: curve for curve in reversed(validated)}  # the first of each, at its default patience
        chosen = {
            name: _on(recorded, within_loss([curve], name, curve.patience, aim.max_loss))
            for name, curve in others.items()
        }
        chosen = {name: chosen[name] for name in with_threshold() if name in chosen} | {own_row.name: own}
    else:
        own = choose(recorded, own_row.name, speed_up, patience)
        chosen = {name: choose(recorded, name, speed_up) for name in with_threshold()} | {own_row.name: own}
        if not own.near and not own_row.whole:
            raise DataError(f"{source}: {own.shortfall}; ask for that, or give other texts")
    expected = {name: ratio_interval(recorded, name, one.threshold, one.patience) for name, one in chosen.items()}
    found = curves(recorded, own.patience)
    stuck = bool(collapsed(recorded.logits).all())
    return Calibration(own, chosen, expected, len(texts), cut, source, model.num_exits, found, stuck)


def _on(recorded: HeldOut, validated: Chosen) -> Chosen:
    """A threshold that was chosen on validation samples, with the layer speed-up that it has on other ones."""
    reached = layer_ratio(recorded, validated.criterion, validated.threshold, validated.patience)
    return dataclasses.replace(validated, asked=reached, reached=reached)


def save_calibration(folder: Path, found: Calibration) -> str:
    """Make a calibration the saved model's own: its exit criterion, its curves and, where it has one, its card; all or nothing.

    Returns what the thresholds had been chosen on before, in words, or an empty text. Raises ConfigError where the
    folder's files can't be read.
    """
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        before = parse_json((folder / FILE).read_text(encoding="utf-8")) if (folder / FILE).exists() else {}
        card = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").exists() else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: its files can't be read: {error}") from None
    # Texts have no labels: what a threshold costs stays known from the samples that it was validated on.
    scored = {name: points for name, points in read_curves(folder, validated=True).items() if len(points[0]) == 3}
    config |= {
        "exit_strategy": found.own.criterion,
        "exit_threshold": found.own.threshold,
        "exit_patience": found.own.patience,
    }
    files = {
        folder / "config.json": json.dumps(config, indent=2) + "\n",
        folder / FILE: curves_as_json(found.curves, found.num_exits, found.chosen_on, found.own, scored),
    }
    if card is not None:
        files[folder / "README.md"] = recalibrated(
            card, found.own, found.chosen, found.expected, found.chosen_on, found.single_class
        )
    write_together(files)
    return str(before.get("chosen_on", "")) if isinstance(before, dict) else ""


def print_calibration(folder: Path, found: Calibration, before: str) -> None:
    """The thresholds with what they reach, and what of the folder has changed, on stdout."""
    if found.single_class:
        print(
            f"warning: every exit predicts a single class on all {found.rows} texts: its speed-up says nothing; {ADVICE}"
        )
    for name, one in ({} if found.single_class else found.chosen).items():
        low, high = found.expected[name]
        if one.max_loss is None:
            aim = f"asked {one.asked:g}"
        else:
            aim = f"{-100 * (one.loss or 0.0) + 0.0:+.2f} points on validation samples"
        print(
            f"{name} {one.threshold:.6g}: {aim}, on these {found.rows} texts {one.reached:.2f}, "
            f"on others like them {low:.2f} to {high:.2f} (95 %)"
        )
        if not one.near:
            print(f"  {one.shortfall}")
    if found.cut:
        print(f"{found.cut} texts were cut at the model's maximal length")
    print(f"{folder}: exits by {found.own.name} at {found.own.threshold:.6g} from now on")
    if before:
        print(f"the thresholds chosen on {before} are replaced")


def _recorded(
    model: Any,
    tokenizer: Any,
    texts: Sequence[tuple[str, ...]],
    source: str,
    runtime: Runtime,
    batch_size: int,
    progress: Any,
) -> tuple[HeldOut, int]:
    columns = tuple(list(column) for column in zip(*texts, strict=True))
    examples = Examples(columns, None, np.arange(len(texts)), source)
    with tempfile.TemporaryDirectory() as folder:
        rows = kind_of_model(model).encode(model, tokenizer, examples, Path(folder) / "rows.arrow")
        return record_all(model, rows, runtime, batch_size, progress=progress), int(rows.truncated)
