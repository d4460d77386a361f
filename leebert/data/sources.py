"""Read one split of a task from GLUE's release, the user's files or the hub, all with the same checks.

:mod:`leebert.data.readers` yields the rows with unchanged values; :func:`examples_of` checks each text and maps each label
to its id. A DataError names the place, the value and what to do.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from leebert.data.labels import LabelIds, as_written, is_missing, numbers
from leebert.data.readers import FORMATS, Columns, MissingColumnError, Row, in_any_case, read_rows, short
from leebert.data.tasks import NO_REGRESSION, Task
from leebert.data.texts import bad_text, is_text
from leebert.errors import DataError, nearest


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """N samples of text with their labels.

    Attributes:
        texts: One or two columns of N texts.
        labels: (N,) int64 class ids; None for unlabelled samples.
        ids: (N,) int64 row numbers in the file, from 0 and without the header.
        source: The file or hub data set, for messages.
        label_names: Class names in the order of their ids.
        skipped: Number of rows of the file that were skipped.
    """

    texts: tuple[list[str], ...]
    labels: np.ndarray | None
    ids: np.ndarray
    source: str
    label_names: tuple[str, ...] = ()
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Any) -> Examples:
        """Select the samples at these positions (n,), in this order, with their ids."""
        index = np.asarray(indices, dtype=np.int64)
        positions = index.tolist()
        return dataclasses.replace(
            self,
            texts=tuple([column[i] for i in positions] for column in self.texts),
            labels=None if self.labels is None else self.labels[index],
            ids=self.ids[index],
        )

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of texts, labels and label names; it does not depend on the source."""
        digest = hashlib.sha256(repr((len(self), len(self.texts), self.label_names)).encode())
        for column in self.texts:
            # The lengths make the concatenation unambiguous.
            digest.update(np.fromiter(map(len, column), "<i8", len(column)).tobytes())
            digest.update("".join(column).encode("utf-8"))
        digest.update(b"unlabelled" if self.labels is None else self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def read_split(task: Task, split: str, source: str | Path | None = None, *, labelled: bool = True) -> Examples:
    """Read one split of a task.

    Args:
        task: The task.
        split: A split of the task, such as `train`.
        source: A folder in the layout of GLUE's release (the one that holds `MRPC/`, or `MRPC` itself), or the base folder
            of the files of a declared task; `"hub"`; or None for the task's files if it declares some, else the hub.
        labelled: Whether to read labels.

    Raises:
        DataError: The split is missing, unreadable or malformed.
    """
    _check_split(task, split, source)
    if _from_hub(task, source):
        return examples_of(task, split, *_hub_rows(task, split, labelled), labelled)
    path = _find(task, split, source)
    names = (*task.text_names, task.label_column_names) if labelled else task.text_names
    return examples_of(task, split, str(path), _file_rows(task, split, path, names, task.skip_broken), labelled)


def check_files(task: Task, split: str, source: str | Path | None) -> None:
    """Check that the file of a split exists, without reading it; a split on the hub is not checked.

    Args:
        task: The task.
        split: A split of the task.
        source: As in :func:`read_split`.

    Raises:
        DataError: The split or its file is missing.
    """
    _check_split(task, split, source)
    if not _from_hub(task, source):
        _find(task, split, source)


def read_test(
    task: Task, split: str, source: str | Path | None = None, *, index: str = "index"
) -> tuple[list[Row], str]:
    """Read a test split of GLUE for a submission, which needs every row: no row is skipped, and texts can be empty.

    Args:
        task: A task of GLUE.
        split: A test split.
        source: As in :func:`read_split`.
        index: The column of row numbers in files; on the hub it is `idx`.

    Returns:
        The rows, with the numbers of the column `index`, and the source for messages.

    Raises:
        DataError: As :func:`read_split`; also for malformed lines and for missing or duplicate row numbers.
    """
    _check_split(task, split, source)
    if _from_hub(task, source):
        assert task.hub is not None
        place, index = _hub_name(task, split), "idx"
        rows = _hub_table(task, split, (*task.hub.text_columns, index))[0]
    else:
        path = _find(task, split, source)
        place = str(path)
        rows = _file_rows(task, split, path, (*task.text_names, tuple(dict.fromkeys((index, "idx")))), False)
    by_number: dict[int, Row] = {}
    for row in rows:
        *texts, value = row.values
        for name, text in zip(row.names, texts, strict=False):
            if text != "" and not is_text(text) and not (isinstance(text, str) and text.isspace()):
                raise bad_text(row.place, name, text)
        number = str(value)
        if not number.isdecimal() or int(number) in by_number:
            wrong = "is a duplicate row number" if number.isdecimal() else "is not a row number"
            raise DataError(
                f"{row.place}, column {row.names[-1]!r}: {short(value)} {wrong}; use the file of GLUE's release unchanged"
            )
        by_number[int(number)] = row._replace(number=int(number), values=tuple(texts), names=row.names[:-1])
    if not by_number:
        raise DataError(f"{place}: no rows; check the file, or give another one")
    return list(by_number.values()), place


def _check_split(task: Task, split: str, source: str | Path | None) -> None:
    valid = task.hub.splits if _from_hub(task, source) and task.hub else task.splits
    if split not in valid:
        raise DataError(f"task {task.name} has no split {split!r}{nearest(split, valid)}; it has {', '.join(valid)}")


class Labelled(Protocol):
    """N labelled samples of texts or images, with the attributes of :class:`Examples`."""

    @property
    def labels(self) -> np.ndarray | None: ...
    @property
    def ids(self) -> np.ndarray: ...
    @property
    def source(self) -> str: ...
    def __len__(self) -> int: ...
    def take(self, indices: Any) -> Self: ...


LabelledRows = TypeVar("LabelledRows", bound=Labelled)


def subset(examples: LabelledRows, rows: int, seed: int) -> LabelledRows:
    """Draw a stratified random subset.

    Args:
        examples: N labelled samples.
        rows: n, size of the subset.
        seed: The seed of the draw.

    Returns:
        n samples in their original order, with their ids.

    Raises:
        DataError: There are no labels, or n is less than the number of labels or more than N.
    """
    if examples.labels is None:
        raise DataError(f"{examples.source}: a stratified subset needs labels, and these samples have none")
    classes, counts = np.unique(examples.labels, return_counts=True)
    if not len(classes) <= rows <= len(examples):
        raise DataError(
            f"{examples.source}: can't draw a subset of {rows} samples: the size must lie between {len(classes)} (one "
            f"per label) and {len(examples)} (all samples); change data.subset.rows"
        )
    share = counts * (rows / len(examples))
    sizes = np.maximum(share.astype(np.int64), 1)  # a label keeps at least one sample
    while sizes.sum() != rows:
        step = 1 if sizes.sum() < rows else -1
        sizes[np.argmax(np.where((step > 0) | (sizes > 1), step * (share - sizes), -np.inf))] += step
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(examples.labels == c))[:n] for c, n in zip(classes, sizes, strict=True)]
    return examples.take(np.sort(np.concatenate(drawn)))


# --- from values to examples ------------------------------------------------------------------------------------------


def examples_of(task: Task, split: str, source: str, rows: Iterator[Row], labelled: bool) -> Examples:
    """Check rows and collect them as examples.

    Args:
        task: The task.
        split: A split of the task.
        source: The rows' source, for messages.
        rows: Texts, followed by the label if `labelled`.
        labelled: Whether to read labels.

    Raises:
        DataError: A row is malformed, or there is none; the message names its place.
    """
    labels = _Labels(task, split)
    columns: tuple[list[str], ...] = tuple([] for _ in task.text_columns)
    ids: list[int] = []
    count = 0
    for row in rows:
        count += 1
        if not row.values or (labelled and labels.is_none(row.values[-1])):
            continue
        texts = row.values[: len(columns)]
        bad = next((j for j, text in enumerate(texts) if not is_text(text)), None)
        if bad is not None:
            if task.skip_broken and (texts[bad] is None or (isinstance(texts[bad], str) and not texts[bad].strip())):
                continue
            raise bad_text(row.place, row.names[bad], texts[bad])
        if labelled:
            labels.add(row, rows)
        ids.append(row.number)
        for column, text in zip(columns, texts, strict=True):
            column.append(text)
    if not ids:
        raise DataError(f"{source}: no rows; check the file, or give another one")
    y = labels.finish(source) if labelled else None
    return Examples(columns, y, np.array(ids, np.int64), source, task.label_names, count - len(ids))


class _Labels:
    """Collects the labels of a split."""

    def __init__(self, task: Task, split: str) -> None:
        self.task, self.split = task, split
        self.ids = LabelIds(task.label_names)
        self.collected: list[int] = []

    def is_none(self, value: Any) -> bool:
        """Whether a value marks an unlabelled row, which is skipped."""
        return isinstance(value, str) and value == self.task.skipped_label

    def add(self, row: Row, following: Iterator[Row]) -> None:
        """Add the label of a row; `following` are the rows after it. Raises DataError for an unknown label."""
        class_id = self.ids.of(row.values[-1])
        if class_id is None:
            raise self._bad(row, following)
        self.collected.append(class_id)

    def finish(self, source: str) -> np.ndarray:
        """Return all labels, (N,) int64. Raises DataError if the training split lacks one of the task's labels."""
        missing = sorted(set(range(self.task.num_labels)) - set(self.collected)) if self.split == "train" else []
        if missing:
            names = ", ".join(repr(self.task.label_names[j]) for j in missing)
            raise DataError(
                f"{source}, column {self.task.label_column!r}: no row has the label {names} of task "
                f"{self.task.name}; check the file, or the task's labels"
            )
        return np.array(self.collected, np.int64)

    def _bad(self, row: Row, following: Iterator[Row]) -> DataError:
        value, place = row.values[-1], f"{row.place}, column {row.names[-1]!r}"
        names, accepted = ", ".join(self.task.label_names), self.task.label_ids()
        if is_missing(value):
            return DataError(f"{place}: the label is missing; give one of {names}, or remove the row")
        values = numbers(value)
        if -1 in values:
            return _hidden(self.task, self.split, f"{place}: label {as_written(value)}")
        unknown = sorted(self._unknown(following) | {as_written(value)})
        examples = f" (the column's unknown labels: {', '.join(map(short, unknown[:8]))})" if len(unknown) > 1 else ""
        return DataError(
            f"{place}: {short(as_written(value))} is not a label of task {self.task.name}"
            f"{nearest(as_written(value), accepted)}; its labels are {names}{examples}; correct the row, or the task's labels"
            + (f". If the labels are numbers, this is a regression: {NO_REGRESSION}" if _is_measured(value) else "")
        )

    def _unknown(self, rows: Iterator[Row]) -> set[str]:
        unknown: set[str] = set()
        try:
            for row in rows:
                value = row.values[-1] if row.values else None
                if not is_missing(value) and not self.is_none(value) and self.ids.of(value) is None:
                    unknown.add(as_written(value))
        except DataError:  # the unknown label is the first error of the file
            pass
        return unknown


def _is_measured(value: Any) -> bool:
    """Whether a label is a number with a fraction, so that it can't be a class."""
    values = numbers(value)
    return bool(values) and values[0] != values[0].to_integral_value()


def _hidden(task: Task, split: str, place: str) -> DataError:
    labelled = ", ".join(name for name in ("train", *task.eval_splits) if name != split)
    return DataError(
        f"{place}: the labels of the split {split!r} are hidden by its publisher; use a labelled split ({labelled}), "
        "or read this one without labels, for predictions"
    )


# --- files ------------------------------------------------------------------------------------------------------------


def _file_rows(
    task: Task, split: str, path: Path, names: tuple[tuple[str, ...], ...], keep_broken: bool
) -> Iterator[Row]:
    """Read the rows of a split's file. Raises DataError; for a test split without labels, it says so."""
    try:
        yield from read_rows(path, Columns(names), header=task.headerless.get(split, ()), keep_broken=keep_broken)
    except MissingColumnError as error:
        if error.column == task.label_column and split.startswith("test"):
            raise _hidden(task, split, f"{path}: no column {error.column!r}") from None
        raise


def _find(task: Task, split: str, source: str | Path | None) -> Path:
    """Find the file of a split: in the folder `source` if given, else at the task's own path."""
    name = task.splits[split]
    root = Path(source).expanduser() if source is not None else Path()
    if source is not None and not root.is_dir():
        content = f"{task.folder}/" if task.folder else "the task's files"
        raise DataError(f"--data-dir {source}: no such folder; give the folder that holds {content}")
    if task.folder and (inner := in_any_case(root / task.folder)).is_dir():
        root = inner
    path = _below(root, name) if source is not None else in_any_case(Path(name))
    if not path.is_file():
        raise _no_file(task, split, path, source)
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path}: ends in none of {', '.join(FORMATS)}")
    return path


def _below(root: Path, name: str) -> Path:
    """Find a task's file in a folder; of an absolute path (as sweeps store them), the longest existing tail is used."""
    file = Path(name)
    if not file.is_absolute():
        return in_any_case(root / file)
    parts = file.parts[1:]
    for start in range(len(parts)):
        if (path := in_any_case(root.joinpath(*parts[start:]))).is_file():
            return path
    path = in_any_case(file)
    if path.is_file() and root.absolute() not in path.parents:
        warnings.warn(f"--data-dir {root} holds no {file.name}: reading {path}", stacklevel=2)
    return path


def _no_file(task: Task, split: str, path: Path, source: str | Path | None) -> DataError:
    parent = path.parent
    content = (
        f"the folder holds {listed(sorted(p.name for p in parent.iterdir()))}" if parent.is_dir() else "no such folder"
    )
    if not parent.is_absolute() or (source is not None and Path(source).absolute() not in path.absolute().parents):
        content += f" (looked in {(Path(source) if path.is_absolute() and source else parent).absolute()})"
    cure = (
        f"give GLUE's release, the folder that holds {task.folder}/{task.splits[split]}"
        if task.folder
        else "give the folder of the task's files"
    )
    return DataError(f"{path}: no such file (split {split!r} of task {task.name}); {content}; {cure} as --data-dir")


def listed(names: Sequence[str]) -> str:
    """Join the first ten names of a list, for messages."""
    return (", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")) or "nothing"


# --- the hub ----------------------------------------------------------------------------------------------------------


def _from_hub(task: Task, source: str | Path | None) -> bool:
    if source == "hub" and task.hub is None:
        raise DataError(f"task {task.name} has no data set on the hub; omit the source to read its files")
    return task.hub is not None and (source is None or source == "hub")


def _hub_rows(task: Task, split: str, labelled: bool) -> tuple[str, Iterator[Row]]:
    """Return the name of a split on the hub, and its rows: texts, then the label if `labelled`."""
    assert task.hub is not None
    hub, place = task.hub, _hub_name(task, split)
    rows, features = _hub_table(task, split, (*hub.text_columns, hub.label_column) if labelled else hub.text_columns)
    names = getattr(features[hub.label_column], "names", None) if labelled else None
    if not names:
        return place, rows
    if sorted(names) != sorted(task.label_names):
        raise DataError(
            f"{place}, column {hub.label_column!r}: its labels are {', '.join(names)}, those of task {task.name} "
            f"are {', '.join(task.label_names)}; give the task the same labels"
        )
    return place, _by_name(rows, names)


def _by_name(rows: Iterator[Row], names: Sequence[str]) -> Iterator[Row]:
    """Replace each label, a position in the data set's list of names, by its name, which maps to the task's ids."""
    for row in rows:
        *texts, value = row.values
        yield row._replace(values=(*texts, names[value] if value is not None and value >= 0 else value))


def _hub_name(task: Task, split: str) -> str:
    assert task.hub is not None
    hub = task.hub
    return f"hub:{hub.repo}" + (f"/{hub.config}" if hub.config else "") + f" split {hub.splits[split]!r}"


def _hub_table(task: Task, split: str, columns: tuple[str, ...]) -> tuple[Iterator[Row], Mapping[str, Any]]:
    """Return rows with unchanged values of a split on the hub, and the data set's features."""
    assert task.hub is not None
    hub, source = task.hub, _hub_name(task, split)
    local = f"with --data-dir FOLDER (GLUE's release, holding {task.folder}/)" if task.folder else "from files"
    data = load_hub(hub.repo, hub.splits[split], source, local, config=hub.config, revision=hub.revision)
    try:
        Columns(tuple((name,) for name in columns)).find(data.column_names, source)
    except MissingColumnError as error:
        if error.column == hub.label_column and split.startswith("test"):
            raise _hidden(task, split, f"{source}: no column {error.column!r}") from None
        raise
    values = zip(*(data[name] for name in columns), strict=True)
    return (Row(number, row, columns, source) for number, row in enumerate(values)), data.features


def load_hub(
    repo: str, split: str, source: str, instead: str, *, config: str | None = None, revision: str | None = None
) -> Any:
    """Load one split from the hub.

    Args:
        repo: Id of the data set.
        split: Name of the split on the hub.
        source: Name of the split in messages.
        instead: How to read the data without the hub, for messages.
        config: Configuration of the data set.
        revision: Revision of the data set.

    Returns:
        A `datasets.Dataset`.

    Raises:
        DataError: The data set does not exist, can't be loaded, or the hub is unreachable.
    """
    import datasets

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # or each of its retries is a line
    try:
        return datasets.load_dataset(repo, config, split=split, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(f"{source}: {error}; check the id, the revision and your access rights") from None
    except OSError as error:  # includes ConnectionError, time-outs and the errors of the hub's client
        raise DataError(f"{source}: the hub could not be reached ({error}); read the data {instead} instead") from None
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source}: can't be loaded: {error}") from None
