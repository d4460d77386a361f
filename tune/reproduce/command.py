"""`leebert-tune reproduce` from its options to its files: train what is missing, collect, measure, render."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import ConfigError, SweepError
from leebert.files import check_writable, write_atomically
from leebert.images.tasks import IMAGE_TASKS
from leebert.latency import LEAST_ROUNDS
from leebert.methods import METHODS, applies
from leebert.provenance import code_version
from tune.reproduce import drawing, rendering
from tune.reproduce.costs import measure
from tune.reproduce.paper import AIM, WINDOW, PaperFigure, PaperRow, PaperTable, aims, contaminated, is_papers
from tune.reproduce.plan import SEEDS, Allowance, Part, ReproductionPlan, ReproductionRequest, make_plan, slug
from tune.reproduce.results import Costs, Results, experiment_differences, read, write
from tune.reproduce.tables import TableRow, lines, networks
from tune.reproduce.training import Standing, collect, identity, jobs, run
from tune.store.folder import storage_root

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Reproduced:
    """What came of it. text: the table in Markdown, or where the figure is. missing: rows that lack seeds, in words.

    again: the command that goes on, empty where nothing is left. failed: whether a method was given up that may do better then.
    signal: the signal that ended the training, if one did.
    """

    target: str
    task: str
    backbone: str
    text: str
    files: tuple[Path, ...]
    missing: tuple[str, ...]
    again: str
    failed: bool
    signal: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "files": [str(path) for path in self.files]}


@dataclasses.dataclass
class Reasons:
    """Why cells are missing, by method and the share that it keeps: for good, or as long as the cause lasts.

    signal: what ended the training by hand, if anything did.
    """

    final: dict[tuple[str, float | None], str] = dataclasses.field(default_factory=dict)
    passing: dict[tuple[str, float | None], str] = dataclasses.field(default_factory=dict)
    signal: int | None = None


def reproduce(request: ReproductionRequest, *, train: bool = True, say: Say = print) -> Reproduced:
    """Train what is missing (unless told not to), collect it into the results file, and write the table or figure.

    Raises ConfigError for options that make no sense or a folder that can't be written, SweepError for results or sweeps
    of another experiment.
    """
    plan = make_plan(request)
    check_writable(request.out, "--out")
    if isinstance(plan.target, PaperTable):
        plan = plan.keeping(_methods_of(plan.stem.with_name(plan.stem.name + ".csv")))
    path = request.out / f"{plan.name}.parquet"
    results = read(path)
    _refuse_unread(plan, results)
    if train:
        results, seeds, reasons = _brought_up_to_date(plan, path, results, say)
    else:
        if results is None:
            raise SweepError(f"{path}: no such file, so there is nothing to show; without --no-run it is made")
        _refuse_others(path, results, _given(plan))
        seeds, reasons = _seeds(request, {cell.seed for cell in results.cells}), Reasons()
    return _rendered(plan, results, seeds, reasons)


def _brought_up_to_date(
    plan: ReproductionPlan, path: Path, results: Results | None, say: Say
) -> tuple[Results, tuple[int, ...], Reasons]:
    """The results with all that could be trained and measured, the seeds of a row, and why something is not there."""
    from tune.running.prepare import misfits, prepare
    from tune.space.spec import anchored

    request = plan.request
    spec = anchored(plan.any_spec())
    prepared = prepare(spec, storage_root(request.storage) / ".tokens")
    mine = identity(spec, prepared.facts)
    if results is not None:
        _refuse_others(path, results, mine)
        _say_of_code(results, say)
    results = results or Results(mine)
    seeds = _seeds(request, {cell.seed for cell in results.cells})
    allowance = Allowance(request.budget)
    reasons = Reasons()
    stopped = False
    begun = {part: Standing.all_of(plan, part) for part in plan.parts}
    for standing in (one for standings in begun.values() for one in standings):
        standing.check(mine)
    to_train: dict[Part, set[tuple[str, int]]] = {}
    for part, standings in begun.items():
        missing = _missing(part, standings, results, seeds)
        # Reads the weights: not where nothing is to be trained.
        unfit = misfits(plan.spec(part, part.methods, (0,)), prepared.problem) if missing else {}
        for method, error in unfit.items():
            if method in request.methods:
                raise ConfigError(f"--methods {method}: {error}")
            reasons.final[method, part.kept(method)] = f"{error} (left out)"
        to_train[part] = {(method, seed) for method, seed in missing if method not in unfit}
    for part, standings in begun.items():
        for job in jobs(part, standings, to_train[part]):
            if not stopped and not allowance.used_up:
                outcome = run(plan, job, allowance, say)
                stopped, reasons.signal = outcome.by_hand, outcome.signal
        for standing in Standing.all_of(plan, part):
            reasons.final.update({(method, part.kept(method)): why for method, why in standing.failed.items()})
            reasons.passing.update({(method, part.kept(method)): why for method, why in standing.broken.items()})
            results = results.with_cells(collect(standing, {cell.key for cell in results.cells}, aims(plan.task_name)))
        if results.cells:  # whatever happens next
            write(path, results)
    if isinstance(plan.target, PaperTable):
        wanted = networks(results)
        if wanted and not _costs_are_known(results.costs, wanted):
            say(f"timing {len(wanted)} network(s)")
            split = next(iter(prepared.facts["evaluated"]))
            device = request.device if request.device != "auto" or spec.resources.gpus else "cpu"
            costs = measure(prepared.problem, spec.train_config({}), split, wanted, device, say)
            results = dataclasses.replace(results, costs=costs)
            write(path, results)
    return results, seeds, reasons


def _shown(plan: ReproductionPlan, results: Results) -> tuple[PaperRow, ...]:
    """The rows that were asked for, those that there are, and those that the table had before."""
    return (
        *(row for row in plan.rows if plan.request.asks(row.method) or results.of(row.method, row.keep)),
        *(row for row in plan.kept if results.of(row.method, row.keep)),
    )


def _methods_of(table: Path) -> list[str]:
    """The methods of a table that an earlier command wrote; none where there is no such file."""
    try:
        with open(table, encoding="utf-8", newline="") as file:
            return [row["method"] for row in csv.DictReader(file) if row.get("method") in METHODS]
    except (OSError, ValueError, csv.Error):  # none yet, or no table of ours: it is written anew
        return []


def _given(plan: ReproductionPlan) -> dict[str, Any]:
    """Of what results belong to, what the request says: to be shown, they need none of the options repeated."""
    request = plan.request
    options = identity(plan.any_spec())
    paths = {assignment.partition("=")[0].strip() for assignment in request.set_}
    given = {
        "task": options["task"],
        "training": {o: v for o, v in options["training"].items() if request.best or f"training.{o}" in paths},
    }
    if request.pooling != ReproductionRequest.pooling:
        given["pooling"] = options["pooling"]
    for key, path in (("max_length", "max_length"), ("subset", "data.subset")):
        if any(one == path or one.startswith(f"{path}.") for one in paths):
            given[key] = options[key]
    return given


def _refuse_unread(plan: ReproductionPlan, results: Results | None) -> None:
    """ConfigError for an option that no method of the target reads, nor one that was trained with these results already.

    All methods share one set of options, of which those of a best file and the defaults need not apply to any.
    """
    methods = {row.method for row in plan.rows} | {cell.method for cell in (results.cells if results else ())}
    for assignment in plan.request.set_:
        section, _, option = assignment.partition("=")[0].strip().partition(".")
        if section == "training" and not any(applies(option, method) for method in methods):
            users = ", ".join(name for name in METHODS if applies(option, name))
            raise ConfigError(
                f"--set {assignment}: no row of {plan.target.name} reads {option}, only {users} (--methods adds rows)"
            )


def _refuse_others(path: Path, results: Results, mine: Mapping[str, Any]) -> None:
    if lines := experiment_differences(results.identity, mine):
        raise SweepError(
            f"{path} holds results of another experiment:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\ngive the same options, or another --name or --out"
        )


def _say_of_code(results: Results, say: Say) -> None:
    others = {cell.code for cell in results.cells} - {code_version()}
    if others:
        count = sum(cell.code in others for cell in results.cells)
        say(
            f"{count} cells are of other code ({', '.join(sorted(others))}, this is {code_version()}); they count as done"
        )


def _seeds(request: ReproductionRequest, existing: set[int]) -> tuple[int, ...]:
    """The seeds that every row is to have: as many as asked for, else as there are, else the paper's. More are shown, too."""
    return tuple(range(request.seeds or max(existing, default=-1) + 1 or SEEDS))


def _missing(
    part: Part, standings: Sequence[Standing], results: Results, seeds: tuple[int, ...]
) -> set[tuple[str, int]]:
    """(method, seed) of a part that is neither in the results nor in a sweep's folder, unless the method has failed there."""
    done = {cell for standing in standings for cell in standing.finished}
    failed = {method for standing in standings for method in standing.failed}
    return {
        (method, seed)
        for method in part.methods
        if method not in failed
        for seed in seeds
        if (method, seed) not in done and seed not in results.of(method, part.kept(method))
    }


def _costs_are_known(costs: Costs, wanted: Mapping[str, tuple[int, frozenset[str]]]) -> bool:
    """Whether every network was measured under every exit criterion, on a machine without other work."""
    return costs.sound and all(
        s in costs.parameters and criteria <= costs.seconds.get(s, {}).keys() for s, (_, criteria) in wanted.items()
    )


def _rendered(plan: ReproductionPlan, results: Results, seeds: tuple[int, ...], reasons: Reasons) -> Reproduced:
    request, target = plan.request, plan.target
    experiment = identity(plan.any_spec())
    missing, more, failed = _unfinished(plan, results, seeds, reasons)
    stem = plan.stem
    request.out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if isinstance(target, PaperFigure):
        text = _figure(plan, target, results, stem.with_name(stem.name + ".png"), written)
    else:
        page = _page(plan, target, results, missing)
        for ending, content in rendering.files(page).items():
            written.append(stem.with_name(stem.name + ending))
            write_atomically(written[-1], content)
        text = rendering.markdown(page)
    return Reproduced(
        target.name,
        plan.task_name,
        request.backbone,
        text,
        tuple(written),
        missing,
        request.again
        if more and not experiment_differences(results.identity, experiment)
        else "",  # options were left out of what is only shown
        failed,
        reasons.signal,
    )


def _figure(plan: ReproductionPlan, figure: PaperFigure, results: Results, path: Path, written: list[Path]) -> str:
    rows = [row for row in plan.rows if plan.request.asks(row.method)]
    curves = drawing.curves(figure, rows, results)
    if not curves:
        return f"{figure.title}: nothing to draw yet"
    seen = contaminated(plan.request.backbone, plan.task_name)
    title = f"{plan.task_name}, {slug(plan.request.backbone)}" + (", which has seen this task" if seen else "")
    if part := _rows_of_a_part(results):
        title += f", {part:,} training rows"
    drawing.draw(figure, title, _splits(results), curves).savefig(path, dpi=150)
    written.append(path)
    return f"{figure.title}: {', '.join(curve.label for curve in curves)}"


def _unfinished(
    plan: ReproductionPlan, results: Results, seeds: tuple[int, ...], reasons: Reasons
) -> tuple[tuple[str, ...], bool, bool]:
    """What the rows asked for lack, a sentence for each reason; whether the same command would bring more; and whether it
    is for a method that was given up."""
    why: dict[str, list[str]] = {}
    more = failed = False
    for row in plan.rows:
        lacking = len(set(seeds) - results.of(row.method, row.keep).keys())
        if not lacking or not plan.request.asks(row.method):
            continue
        key = row.method, row.keep
        if key in reasons.final:
            reason = reasons.final[key]
        else:
            reason, more = reasons.passing.get(key, f"{lacking} of {len(seeds)} seeds are still to be trained"), True
            failed |= key in reasons.passing
        why.setdefault(reason, []).append(row.title)
    return tuple(f"{reason}: {', '.join(titles)}" for reason, titles in why.items()), more, failed


def _page(plan: ReproductionPlan, table: PaperTable, results: Results, missing: tuple[str, ...]) -> rendering.TablePage:
    made = lines(table, _shown(plan, results), results, plan.task_name)
    backbone = plan.request.backbone
    return rendering.TablePage(
        table=table,
        task=plan.task_name,
        backbone=slug(backbone),
        same_backbone=is_papers(backbone, table.backbone),
        contaminated=contaminated(backbone, plan.task_name),
        lines=made,
        notes=(
            *_rests_on(table, plan.task_name, results, made),
            *_not_shown(plan, results),
            *(f"Not whole, {line}." for line in missing),
        ),
    )


def _not_shown(plan: ReproductionPlan, results: Results) -> list[str]:
    """What the results hold beside the table's rows."""
    shown = {row.method for row in (*plan.rows, *plan.kept)}
    others = dict.fromkeys(cell.method for cell in results.cells if cell.method not in shown)
    return [f"Trained in the same way, and shown by --methods: {', '.join(others)}."] if others else []


def _rows_of_a_part(results: Results) -> int:
    """How many of the training rows were trained on, 0 for all."""
    subset = results.identity.get("subset", "none")
    return 0 if subset == "none" else int(subset["rows"])


def _splits(results: Results) -> str:
    return " and ".join(results.identity.get("evaluated") or ("dev",))


def _rests_on(table: PaperTable, task: str, results: Results, made: tuple[TableRow, ...]) -> list[str]:
    """What the figures of a table rest on, a sentence each."""
    training = results.identity["training"]
    setting = (
        f"λ1 {training['lr_theta']:g}, gradients clipped at norm {training['clip_norm']:g}, batch {training['batch_size']}, at most {training['max_epochs']} epochs in a stage "
        "(epochs: all that trained)"
    )
    if part := _rows_of_a_part(results):
        setting = f"a stratified subset of {part:,} training rows; {setting}"
    if task not in IMAGE_TASKS:
        setting += f", pooling {results.identity['pooling']}"
    if table.kind == "costs":
        sentences = [
            "Minutes are of the wall clock, from a cell's start to the end of its best epoch (by the mean over exits on a held-out "
            f"tenth of the training split), what else the machine did included; mean ± standard error over seeds; {setting}."
        ]
    else:
        sentences = [
            f"Scores are the task's on {_splits(results)}, on which nothing was chosen, at the best epoch by the mean over exits on a "
            f"held-out tenth of the training split; mean ± standard error over seeds, which share these rows: p and intervals are of "
            f"training's chance alone, and say nothing of other data; all methods: {setting}."
        ]
        sentences += _off_the_aim(table.aim(task), made)
        if results.costs.seconds:
            sentences.append(
                "Speed-ups are against the fine-tuned network with one exit (until that is there, against all exits evaluated). "
                f"Times: batch size 1 on one thread, all networks in turn in one run ({results.costs.machine}), per exit the "
                f"median over rows of the fastest of {LEAST_ROUNDS} rounds or more, weighted by where the rows of {_splits(results)} leave."
            )
            if results.costs.rough:
                sentences.append(
                    f"The machine had other work: {results.costs.rough}, so the times are rough; the same command takes them again."
                )
    if not results.cells:
        return sentences
    trained = Counter(cell.runtime for cell in results.cells)
    on = (
        "; ".join(trained)
        if len(trained) == 1
        else "; ".join(f"{runtime} ({n} cells)" for runtime, n in trained.items())
    )
    return [
        *sentences,
        f"Trained on: {on}.",
        f"Code, by a digest of its sources: {', '.join(sorted({cell.code for cell in results.cells}))}.",
    ]


def _off_the_aim(aim: float, made: tuple[TableRow, ...]) -> list[str]:
    """The rows of which a seed's threshold is outside of the window around the speed-up aimed at, on held-out rows."""
    low, high = (aim * bound / AIM for bound in WINDOW)
    outside = [
        f"{line.title} {' to '.join(dict.fromkeys(f'{speed:.2f}' for speed in (min(line.held_out), max(line.held_out))))}"
        for line in made
        if any(not low <= speed <= high for speed in line.held_out)
    ]
    if not outside:
        return []
    return [
        f"Thresholds are chosen for a speed-up of {aim:g} in layers on held-out rows; with some seeds none gives one between "
        f"{low:.2f} and {high:.2f}: {', '.join(outside)}."
    ]
