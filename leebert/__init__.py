"""LeeBERT (Zhu, ACL 2021): early-exit encoders whose exits teach each other, with loss weights learned by cross-level
optimisation.

Importing this package registers its configuration and model with transformers' Auto classes.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from leebert.registration import register

if TYPE_CHECKING:
    from leebert.config import ExitConfig, ModelConfig, TrainConfig
    from leebert.errors import LeebertError
    from leebert.evaluate import RecordedLogits, record_all
    from leebert.exits.replay import make_criterion, replay
    from leebert.inference import infer
    from leebert.model import LeebertForSequenceClassification, build_model
    from leebert.model_config import LeebertConfig
    from leebert.record import MultiExit, Record, SampleSet, TensorSamples
    from leebert.runtime import Runtime
    from leebert.stages import Stage
    from leebert.tradeoff import replay_point, tradeoffs
    from leebert.train import EpochReport, TrainResult, fit, train_epochs

__version__ = "0.1.0"

# Public names and their modules, imported when first used, because torch and transformers take seconds to import.
_MODULES = {
    "EpochReport": "train",
    "ExitConfig": "config",
    "LeebertConfig": "model_config",
    "LeebertError": "errors",
    "LeebertForSequenceClassification": "model",
    "ModelConfig": "config",
    "MultiExit": "record",
    "Record": "record",
    "RecordedLogits": "evaluate",
    "Runtime": "runtime",
    "SampleSet": "record",
    "Stage": "stages",
    "TensorSamples": "record",
    "TrainConfig": "config",
    "TrainResult": "train",
    "build_model": "model",
    "infer": "inference",
    "make_criterion": "exits.replay",
    "record_all": "evaluate",
    "replay": "exits.replay",
    "replay_point": "tradeoff",
    "tradeoffs": "tradeoff",
    "fit": "train",
    "train_epochs": "train",
}

__all__ = [
    "EpochReport",
    "ExitConfig",
    "LeebertConfig",
    "LeebertError",
    "LeebertForSequenceClassification",
    "ModelConfig",
    "MultiExit",
    "Record",
    "RecordedLogits",
    "Runtime",
    "SampleSet",
    "Stage",
    "TensorSamples",
    "TrainConfig",
    "TrainResult",
    "build_model",
    "fit",
    "infer",
    "make_criterion",
    "record_all",
    "replay",
    "replay_point",
    "tradeoffs",
    "train_epochs",
]


#: Former names, which still work in this release.
_FORMER = {
    "HeldOut": "RecordedLogits",
    "Rows": "SampleSet",
    "TensorRows": "TensorSamples",
    "make_strategy": "make_criterion",
}


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        warnings.warn(f"leebert.{name} is deprecated: use leebert.{_FORMER[name]}", DeprecationWarning, stacklevel=2)
        name = _FORMER[name]
    if name not in _MODULES:
        raise AttributeError(f"module 'leebert' has no attribute {name!r}")
    return getattr(importlib.import_module(f"leebert.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


register()
