"""`leebert-tune serve` whose number of replicas is that in a file, at once, instead of one that follows the load."""

import sys
from pathlib import Path

from tune.cli import main
from tune.serve import app

#: The file, in the working folder.
FILE = "replicas"
_PATH = str(Path(FILE).resolve())


def replicas_in_file(context):
    """Ray Serve's controller, another process, is sent this function and what it names."""
    return int(Path(_PATH).read_text() or context.current_num_replicas), {}


if __name__ == "__main__":
    Path(FILE).write_text("1")
    app.replicas_needed = replicas_in_file
    app.UPSCALE_S = app.DOWNSCALE_S = 0.0
    sys.argv[0] = "leebert-tune"
    main()
