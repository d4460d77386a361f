"""`leebert-tune reproduce table3`: the options that the paper's search selected per task, beside those of best files."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import ConfigError, LeebertError, nearest
from leebert.files import check_writable, write_atomically
from leebert.methods import METHODS, applies
from tune.analysis.labels import SYMBOLS
from tune.models.best_file import BestFile, read_best
from tune.reproduce.command import Reproduced
from tune.reproduce.paper import SETTINGS, TABLE_1, TABLE_3, is_papers, slug
from tune.reproduce.rendering import tex

#: The options of table 3, with their symbols.
OPTIONS = {option: SYMBOLS[option] for option in ("lr_theta", "lr_omega", "batch_size", "cycle_length")}

#: The method whose options table 3 has.
_PAPERS = next(row.method for row in TABLE_1.rows if row.role == "subject")

_TITLE = "Selected options: the paper's and those of best files"


@dataclasses.dataclass(frozen=True)
class SettingsRow:
    """The options of one task.

    Attributes:
        task: The task's name.
        paper: The paper's value of each of :data:`OPTIONS`; empty for a task that it lacks.
        file: The best file; None if there is none.
    """

    task: str
    paper: dict[str, float]
    file: BestFile | None = None

    @property
    def method(self) -> str:
        return self.file.config.training.algorithm if self.file else ""

    @property
    def backbone(self) -> str:
        return slug(self.file.config.model.backbone) if self.file else ""

    @property
    def options(self) -> dict[str, Any]:
        """The best file's value of each of :data:`OPTIONS` that its method reads."""
        if self.file is None:
            return {}
        training = self.file.config.training
        return {option: getattr(training, option) for option in OPTIONS if applies(option, self.method)}

    @property
    def score(self) -> float | None:
        """The validation score of the best file, a fraction."""
        return float(self.file.found["score_mean"]) if self.file else None

    @property
    def configurations(self) -> int | None:
        """The number of configurations that the best file was selected from."""
        return self.file.found.get("complete_configurations") if self.file else None


def reproduce_settings(best: Path, tasks: Sequence[str], out: Path) -> Reproduced:
    """Write the paper's options beside those of best files.

    Args:
        best: A folder of best files, or one of them.
        tasks: The tasks to show; none: the paper's, and those of best files.
        out: The folder of the table.

    Returns:
        The table and its files.

    Raises:
        ConfigError: `best` does not exist, neither table has a task, or `out` can't be written.
    """
    check_writable(out, "--out")
    files, refused = _best_files(best)
    every = [*SETTINGS, *sorted(files.keys() - SETTINGS.keys())]
    for task in tasks:
        if task not in every:
            raise ConfigError(
                f"--task {task}: neither the paper's table 3 nor {best} has it{nearest(task, every)}; choose from "
                f"{', '.join(every)}"
            )
    shown = tasks or every
    rows = [SettingsRow(task, dict(SETTINGS.get(task, {})), files.get(task)) for task in shown]
    notes = [*_notes(rows, best), *(f"Not shown: {reason}." for reason in refused)]
    text = _markdown(rows, notes)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for ending, content in ((".md", text), (".csv", _comma_separated(rows)), (".tex", _latex(rows, notes))):
        written.append(out / f"{TABLE_3}{ending}")
        write_atomically(written[-1], content)
    lacking = [row.task for row in rows if row.file is None]
    missing = (f"no best file of {', '.join(lacking)}",) if lacking else ()
    return Reproduced(TABLE_3, ", ".join(shown), "", text, tuple(written), missing, "", False)


def _best_files(best: Path) -> tuple[dict[str, BestFile], list[str]]:
    """Read best files, by task; of several of one task, the newest. Also return why files are not shown."""
    if best.is_file():
        file = read_best(best)
        return {file.task_name: file}, []
    if not best.is_dir():
        raise ConfigError(
            f"--best {best}: no such file or folder; give the folder of the files that `leebert-tune best` writes"
        )
    files: dict[str, BestFile] = {}
    refused = []
    for path in sorted(best.glob("*.yaml"), key=lambda path: path.stat().st_mtime):
        try:
            file = read_best(path)
        except LeebertError as error:
            refused.append(" ".join(str(error).split()))
            continue
        if earlier := files.get(file.task_name):
            refused.append(f"{earlier.path} is of the same task as {path}, which is newer")
        files[file.task_name] = file
    return files, refused


def _notes(rows: Sequence[SettingsRow], best: Path) -> list[str]:
    """Describe what the columns hold, and where the two searches differ."""
    notes = [
        "The paper searched λ1 {1e-5, 2e-5, 3e-5, 5e-5}, λ2 {1e-5, 1e-4, 1e-3, 5e-3}, batch {16, 32, 128} and C {2, 4, 8} "
        "for CLO-v2 with ALBERT-base. λ1 = 1e-5 (5 tasks) and λ2 = 1e-5 (3 tasks) are the lower ends of its grid.",
        f"Best files: {best}. Their score is the cross-validated mean over all exits, in per cent, which the paper does "
        "not report. –: the method does not read the option.",
    ]
    if others := sorted(
        {r.backbone for r in rows if r.file and not is_papers(r.file.config.model.backbone, "ALBERT-base")}
    ):
        notes.append(f"Another backbone than the paper's: {', '.join(others)}. Learning rates need not agree.")
    if others := [f"{row.task} ({METHODS[row.method].title})" for row in rows if row.file and row.method != _PAPERS]:
        notes.append(f"Another method than the paper's was selected for {', '.join(others)}.")
    return notes


_SYMBOLS = ", ".join(OPTIONS.values())
_HEADINGS = ("task", f"paper: {_SYMBOLS}", "best file", f"its {_SYMBOLS}", "score")


def _cells(row: SettingsRow) -> list[str]:
    score = "" if row.score is None else f"{100 * row.score:.2f}"
    return [row.task, _joined(row.paper), row.method or "none", _joined(row.options), score]


def _joined(options: Mapping[str, float]) -> str:
    return ", ".join(_plain(options[option]) if option in options else "–" for option in OPTIONS) if options else ""


def _plain(value: float) -> str:
    """Write a number as the documents do: 1e-5, not 1e-05, and 1e-3, not 0.001."""
    if not 0 < value < 0.01:
        return f"{value:g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _markdown(rows: Sequence[SettingsRow], notes: Sequence[str]) -> str:
    lines = [_HEADINGS, *map(_cells, rows)]
    widths = [max(len(cells[i]) for cells in lines) for i in range(len(_HEADINGS))]
    lines.insert(1, ["-" * width for width in widths[:-1]] + ["-" * (widths[-1] - 1) + ":"])
    table = ["| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in lines]
    return "\n".join([f"# {_TITLE}", "", *table, "", *(f"- {note}" for note in notes), ""])


def _latex(rows: Sequence[SettingsRow], notes: Sequence[str]) -> str:
    body = [" & ".join(map(tex, cells)) + r" \\" for cells in map(_cells, rows)]
    heading = " & ".join(map(tex, _HEADINGS)) + r" \\"
    return "\n".join(
        [
            f"% {_TITLE}", r"\begin{tabular}{llllr}", r"\toprule", heading, r"\midrule", *body,
            r"\bottomrule", r"\end{tabular}", "", r"{\footnotesize", *(tex(note) + r"\par" for note in notes), "}", "",
        ]
    )  # fmt: skip


def _comma_separated(rows: Sequence[SettingsRow]) -> str:
    """Render as CSV with all digits; the score is a fraction."""
    out = io.StringIO()
    names = [
        "task",
        *(f"paper_{option}" for option in OPTIONS),
        "method",
        *OPTIONS,
        "score",
        "configurations",
        "backbone",
        "file",
    ]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = [row.task, *(row.paper.get(o) for o in OPTIONS), row.method, *(row.options.get(o) for o in OPTIONS)]
        writer.writerow([*values, row.score, row.configurations, row.backbone, row.file.path if row.file else ""])
    return out.getvalue()
