"""Every built-in method under the contract that other packages' methods are held to."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest
from encoders import OF_ENCODERS

from leebert.config import TrainConfig
from leebert.methods import METHODS
from leebert.testing import MethodContract
from leebert.train import TrainResult

#: Results by network and configuration.
TRAINED: dict[tuple[bool, str], TrainResult] = {}


@pytest.mark.parametrize("name", METHODS.built_in)
class TestBuiltIn(MethodContract):
    test_its_module_needs_no_torch: Any = None  # all at once, below
    test_it_reads_every_option_that_it_declares: Any = None  # tests/test_method_options.py

    def fit(self, config: TrainConfig, on_encoder: bool | None = None) -> TrainResult:
        """Train once what several tests ask for: methods that learn ω have one control for all of them."""
        encoder = self.on_encoder if on_encoder is None else on_encoder
        training = (encoder, config.model_dump_json())
        if training not in TRAINED:
            TRAINED[training] = super().fit(config, encoder)
        return TRAINED[training]

    @pytest.fixture(autouse=True)
    def _of_this_name(self, name: str) -> None:
        self.method, self.on_encoder = METHODS[name], name in OF_ENCODERS  # type: ignore[misc]


def test_no_row_needs_torch_and_each_is_in_its_own_module() -> None:
    code = "import sys\nfrom leebert.methods import METHODS\nassert list(METHODS.values())\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
    for name in METHODS.built_in:
        module = importlib.import_module(f"leebert.methods.{name.replace('-', '_')}")
        assert module.METHOD is METHODS[name]
