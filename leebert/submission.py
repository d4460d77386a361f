"""Write GLUE test-set predictions for submission: eleven files with the columns `index` and `prediction`.

File names, labels and format follow the server's list (https://gluebenchmark.com/faq). The server requires every row of
the release's test sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leebert.data.readers import Row, in_any_case
from leebert.data.sources import read_test
from leebert.data.tasks import TASKS, Hub, Task
from leebert.errors import ConfigError, DataError
from leebert.files import write_together
from leebert.predict import predictions

# The diagnostic set. MNLI's models predict it; it has no training split.
_DIAGNOSTIC = dataclasses.replace(
    TASKS["mnli"],
    folder="diagnostic",
    splits={"test": "diagnostic.tsv"},
    hub=Hub("nyu-mll/glue", "ax", ("premise", "hypothesis"), splits={"test": "test"}),
)

#: Tasks whose predictions are words; those of the other tasks are 0 and 1.
_IN_WORDS = ("mnli", "qnli", "rte")


@dataclasses.dataclass(frozen=True)
class ServerFile:
    """One of the files of a submission.

    Attributes:
        name: File name.
        rows: Number of rows in GLUE's release.
        constant: The prediction of `--fill` for every row.
        data: The task whose models predict it, from `split`; None for tasks that this library does not train.
        split: The task's test split.
        index: The column with the row numbers.
    """

    name: str
    rows: int
    constant: str
    data: Task | None = None
    split: str = "test"
    index: str = "index"

    @property
    def task(self) -> str | None:
        return self.data.name if self.data else None

    def available(self, source: str | Path | None) -> bool:
        """Whether its data exist: not every copy of the release has the diagnostic set."""
        if self.data is not _DIAGNOSTIC or source in (None, "hub"):
            return True
        folder = in_any_case(Path(str(source)).expanduser() / self.data.folder)
        return in_any_case(folder / self.data.splits[self.split]).is_file()

    def prediction(self, label: str) -> str:
        """Convert a label to the server's form."""
        assert self.data is not None
        return label if self.task in _IN_WORDS else str(self.data.label_names.index(label))


SERVER_FILES: tuple[ServerFile, ...] = (
    ServerFile("AX.tsv", 1104, "entailment", _DIAGNOSTIC),
    ServerFile("CoLA.tsv", 1063, "1", TASKS["cola"]),
    ServerFile("MNLI-m.tsv", 9796, "entailment", TASKS["mnli"], "test_matched"),
    ServerFile("MNLI-mm.tsv", 9847, "entailment", TASKS["mnli"], "test_mismatched"),
    ServerFile("MRPC.tsv", 1725, "1", TASKS["mrpc"]),
    ServerFile("QNLI.tsv", 5463, "entailment", TASKS["qnli"]),
    ServerFile("QQP.tsv", 390_965, "0", TASKS["qqp"], index="id"),
    ServerFile("RTE.tsv", 3000, "entailment", TASKS["rte"]),
    ServerFile("SST-2.tsv", 1821, "1", TASKS["sst2"]),
    ServerFile("STS-B.tsv", 1379, "0.0"),
    ServerFile("WNLI.tsv", 146, "0"),
)


@dataclasses.dataclass(frozen=True)
class Written:
    """A written file of predictions, with its number of rows and their mean exit layer."""

    path: Path
    rows: int
    layers: float


def submit(
    model: Any,
    tokenizer: Any,
    folder: Path,
    criterion: Any,
    runtime: Any,
    *,
    source: str | None = None,
    any_rows: bool = False,
    batch_size: int = 64,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Written]:
    """Predict the test split(s) of a GLUE model's task and write the files of a submission, all or none.

    Args:
        model: A saved model in evaluation mode.
        tokenizer: Its tokenizer.
        folder: Folder for the files.
        criterion: The exit criterion at its threshold.
        runtime: Device and precision.
        source: The data, as in :func:`leebert.data.sources.read_split`.
        any_rows: Skip the row-count check.
        batch_size: Samples per forward pass.
        progress: Wraps the iteration over rows, such as a progress bar.

    Returns:
        The written files.

    Raises:
        ConfigError: The model's task is not one of GLUE's.
        DataError: A test split is missing or, without `any_rows`, differs from the release in its number of rows.
    """
    own = model.config.task
    if not isinstance(own, str) or own not in TASKS:
        named = own.get("name") if isinstance(own, Mapping) else own
        which = f"has the task {named!r}" if named else "has no task"
        raise ConfigError(f"--glue needs a model of a GLUE task ({', '.join(TASKS)}); this model {which}")
    sets = [file for file in SERVER_FILES if file.task == own and file.available(source)]
    read = [_rows(file, source, any_rows) for file in sets]  # report bad rows before the first prediction
    files: dict[Path, str] = {}
    written = []
    for file, rows in zip(sets, read, strict=True):
        predicted = list(predictions(model, tokenizer, progress(rows), criterion, runtime, batch_size))
        path = folder / file.name
        files[path] = _table((row["row"], file.prediction(row["label"])) for row in predicted)
        mean_layer = sum(row["exit_layer"] for row in predicted) / len(predicted)
        written.append(Written(path, len(predicted), mean_layer))
    folder.mkdir(parents=True, exist_ok=True)
    write_together(files)
    return written


def missing(folder: Path) -> list[ServerFile]:
    """List the files of a submission that are missing in a folder."""
    return [file for file in SERVER_FILES if not (folder / file.name).is_file()]


def fill(folder: Path) -> list[ServerFile]:
    """Write the missing files with a constant prediction, since the server requires all eleven.

    The server's scores of these tasks, and its mean over all tasks, are then meaningless.

    Returns:
        The files that were missing.
    """
    absent = missing(folder)
    write_together({folder / file.name: _table((i, file.constant) for i in range(file.rows)) for file in absent})
    return absent


def print_submission(folder: Path, written: Sequence[Written], depth: int, filled: Sequence[ServerFile]) -> None:
    """Print the written files, and the files that a submission still lacks.

    Args:
        folder: The submission's folder.
        written: The files with predictions.
        depth: Layers of the unreduced network.
        filled: The files with a constant prediction.
    """
    for one in written:
        speed_up = depth / one.layers
        print(
            f"{one.path}: {one.rows} rows, mean exit layer {one.layers:.2f} of {depth}, {speed_up:.2f}× layer speed-up"
        )
    for file in filled:
        print(f"{folder / file.name}: {file.rows} rows, constant prediction {file.constant}")
    if absent := missing(folder):
        names = ", ".join(file.name for file in absent)
        print(
            f"the server requires all eleven files, zipped without a folder; missing: {names} (--fill writes a constant "
            "prediction)"
        )


def _rows(file: ServerFile, source: str | None, any_rows: bool) -> Sequence[Row]:
    assert file.data is not None
    rows, place = read_test(file.data, file.split, source, index=file.index)
    if len(rows) != file.rows and not any_rows:
        raise DataError(
            f"{place}: {len(rows)} rows, but GLUE's test split has {file.rows}, and the server refuses other numbers; "
            "use the release's file, or skip this check with --any-rows"
        )
    return rows


def _table(rows: Iterable[tuple[int, str]]) -> str:
    return "index\tprediction\n" + "".join(f"{number}\t{prediction}\n" for number, prediction in rows)
