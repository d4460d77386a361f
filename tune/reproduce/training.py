"""Train missing runs in ordinary sweeps, which are started or resumed.

A sweep trains each of its methods with each of its seeds. The missing runs of a table need not form such a product (two
seeds of all methods, three more of some), so a part may have several sweeps, one per set of seeds.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import SweepError
from leebert.evaluate import RecordedLogits
from leebert.provenance import backbone_identity, code_version
from tune.analysis.sweeps import LoadedSweep
from tune.reproduce.outcomes import ReproducedCell, summarise
from tune.reproduce.plan import Allowance, Part, ReproductionPlan
from tune.reproduce.results import VARIED, experiment_differences
from tune.running.sweep import SweepOutcome, new_sweep, resume_sweep
from tune.space import SweepSpec, resolved_yaml
from tune.store.folder import SweepFolder, storage_root
from tune.store.held_out import cell_logits, evaluated_logits, warn_unreadable
from tune.store.history import CellKey
from tune.store.ledger import SweepState

log = logging.getLogger(__name__)


def identity(spec: SweepSpec, facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what all runs of an experiment share.

    Args:
        spec: A space of the experiment.
        facts: The manifest's facts of data and backbone; None for what follows from the options alone.
    """
    shared: dict[str, Any] = {
        "task": spec.task_name,
        "pooling": spec.pooling,
        "max_length": spec.max_length,
        "subset": spec.data.subset.model_dump() if spec.data.subset else "none",
        "training": spec.train_config({}).model_dump(mode="json", exclude=VARIED),
    }
    if facts is not None:
        shared |= {key: facts[key] for key in ("data_fingerprint", "evaluated", "folds", "metric")}
        shared["backbone"] = facts.get("backbone") or backbone_identity(spec.backbone)
    return shared


@dataclasses.dataclass(frozen=True)
class Standing:
    """A started sweep of a part."""

    part: Part
    sweep: LoadedSweep

    @classmethod
    def all_of(cls, plan: ReproductionPlan, part: Part) -> list[Standing]:
        """Return the started sweeps of a part."""
        root = storage_root(plan.request.storage)
        paths = [root / part.name, *sorted(root.glob(f"{glob.escape(part.name)}-seeds-*"))]
        return [cls(part, LoadedSweep.read(SweepFolder(path), epochs=True)) for path in paths if path.exists()]

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.sweep.name

    @property
    def state(self) -> SweepState:
        """What the sweep's ledger holds."""
        return self.sweep.state

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its methods."""
        return self.sweep.spec.seeds

    @property
    def begun(self) -> list[str]:
        """The methods that it trains or has trained."""
        return [str(c.values["algorithm"]) for c in self.state.history()]

    @property
    def finished(self) -> set[tuple[str, int]]:
        """(method, seed) of the finished runs, those with logits on the development split."""
        return {
            (str(self.state.configs[config].values["algorithm"]), seed)
            for (config, seed, _), record in self.state.cells.items()
            if "evaluated" in record
        }

    @property
    def failed(self) -> dict[str, str]:
        """Methods that diverged and are not tried again, and why."""
        reason = "a loss, gradient or weight was not finite"
        return {method: reason for method, failure in self._failures if failure["reason"] == "diverged"}

    @property
    def broken(self) -> dict[str, str]:
        """Methods that failed for another reason, which may be gone at the next attempt, and that reason."""
        return {m: str(failure["message"]) for m, failure in self._failures if failure["reason"] != "diverged"}

    @property
    def _failures(self) -> list[tuple[str, dict[str, Any]]]:
        """The failed methods, each with its last failure."""
        return [
            (str(c.values["algorithm"]), self.state.failures[c.id][-1])
            for c in self.state.history()
            if c.state == "failed"
        ]

    def check(self, expected: dict[str, Any]) -> None:
        """Raise SweepError if the sweep belongs to another experiment than `expected` identifies."""
        if self.sweep.spec.evaluate is None:
            raise SweepError(
                f"the sweep {self.name} was not started by reproduce and has no logits on the development split: give "
                "another name by --name"
            )
        if lines := experiment_differences(identity(self.sweep.spec, self.sweep.manifest), expected):
            raise SweepError(
                f"the sweep {self.name} was started with other options:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\ngive the same options, or another name by --name"
            )


@dataclasses.dataclass(frozen=True)
class Job:
    """The methods and seeds of one sweep of a part: each method is trained with each seed.

    Attributes:
        part: The part.
        name: The sweep's name.
        standing: The started sweep; None for a new one.
        methods: The methods.
        seeds: The seeds.
    """

    part: Part
    name: str
    standing: Standing | None
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


def jobs(part: Part, standings: Sequence[Standing], missing: Collection[tuple[str, int]]) -> list[Job]:
    """Plan sweeps that train exactly the missing runs of a part, besides the runs that they have started already.

    Args:
        part: The part.
        standings: Its started sweeps.
        missing: The missing (method, seed).

    Returns:
        Sweeps to resume, then new ones.
    """
    begun = {standing.name: list(standing.begun) for standing in standings}
    resumed: set[str] = set()
    loose: dict[int, list[str]] = {}
    for method in part.methods:
        for seed in sorted(s for m, s in missing if m == method):
            owner = next((st for st in standings if seed in st.seeds and method in begun[st.name]), None)
            if owner:
                resumed.add(owner.name)
            else:
                loose.setdefault(seed, []).append(method)
    of_methods: dict[tuple[str, ...], list[int]] = {}
    for seed in sorted(loose):
        of_methods.setdefault(tuple(loose[seed]), []).append(seed)
    new_jobs: list[Job] = []
    for methods, seeds in of_methods.items():
        existing = next((st for st in standings if st.seeds == tuple(seeds)), None)
        if existing:
            begun[existing.name] += methods
            resumed.add(existing.name)
        else:
            names = {st.name for st in standings} | {job.name for job in new_jobs}
            name = part.name if part.name not in names else f"{part.name}-seeds-{'.'.join(map(str, seeds))}"
            new_jobs.append(Job(part, name, None, methods, tuple(seeds)))
    to_resume = [Job(part, st.name, st, tuple(begun[st.name]), st.seeds) for st in standings if st.name in resumed]
    return [*to_resume, *new_jobs]


def run(plan: ReproductionPlan, job: Job, allowance: Allowance) -> SweepOutcome:
    """Train the missing runs of a job.

    Args:
        plan: The plan.
        job: The job.
        allowance: The remaining budget, from which this session's use is subtracted.

    Returns:
        How the session of its sweep ended.
    """
    request, part, standing = plan.request, job.part, job.standing
    before = standing.state if standing else SweepState()
    spec = plan.spec(part, job.methods, job.seeds)
    budget = spec.budget.model_copy(update=allowance.beyond(before))
    spec = spec.model_copy(update={"budget": budget})
    done = standing.finished if standing else set()
    diverged = standing.failed if standing else {}
    remaining = [(m, seed) for m in job.methods if m not in diverged for seed in job.seeds if (m, seed) not in done]
    methods = dict.fromkeys(method for method, _ in remaining)
    log.info(
        f"{job.name}: {len(remaining)} runs to train: {', '.join(methods)}; seeds {', '.join(map(str, job.seeds))}"
    )
    if standing is None:
        outcome = new_sweep(spec, job.name, address=request.address, device=request.device)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            space = Path(scratch) / "space.yaml"
            space.write_text(resolved_yaml(spec), encoding="utf-8")
            outcome = resume_sweep(standing.sweep.folder, space=space, address=request.address, device=request.device)
    allowance.spend(before, SweepFolder(storage_root(request.storage) / job.name).ledger.read())
    return outcome


def collect(
    standing: Standing, existing: Collection[tuple[str, float | None, int]], aims: Collection[float]
) -> list[ReproducedCell]:
    """Summarise the finished runs of a sweep; warn of those whose logits are missing or damaged, and omit them.

    Args:
        standing: The sweep.
        existing: The keys of runs that the results have already.
        aims: The layer speed-ups that thresholds are chosen for.

    Returns:
        The new runs.
    """
    folder, manifest = standing.sweep.folder, standing.sweep.manifest
    cells: list[ReproducedCell] = []
    wrong: dict[CellKey, str] = {}
    for (config, seed, fold), record in standing.state.cells.items():
        values = standing.state.configs[config].values
        key = (str(values["algorithm"]), standing.part.kept(str(values["algorithm"])), seed)
        if "evaluated" not in record or key in existing:
            continue
        try:
            splits: list[RecordedLogits] = list(evaluated_logits(folder.path, record).values())
            held_out, _ = cell_logits(folder.path, record)
        except SweepError as error:
            wrong[config, seed, fold] = str(error)
            continue
        cells.append(
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
    return cells
