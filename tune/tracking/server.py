"""Access to MLflow: its address, shown without secrets, and a store whose calls are one request each.

MLflow's own client repeats a failed request seven times, for minutes, and repeats `runs/create` too, which creates two runs
instead of one. The store made here tries once and raises; `tune.tracking.tracker`, which tracks what has been written,
decides whether and when to retry.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import re
import secrets
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import TrackingError

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0

#: The timeout of requests for which a user is waiting.
WAITED_FOR_SECONDS = 5.0

_KINDS = {"sweep": "run", "config": "configurations"}

# Answers to a request that is itself wrong, so that sending it again cannot help.
_PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "MALFORMED_REQUEST",
    "INVALID_STATE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
}

# The fields of MLflow's answer to a successful request. To others (log-batch, delete) it answers "{}" in any case.
_REQUIRED_FIELDS = {
    "CreateExperiment": ("experiment_id",),
    "GetExperiment": ("experiment", "experiment_id"),
    "GetExperimentByName": ("experiment", "experiment_id"),
    "CreateRun": ("run", "info", "run_id"),
    "UpdateRun": ("run_info", "run_id"),
}
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"

# Client errors after which the same request may succeed: an expired token, a slow or early request, a busy server.
_TEMPORARY_STATUS = frozenset({401, 408, 425, 429})
_USERINFO = re.compile(r"(\w[\w+.-]*://)[^/\s]*@")
_SECRET_QUERY = re.compile(r"([?&](?:password|passwd|pwd|token|sslpassword|access_token)=)[^&\s]*", re.IGNORECASE)


class ForeignAnswer(Exception):
    """An answer that is not MLflow's: a proxy's page, or an object without the fields that MLflow always returns.

    MLflow may not have received the request, so it is worth sending again. `error_code` is MLflow's name for the answer's
    HTTP status.
    """

    def __init__(self, message: str, error_code: str | None = None) -> None:
        super().__init__(message)
        self.error_code = error_code


class FilesRefused(Exception):
    """A server that accepts no files of runs."""


def resolve_uri(option: str | None = None) -> str:
    """Return the option, else MLFLOW_TRACKING_URI, else MLflow's own default in the working folder."""
    if uri := option or os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    import mlflow

    return str(mlflow.get_tracking_uri())


def redact(text: str) -> str:
    """Remove user names, passwords and tokens from a URI, or from a text with URIs.

    The password and token in the environment are also removed wherever they occur.
    """
    text = _SECRET_QUERY.sub(r"\1***", _USERINFO.sub(r"\1", text))
    for variable in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        if secret := os.environ.get(variable):
            text = text.replace(secret, "***")
    return text


def is_server(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


def experiment_url(uri: str, experiment_id: str, sweep: str | None = None) -> str | None:
    """Return the page that compares configurations in charts; None without a server.

    Without `workflowType` MLflow would open its page for language-model applications.

    Args:
        uri: MLflow's address.
        experiment_id: Id of the experiment.
        sweep: Name of the sweep; None: all sweeps of the experiment.
    """
    if not is_server(uri):
        return None
    search = "tags.kind = 'config'" + (f" AND tags.sweep = {quoted(sweep)}" if sweep else "")
    query = f"searchFilter={urllib.parse.quote(search)}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"{redact(uri).rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def quoted(text: str) -> str:
    """Quote a value for MLflow's search language, which has two kinds of quotes and no escapes."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def open_store(uri: str, connect_seconds: float = CONNECT_SECONDS, read_seconds: float = READ_SECONDS) -> Any:
    """Open MLflow's low-level store; a missing SQLite database is created, once.

    Args:
        uri: MLflow's address.
        connect_seconds: Longest time to connect to a server.
        read_seconds: Longest time to wait for its response.

    Returns:
        The store.
    """
    if is_server(uri):
        return _one_request_store(uri, (connect_seconds, read_seconds))
    from mlflow.tracking._tracking_service.utils import _get_store

    # MLflow's own search uses what SQLAlchemy 2.1 calls deprecated; under -W error no run would ever be found.
    warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=DeprecationWarning)
    # MLflow logs a traceback for errors that it also raises; they are reported in a line.
    for name in ("mlflow.store.db.utils", "sqlalchemy.pool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _only_one_creates(uri):
        file = _database_file(uri)
        if file is not None and (not file.exists() or not file.stat().st_size):
            _create_database(uri, file)
        return _get_store(uri)


def _create_database(uri: str, file: Path) -> None:
    """Create MLflow's tables in a new SQLite file, atomically.

    MLflow creates them in dozens of steps and rejects a file that was interrupted in between, as on a full disk.
    """
    from mlflow.tracking._tracking_service.utils import _get_store

    draft = file.with_name(f".{file.name}-{secrets.token_hex(4)}")  # a unique name, since MLflow caches stores by name
    _, question, options = uri.partition("?")
    try:
        _get_store(f"sqlite:///{urllib.parse.quote(str(draft))}{question}{options}").engine.dispose()
        os.replace(draft, file)
    finally:
        for path in (draft, draft.with_name(f"{draft.name}-journal")):
            path.unlink(missing_ok=True)


def ensure_experiment(store: Any, name: str) -> str:
    """Return the id of an experiment, creating a missing one; two sweeps may do so at the same time.

    Args:
        store: MLflow's store.
        name: Name of the experiment.

    Raises:
        TrackingError: The experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    existing = store.get_experiment_by_name(name)
    if existing is None:
        try:
            return str(store.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            existing = store.get_experiment_by_name(name)
    if existing.lifecycle_stage == "deleted":
        raise TrackingError(
            f"MLflow experiment {name!r} was deleted: restore it (`mlflow experiments restore "
            f"--experiment-id {existing.experiment_id}`), or choose another name."
        )
    return str(existing.experiment_id)


def existing_run(uri: str, experiment: str, sweep: str, kind: str, *, command: str) -> tuple[Any, Any]:
    """Return a store and the info of one run of this kind of a sweep; creates nothing.

    Args:
        uri: MLflow's address.
        experiment: The experiment's name.
        sweep: The sweep's name.
        kind: The kind of run.
        command: The command that fills MLflow, for the error message.

    Raises:
        TrackingError: If MLflow has no such run.
    """
    from mlflow.entities import ViewType

    file = _database_file(uri)
    if file is not None and not file.exists():
        raise TrackingError(f"no database {file.resolve()}; fill it by: {command}, or name the server that has {sweep}")
    store = open_store(uri, WAITED_FOR_SECONDS, WAITED_FOR_SECONDS)
    existing = store.get_experiment_by_name(experiment)
    filter_string = f"tags.sweep = {quoted(sweep)} AND tags.kind = '{kind}'"
    runs = store.search_runs([existing.experiment_id], filter_string, ViewType.ACTIVE_ONLY, 1) if existing else []
    if not runs:
        raise TrackingError(
            f"MLflow at {redact(uri)} has no {_KINDS[kind]} of sweep {sweep} in experiment {experiment!r}; "
            f"fill it by: {command}, or name the server that has {sweep}"
        )
    return store, runs[0].info


@contextlib.contextmanager
def readable_errors(uri: str) -> Iterator[None]:
    """Convert every exception at an address to a TrackingError with advice."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        # No cause is chained: it might hold secrets, which only the message is free of.
        raise TrackingError(advice(uri, error)) from None


def server_version(uri: str) -> str:
    """Return the server's version; empty if unknown."""
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(
            _credentials(uri)(_address(uri)), "/version", "GET", max_retries=0, timeout=CONNECT_SECONDS
        )
        match = re.fullmatch(r"\s*(\d+\.\d+[\w.]*)\s*", answer.text[:100])
    except Exception:
        return ""  # the version is optional for every caller
    return match.group(1) if match and answer.status_code == 200 else ""


def is_permanent(error: Exception) -> bool:
    """Return whether sending the same request again cannot help; a server that is down or busy may answer later."""
    if isinstance(error, json.JSONDecodeError | ForeignAnswer):
        return False  # a proxy's answer: the server behind it is down
    if _disk_is_full(error):
        return False
    if "QueuePool limit" in str(error):
        return False  # MLflow answers BAD_REQUEST when its pool of database connections is exhausted
    wrong = isinstance(error, TypeError | ValueError | LookupError | AttributeError)
    return wrong or getattr(error, "error_code", None) in _PERMANENT


def advice(uri: str, error: Exception) -> str:
    """Return what went wrong at an address and what to do about it, without secrets."""
    reason = redact(" ".join(str(error).split()))
    file = _database_file(uri)
    if file is not None and _disk_is_full(error):
        reason = f"the disk that holds {file.absolute()} is full{_free(file)}"
        todo = "Free some space there, or give another address by --tracking-uri or MLFLOW_TRACKING_URI."
    elif not is_server(uri):
        todo = "Give a server's address, or sqlite:///FILE, by --tracking-uri or MLFLOW_TRACKING_URI."
    elif "Invalid Host header" in reason:
        todo = "The server runs, but not for this host name: start it with --allowed-hosts (see mlflow/README.md)."
    elif getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"):
        todo = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
    else:
        todo = "Start one with mlflow/serve.sh, or give another address by --tracking-uri or MLFLOW_TRACKING_URI."
    return f"MLflow can't be used at {redact(uri)}: {reason[:300]}. {todo}"


def _disk_is_full(error: Exception) -> bool:
    """Return whether SQLite or the system ran out of disk space."""
    return "database or disk is full" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def _free(file: Path) -> str:
    """Return the free space on a file's disk, in brackets; empty if unknown."""
    try:
        disk = os.statvfs(file.parent)
    except OSError:
        return ""
    return f" ({disk.f_bavail * disk.f_frsize / 1e6:.1f} MB of {disk.f_blocks * disk.f_frsize / 1e6:.0f} MB are free)"


def _one_request_store(uri: str, timeout: tuple[float, float]) -> Any:
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.utils.rest_utils import http_request

    class OneRequestStore(RestStore):
        """MLflow's REST store with one request per call: no hidden retries, and short timeouts."""

        def _call_endpoint(self, api: Any, json_body: str | None = None, *args: Any, **kwargs: Any) -> Any:
            self._validate_workspace_support_if_specified()
            endpoint, method = self._METHOD_TO_INFO[api]
            body = None if json_body is None else json.loads(json_body)
            response = http_request(
                self.get_host_creds(),
                endpoint,
                method,
                max_retries=0,
                raise_on_status=False,
                timeout=timeout,
                **{"params" if method == "GET" else "json": body},
            )
            return _answer(api, endpoint, response)

        def points_of(self, run_ids: Sequence[str], metric: str, most: int) -> list[dict[str, Any]] | None:
            """Read a metric's points in many runs by the endpoint of MLflow's own pages; None if unavailable."""
            endpoint = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
            response = http_request(
                self.get_host_creds(),
                endpoint,
                "GET",
                max_retries=0,
                raise_on_status=False,
                timeout=timeout,
                params=[*(("run_id", run_id) for run_id in run_ids), ("metric_key", metric), ("max_results", most)],
            )
            return _points(endpoint, response)

        def put_file(self, artifact_uri: str, name: str, data: bytes) -> None:
            """Write a file of a run through the server. Raises FilesRefused, or ForeignAnswer for a temporary error."""
            path = urllib.parse.quote(f"{_artifact_path(artifact_uri)}/{name}")
            _file_request(self.get_host_creds(), f"{_ARTIFACTS}/{path}", "PUT", timeout=timeout, data=data)

        def files_of(self, artifact_uri: str, folder: str) -> list[str]:
            """Return the names of the files in a folder of a run's files; raises as `put_file`."""
            params = {"path": f"{_artifact_path(artifact_uri)}/{folder}"}
            return _names(_file_request(self.get_host_creds(), _ARTIFACTS, "GET", timeout=timeout, params=params))

    return OneRequestStore(functools.partial(_credentials(uri), _address(uri)))


def _artifact_path(artifact_uri: str) -> str:
    return urllib.parse.urlsplit(artifact_uri).path.strip("/")


def _file_request(credentials: Any, endpoint: str, method: str, **more: Any) -> Any:
    """Send one request for files. Raises FilesRefused for a server that has none, ForeignAnswer for temporary errors."""
    from mlflow.utils.rest_utils import http_request

    response = http_request(credentials, endpoint, method, max_retries=0, raise_on_status=False, **more)
    if response.status_code == 200:
        return response
    reason = f"{response.status_code}: {response.text[:200]!r}"
    if _refuses_files(response.status_code):
        raise FilesRefused(reason)
    raise ForeignAnswer(reason, "UNAUTHENTICATED" if response.status_code == 401 else None)


def _refuses_files(status: int) -> bool:
    return (400 <= status < 500 and status not in _TEMPORARY_STATUS) or status == 501


def _names(response: Any) -> list[str]:
    try:
        return [str(file["path"]) for file in json.loads(response.text).get("files", ())]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ForeignAnswer(f"{_ARTIFACTS} responded with {response.text[:200]!r}") from None


def is_refusal(error: Exception) -> bool:
    """Return whether a run's files cannot be written, however often this is tried."""
    from requests import exceptions

    if isinstance(error, FilesRefused | ImportError):
        return True
    if isinstance(error, ForeignAnswer) or _disk_is_full(error):
        return False
    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        return _refuses_files(error.response.status_code)
    # Errors of a connection are OSErrors too, and temporary, in the middle of an answer as well.
    return is_permanent(error) or (isinstance(error, OSError) and not isinstance(error, exceptions.RequestException))


def _answer(api: Any, endpoint: str, response: Any) -> Any:
    """Parse MLflow's answer to a request. Raises ForeignAnswer for one that is not MLflow's, else MLflow's own error."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.proto_json_utils import parse_dict
    from mlflow.utils.rest_utils import verify_rest_response

    try:
        body = json.loads(response.text)
    except ValueError:
        body = None
    from_mlflow = isinstance(body, dict) and (response.status_code == 200 or isinstance(body.get("error_code"), str))
    try:
        verify_rest_response(response, endpoint)
    except MlflowException as error:
        if from_mlflow:
            raise
        raise ForeignAnswer(str(error), error.error_code) from None
    if not isinstance(body, dict):
        raise ForeignAnswer(f"{endpoint}: the response is not a JSON object: {response.text[:200]!r}")
    answer = api.Response()
    try:
        parse_dict(js_dict=body, message=answer)
    except Exception as error:  # protobuf raises its own error and several of Python's
        raise ForeignAnswer(f"{endpoint} responded with {response.text[:200]!r}: {error}") from None
    value: Any = answer
    for part in _REQUIRED_FIELDS.get(api.DESCRIPTOR.name, ()):
        value = getattr(value, part)
    if value == "":
        raise ForeignAnswer(
            f"{endpoint} responded with {response.text[:200]!r}, without the fields of MLflow's response"
        )
    return answer


def _points(endpoint: str, response: Any) -> list[dict[str, Any]] | None:
    from mlflow.utils.rest_utils import verify_rest_response

    if response.status_code in (403, 404, 405, 501):
        return None
    verify_rest_response(response, endpoint)
    try:
        return list(json.loads(response.text)["metrics"])
    except (ValueError, LookupError, TypeError):  # MLflow always returns the list, even if empty
        raise ForeignAnswer(f"{endpoint} responded with {response.text[:200]!r}") from None


def without_credentials(uri: str) -> tuple[str, dict[str, str]]:
    """Split a server's address and its credentials, as the environment variables that MLflow's own client reads.

    MLflow prints the address that it is given.
    """
    parts = urllib.parse.urlsplit(uri)
    if not is_server(uri) or parts.username is None:
        return uri, {}
    return _address(uri), {
        "MLFLOW_TRACKING_USERNAME": urllib.parse.unquote(parts.username),
        "MLFLOW_TRACKING_PASSWORD": urllib.parse.unquote(parts.password or ""),
    }


def _address(uri: str) -> str:
    """Return the URI without its credentials: MLflow's error messages quote the address."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _credentials(uri: str) -> Callable[[str], Any]:
    """Return a function that makes credentials for an address: those of the URI, else of the environment."""
    from mlflow.utils.credentials import get_default_host_creds

    parts = urllib.parse.urlsplit(uri)

    def credentials(address: str) -> Any:
        creds = get_default_host_creds(address)
        if parts.username is not None:
            creds.username = urllib.parse.unquote(parts.username)
            creds.password = urllib.parse.unquote(parts.password or "")
        return creds

    return credentials


@contextlib.contextmanager
def _only_one_creates(uri: str) -> Iterator[None]:
    """Lock the folder of an SQLite file: two processes that create its tables at once would break each other."""
    file = _database_file(uri)
    if file is None:
        yield
        return
    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _database_file(uri: str) -> Path | None:
    """Return the file of an SQLite address."""
    path = uri.removeprefix("sqlite:///").split("?")[0]
    return None if path in (uri, ":memory:") or path.startswith("file:") else Path(urllib.parse.unquote(path))
