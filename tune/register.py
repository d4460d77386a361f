"""A refit in MLflow: a run per seed, and the first seed's model logged, registered and given an alias."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from leebert.errors import ConfigError, TrackingError
from leebert.files import write_atomically
from leebert.serving import ANSWER, PARAMETERS, text_columns
from tune import names
from tune.found import BestFile
from tune.refit import Say
from tune.tracking_store import advice, ensure_experiment, open_store, redact

#: What a served model needs installed; its code travels with it.
REQUIREMENTS = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas", "pydantic")

#: Which seeds' runs are whole, so that a refit that is gone on with logs none of them twice.
LOGGED = ".mlflow.json"


def model_name(task: str) -> str:
    """``leebert-mrpc``: how a task's registered model is called, without what MLflow's addresses are made of."""
    return "leebert-" + re.sub(r"[^\w.-]", "-", task)


def check_names(name: str, alias: str) -> None:
    """ConfigError for a name or alias that MLflow's registry won't take, before anything is trained."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import (
        _validate_model_alias_name,
        _validate_model_alias_name_reserved,
        _validate_model_name,
    )

    checks = (
        ("--name", name, _validate_model_name),
        ("--alias", alias, _validate_model_alias_name),
        ("--alias", alias, _validate_model_alias_name_reserved),
    )
    for option, value, check in checks:
        try:
            check(value)
        except MlflowException as error:
            raise ConfigError(f"{option} {value!r}: {' '.join(error.message.split())}") from None


def check_server(uri: str, experiment: str) -> str:
    """The experiment's id, before anything is trained; TrackingError where MLflow can't be used."""
    from mlflow.exceptions import MlflowException

    try:
        return ensure_experiment(open_store(uri), experiment)
    except (MlflowException, OSError, ValueError) as error:
        raise TrackingError(advice(uri, error)) from None


def log_refit(
    best: BestFile, out: Path, told: Mapping[str, Any], *, uri: str, experiment: str, name: str, alias: str, say: Say
) -> dict[str, Any]:
    """Log every seed and register the first; returns run ids by seed, and the registered version.

    TrackingError where MLflow fails; the same refit then goes on here, with nothing logged twice.
    """
    from mlflow.exceptions import MlflowException

    try:
        with _tracking(uri):
            return _log(best, out, told, experiment, name, alias, say)
    except (MlflowException, OSError, ValueError) as error:
        raise TrackingError(
            f"{advice(uri, error)} The models lie in {redact(str(out))}; give the same command again to log them."
        ) from None


def _log(
    best: BestFile, out: Path, told: Mapping[str, Any], experiment: str, name: str, alias: str, say: Say
) -> dict[str, Any]:
    import mlflow

    experiment_id = ensure_experiment(open_store(mlflow.get_tracking_uri()), experiment)
    kept = out / LOGGED
    logged: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {"runs": {}}
    for seed in told["seeds"]:
        if str(seed) in logged["runs"]:
            continue
        first = seed == told["registered_seed"]
        folder = out / f"seed-{seed}"
        with mlflow.start_run(
            experiment_id=experiment_id,
            run_name=names.refit_run_name(best.task_name, best.config.training.algorithm, seed),
            tags=_tags(best, seed),
            description=f"{best.path.name}, seed {seed}, on the whole training split. {told['picked']}",
        ) as run:
            model_id = _log_model(best, folder, told) if first else None
            client = mlflow.MlflowClient()
            client.log_batch(
                run.info.run_id,
                metrics=_metrics(told["evaluations"][str(seed)], model_id),
                params=_params(best, told, seed),
            )
            for file in ("evaluation.json", "training.json", "exits.json", "README.md"):
                mlflow.log_artifact(str(folder / file))
            if told["evaluations"][str(seed)]:
                mlflow.log_figure(_figure(told["evaluations"][str(seed)]), "exit_curve.png")
        logged["runs"][str(seed)] = run.info.run_id
        if first:
            logged["model_id"] = model_id
        write_atomically(kept, json.dumps(logged))
    if "version" not in logged:
        logged |= _register(logged["model_id"], name, alias, best, told, say)
        write_atomically(kept, json.dumps(logged))
    return logged


def _log_model(best: BestFile, folder: Path, told: Mapping[str, Any]) -> str:
    """Log a saved folder as a model that `tune.serving` loads; returns its id in MLflow. Nothing in it is a pickle."""
    import mlflow
    import pandas as pd

    columns = text_columns(best.config.task)
    root = Path(__file__).resolve().parent.parent
    example = pd.DataFrame({c: [f"An example of {c}.", "It is raining."] for c in columns})
    info = mlflow.pyfunc.log_model(
        name=model_name(best.task_name),
        loader_module="tune.serving",
        data_path=str(folder),
        # The code travels along, so that a later version of this package changes nothing about an old model.
        code_paths=[str(root / "leebert"), str(root / "tune")],
        signature=_signature(columns),
        input_example=example,
        pip_requirements=_requirements(),
        params={"strategy": told["strategy"], "configuration": told["configuration"]},
    )
    return str(info.model_id)


def _signature(columns: tuple[str, ...]) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec("string", name) for name in columns]),
        outputs=Schema([ColSpec(kind, name) for name, kind in ANSWER.items()]),
        params=ParamSchema([ParamSpec(name, kind, default) for name, (kind, default, _) in PARAMETERS.items()]),
    )


def _requirements() -> list[str]:
    # A local version such as 2.9.0+cpu is in no registry.
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def _register(
    model_id: str, name: str, alias: str, best: BestFile, told: Mapping[str, Any], say: Say
) -> dict[str, Any]:
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    try:
        before = client.get_model_version_by_alias(name, alias).version
    except MlflowException:
        before = None
    tags = {"sweep": best.found["sweep"], "config": told["configuration"], "seed": str(told["registered_seed"])}
    version = mlflow.register_model(f"models:/{model_id}", name, tags=tags)
    client.update_model_version(name, version.version, description=told["picked"])
    client.set_registered_model_alias(name, alias, version.version)
    if before is not None:
        say(f"models:/{name}@{alias} was version {before}, which stays, and is version {version.version} now")
    return {"name": name, "version": int(version.version), "alias": alias}


def _tags(best: BestFile, seed: int) -> dict[str, str]:
    algorithm = best.config.training.algorithm
    return {
        "sweep": str(best.found["sweep"]),
        "task": best.task_name,
        "kind": "refit",
        "algorithm": algorithm,
        "approach": names.algorithm_label(algorithm),
        "config": str(best.found["configuration"]),
        "seed": str(seed),
        "mlflow.runColor": names.algorithm_colour(algorithm) or "#8c8c8c",
    }


def _params(best: BestFile, told: Mapping[str, Any], seed: int) -> list[Any]:
    from mlflow.entities import Param

    values = {
        **best.config.training.model_dump(mode="json"),
        "seed": seed,
        "theta_updates": told["theta_updates"],
        "exit_strategy": told["strategy"],
        "exit_threshold": told["chosen"][told["strategy"]]["threshold"],
    }
    return [Param(key, str(value)) for key, value in values.items()]


def _metrics(splits: Mapping[str, Any], model_id: str | None) -> list[Any]:
    """The exit curve with a layer as step, each rule's curve with its threshold's place as step, and the chosen points."""
    from mlflow.entities import Metric

    points: list[tuple[str, float, int]] = []
    for split, told in splits.items():
        on = f"on_{split}"
        points += [(f"{on}/score", score, layer) for layer, score in enumerate(told["exits"]["score"], start=1)]
        points.append((f"{on}/score_mean", told["mean_over_exits"], 0))
        for rule, curve in told["curves"].items():
            for step, point in enumerate(curve, start=1):
                points.append((f"{on}/{rule}_layers", point["layers"], step))
                points.append((f"{on}/{rule}_score", point["measures"]["score"], step))
        points += [(f"{on}/{p['strategy']}_speed_up", p["speed_up"], 0) for p in told["chosen"]]
        points += [(f"{on}/{t['strategy']}_ms", t["milliseconds"], 0) for t in told.get("wall_clock", ())]
    now = int(time.time() * 1000)
    return [Metric(key, value, now, step, model_id=model_id) for key, value, step in points]


def _figure(splits: Mapping[str, Any]) -> Any:
    """Score against layers executed: every exit for all rows, and each rule over its thresholds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(splits), 4), layout="constrained")
    for axes, (split, told) in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits.items(), strict=True):
        scores = told["exits"]["score"]
        axes.plot(range(1, len(scores) + 1), [100 * s for s in scores], "o-", label="one exit for all rows")
        for rule, curve in told["curves"].items():
            axes.plot([p["layers"] for p in curve], [100 * p["measures"]["score"] for p in curve], ".-", label=rule)
        axes.set(title=split, xlabel="mean layers executed", ylabel="score, per cent")
        axes.legend()
    return figure


@contextlib.contextmanager
def _tracking(uri: str) -> Iterator[None]:
    """MLflow's global address for a while, and its messages off stdout, which is for results."""
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    # It hands the address on to child processes by the environment, and would leave that empty.
    before = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        with _use_tracking_uri(uri), warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")  # MLflow warns of its own type hints and of what it deprecates itself
            yield
    finally:
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
