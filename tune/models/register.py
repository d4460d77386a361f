"""Log a refit to MLflow: one run per seed; log and register the first seed's model and give it an alias."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import ConfigError, TrackingError
from leebert.exits import CRITERIA
from leebert.files import write_atomically
from leebert.outside import origin_of
from leebert.plugins import VARIABLE
from leebert.provenance import git_commit
from leebert.request import PARAMETERS, PREDICTION
from leebert.serving import text_columns, text_names
from leebert.yaml import dump_yaml, load_yaml
from tune.analysis import labels
from tune.models.best_file import BestFile, content_digest
from tune.models.serving import EXPORTED
from tune.models.shipping import shipped, without_places
from tune.tracking import names
from tune.tracking.runs import datasets, source_tags
from tune.tracking.server import (
    advice,
    ensure_experiment,
    is_permanent,
    open_store,
    quoted,
    redact,
    without_credentials,
)

log = logging.getLogger(__name__)

#: Packages that a served model in PyTorch needs, and one that is exported; its code is logged with it.
REQUIREMENTS = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas", "pydantic")
EXPORTED_REQUIREMENTS = ("mlflow", "onnxruntime", "tokenizers", "numpy", "pandas", "array-api-compat")

#: The file that records the runs, model and version that a refit has created, so that resuming creates none twice.
LOGGED = ".mlflow.json"

#: MLflow's limit of the description of a registered version, in characters.
MAX_DESCRIPTION = 5000

#: Metric values per request: MLflow's SQL store fails when more than some hundred repeated values of a model arrive at once.
POINTS = 100


@dataclasses.dataclass(frozen=True)
class RegistryTarget:
    """The MLflow server, experiment and name under which a refit is logged and registered.

    Attributes:
        uri: MLflow's address.
        experiment: The experiment's name.
        name: The registered model's name.
        alias: The alias of the registered version.
    """

    uri: str
    experiment: str
    name: str
    alias: str

    @property
    def address(self) -> str:
        """The address by which MLflow loads the registered model."""
        return f"models:/{self.name}@{self.alias}"


def model_name(task: str) -> str:
    """Return the default name of a task's registered model, such as ``leebert-mrpc``, without characters of MLflow's addresses."""
    return "leebert-" + re.sub(r"[^\w.-]", "-", task)


def logged_name(task: str) -> str:
    """Return :func:`model_name` without dots, which names of logged models may not have."""
    return model_name(task).replace(".", "-")


def check_names(to: RegistryTarget, task: str) -> None:
    """Check names before anything is trained.

    Args:
        to: Where the refit is logged and registered.
        task: The task's name.

    Raises:
        ConfigError: MLflow does not accept a name.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import (
        _validate_experiment_name,
        _validate_logged_model_name,
        _validate_model_alias_name,
        _validate_model_alias_name_reserved,
        _validate_model_name,
    )

    checks = (
        ("--experiment", to.experiment, _validate_experiment_name),
        ("--name", to.name, _validate_model_name),
        ("--alias", to.alias, _validate_model_alias_name),
        ("--alias", to.alias, _validate_model_alias_name_reserved),
        ("the task's name as a model's,", logged_name(task), _validate_logged_model_name),
    )
    for option, value, check in checks:
        try:
            check(value)
        except MlflowException as error:
            raise ConfigError(f"{option} {value!r}: {_error_text(error)}") from None


def check_server(to: RegistryTarget) -> None:
    """Create the experiment, if it does not exist, before anything is trained.

    Args:
        to: Where the refit is logged.

    Raises:
        TrackingError: MLflow can't be used.
    """
    from mlflow.exceptions import MlflowException

    try:
        ensure_experiment(open_store(to.uri), to.experiment)
    except (MlflowException, OSError, ValueError) as error:
        raise TrackingError(advice(to.uri, error)) from None


def log_refit(best: BestFile, out: Path, outcome: Mapping[str, Any], to: RegistryTarget) -> dict[str, Any]:
    """Log every seed and register the first seed's model.

    Args:
        best: The best file.
        out: The refit's folder.
        outcome: The contents of refit.json.
        to: Where to log and register.

    Returns:
        `runs` (run ids by seed), `name`, `alias`, `version`, `model_id`, `tracking_uri` and `experiment_id`.

    Raises:
        TrackingError: MLflow failed; the same command resumes here and logs nothing twice.
    """
    from mlflow.exceptions import MlflowException

    try:
        with _tracking(to.uri), tempfile.TemporaryDirectory() as staging:
            return _Logging(best, out, outcome, to, Path(staging)).all()
    except (MlflowException, OSError, ValueError) as error:
        place = f"The models are in {redact(str(out))}"
        if isinstance(error, MlflowException) and is_permanent(error):
            raise TrackingError(
                f"MLflow at {redact(to.uri)} rejected the refit: {_error_text(error)}. {place}; correct that, then run the "
                "same command again to resume"
            ) from None
        raise TrackingError(f"{advice(to.uri, error)} {place}; run the same command again to log them.") from None


class _Logging:
    """Log one refit in steps; after each, :data:`LOGGED` records what MLflow has."""

    def __init__(
        self, best: BestFile, out: Path, outcome: Mapping[str, Any], to: RegistryTarget, staging: Path
    ) -> None:
        import mlflow

        self.best, self.out, self.outcome, self.to, self.staging = best, out, outcome, to, staging
        self.client = mlflow.MlflowClient()
        self.store = open_store(mlflow.get_tracking_uri())
        self.experiment_id = ensure_experiment(self.store, to.experiment)
        self.logged = self._begun()

    def all(self) -> dict[str, Any]:
        """Log the seeds that MLflow lacks, then register; return the contents of :data:`LOGGED`."""
        for seed in self.outcome["seeds"]:
            if seed not in self.logged["finished"]:
                self._log_seed(seed)
        if "version" not in self.logged:
            self._record(version=self._register())
        return {key: value for key, value in self.logged.items() if key != "finished"}

    def _begun(self) -> dict[str, Any]:
        """Return the facts that an interrupted refit has already logged to this server and experiment."""
        place = {"tracking_uri": redact(self.to.uri), "experiment_id": self.experiment_id}
        registered = {"name": self.to.name, "alias": self.to.alias}
        path = self.out / LOGGED
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if any(facts.get(key) != value for key, value in place.items()):
            facts = {**place, "runs": {}, "finished": []}
        if any(facts.get(key) != value for key, value in registered.items()):
            facts.pop("version", None)
        return {**facts, **registered}

    def _record(self, **facts: Any) -> None:
        """Add facts to :data:`LOGGED` and write it."""
        self.logged |= facts
        write_atomically(self.out / LOGGED, json.dumps(self.logged))

    def _log_seed(self, seed: int) -> None:
        import mlflow

        outcome, first = self.outcome, seed == self.outcome["registered_seed"]
        folder = shipped(self.out / f"seed-{seed}", self.staging / f"seed-{seed}")
        if first and outcome.get("exported"):
            shutil.copytree(self.out / EXPORTED, folder / EXPORTED)
        with mlflow.start_run(run_id=self._run(seed)) as run:
            run_id = run.info.run_id
            _set_tags(lambda key, value: self.client.set_tag(run_id, key, value), _tags(self.best, outcome, seed))
            self.store.log_inputs(run_id, self._datasets())
            if first and "model_id" not in self.logged:
                self._record(model_id=_log_model(self.best, folder, outcome))
            splits = outcome["evaluations"][str(seed)]
            # With the run's start as time, values that an interrupted refit has sent already are equal to these.
            points = _metrics(splits, self.logged["model_id"] if first else None, run.info.start_time)
            self.client.log_batch(run_id, params=_params(self.best, outcome, seed, precision_of(folder)))
            for start in range(0, len(points), POINTS):
                self.client.log_batch(run_id, metrics=points[start : start + POINTS])
            for file in ("evaluation.json", "training.json", "exits.json", "README.md"):
                mlflow.log_artifact(str(folder / file))
            self._log_best()
            if splits:
                mlflow.log_figure(_figure(splits), "exit_curve.png")
        self._record(finished=[*self.logged["finished"], seed])

    def _log_best(self) -> None:
        """Log the best file, its validation logits and refit.json."""
        import mlflow

        path, values = self.best.path, without_places(load_yaml(self.best.path))
        values["found"]["digest"] = content_digest(values)
        mlflow.log_text(dump_yaml(values), f"best/{path.name}")
        if held_out := self.best.found.get("held_out"):
            mlflow.log_artifact(str(path.with_name(held_out["file"])), "best")
        mlflow.log_dict({**self.outcome, "best": path.name}, "refit.json")

    def _datasets(self) -> list[Any]:
        """Return the training split as an input of a run."""
        best = self.best
        facts = {"name": best.task_name, "digest": best.found["data_fingerprint"], "source": best.task_name}
        return datasets({**facts, "rows": best.found.get("rows", 0)})

    def _run(self, seed: int) -> str:
        """Return the id of the seed's run: the one begun earlier if MLflow still has it, else a new one."""
        from mlflow.entities import RunTag

        run_id = self.logged["runs"].get(str(seed))
        if run_id and self._exists(run_id):
            return str(run_id)
        if seed == self.outcome["registered_seed"]:
            self.logged.pop("model_id", None)
        outcome = self.outcome
        note = f"{self.best.path.name}, seed {seed}, on {outcome['trained_on']}. {outcome['picked']}"
        run = self.store.create_run(
            self.experiment_id,
            "",
            int(time.time() * 1000),
            [RunTag("mlflow.note.content", note)],
            self._free_name(seed),
        )
        self._record(runs={**self.logged["runs"], str(seed): run.info.run_id})
        return str(run.info.run_id)

    def _exists(self, run_id: str) -> bool:
        """Return whether MLflow has a run that is not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.store.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _free_name(self, seed: int) -> str:
        """Return a run name that no refit of this seed has in the experiment."""
        runs = self.client.search_runs([self.experiment_id], f"tags.kind = 'refit' AND tags.seed = '{seed}'")
        used = {run.info.run_name for run in runs}
        algorithm = self.best.config.training.algorithm
        numbered = (names.refit_run_name(self.best.task_name, algorithm, seed, n) for n in itertools.count(1))
        return next(name for name in numbered if name not in used)

    def _register(self) -> int:
        """Register the model, unless an interrupted refit has; describe the version and give it the alias."""
        import mlflow
        from mlflow.exceptions import MlflowException

        client, name, alias, model_id = self.client, self.to.name, self.to.alias, self.logged["model_id"]
        try:
            before = client.get_model_version_by_alias(name, alias).version
        except MlflowException as error:
            if not is_permanent(error):
                raise
            before = None
        source = f"models:/{model_id}"
        versions = client.search_model_versions(f"name = {quoted(name)}")
        version = next((v for v in versions if v.source == source or v.model_id == model_id), None)
        version = version or mlflow.register_model(source, name)
        _set_tags(
            lambda key, value: client.set_model_version_tag(name, version.version, key, value),
            {
                "sweep": str(self.best.found["sweep"]),
                "config": str(self.outcome["configuration"]),
                "seed": str(self.outcome["registered_seed"]),
                **_origin(self.outcome),
                **_figures_of_version(self.outcome),
            },
        )
        run_id = self.logged["runs"][str(self.outcome["registered_seed"])]
        text = (self.out / f"seed-{self.outcome['registered_seed']}" / "README.md").read_text(encoding="utf-8")
        description = version_description(text, run_id, self.experiment_id, self.outcome["picked"])
        client.update_model_version(name, version.version, description=description)
        client.set_registered_model_alias(name, alias, version.version)
        if before not in (None, version.version):
            log.info(f"{self.to.address} moves from version {before}, which is kept, to version {version.version}")
        return int(version.version)


def version_description(card: str, run_id: str, experiment_id: str, picked: str) -> str:
    """Return the description of a registered version: its charts, its card, and a link to its run.

    Args:
        card: The model's card, Markdown with a YAML front matter.
        run_id: Id of the run that logged the model.
        experiment_id: Id of that run's experiment.
        picked: How the model was chosen among those of other seeds, a sentence.

    Returns:
        Markdown within MLflow's limit; of a longer card the last sections are left out.
    """
    link = f"[run](#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning)"
    head = f"{picked}\n\n![Score against mean exit layer](get-artifact?path=exit_curve.png&run_uuid={run_id})"
    body = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).strip()
    # MLflow draws the columns of tables without a space between them.
    body = re.sub(r"^\|(?![-:| ]+$).*$", lambda row: row[0].replace(" |", "\u00a0\u00a0 |"), body, flags=re.MULTILINE)
    sections = [body] if not body else re.split(r"\n\n(?=## )", body)
    # What a reader of a registry asks for first.
    sections.sort(key=lambda section: 2 if section.startswith("## Use") else 1)
    foot = f"The model's card is `README.md` among the files of its {link}."
    while sections and len("\n\n".join([head, *sections, foot])) > MAX_DESCRIPTION:
        sections.pop()
    return "\n\n".join([head, *sections, foot])


def _figures_of_version(outcome: Mapping[str, Any]) -> dict[str, str]:
    """Return the registered model's scores beside the majority class, and its layer speed-ups, as tags."""
    tags = {}
    for split, evaluation in outcome["evaluations"][str(outcome["registered_seed"])].items():
        tags[f"{split}: score"] = f"{100 * evaluation['mean_over_exits']:.2f} %"
        if evaluation.get("majority"):
            tags[f"{split}: majority class"] = f"{100 * evaluation['majority']['score']:.2f} %"
        for point in evaluation["chosen"]:
            if point["criterion"] == outcome["criterion"]:
                tags[f"{split}: layer speed-up"] = f"{point['speed_up']:.2f}"
    if exported := outcome.get("exported"):
        tags["exported"] = exported["precision"]
        for split, evaluation in exported["splits"].items():
            own = evaluation["own"]
            tags[f"{split}: exported"] = f"{100 * own['measures']['score']:.2f} % {_speed_in_words(own)}"
    return tags


def _speed_in_words(point: Mapping[str, Any]) -> str:
    """The speed of an operating point: `at 2.01× layer speed-up, 3.2 ms`."""
    milliseconds = f", {point['milliseconds']:.3g} ms" if "milliseconds" in point else ""
    return f"at {point['speed_up']:.2f}× layer speed-up{milliseconds}"


def _set_tags(set_tag: Callable[[str, str], Any], tags: Mapping[str, str]) -> None:
    """Set tags one at a time, so that a tag that the server rejects does not affect the others."""
    from mlflow.exceptions import MlflowException

    for key, value in tags.items():
        try:
            set_tag(key, value)
        except MlflowException as error:
            if not is_permanent(error):
                raise
            log.warning(
                f"warning: MLflow rejected the tag {key!r}; the refit continues without it: {_error_text(error)}"
            )


def _error_text(error: Exception) -> str:
    """Return a rejection as one line without credentials."""
    return redact(" ".join(str(getattr(error, "message", error)).split()))[:300].rstrip(".")


def _log_model(best: BestFile, folder: Path, outcome: Mapping[str, Any]) -> str:
    """Log a folder of :func:`tune.models.shipping.shipped` as a model that `tune.models.serving` loads, without pickles.

    Returns:
        The model's id in MLflow.
    """
    import mlflow
    import pandas as pd

    columns = text_columns(best.config.task)
    root = Path(__file__).resolve().parent.parent.parent
    example = pd.DataFrame({c: [f"An example of {c}.", "It is raining."] for c in columns})
    info = mlflow.pyfunc.log_model(
        name=logged_name(best.task_name),
        loader_module="tune.models.serving",
        data_path=str(folder),
        # The code is logged with the model, so that a later version of this package does not change an old model.
        code_paths=[str(root / "leebert"), str(root / "tune")],
        signature=_signature(text_names(best.config.task)),
        input_example=example,
        pip_requirements=_requirements(
            EXPORTED_REQUIREMENTS if outcome.get("exported") else REQUIREMENTS, outcome.get("parts") or {}
        ),
        # Defaults that the caller may override when loading the model.
        model_config=(
            {"threads": 1} if outcome.get("exported") else {"device": "auto", "precision": precision_of(folder)}
        ),
        params={"strategy": outcome["criterion"], "configuration": outcome["configuration"]},
    )
    return str(info.model_id)


def _signature(columns: Sequence[Sequence[str]]) -> Any:
    """Make a model's signature.

    Where a column may have several names, each is optional, and the model reports a missing column.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec("string", name, required=len(names) == 1) for names in columns for name in names]),
        outputs=Schema([ColSpec(kind, name) for name, kind in PREDICTION.items()]),
        params=ParamSchema([ParamSpec(name, kind, default) for name, (kind, default, _) in PARAMETERS.items()]),
    )


def _requirements(required: Sequence[str], plugins: Mapping[str, str]) -> list[str]:
    """Pin the installed versions of packages, those of a model's plugins included.

    Versions have no local parts such as +cpu, which no registry has. Of a plugin that no package has, a warning names the
    module that the server needs.

    Args:
        required: The packages that every model needs.
        plugins: Origin by kind and name, as :func:`leebert.outside.origins` records them.
    """
    packages = dict.fromkeys(required)
    for key in filter(lambda key: key.startswith("exit criterion "), plugins):  # a served model needs no other kind
        origin = origin_of(key)
        if origin is not None and origin.distribution:
            packages[origin.distribution.split(" ")[0]] = None
        elif origin is not None:
            log.warning(
                f"warning: the registered model needs module {origin.module} for {key} where it is served: install it there "
                f"and name it in {VARIABLE}"
            )
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in packages]


def _origin(outcome: Mapping[str, Any]) -> dict[str, str]:
    return {"best_digest": outcome["best_digest"], "code": outcome["code"]}


def _tags(best: BestFile, outcome: Mapping[str, Any], seed: int) -> dict[str, str]:
    algorithm = best.config.training.algorithm
    return {
        "sweep": str(best.found["sweep"]),
        "task": best.task_name,
        "kind": "refit",
        "algorithm": algorithm,
        "approach": labels.algorithm_label(algorithm),
        "config": str(best.found["configuration"]),
        "seed": str(seed),
        **_origin(outcome),
        **source_tags({"name": "leebert-tune refit", "commit": git_commit()}),
        "mlflow.runColor": labels.algorithm_colour(algorithm) or "#8c8c8c",
    }


def precision_of(folder: Path) -> str:
    """Return the precision in which a saved model was trained and is served."""
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["precision"])


def _params(best: BestFile, outcome: Mapping[str, Any], seed: int, precision: str) -> list[Any]:
    """Return the options of a seed's training as params of its run, including the model's settings.

    MLflow copies a model's settings to its run and allows no param to change.
    """
    from mlflow.entities import Param

    values = {
        **best.config.training.model_dump(mode="json"),
        "seed": seed,
        "precision": precision,
        "theta_updates": outcome["theta_updates"],
        "exit_strategy": outcome["criterion"],
        "exit_threshold": outcome["chosen"][outcome["criterion"]]["threshold"],
        "exit_patience": outcome["chosen"][outcome["criterion"]]["patience"],
    }
    return [Param(key, str(value)) for key, value in values.items()]


def _metrics(splits: Mapping[str, Any], model_id: str | None, at_ms: int) -> list[Any]:
    """Return the metrics of a seed's run.

    The score of each exit has the exit's number as step; the curves of an exit criterion have the threshold's position;
    the operating points have step 0.
    """
    from mlflow.entities import Metric

    points: list[tuple[str, float, int]] = []
    for split, evaluation in splits.items():
        on = f"on_{split}"
        points += [(f"{on}/score", score, layer) for layer, score in enumerate(evaluation["exits"]["score"], start=1)]
        points.append((f"{on}/score_mean", evaluation["mean_over_exits"], 0))
        if evaluation.get("majority"):
            points.append((f"{on}/majority", evaluation["majority"]["score"], 0))
        for criterion, curve in evaluation["curves"].items():
            for step, point in enumerate(curve, start=1):
                points.append((f"{on}/{criterion}_layers", point["layers"], step))
                points.append((f"{on}/{criterion}_score", point["measures"]["score"], step))
        points += [(f"{on}/{p['criterion']}_speed_up", p["speed_up"], 0) for p in evaluation["chosen"]]
        points += [(f"{on}/{t['criterion']}_ms", t["milliseconds"], 0) for t in evaluation.get("wall_clock", ())]
    return [Metric(key, value, at_ms, step, model_id=model_id) for key, value, step in points]


def _figure(splits: Mapping[str, Any]) -> Any:
    """Draw score against mean exit layer: every exit for all samples, and each exit criterion over its thresholds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(splits), 4.8), layout="constrained")
    for axes, (split, evaluation) in zip(
        figure.subplots(1, len(splits), squeeze=False)[0], splits.items(), strict=True
    ):
        scores = evaluation["exits"]["score"]
        axes.plot(
            range(1, len(scores) + 1),
            [100 * s for s in scores],
            "o--",
            color="#555555",
            label="one exit for all samples",
        )
        for criterion, curve in evaluation["curves"].items():
            row = CRITERIA.find(criterion)
            layers, score = [p["layers"] for p in curve], [100 * p["measures"]["score"] for p in curve]
            axes.plot(layers, score, ".-", label=row.shown if row else criterion, color=row.colour if row else None)
        majority = evaluation.get("majority")
        title = f"{split} (majority class {100 * majority['score']:.2f})" if majority else split
        axes.set(title=title, xlabel="mean exit layer", ylabel="score (%)")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)
    return figure


@contextlib.contextmanager
def _tracking(uri: str) -> Iterator[None]:
    """Set MLflow's global address, without credentials, within the context; send its messages to stderr."""
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    address, credentials = without_credentials(uri)
    # MLflow passes the address to child processes by the environment, and would not restore the variable.
    # The links that MLflow prints lead to its page for language-model applications; the refit prints its own.
    quiet = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
    before = {key: os.environ.get(key) for key in ("MLFLOW_TRACKING_URI", *credentials, *quiet)}
    os.environ.update(credentials | quiet)
    try:
        with _use_tracking_uri(address), warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")  # MLflow warns of its own type hints and deprecations
            yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
