"""Folds of cross-validation: stratified by label, and grouped so that no text is in training and validation at once."""

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

#: With `folds: 1`, about one sample in this many is in the validation fold.
HOLD_OUT = 10


def normalise(text: str) -> str:
    """Normalise a text for grouping: Unicode NFKC, case folded, runs of white space as one space, none at the ends."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())  # folding can undo the normal form


def group_ids(examples: Labelled, task: AnyTask) -> np.ndarray:
    """Number the groups of samples that must stay in one fold.

    Samples that share a normalised text in any of the task's `group_by` columns are one group, transitively. `"containing"`
    groups by :func:`containing_groups`; with `()`, each sample is a group.

    Args:
        examples: N samples.
        task: The task, with `group_by`.

    Returns:
        (N,) int64 group of each sample; groups count from 0 in the order of their first samples.

    Raises:
        DataError: `"containing"` for a task of text pairs.
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
    text_nodes: dict[str, int] = {}
    nodes = [text_nodes.setdefault(normalise(text), n + len(text_nodes)) for column in columns for text in column]
    # A graph of N samples and the distinct texts, with an edge from each sample to each of its texts; groups are components.
    rows = np.tile(np.arange(n), len(columns))
    size = n + len(text_nodes)
    graph = coo_array((np.ones(len(nodes), np.int8), (rows, np.array(nodes, np.int64))), shape=(size, size))
    return _numbered(connected_components(graph, directed=False)[1][:n])


def containing_groups(texts: Sequence[str]) -> np.ndarray:
    """Find for each text the longest text that contains it as a sequence of words.

    Of containing texts of equal length, the first counts. A phrase contained in several texts joins the longest only, so
    groups can share phrases, but not whole texts.

    Args:
        texts: N normalised texts.

    Returns:
        (N,) position of the longest containing text; a text's own position if no other contains it.
    """
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(text, i)
    words = {text: text.split(" ") for text in first}
    # Longest first: no text contains the longest container of a text, so only such maximal texts are searched, and the first
    # hit is the longest. The rarest word of a text has the shortest list of candidates.
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
    """The k folds of a cross-validation.

    Attributes:
        k: Number of folds; 1 is one validation split of about a tenth.
        seed: The seed of the assignment.
        grouping: What the samples are grouped by.
        assignment: (N,) fold in which a sample is used for validation; with k = 1, 0 for validation and -1 for training.
        ids: (N,) ids of the samples in their file; by default 0..N-1.
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
        """Return the positions of the fold's training samples, ascending."""
        return np.flatnonzero(self.assignment != self._checked(fold))

    def held_out(self, fold: int) -> np.ndarray:
        """Return the positions of the fold's validation samples, ascending."""
        return np.flatnonzero(self.assignment == self._checked(fold))

    def _checked(self, fold: int) -> int:
        if not 0 <= fold < self.k:
            raise DataError(f"fold {fold}: there are {self.k} folds, 0 to {self.k - 1}")
        return fold

    @property
    def digest(self) -> str:
        """sha256 (hex) of k, seed, grouping, ids and assignment; equal for equal folds only."""
        digest = hashlib.sha256(json.dumps([self.k, self.seed, self.grouping, len(self)]).encode())
        digest.update(self.ids.astype("<i8").tobytes())
        digest.update(self.assignment.astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the folds as a JSON file, atomically."""
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
        """Read folds written by :meth:`save`. Raises DataError if the file is missing, damaged or does not match its digest."""
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
    """Return the grouping of a task as a string, as used in :attr:`Folds.digest`."""
    return task.group_by if isinstance(task.group_by, str) else " | ".join(task.group_by) or "none"


@dataclasses.dataclass(frozen=True)
class FoldMessages:
    """Parts of the error messages of :func:`make_folds`, so that they name the options of the command in use.

    Attributes:
        option: The option that sets the folds; `{k}` is the number of folds.
        fold: The name of one fold; `{fold}` is its number.
        too_few: What to do if there are too few samples for k folds.
        one_label: What to do if one side of a fold has a single label.
    """

    option: str = "folds: {k}"
    fold: str = "fold {fold} of {k}"
    too_few: str = "use fewer folds"
    one_label: str = "use fewer folds, another seed (fold_seed) or other groups (data.group_by)"


def make_folds(examples: Labelled, task: AnyTask, k: int, seed: int, messages: FoldMessages | None = None) -> Folds:
    """Make k stratified folds that keep groups together; the same for equal samples and seed.

    Args:
        examples: N labelled samples.
        task: The task, with `group_by`.
        k: Number of folds; 1 is one validation split of about a tenth.
        seed: The seed of the assignment.
        messages: Parts of error messages; by default the keys of a search space.

    Raises:
        DataError: Too few samples, groups or samples of a label, or one side of a fold with a single label.
    """
    messages = messages or FoldMessages()
    if examples.labels is None:
        raise DataError(f"{examples.source}: folds need labels, and these samples have none")
    groups = group_ids(examples, task)
    parts = HOLD_OUT if k == 1 else k
    _check_counts(examples, groups, task, k, parts, seed, messages)
    assignment = _assign(examples.labels, groups, parts, seed)
    if k == 1:
        assignment = np.where(assignment == _hold_out_part(assignment, examples, groups), 0, -1)
    folds = Folds(k, seed, grouping_name(task), assignment, examples.ids)
    for fold in range(k):
        for side, positions in (("training", folds.train(fold)), ("validation", folds.held_out(fold))):
            labels = np.unique(examples.labels[positions])
            if len(labels) < 2:
                only = repr(task.label_names[labels[0]]) if len(labels) else "no"
                raise DataError(
                    f"{examples.source}: {messages.fold.format(fold=fold, k=k)}: the {side} samples have only the "
                    f"label {only}; {messages.one_label}"
                )
    return folds


def _check_counts(
    examples: Labelled, groups: np.ndarray, task: AnyTask, k: int, parts: int, seed: int, messages: FoldMessages
) -> None:
    assert examples.labels is not None
    place = f"{examples.source}: {messages.option.format(k=k)}"
    if k < 1:
        raise DataError(f"{place}: the number of folds must be at least 1")
    if not 0 <= seed < 2**32:
        raise DataError(f"{place}: the seed {seed} is out of range; use 0 to {2**32 - 1}")
    share = f" (one validation split is a {HOLD_OUT}th of the samples)" if k == 1 else ""
    classes, counts = np.unique(examples.labels, return_counts=True)
    limits = [(len(examples), "samples"), (int(groups.max(initial=-1)) + 1, f"groups by {grouping_name(task)}")]
    if len(classes):
        rarest = int(np.argmin(counts))
        limits.append((int(counts[rarest]), f"samples of the label {task.label_names[classes[rarest]]!r}"))
    for limit, unit in limits:
        if parts > limit:
            raise DataError(f"{place}: needs at least {parts} {unit}, but there are {limit}{share}; {messages.too_few}")


def _assign(labels: np.ndarray, groups: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """Assign each sample to the part, 0..parts-1, in which it is used for validation, (N,)."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    # If every group is one sample, the splitter without groups balances exactly and is far faster.
    ungrouped = groups.max() + 1 == len(groups)
    splitter = (StratifiedKFold if ungrouped else StratifiedGroupKFold)(parts, shuffle=True, random_state=seed)
    assignment = np.full(len(labels), -1, np.int64)
    for part, (_, held_out) in enumerate(
        splitter.split(np.zeros((len(labels), 1)), labels, None if ungrouped else groups)
    ):
        assignment[held_out] = part
    return assignment


def _hold_out_part(assignment: np.ndarray, examples: Labelled, groups: np.ndarray) -> int:
    """Find the first part with about a tenth of the samples; the part of a very large group has more."""
    share = np.bincount(assignment, minlength=HOLD_OUT) / len(assignment) * HOLD_OUT
    fitting = np.flatnonzero((share > 0.5) & (share < 1.5))
    if not len(fitting):
        raise DataError(
            f"{examples.source}: folds: 1: no validation split of about a {HOLD_OUT}th of the samples keeps groups together; the "
            f"largest has {np.bincount(groups).max()} of {len(assignment)} samples; use folds: 2 or more, or other groups (group_by)"
        )
    return int(fitting[0])
