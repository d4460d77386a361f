"""Predict files that outgrow one machine with a saved model on a Ray cluster, by Ray Data.

A task per file reads it in windows, by the rules of `leebert predict`. Actors, each with a copy of the model, predict the
windows and write each one as a shard, whose name has its file and first row. So shards sorted by name are in the order of the
input, and a prediction that was interrupted resumes: windows that have a shard are not predicted again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leebert import live
from leebert.console import sentence
from leebert.errors import ConfigError, DataError, LeebertError, SweepError
from leebert.exported.manifest import is_exported
from leebert.files import check_writable, parse_json, write_atomically
from leebert.prediction_files import save_predictions
from leebert.predictor import load_predictor
from leebert.predictor_options import PredictorOptions
from leebert.windows import Windows
from tune.running.session import start_ray

log = logging.getLogger(__name__)

#: The file of the output folder with what is predicted, written first.
REQUEST = "predict.json"

# What Ray Data appends to the message of any error in a task.
_ATTEMPTS = "\nFailed to "


@dataclasses.dataclass(frozen=True)
class ClusterPrediction:
    """What to predict on a cluster, and where to write it.

    Attributes:
        options: The saved model, and how to predict; `threads` are those of one actor.
        files: The input files.
        columns: Names of the text columns; (): those of the task.
        out: The folder of the shards.
        form: jsonl, csv or parquet.
    """

    options: PredictorOptions
    files: tuple[Path, ...]
    columns: tuple[str, ...]
    out: Path
    form: str

    def shard(self, file: int, first: int) -> Path:
        """Name the shard of a window.

        Args:
            file: Number of the file.
            first: Number of the window's first row.
        """
        stem = re.sub(r"[^\w.-]", "_", self.files[file].stem)
        return self.out / f"{file:04d}-{stem}-{first:012d}.{self.form}"

    def identity(self) -> dict[str, Any]:
        """Return what must be equal to resume: the model's files, the options and the input files, JSON-ready."""
        options = dataclasses.asdict(self.options) | {"folder": str(self.options.folder)}
        for key in ("device", "threads"):  # change only speed; the batch size also where windows begin
            del options[key]
        return {
            "model": _digests(self.options.folder),
            "options": options,
            "files": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in self.files],
            "columns": list(self.columns),
            "format": self.form,
        }


@dataclasses.dataclass(frozen=True)
class Predicted:
    """The result of a prediction on a cluster.

    Attributes:
        out: The folder of the shards.
        shards: Number of shards.
        rows: Number of rows that were predicted now.
        resumed: Number of shards of an earlier, interrupted prediction.
    """

    out: Path
    shards: int
    rows: int
    resumed: int

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**dataclasses.asdict(self), "out": str(self.out)}


def check(request: ClusterPrediction) -> None:
    """Refuse what cannot be predicted, before libraries are loaded.

    Args:
        request: What to predict.

    Raises:
        DataError: A file is missing, or named twice.
        ConfigError: The output folder cannot be written, or holds other things.
    """
    for path in request.files:
        if not path.exists():
            raise DataError(f"{path}: no such file; give a file with the inputs")
    if len({path.resolve() for path in request.files}) < len(request.files):
        raise DataError("a file is named twice; name each once")
    check_writable(request.out, "--out")
    _resumable(_absolute(request))  # as the paths are recorded


def _resumable(request: ClusterPrediction) -> bool:
    """Whether the output folder has a part of this prediction. Raises ConfigError if it has other contents."""
    file = request.out / REQUEST
    if not file.is_file():
        if request.out.exists() and any(request.out.iterdir()):
            raise ConfigError(f"--out {request.out}: the folder has other contents; give a new folder")
        return False
    try:
        before = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} can't be read: {error}; give a new folder as --out") from None
    now = request.identity()
    differ = [key for key in now if not isinstance(before, dict) or before.get(key) != now[key]]
    if differ:
        raise ConfigError(
            f"--out {request.out}: the folder has predictions with other {', '.join(differ)}; give a new folder, or the same "
            f"model, options and files to resume"
        )
    return True


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the small files of a model's folder, and the sizes of the large ones."""
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            small = path.stat().st_size < 1 << 24
            digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest() if small else str(path.stat().st_size)
    return digests


def predict(request: ClusterPrediction, address: str | None, actors: int | None = None) -> Predicted:
    """Predict files on a Ray cluster, or on this machine.

    Args:
        request: What to predict, checked by :func:`check`.
        address: The cluster (`auto`, HOST:PORT); None: this machine.
        actors: Most actors; None: as many as fit the cluster's CPUs, or its GPUs with `--device cuda`.

    Returns:
        The number of rows and shards.

    Raises:
        LeebertError: A file or row is invalid, or the model cannot be used; the message names file and row.
        SweepError: Ray failed, or a node does not share the folders.
    """
    request = _absolute(request)
    load_predictor(request.options)  # errors of the model, before a cluster is asked for
    live.phase("connecting to Ray")
    # Ray's C++ code would print a line about the constructor of Ray Data's own actors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    start_ray(address)
    request.out.mkdir(parents=True, exist_ok=True)
    write_atomically(request.out / REQUEST, json.dumps(request.identity(), indent=1))
    before = sum(1 for _ in request.out.glob(f"*.{request.form}"))
    rows = shards = 0
    try:
        for shard in _shards(request, actors):
            rows, shards = rows + int(shard["rows"]), shards + 1
            if not Path(shard["shard"]).is_file():
                raise SweepError(
                    f"{shard['shard']}: node {shard['node']} has written this file, and this machine does not see it; give an "
                    "--out that all nodes share"
                )
            live.phase(f"predicted {rows:,} rows, {shards} shards")
    except Exception as error:
        raise _cause(error) from None
    return Predicted(request.out, before + shards, rows, before)


def _absolute(request: ClusterPrediction) -> ClusterPrediction:
    """Make paths absolute, since the nodes work in other folders."""
    options = dataclasses.replace(request.options, folder=request.options.folder.resolve())
    files = tuple(path.resolve() for path in request.files)
    return dataclasses.replace(request, options=options, files=files, out=request.out.resolve())


def _shards(request: ClusterPrediction, actors: int | None) -> Iterator[dict[str, Any]]:
    """Run the pipeline; yield a row per shard as it is written."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext, read_datasource

    from tune.models.window_source import WindowSource

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    threads = request.options.threads or 1
    available = ray.cluster_resources()
    automatic = request.options.device == "auto" and not is_exported(request.options.folder)  # exported ones need a CPU
    cuda = request.options.device.startswith("cuda") or (automatic and available.get("GPU", 0) >= 1)
    fit = int(available.get("GPU", 0)) if cuda else int(available.get("CPU", 0) // threads)
    if not fit:
        needed = "GPU" if cuda else f"{threads} CPUs (--threads)"
        raise SweepError(f"no node of the cluster has {needed}; add nodes, or change --device or --threads")
    options = dataclasses.replace(request.options, threads=threads, device="cuda" if cuda else "cpu")
    request = dataclasses.replace(request, options=options)
    source = read_datasource(
        WindowSource(request.files, functools.partial(windows_of, request)),
        num_cpus=0,
        override_num_blocks=len(request.files),
    )
    predicted = source.map_batches(
        WindowActor,
        batch_size=1,
        compute=ActorPoolStrategy(min_size=1, max_size=min(actors or fit, fit)),
        fn_constructor_args=(request,),
        num_cpus=0 if cuda else threads,
        num_gpus=1 if cuda else 0,
    )
    yield from predicted.iter_rows()


def windows_of(request: ClusterPrediction, file: int) -> Iterator[dict[str, Any]]:
    """Read a file in windows, on any node; windows that have a shard are skipped.

    Args:
        request: What to predict.
        file: Number of the file.

    Yields:
        The number of the file, of the window's first row, and the window as bytes.

    Raises:
        DataError: A row is invalid; the message names file and row.
    """
    # Only for its tokenizer: a reading task has no GPU.
    predictor = load_predictor(dataclasses.replace(request.options, device="cpu"), quiet=True)
    windows = Windows(predictor.inputs(request.files[file], request.columns), predictor.weight, rows=predictor.rows)
    del predictor
    first = 0
    for window in windows:
        if not request.shard(file, first).is_file():
            yield {"file": file, "first": first, "window": pickle.dumps(window)}
        first += len(window)


class WindowActor:
    """Predicts windows and writes them as shards.

    Args:
        request: What to predict.
    """

    def __init__(self, request: ClusterPrediction) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.request = request
        self.predictor = load_predictor(request.options, quiet=True)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Predict one window.

        Args:
            batch: One row of :func:`windows_of`.

        Returns:
            One row: the shard, its number of rows, and the node.
        """
        import ray

        file = int(batch["file"][0])
        shard = self.request.shard(file, int(batch["first"][0]))
        predictions = self.predictor.predict(pickle.loads(batch["window"][0]))
        name = self.request.files[file].name
        rows = ({"source": name, **one} for one in predictions)
        count = save_predictions(rows, shard, self.request.form, ("source", *self.predictor.columns))
        return {"shard": [str(shard)], "rows": [count], "node": [ray.get_runtime_context().get_node_id()]}


def _cause(error: BaseException) -> LeebertError:
    """Find our own error in one of Ray's."""
    import ray

    seen: BaseException | None = error
    while seen is not None:
        wrapped = isinstance(seen, ray.exceptions.RayTaskError)  # also an instance of the class of its cause
        if isinstance(seen, LeebertError) and not wrapped:
            seen.args = (str(seen).partition(_ATTEMPTS)[0],)
            return seen
        cause = getattr(seen, "cause", None) if wrapped else None
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return SweepError(
        f"Ray ended the prediction: {lines[-1] if lines else type(error).__name__}; run it again to resume"
    )


def print_predicted(predicted: Predicted) -> None:
    """Print where the predictions are."""
    resumed = f"; {predicted.resumed} of them are of an earlier run" if predicted.resumed else ""
    sentence(
        f"{predicted.out}: {predicted.rows} predictions; {predicted.shards} shards{resumed}. Sorted by name, they are in the "
        "order of the input"
    )
