"""What GLUE's evaluation server takes: one file per test set, `index` and `prediction`, eleven files in all.

Names, labels and format are those of the server's own list (https://gluebenchmark.com/faq); the rows are those of the
release that it scores, of which it wants every one.
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
from leebert.predict import answers

# The diagnostic set: MNLI's models answer it, and it has no training rows.
_DIAGNOSTIC = dataclasses.replace(
    TASKS["mnli"],
    folder="diagnostic",
    splits={"test": "diagnostic.tsv"},
    hub=Hub("nyu-mll/glue", "ax", ("premise", "hypothesis"), splits={"test": "test"}),
)

#: Tasks whose answers are words; those of the others are 0 and 1.
_IN_WORDS = ("mnli", "qnli", "rte")


@dataclasses.dataclass(frozen=True)
class ServerFile:
    """One of the server's files: its name, the rows of GLUE's release, and an answer to give where nobody has a model.

    data: the task whose models answer it, reading `split`; None for tasks that this library does not train. index: the
    column that numbers the rows.
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

    def there(self, source: str | Path | None) -> bool:
        """Whether to read it: the diagnostic set is not in every copy of the release."""
        if self.data is not _DIAGNOSTIC or source in (None, "hub"):
            return True
        folder = in_any_case(Path(str(source)).expanduser() / self.data.folder)
        return in_any_case(folder / self.data.splits[self.split]).is_file()

    def prediction(self, label: str) -> str:
        """A label as the server wants it."""
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
    """A file that a model's answers stand in, its rows, and the layers that these took on average."""

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
    batch_size: int = 32,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Written]:
    """Answer a GLUE model's test split(s) into the server's files in `folder`; all are written, or none.

    `source` as in :func:`leebert.data.sources.read_split`. Raises ConfigError for a model of another task, DataError
    where a test split is missing or, unless `any_rows`, has not the release's number of rows.
    """
    own = model.config.task
    if not isinstance(own, str) or own not in TASKS:
        named = own.get("name") if isinstance(own, Mapping) else own
        which = f"of the task {named!r}" if named else "of no task"
        raise ConfigError(f"--glue is for models of GLUE's tasks ({', '.join(TASKS)}); this one is {which}")
    sets = [file for file in SERVER_FILES if file.task == own and file.there(source)]
    read = [_rows(file, source, any_rows) for file in sets]  # whatever is wrong with one shows before the first answer
    files: dict[Path, str] = {}
    written = []
    for file, rows in zip(sets, read, strict=True):
        found = list(answers(model, tokenizer, progress(rows), criterion, runtime, batch_size))
        path = folder / file.name
        files[path] = _table((row["row"], file.prediction(row["label"])) for row in found)
        written.append(Written(path, len(found), sum(row["exit_layer"] for row in found) / len(found)))
    folder.mkdir(parents=True, exist_ok=True)
    write_together(files)
    return written


def missing(folder: Path) -> list[ServerFile]:
    """Of the server's files, those that `folder` does not hold."""
    return [file for file in SERVER_FILES if not (folder / file.name).is_file()]


def fill(folder: Path) -> list[ServerFile]:
    """Write the missing files with the same answer in each row, and return which: the server wants all eleven.

    What it then says of these tasks, and of the mean over all, is no result (STS-B's correlation isn't even defined).
    """
    absent = missing(folder)
    write_together({folder / file.name: _table((i, file.constant) for i in range(file.rows)) for file in absent})
    return absent


def print_submission(folder: Path, written: Sequence[Written], depth: int, filled: Sequence[ServerFile]) -> None:
    """What stands in the folder, and what it lacks for an upload, on stdout."""
    for one in written:
        ratio = depth / one.layers
        print(f"{one.path}: {one.rows} rows, {one.layers:.2f} of {depth} layers on average, speed-up {ratio:.2f}")
    for file in filled:
        print(f"{folder / file.name}: {file.rows} rows, {file.constant} throughout")
    if absent := missing(folder):
        names = ", ".join(file.name for file in absent)
        print(f"the server takes all eleven files, zipped without a folder; still missing: {names} (--fill stands in)")


def _rows(file: ServerFile, source: str | None, any_rows: bool) -> Sequence[Row]:
    assert file.data is not None
    rows, where = read_test(file.data, file.split, source, index=file.index)
    if len(rows) != file.rows and not any_rows:
        raise DataError(
            f"{where}: {len(rows)} rows where GLUE's test split has {file.rows}, so the server would refuse the answers; "
            "take the release's file, or give --any-rows to answer this one all the same"
        )
    return rows


def _table(rows: Iterable[tuple[int, str]]) -> str:
    return "index\tprediction\n" + "".join(f"{number}\t{prediction}\n" for number, prediction in rows)
