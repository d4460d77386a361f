"""The command `leebert-tune serve`: from its options to a running server."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from leebert import console
from leebert.errors import ConfigError
from leebert.exported.manifest import Exits
from tune.serve.control import Target
from tune.serve.requests import Limits
from tune.serve.source import ADDRESSES

#: Packages of the extra `serve`, which are imported when they are needed.
NEEDED = ("onnxruntime", "tokenizers", "ray", "uvicorn", "uvloop", "httptools")

#: The floor of load control without `--max-loss`, in points.
MAX_LOSS = 1.0

#: The longest expected wait relative to the target of the 99th percentile.
WAITS = 5.0


@dataclasses.dataclass(frozen=True)
class ServeRequest:
    """The options of the command, in its order; see its help texts."""

    model: str
    p99_ms: float | None
    max_loss: float | None
    criterion: str | None
    threshold: float | None
    patience: int | None
    speed_up: float | None
    host: str
    port: int
    replicas: int
    max_replicas: int | None
    threads: int
    max_body_kb: int
    max_texts: int
    max_wait_ms: float | None
    address: str | None
    tracking_uri: str | None

    @property
    def target(self) -> Target | None:
        """The aim of load control; None: the threshold is fixed."""
        if self.p99_ms is None:
            return None
        return Target(self.p99_ms, MAX_LOSS if self.max_loss is None else self.max_loss)

    @property
    def limits(self) -> Limits:
        """The server's limits."""
        wait = self.max_wait_ms
        if wait is None:
            wait = 1000.0 if self.p99_ms is None else WAITS * self.p99_ms
        return Limits(body_bytes=self.max_body_kb << 10, texts=self.max_texts, wait_ms=wait)

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            ConfigError: `--p99-ms` stands beside a fixed threshold, or there are fewer replicas at most than at least.
        """
        if self.p99_ms is not None and (self.threshold is not None or self.speed_up is not None):
            option = "--threshold" if self.threshold is not None else "--speed-up"
            raise ConfigError(f"--p99-ms and {option}: load control chooses the threshold; give one of them")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ConfigError(f"--max-replicas {self.max_replicas}: should be at least --replicas {self.replicas}")
        if self.address is not None and str(self.model).startswith(ADDRESSES):
            raise ConfigError(
                f"{self.model} with --address: its replicas may be on other machines; download it to a folder that all nodes "
                "share, and give that folder"
            )

    def exits(self, model: Any) -> Exits | None:
        """The server's exit criterion; None: the model's own.

        Args:
            model: The exported model.
        """
        choice = {
            "criterion": self.criterion, "threshold": self.threshold, "patience": self.patience, "speed_up": self.speed_up,
            "max_loss": self.max_loss if self.p99_ms is None else None,
        }  # fmt: skip
        given = {name: value for name, value in choice.items() if value is not None}
        return self._along_its_curve(model) if self.p99_ms is not None else model.choose(**given) if given else None

    def _along_its_curve(self, model: Any) -> Exits | None:
        """The criterion along whose curve load control moves; its threshold is set later."""
        if self.criterion is None and self.patience is None:
            return None
        name = self.criterion or model.manifest.exits.criterion
        curve = model.manifest.curve(name, self.patience)
        if curve is None:
            names = ", ".join(curve.name for curve in model.manifest.curves) or "none"
            raise ConfigError(f"--criterion {name}: the exported model has no curve of it; it has curves of {names}")
        return Exits(criterion=name, threshold=curve.points[0].threshold, patience=curve.patience)


def serve(request: ServeRequest) -> int:
    """Serve a model until a signal comes.

    Args:
        request: The options.

    Returns:
        The signal.

    Raises:
        ConfigError: The options or the model do not fit, or the address is in use.
        CheckpointError: The exported folder is damaged.
        TrackingError: MLflow can't be used.
    """
    request.check()
    target = request.target
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"serving needs the package {name}: pip install 'leebert-sweep[serve]'")
    from leebert.exported.model import ExportedModel
    from tune.serve.app import ServerOptions, serve_model
    from tune.serve.source import exported_folder

    with exported_folder(request.model, request.tracking_uri) as folder:
        # Loaded here too, so that a damaged folder is refused before Ray starts.
        model = ExportedModel.load(folder, threads=request.threads)
        options = ServerOptions(
            folder, request.host, request.port, request.exits(model), target, request.replicas, request.max_replicas,
            request.threads, request.limits, request.address,
        )  # fmt: skip
        manifest = model.manifest
        del model
        return serve_model(options, manifest, say=lambda line: print(line, flush=True))


def print_load(phases: Sequence[Mapping[str, Any]]) -> None:
    """Print the summary of a load, one row per phase.

    Args:
        phases: The summary (:func:`tune.serve.load.summary`).
    """
    columns = ["phase", "requests", "429", "failed", "p50 ms", "p99 ms", "exit layer", "accuracy %", "in target %"]
    rows = [
        (
            one["phase"], f"{one['requests']}", f"{one['refused']}", f"{one['failed']}", _cell(one["p50_ms"], ".1f"),
            _cell(one["p99_ms"], ".1f"), _cell(one["exit_layer"], ".2f"), _cell(one["accuracy"], ".1f", 100),
            _cell(one.get("within_target"), ".0f", 100),
        )
        for one in phases
    ]  # fmt: skip
    console.stderr_console().print(console.table(columns, rows, lean=True))


def _cell(value: float | None, form: str, times: float = 1) -> str:
    return "-" if value is None else f"{times * value:{form}}"
