"""Reading one split of a task: GLUE's release, the user's own files, or the hub, all with the same checks.

A reader turns a source into a :class:`_Table` of the wanted columns as they stand; :func:`_examples` checks each text
and maps each label to its id. What is wrong raises DataError with the place, the value and what to do.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from leebert.config import nearest
from leebert.data.tasks import FORMATS, NO_REGRESSION, Task
from leebert.errors import DataError

_HIDDEN = "-1"


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
        return _read_hub(task, split, labelled)
    columns = (*task.text_columns, task.label_column) if labelled else task.text_columns
    return _examples(task, split, _read_file(task, split, source, columns), labelled)


def read_test(
    task: Task, split: str, source: str | Path | None = None, *, index: str = "index"
) -> tuple[list[tuple[str, ...]], list[int], str]:
    """Texts, row numbers and the source of a test split of GLUE, of which a server wants every row: none is left out.

    The numbers are those of the file's column `index`, on the hub of `idx`; an empty text stays one. `source` as in
    :func:`read_split`. Raises DataError, also for a line that is broken and for numbers that are none, or there twice.
    """
    _check_split(task, split, source)
    if _from_hub(task, source):
        assert task.hub is not None
        names, index = task.hub.text_columns, "idx"
        table, _ = _hub_table(task, split, (*names, index))
    else:
        names = task.text_columns
        whole = dataclasses.replace(task, skip_broken=False)
        table = _read_file(whole, split, source, (*names, index))
    numbers: dict[int, None] = {}
    for i, value in enumerate(table.columns[index]):
        number = str(value)
        if not number.isdecimal() or int(number) in numbers:
            wrong = "stands there twice" if number.isdecimal() else "is no row number"
            raise DataError(
                f"{table.place(i)}, column {index!r}: {_short(value)} {wrong}; take the file as GLUE gives it"
            )
        numbers[int(number)] = None
    if not numbers:
        raise DataError(f"{table.source}: no rows; check the file, or point to another one")
    return list(zip(*(table.columns[name] for name in names), strict=True)), list(numbers), table.source


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
            f"label) and at most the {len(examples)} that there are; change subset.rows"
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


@dataclasses.dataclass(frozen=True)
class _Table:
    """Columns as a source holds them. ids: each row's number in the source. line: a row's place, for messages."""

    source: str
    columns: Mapping[str, Sequence[Any]]
    ids: Sequence[int]
    places: Sequence[int] | None = None  # line numbers; None where a source has rows only
    broken: int = 0

    def place(self, i: int) -> str:
        where = f"row {self.ids[i]}" if self.places is None else f"line {self.places[i]}"
        return f"{self.source}, {where}"


def _examples(task: Task, split: str, table: _Table, labelled: bool, text_columns: tuple[str, ...] = ()) -> Examples:
    keep: list[int] = []
    labels: list[int] = []
    texts = [table.columns[name] for name in text_columns or task.text_columns]
    raw = table.columns[task.label_column] if labelled else None
    ids = task.label_ids()
    for i in range(len(table.ids)):
        value = _plain_label(raw[i]) if raw is not None else ""
        if raw is not None and value == task.skipped_label:
            continue
        wrong = next((j for j, column in enumerate(texts) if not _is_text(column[i])), None)
        if wrong is not None:
            if task.skip_broken and not texts[wrong][i].strip():
                continue
            raise _bad_text(table, i, (text_columns or task.text_columns)[wrong], texts[wrong][i])
        if raw is not None:
            if value not in ids:
                raise _bad_label(task, split, table, i, value)
            labels.append(ids[value])
        keep.append(i)
    if not keep:
        raise DataError(f"{table.source}: no rows; check the file, or point to another one")
    y = np.array(labels, np.int64) if labelled else None
    if y is not None and split == "train" and len(missing := sorted(set(range(task.num_labels)) - set(y.tolist()))):
        names = ", ".join(repr(task.label_names[j]) for j in missing)
        raise DataError(
            f"{table.source}, column {task.label_column!r}: no row is labelled {names}, which task "
            f"{task.name} has among its labels; check the file, or the task's labels"
        )
    return Examples(
        texts=tuple([column[i] for i in keep] for column in texts),
        labels=y,
        ids=np.array(table.ids, np.int64)[keep],
        source=table.source,
        label_names=task.label_names,
        skipped=table.broken + len(table.ids) - len(keep),
    )


def _plain_label(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # what pandas makes of whole numbers beside a missing one
    return "" if value is None else str(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value and _encodes(value)


def _encodes(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def _bad_text(table: _Table, i: int, column: str, value: Any) -> DataError:
    where = f"{table.place(i)}, column {column!r}"
    if value is None or (isinstance(value, str) and not value.strip()):
        return DataError(f"{where}: the text is empty; fill it in, or remove the row")
    if not isinstance(value, str):
        return DataError(f"{where}: {_short(value)} is not text but {type(value).__name__}; write it as a string")
    kind = "a null character" if "\0" in value else "half of a surrogate pair, which no encoding can write"
    return DataError(f"{where}: {_short(value)} holds {kind}; clean the text, or remove the row")


def _bad_label(task: Task, split: str, table: _Table, i: int, value: str) -> DataError:
    where = f"{table.place(i)}, column {task.label_column!r}"
    names = ", ".join(task.label_names)
    if value == _HIDDEN:
        return _hidden(task, split, f"{where}: label {_HIDDEN}")
    if not value:
        return DataError(f"{where}: the label is missing; give one of {names}, or remove the row")
    known = task.label_ids()
    unknown = sorted({v for v in map(_plain_label, table.columns[task.label_column]) if v not in known})
    others = f" (the column's unknown labels: {', '.join(map(_short, unknown[:8]))})" if len(unknown) > 1 else ""
    return DataError(
        f"{where}: {_short(value)} is no label of task {task.name}{nearest(value, known)}; "
        f"its labels are {names}{others}; correct the row, or the task's labels"
        + (f". If the labels are numbers, this is a regression: {NO_REGRESSION}" if _is_measured(value) else "")
    )


def _is_measured(value: str) -> bool:
    """Whether a label is a number with a fraction, as no class is."""
    try:
        number = float(value)
    except ValueError:
        return False
    return math.isfinite(number) and not number.is_integer()


def _hidden(task: Task, split: str, where: str) -> DataError:
    others = ", ".join(name for name in ("train", *task.eval_splits) if name != split)
    return DataError(
        f"{where}: the labels of the split {split!r} are hidden by its publisher; use a labelled split ({others}), "
        "or read it without labels for predictions"
    )


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _select(source: str, header: Sequence[str], columns: Sequence[str], task: Task, split: str) -> list[int]:
    """Positions of the wanted columns in a header."""
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{source}, header: column {twice[0]!r} stands there twice; rename one of the two")
    for name in columns:
        if name not in header:
            if name == task.label_column and split.startswith("test"):
                raise _hidden(task, split, f"{source}: there is no column {name!r}")
            raise DataError(
                f"{source}: there is no column {name!r}{nearest(name, header)}; the columns are "
                f"{', '.join(map(_short, header)) or 'none'}; correct the header, or the task's columns"
            )
    return [header.index(name) for name in columns]


# --- files ------------------------------------------------------------------------------------------------------------


def _find(task: Task, split: str, source: str | Path | None) -> Path:
    name = task.splits[split]
    root = Path(source).expanduser() if source is not None else Path()
    if task.folder and source is not None and not root.is_dir():
        raise DataError(f"--data-dir {source}: there is no such folder; point to the one that holds {task.folder}/")
    folder = root / task.folder if (root / task.folder).is_dir() else root
    path = folder / name
    if not path.is_file():
        parent = path.parent
        there = sorted(p.name for p in parent.iterdir()) if parent.is_dir() else None
        seen = "there is no such folder" if there is None else f"the folder holds {listed(there)}"
        what = f"; point to GLUE's release, the folder that holds {task.folder}/{name}" if task.folder else ""
        raise DataError(f"{path}: no such file, the split {split!r} of task {task.name}; {seen}{what}")
    if path.suffix.lower() not in _READERS:
        raise DataError(f"{path}: ends in none of {', '.join(FORMATS)}")
    return path


def listed(names: Sequence[str]) -> str:
    """The first names of a list, as an error shows them."""
    return (", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")) or "nothing"


def _text_of(path: Path) -> str:
    """A file's text, without a byte order mark. Raises DataError where it isn't UTF-8, or holds null bytes."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from None
    null = data.find(b"\0")
    if null >= 0:
        line = data.count(b"\n", 0, null) + 1
        raise DataError(f"{path}, line {line}: a null byte at byte {null}; the file is damaged, or saved as UTF-16")
    bom = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    try:
        text = data[bom:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + bom
        line = data.count(b"\n", 0, offset) + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 at byte {offset} (0x{data[offset]:02x}); save the file as UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    return text


def _read_tsv(path: Path, columns: Sequence[str], task: Task, split: str) -> _Table:
    """Tab-separated values as GLUE writes them: no quoting and no escaping, one row per line."""
    # Only \n ends a row: str.splitlines would also cut at the rarer separators, which texts do hold.
    lines = [line.removesuffix("\r") for line in _text_of(path).split("\n")]
    if lines[-1] == "":
        lines.pop()
    header = list(task.headerless.get(split, ()))
    first = 0 if header else 1
    header = header or lines[0].split("\t")
    wanted = _select(str(path), header, columns, task, split)
    values: list[list[str]] = [[] for _ in wanted]
    ids: list[int] = []
    for number, line in enumerate(lines[first:]):
        fields = line.split("\t")
        if len(fields) != len(header):
            if task.skip_broken:
                continue
            raise _bad_width(f"{path}, line {number + first + 1}", len(header), len(fields), line)
        ids.append(number)
        for column, position in zip(values, wanted, strict=True):
            column.append(fields[position])
    places = [i + first + 1 for i in ids]
    return _Table(str(path), dict(zip(columns, values, strict=True)), ids, places, broken=len(lines) - first - len(ids))


def _bad_width(where: str, expected: int, got: int, line: str) -> DataError:
    return DataError(f"{where}: expected {expected} columns, got {got}: {_short(line)}; correct or remove the line")


def _read_csv(path: Path, columns: Sequence[str], task: Task, split: str) -> _Table:
    """Comma-separated values with the usual double quotes; a quoted text may span lines."""
    reader = csv.reader(io.StringIO(_text_of(path), newline=""), strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for row in reader:
            if row:  # a blank line is no row
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {start}: not valid CSV: {error}; check the quotes of that row") from None
    header, rows, lines = rows[0], rows[1:], lines[1:]
    wanted = _select(str(path), header, columns, task, split)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise _bad_width(f"{path}, line {line}", len(header), len(row), ",".join(row))
    values = {name: [row[position] for row in rows] for name, position in zip(columns, wanted, strict=True)}
    return _Table(str(path), values, range(len(rows)), lines)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return keys


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)
    for line, text in enumerate(_text_of(path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = decoder.decode(text.strip())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {line}: not valid JSON: {error}; each line holds one JSON object") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {line}: {_short(row)} is no JSON object; each line holds one")
        yield line, row


def _read_jsonl(path: Path, columns: Sequence[str], task: Task, split: str) -> _Table:
    """One JSON object per line; blank lines are ignored."""
    values: list[list[Any]] = [[] for _ in columns]
    lines: list[int] = []
    for line, row in _json_rows(path):
        if not row.keys() >= set(columns):
            _select(f"{path}, line {line}", list(row), columns, task, split)
        lines.append(line)
        for column, name in zip(values, columns, strict=True):
            column.append(row[name])
    return _Table(str(path), dict(zip(columns, values, strict=True)), range(len(lines)), lines)


def _read_parquet(path: Path, columns: Sequence[str], task: Task, split: str) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        _select(str(path), file.schema_arrow.names, columns, task, split)
        table = file.read(columns=list(columns))
        values = {name: table[name].to_pylist() for name in columns}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None
    return _Table(str(path), values, range(table.num_rows))


_READERS = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _read_file(task: Task, split: str, source: str | Path | None, columns: Sequence[str]) -> _Table:
    path = _find(task, split, source)
    return _READERS[path.suffix.lower()](path, columns, task, split)


# --- the hub ----------------------------------------------------------------------------------------------------------


def _from_hub(task: Task, source: str | Path | None) -> bool:
    if source == "hub" and task.hub is None:
        raise DataError(f"task {task.name} has no data set on the hub; leave the source out to read its files")
    return task.hub is not None and (source is None or source == "hub")


def _read_hub(task: Task, split: str, labelled: bool) -> Examples:
    assert task.hub is not None
    hub = task.hub
    columns = (*hub.text_columns, hub.label_column) if labelled else hub.text_columns
    table, features = _hub_table(task, split, columns)
    names = getattr(features[hub.label_column], "names", None) if labelled else None
    if names and sorted(names) == sorted(task.label_names):
        # The data set's own order of labels counts, whatever the task's is.
        labels = [names[v] if v is not None and v >= 0 else v for v in table.columns[hub.label_column]]
        table = dataclasses.replace(table, columns={**table.columns, hub.label_column: labels})
    elif names:
        raise DataError(
            f"{table.source}, column {hub.label_column!r}: its labels are {', '.join(names)}, those of task {task.name} "
            f"are {', '.join(task.label_names)}; give the task the same labels"
        )
    renamed = dataclasses.replace(task, label_column=hub.label_column)
    return _examples(renamed, split, table, labelled, hub.text_columns)


def _hub_table(task: Task, split: str, columns: Sequence[str]) -> tuple[_Table, Any]:
    """Columns of a split on the hub as they stand, and the data set's features."""
    assert task.hub is not None
    hub = task.hub
    source = f"hub:{hub.repo}" + (f"/{hub.config}" if hub.config else "") + f" split {hub.splits[split]!r}"
    local = f"with --data-dir FOLDER (GLUE's release, holding {task.folder}/)" if task.folder else "from files"
    data = load_hub(hub.repo, hub.splits[split], source, local, config=hub.config, revision=hub.revision)
    _select(source, data.column_names, columns, task, split)
    return _Table(source, {name: list(data[name]) for name in columns}, range(data.num_rows)), data.features


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
