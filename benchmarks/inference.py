"""Wall-clock time of early-exit inference against the same encoder with one classifier on its last layer.

The plain model is the encoder's own forward pass, mean pooling and a linear layer, in the same precision. Early exit
is `leebert.inference.infer` by entropy, at the threshold whose layer speed-up M / mean exit layer on MRPC's dev split
is nearest to --ratio (2.0). Both run the whole split in the same batches of 1 and of 32 samples, sorted by length and
shuffled, without tokenising and collating, and alternate. The quotient is the wall-clock speed-up / the layer
speed-up: (plain seconds / early-exit seconds) / (M / mean exit layer).

Targets, sorted: quotient >= 0.85 at batch size 1, >= 0.80 at 32. Needs --model, a folder written by `leebert train`.
"""

from __future__ import annotations

import dataclasses
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Result, alternate, glue, now, parser, ratios, scratch, start, stop

TARGETS = {1: 0.85, 32: 0.80}


@dataclasses.dataclass
class Contest:
    """Both models on the same batches."""

    model: Any
    last: Any  # the plain model's linear layer
    criterion: Any
    runtime: Any
    device: str

    def plain(self, batches: list[Any]) -> float:
        """Seconds of the encoder with one classifier."""
        import torch

        started = now(self.device)
        with torch.inference_mode():
            for batch in batches:
                inputs = {name: t.to(self.runtime.device) for name, t in batch.items() if name != "labels"}
                with self.runtime.autocast():
                    states = self.model.backbone(**inputs).last_hidden_state  # (B, L, H)
                    weight = inputs["attention_mask"].to(states.dtype).unsqueeze(-1)
                    self.last((states * weight).sum(dim=1) / weight.sum(dim=1))
        return now(self.device) - started

    def early(self, batches: list[Any], layers: list[int] | None = None) -> float:
        """Return the seconds of early-exit inference; append each sample's exit layer to `layers`."""
        from leebert.inference import infer

        started = now(self.device)
        left = [infer(self.model, batch, self.criterion, self.runtime).layers for batch in batches]
        seconds = now(self.device) - started
        if layers is not None:
            layers.extend(layer for part in left for layer in part.tolist())
        return seconds

    def seconds(self, name: str, batches: list[Any], number: int) -> float:
        """One round of `plain` or `early`."""
        return self.plain(batches) if name == "plain" else self.early(batches)


def threshold_for(recorded: Any, metric: str, ratio: float) -> float:
    """Return the entropy threshold whose layer speed-up is nearest to `ratio`."""
    from leebert.tradeoff import tradeoff

    curve = tradeoff(recorded, "entropy", metric=metric, speed_ups=[ratio])
    return float(curve.nearest(ratio).threshold or 0.0)


def in_batches(rows: Any, order: np.ndarray, size: int) -> list[Any]:
    """Collated batches in an order."""
    return [rows.collate(order[at : at + size]) for at in range(0, len(order), size)]


def classifier(model: Any) -> Any:
    """The last exit as a plain linear layer."""
    import copy

    return copy.deepcopy(model.heads[-1])


def measure(contest: Contest, rows: Any, sizes: list[int], rounds: int, result: Result) -> None:
    """All batch sizes and orders."""
    by_length = np.argsort(np.asarray(rows.lengths), kind="stable")
    orders = {"sorted": by_length, "shuffled": np.random.default_rng(0).permutation(len(rows))}
    m = contest.model.num_exits
    for size in sizes:
        for order, index in orders.items():
            batches = in_batches(rows, index, size)
            layers: list[int] = []
            contest.plain(batches[:8])
            contest.early(batches, layers)  # not timed: warms up, and gives the layers
            found = alternate(
                {name: partial(contest.seconds, name, batches) for name in ("plain", "early")},
                rounds,
            )
            where = f"batch {size}, {order}"
            saved = m / statistics.fmean(layers)
            faster = ratios(found["plain"], found["early"])
            for name, label in (("plain", "plain"), ("early", "early exit")):
                result.figure(f"{where}: {label}", [1000 * s / len(rows) for s in found[name]], "ms/instance")
            result.figure(f"{where}: layer ratio", saved)
            result.figure(f"{where}: wall-clock ratio", faster)
            quotients = [f / saved for f in faster]
            if order == "sorted" and size in TARGETS:
                result.target(f"{where}: quotient", quotients, TARGETS[size], least=True)
            else:
                result.figure(f"{where}: quotient", quotients)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--model", type=Path, help="a folder written by `leebert train` on MRPC with pooling mean")
    made.add_argument("--ratio", type=float, default=2.0, help="layer speed-up to come near (%(default)s)")
    made.add_argument("--sizes", type=int, nargs="+", default=[1, 32], help="batch sizes (1 32)")
    made.add_argument("--rows", type=int, help="only so many rows of the dev split")
    options = made.parse_args()
    if options.model is None:
        stop("give --model, a folder written by `leebert train --task mrpc --pooling mean --out FOLDER ...`")
    start(options.threads)
    from leebert.backbone import load_tokenizer
    from leebert.data.batches import RowSubset
    from leebert.data.sources import read_split
    from leebert.data.tasks import get_task
    from leebert.data.tokens import tokenise
    from leebert.evaluate import record_all
    from leebert.exits.replay import make_criterion
    from leebert.model import load_model
    from leebert.runtime import Runtime

    runtime = Runtime.of("auto", options.device)
    model = load_model(options.model).eval().to(runtime.device)
    if model.config.pooling != "mean":
        stop(f"{options.model}: pooling is {model.config.pooling}; the plain model here takes the mean over tokens")
    task = get_task("mrpc")
    result = Result("inference", options)
    with scratch() as folder:
        examples = read_split(task, task.eval_splits[0], glue())
        tokenizer = load_tokenizer(str(options.model))
        rows: Any = tokenise(examples, tokenizer, model.config.max_length, folder / "dev.arrow")
        if options.rows:
            rows = RowSubset(rows, np.arange(min(options.rows, len(rows))))
        threshold = threshold_for(record_all(model, rows, runtime), task.metric, options.ratio)
        result.figure("entropy threshold", threshold)
        criterion = make_criterion("entropy", threshold, num_exits=model.num_exits, num_classes=model.config.num_labels)
        contest = Contest(model, classifier(model), criterion, runtime, options.device)
        measure(contest, rows, options.sizes, options.rounds, result)
    result.end()


if __name__ == "__main__":
    main()
