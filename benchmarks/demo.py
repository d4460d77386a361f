"""Whether the demo's construction holds for other data: methods on generated reviews of several seeds, on one thread.

Prints, for each seed and method, the score of each exit on the development split, and their mean; then the difference of each
method from uniform-d1 over the seeds, with a 95 % interval of the paired t.

    .venv/bin/python benchmarks/demo.py --seeds 1 2 3 4 5
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from leebert.config import ModelConfig
from leebert.console import quiet_transformers
from leebert.data.sources import read_split
from leebert.data.synthetic import DEV_ROWS, ROWS, write_demo
from leebert.data.synthetic.encoder import write_encoder
from leebert.data.tasks import own_task
from leebert.data.tokens import tokenise
from leebert.evaluate import record_all
from leebert.kinds.texts import Texts
from leebert.metrics import per_exit
from leebert.problem import TextProblem
from leebert.runtime import Runtime
from leebert.train import fit
from leebert.training_options import train_config
from tune.space import load_space

SPACE = Path(__file__).parent.parent / "search_spaces" / "demo.yaml"
CONTROL = "uniform-d1"


def scores(folder: Path, seed: int, methods: list[str]) -> dict[str, np.ndarray]:
    """Train each method once on a seed's data; returns the score of each exit, (M,), by method."""
    task = own_task(write_demo(folder, ROWS, DEV_ROWS, seed))
    write_encoder(folder / "encoder", seed)
    backbone, spec = str(folder / "encoder"), load_space(SPACE)
    tokenizer = Texts().tokenizer(task, ModelConfig(backbone=backbone, pooling=spec.pooling))
    for split in ("train", "dev"):
        tokenise(read_split(task, split), tokenizer, spec.max_length, folder / f"{split}.arrow")
    splits = (("dev", str(folder / "dev.arrow")),)
    problem = TextProblem(
        str(folder / "train.arrow"), backbone, task.label_names, task.metric, spec.pooling, splits=splits
    )
    values = {values["algorithm"]: values for values in spec.configurations()}
    results = {}
    for method in methods:
        started = time.process_time()
        config, runtime = train_config(spec.training, values[method], seed), Runtime.of("fp32", "cpu")
        torch.manual_seed(seed)
        model = fit(problem.model(config), problem.rows(), config, runtime=runtime).model
        recorded = record_all(model, problem.split("dev"), runtime, 256)
        assert recorded.labels is not None
        results[method] = per_exit(task.metric, recorded.labels, recorded.logits)["score"]
        exits = " ".join(f"{100 * score:5.1f}" for score in results[method])
        mean, seconds = 100 * results[method].mean(), time.process_time() - started
        print(f"seed {seed}  {method:12} {exits}  mean {mean:.1f}  {seconds:.1f} s of processor time", flush=True)
    return results


def main() -> None:
    """Train all methods on all seeds and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="seeds of the data (%(default)s)")
    parser.add_argument("--methods", nargs="+", default=["hyper-v2", "clo-v2", "blo"], help="methods (%(default)s)")
    arguments = parser.parse_args()
    quiet_transformers()
    torch.set_num_threads(1)
    by_seed = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory(prefix="leebert-demo-") as folder:
            by_seed.append(scores(Path(folder), seed, [CONTROL, *arguments.methods]))
    for method in arguments.methods:
        gains = 100 * np.array([one[method].mean() - one[CONTROL].mean() for one in by_seed])
        text = (
            f"{method} minus {CONTROL}: {gains.mean():+.1f} points, {(gains > 0).sum()} of {len(gains)} seeds above 0"
        )
        if len(gains) > 1:
            text += f", ± {stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains):.1f}"
        print(text)


if __name__ == "__main__":
    main()
