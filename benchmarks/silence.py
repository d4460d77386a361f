"""The longest silence of commands on a terminal: how long nothing moves, neither a line nor the live display.

    python benchmarks/silence.py                                  # a toy sweep and what follows it, in a folder of its own
    python benchmarks/silence.py -- leebert-tune report mrpc-small       # one command

Each command runs on a pseudo-terminal of 80 columns. Its silence is the longest time between two outputs, the start and the
end of the process included. The target is 3 seconds. The first list needs two minutes on two idle cores, and no data.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

TARGET = 3.0

#: A generated sweep and the commands after it; {space} is its file.
TOY = (
    "leebert-tune doctor {space}",
    "leebert-tune sweep {space} --name toy",
    "leebert-tune resume toy --set seeds=2",
    "leebert-tune best toy",
    "leebert-tune compare toy",
    "leebert-tune report toy",
    "leebert-tune verify best/demo.yaml",
    "leebert-tune refit best/demo.yaml",
    "leebert-tune reproduce table5 --task {space} --backbone {backbone} --pooling cls --methods finetune,uniform --seeds 1 "
    "--set training.max_epochs=1",
)

BIN = Path(sys.executable).parent


class Silence(NamedTuple):
    """The longest silence of a command.

    Attributes:
        command: The command.
        seconds: Its length in seconds.
        after: What was printed before it.
        total: The seconds that the command took.
        code: Its exit code.
    """

    command: str
    seconds: float
    after: str
    total: float
    code: int


def longest_silence(command: list[str], folder: Path) -> Silence:
    """Run a command on a pseudo-terminal and measure its longest silence.

    Args:
        command: The program, by name from this environment, and its arguments.
        folder: Where it runs.
    """
    main, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    program = str(BIN / command[0]) if (BIN / command[0]).exists() else command[0]
    start = last = time.monotonic()
    process = subprocess.Popen(
        [program, *command[1:]], stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=folder
    )
    os.close(slave)
    longest, after, text = 0.0, "", b""
    while True:
        readable, _, _ = select.select([main], [], [], 0.05)
        now = time.monotonic()
        try:
            data = os.read(main, 65536) if readable else b""
        except OSError:  # the terminal is closed: the process has ended
            data, readable = b"", []
        ended = process.poll() is not None and not readable
        if (data or ended) and now - last > longest:
            longest, after = now - last, _last_line(text)
        if data:
            text, last = (text + data)[-4000:], now
        if ended:
            os.close(main)
            return Silence(" ".join(command), longest, after, now - start, process.returncode)


def _last_line(text: bytes) -> str:
    """Return the last line of a terminal's output, without its control sequences."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", text.decode(errors="replace")).replace("\r", "\n")
    return next((line.strip() for line in reversed(plain.split("\n")) if line.strip()), "the start")[:60]


def prepared(folder: Path) -> dict[str, str]:
    """Write generated data, a small encoder and a search space of two methods on two folds; returns their paths."""
    subprocess.run([sys.executable, "-m", "leebert.data.synthetic", "demo"], cwd=folder, check=True)
    text = (Path(__file__).parent.parent / "search_spaces" / "demo.yaml").read_text()
    for old, new in (
        ("algorithms: [clo-v2, blo, hyper-v2, uniform-d1]", "algorithms: [clo-v2, blo]"),
        ("max_epochs: 4", "max_epochs: 2"),
        ("folds: 8", "folds: 2"),
    ):
        assert old in text, f"search_spaces/demo.yaml has no line {old}"
        text = text.replace(old, new)
    (folder / "toy.yaml").write_text(text)
    return {"space": "toy.yaml", "backbone": "demo/encoder"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="append a line of results to this file")
    parser.add_argument("command", nargs="*", help="a command, after --; by default a toy sweep and what follows it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path.cwd() if options.command else Path(scratch)
        places = {} if options.command else prepared(folder)
        commands = [options.command] if options.command else [c.format(**places).split() for c in TOY]
        results = []
        for command in commands:
            one = longest_silence(command, folder)
            results.append(one)
            missed = "  MISSED" if one.seconds > TARGET else ""
            failed = f"  exit code {one.code}" if one.code else ""
            print(f"{one.seconds:5.1f} s of {one.total:5.1f} s  {one.command[:70]}{missed}{failed}", flush=True)
            if missed:
                print(f"                      after: {one.after}", flush=True)
    line = json.dumps({"benchmark": "silence", "target": TARGET, "results": [one._asdict() for one in results]})
    if options.json:
        with options.json.open("a") as file:
            file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
