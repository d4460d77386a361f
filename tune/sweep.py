"""A sweep from its space to its results: what `leebert-tune sweep` and `resume` do."""

from __future__ import annotations

import dataclasses
import json
import shutil
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import SweepError, TrackingError
from leebert.provenance import backbone_identity, code_version, differences, versions
from tune import results
from tune.driver import Budget, Driver, EndStatus
from tune.folder import SweepFolder, storage_root
from tune.nodes import check_versions
from tune.placement import check_resources
from tune.prepare import Prepared, manifest, prepare
from tune.pruners import make_pruner
from tune.searchers import make_searcher
from tune.session import beats, run_session, start_ray
from tune.space import SweepSpec, config_id, load_space, resolved_yaml
from tune.summary import summaries
from tune.tracking import Tracker, redact, resolve_uri

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one session of a sweep ended."""

    folder: SweepFolder
    spec: SweepSpec
    status: EndStatus
    by_hand: bool  # stopped by a signal or on request, not by its budget
    unsent: int  # MLflow events that did not arrive
    mlflow: str  # how to open MLflow


def new_sweep(
    spec: SweepSpec, name: str, *, address: str | None = None, device: str = "auto", say: Say = print
) -> Outcome:
    """Prepare and run a new sweep. Nothing is created before space, data, backbone and tracking server are checked."""
    spec = anchored(spec)
    storage = storage_root(spec.storage)
    if (storage / name).exists():
        SweepFolder.create(storage, name)  # raises, with the command to go on
    tracker = _tracker(spec, name, say)
    prepared = prepare(spec, storage / ".tokens")
    say(
        f"{spec.task_name}: {prepared.facts['rows']} rows, {spec.folds} fold(s), {len(spec.seeds)} seed(s), "
        f"{spec.planned or 'any number of'} configurations"
    )
    if prepared.facts["truncated_rows"]:
        say(f"{prepared.facts['truncated_rows']} rows are cut at {spec.max_length} tokens")
    start_ray(address)
    check_versions(address)
    check_resources(spec.resources.cpus, spec.resources.gpus)
    folder = SweepFolder.create(storage, name)
    (folder.path / "space.yaml").write_text(resolved_yaml(spec))
    prepared.folds.save(folder.path / "folds.json")
    folder.write_manifest(
        manifest(prepared, folder, spec.model_dump(mode="json", exclude_none=True), _runtime(prepared, device))
    )
    writer = folder.ledger.driver_writer()
    writer.append({"kind": "sweep", "name": name, "task": spec.task_name, "params": _params(spec, prepared)})
    writer.close()
    with folder.lock():
        return _run(folder, spec, prepared, tracker, device, say)


def resume_sweep(
    folder: SweepFolder,
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    device: str = "auto",
    say: Say = print,
) -> Outcome:
    """Go on with a sweep where its ledger stands: finished cells are kept, running ones continue from their checkpoint."""
    alive = folder.driver()
    if alive:
        raise SweepError(
            f"sweep {folder.name} is running (process {alive['pid']} on {alive['host']}); "
            f"stop it by: leebert-tune stop {named(folder)}"
        )
    with folder.lock():
        where = json.dumps(str(folder.path.parent))
        spec = load_space(folder.path / "space.yaml", [*overrides, f"storage={where}"])
        was = folder.manifest
        if spec.digest != was["spec_digest"]:
            raise SweepError(f"sweep {folder.name}: an override changes what is measured; start another sweep for that")
        tracker = _tracker(spec, folder.name, say)
        prepared = prepare(spec, folder.path.parent / ".tokens")
        now = {**prepared.facts, "backbone": backbone_identity(spec.backbone)}
        for key, what in (("data_fingerprint", "training data"), ("folds", "folds"), ("backbone", "backbone's files")):
            if json.loads(json.dumps(now[key])) != was[key]:
                raise SweepError(
                    f"sweep {folder.name}: the {what} changed since it was started, so its results can't be joined with new ones"
                )
        for line in differences(
            was, {"versions": versions(), "code": code_version(), "runtime": _runtime(prepared, device)}
        ):
            say(f"warning: {line}, so new cells may differ from old ones in their last digits")
        folder.clear_stop()
        for left in folder.path.glob(".ray-*"):
            shutil.rmtree(left, ignore_errors=True)
        start_ray(address)
        check_versions(address)
        check_resources(spec.resources.cpus, spec.resources.gpus)
        writer = folder.ledger.driver_writer()
        writer.append({"kind": "resume", "params": _params(spec, prepared)})
        writer.close()
        return _run(folder, spec, prepared, tracker, device, say)


def _run(folder: SweepFolder, spec: SweepSpec, prepared: Prepared, tracker: Tracker, device: str, say: Say) -> Outcome:
    from tune.driver import replay

    study = prepared.study(folder.path, device)
    # What the ledger holds already goes to MLflow first: a new tracker writes only what is missing there.
    replay(folder.ledger, tracker)
    driver = Driver(
        study,
        folder.ledger,
        make_searcher(spec),
        make_pruner(spec),
        config_id=config_id,
        budget=Budget(**spec.budget.model_dump()),
        gpus=spec.resources.gpus,
        listener=tracker,
        say=say,
        stop_requested=folder.stop_requested,
    )
    planned = spec.planned * len(spec.cells()) if spec.planned else None
    folder.beat(started=driver.started, planned_cells=planned)

    def summarise() -> None:
        # Before the end is recorded, since MLflow's run of the sweep is closed with that.
        ratio = prepared.facts["test_train_ratio"] if spec.folds == 1 else None
        for event in summaries(driver.state, spec.folds, ratio):
            tracker.put(event)

    unsent = 0
    try:
        status = run_session(
            study,
            driver,
            cpus=spec.resources.cpus,
            gpus=spec.resources.gpus,
            concurrent=spec.resources.concurrent,
            beat=beats(folder.beat, driver, planned),
            before_end=summarise,
        )
    finally:
        results.write(folder.path / "results.parquet", folder.ledger.read(), folder.name, spec.task_name)
        unsent = tracker.close() + tracker.rejected
        folder.driver_gone()
    reason = driver.stop_reason()
    if status == "stopped":
        say(f"stopped: {reason or 'work is left'}; go on by: leebert-tune resume {named(folder)}")
    by_hand = driver.interrupted or folder.stop_requested()
    return Outcome(folder, spec, status, by_hand, unsent, mlflow_address(tracker))


def anchored(spec: SweepSpec) -> SweepSpec:
    """The space with absolute paths to its data, so that it can be resumed and trained from any folder.

    An own task's files are taken from the data's folder where one is given, else from the working folder.
    """
    changes: dict[str, Any] = {}
    base = Path(spec.data.dir or ".").expanduser().resolve()
    if isinstance(spec.task, dict) and isinstance(spec.task.get("files"), dict):
        changes["task"] = {**spec.task, "files": {k: str((base / v).resolve()) for k, v in spec.task["files"].items()}}
    if spec.data.dir:
        changes["data"] = spec.data.model_copy(update={"dir": str(base)})
    if Path(spec.backbone).is_dir():
        changes["backbone"] = str(Path(spec.backbone).resolve())
    return spec.model_copy(update=changes)


def named(folder: SweepFolder) -> str:
    """What to call a sweep on the command line: its name, or its path where it lies elsewhere."""
    usual = storage_root(None) == folder.path.parent
    return folder.name if usual else str(folder.path)


def _tracker(spec: SweepSpec, name: str, say: Say) -> Tracker:
    if spec.tracking.uri and "@" in urllib.parse.urlsplit(spec.tracking.uri).netloc:
        # The space is kept in the sweep's folder, where no secret may stand.
        raise TrackingError(
            f"tracking.uri {redact(spec.tracking.uri)} holds credentials; give them by MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or the whole address by MLFLOW_TRACKING_URI"
        )
    uri = resolve_uri(spec.tracking.uri)
    tracker = Tracker(uri, spec.tracking.experiment or f"leebert-{spec.task_name}", name, spec.task_name, say=say)
    tracker.check()
    return tracker


def mlflow_address(tracker: Tracker) -> str:
    """How a person opens what was tracked."""
    if tracker.url:
        return tracker.url
    return f"mlflow ui --backend-store-uri {redact(tracker.uri)}"


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
