"""Write the demonstration's data and encoder: `python -m leebert.data.synthetic FOLDER [SEED]`."""

from __future__ import annotations

import sys
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from leebert.data.synthetic import DEV_ROWS, ROWS, write_demo
from leebert.data.synthetic.encoder import write_encoder

if __name__ == "__main__":
    disable_progress_bar()
    folder, seed = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    write_demo(folder, rows=ROWS, dev_rows=DEV_ROWS, seed=seed)
    write_encoder(folder / "encoder", seed)
