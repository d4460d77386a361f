"""The names of methods in tables and charts, and their colours."""

from __future__ import annotations

from leebert.methods import METHODS

#: Colours of runs that compare two methods, in turn.
PAIR_COLOURS = ("#5b3cc4", "#00855f", "#c2185b", "#6b6b6b")


def algorithm_label(algorithm: str) -> str:
    """Return the label of a method; one that is not installed here keeps its name."""
    method = METHODS.find(algorithm)
    return algorithm if method is None else method.label


def algorithm_colour(algorithm: str) -> str | None:
    """Return the colour of a method's runs; None: MLflow chooses."""
    method = METHODS.find(algorithm)
    return None if method is None else method.colour


def present(summary: str) -> str:
    """Return a summary's present label; earlier versions used the name of methods without a label."""
    return " ".join(algorithm_label(word) for word in summary.split(" "))
