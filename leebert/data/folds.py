"""Which rows train and which are held out: stratified by label, and grouped so that no text is on both sides."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leebert.data.sources import Examples, Labelled
from leebert.data.tasks import AnyTask, Task
from leebert.errors import DataError
from leebert.files import parse_json, replaced

#: One fixed hold-out (`folds: 1`) holds out about one row in so many.
HOLD_OUT = 10


def normalise(text: str) -> str:
    """Unicode NFKC, case folded, runs of white space as one space, none at the ends: equal texts for grouping."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())  # folding can undo the normal form


def group_ids(examples: Labelled, task: AnyTask) -> np.ndarray:
    """(N,) int64: rows with the same number belong together; numbers count up from 0 in the order of first rows.

    Rows that share a normalised text of the task's `group_by` columns, in whichever of them, are one group, and so is
    what such rows share with others. "containing" groups by :func:`containing_groups`; () leaves each row alone.
    """
    if not task.group_by:
        return np.arange(len(examples))
    assert isinstance(task, Task)  # only texts have columns to group by
    assert isinstance(examples, Examples)
    if task.group_by == "containing":
        if len(examples.texts) != 1:
            raise DataError(f"{examples.source}: grouping 'containing' is for tasks of one text, not of a pair")
        return _numbered(containing_groups([normalise(text) for text in examples.texts[0]]))
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(examples)
    columns = [examples.texts[task.text_columns.index(name)] for name in task.group_by]
    seen: dict[str, int] = {}
    nodes = [seen.setdefault(normalise(text), n + len(seen)) for column in columns for text in column]
    # A graph of N rows and the distinct texts, an edge from each row to each of its texts: groups are its components.
    rows = np.tile(np.arange(n), len(columns))
    size = n + len(seen)
    graph = coo_array((np.ones(len(nodes), np.int8), (rows, np.array(nodes, np.int64))), shape=(size, size))
    return _numbered(connected_components(graph, directed=False)[1][:n])


def containing_groups(texts: Sequence[str]) -> np.ndarray:
    """(N,) the position of the longest text that contains each text as a sequence of words, or of the text itself.

    Among texts of equal length the first counts. A phrase that several long texts hold goes with the longest alone, so
    phrases may still be shared between groups; whole texts are not.
    """
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(text, i)
    words = {text: text.split(" ") for text in first}
    # Longest first: the longest container of a text is contained in nothing itself, so only such texts are searched,
    # and the first hit is the longest. The rarest word of a text has the shortest list of candidates.
    maximal: list[str] = []
    holders: dict[str, list[int]] = {}  # word → positions in `maximal`
    owner: dict[str, int] = {}
    for text in sorted(first, key=lambda t: (-len(words[t]), first[t])):
        candidates = min((holders.get(word, []) for word in words[text]), key=len)
        padded = f" {text} "
        hit = next((maximal[c] for c in candidates if padded in maximal[c]), None)
        if hit is not None:
            owner[text] = first[hit[1:-1]]
            continue
        owner[text] = first[text]
        for word in set(words[text]):
            holders.setdefault(word, []).append(len(maximal))
        maximal.append(padded)
    return np.array([owner[text] for text in texts], np.int64)


def _numbered(groups: np.ndarray) -> np.ndarray:
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


@dataclasses.dataclass(frozen=True, eq=False)
class Folds:
    """k ways to hold out rows.

    assignment: (N,) the fold in which a row is held out; for k = 1, 0 where held out, else -1. ids: (N,) row ids,
    by default 0..N-1. grouping: what kept rows together. train and held_out return positions, not ids.
    """

    k: int
    seed: int
    grouping: str
    assignment: np.ndarray
    ids: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        assignment = np.asarray(self.assignment, dtype=np.int64)
        ids = np.asarray(self.ids, dtype=np.int64)
        object.__setattr__(self, "assignment", assignment)
        object.__setattr__(self, "ids", ids if len(ids) else np.arange(len(assignment)))
        if len(self.ids) != len(assignment):
            raise DataError(f"folds: {len(assignment)} assigned rows, but {len(self.ids)} row ids")
        lowest = -1 if self.k == 1 else 0
        if len(assignment) and not lowest <= assignment.min() <= assignment.max() < self.k:
            raise DataError(f"folds: an assignment lies outside {lowest}..{self.k - 1}")

    def __len__(self) -> int:
        return len(self.assignment)

    def train(self, fold: int) -> np.ndarray:
        """Positions of the rows that train in a fold, ascending."""
        return np.flatnonzero(self.assignment != self._checked(fold))

    def held_out(self, fold: int) -> np.ndarray:
        """Positions of the rows that are held out in a fold, ascending."""
        return np.flatnonzero(self.assignment == self._checked(fold))

    def _checked(self, fold: int) -> int:
        if not 0 <= fold < self.k:
            raise DataError(f"fold {fold}: there are {self.k} folds, 0 to {self.k - 1}")
        return fold

    @property
    def digest(self) -> str:
        """sha256 (hex) of k, seed, grouping, row ids and assignment: two equal digests, the same folds."""
        digest = hashlib.sha256(json.dumps([self.k, self.seed, self.grouping, len(self)]).encode())
        digest.update(self.ids.astype("<i8").tobytes())
        digest.update(self.assignment.astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a JSON manifest, atomically."""
        values = {
            "k": self.k,
            "seed": self.seed,
            "grouping": self.grouping,
            "digest": self.digest,
            "ids": self.ids.tolist(),
            "assignment": self.assignment.tolist(),
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path, sync=False) as temporary:
            temporary.write_text(json.dumps(values), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Folds:
        """Read a manifest. Raises DataError where it is missing, damaged, or does not match its digest."""
        try:
            values = parse_json(Path(path).read_text(encoding="utf-8"))
            digest = values.pop("digest")
            folds = cls(**{**values, "k": int(values["k"]), "seed": int(values["seed"])})
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such fold manifest") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, DataError) as error:
            raise DataError(f"{path}: not a readable fold manifest ({error}); make the folds anew") from None
        if folds.digest != digest:
            raise DataError(f"{path}: the folds were altered after they were written (digest differs); make them anew")
        return folds


def grouping_name(task: AnyTask) -> str:
    """What a task's rows are grouped by, as it stands in the digest."""
    return task.group_by if isinstance(task.group_by, str) else " | ".join(task.group_by) or "none"


@dataclasses.dataclass(frozen=True)
class Asked:
    """How errors name what asked for folds, and what there is to change, by the options of the command that was typed.

    what: what asked, with {k} for the number of folds. fold: what one of them is called. fewer: the cure where there are
    too few rows for so many folds. other: the cure where they come out wrong.
    """

    what: str = "folds: {k}"
    fold: str = "fold {fold} of {k}"
    fewer: str = "use fewer folds"
    other: str = "use fewer folds, another seed (fold_seed) or other groups (data.group_by)"


def make_folds(examples: Labelled, task: AnyTask, k: int, seed: int, asked: Asked | None = None) -> Folds:
    """k stratified folds that keep groups together, the same for the same examples and seed; k = 1 is one hold-out.

    Args:
        examples: N labelled rows.
        task: The task, which says what rows belong together.
        k: How many folds; 1 is one hold-out.
        seed: Fixes the folds.
        asked: What errors say; by default in the words of a search space.

    Raises:
        DataError: The rows do not allow it: too few rows, groups or rows of a label, or one side of a fold with a
            single label.
    """
    asked = asked or Asked()
    if examples.labels is None:
        raise DataError(f"{examples.source}: folds need labels, and these rows have none")
    groups = group_ids(examples, task)
    parts = HOLD_OUT if k == 1 else k
    _check_counts(examples, groups, task, k, parts, seed, asked)
    assignment = _assign(examples.labels, groups, parts, seed)
    if k == 1:
        assignment = np.where(assignment == _hold_out_part(assignment, examples, groups), 0, -1)
    folds = Folds(k, seed, grouping_name(task), assignment, examples.ids)
    for fold in range(k):
        for side, rows in (("training", folds.train(fold)), ("held-out", folds.held_out(fold))):
            labels = np.unique(examples.labels[rows])
            if len(labels) < 2:
                only = repr(task.label_names[labels[0]]) if len(labels) else "no"
                raise DataError(
                    f"{examples.source}: {asked.fold.format(fold=fold, k=k)}: the {side} rows have only the label "
                    f"{only}; {asked.other}"
                )
    return folds


def _check_counts(
    examples: Labelled, groups: np.ndarray, task: AnyTask, k: int, parts: int, seed: int, words: Asked
) -> None:
    assert examples.labels is not None
    asked = f"{examples.source}: {words.what.format(k=k)}"
    if k < 1:
        raise DataError(f"{asked}: the number of folds is at least 1")
    if not 0 <= seed < 2**32:
        raise DataError(f"{asked}: the seed {seed} is out of range; use 0 to {2**32 - 1}")
    why = f" (one hold-out is a {HOLD_OUT}th of the rows)" if k == 1 else ""
    classes, counts = np.unique(examples.labels, return_counts=True)
    limits = [(len(examples), "rows"), (int(groups.max(initial=-1)) + 1, f"groups by {grouping_name(task)}")]
    if len(classes):
        rarest = int(np.argmin(counts))
        limits.append((int(counts[rarest]), f"rows of the label {task.label_names[classes[rarest]]!r}"))
    for limit, what in limits:
        if parts > limit:
            raise DataError(f"{asked}: needs at least {parts} {what}, but there are {limit}{why}; {words.fewer}")


def _assign(labels: np.ndarray, groups: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """(N,) the part, 0..parts-1, in which each row is held out."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    # Where every group is one row the plain splitter balances exactly and is far faster.
    alone = groups.max() + 1 == len(groups)
    splitter = (StratifiedKFold if alone else StratifiedGroupKFold)(parts, shuffle=True, random_state=seed)
    assignment = np.full(len(labels), -1, np.int64)
    for part, (_, held_out) in enumerate(splitter.split(np.zeros((len(labels), 1)), labels, None if alone else groups)):
        assignment[held_out] = part
    return assignment


def _hold_out_part(assignment: np.ndarray, examples: Labelled, groups: np.ndarray) -> int:
    """The first part of about a tenth of the rows: a very large group makes its own part larger than that."""
    share = np.bincount(assignment, minlength=HOLD_OUT) / len(assignment) * HOLD_OUT
    fitting = np.flatnonzero((share > 0.5) & (share < 1.5))
    if not len(fitting):
        raise DataError(
            f"{examples.source}: folds: 1: no hold-out of about a {HOLD_OUT}th of the rows keeps groups together; the largest "
            f"has {np.bincount(groups).max()} of {len(assignment)} rows; use folds: 2 or more, or other groups (group_by)"
        )
    return int(fitting[0])
