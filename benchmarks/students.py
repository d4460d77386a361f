"""Wall-clock speed-up of statically compressed networks against their ratio of operations, at batch size 1.

The model is a BERT encoder from a configuration (12 layers, 768 hidden units, random weights), a sample 128 random
tokens. Each static method's final network, and COST-EFF's slender one with all exits, is built by its stages and runs
in `leebert.inference.infer`, as in `leebert predict`. All networks take turns in every round. Operations are
multiply-adds of matrix products up to the last exit (`leebert.operations`).

Target: (seconds of the whole network / seconds) / (operations of the whole / operations) >= 0.9. It is harder to
reach for pruned heads, inner units and embeddings, which make matrices smaller but not fewer.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from common import Result, alternate, now, parser, ratios, start

LAYERS, HIDDEN, HEADS, LENGTH, VOCABULARY = 12, 768, 12, 128, 30522
ROWS = 4
LIMIT = 0.9
#: What each row of the table is made by: method and options.
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "6 layers (truncated)": ("truncated", {"keep": 0.5}),
    "9 layers (truncated)": ("truncated", {"keep": 0.75}),
    "LayerDrop": ("layerdrop", {"keep": 0.5}),
    "DistilBERT": ("distilled", {"keep": 0.5}),
    "BERT-PKD": ("pkd", {"keep": 0.5}),
    "BERT-of-Theseus": ("theseus", {"keep": 0.5}),
    "head pruning, half of the heads": ("headprune", {"keep": 0.5}),
    "COST-EFF, half": ("cost-eff", {"keep": 0.5}),
}
WHOLE = "whole"


def student(name: str, options: dict[str, Any]) -> Any:
    """Return a method's final network in evaluation mode, with arbitrary weights."""
    import torch
    from transformers import AutoModel, BertConfig

    from leebert.config import TrainConfig
    from leebert.model import build_model
    from leebert.stages import method

    torch.manual_seed(0)
    shape = BertConfig(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * HIDDEN,
        vocab_size=VOCABULARY,
    )  # fmt: skip
    config = TrainConfig(algorithm=name, **options)
    model = build_model(AutoModel.from_config(shape), ("no", "yes"), pooling="cls", train=config)
    for stage in method(config, model.num_exits):
        model = stage.shape(model)
    return model.eval()


def main() -> None:
    options = parser(__doc__, rounds=9).parse_args()
    start(options.threads)
    import torch

    from leebert.exits.replay import make_criterion
    from leebert.inference import infer
    from leebert.operations import multiply_adds
    from leebert.runtime import Runtime

    result = Result("students", options)
    runtime = Runtime.of("fp32", options.device)
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(ROWS):
        ids = torch.randint(1000, VOCABULARY, (1, LENGTH), generator=generator)
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    models = {WHOLE: student("finetune", {}), **{name: student(*made) for name, made in STUDENTS.items()}}
    operations = {name: multiply_adds(model, rows[0])[-1] for name, model in models.items()}

    def seconds_of(name: str, number: int) -> float:
        model = models[name]
        rule = make_criterion("never", None, num_exits=model.num_exits, num_classes=2)
        started = now(options.device)
        for row in rows:
            infer(model, row, rule, runtime).layers.cpu()
        return (now(options.device) - started) / len(rows)

    for model in models.values():
        model.to(runtime.device)
    work = {name: partial(seconds_of, name) for name in models}
    alternate(work, 1)  # not counted: libraries make their kernels
    seconds = alternate(work, options.rounds)
    lines = []
    for name, values in seconds.items():
        result.figure(f"seconds, {name}", values, "s")
        fewer, faster = operations[WHOLE] / operations[name], ratios(seconds[WHOLE], values)
        middle = statistics.median(faster)
        lines.append((name, fewer, middle, middle / fewer))
        if name != WHOLE:
            result.target(f"speed-up / ratio of operations, {name}", [x / fewer for x in faster], LIMIT, least=True)
    print(
        "\n| network | ratio of operations | wall-clock speed-up | wall-clock / operations |\n| --- | --- | --- | --- |"
    )
    for name, *numbers in lines:
        print(f"| {name} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |")
    print()
    result.end("fp32")


if __name__ == "__main__":
    main()
