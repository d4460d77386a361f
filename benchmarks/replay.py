"""Replaying 20 thresholds of each of 3 exit strategies over 10,000 recorded examples with 12 exits.

The logits are random, and grow with depth so that rows leave at every exit. What is timed is `leebert.evaluate.curve`
for patience, entropy and maximum probability: who leaves where, and the task's measures (accuracy and F1).

Target: < 1 s for all 60 points.
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
    made.add_argument("--thresholds", type=int, default=20, help="thresholds per strategy (%(default)s)")
    options = made.parse_args()
    start(options.threads)
    from leebert.evaluate import HeldOut, curve
    from leebert.report import thresholds_of

    rng = np.random.default_rng(0)
    m, n, k, count = options.exits, options.rows, 2, options.thresholds
    depth = np.linspace(0.3, 3.0, m, dtype=np.float32)[:, None, None]
    recorded = HeldOut(rng.standard_normal((m, n, k), np.float32) * depth, rng.integers(0, k, n))
    # `leebert evaluate` tries each patience once; here it has as many thresholds as the others.
    chosen = {name: thresholds_of(name, count, m, k) for name in STRATEGIES}
    chosen["patience"] = [float(1 + i % max(1, m - 1)) for i in range(count)]
    curve(recorded, "acc_f1", "never", [None])  # imports scikit-learn

    def seconds_of(name: str, number: int) -> float:
        return timed(lambda: curve(recorded, "acc_f1", name, chosen[name]))

    found = alternate({s: partial(seconds_of, s) for s in STRATEGIES}, options.rounds)
    result = Result("replay", options)
    for name, values in found.items():
        result.figure(name, values, "s")
    result.target("all strategies, s", [sum(parts) for parts in zip(*found.values(), strict=True)], 1.0)
    result.end()


if __name__ == "__main__":
    main()
