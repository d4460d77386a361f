"""A sweep from its space to its results: what `leebert-tune sweep` and `resume` do."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import LeaseError, StorageError, SweepError
from leebert.files import write_atomically
from leebert.outside import origins
from leebert.provenance import backbone_differences, backbone_identity, code_version, differences, versions
from tune.machines.nodes import check_versions
from tune.machines.placement import check_resources, nodes_for, warn_of_crowding
from tune.pruners import make_pruner
from tune.running.driver import Driver, EndStatus
from tune.running.extend import at_its_old_place, extended
from tune.running.outside import recorded
from tune.running.prepare import Prepared, manifest, prepare
from tune.running.session import beats, run_session, start_ray
from tune.searchers import make_searcher
from tune.space import SweepSpec, config_id, load_space, resolved_yaml
from tune.space.spec import anchored
from tune.store import held_out, results
from tune.store.curves import CellCurves
from tune.store.folder import SweepFolder, driver_lease, spec_of, storage_root, sweep_argument
from tune.store.history import CellKey
from tune.store.lease import Lease
from tune.store.ledger import SweepState
from tune.tracking.audit import missing
from tune.tracking.feed import replay
from tune.tracking.publish import Publisher
from tune.tracking.saved_views import doubts
from tune.tracking.tracker import CLOSE_SECONDS, Tracker, mlflow_address, tracker_for

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one session of a sweep ended."""

    folder: SweepFolder
    spec: SweepSpec
    status: EndStatus
    by_hand: bool  # stopped by a signal or on request, not by its budget
    signal: int | None  # the signal that stopped it
    unsent: int  # MLflow events that did not arrive
    mlflow: str  # how to open MLflow
    views: dict[str, str]  # its saved views: name → address
    views_note: str  # what there is to say of them


def new_sweep(
    spec: SweepSpec, name: str, *, address: str | None = None, device: str = "auto", say: Say = print
) -> Outcome:
    """Prepare and run a new sweep. Nothing is created before space, data, backbone and tracking server are checked."""
    spec = anchored(spec)
    storage = storage_root(spec.storage)
    SweepFolder.refuse_taken(storage, name)
    tracker = tracker_for(spec, name, say)
    prepared = prepare(spec, storage / ".tokens")
    say(
        f"{spec.task_name}: {prepared.facts['rows']} rows, {spec.folds} fold(s), {len(spec.seeds)} seed(s), "
        f"{spec.planned or 'any number of'} configurations"
    )
    if prepared.facts["truncated_rows"]:
        say(f"{prepared.facts['truncated_rows']} rows are cut at {spec.max_length} tokens")
    start_ray(address)
    check_versions(address, packages=prepared.outside.packages)
    check_resources(spec.resources.cpus, spec.resources.gpus)
    warn_of_crowding(spec, say)
    with SweepFolder.create(storage, name) as folder:
        _describe(folder, spec, prepared, device)
        prepared.folds.save(folder.path / "folds.json")
        writer = folder.ledger.driver_writer(1)
        begun = {"kind": "sweep", "name": name, "task": spec.task_name, "params": _params(spec, prepared)}
        parts = recorded(spec, prepared.facts["metric"])
        writer.append({**begun, "parts": parts} if parts else begun)
        writer.close()
    folder = SweepFolder(storage / name)
    with driver_lease(folder) as lease:
        if lease.number > 1:
            raise LeaseError(f"sweep {name}: somebody has resumed it before it had begun")
        return _run(folder, spec, prepared, tracker, lease, address, device, say)


def resume_sweep(
    folder: SweepFolder,
    *,
    space: Path | None = None,
    overrides: Sequence[str] = (),
    take_over: bool = False,
    repair: bool = False,
    address: str | None = None,
    device: str = "auto",
    say: Say = print,
) -> Outcome:
    """Go on with a sweep where its ledger stands: finished cells are kept, running ones continue from their checkpoint.

    `space` may bring more configurations or seeds (`tune.running.extend`); `take_over` ends another driver's right to it;
    `repair` trains cells again whose logits are missing or damaged.
    """
    folder.refuse_links()
    with driver_lease(folder, take_over) as lease:
        folder.clear_stop()  # an old request; one that comes while this prepares counts
        old, was = spec_of(folder), folder.manifest
        for key in ("data_fingerprint", "folds", "backbone"):
            was[key]  # an error that names it, before anything is prepared
        where = json.dumps(str(folder.path.parent))
        given = anchored(load_space(space or folder.path / "space.yaml", [*overrides, f"storage={where}"]))
        state = folder.ledger.read(epochs=False)
        suggested = [configuration.values for configuration in state.history()]
        named_before = at_its_old_place(given, old, folder.manifest["backbone"], folder.name)
        spec = extended(old, named_before, suggested, folder.name)
        tracker = tracker_for(spec, folder.name, say)
        # Read where it lies today; what is written down keeps its first place.
        prepared = prepare(spec.model_copy(update={"backbone": given.backbone}), folder.path.parent / ".tokens")
        _refuse_changed_data(folder, prepared)
        for line in differences(
            folder.manifest,
            {
                "versions": versions(),
                "code": code_version(),
                "parts": origins(folder.manifest.get("parts") or ()),
                "runtime": _runtime(prepared, device),
            },
        ):
            say(f"warning: {line}, so new cells may differ from old ones in their last digits")
        start_ray(address)
        check_versions(address, packages=prepared.outside.packages)
        check_resources(spec.resources.cpus, spec.resources.gpus)
        again = _to_repair(folder, state, repair, say)
        lease.check()  # much may have happened since it was taken
        for left in folder.path.glob(".ray-*"):
            shutil.rmtree(left, ignore_errors=True)
        if space is not None or spec.digest != old.digest:
            _describe(folder, spec, prepared, device, folder.manifest["backbone"])
            say(f"extended: {spec.planned or 'any number of'} configurations, {len(spec.seeds)} seed(s)")
        fences, recovered = folder.ledger.driver_fences(), folder.ledger.recovered()
        writer = folder.ledger.driver_writer(lease.number)
        writer.append({"kind": "resume", "params": _params(spec, prepared), "fences": fences}, *recovered)
        writer.close()
        return _run(folder, spec, prepared, tracker, lease, address, device, say, again)


def _to_repair(folder: SweepFolder, state: SweepState, asked: bool, say: Say) -> list[CellKey]:
    """The cells to be trained again, as their logits are missing or damaged; none where it was not asked for."""
    feeding = {key: r for key, r in state.cells.items() if state.configs[key[0]].state in ("complete", "running")}
    wrong = held_out.damaged(folder.path, feeding)
    for key, problem in wrong.items():
        say(f"warning: {held_out.cell_name(key)}: {problem}" + ("; the cell is trained again" if asked else ""))
    if wrong and not asked:
        say(f"{len(wrong)} cell(s) are trained again by: leebert-tune resume {sweep_argument(folder)} --repair")
    if asked and not wrong:
        say("nothing to repair: the logits of all cells that count are as they were recorded")
    if asked and (old := held_out.count_unchecked(feeding.values())):
        say(
            f"note: {old} cell(s) were recorded without a digest by an older version: only missing or unreadable files show"
        )
    return list(wrong) if asked else []


def _describe(
    folder: SweepFolder, spec: SweepSpec, prepared: Prepared, device: str, backbone: dict[str, Any] | None = None
) -> None:
    """Write down what the sweep is made of; the manifest, which counts, last. `backbone`: its identity, where known."""
    write_atomically(folder.path / "space.yaml", resolved_yaml(spec))
    resolved = spec.model_dump(mode="json", exclude_none=True)
    facts = manifest(prepared, folder, resolved, _runtime(prepared, device))
    folder.write_manifest({**facts, "spec_digest": spec.digest, "backbone": backbone or facts["backbone"]})


def _refuse_changed_data(folder: SweepFolder, prepared: Prepared) -> None:
    now, was = json.loads(json.dumps(prepared.facts)), folder.manifest
    identity = backbone_identity(prepared.spec.backbone)
    for changed, what in (
        (now["data_fingerprint"] != was["data_fingerprint"], "training data"),
        (now.get("evaluated") != was.get("evaluated"), "evaluated data"),
        (now["folds"] != was["folds"], "folds"),
        (bool(backbone_differences(was["backbone"], identity)), "backbone's files"),
    ):
        if changed:
            raise SweepError(
                f"sweep {folder.name}: the {what} changed since it was started, so its results can't be joined with new ones"
            )


def _run(
    folder: SweepFolder,
    spec: SweepSpec,
    prepared: Prepared,
    tracker: Tracker,
    lease: Lease,
    address: str | None,
    device: str,
    say: Say,
    repair: Sequence[CellKey] = (),
) -> Outcome:
    study = prepared.study(folder.path, device)
    tracker.fence(lease.check)
    # What the ledger holds already goes to MLflow first: a new tracker writes only what is missing there.
    state = replay(folder.ledger, tracker, CellCurves(folder.path, say))
    driver = Driver(
        study,
        folder.ledger,
        make_searcher(spec),
        make_pruner(spec),
        state=state,  # not read again: a trial of an earlier driver may have written something since
        config_id=config_id,
        number=lease.number,
        budget=spec.budget,
        gpus=spec.resources.gpus,
        listener=tracker,
        say=say,
        stop_requested=folder.stop_requested,
        may_decide=lease.check,
        repair=repair,
    )
    planned = spec.planned * len(spec.cells()) if spec.planned else None
    showing = Publisher(tracker, spec, prepared.facts["test_train_ratio"], say)
    showing.start(driver.state)
    unsent, patience = 0, CLOSE_SECONDS
    asked = spec.resources
    # Only a cluster that somebody named can have an autoscaler, which is told of all trials at once.
    nodes = nodes_for(asked.concurrent, asked.cpus, asked.gpus) if address else contextlib.nullcontext(lambda: None)
    try:
        with nodes as settle:

            def also() -> None:
                settle()
                showing.follow(driver.state)

            status = run_session(
                study,
                driver,
                cpus=asked.cpus,
                gpus=asked.gpus,
                concurrent=asked.concurrent,
                beat=beats(lease.tell, driver, planned, also),
                before_end=lambda: showing.end(driver.state),
            )
        with contextlib.suppress(OSError):  # it is written anew from the ledger at any time
            results.write(folder.path / "results.parquet", folder.ledger.read(), folder.name, spec.task_name)
    except StorageError as error:
        raise StorageError(f"{error}; mend that, then go on by: leebert-tune resume {sweep_argument(folder)}") from None
    except LeaseError:
        patience = 0.0  # what is left to send is the new driver's
        raise
    finally:
        unsent = tracker.close(patience) + tracker.rejected
    if not unsent:
        unsent = missing(tracker, driver.state, say)
    reason = driver.stop_reason()
    if status == "stopped":
        say(f"stopped: {reason or 'work is left'}; go on by: leebert-tune resume {sweep_argument(folder)}")
    by_hand = driver.interrupted or folder.stop_requested()
    views = tracker.views
    note = doubts(tracker.uri) if views else ""
    return Outcome(folder, spec, status, by_hand, driver.signal, unsent, mlflow_address(tracker), views, note)


def _params(spec: SweepSpec, prepared: Prepared) -> dict[str, Any]:
    return {
        "backbone": spec.backbone,
        "pooling": spec.pooling,
        "folds": spec.folds,
        "fold_hash": prepared.facts["folds"]["digest"][:16],
        "seeds": ",".join(map(str, spec.seeds)),
        "rows": prepared.facts["rows"],
        "searcher": spec.searcher.name,
        "pruner": spec.pruner.name,
        **{k: v for k, v in spec.training.items()},
    }


def _runtime(prepared: Prepared, device: str) -> dict[str, Any]:
    """What trials will run on, as far as this machine can tell: device, precision, threads, CPU flags."""
    from leebert.runtime import Runtime, limited_threads

    study = prepared.study(Path("."), device)
    with limited_threads(study.threads):
        wanted = study.device if study.device == "cpu" else "auto"
        return Runtime.of(study.train_config({}, 0).precision, wanted).describe()
