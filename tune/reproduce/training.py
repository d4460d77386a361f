"""Training what is missing, in ordinary sweeps that are begun or gone on with by the machine of all sweeps.

A sweep trains each of its methods with each of its seeds. What a table lacks need not be such a product (two seeds of all
methods, three more of some), so a part has as many sweeps as it takes: one for each set of seeds.
"""

from __future__ import annotations

import dataclasses
import glob
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import SweepError
from leebert.evaluate import HeldOut
from leebert.provenance import backbone_identity, code_version
from tune.reproduce.outcomes import Cell, summarise
from tune.reproduce.plan import Allowance, Part, Plan
from tune.reproduce.results import VARIED, experiment_differences
from tune.running.sweep import Outcome, new_sweep, resume_sweep
from tune.space import SweepSpec, resolved_yaml
from tune.store.folder import SweepFolder, spec_of, storage_root
from tune.store.held_out import cell_logits, evaluated_logits, warn_unreadable
from tune.store.history import CellKey
from tune.store.ledger import SweepState

Say = Callable[[str], None]


def identity(spec: SweepSpec, facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """What results belong to; without the facts of the data and backbone, what the options alone say."""
    told: dict[str, Any] = {
        "task": spec.task_name,
        "pooling": spec.pooling,
        "max_length": spec.max_length,
        "subset": spec.data.subset.model_dump() if spec.data.subset else "none",
        "training": spec.train_config({}).model_dump(mode="json", exclude=VARIED),
    }
    if facts is not None:
        told |= {key: facts[key] for key in ("data_fingerprint", "evaluated", "folds", "metric")}
        told["backbone"] = facts.get("backbone") or backbone_identity(spec.backbone)
    return told


@dataclasses.dataclass(frozen=True)
class Standing:
    """How one of a part's sweeps stands: its folder, and what its ledger says."""

    part: Part
    folder: SweepFolder
    state: SweepState

    @classmethod
    def all_of(cls, plan: Plan, part: Part) -> list[Standing]:
        """Those of a part that were begun."""
        root = storage_root(plan.request.storage)
        paths = [root / part.name, *sorted(root.glob(f"{glob.escape(part.name)}-seeds-*"))]
        return [cls.of(part, SweepFolder(path)) for path in paths if path.exists()]

    @classmethod
    def of(cls, part: Part, folder: SweepFolder) -> Standing:
        return cls(part, folder, folder.ledger.read())

    @property
    def seeds(self) -> tuple[int, ...]:
        return spec_of(self.folder).seeds

    @property
    def begun(self) -> list[str]:
        """The methods that it trains."""
        return [str(c.values["algorithm"]) for c in self.state.history()]

    @property
    def finished(self) -> set[tuple[str, int]]:
        """(method, seed) of the cells that left logits on the development split."""
        return {
            (str(self.state.configs[config].values["algorithm"]), seed)
            for (config, seed, _), record in self.state.cells.items()
            if "evaluated" in record
        }

    @property
    def failed(self) -> dict[str, str]:
        """Methods that aren't tried again, and why: they ended in a number that is not finite."""
        why = "a loss, gradient or weight was not finite"
        return {method: why for method, failure in self._given_up if failure["reason"] == "diverged"}

    @property
    def broken(self) -> dict[str, str]:
        """Methods that failed for another reason, which may be gone when they are tried again, and that reason."""
        return {m: str(failure["message"]) for m, failure in self._given_up if failure["reason"] != "diverged"}

    @property
    def _given_up(self) -> list[tuple[str, dict[str, Any]]]:
        """The methods that failed, each with the last of its failures."""
        return [
            (str(c.values["algorithm"]), self.state.failures[c.id][-1])
            for c in self.state.history()
            if c.state == "failed"
        ]

    def check(self, expected: dict[str, Any]) -> None:
        """SweepError where the folder's sweep is of another experiment."""
        manifest = self.folder.manifest
        spec = spec_of(self.folder)
        if spec.evaluate is None:
            raise SweepError(
                f"the sweep {self.folder.name} is one of another kind, it left nothing on the development split: give "
                "another name by --name"
            )
        if lines := experiment_differences(identity(spec, manifest), expected):
            raise SweepError(
                f"the sweep {self.folder.name} was begun otherwise:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\ngive the same options, or another name by --name"
            )


@dataclasses.dataclass(frozen=True)
class Job:
    """What one sweep of a part is to train: all of these methods with all of these seeds. standing: None before it is begun."""

    part: Part
    name: str
    standing: Standing | None
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


def jobs(part: Part, standings: Sequence[Standing], missing: Collection[tuple[str, int]]) -> list[Job]:
    """Sweeps that train the missing (method, seed) of a part and nothing else, but for what they have begun already."""
    begun = {standing.folder.name: list(standing.begun) for standing in standings}
    resumed: set[str] = set()
    loose: dict[int, list[str]] = {}
    for method in part.methods:
        for seed in sorted(s for m, s in missing if m == method):
            owner = next((st for st in standings if seed in st.seeds and method in begun[st.folder.name]), None)
            if owner:
                resumed.add(owner.folder.name)
            else:
                loose.setdefault(seed, []).append(method)
    of_methods: dict[tuple[str, ...], list[int]] = {}
    for seed in sorted(loose):
        of_methods.setdefault(tuple(loose[seed]), []).append(seed)
    found: list[Job] = []
    for methods, seeds in of_methods.items():
        same = next((st for st in standings if st.seeds == tuple(seeds)), None)
        if same:
            begun[same.folder.name] += methods
            resumed.add(same.folder.name)
        else:
            taken = {st.folder.name for st in standings} | {job.name for job in found}
            name = part.name if part.name not in taken else f"{part.name}-seeds-{'.'.join(map(str, seeds))}"
            found.append(Job(part, name, None, methods, tuple(seeds)))
    gone_on_with = [
        Job(part, st.folder.name, st, tuple(begun[st.folder.name]), st.seeds)
        for st in standings
        if st.folder.name in resumed
    ]
    return [*gone_on_with, *found]


def run(plan: Plan, job: Job, allowance: Allowance, say: Say) -> Outcome:
    """Train what a job lacks; how that session of its sweep ended."""
    request, part, standing = plan.request, job.part, job.standing
    before = standing.state if standing else SweepState()
    spec = plan.spec(part, job.methods, job.seeds)
    budget = spec.budget.model_copy(update=allowance.beyond(before))
    spec = spec.model_copy(update={"budget": budget})
    done = standing.finished if standing else set()
    given_up = standing.failed if standing else {}
    left = [(m, seed) for m in job.methods if m not in given_up for seed in job.seeds if (m, seed) not in done]
    methods = dict.fromkeys(method for method, _ in left)
    say(f"{job.name}: {len(left)} cells to train: {', '.join(methods)}; seeds {', '.join(map(str, job.seeds))}")
    if standing is None:
        outcome = new_sweep(spec, job.name, address=request.address, device=request.device, say=say)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            space = Path(scratch) / "space.yaml"
            space.write_text(resolved_yaml(spec), encoding="utf-8")
            outcome = resume_sweep(
                standing.folder, space=space, address=request.address, device=request.device, say=say
            )
    allowance.spend(before, SweepFolder(storage_root(request.storage) / job.name).ledger.read())
    return outcome


def collect(
    standing: Standing, known: Collection[tuple[str, float | None, int]], aims: Collection[float]
) -> list[Cell]:
    """The finished cells of a sweep that are not known yet, with thresholds for some speed-ups.

    Warns of cells whose logits are missing or damaged, which are left out.
    """
    folder, manifest = standing.folder, standing.folder.manifest
    found: list[Cell] = []
    wrong: dict[CellKey, str] = {}
    for (config, seed, fold), record in standing.state.cells.items():
        values = standing.state.configs[config].values
        key = (str(values["algorithm"]), standing.part.kept(str(values["algorithm"])), seed)
        if "evaluated" not in record or key in known:
            continue
        try:
            splits: list[HeldOut] = list(evaluated_logits(folder.path, record).values())
            held_out, _ = cell_logits(folder.path, record)
        except SweepError as error:
            wrong[config, seed, fold] = str(error)
            continue
        found.append(
            summarise(
                record,
                standing.state.epochs[config, seed, fold],
                values,
                held_out,
                splits,
                metric=manifest["metric"],
                code=str(manifest.get("code", code_version())),
                aims=aims,
            )
        )
    warn_unreadable(folder.path, wrong)
    return found
