"""Seconds per step of θ for every method, compared with its arithmetic and with plain fine-tuning.

The model is a BERT encoder from a configuration (6 layers, 384 hidden units, random weights) with batches of 16
samples of 64 random tokens; with `--network resnet56` it is a residual network with an exit after each block and
batches of 32 random images, for the methods that support it. Every stage of every method has its own copy of the
model. In each round every stage trains whole cycles, and the stages alternate within this process.

The arithmetic is counted, not assumed: the floating-point operations of a step's matrix products as it runs (frozen
parts, teachers and pruned parts included), in units of one forward pass of the unreduced model with all exits on one
batch. A forward pass is 1, a backward pass 2. Both columns are multiples of `uniform`, plain fine-tuning of the whole
network with all exits; one more column is relative to `finetune`, with the last exit alone. Only matrix products
count: optimiser steps, dropout and losses are overhead, as is everything that `--precision bf16` does not speed up
(two passes of `hyper` are always in fp32). The passes over all samples at a pruning round are not steps and not
included.

Target: measured / arithmetic <= 1.3 for every stage.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from common import Result, alternate, now, parser, ratios, start

LAYERS, HIDDEN, HEADS, ROWS, LENGTH, VOCABULARY = 6, 384, 12, 16, 64, 30522
IMAGES, SIDE = 32, 32
PLAIN, ONE_EXIT = "uniform", "finetune"
LIMIT = 1.3


def bert(config: Any) -> Any:
    """Return a fresh multi-exit BERT with the same weights at every call."""
    import torch
    from transformers import AutoModel, BertConfig

    from leebert.model import build_model

    torch.manual_seed(0)
    shape = BertConfig(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * HIDDEN,
        vocab_size=VOCABULARY,
    )  # fmt: skip
    return build_model(AutoModel.from_config(shape), ("no", "yes"), pooling="cls", train=config)


def resnet(config: Any) -> Any:
    """Return a fresh residual network with an exit after each block and the same weights at every call."""
    import torch

    from leebert.images.resnet import build_resnet

    torch.manual_seed(0)
    classes = tuple(f"class {i}" for i in range(10))
    return build_resnet("resnet56", classes, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), train=config)


def random_texts(device: str) -> Iterator[Any]:
    """Yield full-length batches endlessly."""
    import torch

    generator = torch.Generator().manual_seed(1)
    while True:
        ids = torch.randint(1000, VOCABULARY, (ROWS, LENGTH), generator=generator)
        labels = torch.randint(0, 2, (ROWS,), generator=generator)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def random_images(device: str) -> Iterator[Any]:
    """Yield batches endlessly."""
    import torch

    generator = torch.Generator().manual_seed(1)
    while True:
        pixels = torch.randint(0, 256, (IMAGES, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 10, (IMAGES,), generator=generator)
        yield {"images": pixels.to(device), "labels": labels.to(device)}


@dataclasses.dataclass(frozen=True)
class Network:
    """What is trained: a model from its options, batches for a device, and the options that are its own."""

    model: Callable[[Any], Any]
    batches: Callable[[str], Iterator[Any]]
    options: dict[str, Any]


_OF_IMAGES = {"batch_size": IMAGES, "theta_optimizer": "sgd", "omega_optimizer": "sgd", "exit_dropout": 0.0}
NETWORKS = {
    "bert": Network(bert, random_texts, {"batch_size": ROWS}),
    "resnet56": Network(resnet, random_images, _OF_IMAGES),
}


class Training:
    """One stage of a method, with its own model, optimisers and position in the cycle."""

    def __init__(
        self, network: Network, model: Any, stage: Any, config: Any, runtime: Any, teacher: Any = None
    ) -> None:
        from leebert.level import StageLevel

        self.stage, self.device = stage, str(runtime.device)
        self.level = StageLevel(model, stage, config, runtime, (0,), teacher)
        if stage.pace:
            stage.pace(model, 0.5)
        self.batches = network.batches(self.device)
        model.train()

    def cycles(self, steps: int) -> int:
        """Train at least `steps` steps, to the end of a cycle; return their number."""
        self.level.start_epoch(self.batches)
        position = 0
        for done in itertools.count(1):
            position = self.stage.algorithm.step(self.level, next(self.batches), position)
            if position == 0 and done >= steps:
                return done
        raise AssertionError("unreachable")

    def seconds(self, steps: int) -> float:
        """Return the seconds per step of θ."""
        started = now(self.device)
        done = self.cycles(steps)
        return (now(self.device) - started) / done

    def operations(self, steps: int) -> float:
        """Floating-point operations of a step's matrix products, a mean over whole cycles of at least so many steps."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            done = self.cycles(steps)
        return counter.get_total_flops() / done


def stages_of(network: Network, name: str, told: dict[str, Any], device: str) -> dict[str, Training]:
    """Return a method's stages, ready to train, by their label in the table; none if the network does not support it.

    told: training options, of which a method takes those that it reads.
    """
    from leebert.config import TrainConfig
    from leebert.errors import ConfigError
    from leebert.methods import applies
    from leebert.runtime import Runtime
    from leebert.stages import check, method

    read = {option: value for option, value in told.items() if applies(option, name)}
    config = TrainConfig(algorithm=name, **network.options, **read)
    runtime = Runtime.of(config.precision, device)
    model = network.model(config).to(runtime.device)
    stages = method(config, model.num_exits)
    try:
        check(stages, model, config)
    except ConfigError:
        return {}
    made: dict[str, Training] = {}
    ended: dict[str, Any] = {}  # models of earlier stages, which teach
    for stage in stages:
        model = stage.shape(copy.deepcopy(model)).to(runtime.device)
        teacher = ended.get(stage.teacher or "")
        ended[stage.name] = copy.deepcopy(model).eval().requires_grad_(False)
        if stage.epochs != 0:
            row = name if len(stages) == 1 else f"{name}: {stage.name}"
            made[row] = Training(network, model, stage, config, runtime, teacher)
    return made


def operations_of_a_forward(network: Network, device: str) -> float:
    """Of one forward of the unreduced model with all exits on one batch, in training mode."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from leebert.config import TrainConfig

    config = TrainConfig(**network.options)
    model = network.model(config).to(device).train()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.record(next(network.batches(device)))
    return float(counter.get_total_flops())


def main() -> None:
    from leebert.stages import METHODS

    made = parser(__doc__)
    made.add_argument("--steps", type=int, default=8, help="steps of θ per round, at least; whole cycles (%(default)s)")
    made.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="fp32", help="(%(default)s)")
    made.add_argument("--network", choices=list(NETWORKS), default="bert", help="(%(default)s)")
    made.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME")
    made.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="training options as JSON, for those that read them",
    )
    options = made.parse_args()
    start(options.threads)
    result = Result("steps", options)
    network = NETWORKS[options.network]
    given = dict(assignment.split("=", 1) for assignment in options.set)
    bare = {"precision": options.precision}
    told = bare | {option: json.loads(value) for option, value in given.items()}
    trainings: dict[str, Training] = {}
    for name in (PLAIN, ONE_EXIT):  # what all are compared with takes no options
        trainings |= stages_of(network, name, bare, options.device)
    for name in options.methods:
        for row, training in stages_of(network, name, told, options.device).items():
            trainings.setdefault(", ".join([row, *options.set]), training)
    # A cycle that is not timed: optimisers make their states, libraries their kernels.
    unit = operations_of_a_forward(network, options.device)
    units = {name: training.operations(options.steps) / unit for name, training in trainings.items()}

    def seconds_of(name: str, number: int) -> float:
        return trainings[name].seconds(options.steps)

    seconds = alternate({name: partial(seconds_of, name) for name in trainings}, options.rounds)
    rows = []
    for name, values in seconds.items():
        arithmetic, measured = units[name] / units[PLAIN], ratios(values, seconds[PLAIN])
        against_one = statistics.median(ratios(values, seconds[ONE_EXIT]))
        result.figure(f"step, {name}", values, "s")
        result.figure(f"units, {name}", units[name])
        result.target(f"measured / arithmetic, {name}", [ratio / arithmetic for ratio in measured], LIMIT)
        middle = statistics.median(measured)
        rows.append((name, units[name], arithmetic, middle, middle / arithmetic, against_one))
    print(
        "\n| method | units | arithmetic / uniform | measured / uniform | measured / arithmetic | measured / finetune |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name, *numbers in rows:
        print(f"| {name} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |")
    print()
    result.end(", ".join([options.network, options.precision, *options.set]))


if __name__ == "__main__":
    main()
