"""Guess a task from a table: which columns hold texts and labels, which metric and length fit, what keeps samples together.

:mod:`leebert.starter` writes the guesses into a file that users can edit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leebert.data.folds import group_ids
from leebert.data.labels import as_written, is_missing, numbers
from leebert.data.sources import Examples
from leebert.data.tasks import NO_REGRESSION, Task
from leebert.data.texts import is_text
from leebert.errors import DataError, nearest

#: Names of label columns, the most telling first, in lower case.
LABELS = (
    "label", "labels", "gold_label", "class", "classes", "category", "categories", "target", "sentiment", "intent", "topic",
    "verdict", "polarity", "emotion", "stance", "is_duplicate", "y", "stars", "rating", "quality", "output", "tag",
    "score", "similarity", "relatedness",
)  # fmt: skip

#: Names of text columns, in lower case.
TEXTS = (
    "text", "sentence", "review", "content", "body", "comment", "message", "tweet", "utterance", "question", "document",
    "description", "headline", "post", "query", "abstract", "title", "input", "sms", "email",
)  # fmt: skip

#: Names of the two columns of a pair, in lower case.
PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("#1 string", "#2 string"), ("question1", "question2"),
    ("text1", "text2"), ("text_a", "text_b"), ("sentence_a", "sentence_b"), ("question", "answer"), ("question", "sentence"),
    ("question", "passage"), ("question", "context"), ("query", "passage"), ("query", "document"), ("claim", "evidence"),
    ("premise", "claim"), ("source", "target"),
)  # fmt: skip

#: Names of columns that say which split a row belongs to, and the split for each of their values.
SPLIT_COLUMNS = ("split", "set", "partition", "fold_name", "subset")
SPLITS = {
    "train": "train", "training": "train", "dev": "dev", "development": "dev", "val": "dev", "valid": "dev",
    "validation": "dev", "eval": "dev", "test": "test", "testing": "test",
}  # fmt: skip

#: A column without a telling name is a label only if it has at most this many values.
MOST_VALUES = 30

#: A numeric label with more values than this is a measured number, not a class.
MOST_NUMBERS = 20

#: If the largest class has more than this many times the samples of the smallest, accuracy says little.
IMBALANCE = 3.0

#: The folds of cross-validation: with one seed, fewer are too few for confidence intervals. Every class needs as many samples.
FOLDS = 5

#: A fold needs a few samples to say anything.
LEAST_ROWS = 6 * FOLDS


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its name.
        values: The value of each row.
    """

    name: str
    values: Sequence[Any]

    @functools.cached_property
    def present(self) -> list[Any]:
        """Values that are not missing."""
        return [value for value in self.values if not is_missing(value)]

    @functools.cached_property
    def counts(self) -> Counter[str]:
        """Number of rows by value as written, without missing ones."""
        return Counter(as_written(value).strip() for value in self.present)

    @functools.cached_property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return bool(self.present) and all(numbers(value) for value in self.counts)

    @functools.cached_property
    def fractional(self) -> bool:
        """Whether a value is a number with a fraction."""
        return self.numeric and any(numbers(v)[0] != numbers(v)[0].to_integral_value() for v in self.counts)

    @functools.cached_property
    def characters(self) -> float:
        """Mean length of its texts in characters; 0 if a value is not a text."""
        if not self.present or self.numeric or not all(isinstance(value, str) for value in self.present):
            return 0.0
        return float(np.mean([len(value) for value in self.present]))

    @functools.cached_property
    def words(self) -> float:
        """Mean number of words of its texts; 0 if a value is not a text."""
        return float(np.mean([len(value.split()) for value in self.present])) if self.characters else 0.0

    @property
    def is_prose(self) -> bool:
        """Whether its values read like texts: several words, or many characters of a script without spaces; mostly distinct."""
        many = len(self.counts) > max(2, 0.1 * len(self.present))
        return many and (self.words >= 3 or (self.characters >= 10 and not _spaced(self.present)))


def _spaced(texts: Sequence[str]) -> bool:
    """Whether most letters belong to scripts that put spaces between words (below U+2E80: not Chinese, Japanese, …)."""
    letters = "".join(texts[:200])
    return sum(c < "\u2e80" for c in letters) > 0.5 * len(letters)


@dataclasses.dataclass(frozen=True)
class Table:
    """All columns of a source.

    Attributes:
        source: File or hub data set, for messages.
        columns: The columns by name.
        label_names: Names of the classes by column, if the source declares them (on the hub).
    """

    source: str
    columns: Mapping[str, Column]
    label_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return max((len(column.values) for column in self.columns.values()), default=0)

    def column(self, name: str, option: str) -> Column:
        """Return a column that an option names. Raises DataError."""
        if name not in self.columns:
            raise DataError(
                f"{option} {name}: {self.source} has no such column{nearest(name, self.columns)}; its columns are "
                f"{', '.join(self.columns)}"
            )
        return self.columns[name]

    def rows(self, keep: Sequence[bool]) -> Table:
        """Return a table with a part of the rows."""
        columns = {
            name: Column(name, [value for value, kept in zip(column.values, keep, strict=True) if kept])
            for name, column in self.columns.items()
        }
        return dataclasses.replace(self, columns=columns)


@dataclasses.dataclass(frozen=True)
class TableGuess:
    """What a table seems to hold.

    Attributes:
        texts: The columns of texts, one or two.
        label: The column of labels.
        labels: Number of rows by class, in the order of the classes.
        metric: The metric that fits the classes' sizes.
        group_by: The text columns that group samples; None: all of them, the default; (): none.
        largest_group: Rows of the largest group.
        tokens: Estimated tokens of each row, special tokens included.
        other_script: Whether most letters are not Latin, so that an English encoder can't read them.
        repeated: Rows whose texts occur more than once.
        contradictory: Distinct texts that occur with different labels.
        ignored: Column → why it is not used.
    """

    texts: tuple[str, ...]
    label: str
    labels: Mapping[str, int]
    metric: str
    group_by: tuple[str, ...] | None
    largest_group: int
    tokens: np.ndarray
    other_script: bool
    repeated: int
    contradictory: int
    ignored: Mapping[str, str]

    @property
    def rows(self) -> int:
        return sum(self.labels.values())

    @property
    def largest_class(self) -> str:
        return max(self.labels, key=lambda name: self.labels[name])


def guess(table: Table, *, texts: Sequence[str] = (), label: str | None = None) -> TableGuess:
    """Guess texts, labels, metric and groups of a table.

    Args:
        table: The table.
        texts: Names of its text columns; none: guess them.
        label: Name of its label column; None: guess it.

    Raises:
        DataError: The table has no rows, no labels or no texts, or its labels are not classes; the message says what to do.
    """
    if not len(table):
        raise DataError(f"{table.source}: no rows; check the file, or give another one")
    _check_header(table)
    if len(table) < LEAST_ROWS:
        raise DataError(f"{table.source}: too few rows ({len(table)}) to compare anything; give at least {LEAST_ROWS}")
    labels = table.column(label, "--label") if label else _label_column(table, texts)
    _check_classes(table, labels)
    chosen = _named_texts(table, texts, labels.name) if texts else _text_columns(table, labels.name)
    counts = _classes(table, labels)
    group_by, largest = _groups(table, chosen)
    per_text: dict[tuple[Any, ...], set[str]] = {}
    rows_of: Counter[tuple[Any, ...]] = Counter()
    for *row, value in zip(*(table.columns[name].values for name in chosen), labels.values, strict=True):
        per_text.setdefault(tuple(row), set()).add(as_written(value))
        rows_of[tuple(row)] += 1
    return TableGuess(
        texts=chosen,
        label=labels.name,
        labels=counts,
        metric="macro_f1" if max(counts.values()) > IMBALANCE * min(counts.values()) else "accuracy",
        group_by=group_by,
        largest_group=largest,
        tokens=sum((_tokens(table.columns[name].values) for name in chosen), np.ones(len(table))),
        other_script=_other_script(table.columns[chosen[0]].present),
        repeated=sum(count for count in rows_of.values() if count > 1),
        contradictory=sum(len(different) > 1 for different in per_text.values()),
        ignored={name: _why_ignored(column) for name, column in table.columns.items() if name not in (*chosen, labels.name)},
    )  # fmt: skip


def split_column(table: Table) -> str | None:
    """Return the name of the column that says which split a row belongs to; None if there is none."""
    for name, column in table.columns.items():
        if name.lower() in SPLIT_COLUMNS and column.counts and len(column.present) == len(table):
            splits = {SPLITS.get(value.lower()) for value in column.counts}
            if None not in splits and "train" in splits:
                return name
    return None


def _check_header(table: Table) -> None:
    """Raise DataError for a file with another separator, or without a header."""
    names = list(table.columns)
    if len(names) == 1 and (marks := [mark for mark in (";", "\t", "|", ",") if mark in names[0]]):
        shown = {"\t": "a tab"}.get(marks[0], repr(marks[0]))
        raise DataError(
            f"{table.source}: one column only, {names[0]!r}: the separator seems to be {shown}; save the file with commas "
            "(.csv) or tabs (.tsv)"
        )
    data = [name for name in names if numbers(name) or len(name.split()) > 6]
    if data:
        raise DataError(
            f"{table.source}: the column name {data[0][:60]!r} looks like data; add a first line with the columns' names"
        )


def _label_column(table: Table, texts: Sequence[str]) -> Column:
    """Guess the column of labels: by its name, else the only column with few values."""
    by_name = {name.lower(): column for name, column in table.columns.items() if name not in texts}
    for name in LABELS:
        if name in by_name and not by_name[name].is_prose:
            return by_name[name]
    few = [
        column
        for name, column in table.columns.items()
        if name not in texts and name.lower() not in SPLIT_COLUMNS and _few_values(column)
    ]
    if len(few) == 1:
        return few[0]
    if few:
        raise DataError(
            f"{table.source}: {', '.join(column.name for column in few)} could all be labels; name the one to predict: "
            f"--label {few[0].name}"
        )
    raise DataError(
        f"{table.source}: no column of labels among {', '.join(table.columns)}; name it by --label COLUMN, or add one"
    )


def _few_values(column: Column) -> bool:
    return 1 < len(column.counts) <= min(MOST_VALUES, len(column.present) / 4) and not column.fractional


def _check_classes(table: Table, column: Column) -> None:
    """Raise DataError if the values of a column can't be classes."""
    place = f"{table.source}, column {column.name!r}"
    many = len(column.counts)
    if not many:
        raise DataError(f"{place}: all labels are missing; name another column by --label COLUMN")
    if many == 1:
        (only,) = column.counts
        raise DataError(f"{place}: every label is {only[:60]!r}; a task needs at least two classes")
    if column.numeric and (many > MOST_NUMBERS or (column.fractional and many > 2)):
        raise DataError(f"{place}: {many} different numbers: this is a regression: {NO_REGRESSION}")
    if many == len(column.present):
        raise DataError(
            f"{place}: every row has a label of its own, so nothing can be learned; name another column by --label COLUMN"
        )


def _classes(table: Table, column: Column) -> dict[str, int]:
    """Return the number of rows by class, numbers in their order, other classes alphabetically."""
    names = table.label_names.get(column.name)
    if names:
        ids = Counter(int(value) for value in column.present)
        counts = {name: ids[i] for i, name in enumerate(names)}
    elif column.numeric:
        counts = {value: column.counts[value] for value in sorted(column.counts, key=lambda v: numbers(v)[0])}
    else:
        counts = dict(sorted(column.counts.items()))
    small = [name for name, count in counts.items() if count < FOLDS]
    if small:
        several = f"{len(small)} labels have" if len(small) > 1 else f"the label {small[0]!r} has"
        raise DataError(
            f"{table.source}, column {column.name!r}: {several} fewer than {FOLDS} rows ({', '.join(small[:5])}); "
            f"cross-validation over {FOLDS} folds needs {FOLDS}: merge or remove these labels"
        )
    return counts


def _named_texts(table: Table, texts: Sequence[str], label: str) -> tuple[str, ...]:
    """Check the text columns that options name."""
    columns = [table.column(name, "--text") for name in texts]
    if len(columns) > 2:
        raise DataError(f"--text: {len(columns)} columns; a task has one text, or a pair")
    for column in columns:
        if column.name == label:
            raise DataError(f"--text {column.name}: this is the column of labels; give --label, too")
        if not column.characters:
            raise DataError(f"--text {column.name}: its values in {table.source} are not texts; name another column")
    return tuple(column.name for column in columns)


def _text_columns(table: Table, label: str) -> tuple[str, ...]:
    """Guess the columns of texts: a pair or a text by name, else the only two, or the longest, that read like texts."""
    by_name = {name.lower(): name for name, column in table.columns.items() if name != label and column.characters}
    for pair in PAIRS:
        if all(name in by_name for name in pair):
            return by_name[pair[0]], by_name[pair[1]]
    for name in TEXTS:
        if name in by_name and table.columns[by_name[name]].counts:
            return (by_name[name],)
    prose = [column for name, column in table.columns.items() if name != label and column.is_prose]
    if len(prose) == 2:
        return prose[0].name, prose[1].name
    candidates = prose or [c for n, c in table.columns.items() if n != label and c.characters and not _is_key(c)]
    if not candidates:
        raise DataError(
            f"{table.source}: no column of texts among {', '.join(table.columns)}; name one or two by --text COLUMN"
        )
    return (max(candidates, key=lambda column: column.characters).name,)


def _is_key(column: Column) -> bool:
    """Whether a column identifies rows: all values differ, and none has several words."""
    return len(column.counts) == len(column.values) and (column.numeric or column.words <= 1)


def _why_ignored(column: Column) -> str:
    if not column.present:
        return "empty"
    if len(column.counts) == 1:
        return "one value"
    if column.name.lower() in SPLIT_COLUMNS:
        return "a split"
    if _is_key(column):
        return "identifies rows"
    if column.numeric:
        return "numbers"
    return "another text" if column.is_prose else f"{len(column.counts)} values"


def _groups(table: Table, texts: tuple[str, ...]) -> tuple[tuple[str, ...] | None, int]:
    """Choose the text columns that group samples: all, unless one group would then be larger than a fold.

    Returns:
        The columns, None for all of them; and the rows of the largest group.
    """
    n = len(table)
    columns = tuple([value if is_text(value) else "" for value in table.columns[name].values] for name in texts)
    examples = Examples(columns, None, np.arange(n), table.source)
    sizes = {}
    for group_by in (texts, *((name,) for name in texts if len(texts) > 1), ()):
        task = Task("guess", texts, "", ("0", "1"), "accuracy", group_by, {})
        sizes[group_by] = int(np.bincount(group_ids(examples, task)).max())
        if sizes[group_by] <= max(1, n / (2 * FOLDS)):
            return (None if group_by == texts else group_by), sizes[group_by]
    return (), 1


def _tokens(texts: Sequence[Any]) -> np.ndarray:
    """Estimate the tokens of texts, (N,), with one special token each.

    WordPiece makes about 1.3 tokens of an English word, and one of each character of a script without spaces.
    """
    counts = []
    for text in texts:
        written = text if isinstance(text, str) else ""
        single = sum(c >= "\u2e80" for c in written)
        words = len(re.findall(r"\w+|[^\w\s]", written)) if not single else 0
        counts.append(1 + single + math.ceil(max(1.15 * words, (len(written) - single) / 5)))
    return np.array(counts, dtype=float)


def _other_script(texts: Sequence[str]) -> bool:
    letters = [c for text in texts[:1000] for c in text[:500] if c.isalpha()]
    return sum(c > "\u024f" for c in letters) > 0.5 * len(letters)
