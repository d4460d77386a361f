"""What the contract tests of several kinds of plugins share: imports without torch, and a registered plugin."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from leebert.plugins import Registry


def imports_of(modules: Iterable[str], heavy: str = "torch") -> str:
    """Import modules in a new interpreter.

    Args:
        modules: Dotted names.
        heavy: A package that they must not import.

    Returns:
        The problem; empty if there is none.
    """
    names = sorted(set(modules))
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\nprint({heavy!r} in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if ran.returncode:
        return f"{', '.join(names)} can't be imported alone: {ran.stderr.strip().splitlines()[-1]}"
    return f"{', '.join(names)} imports {heavy}; import it inside `step`" if ran.stdout.strip() == "True" else ""


@contextlib.contextmanager
def registered(registry: Registry[Any], plugin: Any) -> Iterator[None]:
    """Register a plugin within a context, also if its package is not installed.

    Args:
        registry: The registry of the plugin's kind.
        plugin: The plugin.
    """
    if registry.get(plugin.name) is plugin:
        yield
        return
    registry.register(plugin)
    try:
        yield
    finally:
        registry.unregister(plugin.name)
