"""The best configuration over one or several sweeps of a task, those within one standard error, and the Pareto front."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from leebert.errors import ConfigError, LeebertError, SweepError
from leebert.methods import METHODS
from leebert.milliseconds import ExitMilliseconds
from leebert.tradeoff import Tradeoff
from tune.analysis.labels import short_names
from tune.analysis.learned import ConfigurationMargin, margins_of, none_learned
from tune.analysis.overview import UNFINISHED
from tune.analysis.settings import uneven_settings
from tune.analysis.sweeps import LoadedSweep, require_alike
from tune.analysis.tradeoff import FrontPoint, RankingObjective, curves, pareto
from tune.store.folder import SweepFolder
from tune.store.history import CellKey, Configuration
from tune.store.ledger import LedgerRecord
from tune.store.ranking import Ranked, completed, one_standard_error, ranking

log = logging.getLogger(__name__)

#: Above this number of runs the front is only computed on request, or where the objective needs the curves anyway.
FRONT_CELLS = 100


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A configuration that may be selected, and its sweep. Two sweeps may hold the same configuration."""

    sweep: LoadedSweep
    configuration: Configuration

    @property
    def records(self) -> list[LedgerRecord]:
        """The end records of its runs, by seed and fold."""
        cells = self.sweep.state.cells
        return [cells[key] for key in sorted(cells) if key[0] == self.configuration.id]


@dataclasses.dataclass(frozen=True)
class Selection:
    """The configurations selected from one task's sweeps. Configurations are named by the keys of `candidates`.

    Attributes:
        task: The task's name.
        objective: What configurations are ranked by.
        sweeps: The sweeps.
        candidates: The completed configurations.
        ranked: The ranked ones, best first, with the objective's score.
        near: Those within one standard error of the best.
        too_slow: Those not ranked, as a run cannot reach the speed-up or the time.
        front: The Pareto front of score against mean exit layer; against time, if that is the objective.
        no_front: Why there is no front; empty otherwise.
        margins: The candidates' margins over the majority class, if known.
        unlearned: Configurations not significantly above the majority class, which are not ranked.
        times: The time up to each exit of the candidates' networks, if the objective is a time.
    """

    task: str
    objective: RankingObjective
    sweeps: tuple[LoadedSweep, ...]
    candidates: dict[str, Candidate]
    ranked: tuple[Ranked, ...]
    near: tuple[Ranked, ...]
    too_slow: tuple[str, ...]
    front: tuple[FrontPoint, ...]
    no_front: str
    margins: Mapping[str, ConfigurationMargin] = dataclasses.field(default_factory=dict)
    unlearned: tuple[str, ...] = ()
    times: Mapping[str, ExitMilliseconds] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """The candidates' names by key: what differs between them."""
        return _names(self.candidates)

    @property
    def best(self) -> Candidate:
        return self.candidates[self.ranked[0].configuration.id]

    def complete_of(self, sweep: LoadedSweep) -> int:
        """Count a sweep's candidates."""
        return sum(c.sweep is sweep for c in self.candidates.values())

    def progress(self) -> dict[str, str]:
        """Return a sentence on each unfinished sweep, by its name."""
        lines = {}
        for sweep in self.sweeps:
            if sweep.status in UNFINISHED:
                planned = f" of {sweep.spec.planned} planned" if sweep.spec.planned else ""
                complete = f"{self.complete_of(sweep)}{planned} configurations completed"
                lines[sweep.name] = f"sweep {sweep.name} {UNFINISHED[sweep.status]}: {complete}"
        return lines


def choose_each(
    folders: Sequence[SweepFolder],
    objective: RankingObjective,
    *,
    front: bool = False,
    timed: bool = False,
    anyway: bool = False,
) -> tuple[list[Selection], list[LeebertError]]:
    """Select a configuration per task.

    Args:
        folders: The sweeps.
        objective: What is maximised.
        front: Compute the Pareto front even for more than 100 runs.
        timed: Measure milliseconds for any objective.
        anyway: Include configurations that are not significantly above the majority class.

    Returns:
        The selections, and an error for each sweep or task without one.

    Raises:
        ConfigError: A sweep is named twice.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise ConfigError("a sweep is named twice, or two sweeps have the same name: name each once")
    by_task: dict[str, list[LoadedSweep]] = {}
    choices: list[Selection] = []
    errors: list[LeebertError] = []
    for folder in folders:
        try:
            sweep = LoadedSweep.read(folder)
        except LeebertError as error:
            errors.append(SweepError(f"sweep {folder.name}: {error}"))
        else:
            by_task.setdefault(sweep.spec.task_name, []).append(sweep)
            for line in uneven_settings(sweep.name, sweep.state):
                log.warning(f"warning: {line}")
    for sweeps in by_task.values():
        try:
            choices.append(choose(sweeps, objective, front=front, timed=timed, anyway=anyway))
        except LeebertError as error:
            named = ", ".join(s.name + (" (still running)" if s.status == "running" else "") for s in sweeps)
            errors.append(SweepError(f"sweep{'s' if len(sweeps) > 1 else ''} {named}: {error}"))
    return choices, errors


def choose(
    sweeps: Sequence[LoadedSweep],
    objective: RankingObjective,
    *,
    front: bool = False,
    timed: bool = False,
    anyway: bool = False,
) -> Selection:
    """Select the best configuration among sweeps of one task.

    A configuration whose logits cannot be read is skipped with a note, if the objective needs them.

    Args:
        sweeps: The sweeps.
        objective: What configurations are ranked by.
        front: Whether to compute the front however many runs there are.
        timed: Whether to measure milliseconds for any objective.
        anyway: Whether to rank configurations that are not significantly above the majority class.

    Raises:
        SweepError: No configuration has learned anything, or none is completed.
        ConfigError: Sweeps differ in data, folds, metric or seeds, or no configuration reaches the speed-up.
    """
    require_alike(sweeps)
    _warn_of_one_exit(sweeps)
    owners: dict[str, Candidate] = {}
    for sweep in sweeps:
        for c in sweep.state.history():
            owners[c.id if len(sweeps) == 1 else f"{sweep.name}/{c.id}"] = Candidate(sweep, c)
    everything = tuple(dataclasses.replace(owner.configuration, id=key) for key, owner in owners.items())
    finished = completed(everything)
    curved = tuple(c for c in finished if not METHODS[c.values["algorithm"]].one_exit)
    if objective.kind != "score":
        if finished and not curved:
            raise ConfigError(
                f"{objective}: every completed configuration has one exit, so its speed-up is fixed; use --objective score"
            )
        finished = curved
    candidates = {c.id: owners[c.id] for c in finished}
    replayed, no_front, unreadable = _curves_of(sweeps, objective, candidates, curved, front)
    if objective.kind != "score":
        finished = tuple(c for c in finished if c not in unreadable)
        candidates = {c.id: owners[c.id] for c in finished}
    margins = margins_of(
        {key: c.records for key, c in candidates.items()},
        {key: c.sweep.folder.path for key, c in candidates.items()},
        sweeps[0].spec,
        sweeps[0].manifest,
    )
    unlearned = () if anyway else tuple(key for key in candidates if key in margins and not margins[key].learned)
    if unlearned and len(unlearned) == len(finished):
        raise SweepError(
            f"{none_learned([margins[key] for key in unlearned])}; add --anyway to write the best of them regardless"
        )
    with_exits = {c.id: candidates[c.id] for c in curved if c.id in candidates}
    times = _times(objective, with_exits) if timed or objective.latency is not None else None
    too_slow = {c.id for c in finished if not objective.in_reach(c, replayed, times)}
    if finished and len(too_slow.union(unlearned)) == len(finished):
        raise ConfigError(
            _none_reaches(objective, {k: c for k, c in candidates.items() if k not in unlearned}, replayed, times)
        )
    excluded = too_slow.union(unlearned)
    rescored = objective.rescored(tuple(c for c in finished if c.id not in excluded) or everything, replayed, times)
    near = one_standard_error(rescored)  # raises SweepError if none is completed
    return Selection(
        task=sweeps[0].spec.task_name,
        objective=objective,
        sweeps=tuple(sweeps),
        candidates=candidates,
        ranked=ranking(rescored),
        near=near,
        too_slow=tuple(c.id for c in finished if c.id in too_slow),
        front=_front(objective, curved, unlearned, replayed, times),
        no_front=no_front,
        margins=margins,
        unlearned=unlearned,
        times=times or {},
    )


def _front(
    objective: RankingObjective,
    curved: Sequence[Configuration],
    unlearned: Sequence[str],
    replayed: Mapping[CellKey, Tradeoff],
    times: Mapping[str, ExitMilliseconds] | None,
) -> tuple[FrontPoint, ...]:
    """The Pareto front of those configurations that have learned: against time, if that is the objective."""
    learned = tuple(c for c in curved if c.id not in unlearned)
    return tuple(pareto(learned, replayed, times, by_time=objective.latency is not None))


def _times(objective: RankingObjective, candidates: Mapping[str, Candidate]) -> dict[str, ExitMilliseconds]:
    """Measure the candidates' networks."""
    from tune.analysis.latency import times_of

    networks = {key: (candidate.sweep, candidate.configuration) for key, candidate in candidates.items()}
    return times_of(networks, objective.criterion, objective.patience)


def _curves_of(
    sweeps: Sequence[LoadedSweep],
    objective: RankingObjective,
    candidates: dict[str, Candidate],
    curved: Sequence[Configuration],
    front: bool,
) -> tuple[dict[CellKey, Tradeoff], str, tuple[Configuration, ...]]:
    """Return the curves of the candidates' runs, why there is no front (else empty), and the `curved` that lack a curve.

    Raises:
        SweepError: All lack one although the objective or `front` needs them.
    """
    needed = front or objective.kind != "score"
    cells = sum(len(candidate.configuration.cells) for candidate in candidates.values())
    if not needed and cells > FRONT_CELLS:
        return {}, f"computing it replays the validation logits of {cells} runs; add --pareto to do so", ()
    try:
        replayed = _replayed(sweeps, candidates, objective)
    except LeebertError as error:
        if needed:
            raise
        return {}, str(error), ()
    unreadable = _without_logits(curved, replayed)
    if unreadable and len(unreadable) == len(curved):
        no_front = "every completed configuration has a run whose validation logits are missing or damaged"
        if needed:
            raise SweepError(no_front)
        return replayed, no_front, unreadable
    if unreadable and objective.kind != "score":
        log.info(
            "note: not ranked, as validation logits of a run are missing or damaged: "
            + "; ".join(_short_names(candidates)[c.id] for c in unreadable)
        )
    return replayed, "", unreadable


def _without_logits(curved: Sequence[Configuration], replayed: Mapping[CellKey, Tradeoff]) -> tuple[Configuration, ...]:
    """Return the configurations with a run that has no curve."""
    return tuple(c for c in curved if any((c.id, cell.seed, cell.fold) not in replayed for cell in c.cells))


def _replayed(
    sweeps: Sequence[LoadedSweep],
    candidates: dict[str, Candidate],
    objective: RankingObjective,
) -> dict[CellKey, Tradeoff]:
    """Return the curves of the candidates' runs, by the candidates' keys."""
    by_run: dict[CellKey, Tradeoff] = {}
    for sweep in sweeps:
        keys = {c.configuration.id: key for key, c in candidates.items() if c.sweep is sweep}
        # A network with one exit has a single speed, and no curve.
        records = {
            cell: record
            for cell, record in sweep.state.cells.items()
            if cell[0] in keys and len(record["exits"].get("score", ())) != 1
        }
        of_sweep = curves(sweep.folder.path, records, sweep.manifest["metric"], objective.criterion, objective.patience)
        by_run |= {(keys[config], seed, fold): curve for (config, seed, fold), curve in of_sweep.items()}
    return by_run


def _warn_of_one_exit(sweeps: Sequence[LoadedSweep]) -> None:
    methods = {a for sweep in sweeps for a in sweep.spec.algorithms}
    alone = sorted(a for a in methods if METHODS[a].one_exit)
    if alone and len(alone) < len(methods):
        log.info(
            f"note: the score of methods with one exit ({', '.join(alone)}) is that exit's; the score of the others is the "
            "mean over all exits, including shallow ones"
        )


def _short_names(candidates: Mapping[str, Candidate]) -> dict[str, str]:
    """Name the candidates by their keys: as :func:`_names` does, those of several sweeps with their sweep."""
    several = len({candidate.sweep.name for candidate in candidates.values()}) > 1
    names = _names(candidates)
    return {key: f"{candidates[key].sweep.name} {name}" if several else name for key, name in names.items()}


def _names(candidates: Mapping[str, Candidate]) -> dict[str, str]:
    names = short_names([candidate.configuration.values for candidate in candidates.values()])
    return dict(zip(candidates, names, strict=True))


def _none_reaches(
    objective: RankingObjective,
    candidates: dict[str, Candidate],
    replayed: dict[CellKey, Tradeoff],
    times: Mapping[str, ExitMilliseconds] | None,
) -> str:
    slowest = {
        key: min((curve for cell, curve in replayed.items() if cell[0] == key), key=lambda curve: curve.fastest)
        for key in candidates
    }
    if times:
        key = min(slowest, key=lambda k: float(times[k].of_curve(slowest[k]).min()))
        taken = times[key].of_curve(slowest[key])
        reaches = f"takes from {taken.min():.3g} to {taken[-1]:.3g} ms"
    else:
        key = max(slowest, key=lambda k: slowest[k].fastest)
        reaches = f"reaches layer speed-ups from {slowest[key].slowest:.3g} to {slowest[key].fastest:.2f}"
    return (
        f"{objective.target}: none of {len(candidates)} completed configurations reaches it in every run "
        f"under {objective.under}; the nearest, {_short_names(candidates)[key]}, {reaches} on "
        f"{len(slowest[key].exit_layers)} exits in its slowest run"
    )
