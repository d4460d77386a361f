"""The plugins of sweeps, searchers and pruners, as a search space needs them: their names and options.

A plugin is in the module of its class, in `tune.searchers`, `tune.pruners` or another package, and is imported when a space first
names it (`leebert.plugins`). docs/decisions/plugins.md explains why the registries are below the packages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from leebert.config import Frozen
from leebert.plugins import Registry


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")  # pydantic would take true for 1
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]


class NoOptions(Frozen):
    """The options of a plugin that has none."""


class Drawn(Frozen):
    """The options of a searcher that draws configurations."""

    configurations: Whole | None = Field(default=None, ge=1, description="number of configurations to propose")
    seed: Whole = Field(default=0, ge=0, description="random seed")


class Warmed(Frozen):
    """The option that pruners share."""

    min_epochs: Whole = Field(
        default=1, ge=1, description="epochs, summed over its runs, before a configuration may be pruned"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepPlugin:
    """One searcher or pruner.

    Attributes:
        name: What search spaces call it.
        title: What it does, as a table has it.
        source: Who published it, or `ours`.
        make: From a checked space (:class:`tune.space.SweepSpec`) and the options, an instance of `options`, to the
            :class:`tune.searchers.Searcher` or :class:`tune.pruners.Pruner`.
        options: Options beside `name` in a space. Each has a default.
        needs: What a space must or must not have, as a table has it.
    """

    name: str
    title: str
    source: str
    make: Callable[[Any, Any], Any]
    options: type[Frozen] = NoOptions
    needs: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearcherPlugin(SweepPlugin):
    """One searcher.

    Attributes:
        lists: Whether it proposes every configuration of a space of lists; it then takes no ranges.
        reads_scores: Whether a proposal depends on the scores of earlier ones.
    """

    lists: bool = False
    reads_scores: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrunerPlugin(SweepPlugin):
    """One pruner.

    Attributes:
        prunes: Whether it ever stops a configuration.
    """

    prunes: bool = True


def _check(plugin: SweepPlugin) -> None:
    """Raise ValueError, with one sentence, if options of a plugin conflict with its name in a space."""
    if required := [option for option, field in plugin.options.model_fields.items() if field.is_required()]:
        raise ValueError(f"its option {required[0]!r} needs a default")
    if "name" in plugin.options.model_fields:
        raise ValueError("its option 'name' conflicts with the key of the plugin's name; rename the option")


SEARCHERS: Registry[SearcherPlugin] = Registry(
    "searcher",
    "leebert.searchers",
    "tune.searchers",
    "SEARCHER",
    {"grid": "grid", "random": "random", "tpe": "tpe"},
    SearcherPlugin,
    _check,
)

PRUNERS: Registry[PrunerPlugin] = Registry(
    "pruner",
    "leebert.pruners",
    "tune.pruners",
    "PRUNER",
    {"none": "none", "racing": "racing", "halving": "halving"},
    PrunerPlugin,
    _check,
)
