"""Export a saved model, as `leebert export` does."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from leebert import live
from leebert.errors import ConfigError
from leebert.evaluate import RecordedLogits, record_all
from leebert.exits import CRITERIA, FULL_MODEL, with_threshold
from leebert.exits.criterion import ExitCriterion
from leebert.export.card import card
from leebert.export.exits import Choice, Costs, choose_by_time, subset
from leebert.export.pieces import Pieces, trace
from leebert.export.quantise import quantised
from leebert.export.ranges import measure_ranges
from leebert.export.result import Exported
from leebert.export.samples import Samples, inputs, read_samples, record_exported
from leebert.export.segments import Graph, compose
from leebert.export.timing import segment_times, timed
from leebert.export.write import check_out, replaced_folder, segments_of, write_export
from leebert.exported.cpu import kernel_flags, lacks_eight_bit
from leebert.exported.manifest import Curve, Exits, ExitScore, MadeWith, Manifest, Point, Timing
from leebert.exported.model import ExportedModel
from leebert.latency import machine
from leebert.majority import against_majority
from leebert.metrics import measures
from leebert.milliseconds import ExitMilliseconds, mean_time
from leebert.operating_point import Aim, choose_exits
from leebert.runtime import Runtime
from leebert.thresholds import Chosen
from leebert.tradeoff import tradeoff

#: Precisions by the value of `--int8`; None: without the option.
PRECISIONS = {None: "fp32", "dynamic": "int8-dynamic", "static": "int8-static"}


@dataclasses.dataclass(frozen=True)
class Validated:
    """Validation logits of models like the exported one: samples that neither trained nor scored it.

    Attributes:
        recorded: Logits (M, N, K) of all exits, with labels.
        source: What they are, in words.
    """

    recorded: RecordedLogits
    source: str


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of an export.

    Attributes:
        int8: `dynamic` or `static`; None: float32.
        all_exits: Whether to keep every exit, whatever it costs.
        threads: Threads of ONNX Runtime in measurements.
        calibration: A file of texts for the ranges of static int8; None: training samples.
        data_dir: The data directory; None: that of training.
        criterion: The exit criterion; None: the model's own.
        aim: What its threshold is chosen for; None: what the model's own was.
        validated: Logits on which exits, thresholds and curves are chosen; None: those of the exported model on the scored
            samples.
        name: The model's name in messages and pages; None: that of the folder.
    """

    int8: str | None = None
    all_exits: bool = False
    threads: int = 1
    calibration: Path | None = None
    data_dir: str | None = None
    criterion: str | None = None
    aim: Aim | None = None
    validated: Validated | None = None
    name: str | None = None


def export_model(
    folder: Path,
    out: Path,
    options: Options,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Exported:
    """Export a saved model into a folder that :class:`leebert.exported.model.ExportedModel` loads.

    Args:
        folder: The saved model.
        out: The folder to write; an earlier export in it is replaced.
        options: What to export.
        progress: Wraps iterations over batches.

    Returns:
        What was written.

    Raises:
        ConfigError: The model, an option or the folder cannot be used.
        DataError: There are no samples to calibrate on.
        StorageError: The folder can't be written.
    """
    from leebert.kinds import kind_of_saved

    check_out(out)
    model, tokenizer = kind_of_saved(folder).load(folder)
    model = model.float().eval()
    check_model(model, tokenizer, folder, options)
    with tempfile.TemporaryDirectory() as scratch:
        live.phase("reading the samples")
        samples = read_samples(
            folder, model, tokenizer, Path(scratch), data_dir=options.data_dir, ranges=options.int8 == "static",
            texts=options.calibration,
        )  # fmt: skip
        work = _Export(folder, model, tokenizer, samples, options, Path(scratch), progress)
        with replaced_folder(out) as fresh:
            return work.write(fresh, options.name or out.name)


def check_model(model: Any, tokenizer: Any, folder: Path, options: Options) -> None:
    """Refuse what cannot be exported, before samples are read.

    Args:
        model: The model.
        tokenizer: Its tokenizer; None for images.
        folder: Its folder.
        options: The options.

    Raises:
        ConfigError: The tokenizer is not a fast one, the kind of int8 does not suit images, or the criterion needs torch.
    """
    if options.int8 == "dynamic" and tokenizer is None:
        raise ConfigError(
            f"--int8 dynamic: {folder} is a network of images, whose convolutions are faster in float32 than with ranges that "
            "are computed for each batch; give --int8 static, or leave --int8 out"
        )
    if options.calibration and options.int8 != "static":
        raise ConfigError("--calibration is for --int8 static: add it, or leave --calibration out")
    if tokenizer is not None and not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"{folder}: its tokenizer has no tokenizer.json, which exported models need; convert it to a fast one"
        )
    name = options.criterion or model.config.exit_strategy
    CRITERIA.require(name)
    if not takes_arrays(name, model.num_exits, model.config.num_labels):
        raise ConfigError(
            f"exit criterion {name!r} takes tensors of torch only, and exported models run without torch: write its `step` "
            "with array_api_compat.array_namespace, or choose another with --criterion"
        )


def takes_arrays(criterion: str, num_exits: int, classes: int) -> bool:
    """Whether an exit criterion takes NumPy's arrays as well as tensors.

    Args:
        criterion: Its name.
        num_exits: M.
        classes: K.
    """
    row = CRITERIA[criterion]
    patience = row.counted(None, num_exits) or 1
    logits = np.zeros((2, classes), np.float32)
    try:
        exits, state = row.make(row.bounds(num_exits, classes)[1], patience, classes).step(logits, None)
        row.make(row.bounds(num_exits, classes)[1], patience, classes).step(logits, state)
        return isinstance(exits, np.ndarray)
    except (TypeError, AttributeError):
        return False


class _Export:
    """The steps of one export."""

    def __init__(
        self, folder: Path, model: Any, tokenizer: Any, samples: Samples, options: Options, scratch: Path, progress: Any
    ) -> None:
        self.folder, self.model, self.tokenizer, self.samples = folder, model, tokenizer, samples
        self.options, self.scratch, self.progress = options, scratch, progress
        self.metric = model.config.metric or _task(model).metric
        name = options.criterion or model.config.exit_strategy
        own = name == model.config.exit_strategy
        self.criterion, self.aim = name, options.aim or _own_aim(folder)
        self.patience = CRITERIA[name].counted(model.config.exit_patience if own else None, model.num_exits)
        self.ranges: dict[str, tuple[float, float]] | None = None

    def write(self, out: Path, name: str) -> Exported:
        """Export into an empty folder.

        Args:
            out: The folder.
            name: Its name.
        """
        live.phase("scoring the PyTorch model")
        runtime = Runtime.of("fp32", "cpu")
        reference = record_all(self.model, self.samples.scored, runtime, progress=self.progress)
        live.phase("tracing the layers")
        pieces = trace(self.model)
        finest = self._graphs(pieces, pieces.exit_layers)
        every = self._loaded(finest, "every")
        live.phase("scoring the exported model")
        assert reference.labels is not None
        recorded = record_exported(every, self.samples.scored, reference.labels, progress=self.progress)
        validated = self.options.validated
        basis = validated.recorded if validated else recorded
        choice, first = self._choose(pieces, every, basis)
        graphs, model, times = self._timed_segments(pieces, finest, every, choice)
        if choice and self.aim.milliseconds is not None and times.cumsum()[0] > self.aim.milliseconds:
            # Measured again, the first exit that was kept is slower than the aim: the exits before it are needed.
            choice = dataclasses.replace(choice, kept=tuple(range(len(finest))), expected=choice.before)
            graphs, model, times = self._timed_segments(pieces, finest, every, choice)
        kept = choice.kept if choice else (0,)
        recorded, basis = subset(recorded, kept), subset(basis, kept)
        chosen = self._chosen(basis, first, times)
        own = Exits(**chosen.exits.model_dump()) if chosen else Exits(criterion=FULL_MODEL)
        manifest = dataclasses.replace(
            model.manifest, name=name, exits=own, curves=self._curves(basis, times, own.patience),
            scores=self._scores(subset(reference, kept), recorded), majority=self._majority(recorded),
            timing=Timing(
                threads=self.options.threads, texts=len(self._timed), machine=machine(runtime),
                segments=tuple(float(t) for t in times),
            ),
        )  # fmt: skip
        samples = self.samples
        result = Exported(
            manifest, choice, chosen, samples.source, samples.tuned and not validated, samples.texts_source,
            sum(graph.model.ByteSize() for graph in graphs), validated.source if validated else samples.source,
        )  # fmt: skip
        live.phase("writing the export")
        written = write_export(out, graphs, self.tokenizer, manifest, card(result))
        return dataclasses.replace(result, manifest=written)

    def _timed_segments(
        self, pieces: Pieces, finest: list[Graph], every: ExportedModel, choice: Choice | None
    ) -> tuple[list[Graph], ExportedModel, np.ndarray]:
        """Compose and load the segments of the exits that are kept, and measure the milliseconds of each."""
        kept = choice.kept if choice else (0,)
        graphs = finest if len(kept) == len(finest) else self._graphs(pieces, [pieces.exit_layers[i] for i in kept])
        model = every if graphs is finest else self._loaded(graphs, "kept")
        live.phase("measuring the time")
        times = segment_times({"kept": (model, self._any_threshold(model))}, self._timed)["kept"].segments
        return graphs, model, times

    def _graphs(self, pieces: Pieces, exit_layers: Sequence[int]) -> list[Graph]:
        graphs = compose(pieces, exit_layers)
        if self.options.int8 is None:
            return graphs
        if self.options.int8 == "static" and self.ranges is None:
            texts = self.samples.texts
            assert texts is not None
            self.ranges = measure_ranges(graphs, [inputs(texts, [i]) for i in range(len(texts))])
        reduced = lacks_eight_bit()
        return [quantised(graph, self.ranges, reduced=reduced) for graph in graphs]

    def _loaded(self, graphs: Sequence[Graph], name: str) -> ExportedModel:
        """Load segments as the runtime does, from a folder that is removed at the end."""
        folder = self.scratch / name
        folder.mkdir()
        write_export(folder, graphs, self.tokenizer, self._manifest(graphs))
        return ExportedModel.load(folder, threads=self.options.threads)

    def _manifest(self, graphs: Sequence[Graph]) -> Manifest:
        from leebert.serving import text_names

        model, config, task = self.model, self.model.config, _task(self.model)
        texts = self.tokenizer is not None
        return Manifest(
            kind="texts" if texts else "images",
            name=self.folder.name,
            task=task.name,
            labels=tuple(config.id2label[i] for i in range(config.num_labels)),
            depth=model.depth,
            metric=self.metric,
            segments=segments_of(graphs),
            exits=Exits(criterion=FULL_MODEL),
            made_with=made_with(),
            text_columns=text_names(config.task) if texts else (),
            max_length=config.max_length if texts else 0,
            padding_id=self.tokenizer.pad_token_id if texts else 0,
            precision=PRECISIONS[self.options.int8],  # type: ignore[arg-type]  # a literal
        )

    @functools.cached_property
    def _timed(self) -> list[dict[str, np.ndarray]]:
        index = timed(np.asarray(self.samples.scored.lengths))
        return [inputs(self.samples.scored, [i]) for i in index]

    def _choose(
        self, pieces: Pieces, every: ExportedModel, basis: RecordedLogits
    ) -> tuple[Choice | None, Chosen | None]:
        """Choose the exits by time; return also the operating point of the model with all of them."""
        if len(basis.logits) == 1:
            return None, None
        live.phase("measuring each exit")
        whole = self._loaded(self._graphs(pieces, pieces.exit_layers[-1:]), "whole")
        times = segment_times(
            {
                "every": (every, self._any_threshold(every)),
                "whole": (whole, whole.criterion(Exits(criterion=FULL_MODEL))),
            },
            self._timed,
            clock=time.thread_time if self.options.threads == 1 else time.perf_counter,
        )
        costs = Costs.of(times["every"], times["whole"])
        everything = tuple(range(len(basis.logits)))
        aim = self.aim
        name = self.criterion if CRITERIA[self.criterion].has_threshold else None
        first = choose_exits(
            basis, self.metric, aim, name, self.patience if name else None,
            times=self._milliseconds(costs.up_to(everything), basis.layers),
        )  # fmt: skip
        loss = aim.max_loss if aim.max_loss is not None else max(0.0, first.loss or 0.0)
        choice = choose_by_time(basis, costs, self.metric, first.criterion, first.patience, loss)
        if self.options.all_exits:
            choice = dataclasses.replace(choice, kept=everything, expected=choice.before)
        return choice, first

    def _chosen(self, basis: RecordedLogits, first: Chosen | None, times: np.ndarray) -> Chosen | None:
        """Choose the operating point of the exits that are kept."""
        if first is None or len(basis.logits) == 1:
            return None
        if len(basis.logits) == self.model.num_exits and self.aim.milliseconds is None:
            return first
        up_to = self._milliseconds(times.cumsum(), basis.layers)
        return choose_exits(basis, self.metric, self.aim, first.criterion, first.patience, times=up_to)

    def _any_threshold(self, model: ExportedModel) -> ExitCriterion:
        """The exit criterion to time, at any threshold, since timing lets no sample exit."""
        row = CRITERIA[self.criterion]
        threshold = row.bounds(model.manifest.num_exits, len(model.manifest.labels))[0] if row.has_threshold else None
        if row.several and model.manifest.num_exits < 2:
            return model.criterion(Exits(criterion=FULL_MODEL))
        patience = row.counted(None, model.manifest.num_exits)
        return model.criterion(Exits(criterion=row.name, threshold=threshold, patience=patience))

    def _milliseconds(self, up_to: np.ndarray, layers: Sequence[int]) -> ExitMilliseconds:
        measured = f"ONNX Runtime {PRECISIONS[self.options.int8]}, {self.options.threads} thread(s)"
        return ExitMilliseconds(tuple(up_to.tolist()), tuple(layers), measured)

    def _curves(self, recorded: RecordedLogits, times: np.ndarray, patience: int | None) -> tuple[Curve, ...]:
        m = len(recorded.logits)
        curves = []
        for row in with_threshold().values() if m > 1 else ():
            if not takes_arrays(row.name, m, recorded.logits.shape[2]):
                continue
            for counted in dict.fromkeys((row.counted(None, m), row.counted(patience, m))):
                curve = tradeoff(recorded, row.name, counted, metric=self.metric)
                mean = mean_time(curve.counts, times.cumsum())
                points = tuple(
                    Point(
                        threshold=float(p.threshold or 0.0), score=p.measures["score"], mean_exit_layer=p.layers,
                        speed_up=p.speed_up, milliseconds=float(ms),
                    )
                    for p, ms in zip(curve, mean, strict=True)
                )  # fmt: skip
                curves.append(Curve(criterion=row.name, patience=curve.patience, points=points[::-1]))
        return tuple(curves)

    def _scores(self, reference: RecordedLogits, recorded: RecordedLogits) -> tuple[ExitScore, ...]:
        def score(logits: np.ndarray) -> float:
            assert recorded.labels is not None
            return measures(self.metric, recorded.labels, logits.argmax(axis=-1))["score"]

        return tuple(
            ExitScore(layer=layer, model=score(before), exported=score(after))
            for layer, before, after in zip(recorded.layers, reference.logits, recorded.logits, strict=True)
        )

    def _majority(self, recorded: RecordedLogits) -> float | None:
        assert recorded.labels is not None
        against = against_majority(recorded.logits, recorded.labels, self.metric)
        return None if against is None else float(against.score)


def made_with() -> MadeWith:
    """Return the versions and the CPU of this process."""
    return MadeWith(
        leebert=importlib.metadata.version("leebert-sweep"), onnxruntime=onnxruntime.__version__,
        onnx=onnx.__version__, torch=torch.__version__, cpu=kernel_flags(),
    )  # fmt: skip


def _task(model: Any) -> Any:
    from leebert.data.tasks import any_task

    return any_task(model.config.task)


def _own_aim(folder: Path) -> Aim:
    """What the saved model's threshold was chosen for; the default aim if it is unknown."""
    from leebert.files import parse_json
    from leebert.thresholds import FILE

    try:
        chosen = parse_json((folder / FILE).read_text(encoding="utf-8"))["chosen"]
        if chosen.get("max_loss") is not None:
            return Aim(float(chosen["max_loss"]), None)
        return Aim(None, float(chosen["asked"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Aim()
