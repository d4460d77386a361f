"""Learned against uniform loss weights over five tasks, in pieces: every call goes on where the last one stopped.

python benchmarks/claim.py --storage sweeps --hours 2     # again and again; the seeds grow from 1 to 3
python docs/results/claim.py keep sweeps                  # what `compare` says about all tasks

The tasks: MRPC (2,000 samples); SST-2 (6,000); the part of MNLI that is there (2,000); SST-2 (2,000) with 20 % wrong labels;
and an unbalanced one, SST-2 with a tenth of positive samples, scored by macro F1. Epochs per task so that one seed of all
tasks takes about four hours of one core, three seeds six hours of two.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import glue
from ruamel.yaml import YAML

SPACE = Path(__file__).with_name("claim.yaml")
PROGRAM = str(Path(sys.executable).with_name("leebert-tune"))
#: Sweep → its overrides of the space. SST-2's samples are short, so that it affords more of them.
TASKS: dict[str, tuple[str, ...]] = {
    "claim-sst2-noisy": ("training.label_noise=0.2",),
    "claim-unbalanced": (),
    "claim-sst2": ("data.subset.rows=6000", "training.max_epochs=3", "training.patience=3"),
    "claim-mrpc": ("task=mrpc", "training.max_epochs=5", "training.patience=5"),
    "claim-mnli": ("task=mnli", "training.max_epochs=5", "training.patience=5"),
}


def unbalanced(folder: Path) -> Path:
    """Write SST-2 with 1,800 negative and 200 positive training samples, and a search space that declares it."""
    folder.mkdir(parents=True, exist_ok=True)
    split = {name: pd.read_csv(glue() / "SST-2" / f"{name}.tsv", sep="\t", quoting=3) for name in ("train", "dev")}
    drawn = np.random.default_rng(0)
    train, dev = split["train"].drop_duplicates("sentence"), split["dev"]
    parts = []
    for label, count in ((0, 1800), (1, 200)):
        of = train[train.label == label]
        parts.append(of.iloc[np.sort(drawn.choice(len(of), count, replace=False))])
    pd.concat(parts).to_json(folder / "train.jsonl", orient="records", lines=True)
    dev.to_json(folder / "dev.jsonl", orient="records", lines=True)
    yaml = YAML()
    space = yaml.load(SPACE.read_text())
    space["task"] = {
        "name": "sst2-unbalanced", "files": {name: str(folder / f"{name}.jsonl") for name in split}, "text": ["sentence"],
        "label": "label", "labels": ["negative", "positive"], "metric": "macro_f1",
    }  # fmt: skip
    del space["data"]
    with open(folder / "claim-unbalanced.yaml", "w", encoding="utf-8") as f:
        yaml.dump(space, f)
    return folder / "claim-unbalanced.yaml"


def command(name: str, storage: Path, seeds: int) -> list[str]:
    """The command that starts a task's sweep, or resumes it with so many seeds."""
    if (storage / name).is_dir():
        return [PROGRAM, "resume", name, "--storage", str(storage), "--set", f"seeds={seeds}"]
    space = unbalanced(storage / "unbalanced") if name == "claim-unbalanced" else SPACE
    overrides = [part for value in (*TASKS[name], f"seeds={seeds}") for part in ("--set", value)]
    return [
        PROGRAM,
        "sweep",
        str(space),
        "--data-dir",
        str(glue()),
        "--name",
        name,
        "--storage",
        str(storage),
        *overrides,
    ]


def run(storage: Path, hours: float, options: list[str]) -> None:
    """Run every task's sweep with 1, 2 and 3 seeds, until the time is over; the present run of a sweep is then stopped."""
    end = time.time() + 3600 * hours
    for seeds in (1, 2, 3):
        for name in TASKS:
            left = end - time.time()
            if left <= 0:
                return
            overrides = [part for value in options for part in ("--set", value)]
            process = subprocess.Popen([*command(name, storage, seeds), *overrides])
            try:
                process.wait(timeout=left)
            except subprocess.TimeoutExpired:
                subprocess.run([PROGRAM, "stop", name, "--storage", str(storage)])
                process.wait()
                return


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--storage", type=Path, default=Path("sweeps"), help="folder of the sweeps (%(default)s)")
    made.add_argument("--hours", type=float, default=1.0, help="time of this call (%(default)s)")
    made.add_argument("--set", action="append", default=[], dest="options", help="override of the space; repeatable")
    options = made.parse_args()
    run(options.storage.resolve(), options.hours, options.options)


if __name__ == "__main__":
    main()
