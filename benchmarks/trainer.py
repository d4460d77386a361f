"""Samples per second of one trial's training against Hugging Face's Trainer, with the same multi-exit model.

Ours is `leebert.train.train_epochs` as in a trial, with automatic precision and length buckets: plain training
(uniform weights, no teachers, the loss that the Trainer also minimises) and CLO-v2. The Trainer runs in float32 with
its padding collator and random order, and in bf16 with its own grouping by length. All four train once on the same
samples of MRPC, in batches of 16, with AdamW and clipping at 1, without evaluation, saving and logging. They
alternate, and each round starts with a fresh model. The Trainer groups within 50 batches or a quarter of the samples,
whichever is less; `--examples 3648` is large enough for it.

Targets for both of ours: >= 3 times the Trainer in float32, >= 1 times the one in bf16 that groups.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import BATCH, Result, alternate, mrpc, now, parser, problem, ratios, scratch, start, stop

OURS: dict[str, dict[str, Any]] = {
    "leebert plain": {"algorithm": "uniform", "teachers": "none"},
    "leebert CLO-v2": {"algorithm": "clo-v2"},
}
TRAINERS: dict[str, dict[str, Any]] = {
    "Trainer fp32": {},
    "Trainer bf16 grouped": {"bf16": True, "grouped": True},
}


def ours(name: str, data: Any, rows: np.ndarray, device: str, seed: int) -> float:
    """Return the samples per second of θ's batches over two epochs of half of the samples each."""
    import torch

    from leebert.config import TrainConfig
    from leebert.data.batches import RowSubset, updates_per_epoch
    from leebert.runtime import Runtime
    from leebert.train import train_epochs

    config = TrainConfig(batch_size=BATCH, max_epochs=2, **OURS[name])
    torch.manual_seed(seed)
    model = problem(data).model(config)
    runtime = Runtime.of(config.precision, device)
    model.to(runtime.device)
    part = RowSubset(data.rows, rows)
    started = now(device)
    for _ in train_epochs(model, part, config, runtime=runtime, seed=(seed,)):
        pass
    seconds = now(device) - started
    return 2 * updates_per_epoch(len(part), BATCH) * BATCH / seconds


def theirs(name: str, data: Any, rows: np.ndarray, device: str, seed: int, folder: Path) -> float:
    """Return the Trainer's samples per second, without its set-up."""
    import dataclasses

    import torch
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from leebert.config import TrainConfig

    class Clock(TrainerCallback):
        started = ended = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = now(device)

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self.ended = now(device)

    settings: dict[str, Any] = {"bf16": TRAINERS[name].get("bf16", False)}
    if TRAINERS[name].get("grouped"):
        # The option's name before and after transformers 5.
        names = {field.name for field in dataclasses.fields(TrainingArguments)}
        new = {"train_sampling_strategy": "group_by_length"}
        settings |= new if "train_sampling_strategy" in names else {"group_by_length": True}
    torch.manual_seed(seed)
    model = problem(data).model(TrainConfig(batch_size=BATCH))
    clock = Clock()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "trainer"), per_device_train_batch_size=BATCH, num_train_epochs=1,
            learning_rate=1e-5, max_grad_norm=1.0, seed=seed, use_cpu=not device.startswith("cuda"), disable_tqdm=True,
            report_to="none", logging_strategy="no", save_strategy="no", eval_strategy="no", **settings,
        ),
        train_dataset=features(data, rows),
        data_collator=DataCollatorWithPadding(data.tokenizer),
        processing_class=data.tokenizer,
        callbacks=[clock],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return len(rows) / (clock.ended - clock.started)


def features(data: Any, rows: np.ndarray) -> list[dict[str, Any]]:
    """Tokenised samples in the format of the Trainer's collator."""
    tokens, made = data.rows, []
    for row in rows:
        at = slice(tokens.offsets[row], tokens.offsets[row + 1])
        made.append(
            {
                "input_ids": tokens.input_ids[at].tolist(),
                "attention_mask": [1] * int(tokens.lengths[row]),
                "token_type_ids": tokens.token_type_ids[at].tolist(),
                "labels": int(tokens.labels[row]),
            }
        )
    return made


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--examples", type=int, default=480, help="rows per run, a multiple of 32 (%(default)s)")
    options = made.parse_args()
    if importlib.util.find_spec("accelerate") is None:
        stop("the Trainer needs accelerate, which nothing else here does: pip install accelerate")
    start(options.threads)
    result = Result("trainer", options)
    with scratch() as folder:
        data = mrpc(folder)
        if options.examples % (2 * BATCH) or not 0 < options.examples <= len(data.rows):
            stop(f"--examples {options.examples}: a multiple of {2 * BATCH}, at most {len(data.rows)}")
        rows = np.random.default_rng(0).permutation(len(data.rows))[: options.examples]

        def speed(name: str, seed: int, part: np.ndarray = rows) -> float:
            if name in OURS:
                return ours(name, data, part, options.device, seed)
            return theirs(name, data, part, options.device, seed, folder)

        names = [*OURS, *TRAINERS]
        for name in names:  # not timed: imports, allocators, kernels
            speed(name, 0, rows[: 2 * BATCH])
        found = alternate({name: partial(speed, name) for name in names}, options.rounds)
    for name, values in found.items():
        result.figure(name, values, "examples/s")
    for name in OURS:
        result.target(f"{name} / Trainer fp32", ratios(found[name], found["Trainer fp32"]), 3.0, least=True)
        grouped = found["Trainer bf16 grouped"]
        result.target(f"{name} / Trainer bf16 grouped", ratios(found[name], grouped), 1.0, least=True)
    result.end()


if __name__ == "__main__":
    main()
