"""Reading one split of a task: GLUE's release, the user's own files, or the hub, all with the same checks.

:mod:`leebert.data.readers` gives rows of the wanted columns as they stand; :func:`_examples` checks each text and maps
each label to its id. What is wrong raises DataError with the place, the value and what to do.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
    """Rows of text with their labels.

    texts: one or two columns, each a list of N. labels: (N,) int64 ids, None when unlabelled. ids: (N,) int64, the
    row's number in its file, from 0 and without the header. skipped: how many rows of the file were left out.
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
        """The rows at these positions, in this order, with their ids."""
        index = np.asarray(indices, dtype=np.int64)
        positions = index.tolist()
        return dataclasses.replace(
            self,
            texts=tuple([column[i] for i in positions] for column in self.texts),
            labels=None if self.labels is None else self.labels[index],
            ids=self.ids[index],
        )

    def fingerprint(self) -> str:
        """sha256 (hex) of texts, labels and label names in their order: the content, wherever it was read from."""
        digest = hashlib.sha256(repr((len(self), len(self.texts), self.label_names)).encode())
        for column in self.texts:
            # With the lengths, no two different columns join to the same bytes.
            digest.update(np.fromiter(map(len, column), "<i8", len(column)).tobytes())
            digest.update("".join(column).encode("utf-8"))
        digest.update(b"unlabelled" if self.labels is None else self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def read_split(task: Task, split: str, source: str | Path | None = None, *, labelled: bool = True) -> Examples:
    """The rows of one split.

    source: a folder in the layout of GLUE's release (the one that holds `MRPC/`, or `MRPC` itself), or the folder that
    a task's own files are relative to; None takes the task's own files, else the hub; "hub" is the hub.
    labelled: False reads the texts alone. Raises DataError.
    """
    _check_split(task, split, source)
    if _from_hub(task, source):
        return _examples(task, split, *_hub_rows(task, split, labelled), labelled)
    path = _find(task, split, source)
    names = (*task.text_names, task.label_column_names) if labelled else task.text_names
    return _examples(task, split, str(path), _file_rows(task, split, path, names, task.skip_broken), labelled)


def read_test(
    task: Task, split: str, source: str | Path | None = None, *, index: str = "index"
) -> tuple[list[Row], str]:
    """Texts and the source of a test split of GLUE, of which a server wants every row: none is left out.

    The rows' numbers are those of the file's column `index`, on the hub of `idx`; an empty text stays one. `source` as
    in :func:`read_split`. Raises DataError, also for a line that is broken and for numbers that are none, or there
    twice.
    """
    _check_split(task, split, source)
    if _from_hub(task, source):
        assert task.hub is not None
        where, index = _hub_name(task, split), "idx"
        rows = _hub_table(task, split, (*task.hub.text_columns, index))[0]
    else:
        path = _find(task, split, source)
        where = str(path)
        rows = _file_rows(task, split, path, (*task.text_names, tuple(dict.fromkeys((index, "idx")))), False)
    found: dict[int, Row] = {}
    for row in rows:
        *texts, value = row.values
        for name, text in zip(row.names, texts, strict=False):
            if text != "" and not is_text(text) and not (isinstance(text, str) and text.isspace()):
                raise bad_text(row.place, name, text)
        number = str(value)
        if not number.isdecimal() or int(number) in found:
            wrong = "is a duplicate row number" if number.isdecimal() else "is no row number"
            raise DataError(
                f"{row.place}, column {row.names[-1]!r}: {short(value)} {wrong}; take the file as GLUE gives it"
            )
        found[int(number)] = row._replace(number=int(number), values=tuple(texts), names=row.names[:-1])
    if not found:
        raise DataError(f"{where}: no rows; check the file, or point to another one")
    return list(found.values()), where


def _check_split(task: Task, split: str, source: str | Path | None) -> None:
    valid = task.hub.splits if _from_hub(task, source) and task.hub else task.splits
    if split not in valid:
        raise DataError(f"task {task.name} has no split {split!r}{nearest(split, valid)}; it has {', '.join(valid)}")


class Labelled(Protocol):
    """Rows of any kind with their labels, as :class:`Examples` has them."""

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
    """`rows` rows drawn at random in the labels' proportions, in their old order; ids are kept. Raises DataError."""
    if examples.labels is None:
        raise DataError(f"{examples.source}: a stratified subset needs labels, and these rows have none")
    classes, counts = np.unique(examples.labels, return_counts=True)
    if not len(classes) <= rows <= len(examples):
        raise DataError(
            f"{examples.source}: a subset of {rows} rows can't be drawn: it takes at least {len(classes)} (one per "
            f"label) and at most the {len(examples)} that there are; change data.subset.rows"
        )
    share = counts * (rows / len(examples))
    sizes = np.maximum(share.astype(np.int64), 1)  # a label keeps at least one row
    while sizes.sum() != rows:
        step = 1 if sizes.sum() < rows else -1
        sizes[np.argmax(np.where((step > 0) | (sizes > 1), step * (share - sizes), -np.inf))] += step
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(examples.labels == c))[:n] for c, n in zip(classes, sizes, strict=True)]
    return examples.take(np.sort(np.concatenate(drawn)))


# --- from values to examples ------------------------------------------------------------------------------------------


def _examples(task: Task, split: str, source: str, rows: Iterator[Row], labelled: bool) -> Examples:
    """Rows of texts, and of the label where they are `labelled`, as examples."""
    labels = _Labels(task, split)
    columns: tuple[list[str], ...] = tuple([] for _ in task.text_columns)
    ids: list[int] = []
    count = 0
    for row in rows:
        count += 1
        if not row.values or (labelled and labels.is_none(row.values[-1])):
            continue
        texts = row.values[: len(columns)]
        wrong = next((j for j, text in enumerate(texts) if not is_text(text)), None)
        if wrong is not None:
            if task.skip_broken and (
                texts[wrong] is None or (isinstance(texts[wrong], str) and not texts[wrong].strip())
            ):
                continue
            raise bad_text(row.place, row.names[wrong], texts[wrong])
        if labelled:
            labels.add(row, rows)
        ids.append(row.number)
        for column, text in zip(columns, texts, strict=True):
            column.append(text)
    if not ids:
        raise DataError(f"{source}: no rows; check the file, or point to another one")
    y = labels.complete(source) if labelled else None
    return Examples(columns, y, np.array(ids, np.int64), source, task.label_names, count - len(ids))


class _Labels:
    """The labels of a split, one after the other."""

    def __init__(self, task: Task, split: str) -> None:
        self.task, self.split = task, split
        self.ids = LabelIds(task.label_names)
        self.found: list[int] = []

    def is_none(self, value: Any) -> bool:
        """Whether a row is so labelled because it has no label, and is to be left out."""
        return isinstance(value, str) and value == self.task.skipped_label

    def add(self, row: Row, others: Iterator[Row]) -> None:
        """The label of a row; `others` are the rows after it. Raises DataError where it is none of the task's."""
        found = self.ids.of(row.values[-1])
        if found is None:
            raise self._bad(row, others)
        self.found.append(found)

    def complete(self, source: str) -> np.ndarray:
        """All labels, (N,) int64. Raises DataError where the training split lacks one of the task's."""
        missing = sorted(set(range(self.task.num_labels)) - set(self.found)) if self.split == "train" else []
        if missing:
            names = ", ".join(repr(self.task.label_names[j]) for j in missing)
            raise DataError(
                f"{source}, column {self.task.label_column!r}: no row is labelled {names}, which task "
                f"{self.task.name} has among its labels; check the file, or the task's labels"
            )
        return np.array(self.found, np.int64)

    def _bad(self, row: Row, others: Iterator[Row]) -> DataError:
        value, where = row.values[-1], f"{row.place}, column {row.names[-1]!r}"
        names, known = ", ".join(self.task.label_names), self.task.label_ids()
        if is_missing(value):
            return DataError(f"{where}: the label is missing; give one of {names}, or remove the row")
        values = numbers(value)
        if -1 in values:
            return _hidden(self.task, self.split, f"{where}: label {as_written(value)}")
        unknown = sorted(self._unknown(others) | {as_written(value)})
        more = f" (the column's unknown labels: {', '.join(map(short, unknown[:8]))})" if len(unknown) > 1 else ""
        return DataError(
            f"{where}: {short(as_written(value))} is no label of task {self.task.name}"
            f"{nearest(as_written(value), known)}; its labels are {names}{more}; correct the row, or the task's labels"
            + (f". If the labels are numbers, this is a regression: {NO_REGRESSION}" if _is_measured(value) else "")
        )

    def _unknown(self, rows: Iterator[Row]) -> set[str]:
        found: set[str] = set()
        try:
            for row in rows:
                value = row.values[-1] if row.values else None
                if not is_missing(value) and not self.is_none(value) and self.ids.of(value) is None:
                    found.add(as_written(value))
        except DataError:  # the label that is told of comes first
            pass
        return found


def _is_measured(value: Any) -> bool:
    """Whether a label is a number with a fraction, as no class is."""
    values = numbers(value)
    return bool(values) and values[0] != values[0].to_integral_value()


def _hidden(task: Task, split: str, where: str) -> DataError:
    others = ", ".join(name for name in ("train", *task.eval_splits) if name != split)
    return DataError(
        f"{where}: the labels of the split {split!r} are hidden by its publisher; use a labelled split ({others}), "
        "or read it without labels for predictions"
    )


# --- files ------------------------------------------------------------------------------------------------------------


def _file_rows(
    task: Task, split: str, path: Path, names: tuple[tuple[str, ...], ...], keep_broken: bool
) -> Iterator[Row]:
    """The rows of a split's file. Raises DataError, for a test split without labels with the reason."""
    try:
        yield from read_rows(path, Columns(names), header=task.headerless.get(split, ()), keep_broken=keep_broken)
    except MissingColumnError as error:
        if error.column == task.label_column and split.startswith("test"):
            raise _hidden(task, split, f"{path}: there is no column {error.column!r}") from None
        raise


def _find(task: Task, split: str, source: str | Path | None) -> Path:
    """The file of a split: below the folder `source` where one is given, else where the task has it."""
    name = task.splits[split]
    root = Path(source).expanduser() if source is not None else Path()
    if source is not None and not root.is_dir():
        held = f"{task.folder}/" if task.folder else "the task's files"
        raise DataError(f"--data-dir {source}: there is no such folder; point to the one that holds {held}")
    if task.folder and (inner := in_any_case(root / task.folder)).is_dir():
        root = inner
    path = _below(root, name) if source is not None else in_any_case(Path(name))
    if not path.is_file():
        raise _no_file(task, split, path, source)
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path}: ends in none of {', '.join(FORMATS)}")
    return path


def _below(root: Path, name: str) -> Path:
    """A task's file below a folder; a file with an absolute path (a sweep keeps these) is looked for by its end."""
    given = Path(name)
    if not given.is_absolute():
        return in_any_case(root / given)
    parts = given.parts[1:]
    for start in range(len(parts)):
        if (path := in_any_case(root.joinpath(*parts[start:]))).is_file():
            return path
    path = in_any_case(given)
    if path.is_file() and root.absolute() not in path.parents:
        warnings.warn(f"--data-dir {root} holds no {given.name}: {path} is read", stacklevel=2)
    return path


def _no_file(task: Task, split: str, path: Path, source: str | Path | None) -> DataError:
    parent = path.parent
    there = sorted(p.name for p in parent.iterdir()) if parent.is_dir() else None
    seen = "there is no such folder" if there is None else f"the folder holds {listed(there)}"
    if not parent.is_absolute() or (source is not None and Path(source).absolute() not in path.absolute().parents):
        seen += f" (looked in {(Path(source) if path.is_absolute() and source else parent).absolute()})"
    what = (
        f"point to GLUE's release, the folder that holds {task.folder}/{task.splits[split]}"
        if task.folder
        else "give the folder that the task's files lie in"
    )
    return DataError(f"{path}: no such file, the split {split!r} of task {task.name}; {seen}; {what}, by --data-dir")


def listed(names: Sequence[str]) -> str:
    """The first names of a list, as an error shows them."""
    return (", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")) or "nothing"


# --- the hub ----------------------------------------------------------------------------------------------------------


def _from_hub(task: Task, source: str | Path | None) -> bool:
    if source == "hub" and task.hub is None:
        raise DataError(f"task {task.name} has no data set on the hub; leave the source out to read its files")
    return task.hub is not None and (source is None or source == "hub")


def _hub_rows(task: Task, split: str, labelled: bool) -> tuple[str, Iterator[Row]]:
    """What a split on the hub is called, and its rows: texts, then the label where they are labelled."""
    assert task.hub is not None
    hub, where = task.hub, _hub_name(task, split)
    rows, features = _hub_table(task, split, (*hub.text_columns, hub.label_column) if labelled else hub.text_columns)
    names = getattr(features[hub.label_column], "names", None) if labelled else None
    if not names:
        return where, rows
    if sorted(names) != sorted(task.label_names):
        raise DataError(
            f"{where}, column {hub.label_column!r}: its labels are {', '.join(names)}, those of task {task.name} "
            f"are {', '.join(task.label_names)}; give the task the same labels"
        )
    return where, _by_name(rows, names)


def _by_name(rows: Iterator[Row], names: Sequence[str]) -> Iterator[Row]:
    """Rows whose label is a position in the data set's own order of labels, which counts, whatever the task's is."""
    for row in rows:
        *texts, value = row.values
        yield row._replace(values=(*texts, names[value] if value is not None and value >= 0 else value))


def _hub_name(task: Task, split: str) -> str:
    assert task.hub is not None
    hub = task.hub
    return f"hub:{hub.repo}" + (f"/{hub.config}" if hub.config else "") + f" split {hub.splits[split]!r}"


def _hub_table(task: Task, split: str, columns: tuple[str, ...]) -> tuple[Iterator[Row], Mapping[str, Any]]:
    """Columns of a split on the hub as they stand, and the data set's features."""
    assert task.hub is not None
    hub, source = task.hub, _hub_name(task, split)
    local = f"with --data-dir FOLDER (GLUE's release, holding {task.folder}/)" if task.folder else "from files"
    data = load_hub(hub.repo, hub.splits[split], source, local, config=hub.config, revision=hub.revision)
    try:
        Columns(tuple((name,) for name in columns)).find(data.column_names, source)
    except MissingColumnError as error:
        if error.column == hub.label_column and split.startswith("test"):
            raise _hidden(task, split, f"{source}: there is no column {error.column!r}") from None
        raise
    values = zip(*(data[name] for name in columns), strict=True)
    return (Row(number, row, columns, source) for number, row in enumerate(values)), data.features


def load_hub(
    repo: str, split: str, source: str, instead: str, *, config: str | None = None, revision: str | None = None
) -> Any:
    """One split as a `datasets.Dataset`; every way of failing becomes a DataError, which names `source`.

    `instead` says how the data is read without the hub.
    """
    import datasets

    try:
        return datasets.load_dataset(repo, config, split=split, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(f"{source}: {error}; check the id, the revision and your access rights") from None
    except OSError as error:  # ConnectionError and time-outs are OSErrors, and so are the hub client's own
        raise DataError(f"{source}: the hub could not be reached ({error}); read the data {instead} instead") from None
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source}: can't be loaded: {error}") from None
