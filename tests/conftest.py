"""What all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# Before torch is imported anywhere: two processes with two threads each on two cores take five times as long.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")


@pytest.fixture(scope="session")
def glue() -> Path:
    """The folder of real GLUE data, named by LEEBERT_DATA."""
    root = os.environ.get("LEEBERT_DATA")
    if not root:
        pytest.skip("LEEBERT_DATA is not set: this test needs real GLUE data")
    folder = Path(root) / "glue"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: this test needs real GLUE data")
    return folder
