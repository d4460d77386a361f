"""Write the demonstration data: `python -m leebert.data.synthetic FOLDER`."""

from __future__ import annotations

import sys

from leebert.data.synthetic import write_demo

if __name__ == "__main__":
    # Small enough for a sweep in minutes on two cores.
    write_demo(sys.argv[1], rows=520, dev_rows=170)
