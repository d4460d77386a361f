"""`python -m tune.demo`: run a small sweep on generated data, choose the best, compare, and print how long each step took."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAME = "demo"


def main() -> None:
    """Generate data, sweep CLO-v2 and BLO, choose the best configuration and compare; all in `demo` of the working folder."""
    scripts = Path(sys.executable).parent
    storage, uri = ("--storage", "demo/sweeps"), os.environ.get("MLFLOW_TRACKING_URI")
    tracking: tuple[str, ...] = ()
    if not uri:  # an address from the environment may contain a password, which must not get into the sweep's folder
        uri = f"sqlite:///{Path('demo/mlflow.db').resolve()}"
        tracking = ("--tracking-uri", uri)
    seconds: dict[str, float] = {}

    def run(title: str, *command: str | Path) -> None:
        print(f"\n$ {Path(command[0]).name} {' '.join(map(str, command[1:]))}", flush=True)
        started = time.perf_counter()
        subprocess.run([str(c) for c in command], check=True)
        seconds[title] = time.perf_counter() - started

    # Remove the files of an earlier demo.
    shutil.rmtree("demo", ignore_errors=True)
    run("data", sys.executable, "-m", "leebert.data.synthetic", "demo")
    run("sweep", scripts / "leebert-tune", "sweep", "search_spaces/demo.yaml", "--name", NAME, *storage, *tracking)
    run("best", scripts / "leebert-tune", "best", NAME, "--out", "demo/best", *storage)
    run("compare", scripts / "leebert-tune", "compare", NAME, "--a", "clo-v2", "--b", "blo", *storage)
    print("\nOpen MLflow:  " + f"{scripts / 'mlflow'} ui --workers 1 --backend-store-uri {uri}")
    print("              then http://127.0.0.1:5000/#/experiments, experiment leebert-demo")
    print("Next:         leebert-tune report demo --storage demo/sweeps   (and status, compare --html, verify, refit)")
    print(
        "\nseconds:  "
        + ", ".join(f"{title} {s:.0f}" for title, s in seconds.items())
        + f", total {sum(seconds.values()):.0f}"
    )


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
