"""Every built-in method under the contract that other packages' methods are held to."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest
import quick
from encoders import OF_ENCODERS

from leebert.config import TrainConfig
from leebert.methods import METHODS
from leebert.testing import MethodContract
from leebert.train import TrainResult

#: Results by network and configuration.
TRAINED: dict[tuple[bool, str], TrainResult] = {}


#: Contracts that train: `make quick` runs them for methods of every sort.
TRAIN = (
    "test_it_learns_deterministically_and_resumes_bit_for_bit",
    "test_it_keeps_as_many_exits_as_its_row_declares",
    "test_omega_learns_from_d1_if_its_row_declares_it",
    "test_weights_that_it_learns_move_and_at_no_rate_it_is_its_control",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.cls is TestBuiltIn:
        trains = metafunc.function.__name__ in TRAIN
        metafunc.parametrize("name", quick.only(quick.METHODS, METHODS.built_in) if trains else [*METHODS.built_in])


def test_the_contracts_that_train_exist() -> None:
    assert all(hasattr(MethodContract, name) for name in TRAIN)


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
