"""Register the early-exit model with transformers' Auto classes without importing transformers.

Importing transformers and torch takes seconds, too long for `--help`. So `import leebert` registers at once if transformers is
already imported, and else right after the Auto modules are imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from leebert.model_config import LeebertConfig

    AutoConfig.register("leebert", LeebertConfig, exist_ok=True)


def _register_model() -> None:
    # leebert.model registers its class on import, and its import may be in progress.
    if "leebert.model" not in sys.modules:
        importlib.import_module("leebert.model")


_AFTER: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
}


class _Loader(importlib.abc.Loader):
    """Calls a function after a module's own loader."""

    def __init__(self, loader: importlib.abc.Loader, after: Callable[[], None]) -> None:
        self.loader, self.after = loader, after

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.after()


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _AFTER:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, _AFTER[name])
        return spec


def register() -> None:
    """Register the early-exit model with the Auto classes, now or when they are imported."""
    waiting = False
    for name, after in _AFTER.items():
        if name in sys.modules:
            after()
        else:
            waiting = True
    if waiting and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
