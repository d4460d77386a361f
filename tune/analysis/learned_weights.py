"""Learned against uniform loss weights: tuned methods that learn ω against tuned uniform weights of the same sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from leebert.errors import ConfigError
from leebert.methods import METHODS, UNIT, UNIT_ON_D1
from tune.analysis.compare import TunedComparison, compare
from tune.analysis.labels import algorithm_label
from tune.analysis.learned import ratio_of
from tune.analysis.power import power_of
from tune.analysis.samples import influences
from tune.analysis.still_weights import OmegaMoves, omega_moves
from tune.analysis.sweeps import LoadedSweep, SweepPool
from tune.analysis.wording import level, verdict
from tune.store.ranking import completed

#: The level at which all intervals of one answer hold together.
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class AgainstUniform:
    """A method that learns ω, tuned, against tuned uniform weights.

    Attributes:
        method: The method's name.
        control: Uniform weights on the samples on which the method trains θ, or the other ones if the sweep lacks these.
        tuned: The comparison; its interval holds together with those of the sweep's other methods (Bonferroni).
        test_train_ratio: Validation samples per training sample of a run.
        omega: How the method updates ω, and how far ω moved in its completed configurations.
        warnings: What may bias the comparison, such as pruned configurations.
    """

    method: str
    control: str
    tuned: TunedComparison
    test_train_ratio: float
    omega: OmegaMoves | None = None
    warnings: tuple[str, ...] = ()

    @property
    def significant(self) -> bool:
        """Whether the difference is significant."""
        return bool(self.tuned.difference.significant)

    def in_words(self) -> str:
        """Return the verdict in a sentence."""
        a, b = (f"tuned {algorithm_label(name)}" for name in (self.method, self.control))
        power = power_of(self.tuned.difference, self.test_train_ratio)
        sentence = verdict(a, b, self.tuned.difference, power=power)
        sentence += f" ({self.omega.in_words()})" if self.omega else ""
        other = self.control != _control(self.method)
        return f"{sentence}; {_control(self.method)} would have the same batches" if other else sentence

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready, differences as fractions."""
        difference = self.tuned.difference
        ends = {"low": round(difference.low, 6), "high": round(difference.high, 6)} if difference.defined else {}
        return {
            "method": self.method,
            "control": self.control,
            "difference": round(difference.mean, 6),
            **ends,
            "verdict": self.in_words(),
            **({"omega": dataclasses.asdict(self.omega)} if self.omega else {}),
            **({"warnings": list(self.warnings)} if self.warnings else {}),
        }


def _control(method: str) -> str:
    """Return uniform weights on the samples that train θ under a method."""
    return UNIT if METHODS[method].samples == "all" else UNIT_ON_D1


def against_uniform(sweep: LoadedSweep) -> tuple[AgainstUniform, ...]:
    """Compare each method of a sweep that only differs from uniform weights in learning ω.

    Args:
        sweep: The sweep, finished or not.

    Returns:
        One comparison per method, in the sweep's order; none where the sweep has no uniform weights, no such method, or too
        few runs to tune both sides.
    """
    history, spec = sweep.state.history(), sweep.spec
    controls = [name for name in (UNIT, UNIT_ON_D1) if name in spec.algorithms]
    # A method with teachers of its own trains on other loss terms than uniform weights.
    learning = [
        name
        for name in spec.algorithms
        if METHODS[name].learns_omega and METHODS[name].stages is None and METHODS[name].teachers is None
    ]
    if not controls or not learning:
        return ()
    ratio = ratio_of(spec, sweep.manifest)
    confidence = 1 - (1 - CONFIDENCE) / len(learning)
    homes = dict.fromkeys(sweep.state.configs, sweep.folder.path)
    pool = SweepPool(sweep.folder.name, (sweep,), sweep.state, homes, unfinished="", planned=None)
    (of_exits,) = influences(pool, sweep.state.configs)
    results = []
    for name in learning:
        control = _control(name) if _control(name) in controls else controls[0]
        try:
            comparison = compare(
                history,
                name,
                control,
                folds=spec.folds,
                test_train_ratio=ratio,
                confidence=confidence,
                cells=spec.cells(),
                sampling=of_exits.variances,
            )
        except ConfigError:
            continue  # no finished run of one side
        if comparison.tuned is not None:
            tried = [c for c in completed(history) if c.values["algorithm"] == name]
            moves = omega_moves(spec, [(c.values, sweep.state.cells_of.get(c.id, ())) for c in tried])
            results.append(AgainstUniform(name, control, comparison.tuned, ratio, moves, comparison.warnings))
    return tuple(results)


def conclusion(results: tuple[AgainstUniform, ...]) -> str:
    """Return in one sentence whether learned weights are better than uniform ones on this data; empty without results.

    Every method with a significant difference is named.
    """
    better = [r for r in results if r.significant and r.tuned.difference.mean > 0]
    worse = [r for r in results if r.significant and r.tuned.difference.mean < 0]
    if better or worse:
        opening = "better" if not worse else "worse" if not better else "better or worse"
        verdicts = "; ".join(r.in_words() for r in (*better, *worse))
        answer = f"learned loss weights are {opening} than uniform ones on this data, by method: {verdicts}"
        return answer + _together(results)
    if not results:
        return ""
    most = max(results, key=lambda r: abs(r.tuned.difference.mean))
    if not any(r.tuned.difference.useful for r in results):
        return f"too few runs to compare learned with uniform loss weights; the largest difference: {most.in_words()}"
    answer = "learned and uniform loss weights don't differ significantly on this data; the largest difference:"
    return f"{answer} {most.in_words()}{_together(results)}"


def _together(results: tuple[AgainstUniform, ...]) -> str:
    """Explain the level of each interval, where there are several; empty otherwise."""
    if len(results) < 2:
        return ""
    each = level(results[0].tuned.difference.confidence).removesuffix(" CI")
    return (
        f"; {each} per method make {level(CONFIDENCE).removesuffix(' CI')} for all {len(results)} together (Bonferroni)"
    )


def recorded(results: tuple[AgainstUniform, ...]) -> Mapping[str, Any] | None:
    """Return what a best file records of the answer; None without results."""
    if not results:
        return None
    return {"conclusion": conclusion(results), "methods": [r.as_dict() for r in results]}


def printed(section: Mapping[str, Any]) -> list[str]:
    """Return the lines that `best` prints for a record: the conclusion and each warning once."""
    warnings = dict.fromkeys(warning for method in section["methods"] for warning in method.get("warnings", ()))
    return [section["conclusion"], *(f"  warning: {warning}" for warning in warnings)]
