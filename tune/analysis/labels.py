"""The names of methods in tables and charts, and their colours."""

from __future__ import annotations

from collections.abc import Mapping

LABELS: Mapping[str, str] = {
    "clo-v2": "CLO-v2",
    "clo-v1": "CLO-v1",
    "blo": "BLO",
    "slo": "SLO",
    "hyper": "Hypergradient",
    "uniform": "Uniform",
    "uniform-d1": "Uniform-D1",
    "rand": "Random",
}


# The first two are the colours of MLflow's own palette for the groups "CLO-v2" and "BLO" of the tag `approach`, so
# grouped charts (which ignore mlflow.runColor) and ungrouped ones agree. The others also differ from them in lightness.
COLOURS: Mapping[str, str] = {
    "clo-v2": "#2272b4",
    "blo": "#de7921",
    "clo-v1": "#56b4e9",
    "slo": "#00855f",
    "hyper": "#b3261e",
    "uniform": "#8c8c8c",
    "uniform-d1": "#4a4f80",
    "rand": "#a6559d",
    "lle": "#7e7ee6",
    "pabee": "#c2185b",
    "fastbert": "#6d4c41",
    "fastbert-clo-v2": "#bfa369",
    "deebert": "#5c9e31",
    "shallow-deep": "#bfbf0a",
    "dbt": "#0abf83",
    "cost-eff": "#5039bf",
    "finetune": "#333333",
    "truncated": "#69bfa3",
    "layerdrop": "#4d8c77",
    "headprune": "#e67e8f",
    "distilled": "#b045e6",
    "pkd": "#93bf39",
    "theseus": "#8c078c",
    "pcee-bert": "#101088",
    "f-pabee": "#10c410",
    "beem": "#dc10ac",
}


#: Colours of runs that compare two methods, in turn.
PAIR_COLOURS = ("#5b3cc4", "#00855f", "#c2185b", "#6b6b6b")


def algorithm_label(algorithm: str) -> str:
    """Return the paper's spelling of a method; an unlisted one (a user's own) keeps its name."""
    return LABELS.get(algorithm, algorithm)


def algorithm_colour(algorithm: str) -> str | None:
    """Return the method's colour of runs; None leaves the choice to MLflow."""
    return COLOURS.get(algorithm)
