"""Choose the exit criterion and threshold of an exported model for a request, from the curves of its manifest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from leebert.errors import ConfigError
from leebert.exits import CRITERIA, FULL_MODEL
from leebert.exits.checks import check_criterion, check_threshold, choosable
from leebert.exported.manifest import Exits, Manifest, Point
from leebert.operating_point import check_max_loss, saved_tradeoffs, within_loss
from leebert.thresholds import of_request

log = logging.getLogger(__name__)


def choose(
    manifest: Manifest,
    *,
    criterion: str | None = None,
    threshold: float | None = None,
    patience: int | None = None,
    speed_up: float | None = None,
    max_loss: float | None = None,
    latency: float | None = None,
) -> Exits:
    """Choose the exit criterion of a request.

    Args:
        manifest: The manifest.
        criterion: Name of the exit criterion; None: the model's own.
        threshold: Its threshold; None: the model's own, for the model's own criterion.
        patience: Its second parameter; None: as for the threshold.
        speed_up: Target layer speed-up, depth / mean exit layer, instead of a threshold.
        max_loss: Largest drop in score against the full model, in points, instead of a threshold.
        latency: Largest mean time of one sample in milliseconds, as measured at the export, instead of a threshold.

    Returns:
        Criterion, threshold and patience.

    Raises:
        ConfigError: A value is invalid, the model has no curve for it, or no threshold attains it; or more than one of
            threshold, speed_up, max_loss and latency is given.
    """
    aims = {"threshold": threshold, "speed_up": speed_up, "max_loss": max_loss, "latency": latency}
    stated = [name for name, value in aims.items() if value is not None]
    if len(stated) > 1:
        raise ConfigError(f"{' and '.join(stated)}: give one of them")
    own = manifest.exits
    name = own.criterion if criterion is None else criterion
    CRITERIA.require(name)
    if name == own.criterion:
        threshold = own.threshold if threshold is None else threshold
        patience = own.patience if patience is None else patience
    if not stated or stated == ["threshold"]:
        return checked(manifest, Exits(criterion=name, threshold=threshold, patience=patience))
    check_criterion(name, patience, manifest.num_exits)
    counted = choosable(name).counted(patience, manifest.num_exits)
    if speed_up is not None:
        return _of_speed_up(manifest, name, counted, speed_up)
    if max_loss is not None:
        return _of_max_loss(manifest, name, counted, max_loss)
    assert latency is not None
    return _of_latency(manifest, name, counted, latency)


def checked(manifest: Manifest, exits: Exits) -> Exits:
    """Return an exit criterion if the model can use it.

    Args:
        manifest: The manifest.
        exits: The criterion with its parameters.

    Raises:
        ConfigError: The criterion is unknown, or a parameter is missing, superfluous or out of range.
    """
    row = CRITERIA.require(exits.criterion)
    if not row.has_threshold and exits.threshold is not None:
        raise ConfigError(f"criterion {row.name!r} has no threshold; leave it out")
    if row.has_threshold and exits.threshold is None and row.default is None:
        raise ConfigError(f"criterion {row.name!r} needs a threshold")
    if exits.patience is not None and exits.patience < 1:
        raise ConfigError(f"patience {exits.patience}: should be at least 1")
    check_threshold(exits, manifest.num_exits, len(manifest.labels))
    return exits


def _of_speed_up(manifest: Manifest, name: str, patience: int | None, speed_up: float) -> Exits:
    curves = _plain(manifest)
    if not curves:
        raise ConfigError("speed_up: the exported model has no curves; give a threshold, or export it with data")
    chosen = of_request(curves, name, speed_up, patience, manifest.exit_layers, manifest.depth)
    if chosen is None:
        return Exits(criterion=FULL_MODEL)
    if not chosen.near:
        log.warning("speed_up: %s", chosen.shortfall)
    return Exits(criterion=name, threshold=chosen.threshold, patience=chosen.patience)


def _of_max_loss(manifest: Manifest, name: str, patience: int | None, max_loss: float) -> Exits:
    fraction = check_max_loss(max_loss)
    curves = saved_tradeoffs(_plain(manifest), manifest.exit_layers, manifest.depth)
    chosen = within_loss(curves, name, patience, fraction)
    return Exits(criterion=name, threshold=chosen.threshold, patience=chosen.patience)


def _of_latency(manifest: Manifest, name: str, patience: int | None, latency: float) -> Exits:
    """Choose the best score within the time; of equal scores the fastest."""
    if not latency > 0:
        raise ConfigError(f"latency {latency:g}: should be milliseconds above 0, such as 5")
    curve = manifest.curve(name, patience)
    times = {point: point.milliseconds for point in curve.points if point.milliseconds is not None} if curve else {}
    if not times:
        raise ConfigError(f"latency: the exported model has no times of the exit criterion {name!r}; give a threshold")
    within: Sequence[Point] = [point for point, milliseconds in times.items() if milliseconds <= latency]
    if not within:
        where = f" ({manifest.timing.machine})" if manifest.timing else ""
        raise ConfigError(
            f"latency {latency:g} ms: the fastest threshold of {name} takes {min(times.values()):.3g} ms{where}; "
            "give a longer time"
        )
    best = max(within, key=lambda point: (point.score, -times[point]))
    return Exits(criterion=name, threshold=best.threshold, patience=patience)


def _plain(manifest: Manifest) -> dict[str, list[list[float]]]:
    """The curves as saved models hold them: [threshold, layer speed-up, score] by the criterion's name."""
    curves: Mapping[str, list[list[float]]] = {
        curve.name: [[point.threshold, point.speed_up, point.score] for point in curve.points]
        for curve in manifest.curves
    }
    return dict(curves)
