"""Pages to read: a comparison of two sides (`compare --html`), and a whole sweep (`report`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.errors import LeebertError, TrackingError
from leebert.evaluate import replay_point
from tune import figures
from tune.compare import rows, sentences
from tune.comparing import OnSweep, compare_sweep
from tune.crossval import held_out_path, load_held_out
from tune.folder import SweepFolder
from tune.history import Configuration, History, describe
from tune.importance import LEAST, TOGETHER, importances
from tune.ledger import State
from tune.names import algorithm_label
from tune.overview import spec_of, summary
from tune.page import Page
from tune.select import best, complete, one_standard_error, score
from tune.showing import again_by, experiment_of
from tune.space import SweepSpec
from tune.tracking_files import log_file
from tune.tracking_store import resolve_uri
from tune.tradeoff import CellKey, Objective, Tradeoff, curves_if_there, mean_curve, pareto
from tune.values import Range, Values

#: What the terms of ω are called in the paper.
TERMS = {"ce": "cross-entropy of the exit", "kd": "terms in which the exit is a student"}


def comparison_page(folder: SweepFolder, found: OnSweep, state: State) -> Page:
    """A minus B with its figures. `state` is the whole ledger's, with epochs."""
    scores = found.scores
    page = Page(f"{scores.a} against {scores.b} on {found.task}")
    page.text(f"Sweep {found.sweep}; {scores.option}: {scores.a} minus {scores.b}, paired on configurations and cells.")
    if found.running:
        page.text("The sweep is still running: this is what is there.")
    page.heading("Mean over exits, and each exit")
    page.table(rows(scores))
    page.text(*sentences(scores))
    for objective, comparison in found.at_speed_ups:
        page.heading(str(objective).capitalize())
        page.table(rows(comparison))
        page.text(*sentences(comparison))
    sides = {
        _named(scores.option, value): tuple(c for c in state.history() if c.values.get(scores.option) == value)
        for value in (scores.a, scores.b)
    }
    keys = [str(value) for value in (scores.a, scores.b)]
    colours = [figures.colour(key, i) for i, key in enumerate(keys)]
    page.heading("Depth")
    page.figure(
        figures.bands(
            {name: _depth(side) for name, side in sides.items()},
            "exit after layer",
            "held-out score, per cent",
            colours,
        ),
        "Score of each exit at the best epoch: mean over cells and configurations, and range over cells.",
    )
    tops = {name: best(side) for name, side in sides.items() if complete(side)}
    if len(tops) < 2:
        page.text("A side has no complete configuration yet, so no patience curves and no weights are drawn.")
        return page
    page.heading("Patience")
    metric = folder.manifest["metric"]
    page.figure(
        figures.patience({name: _patience(folder, state, c, metric) for name, c in tops.items()}, colours),
        "The best configuration of each side; rows leave when so many exits in a row agree. Means over cells.",
    )
    page.text(*(f"{name}: {describe(c.values)}" for name, c in tops.items()))
    page.heading("Learned weights over time")
    maps = {f"{name}: {TERMS[term]}": m for name, c in tops.items() for term, m in _omega(state, c).items()}
    if maps:
        page.figure(figures.heat_maps(maps), "ω of each exit by epoch, of the same configurations. Means over cells.")
    else:
        page.text("Neither side records learned weights.")
    return page


def sweep_page(folder: SweepFolder) -> Page:
    """All of a sweep: what was searched, best and front, learning curves, importance, comparisons, what went wrong."""
    spec, state = spec_of(folder), folder.ledger.read()
    history = state.history()
    page = Page(f"Sweep {folder.name} on {spec.task_name}")
    if folder.driver() is not None:
        page.text("The sweep is still running: this is what is there.")
    page.heading("What was searched")
    page.table(_searched(folder, spec, state), numbers=False)
    if not complete(history):
        page.text("No configuration has finished all its cells yet.")
    else:
        replayed = curves_if_there(folder.path, state.cells, folder.manifest["metric"])
        _chosen(page, state, replayed)
        _importance(page, spec, history)
        _compared(page, folder, spec, state, replayed)
    page.heading("All configurations, best first")
    page.table(_configurations(folder, spec, state))
    troubles = [
        (describe(state.configs[config].values), r["reason"], str(r["message"]).strip().splitlines()[-1][:160])
        for config, known in state.failures.items()
        for r in known
    ]
    if troubles:
        page.heading("Failures")
        page.table([("configuration", "kind", "message"), *troubles], numbers=False)
    return page


def deliver(
    page: Page, path: Path, folder: SweepFolder, *, tracking_uri: str | None = None, say: Callable[[str], None]
) -> Path:
    """Write a page, and put it beside the sweep's run in MLflow; where that can't be done, say so and go on."""
    spec = spec_of(folder)
    page.write(path)
    try:
        uri, again = resolve_uri(tracking_uri or spec.tracking.uri), again_by(folder, tracking_uri)
        say(f"{path}, and in MLflow: {log_file(uri, experiment_of(spec), folder.name, path, again=again)}")
    except TrackingError as error:
        say(f"{path}; not logged to MLflow: {error}")
    return path


def _searched(folder: SweepFolder, spec: SweepSpec, state: State) -> list[tuple[object, ...]]:
    counts = {
        name: sum(c.state == name for c in state.history()) for name in ("complete", "pruned", "failed", "running")
    }
    manifest = folder.manifest
    return [
        ("what", "value"),
        ("algorithms", ", ".join(map(algorithm_label, spec.algorithms))),
        *((option, _values(values)) for option, values in spec.space.items()),
        ("searcher, pruner", f"{spec.searcher.name}, {spec.pruner.name}"),
        ("cells of a configuration", f"{len(spec.cells())}: {spec.folds} folds × {len(spec.seeds)} seeds"),
        ("configurations", ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "none"),
        ("fold-epochs", state.fold_epochs),
        ("hours of training", f"{state.epoch_seconds / 3600:.2f}"),
        ("rows", manifest["rows"]),
        ("data", manifest["data_fingerprint"]),
        ("code", manifest["code"]),
    ]


def _values(values: Values) -> str:
    if isinstance(values, Range):
        return f"{values.low:g} to {values.high:g}" + (", log" if values.log else "")
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values.values)


def _chosen(page: Page, state: State, replayed: Mapping[CellKey, Tradeoff]) -> None:
    """Best, its equals, the front, and how scores grew."""
    history = state.history()
    top = best(history)
    exits = _depth((top,))[1]
    page.heading("Best")
    page.text(
        f"{describe(top.values)}: {100 * score(top).mean:.2f} over {len(top.scores)} cells "
        "(cross-validated mean over exits, in per cent)."
    )
    page.table(
        [
            ("exit", *range(1, len(exits) + 1)),
            ("score", *(f"{s:.2f}" for s in exits)),
        ]
    )
    near = [r for r in one_standard_error(history) if r.configuration.id != top.id]
    page.text(f"{len(near)} other configuration(s) lie within one standard error of it.")
    if near:
        rest = ((describe(r.configuration.values), f"{100 * r.score.mean:.2f}") for r in near)
        page.table([("within one standard error", "score"), *rest])
    _front(page, state, replayed)
    page.heading("Learning curves")
    page.figure(
        figures.learning(
            [(algorithm_label(a), figures.colour(a, i), mean, c.id == top.id) for a, i, c, mean in _learning(state)]
        ),
        "Mean over cells, one line per complete configuration; the best is thick.",
    )


def _front(page: Page, state: State, replayed: Mapping[CellKey, Tradeoff]) -> None:
    finished = complete(state.history())
    curves = []
    for position, c in enumerate(finished):
        mine = [replayed[c.id, k.seed, k.fold] for k in c.cells if (c.id, k.seed, k.fold) in replayed]
        if mine:
            layers, scores = mean_curve(mine)
            name = str(c.values["algorithm"])
            curves.append((algorithm_label(name), figures.colour(name, position), layers, 100 * scores))
    points = pareto(finished, replayed)
    if not points:
        return
    page.heading("Score against mean layers")
    page.figure(
        figures.front(curves, [(p.layers, 100 * p.score) for p in points]),
        "Held-out logits under normalised entropy at rising thresholds; the front is what no configuration beats.",
    )
    changes = [next(group) for _, group in itertools.groupby(points, key=lambda p: p.configuration)]
    page.table(
        [
            ("on the front from", "layers", "score"),
            *(
                (describe(state.configs[p.configuration].values), f"{p.layers:.2f}", f"{100 * p.score:.2f}")
                for p in changes
            ),
        ]
    )


def _importance(page: Page, spec: SweepSpec, history: History) -> None:
    page.heading("Importance")
    found = importances(spec, history)
    if not found:
        page.text(f"It takes {LEAST} complete configurations of one algorithm that differ in options and score.")
        return
    named = {name if name == TOGETHER else algorithm_label(name): shares for name, shares in found.items()}
    page.figure(
        figures.shares(named),
        "Share of the variance of the cross-validated score that an option explains (functional ANOVA).",
    )


def _compared(
    page: Page, folder: SweepFolder, spec: SweepSpec, state: State, replayed: Mapping[CellKey, Tradeoff]
) -> None:
    page.heading("Algorithms, paired")
    for a, b in itertools.combinations(spec.algorithms, 2):
        try:
            found = compare_sweep(
                folder, a, b, objectives=[Objective.of("speed-up=2")], state=state, replayed=replayed or None
            )
        except LeebertError as error:
            page.text(f"{algorithm_label(a)} and {algorithm_label(b)}: {error}")
            continue
        page.text(*(line.verdict for line in found.scores.lines))
        if found.scores.tuned is not None:
            page.text(found.scores.tuned.verdict)
        for objective, comparison in found.at_speed_ups:
            page.text(*(f"{objective}: {line.verdict}" for line in comparison.lines))
    if len(spec.algorithms) < 2:
        page.text("The sweep has one algorithm.")


def _configurations(folder: SweepFolder, spec: SweepSpec, state: State) -> list[tuple[object, ...]]:
    table: list[tuple[object, ...]] = [("configuration", "score", "sd", "cells", "state")]
    for row in summary(folder, spec, state)["configurations"]:
        points = ["" if row[k] is None else f"{100 * row[k]:.2f}" for k in ("score_mean", "score_std")]
        told = row["state"]
        if row["configuration"] in state.pruned:
            r = state.pruned[row["configuration"]]
            told += f" at epoch {r['epoch'] + 1} of seed {r['seed']} fold {r['fold']}"
        table.append(
            (describe(row["values"]), *points, row["cells"], ", ".join(filter(None, (told, row["placement"]))))
        )
    return table


# Numbers of figures.


def _named(option: str, value: Any) -> str:
    return algorithm_label(value) if option == "algorithm" else f"{option} {value}"


def _depth(side: History) -> figures.Band:
    """Of each exit in per cent: mean, lowest and highest over cells, each a mean over configurations."""
    by_cell: dict[tuple[int, int], list[tuple[float, ...]]] = {}
    for c in side:
        for cell in c.cells:
            if cell.state == "finished" and cell.best is not None and cell.best.exits:
                by_cell.setdefault((cell.seed, cell.fold), []).append(cell.best.exits)
    means = 100 * np.array([np.mean(exits, axis=0) for exits in by_cell.values()])
    return np.arange(1, means.shape[1] + 1), means.mean(axis=0), means.min(axis=0), means.max(axis=0)


def _patience(folder: SweepFolder, state: State, c: Configuration, metric: str) -> list[tuple[int, float, float]]:
    """(patience, mean layers, mean score in per cent) over a configuration's cells."""
    cells = [load_held_out(held_out_path(folder.path, state.cells[c.id, k.seed, k.fold]))[0] for k in c.cells]
    told = []
    for p in range(1, len(cells[0].logits)):
        points = [replay_point(cell, metric, "patience", float(p)) for cell in cells]
        layers, scores = zip(*((q.layers, q.measures["score"]) for q in points), strict=True)
        told.append((p, float(np.mean(layers)), 100 * float(np.mean(scores))))
    return told


def _by_epoch(records: Iterable[Mapping[int, Mapping[str, Any]]], pick: Any) -> list[Any]:
    """The mean of something over the cells that reached each epoch."""
    epochs = list(records)
    last = max(max(known) for known in epochs)
    return [np.mean([pick(known[e]) for known in epochs if e in known], axis=0) for e in range(last + 1)]


def _omega(state: State, c: Configuration) -> dict[str, np.ndarray]:
    """(exits, epochs) of each term that is recorded for every epoch."""
    records = [state.epochs[c.id, k.seed, k.fold] for k in c.cells]
    weights = [r["weights"] for known in records for r in known.values()]
    terms = [t for t in TERMS if all(t in w for w in weights)]
    return {t: np.stack(_by_epoch(records, lambda r, t=t: r["weights"][t])).T for t in terms}


def _learning(state: State) -> Sequence[tuple[str, int, Configuration, list[float]]]:
    """Algorithm, its place, configuration, and its score in per cent by epoch."""
    finished = complete(state.history())
    algorithms = sorted({str(c.values["algorithm"]) for c in finished})
    told = []
    for c in finished:
        records = [state.epochs[c.id, k.seed, k.fold] for k in c.cells]
        mean = [100 * float(v) for v in _by_epoch(records, lambda r: r["score"])]
        name = str(c.values["algorithm"])
        told.append((name, algorithms.index(name), c, mean))
    return told
