"""The best configuration over one or several sweeps of a task, its equals, and the front of score against layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from leebert.errors import ConfigError, LeebertError, SweepError
from leebert.methods import METHODS
from tune.analysis.learned import ConfigurationMargin, margins_of, none_learned
from tune.analysis.overview import UNFINISHED
from tune.analysis.settings import uneven_settings
from tune.analysis.sweeps import LoadedSweep, require_alike
from tune.analysis.tradeoff import FrontPoint, RankingObjective, Tradeoff, curves, pareto
from tune.store.folder import SweepFolder
from tune.store.history import CellKey, Configuration, describe
from tune.store.ledger import LedgerRecord
from tune.store.ranking import Ranked, complete, one_standard_error, ranking

#: Of more cells the front is only computed where it is asked for, or the objective takes curves anyway.
FRONT_CELLS = 100


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A configuration that may be chosen, and the sweep that has it. Two sweeps may hold the same configuration."""

    sweep: LoadedSweep
    configuration: Configuration

    @property
    def records(self) -> list[LedgerRecord]:
        """The ends of its cells, by seed and fold."""
        cells = self.sweep.state.cells
        return [cells[key] for key in sorted(cells) if key[0] == self.configuration.id]


@dataclasses.dataclass(frozen=True)
class Selection:
    """What one task's sweeps say together. Configurations are named by the keys of `candidates`.

    `ranked` holds those that were judged, best first, with the objective's score; `near` those of them within one
    standard error; `too_slow` those that were left out, since a cell can't reach the speed-up; `unlearned` those that were
    left out, since they are not distinguishable from the majority class. `no_front` says why there is none. `margins` are
    the candidates beside the majority class, where that is known.
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

    @property
    def best(self) -> Candidate:
        return self.candidates[self.ranked[0].configuration.id]

    def complete_of(self, sweep: LoadedSweep) -> int:
        """How many of a sweep's configurations may be chosen."""
        return sum(c.sweep is sweep for c in self.candidates.values())

    def progress(self) -> dict[str, str]:
        """What to say of each sweep that has not come to its end."""
        told = {}
        for sweep in self.sweeps:
            if sweep.status in UNFINISHED:
                planned = f" of {sweep.spec.planned} planned" if sweep.spec.planned else ""
                complete = f"{self.complete_of(sweep)}{planned} configurations complete"
                told[sweep.name] = f"sweep {sweep.name} {UNFINISHED[sweep.status]}: {complete}"
        return told


def choose_each(
    folders: Sequence[SweepFolder],
    objective: RankingObjective,
    *,
    front: bool = False,
    anyway: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Selection], list[LeebertError]]:
    """A choice per task among these sweeps, and what is wrong with sweeps or tasks that have none, naming them.

    Raises ConfigError where a sweep is named twice.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise ConfigError("a sweep is named twice, or two have the same name")
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
                say(f"warning: {line}")
    for sweeps in by_task.values():
        try:
            choices.append(choose(sweeps, objective, front=front, anyway=anyway, say=say))
        except LeebertError as error:
            named = ", ".join(s.name + (" (still running)" if s.status == "running" else "") for s in sweeps)
            errors.append(SweepError(f"sweep{'s' if len(sweeps) > 1 else ''} {named}: {error}"))
    return choices, errors


def choose(
    sweeps: Sequence[LoadedSweep],
    objective: RankingObjective,
    *,
    front: bool = False,
    anyway: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Selection:
    """The choice among sweeps of one task. `front` asks for the front however many cells there are.

    A configuration that is not distinguishable from the majority class is only chosen `anyway`.

    Left out, with a note, is a configuration of which logits that the objective takes can't be read. Raises SweepError
    where none has learned anything, and where no configuration is left; ConfigError where sweeps differ in data, folds,
    metric or seeds, and where no configuration reaches the speed-up.
    """
    require_alike(sweeps)
    _warn_of_one_exit(sweeps, say)
    owners: dict[str, Candidate] = {}
    for sweep in sweeps:
        for c in sweep.state.history():
            owners[c.id if len(sweeps) == 1 else f"{sweep.name}/{c.id}"] = Candidate(sweep, c)
    everything = tuple(dataclasses.replace(owner.configuration, id=key) for key, owner in owners.items())
    finished = complete(everything)
    curved = tuple(c for c in finished if not METHODS[c.values["algorithm"]].one_exit)
    if objective.kind != "score":
        if finished and not curved:
            raise ConfigError(f"{objective}: every complete configuration has one exit, and so one speed only")
        finished = curved
    candidates = {c.id: owners[c.id] for c in finished}
    replayed, no_front, gone = _curves_of(sweeps, objective, candidates, curved, front, say)
    if objective.kind != "score":
        finished = tuple(c for c in finished if c not in gone)
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
            f"{none_learned([margins[key] for key in unlearned])}; to write the best of them all the same: --anyway"
        )
    too_slow = {c.id for c in finished if not objective.in_reach(c, replayed)}
    if finished and len(too_slow.union(unlearned)) == len(finished):
        raise ConfigError(
            _none_reaches(objective, {k: c for k, c in candidates.items() if k not in unlearned}, replayed)
        )
    left_out = too_slow.union(unlearned)
    judged = objective.rescored(tuple(c for c in finished if c.id not in left_out) or everything, replayed)
    near = one_standard_error(judged)  # a SweepError where none is complete
    return Selection(
        task=sweeps[0].spec.task_name,
        objective=objective,
        sweeps=tuple(sweeps),
        candidates=candidates,
        ranked=ranking(judged),
        near=near,
        too_slow=tuple(c.id for c in finished if c.id in too_slow),
        front=tuple(pareto(tuple(c for c in curved if c.id not in unlearned), replayed)),
        no_front=no_front,
        margins=margins,
        unlearned=unlearned,
    )


def _curves_of(
    sweeps: Sequence[LoadedSweep],
    objective: RankingObjective,
    candidates: dict[str, Candidate],
    curved: Sequence[Configuration],
    front: bool,
    say: Callable[[str], None],
) -> tuple[dict[CellKey, Tradeoff], str, tuple[Configuration, ...]]:
    """The curves of the candidates' cells, why there is no front (else empty), and which of `curved` lack the curve of a cell.

    Raises SweepError where all lack one although the objective or `front` needs them.
    """
    needed = front or objective.kind != "score"
    cells = sum(len(candidate.configuration.cells) for candidate in candidates.values())
    if not needed and cells > FRONT_CELLS:
        return {}, f"it takes replaying the held-out logits of {cells} cells; --front does so", ()
    try:
        replayed = _replayed(sweeps, candidates, objective, say)
    except LeebertError as error:
        if needed:
            raise
        return {}, str(error), ()
    gone = _without_logits(curved, replayed)
    if gone and len(gone) == len(curved):
        no_front = "every complete configuration has a cell whose held-out logits are missing or damaged"
        if needed:
            raise SweepError(no_front)
        return replayed, no_front, gone
    if gone and objective.kind != "score":
        say(
            "note: left out of the choice, as held-out logits of a cell are missing or damaged: "
            + "; ".join(describe(candidates[c.id].configuration.values) for c in gone)
        )
    return replayed, "", gone


def _without_logits(curved: Sequence[Configuration], replayed: Mapping[CellKey, Tradeoff]) -> tuple[Configuration, ...]:
    """The configurations of which a cell has no curve."""
    return tuple(c for c in curved if any((c.id, cell.seed, cell.fold) not in replayed for cell in c.cells))


def _replayed(
    sweeps: Sequence[LoadedSweep],
    candidates: dict[str, Candidate],
    objective: RankingObjective,
    say: Callable[[str], None],
) -> dict[CellKey, Tradeoff]:
    """The curves of the candidates' cells, by the candidates' keys."""
    found: dict[CellKey, Tradeoff] = {}
    for sweep in sweeps:
        keys = {c.configuration.id: key for key, c in candidates.items() if c.sweep is sweep}
        # A network with one exit has one speed, and no curve.
        mine = {
            cell: record
            for cell, record in sweep.state.cells.items()
            if cell[0] in keys and len(record["exits"].get("score", ())) != 1
        }
        told = curves(
            sweep.folder.path, mine, sweep.manifest["metric"], objective.criterion, objective.patience, say=say
        )
        found |= {(keys[config], seed, fold): curve for (config, seed, fold), curve in told.items()}
    return found


def _warn_of_one_exit(sweeps: Sequence[LoadedSweep], say: Callable[[str], None]) -> None:
    methods = {a for sweep in sweeps for a in sweep.spec.algorithms}
    alone = sorted(a for a in methods if METHODS[a].one_exit)
    if alone and len(alone) < len(methods):
        say(
            f"note: {', '.join(alone)} has one exit, and its score is that exit's; of the others it is the mean over all exits, "
            "the shallow ones too"
        )


def _none_reaches(
    objective: RankingObjective, candidates: dict[str, Candidate], replayed: dict[CellKey, Tradeoff]
) -> str:
    slowest = {
        key: min((curve for cell, curve in replayed.items() if cell[0] == key), key=lambda curve: curve.fastest)
        for key in candidates
    }
    key = max(slowest, key=lambda k: slowest[k].fastest)
    curve = slowest[key]
    return (
        f"speed-up {objective.speed_up:g}: none of {len(candidates)} complete configurations reaches it; on its slowest "
        f"cell the fastest, {key} ({describe(candidates[key].configuration.values)}), under {objective.under} reaches "
        f"from {curve.slowest:.3g} to {curve.fastest:.2f} on {len(curve.exit_layers)} exits"
    )
