"""Where the served model comes from: an exported folder, or a model of MLflow that holds one."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from leebert.errors import ConfigError, TrackingError
from leebert.exported.manifest import MANIFEST, is_exported

#: Beginnings of MLflow's addresses of models.
ADDRESSES = ("models:/", "runs:/")


@contextlib.contextmanager
def exported_folder(source: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """Provide the folder of an exported model, while the context is open.

    Args:
        source: A folder, or an address such as ``models:/leebert-mrpc@champion``, which is downloaded.
        tracking_uri: MLflow's address; None: MLFLOW_TRACKING_URI, else ./mlflow.db.

    Raises:
        ConfigError: The folder or model does not exist, or is not exported.
        TrackingError: MLflow can't be used.
    """
    if not source.startswith(ADDRESSES):
        yield _of_folder(Path(source).expanduser())
        return
    with tempfile.TemporaryDirectory(prefix="leebert-serve-") as place:
        yield _of_mlflow(source, tracking_uri, Path(place))


def _of_folder(folder: Path) -> Path:
    if is_exported(folder):
        return folder
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give a folder that `leebert export` wrote, or models:/NAME@ALIAS")
    quoted = shlex.quote(str(folder))
    raise ConfigError(
        f"{folder} is not exported (no {MANIFEST}); export it first: "
        f"leebert export {quoted} --to onnx --int8 --out {quoted}-exported"
    )


def _of_mlflow(source: str, tracking_uri: str | None, place: Path) -> Path:
    """Download a model of MLflow, and return the exported folder in it."""
    import mlflow
    from mlflow.exceptions import MlflowException

    from tune.tracking.server import advice, resolve_uri

    uri = resolve_uri(tracking_uri)
    try:
        # `registry_uri` as well: aliases are resolved there.
        model = Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=source, dst_path=str(place), tracking_uri=uri, registry_uri=uri
            )
        )
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise ConfigError(f"{source}: {error.message}") from None
        raise TrackingError(advice(uri, error)) from None
    except (OSError, ValueError) as error:
        raise TrackingError(advice(uri, error)) from None
    exported = sorted(path.parent for path in model.rglob(MANIFEST) if is_exported(path.parent))
    if not exported:
        saved = next((path.parent.relative_to(model) for path in sorted(model.rglob("config.json"))), Path())
        raise ConfigError(
            f"{source} is not exported (no {MANIFEST}); download and export it first: "
            f"mlflow artifacts download --artifact-uri {shlex.quote(source)} --dst-path model && "
            f"leebert export {shlex.quote(str(Path('model') / saved))} --to onnx --int8 --out exported"
        )
    return exported[0]
