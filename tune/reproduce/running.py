"""Training what is missing: each part is an ordinary sweep, begun or gone on with by the machine of all sweeps."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from leebert.errors import SweepError
from leebert.evaluate import HeldOut
from leebert.provenance import backbone_identity, code_version
from tune.analysis.overview import spec_of
from tune.reproduce.outcomes import Cell, summarise
from tune.reproduce.plan import Part, Plan, more_budget
from tune.reproduce.results import differences
from tune.running.crossval import evaluated_paths, held_out_path, load_held_out
from tune.space import SweepSpec, resolved_yaml
from tune.store.folder import SweepFolder, storage_root
from tune.store.ledger import State

Say = Callable[[str], None]

#: What rows differ in, so that it is no part of what they share.
_VARIED = {"algorithm", "seed", "keep", "accumulate", "eval_batch_size"}


def identity(spec: SweepSpec, facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """What results belong to; without the facts of the data and backbone, what the options alone say."""
    told: dict[str, Any] = {
        "task": spec.task_name,
        "pooling": spec.pooling,
        "max_length": spec.max_length,
        "training": spec.train_config({}).model_dump(mode="json", exclude=_VARIED),
    }
    if facts is not None:
        told |= {key: facts[key] for key in ("data_fingerprint", "evaluated", "folds", "metric")}
        told["backbone"] = facts.get("backbone") or backbone_identity(spec.backbone)
    return told


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a part's sweep stands: its folder, None before it is begun, and what its ledger says."""

    part: Part
    folder: SweepFolder | None
    state: State

    @classmethod
    def of(cls, plan: Plan, part: Part) -> Standing:
        path = storage_root(plan.request.storage) / part.name
        folder = SweepFolder(path) if path.exists() else None
        return cls(part, folder, folder.ledger.read() if folder else State())

    @property
    def seeds(self) -> tuple[int, ...]:
        return spec_of(self.folder).seeds if self.folder else ()

    @property
    def finished(self) -> set[tuple[str, int]]:
        """(method, seed) of the cells that left logits on the development split."""
        return {
            (str(self.state.configs[config].values["algorithm"]), seed)
            for (config, seed, _), record in self.state.cells.items()
            if "evaluated" in record
        }

    @property
    def diverged(self) -> set[str]:
        """Methods that ended in a number that is not finite: they aren't tried again."""
        return {
            str(c.values["algorithm"])
            for c in self.state.history()
            if c.state == "failed" and self.state.failures[c.id][-1]["reason"] == "diverged"
        }

    def check(self, expected: dict[str, Any]) -> None:
        """SweepError where the folder's sweep is of another experiment."""
        if self.folder is None:
            return
        manifest = self.folder.manifest
        spec = spec_of(self.folder)
        if spec.evaluate is None:
            raise SweepError(
                f"the sweep {self.folder.name} is one of another kind, it left nothing on the development split: give "
                "another name by --name"
            )
        if lines := differences(identity(spec, manifest), expected):
            raise SweepError(
                f"the sweep {self.folder.name} was begun otherwise:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\ngive the same options, or another name by --name"
            )


def run(plan: Plan, standing: Standing, missing: Collection[tuple[str, int]], say: Say) -> bool:
    """Train the missing (method, seed) of a part; whether somebody stopped it by hand. Nothing is missing: nothing runs."""
    from tune.running.sweep import new_sweep, resume_sweep

    if not missing:
        return False
    request, part = plan.request, standing.part
    begun = [str(c.values["algorithm"]) for c in standing.state.history()]
    wanted = [method for method in part.methods if any(m == method for m, _ in missing)]
    algorithms = list(dict.fromkeys([*begun, *wanted]))
    seeds = [*standing.seeds, *sorted({seed for _, seed in missing} - set(standing.seeds))]
    spec = plan.spec(part, algorithms, seeds)
    budget = spec.budget.model_copy(update=more_budget(request.budget, standing.state))
    spec = spec.model_copy(update={"budget": budget})
    say(f"{part.name}: {len(missing)} cells to train: {', '.join(wanted)}, {len(seeds)} seed(s)")
    if standing.folder is None:
        outcome = new_sweep(spec, part.name, address=request.address, device=request.device, say=say)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            space = Path(scratch) / "space.yaml"
            space.write_text(resolved_yaml(spec), encoding="utf-8")
            outcome = resume_sweep(
                standing.folder, space=space, address=request.address, device=request.device, say=say
            )
    return outcome.by_hand


def collect(standing: Standing, known: Collection[tuple[str, float | None, int]]) -> list[Cell]:
    """The finished cells of a part's folder that are not known yet."""
    if standing.folder is None:
        return []
    folder, manifest = standing.folder, standing.folder.manifest
    found = []
    for (config, seed, fold), record in standing.state.cells.items():
        values = standing.state.configs[config].values
        key = (str(values["algorithm"]), standing.part.kept(str(values["algorithm"])), seed)
        if "evaluated" not in record or key in known:
            continue
        splits: list[HeldOut] = [load_held_out(p)[0] for p in evaluated_paths(folder.path, record).values()]
        found.append(
            summarise(
                record,
                standing.state.epochs[config, seed, fold],
                values,
                load_held_out(held_out_path(folder.path, record))[0],
                splits,
                metric=manifest["metric"],
                code=str(manifest.get("code", code_version())),
            )
        )
    return found
