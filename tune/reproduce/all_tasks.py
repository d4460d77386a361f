"""`leebert-tune reproduce --tasks`: one table over several tasks, with each method's mean score and mean speed-up."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leebert.console import table
from leebert.errors import SweepError
from leebert.files import write_atomically
from tune.reproduce.command import Reproduced, reproduce
from tune.reproduce.paper import TARGETS, PaperRow, PaperTable, contaminated, is_papers, slug
from tune.reproduce.plan import ALL, Allowance, ReproductionRequest, make_plan
from tune.reproduce.rendering import estimate, margin_text, number, tex
from tune.reproduce.results import Results, read
from tune.reproduce.tables import Estimate, TableRow, compared, lines

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TasksTable:
    """A table over several tasks.

    Attributes:
        table: The paper's table.
        backbone: The backbone's short name.
        rows: The rows, with scores and margins of the mean over tasks.
        by_task: Task → its rows, in the order of `rows`; only tasks with results.
        absent: Tasks without results.
        contaminated: Tasks whose data the backbone's pretraining used.
        another_backbone: The paper's backbone if it is another one; else empty.
    """

    table: PaperTable
    backbone: str
    rows: tuple[TableRow, ...]
    by_task: dict[str, tuple[TableRow, ...]]
    absent: tuple[str, ...]
    contaminated: tuple[str, ...]
    another_backbone: str

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.by_task)

    @property
    def title(self) -> str:
        count = f"{len(self.tasks)} task{'s' if len(self.tasks) > 1 else ''}"
        return f"{self.table.title}: {count} ({', '.join(self.tasks)}), {self.backbone}"

    @property
    def papers_title(self) -> str:
        """The heading of the paper's numbers."""
        return "The paper's numbers" + (
            f" (another backbone: {self.another_backbone})" if self.another_backbone else ""
        )

    def paper_mean(self, row: PaperRow) -> float | None:
        """The mean of the paper's scores over the shown tasks; None unless it has all of them."""
        return _mean([row.paper.get(task) for task in self.tasks])

    def paper_speed_up(self, row: PaperRow) -> float | None:
        """The mean of the paper's layer speed-ups over the shown tasks; None unless it has all of them."""
        return _mean([row.speed_ups.get(task) for task in self.tasks])


def reproduce_tasks(request: ReproductionRequest, *, train: bool = True) -> Reproduced:
    """Reproduce a table on each of the request's tasks, then write one table over all of them.

    The budget covers all tasks together. Tasks without results are named below the table.

    Args:
        request: The options; `tasks` names the tasks.
        train: Whether to train; otherwise only results files are rendered.

    Returns:
        The results; `files` has the tables of single tasks, too.

    Raises:
        ConfigError: An option is wrong.
        SweepError: No task has results.
    """
    requests = {task: _of_one(request, task) for task in request.tasks}
    plans = {task: make_plan(one) for task, one in requests.items()}  # all options are checked before the first trains
    allowance = Allowance(request.budget)
    made: list[Reproduced] = []
    stopped: int | None = None
    for task, one in requests.items():
        path = one.out / f"{plans[task].name}.parquet"
        training = train and stopped is None and not allowance.used_up
        if not training and not path.exists():
            continue
        log.info(f"{request.target}: {task}")
        made.append(reproduce(one, train=training, allowance=allowance))
        stopped = stopped or made[-1].signal
    results = {task: read(requests[task].out / f"{plan.name}.parquet") for task, plan in plans.items()}
    with_results = {task: one for task, one in results.items() if one is not None and one.cells}
    if not with_results:
        raise SweepError(f"{request.out}: no results of any task; train them without --no-run")
    page = _page(request, plans[request.tasks[0]].rows, with_results)
    stem = request.out / "-".join([request.target, _named(request), slug(request.backbone)])
    written = [Path(f"{stem}{ending}") for ending in (".md", ".csv", ".tex")]
    for path, content in zip(written, (markdown(page), comma_separated(page), latex(page)), strict=True):
        write_atomically(path, content)
    missing = [f"{one.task}: {line}" for one in made for line in one.missing]
    missing += [f"no results of {', '.join(page.absent)}"] if page.absent else []
    more = page.absent or any(one.again for one in made)
    return Reproduced(
        request.target, ", ".join(request.tasks), request.backbone, summary(page),
        (*(path for one in made for path in one.files), *written), tuple(missing),
        request.continue_command if more and train else "", any(one.failed for one in made), stopped,
    )  # fmt: skip


def _of_one(request: ReproductionRequest, task: str) -> ReproductionRequest:
    """Return the request for one of its tasks; a name gets the task's name appended."""
    name = f"{request.name}-{task}" if request.name else None
    return dataclasses.replace(request, task=task, tasks=(), name=name)


def _named(request: ReproductionRequest) -> str:
    """Name the tasks in the names of files."""
    every = TARGETS[request.target].tasks
    return ALL if tuple(request.tasks) == every else "-".join(request.tasks)


def _page(request: ReproductionRequest, rows: Sequence[PaperRow], results: dict[str, Results]) -> TasksTable:
    """Compute the rows on every task, and their means over tasks."""
    target = TARGETS[request.target]
    assert isinstance(target, PaperTable)
    shown = [
        row
        for row in rows
        if request.includes(row.method) or any(one.of(row.method, row.keep) for one in results.values())
    ]
    by_task = {task: lines(target, shown, one, task) for task, one in results.items()}
    means = [_over_tasks([of_task[i] for of_task in by_task.values()]) for i in range(len(shown))]
    return TasksTable(
        table=target,
        backbone=slug(request.backbone),
        rows=compared(means),
        by_task=by_task,
        absent=tuple(task for task in request.tasks if task not in results),
        contaminated=tuple(task for task in results if contaminated(request.backbone, task)),
        another_backbone="" if is_papers(request.backbone, target.backbone) else target.backbone,
    )


def _over_tasks(rows: Sequence[TableRow]) -> TableRow:
    """Average a row over tasks, by seed, over the seeds that all tasks have; without a score if a task lacks it."""
    seeds = set.intersection(*(set(row.by_seed) for row in rows))
    by_seed = {seed: float(np.mean([row.by_seed[seed] for row in rows])) for seed in sorted(seeds)}
    return TableRow(
        rows[0].row,
        by_seed,
        rows[0].title,
        score=Estimate.of(list(by_seed.values())),
        layers=_mean([row.layers for row in rows]),
        time=_mean([row.time for row in rows]),
        operations=_mean([row.operations for row in rows]),
        parameters=rows[0].parameters,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a value is missing, since means over different tasks can't be compared."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present and len(present) == len(values) else None


def _tables(page: TasksTable) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Return the headings, the rows, and the paper's rows."""
    marks = {task: "†" if task in page.contaminated else "" for task in page.tasks}
    subject = next((row.title for row in page.rows if row.row.role == "subject"), "LeeBERT")
    headings = [
        "method",
        *(f"{task}{marks[task]}" for task in page.tasks),
        "mean",
        "layer speed-up",
        "wall-clock speed-up",
    ]
    ours = []
    for i, row in enumerate(page.rows):
        scores = [estimate(one[i].score, 100) if one[i].by_seed else "not run" for one in page.by_task.values()]
        speed_ups = [number(row.layers, ".2f"), number(row.time, ".2f")]
        ours.append([row.title, *scores, estimate(row.score, 100), *speed_ups, margin_text(row.margin)])
    papers = [
        [
            row.row.title, *(number(row.row.paper.get(task), ".1f") for task in page.tasks),
            number(page.paper_mean(row.row), ".2f"), number(page.paper_speed_up(row.row), ".2f"),
        ]
        for row in page.rows
        if row.row.paper
    ]  # fmt: skip
    return [*headings, f"{subject} − this in the mean, p (paired seeds)"], ours, papers


def notes(page: TasksTable) -> list[str]:
    """Return the notes below the table."""
    sentences = [
        "Scores are the tasks', in per cent, mean ± standard error over seeds; the pages of the single tasks describe their "
        "conditions. The mean over tasks uses the seeds that all tasks have, and is empty for a row that lacks a task. "
        "Speed-ups are arithmetic means over tasks.",
    ]
    if page.absent:
        sentences.append(f"No results yet: {', '.join(page.absent)}. The paper's means are over the shown tasks, too.")
    if page.contaminated:
        sentences.append(
            f"† The pretraining of {page.backbone} used the data of {', '.join(page.contaminated)}, according to its model card."
        )
    return sentences


def markdown(page: TasksTable) -> str:
    """Render as Markdown: our table, the paper's numbers for the same tasks, and the notes."""
    headings, ours, papers = _tables(page)
    lines_ = [f"# {page.title}", "", *_grid(headings, ours), "", f"{page.papers_title}:", ""]
    return "\n".join([*lines_, *_grid(_papers_headings(page), papers), "", *(f"- {note}" for note in notes(page)), ""])


def summary(page: TasksTable) -> str:
    """Render the means over tasks as a table for the terminal, and the notes."""
    from rich.console import Console

    headings = ["method", "mean score", "paper", "layers", "wall-clock", "LeeBERT − this"]
    cells = [
        [
            row.title, estimate(row.score, 100) or "not run", number(page.paper_mean(row.row), ".2f"),
            number(row.layers, ".2f"), number(row.time, ".2f"), margin_text(row.margin),
        ]
        for row in page.rows
    ]  # fmt: skip
    out = io.StringIO()
    caption = "Means over tasks; layers and wall-clock: speed-ups; LeeBERT − this: points, p (paired seeds)."
    shown = table(headings, cells, title=page.title, whole=6, caption=caption, lean=True)
    Console(file=out, width=100).print(shown)
    return "\n".join([*(line.rstrip() for line in out.getvalue().splitlines()), "", *notes(page)])


def _papers_headings(page: TasksTable) -> list[str]:
    return ["method", *page.tasks, "mean", "layer speed-up"]


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    aligned = ["---", *["---:"] * (len(headings) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (headings, aligned, *rows)]


def latex(page: TasksTable) -> str:
    """Render our table and the paper's numbers as two LaTeX `tabular` (package booktabs), with the notes below."""
    headings, ours, papers = _tables(page)
    parts = [f"% {page.title}"]
    for columns, rows in ((headings, ours), (_papers_headings(page), papers)):
        body = [" & ".join(map(tex, cells)) + r" \\" for cells in rows]
        heading = " & ".join(map(tex, columns)) + r" \\"
        parts += [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule", heading, r"\midrule", *body]
        parts += [r"\bottomrule", r"\end{tabular}", ""]
    parts.insert(parts.index("") + 1, f"% {page.papers_title}")
    return "\n".join([*parts, r"{\footnotesize", *(tex(note) + r"\par" for note in notes(page)), "}", ""])


def comma_separated(page: TasksTable) -> str:
    """Render as CSV with all digits, one line per row and task, and one for the mean over tasks (`task` is `mean`)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["row", "method", "task", "seeds", "score", "standard_error", "speed_up_layers", "speed_up_time", "margin",
         "margin_low", "margin_high", "margin_p", "margin_seeds", "paper", "paper_speed_up"]
    )  # fmt: skip
    tables = [*page.by_task.items(), ("mean", page.rows)]
    for task, rows in tables:
        for row in rows:
            mean = task == "mean"
            paper = page.paper_mean(row.row) if mean else row.row.paper.get(task)
            speed_up = page.paper_speed_up(row.row) if mean else row.row.speed_ups.get(task)
            score = row.score or Estimate(math.nan, math.nan)
            m = row.margin
            margin = (m.mean, m.low, m.high, m.p, m.cells) if m else (None,) * 5
            values = [score.mean, score.error, row.layers, row.time, *margin, paper, speed_up]
            plain = ["" if v is None or (isinstance(v, float) and math.isnan(v)) else v for v in values]
            writer.writerow([row.title, row.row.method, task, len(row.by_seed), *plain])
    return out.getvalue()
