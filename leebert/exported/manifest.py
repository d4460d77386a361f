"""The manifest `export.json` of an exported model: what the folder holds, how it was made, and the digest of each file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import stat
import types
import typing
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from leebert.errors import CheckpointError, nearest
from leebert.exits import CRITERIA, named
from leebert.files import parse_json, write_atomically

#: The file of the manifest.
MANIFEST = "export.json"

#: The file of the tokenizer of a model of texts.
TOKENIZER = "tokenizer.json"

#: The version of the folder's format that this module writes and reads.
FORMAT = 1

#: What to do about a folder that is not as it was exported.
ADVICE = "export the model again with `leebert export`"

#: The inputs of a model, which every segment may take.
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")

#: The output of each segment that holds its exit's logits.
LOGITS = "logits"

_Made = TypeVar("_Made")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exits:
    """An exit criterion with its parameters.

    Attributes:
        criterion: Name of the exit criterion.
        threshold: Its threshold; None: the criterion's default, or it has none.
        patience: Its second parameter; None: the default, or it has none.
    """

    criterion: str
    threshold: float | None = None
    patience: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A threshold of an exit criterion, with score and speed on labelled samples.

    Attributes:
        threshold: The threshold.
        score: The metric's score, a fraction.
        mean_exit_layer: Mean of the exit layers, from 1.
        speed_up: Layer speed-up: depth / mean exit layer.
        milliseconds: Mean wall-clock time of one sample in a batch of 1, from the medians of `Timing`; None: not measured.
    """

    threshold: float
    score: float
    mean_exit_layer: float
    speed_up: float
    milliseconds: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """The curve of score against speed of an exit criterion, calibrated on the exported model's own logits.

    Attributes:
        criterion: Name of the exit criterion.
        patience: Its second parameter; None for a criterion without one.
        points: The slowest threshold, nearest to the full model, first.
    """

    criterion: str
    points: tuple[Point, ...]
    patience: int | None = None

    @property
    def name(self) -> str:
        """The criterion in words, with its second parameter."""
        return named(self.criterion, self.patience)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of the network that ends with an exit: one ONNX graph.

    Outputs other than `logits` are the state; the next segment takes them under the same names. The first dimension of
    every input and output is the sample.

    Attributes:
        file: Name of its file in the folder.
        layers: Its first and last layer, from 1.
        exit_layer: The layer of its exit, from 1.
        inputs: Names of its inputs.
        outputs: Names of its outputs, `logits` among them.
    """

    file: str
    layers: tuple[int, int]
    exit_layer: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def state(self) -> tuple[str, ...]:
        """Names of its outputs that the next segment takes."""
        return tuple(name for name in self.outputs if name != LOGITS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExitScore:
    """The score of one exit.

    Attributes:
        layer: The exit's layer, from 1.
        model: Score of the PyTorch model, a fraction.
        exported: Score of the exported model, a fraction.
    """

    layer: int
    model: float
    exported: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """How the milliseconds of the curves were measured.

    Attributes:
        threads: Threads of ONNX Runtime.
        batch_size: Samples per batch.
        texts: Number of samples.
        machine: The processor and operating system, in words.
        segments: Median wall-clock time of each segment, in milliseconds.
    """

    threads: int
    texts: int
    machine: str
    segments: tuple[float, ...]
    batch_size: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeWith:
    """The versions and the CPU that the model was exported with.

    Attributes:
        leebert: Version of this package.
        onnxruntime: Version of ONNX Runtime.
        onnx: Version of the package `onnx`.
        torch: Version of PyTorch.
        cpu: Flags of the CPU that determine ONNX Runtime's kernels, such as `avx2` and `avx512_vnni`.
    """

    leebert: str
    onnxruntime: str
    onnx: str = ""
    torch: str = ""
    cpu: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of `export.json`.

    Attributes:
        format: Version of the format.
        kind: Whether the model takes texts or images.
        name: The model's name in messages and pages.
        task: Name of the task.
        text_columns: For each text column the names that requests may use, the preferred one first.
        labels: (K,) names of the classes.
        max_length: Largest number of tokens of a sample; 0 for images.
        padding_id: The padding token.
        depth: Layers of the unreduced network, the reference of layer speed-ups.
        metric: Name of the task's metric.
        majority: Score of the majority class, a fraction; None: not computed.
        precision: Of the weights and activations.
        target: The runtime for which the graphs were made.
        segments: The parts of the network in their order.
        exits: The exit criterion in use by default.
        curves: Curves of score against speed.
        scores: The scores of each exit.
        timing: How milliseconds were measured; None: not measured.
        made_with: Versions and CPU.
        files: Name → SHA-256 of every other file of the folder.
    """

    format: int = FORMAT
    kind: Literal["texts", "images"]
    name: str
    task: str
    labels: tuple[str, ...]
    depth: int
    metric: str
    segments: tuple[Segment, ...]
    exits: Exits
    made_with: MadeWith
    text_columns: tuple[tuple[str, ...], ...] = ()
    max_length: int = 0
    padding_id: int = 0
    majority: float | None = None
    precision: Literal["fp32", "int8-dynamic", "int8-static"] = "fp32"
    target: Literal["onnx", "openvino"] = "onnx"
    curves: tuple[Curve, ...] = ()
    scores: tuple[ExitScore, ...] = ()
    timing: Timing | None = None
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def num_exits(self) -> int:
        """E, the number of exits, which is that of the segments."""
        return len(self.segments)

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """(E,) layer of each exit, from 1."""
        return tuple(segment.exit_layer for segment in self.segments)

    def curve(self, criterion: str, patience: int | None = None) -> Curve | None:
        """Return the curve of a criterion.

        Args:
            criterion: Name of the exit criterion.
            patience: Its second parameter; None: the default of this number of exits, or it has none.

        Returns:
            The curve; None if the model has none of that criterion and patience.
        """
        row = CRITERIA.find(criterion)
        counted = row.counted(patience, self.num_exits) if row else patience
        return next((c for c in self.curves if (c.criterion, c.patience) == (criterion, counted)), None)

    def as_json(self) -> str:
        """Return the text of the file."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    return (folder / MANIFEST).is_file()


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write `export.json` with the digests of the other files, which are written before.

    Args:
        folder: The folder of the exported model.
        manifest: The manifest; its `files` are ignored.

    Returns:
        The manifest as written.

    Raises:
        CheckpointError: The folder holds a link or a folder, or the manifest contradicts itself or the files.
    """
    digests = {name: digest(folder / name) for name in _names(folder) if name != MANIFEST}
    complete = dataclasses.replace(manifest, files=digests)
    _check(complete, folder / MANIFEST)
    write_atomically(folder / MANIFEST, complete.as_json())
    return complete


def read_manifest(folder: Path) -> Manifest:
    """Read `export.json`. No other file is read.

    Args:
        folder: The folder of the exported model.

    Raises:
        CheckpointError: The file is missing, damaged, of another format, or contradicts itself.
    """
    path = folder / MANIFEST
    try:
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link; copy the file into the folder")
        values = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}: give a folder that `leebert export` wrote") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}; {ADVICE}") from None
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT or isinstance(version, bool):
        raise CheckpointError(
            f"{path}: format: {version!r}, and this version of leebert reads {FORMAT}; {ADVICE} of this version"
        )
    manifest: Manifest = _made(Manifest, values, "", path)
    _check(manifest, path)
    return manifest


def verified(folder: Path, name: str, manifest: Manifest) -> bytes:
    """Read a file of an exported model.

    Args:
        folder: The folder.
        name: Name of the file.
        manifest: The manifest.

    Returns:
        The contents, of which the digest was computed.

    Raises:
        CheckpointError: The file can't be read or was altered.
    """
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / name} can't be read: {error.strerror}; {ADVICE}") from None
    if hashlib.sha256(data).hexdigest() != manifest.files[name]:
        raise CheckpointError(f"{folder / name} was altered: its SHA-256 is not that of {MANIFEST}; {ADVICE}")
    return data


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check that a folder holds exactly the files of its manifest. Their contents are checked by :func:`verified`.

    Args:
        folder: The folder of the exported model.
        manifest: Its manifest.

    Raises:
        CheckpointError: A file is missing, unknown, a link or a folder.
    """
    present = {name for name in _names(folder) if name != MANIFEST}
    for name in sorted(present - manifest.files.keys()):
        raise CheckpointError(f"{folder / name}: {MANIFEST} does not list this file; remove it, or {ADVICE}")
    for name in manifest.files:
        if name not in present:
            raise CheckpointError(f"{folder / name} is missing; {ADVICE}")


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check that a folder holds exactly the files of its manifest, unchanged.

    Args:
        folder: The folder of the exported model.
        manifest: Its manifest.

    Raises:
        CheckpointError: A file is missing, altered, unknown, a link or a folder.
    """
    check_files(folder, manifest)
    for name in manifest.files:
        verified(folder, name, manifest)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}; {ADVICE}") from None


def _names(folder: Path) -> list[str]:
    """Names of the files in a folder, sorted. Links, folders and devices are refused."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error.strerror}") from None
    for entry in entries:
        mode = entry.lstat().st_mode
        if not stat.S_ISREG(mode):
            what = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise CheckpointError(f"{entry} is {what}; an exported folder holds regular files only: remove it")
    return [entry.name for entry in entries]


#: Keys and what is wrong with them.
_Problems = Iterator[tuple[str, str]]


def _check(manifest: Manifest, path: Path) -> None:
    """Refuse a manifest that contradicts itself."""
    for key, problem in chain(_file_problems(manifest), _segment_problems(manifest), _exit_problems(manifest)):
        raise CheckpointError(f"{path}: {key}: {problem}; {ADVICE}")


def _file_problems(manifest: Manifest) -> _Problems:
    names = [*manifest.files, *(segment.file for segment in manifest.segments)]
    for name in names:
        if name in ("", ".", "..", MANIFEST) or any(c in name for c in "/\\:\0"):
            yield "files", f"{name!r} is not the name of a file in the folder"
    needed = [segment.file for segment in manifest.segments]
    for name in [*needed, *([TOKENIZER] if manifest.kind == "texts" else [])]:
        if name not in manifest.files:
            yield "files", f"{name} is not listed"
    if len(set(needed)) < len(needed):
        yield "segments", "two of them have one file"


def _segment_problems(manifest: Manifest) -> _Problems:
    if not manifest.segments:
        yield "segments", "there is none"
    if not manifest.labels:
        yield "labels", "there is none"
    if manifest.kind == "texts" and not 1 <= len(manifest.text_columns) <= 2:
        yield "text_columns", f"{len(manifest.text_columns)} columns; a model of texts takes 1 or 2"
    if manifest.kind == "texts" and manifest.max_length < 1:
        yield "max_length", f"{manifest.max_length}; should be at least 1"
    before: int = 0
    state: tuple[str, ...] = ()
    for number, segment in enumerate(manifest.segments):
        key = f"segments[{number}]"
        first, last = segment.layers
        if not (first == before + 1 and first <= last and segment.exit_layer == last <= manifest.depth):
            problem = f"layers {first} to {last}, exit at layer {segment.exit_layer}"
            yield (
                key,
                f"{problem}; should start at layer {before + 1}, end with its exit and not exceed {manifest.depth}",
            )
        if LOGITS not in segment.outputs:
            yield f"{key}.outputs", f"no {LOGITS}"
        for name in segment.inputs:
            if name not in state and name not in MODEL_INPUTS:
                yield f"{key}.inputs", f"{name!r} is neither an input of the model nor an output of the segment before"
        before, state = last, segment.state


def _exit_problems(manifest: Manifest) -> _Problems:
    own = manifest.exits
    criteria = [("exits", own.criterion, own.patience, [own.threshold] if own.threshold is not None else [])]
    for number, curve in enumerate(manifest.curves):
        key = f"curves[{number}]"
        if not curve.points:
            yield f"{key}.points", "there is none"
        criteria.append((key, curve.criterion, curve.patience, [point.threshold for point in curve.points]))
    for key, criterion, patience, thresholds in criteria:
        row = CRITERIA.find(criterion)
        if row is None:  # a criterion of another package: refused when it is used
            continue
        if patience is not None and (row.patience is None or patience < 1):
            yield f"{key}.patience", f"{patience}; {criterion} has no such patience"
        for threshold in thresholds:
            if problem := row.problem(threshold, manifest.num_exits, len(manifest.labels)):
                yield key, problem


def _made(cls: Any, values: Any, key: str, path: Path) -> Any:
    """Make a dataclass, or a value of a field's type, from JSON."""
    if dataclasses.is_dataclass(cls):
        return _made_dataclass(cls, values, key, path)
    origin, arguments = typing.get_origin(cls), typing.get_args(cls)
    if origin is types.UnionType:
        return None if values is None else _made(arguments[0], values, key, path)
    if origin is Literal and values in arguments:
        return values
    if origin is tuple and isinstance(values, list) and arguments[-1] is Ellipsis:
        return tuple(_made(arguments[0], value, f"{key}[{i}]", path) for i, value in enumerate(values))
    if origin is tuple and isinstance(values, list) and len(values) == len(arguments):
        pairs = zip(arguments, values, strict=True)
        return tuple(_made(cls, value, f"{key}[{i}]", path) for i, (cls, value) in enumerate(pairs))
    if origin is Mapping and isinstance(values, dict):
        return {name: _made(arguments[1], value, f"{key}.{name}", path) for name, value in values.items()}
    if cls is float and type(values) in (int, float) and math.isfinite(values):
        return float(values)
    if cls in (int, str) and type(values) is cls:
        return values
    raise CheckpointError(f"{path}: {key}: {_short(values)}: should be {_in_words(cls)}; {ADVICE}")


def _made_dataclass(cls: Any, values: Any, key: str, path: Path) -> Any:
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: {key or 'the file'}: {_short(values)}: should be a mapping; {ADVICE}")
    fields, hints = {field.name: field for field in dataclasses.fields(cls)}, typing.get_type_hints(cls)
    prefix = f"{key}." if key else ""
    for name in values:
        if name not in fields:
            raise CheckpointError(f"{path}: {prefix}{name}: unknown key{nearest(name, fields)}; {ADVICE}")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in values and not optional:
            raise CheckpointError(f"{path}: {prefix}{name}: missing; {ADVICE}")
    return cls(**{name: _made(hints[name], value, prefix + name, path) for name, value in values.items()})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _in_words(cls: Any) -> str:
    """What a value of a field's type is."""
    origin, arguments = typing.get_origin(cls), typing.get_args(cls)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}"
    return {int: "a whole number", float: "a finite number", str: "a text"}.get(cls, "a mapping")
