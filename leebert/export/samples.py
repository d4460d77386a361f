"""The samples of an export: labelled ones to score and calibrate on, and texts that set the ranges of static int8."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.data.batches import RowSubset
from leebert.data.collate import TokenRows
from leebert.errors import ConfigError, DataError
from leebert.evaluate import RecordedLogits
from leebert.files import parse_json
from leebert.kinds import kind_of_model
from leebert.record import SampleSet

#: The fewest labelled samples to calibrate on, and the fewest texts that set ranges.
LEAST = 30

#: The most labelled samples that are scored, and the most texts that set ranges.
MOST, MOST_TEXTS = 2000, 256


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples of an export.

    Attributes:
        scored: Labelled samples, on which no weight was trained.
        source: What they are, in words.
        tuned: Whether their scores are optimistic, because thresholds are chosen on a development split.
        texts: Samples that set the ranges of static int8; empty if none are needed.
        texts_source: What they are, in words.
    """

    scored: SampleSet
    source: str
    tuned: bool
    texts: SampleSet | None = None
    texts_source: str = ""


def read_samples(
    folder: Path,
    model: Any,
    tokenizer: Any,
    cache: Path,
    *,
    data_dir: str | None = None,
    ranges: bool = False,
    texts: Path | None = None,
) -> Samples:
    """Read the samples for a saved model.

    Labelled samples are the validation fold of its training. A model that trained on the whole training split has none, so
    its development split is used.

    Args:
        folder: The saved model.
        model: The same, loaded.
        tokenizer: Its tokenizer; None for images.
        cache: A folder for tokenised samples.
        data_dir: The data directory; None: that of training.
        ranges: Whether static int8 needs samples for its ranges.
        texts: A file with such texts; None: training samples.

    Returns:
        The samples.

    Raises:
        DataError: There are no samples, too few, or others than those of training.
        ConfigError: The model has no task, or images are given a file of texts.
    """
    from leebert.recipe import SUMMARY, RunConfig
    from leebert.training_data import effective_task

    try:
        summary = parse_json((folder / SUMMARY).read_text(encoding="utf-8"))
        config = RunConfig.model_validate(summary["config"])
    except FileNotFoundError:
        summary, config = {}, None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / SUMMARY} can't be read: {error}; restore the file that training wrote") from None
    if config is None and model.config.task is None:
        raise ConfigError(f"{folder}: the model has no task, so there are no labelled samples to calibrate on; train it "
                          "with `leebert train`")  # fmt: skip
    task = effective_task(config.task if config else model.config.task, config.data.group_by if config else None)
    source = data_dir or (config.data.dir if config else None)
    kind = kind_of_model(model)
    if texts is not None and tokenizer is None:
        raise ConfigError(f"--calibration {texts}: is for models of texts; leave it out")

    def encoded(examples: Any, name: str) -> Any:
        return kind.encode(model, tokenizer, examples, cache / f"{name}.arrow")

    fold = bool(config and summary.get("held_out_rows"))
    training: Any = None
    if fold or (ranges and texts is None):
        training = _training_examples(kind, task, config, source)
    if fold:
        assert config is not None
        if summary.get("data_fingerprint") not in (None, training.fingerprint()):
            raise DataError(
                f"the training split in {source or 'the hub'} is not the one that {folder} was trained on, so its validation "
                "fold can't be reproduced; give the same data with --data-dir"
            )
        trained, held_out = _folds(config, training, task)
        rows = encoded(training, "train")
        scored, words = RowSubset(rows, held_out), f"{len(held_out)} validation samples of the training split"
        others: Any = RowSubset(rows, trained)
    else:
        if not task.eval_splits:
            raise DataError(
                f"{folder}: trained without a validation fold, and task {task.name} declares no development split: there "
                "are no labelled samples to calibrate on; declare one"
            )
        split = task.eval_splits[0]
        scored = encoded(kind.read(task, split, source), split)
        words = f"{len(scored)} samples of the split {split}"
        others = encoded(training, "train") if training is not None else None
    if len(scored) < LEAST:
        raise DataError(f"{words}: exits need at least {LEAST} labelled samples for their thresholds; add samples")
    scored, words = _at_most(scored, MOST, words)
    if not ranges:
        return Samples(scored, words, not fold)
    ranged, ranged_words = _ranging(model, tokenizer, texts) if texts else (others, f"{len(others)} training samples")
    if len(ranged) < LEAST:
        raise DataError(f"{ranged_words}: static int8 needs at least {LEAST} samples for its ranges; add samples")
    return Samples(scored, words, not fold, *_at_most(ranged, MOST_TEXTS, ranged_words))


def _training_examples(kind: Any, task: Any, config: Any, source: str | None) -> Any:
    """The training split, or the subset that the model was trained on."""
    from leebert.data.sources import subset

    examples = kind.read(task, "train", source)
    if config is not None and config.data.subset:
        examples = subset(examples, config.data.subset.rows, config.data.subset.seed)
    return examples


def _folds(config: Any, examples: Any, task: Any) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training samples and of the validation fold of `leebert train`."""
    from leebert.data.folds import make_folds
    from leebert.recipe import HOLD_OUT_FOLDS

    folds = make_folds(examples, task, HOLD_OUT_FOLDS, config.training.seed)
    return np.asarray(folds.train(0)), np.asarray(folds.held_out(0))


def _ranging(model: Any, tokenizer: Any, file: Path) -> tuple[TokenRows, str]:
    """Read a file of texts."""
    from leebert.predict import encode, texts_for

    rows = [row.values for row in texts_for(model.config.task, file)]
    if not rows:
        raise DataError(f"{file}: no texts; static int8 needs at least {LEAST} for its ranges")
    encoded = encode(tokenizer, rows[: 8 * MOST_TEXTS], model.config.max_length)
    return TokenRows.of(encoded, tokenizer.pad_token_id), f"{len(rows)} texts of {file.name}"


def _at_most(samples: Any, most: int, words: str) -> tuple[Any, str]:
    """Keep samples that are spread evenly over the data."""
    if len(samples) <= most:
        return samples, words
    return RowSubset(samples, np.linspace(0, len(samples) - 1, most).astype(int)), f"{most} of {words}"


def inputs(samples: SampleSet, index: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Make a batch for an exported model.

    Args:
        samples: The samples.
        index: (B,) positions.
    """
    names = {"images": "pixel_values"}
    return {names.get(k, k): t.numpy() for k, t in samples.collate(index).items() if k != "labels"}


def record_exported(
    model: Any,
    samples: SampleSet,
    labels: np.ndarray | None,
    batch_size: int = 32,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> RecordedLogits:
    """Record the logits of all exits of an exported model.

    Args:
        model: The :class:`leebert.exported.model.ExportedModel`.
        samples: N samples.
        labels: (N,) their labels; None: unknown.
        batch_size: Samples per batch, of similar length.
        progress: Wraps the iteration over batches.

    Returns:
        Logits (E, N, K) in the order of the samples.
    """
    order = np.argsort(np.asarray(samples.lengths), kind="stable")
    manifest = model.manifest
    logits = np.empty((manifest.num_exits, len(order), len(manifest.labels)), np.float32)
    for start in progress(range(0, len(order), batch_size)):
        index = order[start : start + batch_size]
        logits[:, index] = model.all_logits(inputs(samples, index))
    return RecordedLogits(logits, labels, manifest.exit_layers, manifest.depth)
