"""Run and resume a sweep, from its search space to its results: `leebert-tune sweep` and `resume`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leebert import live
from leebert.errors import LeaseError, StorageError, SweepError
from leebert.files import write_atomically
from leebert.outside import origins
from leebert.provenance import backbone_differences, backbone_identity, code_version, differences, git_commit, versions
from tune.analysis.labels import searched_name
from tune.analysis.progress import searched
from tune.machines.nodes import check_versions
from tune.machines.placement import check_resources, nodes_for, warn_of_crowding
from tune.pruners import make_pruner
from tune.running.crossval import Study
from tune.running.driver import Driver, EndStatus
from tune.running.extend import at_its_old_place, extended
from tune.running.live_sweep import LiveSweep
from tune.running.outside import check_plugins, recorded
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

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SweepOutcome:
    """The end of one session of a sweep.

    Attributes:
        folder: The sweep's folder.
        spec: Its space.
        status: finished, stopped (work remains) or failed.
        by_hand: Whether a signal or `leebert-tune stop` stopped it, not its budget.
        signal: The signal that stopped it; None if there was none.
        unsent: MLflow events that did not arrive.
        mlflow: How to open MLflow.
        views: The sweep's saved views, name → address.
        views_note: A remark on the views; empty if there is none.
    """

    folder: SweepFolder
    spec: SweepSpec
    status: EndStatus
    by_hand: bool
    signal: int | None
    unsent: int
    mlflow: str
    views: dict[str, str]
    views_note: str


def new_sweep(spec: SweepSpec, name: str, *, address: str | None = None, device: str = "auto") -> SweepOutcome:
    """Prepare and run a new sweep; space, data, backbone and tracking server are checked before anything is created.

    Args:
        spec: The search space.
        name: The sweep's name, which no folder of the storage has.
        address: The Ray cluster; None for this machine.
        device: auto, cpu or cuda.

    Returns:
        How the session ended.

    Raises:
        LeebertError: A check failed, or the sweep can't continue; the message says what to do.
    """
    spec = anchored(spec)
    storage = storage_root(spec.storage)
    SweepFolder.refuse_taken(storage, name)
    live.phase("connecting to MLflow")
    tracker = tracker_for(spec, name)
    live.phase("reading and preparing the training split")
    prepared = prepare(spec, storage / ".tokens")
    log.info(
        f"{spec.task_name}: {prepared.facts['rows']} samples, {spec.folds} fold(s), {len(spec.seeds)} seed(s), "
        f"{spec.planned or 'any number of'} configurations"
    )
    if prepared.facts["truncated_rows"]:
        log.info(f"{prepared.facts['truncated_rows']} samples are truncated to {spec.max_length} tokens")
    _connect(spec, prepared, address)
    warn_of_crowding(spec)
    with SweepFolder.create(storage, name) as folder:
        _describe(folder, spec, prepared, device)
        prepared.folds.save(folder.path / "folds.json")
        writer = folder.ledger.driver_writer(1)
        begun = {"kind": "sweep", "name": name, "task": spec.task_name, **_origin(spec, prepared)}
        parts = recorded(spec, prepared.facts["metric"])
        writer.append({**begun, "parts": parts} if parts else begun)
        writer.close()
    folder = SweepFolder(storage / name)
    with driver_lease(folder) as lease:
        if lease.number > 1:
            raise LeaseError(
                f"sweep {name}: another driver resumed it before it started; see leebert-tune status {name}"
            )
        return _run(folder, spec, prepared, tracker, lease, address, device)


def resume_sweep(
    folder: SweepFolder,
    *,
    space: Path | None = None,
    overrides: Sequence[str] = (),
    take_over: bool = False,
    repair: bool = False,
    address: str | None = None,
    device: str = "auto",
) -> SweepOutcome:
    """Resume a sweep from its ledger: finished cells stay, interrupted ones continue from their last checkpoint.

    Args:
        folder: The sweep's folder.
        space: A space with more configurations or seeds (`tune.running.extend`); by default the sweep's own.
        overrides: `key=value` assignments to the space.
        take_over: Whether to resume although another driver still holds the sweep's lease.
        repair: Whether to train cells again whose logits are missing or damaged.
        address: The Ray cluster; None for this machine.
        device: auto, cpu or cuda.

    Returns:
        How the session ended.

    Raises:
        LeaseError: Another driver runs the sweep.
        SweepError: Results under the new space, data or backbone could not be compared with the old ones.
    """
    folder.refuse_links()
    with driver_lease(folder, take_over) as lease:
        folder.clear_stop()  # an old request; a new one during the preparation counts
        live.phase("reading the ledger")
        state = folder.ledger.read(epochs=False)
        spec, as_given, old = _resumed_spec(folder, state, space, overrides)
        live.phase("connecting to MLflow")
        tracker = tracker_for(spec, folder.name)
        live.phase("reading and preparing the training split")
        # Read the backbone from its present place; the manifest keeps the first one.
        prepared = prepare(spec.model_copy(update={"backbone": as_given.backbone}), folder.path.parent / ".tokens")
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
            log.warning(f"warning: {line}, so new runs may differ from old ones in their last digits")
        _connect(spec, prepared, address)
        repaired = _to_repair(folder, state, repair)
        lease.check()  # the preparation may have taken longer than the lease lasts
        for leftover in folder.path.glob(".ray-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if space is not None or spec.digest != old.digest:
            _describe(folder, spec, prepared, device, folder.manifest["backbone"])
            log.info(f"extended: {spec.planned or 'any number of'} configurations, {len(spec.seeds)} seed(s)")
        fences, recovered = folder.ledger.driver_fences(), folder.ledger.recovered()
        writer = folder.ledger.driver_writer(lease.number)
        writer.append({"kind": "resume", **_origin(spec, prepared), "fences": fences}, *recovered)
        writer.close()
        return _run(folder, spec, prepared, tracker, lease, address, device, repaired)


def _connect(spec: SweepSpec, prepared: Prepared, address: str | None) -> None:
    """Start or join Ray, and check its nodes."""
    live.phase(f"connecting to Ray at {address}" if address else "starting Ray on this machine")
    start_ray(address)
    live.phase("comparing the nodes with this machine")
    check_versions(address)
    check_plugins(address, prepared.outside)
    check_resources(spec.resources.cpus, spec.resources.gpus)


def _resumed_spec(
    folder: SweepFolder, state: SweepState, space: Path | None, overrides: Sequence[str]
) -> tuple[SweepSpec, SweepSpec, SweepSpec]:
    """Return the space to resume with, the given space (with the backbone's present path), and the old one."""
    old, manifest_ = spec_of(folder), folder.manifest
    for key in ("data_fingerprint", "folds", "backbone"):
        manifest_[key]  # a missing key raises an error that names it, before anything is prepared
    storage = json.dumps(str(folder.path.parent))
    as_given = anchored(load_space(space or folder.path / "space.yaml", [*overrides, f"storage={storage}"]))
    suggested = [configuration.values for configuration in state.history()]
    named_before = at_its_old_place(as_given, old, manifest_["backbone"], folder.name)
    return extended(old, named_before, suggested, folder.name), as_given, old


def _to_repair(folder: SweepFolder, state: SweepState, requested: bool) -> list[CellKey]:
    """Find cells whose logits are missing or damaged; return them if a repair is requested, else only warn."""
    feeding = {key: r for key, r in state.cells.items() if state.configs[key[0]].state in ("complete", "running")}
    wrong = held_out.damaged(folder.path, feeding)
    for key, problem in wrong.items():
        log.warning(
            f"warning: {held_out.cell_name(key)}: {problem}" + ("; the run is trained again" if requested else "")
        )
    if wrong and not requested:
        log.info(f"to train {len(wrong)} run(s) again: leebert-tune resume {sweep_argument(folder)} --repair")
    if requested and not wrong:
        log.info("nothing to repair: the logits of all finished runs match their recorded digests")
    if requested and (old := held_out.count_unchecked(feeding.values())):
        log.info(
            f"note: an older version recorded {old} run(s) without a digest: only missing or unreadable files are detected"
        )
    return list(wrong) if requested else []


def _describe(
    folder: SweepFolder, spec: SweepSpec, prepared: Prepared, device: str, backbone: dict[str, Any] | None = None
) -> None:
    """Write the sweep's space, then its manifest; `backbone` is the identity to keep, by default that of its files."""
    write_atomically(folder.path / "space.yaml", resolved_yaml(spec))
    resolved = spec.model_dump(mode="json", exclude_none=True)
    facts = manifest(prepared, folder, resolved, _runtime(prepared, device))
    folder.write_manifest({**facts, "spec_digest": spec.digest, "backbone": backbone or facts["backbone"]})


def _refuse_changed_data(folder: SweepFolder, prepared: Prepared) -> None:
    """Raise SweepError if data, folds or the backbone's files changed since the sweep started."""
    now, was = json.loads(json.dumps(prepared.facts)), folder.manifest
    identity = backbone_identity(prepared.spec.backbone)
    for changed, change in (
        (now["data_fingerprint"] != was["data_fingerprint"], "training data"),
        (now.get("evaluated") != was.get("evaluated"), "evaluated data"),
        (now["folds"] != was["folds"], "folds"),
        (bool(backbone_differences(was["backbone"], identity)), "backbone's files"),
    ):
        if changed:
            raise SweepError(
                f"sweep {folder.name}: the {change} changed since it started, so its results can't be compared with new ones; "
                "restore them, or start another sweep"
            )


def _run(
    folder: SweepFolder,
    spec: SweepSpec,
    prepared: Prepared,
    tracker: Tracker,
    lease: Lease,
    address: str | None,
    device: str,
    repair: Sequence[CellKey] = (),
) -> SweepOutcome:
    """Send the ledger's records to MLflow, run a session, and write results and saved views."""
    study = prepared.study(folder.path, device)
    tracker.fence(lease.check)
    live.phase("reading the ledger, and sending to MLflow what it lacks")
    # MLflow gets the ledger's records first: a new tracker writes only those that MLflow lacks.
    state = replay(folder.ledger, tracker, CellCurves(folder.path, log.warning))
    driver = Driver(
        study,
        folder.ledger,
        make_searcher(spec),
        make_pruner(spec),
        state=state,  # not read again: a trial of an earlier driver may have written records since
        config_id=config_id,
        number=lease.number,
        budget=spec.budget,
        gpus=spec.resources.gpus,
        listener=tracker,
        stop_requested=folder.stop_requested,
        may_decide=lease.check,
        repair=repair,
        name=functools.partial(searched_name, searched=searched(spec)),
    )
    publishing = Publisher(tracker, spec, folder)
    publishing.start(driver.state)
    unsent, seconds = 0, CLOSE_SECONDS
    try:
        status = _session(study, driver, folder, spec, lease, publishing, address)
        live.phase("writing results.parquet")
        with contextlib.suppress(OSError):  # the file can be written from the ledger at any time
            results.write(folder.path / "results.parquet", folder.ledger.read(), folder.name, spec.task_name)
    except StorageError as error:
        raise StorageError(f"{error}; after that, resume by: leebert-tune resume {sweep_argument(folder)}") from None
    except LeaseError:
        seconds = 0.0  # the new driver sends the remaining events
        raise
    finally:
        live.phase("sending the remaining events to MLflow")
        unsent = tracker.close(seconds) + tracker.rejected
    if not unsent:
        unsent = missing(tracker, driver.state)
    if status == "stopped":
        log.info(
            f"stopped: {driver.stopping.reason() or 'work remains'}; resume it by: leebert-tune resume {sweep_argument(folder)}"
        )
    by_hand = driver.stopping.signal is not None or folder.stop_requested()
    views = tracker.views
    note = doubts(tracker.uri) if views else ""
    return SweepOutcome(
        folder, spec, status, by_hand, driver.stopping.signal, unsent, mlflow_address(tracker), views, note
    )


def _session(
    study: Study,
    driver: Driver,
    folder: SweepFolder,
    spec: SweepSpec,
    lease: Lease,
    publishing: Publisher,
    address: str | None,
) -> EndStatus:
    """Run the trials; publish the saved views meanwhile and at the end."""
    planned = spec.planned * len(spec.cells()) if spec.planned else None
    cpus, gpus, concurrent = spec.resources.cpus, spec.resources.gpus, spec.resources.concurrent
    # Only a cluster that was named can have an autoscaler, which gets the requests of all trials at once.
    nodes = nodes_for(concurrent, cpus, gpus) if address else contextlib.nullcontext(lambda: None)
    with nodes as settle:
        shown = LiveSweep(folder.name, spec, folder.manifest, driver)

        def also() -> None:
            settle()
            publishing.follow(driver.state)
            shown.update()

        def before_end() -> None:
            live.body(None)
            live.phase("writing summaries and saved views")
            publishing.end(driver.state)

        return run_session(
            study,
            driver,
            cpus=cpus,
            gpus=gpus,
            concurrent=concurrent,
            beat=beats(lease.add_facts, driver, planned, also),
            before_end=before_end,
        )


def _origin(spec: SweepSpec, prepared: Prepared) -> dict[str, Any]:
    """Return what the sweep's run in MLflow carries: its options, program and training split."""
    commit = git_commit()
    return {
        "params": _params(spec, prepared),
        "source": {"name": "leebert-tune sweep", **({"commit": commit} if commit else {})},
        "dataset": {
            "name": spec.task_name,
            "digest": prepared.facts["data_fingerprint"],
            "rows": prepared.facts["rows"],
            "source": str(spec.data.dir or spec.task_name),
        },
    }


def _params(spec: SweepSpec, prepared: Prepared) -> dict[str, Any]:
    """Return the options that the ledger and the sweep's run in MLflow carry."""
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
    """Describe what trials run on, by this machine: device, precision, threads, CPU flags."""
    from leebert.runtime import Runtime, limited_threads

    study = prepared.study(Path("."), device)
    with limited_threads(study.threads):
        wanted = study.device if study.device == "cpu" else "auto"
        return Runtime.of(study.train_config({}, 0).precision, wanted).describe()
