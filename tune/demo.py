"""`python -m tune.demo`: a small sweep from nothing to a comparison, on data made here; says how long each part took."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAME = "demo"


def main() -> None:
    """Generate data, sweep CLO-v2 and BLO, pick the best, compare; in the working folder."""
    scripts = Path(sys.executable).parent
    storage, uri = ("--storage", "demo/sweeps"), os.environ.get("MLFLOW_TRACKING_URI")
    tracking: tuple[str, ...] = ()
    if not uri:  # one from the environment may hold a password, which belongs into no sweep's folder
        uri = f"sqlite:///{Path('demo/mlflow.db').resolve()}"
        tracking = ("--tracking-uri", uri)
    seconds: dict[str, float] = {}

    def part(title: str, *command: str | Path) -> None:
        print(f"\n$ {Path(command[0]).name} {' '.join(map(str, command[1:]))}", flush=True)
        started = time.perf_counter()
        subprocess.run([str(c) for c in command], check=True)
        seconds[title] = time.perf_counter() - started

    # A demo is run more than once: what an earlier one left would be in the way.
    shutil.rmtree("demo", ignore_errors=True)
    part("data", sys.executable, "-m", "leebert.data.synthetic", "demo")
    part("sweep", scripts / "leebert-tune", "sweep", "search_spaces/demo.yaml", "--name", NAME, *storage, *tracking)
    part("best", scripts / "leebert-tune", "best", NAME, "--out", "demo/best", *storage)
    part("compare", scripts / "leebert-tune", "compare", NAME, "--a", "clo-v2", "--b", "blo", *storage)
    print("\nOpen MLflow:  " + f"{scripts / 'mlflow'} ui --workers 1 --backend-store-uri {uri}")
    print("              then http://127.0.0.1:5000/#/experiments, experiment leebert-demo")
    print("More of it:   leebert-tune report demo --storage demo/sweeps   (and status, compare --html, verify, refit)")
    print(
        "\nseconds:  "
        + ", ".join(f"{title} {s:.0f}" for title, s in seconds.items())
        + f", in all {sum(seconds.values()):.0f}"
    )


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
