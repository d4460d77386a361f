"""A tenfold surge of requests against three servers of one model, under the same arrivals.

`adaptive` has a target for the 99th percentile of latencies and a floor for the score; `fixed` always uses the fastest
threshold that loses nothing; `full depth` is what one has without exits: the encoder with its last exit as one ONNX graph
in int8, fused and quantised by onnxruntime's own tools (benchmarks/serving.py), behind the same server. Writes every
request to OUT/NAME.parquet, and draws load, p99, speed-up and score over time to OUT/surge.png. About three minutes.

The replica has the last core of those that this program may use; the load generator, the front and Ray have the first.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import glue, scratch, stop

from tune.serve.load import (
    Surge,
    about_server,
    measure_capacity,
    read_samples,
    run_load,
    save,
    summary,
    within_target,
)

#: The surge's peak relative to the texts per second that the fastest allowed threshold sustains.
SHARE = 0.6

COLOURS = {"adaptive": "#1f6fb4", "fixed": "#d9822b", "full depth": "#7a7a7a"}


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder that `leebert export` wrote")
    parser.add_argument("--saved", type=Path, required=True, help="the same model as `leebert train` wrote it")
    parser.add_argument("--data", type=Path, help="texts with labels; by default MRPC's dev split in LEEBERT_DATA")
    parser.add_argument("--p99-ms", type=float, default=50.0, help="target (%(default)g)")
    parser.add_argument("--max-loss", type=float, default=1.0, help="floor in points (%(default)g)")
    parser.add_argument(
        "--peak", type=float, help=f"requests per second in the surge; by default {SHARE:g} of the capacity"
    )
    parser.add_argument("--seconds", type=float, default=40.0, help="per server; half of it is the surge (%(default)g)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("surge"), help="folder of the results (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the result to this file as one JSON line")
    return parser.parse_args()


@contextlib.contextmanager
def server(model: Path, out: Path, *words: str) -> Iterator[str]:
    """Run `leebert-tune serve`; provide its address."""
    command = [sys.executable, "-m", "tune", "serve", str(model), "--port", "0", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (out / "server.log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert process.stdout is not None
        try:
            if not (line := process.stdout.readline()):
                stop(f"the server did not start; see {out / 'server.log'}")
            print(line.strip(), flush=True)
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def pin_replica(cores: set[int]) -> None:
    """Move all threads of the replica of a server that this process has started to cores of their own."""
    replicas = [one for one in psutil.Process().children(recursive=True) if "Replica" in one.name()]
    if len(replicas) != 1:
        stop(f"expected one replica of the server, there are {len(replicas)}")
    for thread in replicas[0].threads():
        os.sched_setaffinity(thread.id, cores)


def full_depth(saved: Path, exported: Path, out: Path) -> Path:
    """Write the encoder with its last exit as one int8 graph, in the form of an exported folder.

    Args:
        saved: The folder of the model.
        exported: Its export, for tokenizer and labels.
        out: The folder to write.
    """
    import onnx
    from serving import NAMES, Plain

    from leebert.exported.graphs import DOMAINS
    from leebert.exported.manifest import Exits, Segment, read_manifest, write_manifest

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with scratch() as folder:
        graph = onnx.load(Plain(saved).write_graphs(folder)[1])
    unused = [one for one in graph.opset_import if one.domain not in DOMAINS]
    for one in unused:
        graph.opset_import.remove(one)
    onnx.save(graph, out / "segment-1.onnx")
    shutil.copy(exported / "tokenizer.json", out)
    manifest = read_manifest(exported)
    inputs = tuple(one.name for one in graph.graph.input if one.name in NAMES)
    segment = Segment(
        file="segment-1.onnx", layers=(1, manifest.depth), exit_layer=manifest.depth, inputs=inputs, outputs=("logits",)
    )
    write_manifest(
        out,
        dataclasses.replace(
            manifest, name=out.name, segments=(segment,), exits=Exits(criterion="never"), curves=(), timing=None,
            scores=(),
        ),
    )  # fmt: skip
    return out


def main() -> None:
    """Measure the capacity, run the three servers, print and draw."""
    args = options()
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.data or glue() / "MRPC" / "dev.tsv"
    target = ("--p99-ms", f"{args.p99_ms:g}", "--max-loss", f"{args.max_loss:g}")
    servers = {
        "full depth": (full_depth(args.saved, args.model, args.out / "one-graph"),),
        "fixed": (args.model, "--max-loss", "0"),
        "adaptive": (args.model, *target),
    }
    peak, rows, about = args.peak, {}, {}
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[:1])
    if peak is None:
        with server(args.model, args.out, "--max-loss", f"{args.max_loss:g}") as address:
            pin_replica({available[-1]})
            capacity = measure_capacity(address, read_samples(data, about_server(address)))
        peak = round(SHARE * capacity, 1)
        print(f"capacity at a loss of {args.max_loss:g} points: {capacity:.1f} requests/s; the surge has {peak:g}")
    surge = Surge(peak / 10, 10, args.seconds / 4, args.seconds / 2, args.seconds / 4)
    for name, words in servers.items():
        with server(words[0], args.out, *words[1:]) as address:
            pin_replica({available[-1]})
            about[name] = about_server(address)
            rows[name] = run_load(address, read_samples(data, about[name]), surge, args.seed)
        save(rows[name], args.out / f"{name.replace(' ', '-')}.parquet")
        report(name, rows[name], surge, args.p99_ms)
    draw(rows, surge, args.p99_ms, about, args.out / "surge.png")
    result = {"peak": peak, "p99_ms": args.p99_ms, "max_loss": args.max_loss} | {
        name: summary(one, surge, args.p99_ms) for name, one in rows.items()
    }
    print(json.dumps(result))
    if args.json:
        with args.json.open("a") as file:
            file.write(json.dumps(result) + "\n")


def report(name: str, rows: list[dict[str, Any]], surge: Surge, target: float) -> None:
    """Print a line per phase."""
    for phase in summary(rows, surge, target):
        if phase["p99_ms"] is None:
            continue
        print(
            f"{name:>10} {phase['phase']:>7}: {phase['answered']:5d} answered, {phase['refused']} refused, "
            f"{phase['failed']} failed, p50 {phase['p50_ms']:.1f} ms, p99 {phase['p99_ms']:.1f} ms, "
            f"exit layer {phase['exit_layer']:.2f}, accuracy {100 * (phase['accuracy'] or 0):.1f}, "
            f"p99 within {target:g} ms for {phase['within_target']:.0%} of the time",
            flush=True,
        )


def draw(rows: dict[str, Any], surge: Surge, target: float, about: dict[str, Any], path: Path) -> None:
    """Draw load, p99, layer speed-up and score over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(4, 1, figsize=(8, 9), sharex=True, layout="constrained")
    seconds = np.arange(1, surge.seconds + 0.1)
    first = np.array([row["arrival"] for row in next(iter(rows.values()))])
    axes[0].step(seconds, [np.sum((first >= s - 1) & (first < s)) for s in seconds], color="#333333", where="pre")
    for name, one in rows.items():
        arrival = np.array([row["arrival"] for row in one])
        answered = np.array([row["status"] == 200 for row in one])
        latency = np.array([row["latency_ms"] for row in one])
        layers = np.array([row["exit_layer"] or np.nan for row in one], float)
        depth = max(
            (row["exit_layer"] + row["layers_saved"] for row in one if row["exit_layer"] is not None), default=1
        )
        right = np.array([row["correct"] if row["correct"] is not None else np.nan for row in one], float)
        windows = [(arrival >= s - 5) & (arrival < s) for s in seconds]
        p99 = [np.percentile(latency[w & answered], 99) if (w & answered).any() else np.nan for w in windows]
        axes[1].plot(seconds, p99, color=COLOURS[name], label=name)
        speed = [depth / np.nanmean(layers[w & answered]) if (w & answered).any() else np.nan for w in windows]
        axes[2].plot(seconds, speed, color=COLOURS[name])
        scores = {point["threshold"]: 100 * (point["score"] or np.nan) for point in about[name]["points"]}
        score = np.array([scores.get(row["threshold"], np.nan) for row in one], float)
        inside = (arrival >= surge.before) & (arrival < surge.before + surge.during) & ~np.isnan(right)
        label = f"measured in the surge: {100 * right[inside].mean():.1f}" if inside.any() else None
        scored = answered & ~np.isnan(score)
        curve = [score[w & scored].mean() if (w & scored).any() else np.nan for w in windows]
        axes[3].plot(seconds, curve, color=COLOURS[name], label=label)
        refused = [np.sum(~answered & (arrival >= s - 1) & (arrival < s)) for s in seconds]
        if np.sum(refused):
            axes[0].step(seconds, refused, color=COLOURS[name], where="pre", label=f"not answered, {name}")
        share = within_target(one, surge.before, surge.before + surge.during, target)
        print(f"{name}: p99 within {target:g} ms for {share:.0%} of the surge")
    axes[1].axhline(target, color="#b22222", linestyle="--", linewidth=1, label=f"target {target:g} ms")
    axes[1].set_yscale("log")
    for axis in (axes[0], axes[1], axes[3]):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="upper left", fontsize=8)
    for axis, label in zip(
        axes, ("requests / s", "p99 of 5 s (ms)", "layer speed-up", "score by the curve (%)"), strict=True
    ):
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_title(f"{about['adaptive']['name']}: a tenfold surge against three servers")
    axes[3].set_xlabel("seconds")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
