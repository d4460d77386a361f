"""A table as Markdown, CSV and LaTeX: ours and the paper's side by side, and notes on what the figures rest on."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable

from tune.analysis.stats import Interval
from tune.reproduce.paper import Table
from tune.reproduce.tables import Estimate, Line, best_rival


@dataclasses.dataclass(frozen=True)
class Page:
    """All that a table says. notes: a sentence each, without the sentences on significance."""

    table: Table
    task: str
    backbone: str
    same_backbone: bool
    contaminated: bool
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.table.title}: {self.task}, {self.backbone}"

    @property
    def papers(self) -> str:
        """What the paper's columns are headed by."""
        return "paper" if self.same_backbone else f"paper (another backbone: {self.table.backbone})"

    @property
    def in_paper(self) -> bool:
        """Whether the paper has this task."""
        return self.task in self.table.tasks


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its heading, and what it says of a line."""

    heading: str
    text: Callable[[Line], str]
    left: bool = False


def columns(page: Page) -> list[Column]:
    """A table's columns: scores at a speed, or what training costs."""
    mark = "†" if page.contaminated else ""
    subject = next((line.row.title for line in page.lines if line.row.role == "subject"), "")
    found = [Column("method", lambda line: line.row.title, left=True)]
    if page.table.kind == "costs":
        whole_time = next((line.minutes for line in page.lines if line.row.role == "base"), None)
        found += [
            Column("minutes", lambda line: _estimate(line.minutes) if line.by_seed else "not run"),
            Column("seeds", lambda line: str(len(line.by_seed) or "")),
            Column("epochs", lambda line: _number(line.epochs, ".3g")),
            Column("times the base's", lambda line: _ratio(line.minutes, whole_time)),
            Column("parameters", lambda line: _millions(line.parameters)),
        ]
        if page.in_paper:
            whole = next(row.paper[page.task] for row in page.table.rows if row.role == "base")
            found += [
                Column(f"{page.papers}: minutes", lambda line: _number(line.row.paper.get(page.task), ".1f")),
                Column("times its base's", lambda line: _number(_over(line.row.paper.get(page.task), whole), ".2f")),
            ]
        return found
    found += [
        Column(f"score{mark}", lambda line: _estimate(line.score, 100) if line.by_seed else "not run"),
        Column("seeds", lambda line: str(len(line.by_seed) or "")),
        Column("epochs", lambda line: _number(line.epochs, ".3g")),
        Column("speed-up: layers", lambda line: _number(line.layers, ".2f")),
        Column("time", lambda line: _number(line.time, ".2f")),
        Column("operations", lambda line: _number(line.operations, ".2f")),
        Column("parameters", lambda line: _millions(line.parameters)),
        Column(f"{subject} − this, p", lambda line: _margin(line.margin)),
    ]
    if page.in_paper:
        found += [
            Column(f"{page.papers}: score", lambda line: _number(line.row.paper.get(page.task), ".1f")),
            Column("speed-up", lambda line: _number(line.row.speed_ups.get(page.task), ".2f")),
        ]
    return found


def markdown(page: Page) -> str:
    """The whole page: a heading, the table, and the notes as a list."""
    cols = columns(page)
    rows = [
        "| " + " | ".join(c.heading for c in cols) + " |",
        "| " + " | ".join("---" if c.left else "---:" for c in cols) + " |",
        *("| " + " | ".join(c.text(line).replace("|", "\\|") for c in cols) + " |" for line in page.lines),
    ]
    return "\n".join([f"# {page.title}", "", *rows, "", *(f"- {note}" for note in notes(page)), ""])


def latex(page: Page) -> str:
    """A `tabular` for the package booktabs, the notes as comments."""
    cols = columns(page)
    body = [" & ".join(_tex(c.text(line)) for c in cols) + r" \\" for line in page.lines]
    return "\n".join(
        [
            *(f"% {note}" for note in (page.title, *notes(page))),
            rf"\begin{{tabular}}{{{''.join('l' if c.left else 'r' for c in cols)}}}",
            r"\toprule",
            " & ".join(_tex(c.heading) for c in cols) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


_FIELDS = (
    "row", "method", "seeds", "epochs", "score", "standard_error", "speed_up_layers", "speed_up_held_out", "speed_up_time",
    "speed_up_operations", "parameters", "minutes_to_best", "minutes_standard_error", "margin", "margin_low",
    "margin_high", "margin_p", "paper", "paper_speed_up", "paper_backbone",
)  # fmt: skip


def comma_separated(page: Page) -> str:
    """All figures in full: scores and margins as fractions, the paper's as it prints them; what is unknown is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_FIELDS)
    for line in page.lines:
        score, minutes, margin = line.score, line.minutes, line.margin
        writer.writerow(
            "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
            for value in (
                line.row.title, line.row.method, len(line.by_seed), line.epochs, score and score.mean, score and score.error,
                line.layers, line.held_out, line.time, line.operations, line.parameters,
                minutes and minutes.mean, minutes and minutes.error,
                margin and margin.mean, margin and margin.low, margin and margin.high, margin and margin.p,
                line.row.paper.get(page.task), line.row.speed_ups.get(page.task), page.table.backbone,
            )
        )  # fmt: skip
    return out.getvalue()


def notes(page: Page) -> list[str]:
    """What there is to say below the table."""
    said = [] if page.table.kind == "costs" else _verdicts(page)
    if page.contaminated:
        said.append(f"† {page.backbone} has seen {page.task} before it was trained on it here, as its card says.")
    if not page.in_paper:
        said.append(f"The paper's {page.table.name} has no {page.task}, so there is no column of its numbers.")
    return [*said, *page.notes]


def _verdicts(page: Page) -> list[str]:
    said = []
    for group in dict.fromkeys(line.row.group for line in page.lines):
        rival = best_rival(page.lines, group)
        subject = next((x for x in page.lines if x.row.group == group and x.row.role == "subject"), None)
        if subject is None:
            continue
        if rival is None or rival.margin is None:
            said.append(f"{subject.row.title}: no rival shares two seeds with it, so nothing can be compared.")
            continue
        m = rival.margin
        interval = f"simultaneous 95 % interval {100 * m.low:+.2f} to {100 * m.high:+.2f}, Holm's p {m.p:.3f}"
        better = f"{subject.row.title if m.mean > 0 else rival.row.title} is better"
        verdict = better if m.known and m.p < 0.05 else "the data cannot tell"
        said.append(
            f"{subject.row.title} minus {rival.row.title}, the best rival: {100 * m.mean:+.2f} points over {m.cells} paired "
            f"seeds ({interval if m.known else 'all seeds differ alike, so no interval'}): {verdict}."
        )
    return said


def _estimate(estimate: Estimate | None, scale: float = 1.0) -> str:
    if estimate is None:
        return ""
    spread = "" if math.isnan(estimate.error) else f" ± {scale * estimate.error:.2f}"
    return f"{scale * estimate.mean:.2f}{spread}"


def _margin(margin: Interval | None) -> str:
    if margin is None:
        return ""
    return f"{100 * margin.mean:+.2f}" + (f", {margin.p:.3f}" if margin.known else "")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f}M"


def _over(value: float | None, whole: float) -> float | None:
    return None if value is None else value / whole


def _ratio(value: Estimate | None, whole: Estimate | None) -> str:
    return f"{value.mean / whole.mean:.2f}" if value and whole and whole.mean else ""


_TEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "−": "$-$", "†": r"\dag{}", "→": r"$\to$"}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def files(page: Page) -> dict[str, str]:
    """The table in each form, by the ending of its file."""
    return {".md": markdown(page), ".csv": comma_separated(page), ".tex": latex(page)}
