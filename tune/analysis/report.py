"""The page of `report`: everything about one sweep."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

from leebert import live
from leebert.errors import LeebertError
from leebert.tradeoff import SPEED_UP, Tradeoff, mean_curve
from tune.analysis import charts, figures
from tune.analysis.compare_html import draw_best
from tune.analysis.compare_sweeps import OnSweep, at_speed_ups, compare_pool
from tune.analysis.compare_text import PAIR_COLUMNS, pair_rows
from tune.analysis.html import HtmlPage
from tune.analysis.importance import FORESTS, LEAST, TOGETHER, TOP_LEAST, importances
from tune.analysis.labels import algorithm_label, short_names
from tune.analysis.learned import conclusion
from tune.analysis.overview import count_states, majority_note, summary, without_unlearned
from tune.analysis.stats import USEFUL
from tune.analysis.sweeps import SweepPool
from tune.analysis.tradeoff import RankingObjective, curves_or_none, pareto
from tune.analysis.verdict import choose_sides
from tune.analysis.verdict_html import add_verdict
from tune.analysis.wording import others_in_words, runs_in_words, span
from tune.space import SweepSpec
from tune.space.values import Range, Values
from tune.store.curves import FEWEST, layers_needed, stored
from tune.store.folder import SweepFolder
from tune.store.history import CellKey, History
from tune.store.ledger import LedgerRecord, SweepState
from tune.store.ranking import best, cells_of, completed, exit_scores, one_standard_error, score

#: The comparison of each pair of methods, or why there is none.
Comparisons = dict[tuple[str, str], OnSweep | str]


def sweep_page(folder: SweepFolder) -> HtmlPage:
    """Make the page: verdict, best configuration and front, learning curves, importance, comparisons, failures, space."""
    pool = SweepPool.of(folder, epochs=True)
    spec, state = pool.spec, pool.state
    page = HtmlPage(f"Sweep {folder.name} on {spec.task_name}")
    if pool.unfinished:
        page.text(f"{pool.unfinished[0].upper()}{pool.unfinished[1:]}: the results are preliminary.")
    replayed: dict[CellKey, Tradeoff] = {}
    if not completed(state.history()):
        page.text(f"No configuration has finished all its runs{' yet' if pool.unfinished else ''}.")
    else:
        replayed = curves_or_none(folder.path, _with_curves(state), folder.manifest["metric"])
        comparisons = _comparisons(pool, replayed)
        _verdicts(page, comparisons)
        _chosen(page, pool, replayed)
        _by_algorithm(page, pool)
        live.phase("computing the importance of each option")
        _importance(page, spec, state.history())
        live.phase("drawing the page")
        _compared(page, comparisons)
    page.heading("All configurations, best first")
    page.table(_configurations(folder, spec, state, replayed))
    page.text(f"layers: {FEWEST}.")
    names = _names(state.history())
    failures = [
        (names[config], r["reason"], _last_line(str(r["message"])))
        for config, records in state.failures.items()
        for r in records
    ]
    if failures:
        page.heading("Failures")
        page.table([("configuration", "kind", "message"), *failures], numbers=False)
    page.heading("Search space")
    page.table(_searched(folder, spec, state), numbers=False)
    return page


def _names(history: History) -> dict[str, str]:
    """Name every configuration by what differs between them, by their ids."""
    return dict(zip((c.id for c in history), short_names([c.values for c in history]), strict=True))


def _comparisons(pool: SweepPool, replayed: Mapping[CellKey, Tradeoff]) -> Comparisons:
    """Compare all pairs of methods, first the one of the verdict; that one at all its speed-ups, the others at one."""
    algorithms = pool.spec.algorithms
    if len(algorithms) < 2:
        return {}
    main = choose_sides([pool.sweeps[0].folder])
    others = (pair for pair in itertools.combinations(algorithms, 2) if set(pair) != set(main))
    compared: Comparisons = {}
    for pair in live.track((main, *others), "comparing pairs of methods"):
        objectives = at_speed_ups() if pair == main else [RankingObjective.of(f"speed-up={SPEED_UP:g}")]
        try:
            compared[pair] = compare_pool(pool, *pair, objectives=objectives, replayed=replayed or None)
        except LeebertError as error:
            compared[pair] = str(error)
    return compared


def _verdicts(page: HtmlPage, comparisons: Comparisons) -> None:
    """Add the verdict on the first two methods with its figures, and the sentences on all others."""
    verdicts = [result.verdict for result in comparisons.values() if not isinstance(result, str)]
    if not verdicts:
        return
    add_verdict(page, verdicts[0])
    if len(verdicts) > 1:
        page.heading("The other pairs of methods")
        page.text(*(f"{verdict.sentence}." for verdict in verdicts[1:]))


def _with_curves(state: SweepState) -> dict[CellKey, LedgerRecord]:
    """Return the runs of completed configurations that can have a curve: a model with one exit has a single speed."""
    return {
        key: record
        for key, record in state.cells.items()
        if state.configs[key[0]].state == "complete" and len(record["exits"].get("score", ())) != 1
    }


def _last_line(text: str) -> str:
    """Return the last line of a long message."""
    return (text.strip().splitlines() or [""])[-1][:160]


def _searched(folder: SweepFolder, spec: SweepSpec, state: SweepState) -> list[tuple[object, ...]]:
    counts = count_states(state.history(), folder.driver() is not None)
    manifest = folder.manifest
    return [
        ("setting", "value"),
        ("methods", ", ".join(map(algorithm_label, spec.algorithms))),
        *((option, _values(values)) for option, values in spec.space.items()),
        ("searcher, pruner", f"{spec.searcher.name}, {spec.pruner.name}"),
        (
            "runs of a configuration",
            f"{len(spec.cells())}: {spec.folds} folds × {len(spec.seeds)} seed{'s' if len(spec.seeds) > 1 else ''}",
        ),
        ("configurations", ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "none"),
        ("fold-epochs", state.fold_epochs),
        ("hours of training", f"{state.epoch_seconds / 3600:.2f}"),
        ("samples", manifest["rows"]),
        ("data", manifest["data_fingerprint"]),
        ("code", manifest["code"]),
    ]


def _values(values: Values) -> str:
    if isinstance(values, Range):
        return f"{values.low:g} to {values.high:g}" + (", log" if values.log else "")
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values.values)


def _chosen(page: HtmlPage, pool: SweepPool, replayed: Mapping[CellKey, Tradeoff]) -> None:
    """Add the best configuration, those within one standard error, the front and the learning curves."""
    state = pool.state
    margins = pool.margins
    history = without_unlearned(state.history(), margins)
    top, names = best(history), _names(state.history())
    page.heading("Best")
    page.text(
        f"{names[top.id]}: {100 * score(top).mean:.2f} over {runs_in_words(len(top.scores))} "
        "(cross-validated mean over exits, in per cent)."
    )
    if margins:
        page.text(f"Against the majority class: {conclusion(list(margins.values()))}.")
    if layers := _layers(state, top.id, replayed):
        page.text(f"Layers needed: {layers} ({FEWEST}).")
    page.table(_exits({"score": (top,)}, pool))
    few = len(top.scores) < USEFUL
    interval = "Too few runs for intervals" if few else "95 % CI by the corrected resampled t over runs"
    page.text(f"{interval}. The configuration was selected as the best, so its scores are optimistic.")
    near = [r for r in one_standard_error(history) if r.configuration.id != top.id]
    page.text(f"{others_in_words(len(near))} within one standard error of it.")
    if near:
        rest = ((names[r.configuration.id], f"{100 * r.score.mean:.2f}") for r in near)
        page.table([("configuration", "score"), *rest])
    _front(page, history, replayed, names)
    page.heading("Learning curves")
    page.figure(
        (
            charts.learning(
                [
                    (algorithm_label(a), figures.colour(a, i), names[c.id], mean, c.id == top.id)
                    for a, i, c, mean in figures.learning_curves(state)
                ]
            ),
            "Mean over runs, one line per completed configuration, up to the end of its shortest run; the best is thick.",
        )
    )


def _front(page: HtmlPage, history: History, replayed: Mapping[CellKey, Tradeoff], names: Mapping[str, str]) -> None:
    finished = completed(history)
    curves = []
    for position, c in enumerate(finished):
        curves_of_runs = [replayed[c.id, k.seed, k.fold] for k in c.cells if (c.id, k.seed, k.fold) in replayed]
        if curves_of_runs:
            layers, scores = mean_curve(curves_of_runs)
            name = str(c.values["algorithm"])
            tint = figures.colour(name, position)
            curves.append((algorithm_label(name), tint, names[c.id], layers, 100 * scores))
    points = pareto(finished, replayed)
    if not points:
        return
    page.heading("Score against mean exit layer")
    page.figure(
        (
            charts.front(curves, [(p.layers, 100 * p.score, names[p.configuration]) for p in points]),
            "From the validation logits, under normalised entropy. On the Pareto front, no other configuration has a higher "
            "score at the same mean exit layer.",
        )
    )
    changes = [next(group) for _, group in itertools.groupby(points, key=lambda p: p.configuration)]
    page.table(
        [
            ("configuration on the Pareto front", "from mean exit layer", "score"),
            *((names[p.configuration], f"{p.layers:.2f}", f"{100 * p.score:.2f}") for p in changes),
        ]
    )


def _by_algorithm(page: HtmlPage, pool: SweepPool) -> None:
    """Add the scores by exit, the patience curves and the weights of each method."""
    finished = completed(pool.state.history())
    names = [a for a in pool.spec.algorithms if any(c.values["algorithm"] == a for c in finished)]
    colours = [figures.colour(a, i) for i, a in enumerate(names)]
    groups = {algorithm_label(a): tuple(c for c in finished if c.values["algorithm"] == a) for a in names}
    page.heading("Exits of each method")
    table = _exits(groups, pool)
    if len(table) > 1:
        scores = {name: exit_scores(side, cells_of(side)) for name, side in groups.items()}
        bands = {name: figures.band_of(of, pool.score_interval) for name, of in scores.items()}
        words = figures.band_in_words(min(len(cells_of(side)) for side in groups.values()))
        page.figure(
            (
                charts.bands(bands, "exit layer", "validation score (%)", colours),
                f"Score of each exit at the best epoch, averaged over completed configurations: {words}.",
            )
        )
        page.table(table)
        page.text(
            "95 % CI over runs (corrected resampled t). A method's mean depends on the configurations that were tried."
        )
    draw_best(page, pool, {name: best(side) for name, side in groups.items()}, colours)


def _exits(groups: Mapping[str, History], pool: SweepPool) -> list[tuple[str, ...]]:
    """Return a row per exit: its score over runs with its interval, in per cent; only the header without recorded exits."""
    columns: list[tuple[str, ...]] = []
    for name, side in groups.items():
        intervals = [pool.score_interval(column.tolist()) for column in exit_scores(side, cells_of(side)).T]
        texts = (f"{100 * i.mean:.2f}" + (f" ({span(i)})" if i.useful else "") for i in intervals)
        columns += [(name, *texts)] if intervals else []
    exits = ("exit", *map(str, range(1, max(map(len, columns), default=1))))
    return list(itertools.zip_longest(exits, *columns, fillvalue=""))  # methods with one exit have one row


def _importance(page: HtmlPage, spec: SweepSpec, history: History) -> None:
    page.heading("Importance")
    by_method = importances(spec, history)
    if not by_method:
        page.text(f"Importance needs {LEAST} completed configurations of one method that differ in options and score.")
        return
    page.figure(
        *(
            (
                charts.shares(
                    f"{name if name == TOGETHER else algorithm_label(name)}, n = {of.configurations}",
                    {option: dataclasses.astuple(share) for option, share in of.shares.items()},
                ),
                "",
            )
            for name, of in by_method.items()
        )
    )
    page.text(
        "n completed configurations, without pruned and failed ones. Functional ANOVA: share of the score's variance that "
        f"the option alone explains (main effects only; mean and range over {FORESTS} forests). PED-ANOVA: the option's "
        f"share in what distinguishes the best quarter (at least {TOP_LEAST}) from the others."
    )


def _compared(page: HtmlPage, comparisons: Comparisons) -> None:
    """Add a table of all pairs of methods, each warning once, and the number of tests."""
    page.heading("Paired comparisons of methods")
    if not comparisons:
        page.text("The sweep has one method.")
        return
    size = 0
    warnings: list[str] = []
    table: list[tuple[str, ...]] = []
    for (a, b), result in comparisons.items():
        if isinstance(result, str):
            page.text(f"{algorithm_label(a)} and {algorithm_label(b)}: {result}")
            continue
        size += result.size
        table += pair_rows(result)
        warnings += result.scores.warnings
        for objective, comparison in result.at_speed_ups:
            if isinstance(comparison, str):
                reason = f"no comparison at layer speed-up {objective.speed_up:g}: {comparison}"
                page.text(f"{algorithm_label(a)} and {algorithm_label(b)}: {reason}")
            else:
                warnings += comparison.warnings
    if table:
        page.table([PAIR_COLUMNS, *table])
        page.text(
            "pairs: configurations of both methods that agree in all other options, and how many are dropped because one of "
            "the two has not finished. tuned: the best configuration of each side on the other folds."
        )
    page.text(*(f"Warning: {warning}" for warning in dict.fromkeys(warnings)))
    page.text(
        f"This page holds {size} tests at the 5 % level, not adjusted for their number: with no real difference, about "
        f"{0.05 * size:.1f} of them would still be significant."
    )


def _layers(state: SweepState, config: str, replayed: Mapping[CellKey, Tradeoff]) -> str:
    """Return the layers needed by a completed configuration, where its runs have curves; recorded ones first."""
    if state.configs[config].state != "complete":
        return ""
    ends = [r for r in state.cells_of.get(config, ()) if r["score"] is not None]
    needed = layers_needed(ends, lambda r: stored(r) or replayed.get((r["config"], r["seed"], r["fold"])))
    return "" if needed is None else f"{needed:.2f}"


def _configurations(
    folder: SweepFolder, spec: SweepSpec, state: SweepState, replayed: Mapping[CellKey, Tradeoff]
) -> list[tuple[object, ...]]:
    table: list[tuple[object, ...]] = [("configuration", "score", "sd", "layers", "runs", "state")]
    names = _names(state.history())
    for row in summary(folder, spec, state)["configurations"]:
        points = ["" if row[k] is None else f"{100 * row[k]:.2f}" for k in ("score_mean", "score_std")]
        status = ", ".join(filter(None, (row["state"], majority_note(row))))
        if row["configuration"] in state.pruned:
            r = state.pruned[row["configuration"]]
            status += f" at epoch {r['epoch'] + 1} of seed {r['seed']} fold {r['fold']}"
        table.append(
            (
                names[row["configuration"]],
                *points,
                _layers(state, row["configuration"], replayed),
                row["cells"],
                ", ".join(filter(None, (status, row["placement"]))),
            )
        )
    return table
