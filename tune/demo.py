"""`python -m tune.demo`: a small sweep on generated data, the verdict, a chart, and one sentence classified by the best model."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from leebert.errors import ConfigError
from tune.tracking.server import redact

NAME, STORAGE = "demo", ("--storage", "demo/sweeps")

#: A file in the demo's folder, which the next demo may delete.
MARKER = ".leebert-demo"

PROGRAM = Path(sys.executable).with_name("leebert-tune")

#: The sentences that are classified live: an easy and a hard one.
SENTENCES = ("Charming garden in spring by the river .", "The soup in the hotel last week was awful .")


class Steps:
    """Runs the demo's commands and measures the seconds of each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, title: str, *command: str | Path) -> None:
        """Print a command, and run it; its output, and its live display, go to the terminal.

        Args:
            title: Name of the step.
            *command: The program and its arguments.

        Raises:
            subprocess.CalledProcessError: The command fails.
        """
        print(f"\n$ {Path(command[0]).name} {' '.join(map(str, command[1:]))}", flush=True)
        started = time.perf_counter()
        parts = [str(part) for part in command]
        with subprocess.Popen(parts) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the terminal signals the command, too, which stops in its own time
                process.wait()
                raise
        if code:
            raise subprocess.CalledProcessError(code, parts)
        self.seconds[title] = self.seconds.get(title, 0) + time.perf_counter() - started

    def summary(self) -> str:
        """Return the seconds of all steps in one line."""
        each = ", ".join(f"{title} {seconds:.0f}" for title, seconds in self.seconds.items())
        return f"seconds:  {each}, total {sum(self.seconds.values()):.0f}"


def main() -> None:
    """Generate data, sweep four methods, and conclude; all in `demo` of the working folder.

    Raises:
        ConfigError: The working folder has a `demo` that no earlier demo made.
        subprocess.CalledProcessError: A command fails.
    """
    steps, uri = Steps(), os.environ.get("MLFLOW_TRACKING_URI")
    tracking: tuple[str, ...] = ()
    if not uri:  # an address from the environment may contain a password, which must not get into the sweep's folder
        uri = f"sqlite:///{Path('demo/mlflow.db').resolve()}"
        tracking = ("--tracking-uri", uri)
    clear(Path("demo"))
    steps.run("data", sys.executable, "-m", "leebert.data.synthetic", "demo")
    steps.run("sweep", PROGRAM, "sweep", "search_spaces/demo.yaml", "--name", NAME, *STORAGE, *tracking)
    conclude(steps, uri, tracking)


def clear(folder: Path) -> None:
    """Make a demo's folder anew.

    Args:
        folder: The folder; one of an earlier demo is replaced.

    Raises:
        ConfigError: The folder has other files.
    """
    marker = folder / MARKER
    ours = marker.exists() or (folder / "sweeps" / NAME).is_dir()
    if folder.exists() and not ours and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(
            f"{folder.resolve()} is not an earlier demo's folder; rename it, or run the demo in another folder"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    marker.touch()


def mlflow_lines(uri: str, from_environment: bool) -> str:
    """Return how to see the views in MLflow; no password is in it.

    Args:
        uri: MLflow's address.
        from_environment: Whether it is the value of MLFLOW_TRACKING_URI.
    """
    if uri.startswith(("http://", "https://", "databricks")):
        return f"MLflow:   {redact(uri)} shows the views at these links"
    address = '"$MLFLOW_TRACKING_URI"' if from_environment else shlex.quote(uri)
    return (
        f"MLflow:   {PROGRAM.with_name('mlflow')} ui --workers 1 --backend-store-uri {address}\n"
        "          shows the views at these links"
    )


def conclude(steps: Steps, uri: str, tracking: Sequence[str]) -> None:
    """Choose and train the best configuration, and print verdicts, chart, two classified sentences and links.

    Args:
        steps: The steps so far.
        uri: MLflow's address.
        tracking: The options that name it; none if it is in the environment.
    """
    steps.run("best", PROGRAM, "best", NAME, "--out", "demo/best", *STORAGE)
    steps.run(
        "refit", PROGRAM, "refit", "demo/best/demo.yaml", "--speed-up", "2.5", "--export", "none", "--out", "demo/model",
        *tracking,
    )  # fmt: skip
    print("\nDo learned weights beat equal ones? (Half of the labels are wrong for exits 1 and 2.)")
    steps.run("compare", PROGRAM, "compare", NAME, "--a", "hyper-v2", "--b", "uniform-d1", *STORAGE)
    print("\nDoes CLO-v2 beat BLO?")
    steps.run("compare", PROGRAM, "compare", NAME, "--a", "clo-v2", "--b", "blo", *STORAGE)
    print_chart()
    print_sentences()
    steps.run("views", PROGRAM, "views", NAME, *STORAGE)
    print(f"\n{mlflow_lines(uri, from_environment=not tracking)}")
    print("Next:     leebert-tune report demo --storage demo/sweeps   (and status, compare --html, verify)")
    print(f"\n{steps.summary()}")


def print_chart() -> None:
    """Print the score against the mean exit layer, a curve for each method."""
    from tune.analysis.terminal_chart import sweep_chart
    from tune.store.folder import SweepFolder

    width = min(shutil.get_terminal_size().columns, 100) - 1
    print("\nScore against layers: the further left and up, the better.\n")
    print("\n".join(sweep_chart(SweepFolder.find(NAME, "demo/sweeps"), width)))


def print_sentences() -> None:
    """Classify the sentences with the best configuration's model, and print exit layers and times."""
    from leebert.console import quiet_transformers
    from leebert.one_text import classify

    quiet_transformers()
    (folder,) = (path.parent for path in Path("demo/model").glob("*/model.safetensors"))
    print("\nThe best configuration's model on sentences that are not in its training data:\n")
    for sentence in SENTENCES:
        print(f"  {sentence}\n    {classify(folder, sentence).in_words()}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
