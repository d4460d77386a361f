"""Seconds and memory of tokenising 400,000 sentence pairs, about as many as MNLI has.

The pairs are MRPC's training samples repeated, with their words rotated by one more position each time, so that all
pairs differ. `leebert.data.tokens.tokenise` is timed, from texts to the checked and memory-mapped token file. The
tokenizer's own parallelism is off, as in our commands; --parallel turns it on. Memory is the peak of this process,
including the texts. It runs once, because a second run would not change the peak.

Targets: < 90 s and < 2 GB.
"""

from __future__ import annotations

import os
import time

from common import BACKBONE, Result, glue, parser, peak_rss, scratch, start


def main() -> None:
    made = parser(__doc__, rounds=1)
    made.add_argument("--pairs", type=int, default=400_000, help="pairs of sentences (%(default)s)")
    made.add_argument("--parallel", action="store_true", help="let the tokenizer use --threads threads")
    options = made.parse_args()
    # Read by the tokenizers library when it first works.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if options.parallel else "false"
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    start(options.threads)
    import numpy as np

    from leebert.backbone import load_tokenizer
    from leebert.data.sources import Examples, read_split
    from leebert.data.tasks import get_task
    from leebert.data.tokens import tokenise

    rows = read_split(get_task("mrpc"), "train", glue())
    columns = []
    for column in rows.texts:
        words = [text.split(" ") for text in column]
        texts = []
        for i in range(options.pairs):
            parts = words[i % len(words)]
            by = i // len(words) % len(parts)
            texts.append(" ".join(parts[by:] + parts[:by]))
        columns.append(texts)
    assert rows.labels is not None
    examples = Examples(
        tuple(columns), np.resize(rows.labels, options.pairs), np.arange(options.pairs), "tiled MRPC", rows.label_names
    )
    tokenizer = load_tokenizer(BACKBONE)
    result = Result("tokenise", options)
    before = peak_rss()
    seconds = []
    with scratch() as folder:
        for number in range(options.rounds):
            started = time.perf_counter()
            split = tokenise(examples, tokenizer, 128, folder / f"{number}.arrow")
            seconds.append(time.perf_counter() - started)
    result.figure("pairs per second", [options.pairs / s for s in seconds])
    result.figure("tokens per pair", float(split.lengths.mean()))
    result.figure("memory before tokenising", before / 1e9, "GB")
    result.target("seconds", seconds, 90.0)
    result.target("peak memory, GB", peak_rss() / 1e9, 2.0)
    result.end()


if __name__ == "__main__":
    main()
