"""Time curves of score against mean exit layer: 3 exit criteria on 10,000 samples with 12 exits, and one cell of a sweep.

The logits are random and grow with depth, so that samples exit at every layer. `leebert.tradeoff.tradeoff` is timed
for patience, entropy and maximum probability: thresholds, exit layers, and the task's metrics (accuracy and F1). The
cell has 1,200 samples and 6 exits, like MRPC's in three folds with a small encoder.

Targets: < 1 s for the 3 curves, < 0.1 s for the cell's.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from common import Result, alternate, parser, start, timed

STRATEGIES = ("patience", "entropy", "confidence")


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=10_000, help="recorded examples (%(default)s)")
    made.add_argument("--exits", type=int, default=12, help="exits (%(default)s)")
    options = made.parse_args()
    start(options.threads)
    from leebert.evaluate import RecordedLogits
    from leebert.tradeoff import tradeoff

    def recorded(rows: int, exits: int) -> RecordedLogits:
        rng = np.random.default_rng(0)
        depth = np.linspace(0.3, 3.0, exits, dtype=np.float32)[:, None, None]
        return RecordedLogits(rng.standard_normal((exits, rows, 2), np.float32) * depth, rng.integers(0, 2, rows))

    large, cell = recorded(options.rows, options.exits), recorded(1200, 6)
    tradeoff(cell, metric="acc_f1")  # imports torch

    def seconds_of(of: RecordedLogits, name: str, number: int) -> float:
        return timed(lambda: tradeoff(of, name, metric="acc_f1"))

    curves = {name: partial(seconds_of, large, name) for name in STRATEGIES}
    found = alternate({**curves, "cell": partial(seconds_of, cell, "normalised_entropy")}, options.rounds)
    result = Result("replay", options)
    for name, values in found.items():
        result.figure(name, values, "s")
    of_all = [sum(parts) for parts in zip(*(found[name] for name in STRATEGIES), strict=True)]
    result.target("all strategies, s", of_all, 1.0)
    result.target("a cell, s", found["cell"], 0.1)
    result.end()


if __name__ == "__main__":
    main()
