"""Render a table as Markdown, CSV and LaTeX: reproduced and printed numbers side by side, and notes on the conditions."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Sequence

from tune.analysis.stats import Interval
from tune.reproduce.paper import PaperTable
from tune.reproduce.tables import LEAST_TESTED, Estimate, TableRow, best_baseline


@dataclasses.dataclass(frozen=True)
class TablePage:
    """The contents of a rendered table.

    Attributes:
        table: The paper's table.
        task: The task's name.
        backbone: The backbone's short name.
        same_backbone: Whether the backbone is the paper's.
        contaminated: Whether the backbone's pretraining used the task's data.
        lines: The rows.
        notes: Notes of one sentence each, without those on significance.
    """

    table: PaperTable
    task: str
    backbone: str
    same_backbone: bool
    contaminated: bool
    lines: tuple[TableRow, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.table.title}: {self.task}, {self.backbone}"

    @property
    def papers(self) -> str:
        """The heading of the paper's columns."""
        return "paper" if self.same_backbone else f"paper (another backbone: {self.table.backbone})"

    @property
    def in_paper(self) -> bool:
        """Whether the paper has this task."""
        return self.task in self.table.tasks


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its heading, the text of a row's cell, and whether it is flush left."""

    heading: str
    text: Callable[[TableRow], str]
    align_left: bool = False


def columns(page: TablePage) -> list[Column]:
    """Return a table's columns: scores at a layer speed-up, or costs of training."""
    mark = "†" if page.contaminated else ""
    subjects = [line.title for line in page.lines if line.row.role == "subject"]
    subject = subjects[0] if len(subjects) == 1 else "LeeBERT under the same exit criterion"
    result = [Column("method", lambda line: line.title, align_left=True)]
    if page.table.kind == "costs":
        whole_time = next((line.minutes for line in page.lines if line.row.role == "base"), None)
        result += [
            Column("minutes", lambda line: estimate(line.minutes) if line.by_seed else "not run"),
            Column("seeds", lambda line: str(len(line.by_seed) or "")),
            Column("epochs", lambda line: number(line.epochs, ".3g")),
            Column("× base", lambda line: _ratio(line.minutes, whole_time)),
            Column("parameters", lambda line: _millions(line.parameters)),
        ]
        if page.in_paper:
            whole = next(row.paper[page.task] for row in page.table.rows if row.role == "base")
            result += [
                Column(f"{page.papers}: minutes", lambda line: number(line.row.paper.get(page.task), ".1f")),
                Column("× its base", lambda line: number(_over(line.row.paper.get(page.task), whole), ".2f")),
            ]
        return result
    result += [
        Column(f"score{mark}", lambda line: estimate(line.score, 100) if line.by_seed else "not run"),
        Column("seeds", lambda line: str(len(line.by_seed) or "")),
        Column("epochs", lambda line: number(line.epochs, ".3g")),
        Column("layer speed-up", lambda line: number(line.layers, ".2f")),
        Column("wall-clock speed-up", lambda line: number(line.time, ".2f")),
        Column("operations speed-up", lambda line: number(line.operations, ".2f")),
        Column("parameters", lambda line: _millions(line.parameters)),
        Column(f"{subject} − this, p (paired seeds)", lambda line: margin_text(line.margin)),
    ]
    if page.in_paper:
        result += [
            Column(f"{page.papers}: score", lambda line: number(line.row.paper.get(page.task), ".1f")),
            Column("paper: layer speed-up", lambda line: number(line.row.speed_ups.get(page.task), ".2f")),
        ]
    return result


def markdown(page: TablePage) -> str:
    """Render as Markdown: a heading, the table, and the notes as a list."""
    cols = columns(page)
    rows = [
        "| " + " | ".join(c.heading for c in cols) + " |",
        "| " + " | ".join("---" if c.align_left else "---:" for c in cols) + " |",
        *("| " + " | ".join(c.text(line).replace("|", "\\|") for c in cols) + " |" for line in page.lines),
    ]
    return "\n".join([f"# {page.title}", "", *rows, "", *(f"- {note}" for note in notes(page)), ""])


def latex(page: TablePage) -> str:
    """Render as a LaTeX `tabular` (package booktabs), with the notes in small print below it."""
    cols = columns(page)
    body = [" & ".join(tex(c.text(line)) for c in cols) + r" \\" for line in page.lines]
    return "\n".join(
        [
            f"% {page.title}",
            rf"\begin{{tabular}}{{{''.join('l' if c.align_left else 'r' for c in cols)}}}",
            r"\toprule",
            " & ".join(tex(c.heading) for c in cols) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
            r"{\footnotesize",
            *(tex(note) + r"\par" for note in notes(page)),
            "}",
            "",
        ]
    )


def comma_separated(page: TablePage) -> str:
    """Render as CSV with all digits: scores and margins as fractions, the paper's numbers as printed, unknown ones empty.

    Values per seed are joined by semicolons.
    """
    records = [_record(page, line) for line in page.lines]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: "" if v is None or (isinstance(v, float) and math.isnan(v)) else v for k, v in record.items()}
        for record in records
    )
    return out.getvalue()


def _record(page: TablePage, line: TableRow) -> dict[str, str | float | None]:
    about: dict[str, str | float | None] = {
        "row": line.title, "method": line.row.method, "seeds": len(line.by_seed), "epochs": line.epochs,
        "parameters": line.parameters, "paper": line.row.paper.get(page.task), "paper_backbone": page.table.backbone,
    }  # fmt: skip
    if page.table.kind == "costs":
        minutes = line.minutes or Estimate(math.nan, math.nan)
        return {**about, "minutes_to_best": minutes.mean, "minutes_standard_error": minutes.error}
    score = line.score or Estimate(math.nan, math.nan)
    m = line.margin
    margin = (m.mean, m.low, m.high, m.p, m.cells) if m else (None,) * 5
    return {
        **about, "score": score.mean, "standard_error": score.error, "contaminated": str(page.contaminated).lower(),
        "thresholds": _joined(line.thresholds), "speed_up_held_out": _joined(line.held_out),
        "speed_up_layers": line.layers, "speed_up_time": line.time, "speed_up_operations": line.operations,
        **dict(zip(("margin", "margin_low", "margin_high", "margin_p", "margin_seeds"), margin, strict=True)), "paper_speed_up": line.row.speed_ups.get(page.task),
    }  # fmt: skip


def _joined(values: Sequence[float | None]) -> str:
    return ";".join(f"{value:.6g}" for value in values if value is not None)


def notes(page: TablePage) -> list[str]:
    """Return the notes below the table: comparisons with the best baseline first."""
    sentences = [] if page.table.kind == "costs" else _verdicts(page)
    if page.contaminated:
        sentences.append(
            f"† The pretraining of {page.backbone} used the data of {page.task}, according to its model card."
        )
    if not page.in_paper:
        sentences.append(f"The paper's {page.table.name} has no {page.task}, so its columns are omitted.")
    return [*sentences, *page.notes]


def _verdicts(page: TablePage) -> list[str]:
    """Compare each group's own method with the best equally fast baseline, a sentence each."""
    sentences = []
    for group in dict.fromkeys(line.row.group for line in page.lines):
        baseline = best_baseline(page.lines, group)
        subject = next((x for x in page.lines if x.row.group == group and x.row.role == "subject"), None)
        if subject is None:
            continue
        if baseline is None or baseline.margin is None:
            sentences.append(
                f"{subject.title}: no baseline of equal layer speed-up shares two seeds with it, so none is compared."
            )
            continue
        m = baseline.margin
        better = f"{subject.title if m.mean > 0 else baseline.title} is better"
        verdict = better if m.defined and m.p < 0.05 else "no significant difference"
        sentences.append(
            f"{subject.title} ({subject.layers:.2f}× layer speed-up) minus {baseline.title} ({baseline.layers:.2f}×), the best "
            f"baseline that is as fast: {100 * m.mean:+.2f} points over {m.cells} paired "
            f"seeds ({_certainty(m)}): {verdict}."
        )
    return sentences


def _certainty(margin: Interval) -> str:
    if margin.defined:
        return f"simultaneous 95 % CI {100 * margin.low:+.2f} to {100 * margin.high:+.2f}, Holm's p {margin.p:.3f}"
    if margin.cells < LEAST_TESTED:
        return f"not tested: a test needs {LEAST_TESTED} shared seeds"
    return "all paired differences are equal, so there is no interval"


def estimate(value: Estimate | None, scale: float = 1.0) -> str:
    """Format a mean and its standard error, times `scale`; empty without a value."""
    if value is None:
        return ""
    spread = "" if math.isnan(value.error) else f" ± {scale * value.error:.2f}"
    return f"{scale * value.mean:.2f}{spread}"


def margin_text(margin: Interval | None) -> str:
    """Format a margin in points, with its p if it was tested, and the number of seeds."""
    if margin is None:
        return ""
    return f"{100 * margin.mean:+.2f}" + (f", {margin.p:.3f}" if margin.defined else "") + f" ({margin.cells})"


def number(value: float | None, form: str) -> str:
    """Format a number; empty without a value."""
    return "" if value is None else format(value, form)


def _millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f}M"


def _over(value: float | None, whole: float) -> float | None:
    return None if value is None else value / whole


def _ratio(value: Estimate | None, whole: Estimate | None) -> str:
    return f"{value.mean / whole.mean:.2f}" if value and whole and whole.mean else ""


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": "$<$",
    ">": "$>$",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "±": r"$\pm$",
    "−": "$-$",
    "†": r"\dag{}",
    "→": r"$\to$",
    "×": r"$\times$",
    "λ": r"$\lambda$",
}


def tex(text: str) -> str:
    """Escape a text for LaTeX."""
    return "".join(_TEX.get(c, c) for c in text)


def files(page: TablePage) -> dict[str, str]:
    """The table in each form, by the ending of its file."""
    return {".md": markdown(page), ".csv": comma_separated(page), ".tex": latex(page)}
