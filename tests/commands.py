"""`leebert-tune` several times in one process, which imports, and connects to a Ray cluster, only once."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ahead import ENVIRONMENT


@contextlib.contextmanager
def commands(folder: Path, **environment: str) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """A function that runs `leebert-tune` with the words that it is given, in a folder and an environment."""
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        cwd=folder, env={**ENVIRONMENT, **environment},
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout

        def run(*words: object) -> subprocess.CompletedProcess[str]:
            assert process.stdin
            assert process.stdout
            line = [str(word) for word in words]
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            return subprocess.CompletedProcess(line, *json.loads(process.stdout.readline()))

        yield run
        process.stdin.close()  # which ends it


def serve() -> None:
    """Run one command a line until there are no more; answer with its exit code, stdout and stderr."""
    import typer

    from leebert import console
    from tune.cli import app

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints
    command = typer.main.get_command(app)
    for line in sys.stdin:
        out, err, code, run = io.StringIO(), io.StringIO(), 0, functools.partial(command, json.loads(line))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                console.run(run, timestamps=True)
            except SystemExit as end:
                code = int(end.code or 0)
        print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
