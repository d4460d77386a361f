"""Dynamic against static int8, and ONNX Runtime against OpenVINO: score by exit, and time per text at full depth.

python benchmarks/int8.py --model runs/mrpc [--openvino]

Every exit is kept. Static ranges are measured on the model's training samples. Scores are those of its validation fold and of
the task's development split together, in batches of 32 of similar length, with the standard error of the difference from
float32 in accuracy; `batch 1` is the share of samples whose class at the last exit is another one in a batch of one. Times are the thread's processor time per text at batch size 1, of texts that are
spread over the lengths, the fastest of the rounds for each text; variants alternate text by text.

--openvino (pip install openvino; nncf, too, for its int8) measures instead the encoder at full depth as one plain graph: in
OpenVINO in float32, in its default precision and quantised by NNCF, and in ONNX Runtime quantised by its own tools.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import Result, glue, parser, scratch, start, stop
from serving import GRAPH, NAMES, Plain

Batch = Mapping[str, np.ndarray]
FORMS = {"fp32": None, "dynamic": "dynamic", "static": "static"}


def exports(folder: Path, model: Any, tokenizer: Any, data: str, threads: int) -> tuple[dict[str, Any], Any]:
    """The model's segments in float32 and in both kinds of int8, loaded by the runtime, and its validation fold."""
    from leebert.exits import FULL_MODEL
    from leebert.export.command import PRECISIONS, made_with
    from leebert.export.pieces import trace
    from leebert.export.quantise import quantised
    from leebert.export.ranges import measure_ranges
    from leebert.export.samples import inputs, read_samples
    from leebert.export.segments import compose
    from leebert.export.write import segments_of, write_export
    from leebert.exported.cpu import lacks_eight_bit
    from leebert.exported.manifest import Exits, Manifest
    from leebert.exported.model import ExportedModel

    samples = read_samples(folder, model, tokenizer, Path(data), data_dir=str(glue()), ranges=True)
    pieces = trace(model)
    graphs = compose(pieces, pieces.exit_layers)
    assert samples.texts is not None
    ranges = measure_ranges(graphs, [inputs(samples.texts, [i]) for i in range(len(samples.texts))])
    config, loaded = model.config, {}
    for name, int8 in FORMS.items():
        out = Path(data) / name
        out.mkdir()
        made = graphs
        if int8:
            made = [quantised(one, ranges if int8 == "static" else None, reduced=lacks_eight_bit()) for one in graphs]
        manifest = Manifest(
            kind="texts", name=name, task="task", labels=tuple(config.id2label.values()), depth=model.depth,
            metric="accuracy", segments=segments_of(made), exits=Exits(criterion=FULL_MODEL), made_with=made_with(),
            text_columns=(("a",), ("b",)), max_length=config.max_length, padding_id=tokenizer.pad_token_id,
            precision=PRECISIONS[int8],  # type: ignore[arg-type]
        )  # fmt: skip
        write_export(out, made, tokenizer, manifest)
        loaded[name] = ExportedModel.load(out, threads=threads)
    return loaded, samples.scored


def openvino(plain: Plain, folder: Path, texts: list[Batch], threads: int) -> dict[str, Callable[[Batch], Any]]:
    """The encoder as one graph, in OpenVINO and in ONNX Runtime's own int8."""
    import openvino as ov

    int8 = plain.graphs(folder, threads)[GRAPH]
    graph = ov.Core().read_model(folder / "raw.onnx")
    names = {one.any_name for one in graph.inputs}

    def compiled(model: Any, **options: Any) -> Callable[[Batch], Any]:
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, **options}
        request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
        return lambda batch: request.infer({name: batch[name] for name in names})

    made = {
        GRAPH: int8,
        "OpenVINO fp32, one graph": compiled(graph, INFERENCE_PRECISION_HINT="f32"),
        "OpenVINO default precision, one graph": compiled(graph),
    }
    if importlib.util.find_spec("nncf"):
        import nncf

        dataset = nncf.Dataset(texts, lambda batch: {name: batch[name] for name in names})
        quantised = nncf.quantize(graph, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(texts))
        made["OpenVINO int8 by NNCF, one graph"] = compiled(quantised, INFERENCE_PRECISION_HINT="f32")
    return made


def fastest(variants: Mapping[str, Callable[[Batch], Any]], batches: list[Batch], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of each text: the fastest of the rounds after one that warms up."""
    best = {name: np.full(len(batches), np.inf) for name in variants}
    for round_ in range(rounds + 1):
        for text, batch in enumerate(batches):
            for name, run in variants.items():
                before = time.thread_time()
                run(batch)
                if round_:
                    best[name][text] = min(best[name][text], 1000 * (time.thread_time() - before))
    return best


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--model", type=Path, help="a folder written by `leebert train`")
    made.add_argument("--texts", type=int, default=48, help="texts that are timed (%(default)s)")
    made.add_argument("--openvino", action="store_true", help="measure OpenVINO instead")
    options = made.parse_args()
    if options.model is None:
        stop("give --model, a folder written by `leebert train`")
    if options.openvino and importlib.util.find_spec("openvino") is None:
        stop("--openvino needs the package openvino: pip install openvino, in an environment of its own")
    start(options.threads)
    from leebert.data.sources import read_split
    from leebert.data.tasks import any_task
    from leebert.data.tokens import tokenise
    from leebert.export.samples import inputs, record_exported
    from leebert.export.timing import timed
    from leebert.kinds.texts import load_text_model
    from leebert.metrics import measures

    model, tokenizer = load_text_model(options.model)
    task, result = any_task(model.config.task), Result("int8", options)
    with scratch() as folder:
        examples = read_split(task, task.eval_splits[0], glue())
        rows: Any = tokenise(examples, tokenizer, model.config.max_length, folder / "dev.arrow")
        batches: list[Batch] = [inputs(rows, [i]) for i in timed(np.asarray(rows.lengths), options.texts)]
        if options.openvino:
            shown = [{name: batch[name] for name in NAMES} for batch in batches]
            plain = Plain(options.model)
            for name, taken in fastest(openvino(plain, folder, shown, options.threads), shown, options.rounds).items():
                result.figure(f"{name}: full depth", float(np.median(taken)), "ms/text")
            result.end("int8")
            return
        loaded, fold = exports(options.model, model.float(), tokenizer, str(folder), options.threads)
        labels = np.concatenate([fold.collate(range(len(fold)))["labels"].numpy(), rows.labels])

        def classes(name: str, batch_size: int = 32) -> np.ndarray:
            parts = [record_exported(loaded[name], one, None, batch_size).logits for one in (fold, rows)]
            return np.concatenate(parts, axis=1).argmax(-1)

        predicted = {name: classes(name) for name in loaded}
        for name, every in predicted.items():
            for layer, (own, before) in enumerate(zip(every, predicted["fp32"], strict=True), start=1):
                score = 100 * measures(task.metric, labels, own)["score"]
                change = (own == labels).astype(float) - (before == labels)
                accuracy = f"accuracy {100 * change.mean():+.2f} ± {100 * change.std() / len(change) ** 0.5:.2f}"
                result.figure(f"{name}: exit {layer}", score, f"%, {accuracy}, {(own == before).mean():.2%} as fp32")
            result.figure(f"{name}: batch 1", 100 * float((classes(name, 1)[-1] != every[-1]).mean()), "% differ")
        variants: dict[str, Callable[[Batch], Any]] = {name: one.all_logits for name, one in loaded.items()}
        times = fastest(variants, batches, options.rounds)
        for name, milliseconds in times.items():
            result.figure(f"{name}: full depth", float(np.median(milliseconds)), "ms/text")
        ratio = float(np.median(times["static"] / times["dynamic"]))
        result.figure("static / dynamic", ratio)
    result.end("int8")


if __name__ == "__main__":
    main()
