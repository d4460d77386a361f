"""A sweep from its space to its results: what `leebert-tune sweep` and `resume` do."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import SweepError
from tune import results
from tune.driver import Budget, Driver, EndStatus
from tune.folder import SweepFolder, storage_root
from tune.prepare import Prepared, manifest, prepare
from tune.pruners import make_pruner
from tune.searchers import make_searcher
from tune.session import beats, check_resources, run_session, start_ray
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
            f"sweep {folder.name} is running (process {alive['pid']} on {alive['host']}); stop it by: leebert-tune stop {folder.name}"
        )
    spec = load_space(folder.path / "space.yaml", [*overrides, f"storage={json.dumps(str(folder.path.parent))}"])
    was = folder.manifest
    if spec.digest != was["spec_digest"]:
        raise SweepError(f"sweep {folder.name}: an override changes what is measured; start another sweep for that")
    tracker = _tracker(spec, folder.name, say)
    prepared = prepare(spec, folder.path.parent / ".tokens")
    for key, what in (("data_fingerprint", "the training data"), ("folds", "the folds")):
        if json.loads(json.dumps(prepared.facts[key])) != was[key]:
            raise SweepError(
                f"sweep {folder.name}: {what} changed since it was started, so its results can't be joined with new ones"
            )
    folder.clear_stop()
    for left in folder.path.glob(".ray-*"):
        shutil.rmtree(left, ignore_errors=True)
    start_ray(address)
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
    try:
        status = run_session(
            study,
            driver,
            cpus=spec.resources.cpus,
            gpus=spec.resources.gpus,
            concurrent=spec.resources.concurrent,
            beat=beats(folder.beat, driver, planned),
        )
    finally:
        folder.driver_gone()
        results.write(folder.path / "results.parquet", driver.state, folder.name, spec.task_name)
        for event in summaries(driver.state, spec.folds, prepared.facts["test_train_ratio"]):
            tracker.put(event)
        unsent = tracker.close()
    reason = driver.stop_reason()
    if status == "stopped":
        say(f"stopped: {reason or 'work is left'}; go on by: leebert-tune resume {_named(folder)}")
    return Outcome(folder, spec, status, unsent, mlflow_address(tracker))


def anchored(spec: SweepSpec) -> SweepSpec:
    """The space with absolute paths to its data, so that it can be resumed and trained from any folder."""
    changes: dict[str, Any] = {}
    if isinstance(spec.task, dict) and isinstance(spec.task.get("files"), dict):
        changes["task"] = {**spec.task, "files": {k: str(Path(v).resolve()) for k, v in spec.task["files"].items()}}
    if spec.data.dir:
        changes["data"] = spec.data.model_copy(update={"dir": str(Path(spec.data.dir).expanduser().resolve())})
    if Path(spec.backbone).is_dir():
        changes["backbone"] = str(Path(spec.backbone).resolve())
    return spec.model_copy(update=changes)


def _named(folder: SweepFolder) -> str:
    usual = storage_root(None) == folder.path.parent
    return folder.name if usual else str(folder.path)


def _tracker(spec: SweepSpec, name: str, say: Say) -> Tracker:
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


def default_name(path: Path) -> str:
    """A sweep's name where none was given: the space's, with date and time."""
    return f"{path.stem}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
