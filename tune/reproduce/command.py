"""`leebert-tune reproduce`: train missing runs, collect finished ones, measure costs, render a table or figure."""

from __future__ import annotations

import csv
import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
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
from tune.reproduce.paper import AIM, WINDOW, PaperFigure, PaperRow, PaperTable, aims, contaminated, is_papers, slug
from tune.reproduce.plan import SEEDS, Allowance, Part, ReproductionPlan, ReproductionRequest, make_plan
from tune.reproduce.results import Costs, Results, experiment_differences, read, write
from tune.reproduce.tables import TableRow, lines, networks
from tune.reproduce.training import Standing, collect, identity, jobs, run
from tune.store.folder import storage_root

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Reproduced:
    """The results of the command.

    Attributes:
        target: The paper's table or figure.
        task: The task's name.
        backbone: The backbone.
        text: The table in Markdown, or the figure's description.
        files: The written files.
        missing: Why rows lack seeds, a sentence per reason.
        again: The command that continues; empty if nothing is missing.
        failed: Whether a method failed for a reason that may be gone at the next attempt.
        signal: The signal that ended the training; None if there was none.
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
        """Return the results, JSON-ready."""
        return {**dataclasses.asdict(self), "files": [str(path) for path in self.files]}


@dataclasses.dataclass
class Reasons:
    """Why runs are missing, by method and share kept.

    Attributes:
        final: Reasons that stay, such as divergence.
        passing: Reasons that may be gone at the next attempt.
        signal: The signal that ended the training; None if there was none.
    """

    final: dict[tuple[str, float | None], str] = dataclasses.field(default_factory=dict)
    passing: dict[tuple[str, float | None], str] = dataclasses.field(default_factory=dict)
    signal: int | None = None


def reproduce(request: ReproductionRequest, *, train: bool = True, allowance: Allowance | None = None) -> Reproduced:
    """Train missing runs, collect all finished ones into the results file, and write the table or figure.

    Args:
        request: The options.
        train: Whether to train; otherwise only the results file is rendered.
        allowance: The budget that several commands share; None: the request's own.

    Returns:
        The results.

    Raises:
        ConfigError: An option is wrong, or the folder can't be written.
        SweepError: Results or sweeps of another experiment have the same name, or there are no results to render.
    """
    plan = make_plan(request)
    check_writable(request.out, "--out")
    if isinstance(plan.target, PaperTable):
        plan = plan.keeping(_methods_of(plan.stem.with_name(plan.stem.name + ".csv")))
    path = request.out / f"{plan.name}.parquet"
    results = read(path)
    _refuse_unread(plan, results)
    if train:
        results, seeds, reasons = _updated(plan, path, results, allowance or Allowance(request.budget))
    else:
        if results is None:
            raise SweepError(f"{path}: no such file, so there are no results to render; train them without --no-run")
        _refuse_others(path, results, _given_options(plan))
        seeds, reasons = _seeds(request, {cell.seed for cell in results.cells}), Reasons()
    return _rendered(plan, results, seeds, reasons)


def _updated(
    plan: ReproductionPlan, path: Path, results: Results | None, allowance: Allowance
) -> tuple[Results, tuple[int, ...], Reasons]:
    """Train and measure as far as possible; return the results, the seeds of every row, and why runs are missing."""
    from tune.running.prepare import prepare
    from tune.space.spec import anchored

    request = plan.request
    spec = anchored(plan.any_spec())
    prepared = prepare(spec, storage_root(request.storage) / ".tokens")
    own_identity = identity(spec, prepared.facts)
    if results is not None:
        _refuse_others(path, results, own_identity)
        _report_code(results)
    results = results or Results(own_identity)
    seeds = _seeds(request, {cell.seed for cell in results.cells})
    reasons = Reasons()
    stopped = False
    begun = {part: Standing.all_of(plan, part) for part in plan.parts}
    for standing in (one for standings in begun.values() for one in standings):
        standing.check(own_identity)
    to_train = {
        part: _to_train(plan, part, _missing(part, standings, results, seeds), prepared.problem, reasons)
        for part, standings in begun.items()
    }
    for part, standings in begun.items():
        for job in jobs(part, standings, to_train[part]):
            if not stopped and not allowance.used_up:
                outcome = run(plan, job, allowance)
                stopped, reasons.signal = outcome.by_hand, outcome.signal
        for standing in Standing.all_of(plan, part):
            reasons.final.update({(method, part.kept(method)): why for method, why in standing.failed.items()})
            reasons.passing.update({(method, part.kept(method)): why for method, why in standing.broken.items()})
            results = results.with_cells(collect(standing, {cell.key for cell in results.cells}, aims(plan.task_name)))
        if results.cells:  # saved before the next part may fail
            write(path, results)
    if isinstance(plan.target, PaperTable):
        needed = networks(results)
        if needed and not _costs_are_known(results.costs, needed):
            log.info(f"timing {len(needed)} network(s)")
            split = next(iter(prepared.facts["evaluated"]))
            device = request.device if request.device != "auto" or spec.resources.gpus else "cpu"
            costs = measure(prepared.problem, spec.train_config({}), split, needed, device)
            results = dataclasses.replace(results, costs=costs)
            write(path, results)
    return results, seeds, reasons


def _to_train(
    plan: ReproductionPlan, part: Part, missing: set[tuple[str, int]], problem: Any, reasons: Reasons
) -> set[tuple[str, int]]:
    """Return the missing runs without methods that do not fit the network, which `reasons` gets; refuse requested ones."""
    from tune.running.prepare import misfits

    if not missing:
        return set()  # checking the methods would read the weights
    unfit = misfits(plan.spec(part, part.methods, (0,)), problem)
    for method, error in unfit.items():
        if method in plan.request.methods:
            raise ConfigError(f"--methods {method}: {error}")
        reasons.final[method, part.kept(method)] = f"{error} (omitted)"
    return {(method, seed) for method, seed in missing if method not in unfit}


def _shown(plan: ReproductionPlan, results: Results) -> tuple[PaperRow, ...]:
    """Return the rows to show: requested ones, those with results, and those that an earlier command added."""
    return (
        *(row for row in plan.rows if plan.request.includes(row.method) or results.of(row.method, row.keep)),
        *(row for row in plan.kept if results.of(row.method, row.keep)),
    )


def _methods_of(table: Path) -> list[str]:
    """Read the methods of a table that an earlier command wrote; none if there is no such file."""
    try:
        with open(table, encoding="utf-8", newline="") as file:
            return [row["method"] for row in csv.DictReader(file) if row.get("method") in METHODS]
    except (OSError, ValueError, csv.Error):  # no table yet, or a foreign file, which is overwritten
        return []


def _given_options(plan: ReproductionPlan) -> dict[str, Any]:
    """Return the part of the experiment's identity that the request states: rendering needs no option repeated."""
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
    """Raise ConfigError for a `--set` option that no method of the target or of the results reads.

    All methods share one set of options; those of a best file and the defaults need not apply to any method.
    """
    methods = {row.method for row in plan.rows} | {cell.method for cell in (results.cells if results else ())}
    for assignment in plan.request.set_:
        section, _, option = assignment.partition("=")[0].strip().partition(".")
        if section == "training" and not any(applies(option, method) for method in methods):
            users = ", ".join(row.name for row in METHODS.values() if applies(option, row.name))
            raise ConfigError(
                f"--set {assignment}: no row of {plan.target.name} reads {option}, only {users} (--methods adds rows)"
            )


def _refuse_others(path: Path, results: Results, own_identity: Mapping[str, Any]) -> None:
    """Raise SweepError if results belong to another experiment."""
    if lines := experiment_differences(results.identity, own_identity):
        raise SweepError(
            f"{path} holds results of another experiment:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\ngive the same options, or another --name or --out"
        )


def _report_code(results: Results) -> None:
    """Report runs that other code has trained; they count nevertheless."""
    others = {cell.code for cell in results.cells} - {code_version()}
    if others:
        count = sum(cell.code in others for cell in results.cells)
        log.info(
            f"{count} runs were trained by other code ({', '.join(sorted(others))}; this is {code_version()}) and are reused"
        )


def _seeds(request: ReproductionRequest, existing: set[int]) -> tuple[int, ...]:
    """Return the seeds of every row: as many as requested, else as the results have, else as the paper has."""
    return tuple(range(request.seeds or max(existing, default=-1) + 1 or SEEDS))


def _missing(
    part: Part, standings: Sequence[Standing], results: Results, seeds: tuple[int, ...]
) -> set[tuple[str, int]]:
    """Return (method, seed) that neither results nor sweeps have, without methods that diverged."""
    done = {cell for standing in standings for cell in standing.finished}
    failed = {method for standing in standings for method in standing.failed}
    return {
        (method, seed)
        for method in part.methods
        if method not in failed
        for seed in seeds
        if (method, seed) not in done and seed not in results.of(method, part.kept(method))
    }


def _costs_are_known(costs: Costs, needed: Mapping[str, tuple[int, frozenset[str]]]) -> bool:
    """Return whether every network was measured under every exit criterion, on an idle machine."""
    return costs.sound and all(
        s in costs.parameters and criteria <= costs.seconds.get(s, {}).keys() for s, (_, criteria) in needed.items()
    )


def _rendered(plan: ReproductionPlan, results: Results, seeds: tuple[int, ...], reasons: Reasons) -> Reproduced:
    """Write the table or figure, and describe missing results."""
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
    # A request that only renders may lack options, so that its command would train another experiment.
    continuing = more and not experiment_differences(results.identity, experiment)
    again = request.continue_command if continuing else ""
    return Reproduced(
        target.name, plan.task_name, request.backbone, text, tuple(written), missing, again, failed, reasons.signal
    )


def _figure(plan: ReproductionPlan, figure: PaperFigure, results: Results, path: Path, written: list[Path]) -> str:
    """Draw a figure and save it, unless no method has results yet; return its description."""
    rows = [row for row in plan.rows if plan.request.includes(row.method)]
    curves = drawing.curves(figure, rows, results)
    if not curves:
        return f"{figure.title}: no results to draw yet"
    in_pretraining = contaminated(plan.request.backbone, plan.task_name)
    title = f"{plan.task_name}, {slug(plan.request.backbone)}" + (
        " (pretraining used this task's data)" if in_pretraining else ""
    )
    if part := _subset_size(results):
        title += f", {part:,} training samples"
    drawing.draw(figure, title, _splits(results), curves).savefig(path, dpi=150)
    written.append(path)
    return f"{figure.title}: {', '.join(curve.label for curve in curves)}"


def _unfinished(
    plan: ReproductionPlan, results: Results, seeds: tuple[int, ...], reasons: Reasons
) -> tuple[tuple[str, ...], bool, bool]:
    """Describe the missing runs.

    Returns:
        A sentence per reason, whether the same command would train more, and whether that includes a failed method.
    """
    why: dict[str, list[str]] = {}
    more = failed = False
    for row in plan.rows:
        lacking = len(set(seeds) - results.of(row.method, row.keep).keys())
        if not lacking or not plan.request.includes(row.method):
            continue
        key = row.method, row.keep
        if key in reasons.final:
            reason = reasons.final[key]
        else:
            reason, more = reasons.passing.get(key, f"{lacking} of {len(seeds)} seeds are not trained yet"), True
            failed |= key in reasons.passing
        why.setdefault(reason, []).append(row.title)
    return tuple(f"{reason}: {', '.join(titles)}" for reason, titles in why.items()), more, failed


def _page(plan: ReproductionPlan, table: PaperTable, results: Results, missing: tuple[str, ...]) -> rendering.TablePage:
    """Collect the contents of a rendered table."""
    rows = lines(table, _shown(plan, results), results, plan.task_name)
    backbone = plan.request.backbone
    return rendering.TablePage(
        table=table,
        task=plan.task_name,
        backbone=slug(backbone),
        same_backbone=is_papers(backbone, table.backbone),
        contaminated=contaminated(backbone, plan.task_name),
        lines=rows,
        notes=(
            *_conditions(table, plan.task_name, results, rows),
            *_not_shown(plan, results),
            *(f"Incomplete: {line}." for line in missing),
        ),
    )


def _not_shown(plan: ReproductionPlan, results: Results) -> list[str]:
    """Name the methods of the results that the table does not show."""
    shown = {row.method for row in (*plan.rows, *plan.kept)}
    others = dict.fromkeys(cell.method for cell in results.cells if cell.method not in shown)
    return [f"Also trained, and shown by --methods: {', '.join(others)}."] if others else []


def _subset_size(results: Results) -> int:
    """Return the number of training samples of a subset; 0 for the whole split."""
    subset = results.identity.get("subset", "none")
    return 0 if subset == "none" else int(subset["rows"])


def _splits(results: Results) -> str:
    return " and ".join(results.identity.get("evaluated") or ("dev",))


def _conditions(table: PaperTable, task: str, results: Results, rows: tuple[TableRow, ...]) -> list[str]:
    """Describe the conditions of a table's numbers, one note each."""
    setting = _setting(task, results)
    if table.kind == "costs":
        sentences = [
            "Minutes are wall-clock time from the start of a run to the end of its best epoch (by the validation score: mean "
            "over exits on a tenth of the training split), including the effect of other work on the machine; mean ± standard "
            f"error over seeds; {setting}."
        ]
    else:
        sentences = [
            f"Scores are the task's on {_splits(results)}, which no choice depends on, at the best epoch by the validation "
            "score (mean over exits on a tenth of the training split); mean ± standard error over seeds. Seeds share these "
            "samples: p and intervals describe the randomness of training, not other data. "
            f"All methods: {setting}."
        ]
        sentences += _off_the_aim(table.aim(task), rows)
        sentences += _about_costs(results)
    if not results.cells:
        return sentences
    trained = Counter(cell.runtime for cell in results.cells)
    devices = trained if len(trained) == 1 else [f"{runtime} ({n} runs)" for runtime, n in trained.items()]
    return [
        *sentences,
        f"Trained on: {'; '.join(devices)}.",
        f"Digest of the code: {', '.join(sorted({cell.code for cell in results.cells}))}.",
    ]


def _setting(task: str, results: Results) -> str:
    """Describe the training options that all methods share."""
    training = results.identity["training"]
    setting = (
        f"λ1 {training['lr_theta']:g}, gradients clipped at norm {training['clip_norm']:g}, batch {training['batch_size']}, "
        f"at most {training['max_epochs']} epochs per stage (the column epochs counts all stages)"
    )
    if part := _subset_size(results):
        setting = f"a stratified subset of {part:,} training samples; {setting}"
    if task not in IMAGE_TASKS:
        setting += f", pooling {results.identity['pooling']}"
    return setting


def _about_costs(results: Results) -> list[str]:
    """Describe how wall-clock and operations speed-ups were measured; nothing if they were not."""
    if not results.costs.seconds:
        return []
    sentences = [
        "Speed-ups are against the fine-tuned network with one exit (until that is trained, against all exits evaluated). "
        f"Times: batch size 1 on one thread, all networks in turn in one run ({results.costs.machine}); per exit the median "
        f"over samples of the fastest of at least {LEAST_ROUNDS} rounds, weighted by the exits of the samples of "
        f"{_splits(results)}."
    ]
    if results.costs.rough:
        sentences.append(
            f"The times are rough, since the machine had other work: {results.costs.rough}; the same command measures them again."
        )
    return sentences


def _off_the_aim(aim: float, rows: tuple[TableRow, ...]) -> list[str]:
    """Name the rows with a seed whose layer speed-up on validation samples is outside the window around the aim."""
    low, high = (aim * bound / AIM for bound in WINDOW)
    outside = [
        f"{line.title} {' to '.join(dict.fromkeys(f'{speed:.2f}' for speed in (min(line.held_out), max(line.held_out))))}"
        for line in rows
        if any(not low <= speed <= high for speed in line.held_out)
    ]
    if not outside:
        return []
    return [
        f"Thresholds are chosen for a layer speed-up of {aim:g} on validation samples; for some seeds no threshold gives "
        f"{low:.2f} to {high:.2f}: {', '.join(outside)}."
    ]
