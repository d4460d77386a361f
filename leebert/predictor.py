"""Predict long files and streams window by window, in one process or several, with predictions in the order of the input."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from leebert.errors import ConfigError, DataError
from leebert.exported.manifest import is_exported
from leebert.exported.predictor import ExportedPredictor
from leebert.numerics import cores
from leebert.predictor_options import PredictorOptions
from leebert.windows import Windows

#: Windows that wait for each process, so that none is idle while the main process reads.
_AHEAD = 2


class Predictor(Protocol):
    """A loaded model that predicts windows of samples.

    Attributes:
        columns: Keys of a prediction, in their order.
        rows: Most samples of a window.
    """

    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def rows(self) -> int: ...

    def inputs(self, source: Any, columns: Sequence[str]) -> Iterator[Any]:
        """Read the samples of a file or of a stream's lines.

        Args:
            source: A path, or the lines of stdin.
            columns: Names of the text columns; (): those of the task.

        Yields:
            The samples, which can be pickled. The iterator does not hold the model.

        Raises:
            ConfigError: The model has other columns.
            DataError: A sample is invalid; the message names its place.
        """
        ...

    @property
    def weight(self) -> Callable[[Any], int]:
        """A function that counts the characters or bytes of a sample, which bound a window; it does not hold the model."""
        ...

    def predict(self, samples: Sequence[Any]) -> list[dict[str, Any]]:
        """Predict a window. Returns one prediction per sample, in order. Raises DataError for an invalid sample."""
        ...


class SavedPredictor:
    """A saved model in PyTorch (:class:`Predictor`).

    Args:
        options: The folder, and how to predict.
        quiet: Whether to leave out warnings that another process has printed.

    Raises:
        CheckpointError: The folder is damaged.
        ConfigError: The exit criterion or its parameters do not fit the model.
        DeviceError: This machine lacks the device.
    """

    def __init__(self, options: PredictorOptions, *, quiet: bool = False) -> None:
        from leebert import console
        from leebert.config import ExitConfig, parse
        from leebert.exits.checks import check_threshold, warn_if_unreachable
        from leebert.exits.replay import make_criterion
        from leebert.kinds import kind_of_saved
        from leebert.runtime import Runtime

        console.quiet_transformers()
        self.kind = kind_of_saved(options.folder)
        self.model, self.tokenizer = self.kind.load(options.folder)
        config = self.model.config
        values = config.exits.overridden(
            criterion=options.criterion, threshold=options.threshold, patience=options.patience
        )
        exits = parse(ExitConfig, values, "--criterion/--threshold/--patience")
        check_threshold(exits, self.model.num_exits, config.num_labels)
        if not quiet:
            warn_if_unreachable(exits, self.model.num_exits)
        self.criterion = make_criterion(
            exits.criterion, exits.threshold, exits.patience, num_exits=self.model.num_exits,
            num_classes=config.num_labels,
        )  # fmt: skip
        self.runtime = Runtime.of(options.precision or config.precision, options.device)
        self.model.to(self.runtime.device)
        self.batch_size = options.batch_size
        if options.threads is not None:
            import torch

            torch.set_num_threads(options.threads)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.kind.prediction_columns

    @property
    def rows(self) -> int:
        return self.kind.window(self.batch_size)

    def inputs(self, source: Any, columns: Sequence[str]) -> Iterator[Any]:
        return self.kind.inputs(self.model.config, source, columns)

    @property
    def weight(self) -> Callable[[Any], int]:
        return self.kind.weight

    def predict(self, samples: Sequence[Any]) -> list[dict[str, Any]]:
        return self.kind.predict(
            self.model, self.tokenizer, samples, criterion=self.criterion, runtime=self.runtime,
            batch_size=self.batch_size,
        )  # fmt: skip


def load_predictor(options: PredictorOptions, *, quiet: bool = False) -> Predictor:
    """Load the model of a folder.

    Args:
        options: The folder, and how to predict.
        quiet: Whether to leave out warnings that another process has printed.

    Raises:
        LeebertError: The folder is damaged, or the options do not fit the model.
    """
    if is_exported(options.folder):
        return ExportedPredictor(options)
    if not (options.folder / "config.json").is_file():
        raise ConfigError(
            f"{options.folder}: no config.json; give the folder of a model that `leebert train` or `leebert export` has written"
        )
    return SavedPredictor(options, quiet=quiet)


def threads_each(threads: int | None, processes: int) -> int | None:
    """Choose the threads of each process, and warn of more threads than cores.

    Args:
        threads: The value of `--threads`; None: not given.
        processes: The value of `--processes`.

    Returns:
        The threads; None: the library's default, for one process.
    """
    if threads is None:
        return None if processes == 1 else max(1, cores() // processes)
    if threads * processes > (available := cores()):
        warnings.warn(
            f"{processes} process(es) with {threads} thread(s) each are more than the {available} core(s) of this machine, "
            "which slows down all of them several times",
            stacklevel=2,
        )
    return threads


def predict_windows(
    predictor: Predictor, windows: Windows[Any], done: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """Predict all windows in this process.

    Args:
        predictor: The model.
        windows: The input.
        done: Called after each window, such as to flush the output.

    Yields:
        The predictions, in the order of the input.

    Raises:
        DataError: A sample is invalid.
    """
    for window in windows:
        yield from predictor.predict(window)
        done()


def predict_in_processes(
    options: PredictorOptions, windows: Windows[Any], processes: int, done: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """Predict windows in several processes, each with a copy of the model.

    Args:
        options: The folder of the model, and how to predict.
        windows: The input, which this process reads.
        processes: Their number.
        done: Called after each window, such as to flush the output.

    Yields:
        The predictions, in the order of the input.

    Raises:
        DataError: A sample is invalid, or a process was killed.
    """
    context = multiprocessing.get_context("spawn")  # a forked copy of torch's threads hangs
    pool = ProcessPoolExecutor(processes, context, _begin, (options,))
    pending: deque[Future[list[dict[str, Any]]]] = deque()
    try:
        reading = True
        while reading or pending:
            while reading and len(pending) < _AHEAD * processes:
                window = windows.take(wait=not pending)
                if window is None:
                    break
                reading = bool(window)
                if window:
                    pending.append(pool.submit(_predict, window))
            if pending:
                yield from pending.popleft().result()
                done()
    except BrokenProcessPool:
        raise DataError(
            "a process of --processes ended without an answer: it was killed, perhaps for its memory, or could not load the "
            "model; use fewer processes"
        ) from None
    finally:
        _end(pool)


#: The model of a process of :func:`predict_in_processes`.
_predictor: Predictor | None = None


def _begin(options: PredictorOptions) -> None:
    """Load the model in a new process, which ends when the main process does, and leaves Ctrl-C to it."""
    global _predictor
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _predictor = load_predictor(options, quiet=True)


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _predict(window: Sequence[Any]) -> list[dict[str, Any]]:
    assert _predictor is not None
    return _predictor.predict(window)


def _end(pool: ProcessPoolExecutor) -> None:
    """End the processes at once: what they still compute is not needed."""
    running = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in running:
        with contextlib.suppress(OSError, ValueError):
            process.kill()
    for process in running:
        with contextlib.suppress(ValueError, AssertionError):
            process.join()
