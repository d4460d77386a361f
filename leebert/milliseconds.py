"""Wall-clock time of a sample up to each exit, and the mean time of operating points.

Mean exit layers are the same on every machine; milliseconds belong to the machine, the runtime and the lengths of the samples
with which :mod:`leebert.latency` measured them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leebert.errors import ConfigError
from leebert.tradeoff import Tradeoff

_TEXT = re.compile(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(?:ms)?\s*", re.IGNORECASE)


def parse_milliseconds(text: str, option: str) -> float:
    """Parse a time.

    Args:
        text: Milliseconds, such as `5` or `5ms`.
        option: The option, for messages.

    Raises:
        ConfigError: It is no positive number of milliseconds.
    """
    match = _TEXT.fullmatch(text)
    try:
        milliseconds = float(match[1]) if match else math.nan
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise ConfigError(f"{option} {text}: should be milliseconds per sample above 0, such as 5ms")
    return milliseconds


def mean_time(counts: Any, exits: Any) -> Any:
    """Compute the mean time of samples by the exits that they take.

    Args:
        counts: (..., M) number of samples that exit at each exit.
        exits: (M,) time up to each exit.

    Returns:
        (...) times in the unit of `exits`.
    """
    numbers = np.asarray(counts, float)
    return numbers @ np.asarray(exits) / numbers.sum(axis=-1)


def samples_in_words(lengths: np.ndarray) -> str:
    """Describe timed samples: `48 samples of 53 tokens on average`.

    Args:
        lengths: (N,) tokens of each; 1 for images.
    """
    mean = float(np.mean(lengths))
    return f"{len(lengths)} samples" + ("" if mean == 1 else f" of {mean:.0f} tokens on average")


@dataclasses.dataclass(frozen=True)
class ExitMilliseconds:
    """The wall-clock time of one sample at batch size 1, on one machine.

    Attributes:
        exits: (M,) milliseconds up to each exit's decision, rising.
        layers: (M,) layers below each exit.
        measured: The runtime, the machine and the samples, in words.
        disturbed: Whether other processes disturbed the measurement.
    """

    exits: tuple[float, ...]
    layers: tuple[int, ...]
    measured: str
    disturbed: bool = False

    def mean(self, counts: Sequence[int] | np.ndarray) -> Any:
        """Compute the mean time of samples by the exits that they take.

        Args:
            counts: (..., M) number of samples that exit at each exit.

        Returns:
            (...) milliseconds.
        """
        return mean_time(counts, self.exits)

    def at_layers(self, layers: Any) -> Any:
        """Estimate the mean time at mean exit layers, by interpolation between exits.

        Args:
            layers: Mean exit layers.

        Returns:
            Milliseconds, in the shape of `layers`.
        """
        return np.interp(layers, self.layers, self.exits)

    def of_curve(self, curve: Tradeoff) -> np.ndarray:
        """Compute the mean time at each point of a curve.

        Args:
            curve: A curve of T points; without counts, times are interpolated in layers.

        Returns:
            (T,) milliseconds, from the fastest point to the full model.
        """
        if curve.counts.shape[1] == len(self.exits):
            return np.asarray(self.mean(curve.counts))
        return np.asarray(self.at_layers(curve.layers))

    def reaches(self, curve: Tradeoff, latency: float) -> bool:
        """Whether a curve has a point of at most `latency` milliseconds."""
        return bool(within_time(self.of_curve(curve), latency).any())

    def score_at(self, curve: Tradeoff, latency: float) -> float:
        """Interpolate the best score within a mean time.

        Args:
            curve: A labelled curve.
            latency: Largest mean time, in milliseconds.

        Returns:
            The score, as a fraction; the full model's if that is fast enough.

        Raises:
            ConfigError: No point is fast enough.
        """
        times = self.of_curve(curve)
        if not within_time(times, latency).any():
            raise self.too_slow([curve], latency)
        order = np.argsort(times, kind="stable")
        return float(np.interp(latency, times[order], curve.scores[order]))

    def speed_up_within(self, curve: Tradeoff, latency: float) -> float:
        """Find the smallest layer speed-up of a curve within a mean time.

        Args:
            curve: A curve.
            latency: Largest mean time, in milliseconds.

        Returns:
            The layer speed-up of the slowest point that is fast enough.

        Raises:
            ConfigError: No point is fast enough.
        """
        times = self.of_curve(curve)
        within = within_time(times, latency)
        if not within.any():
            raise self.too_slow([curve], latency)
        return curve.depth / float(curve.layers[within].max())

    def too_slow(self, curves: Sequence[Tradeoff], latency: float) -> ConfigError:
        """Make the error for curves without a point of at most `latency` milliseconds."""
        times = np.concatenate([self.of_curve(curve) for curve in curves])
        return ConfigError(
            f"latency {latency:g} ms: exit criterion {' or '.join(curve.name for curve in curves)} takes from "
            f"{times.min():.3g} to {times.max():.3g} ms per sample ({self.measured}); choose a time in this range"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "exits": list(self.exits),
            "layers": list(self.layers),
            "measured": self.measured,
            "disturbed": self.disturbed,
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> ExitMilliseconds:
        """Rebuild from the values of :meth:`as_dict`."""
        return cls(
            tuple(plain["exits"]), tuple(plain["layers"]), str(plain["measured"]), bool(plain.get("disturbed", False))
        )


def within_time(times: Any, latency: float) -> Any:
    """Which of some times are at most `latency`, but for rounding."""
    return times <= latency * (1 + 1e-9)
