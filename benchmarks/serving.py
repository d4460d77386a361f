"""Exported early exits against the same encoder at full depth in PyTorch and ONNX Runtime, and against static students.

python benchmarks/serving.py --model runs/mrpc --exported runs/mrpc-fp32 runs/mrpc-int8 --students runs/pkd-int8 runs/theseus-int8

All run the same tokenised texts of the task's development split: batch size 1 one text after the other, and larger batches
sorted by length. Tokenising and collating are not timed. Variants alternate; medians are over rounds, percentiles over texts
and rounds. Scores are on the whole split; thresholds were chosen on other samples, when the model was exported. The
rival without exits is the encoder with its last exit as one ONNX graph, quantised by onnxruntime (dynamic, per channel) and
fused by its optimiser for transformers.

Targets, one thread: int8 exits at layer speed-up 2, batch size 1: at most 0.55 of the time of the int8 graph, and 0.22 of PyTorch's;
the int8 segments at full depth at most 1.08 of the graph; batch size 32, loss of at most 1 point: at least 1.7 times the graph's throughput.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Result, alternate, glue, parser, ratios, scratch, start, stop

Batch = Mapping[str, np.ndarray]
GRAPH = "ONNX Runtime int8, one graph"
PLAIN = "PyTorch, full depth"


@dataclasses.dataclass
class Variant:
    """One way to classify a batch.

    Attributes:
        run: Batch → logits (B, K) and exit layer of each sample (B,).
        torch: Whether it takes torch's tensors.
        folder: An exported folder, whose memory can be measured; None: none.
    """

    run: Callable[[Any], tuple[Any, Any]]
    torch: bool = False
    folder: Path | None = None


class Plain:
    """The encoder with its last exit as an ordinary classifier."""

    def __init__(self, folder: Path) -> None:
        import torch

        from leebert.model import load_model

        self.model = load_model(folder).eval()
        model = self.model

        class Full(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.encoder, self.last = model.backbone, model.heads[-1]

            def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
                states = self.encoder(
                    input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
                ).last_hidden_state
                weight = attention_mask.to(states.dtype).unsqueeze(-1)
                return self.last((states * weight).sum(dim=1) / weight.sum(dim=1))

        self.module = Full().eval()

    def run(self, batch: Any) -> tuple[Any, Any]:
        """In PyTorch, float32."""
        import torch

        with torch.inference_mode():
            return self.module(**batch).numpy(), np.full(len(batch["input_ids"]), self.model.depth)

    def compiled(self) -> Callable[[Any], tuple[Any, Any]]:
        """The same as TorchScript, traced and frozen."""
        import torch

        example = {name: torch.ones(2, 16, dtype=torch.long) for name in NAMES}
        with torch.inference_mode():
            traced = torch.jit.freeze(torch.jit.trace(self.module, example_kwarg_inputs=example, strict=False))

        def run(batch: Any) -> tuple[Any, Any]:
            with torch.inference_mode():
                return traced(**batch).numpy(), np.full(len(batch["input_ids"]), self.model.depth)

        return run

    def exits(self, speed_up: float, recorded: Any, metric: str) -> Callable[[Any], tuple[Any, Any]]:
        """Our exits in PyTorch: entropy at the threshold whose layer speed-up on `recorded` is nearest to `speed_up`."""
        from leebert.exits.replay import make_criterion
        from leebert.inference import infer
        from leebert.runtime import Runtime
        from leebert.tradeoff import tradeoff

        curve = tradeoff(recorded, "entropy", metric=metric, speed_ups=[speed_up])
        threshold = float(curve.nearest(speed_up).threshold or 0.0)
        criterion = make_criterion(
            "entropy", threshold, num_exits=self.model.num_exits, num_classes=self.model.config.num_labels
        )
        runtime = Runtime.of("fp32", "cpu")

        def run(batch: Any) -> tuple[Any, Any]:
            answer = infer(self.model, batch, criterion, runtime)
            return answer.logits.numpy(), answer.layers.numpy()

        return run

    def graphs(self, folder: Path, threads: int) -> dict[str, Callable[[Any], tuple[Any, Any]]]:
        """One ONNX graph in float32 and in int8, each fused."""
        fused, int8 = self.write_graphs(folder)
        return {"ONNX Runtime fp32, one graph": self._session(fused, threads), GRAPH: self._session(int8, threads)}

    def write_graphs(self, folder: Path) -> tuple[Path, Path]:
        """Write one ONNX graph in float32 and in int8, each fused."""
        import torch
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.transformers import optimizer

        example = tuple(torch.ones(2, 16, dtype=torch.long) for _ in NAMES)
        dynamic = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")} for name in NAMES}
        raw, fused, int8 = (folder / name for name in ("raw.onnx", "fused.onnx", "int8.onnx"))
        program = torch.onnx.export(
            self.module, example, input_names=list(NAMES), output_names=["logits"], dynamo=True, dynamic_shapes=dynamic
        )
        program.save(str(raw), external_data=False)
        config = self.model.backbone.config
        optimizer.optimize_model(
            str(raw), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size,
            opt_level=1, use_gpu=False,
        ).save_model_to_file(str(fused))  # fmt: skip
        quantize_dynamic(str(fused), str(int8), per_channel=True, weight_type=QuantType.QInt8)
        return fused, int8

    def _session(self, file: Path, threads: int) -> Callable[[Any], tuple[Any, Any]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = {one.name for one in session.get_inputs()}
        depth = self.model.depth

        def run(batch: Any) -> tuple[Any, Any]:
            (logits,) = session.run(["logits"], {name: batch[name] for name in names})
            return logits, np.full(len(logits), depth)

        return run


NAMES = ("input_ids", "attention_mask", "token_type_ids")


def of_export(folder: Path, threads: int, loss: float) -> dict[str, Variant]:
    """An exported folder at full depth, at layer speed-up 2 and within a loss; a student with one exit at full depth only."""
    from leebert.exported.model import ExportedModel

    model = ExportedModel.load(folder, threads=threads)

    def run(criterion: Any, batch: Batch) -> tuple[Any, Any]:
        answer = model.infer(batch, criterion)
        return answer.logits, answer.layers

    name = folder.name
    choices = {f"{name}: full depth": {"criterion": "never"}}
    if len(model.manifest.segments) > 1:
        choices |= {
            f"{name}: layer speed-up 2": {"criterion": "entropy", "speed_up": 2.0},
            f"{name}: loss of at most {loss:g}": {"max_loss": loss},
        }
    return {
        where: Variant(partial(run, model.criterion(model.choose(**choice))), folder=folder)
        for where, choice in choices.items()
    }


@dataclasses.dataclass
class Texts:
    """The development split in batches."""

    labels: np.ndarray
    rows: Any

    def batches(self, order: np.ndarray, size: int) -> dict[bool, list[Any]]:
        """Batches as numpy's arrays (False) and as torch's tensors (True)."""
        tensors = []
        for at in range(0, len(order), size):
            batch = self.rows.collate(order[at : at + size])
            tensors.append({name: batch[name] for name in NAMES})
        return {True: tensors, False: [{name: t.numpy() for name, t in batch.items()} for batch in tensors]}


def seconds(variant: Variant, batches: Mapping[bool, list[Any]], into: list[float], number: int) -> float:
    """One round; appends the seconds of every batch to `into`."""
    started = time.perf_counter()
    for batch in batches[variant.torch]:
        before = time.perf_counter()
        variant.run(batch)
        into.append(time.perf_counter() - before)
    return time.perf_counter() - started


def memory(folder: Path, threads: int) -> dict[str, float]:
    """Memory of a fresh process that has loaded an exported folder and classified 64 texts, in MB, and its loading time."""
    code = (
        "import sys,time; started=time.perf_counter()\n"
        "from leebert.exported.model import ExportedModel\n"
        "from pathlib import Path\n"
        f"model=ExportedModel.load({str(folder)!r},threads={threads})\n"
        "columns=len(model.manifest.text_columns)\n"
        "model.predict([('a text to classify',)*columns]); loaded=time.perf_counter()-started\n"
        "model.predict([('a somewhat longer text to classify '*6,)*columns]*64,truncate=True)\n"
        "import json,os; pages=int(Path('/proc/self/statm').read_text().split()[1])\n"
        "print(json.dumps({'rss':pages*os.sysconf('SC_PAGE_SIZE')/2**20,'seconds':loaded,"
        "'imported':sorted({'torch','transformers','ray'}&set(sys.modules))}))"
    )
    values: dict[str, float] = json.loads(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    )
    values["graphs"] = sum(file.stat().st_size for file in folder.glob("*.onnx")) / 2**20
    return values


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--model", type=Path, help="a folder written by `leebert train` with pooling mean")
    made.add_argument("--task", default="mrpc", help="its task (%(default)s)")
    made.add_argument(
        "--exported", type=Path, nargs="+", default=[], help="folders of `leebert export`; the last is the int8 one"
    )
    made.add_argument("--students", type=Path, nargs="*", default=[], help="exported static students")
    made.add_argument("--texts", type=int, default=136, help="texts at batch size 1 (%(default)s)")
    made.add_argument("--loss", type=float, default=1.0, help="points of score that may be lost (%(default)s)")
    options = made.parse_args()
    if options.model is None or not options.exported:
        stop("give --model, a folder written by `leebert train`, and --exported, folders written by `leebert export`")
    start(options.threads)
    from leebert.backbone import load_tokenizer
    from leebert.data.sources import read_split
    from leebert.data.tasks import get_task
    from leebert.data.tokens import tokenise
    from leebert.evaluate import record_all
    from leebert.metrics import measures
    from leebert.runtime import Runtime

    task = get_task(options.task)
    result = Result("serving", options)
    plain = Plain(options.model)
    with scratch() as folder:
        examples = read_split(task, task.eval_splits[0], glue())
        rows: Any = tokenise(
            examples, load_tokenizer(str(options.model)), plain.model.config.max_length, folder / "dev.arrow"
        )
        texts = Texts(np.asarray(rows.labels), rows)
        recorded = record_all(plain.model, rows, Runtime.of("fp32", "cpu"))
        variants = {
            PLAIN: Variant(plain.run, torch=True),
            "TorchScript, full depth": Variant(plain.compiled(), torch=True),
            "PyTorch, exits, layer speed-up 2": Variant(plain.exits(2.0, recorded, task.metric), torch=True),
            **{name: Variant(run) for name, run in plain.graphs(folder, options.threads).items()},
        }
        for exported in (*options.exported, *options.students):
            variants |= of_export(exported, options.threads, options.loss)
        score(variants, texts, task.metric, measures, result)
        times = {size: measure(variants, texts, size, options, result) for size in (1, 32)}
    targets(options.exported[-1].name, times, options.loss, result)
    for exported in (*options.exported, *options.students):
        used = memory(exported, options.threads)
        result.figure(f"{exported.name}: memory", used["rss"], f"MB, graphs {used['graphs']:.0f} MB")
        result.figure(f"{exported.name}: start to first answer", used["seconds"], "s")
    result.end("fp32")


def score(variants: Mapping[str, Variant], texts: Texts, metric: str, measures: Any, result: Result) -> None:
    """Score and mean exit layer of every variant on the whole split."""
    order = np.argsort(np.asarray(texts.rows.lengths), kind="stable")
    batches = texts.batches(order, 32)
    for name, variant in variants.items():
        answers = [variant.run(batch) for batch in batches[variant.torch]]
        predicted = np.concatenate([np.asarray(logits).argmax(-1) for logits, _ in answers])
        layers = np.concatenate([np.asarray(layer) for _, layer in answers])
        scores = measures(metric, texts.labels[order], predicted)
        result.figure(f"{name}: score", 100 * statistics.fmean(scores.values()), "%")
        result.figure(f"{name}: mean exit layer", float(layers.mean()))


def measure(
    variants: Mapping[str, Variant], texts: Texts, size: int, options: Any, result: Result
) -> dict[str, list[float]]:
    """Seconds of every variant and round at one batch size."""
    count = options.texts if size == 1 else len(texts.labels)
    chosen = np.random.default_rng(0).permutation(len(texts.labels))[:count]
    order = chosen if size == 1 else chosen[np.argsort(np.asarray(texts.rows.lengths)[chosen], kind="stable")]
    batches = texts.batches(order, size)
    each: dict[str, list[float]] = {name: [] for name in variants}
    for variant in variants.values():
        seconds(variant, {key: part[:8] for key, part in batches.items()}, [], 0)
    found = alternate(
        {name: partial(seconds, variant, batches, each[name]) for name, variant in variants.items()}, options.rounds
    )
    for name, values in found.items():
        result.figure(f"batch {size}: {name}", [1000 * s / count for s in values], "ms/text")
        if size == 1:
            result.figure(f"batch 1: {name}: p99", 1000 * float(np.quantile(each[name], 0.99)), "ms")
    return found


def targets(name: str, times: Mapping[int, Mapping[str, list[float]]], loss: float, result: Result) -> None:
    """The ratios that matter."""
    one, many = times[1], times[32]
    faster, full, equal = (
        f"{name}: {what}" for what in ("layer speed-up 2", "full depth", f"loss of at most {loss:g}")
    )
    result.target("batch 1, exits at 2 / int8 graph", ratios(one[faster], one[GRAPH]), 0.55)
    result.target("batch 1, exits at 2 / PyTorch", ratios(one[faster], one[PLAIN]), 0.22)
    result.target("batch 1, segments at full depth / int8 graph", ratios(one[full], one[GRAPH]), 1.08)
    result.target("batch 32, throughput at equal score / int8 graph", ratios(many[GRAPH], many[equal]), 1.7, least=True)


if __name__ == "__main__":
    main()
