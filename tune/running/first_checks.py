"""Checks of a sweep's options that need neither torch nor Ray nor MLflow: a wrong path or address fails within a second."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from leebert.errors import SweepError, TrackingError
from leebert.files import check_writable
from leebert.training_data import check_files, effective_task
from tune.space import SweepSpec, load_space
from tune.space.spec import anchored, data_config
from tune.store.folder import SweepFolder, spec_of, storage_root
from tune.tracking.server import is_server, redact

#: Seconds to wait for a server to accept a connection; a slower one is checked later, with more patience.
SECONDS = 1.0


def check_first(spec: SweepSpec, *, name: str | None = None, address: str | None = None) -> None:
    """Check name, storage, backbone, data and addresses of a sweep, as far as that takes no time.

    Args:
        spec: The search space.
        name: The name of a new sweep; None: not checked.
        address: The Ray cluster; None for this machine.

    Raises:
        LeebertError: The message names the option, its value and what to do.
    """
    storage = storage_root(spec.storage)
    if name is not None:
        SweepFolder.refuse_taken(storage, name)
    data = data_config(spec)
    check_files(effective_task(spec.task, data.group_by), data, spec.model)
    check_writable(storage, "--storage")
    check_addresses(spec.tracking.uri, address)


def check_resumed(
    folder: SweepFolder, space: Path | None, overrides: Sequence[str], address: str | None = None
) -> None:
    """Check a sweep that is to be resumed, as :func:`check_first` does; where it says nothing new, its old place of data counts.

    Args:
        folder: The sweep's folder.
        space: A space with more configurations or seeds; None: its own.
        overrides: `key=value` assignments to the space.
        address: The Ray cluster; None for this machine.

    Raises:
        LeebertError: As :func:`check_first`, or the space is wrong.
    """
    storage = json.dumps(str(folder.path.parent))
    file = space or folder.path / "space.yaml"
    if space is None and not file.exists():
        return  # a damaged folder, which `resume` reports
    old = spec_of(folder)  # a missing package is one error, before all values that it would know
    spec = anchored(load_space(file, [*overrides, f"storage={storage}"]))
    if spec.data.dir is None:
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"dir": old.data.dir})})
    check_first(spec, address=address)


def check_addresses(tracking_uri: str | None, address: str | None) -> None:
    """Check that MLflow's server and the Ray cluster do not refuse connections.

    Args:
        tracking_uri: MLflow's address; None for MLFLOW_TRACKING_URI.
        address: The Ray cluster's address; None for RAY_ADDRESS.

    Raises:
        TrackingError: Nothing listens at MLflow's address.
        SweepError: Nothing listens at the cluster's address.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    direct = "http" not in (proxies := urllib.request.getproxies()) and "https" not in proxies
    if direct and is_server(uri) and (reason := _refusal(uri)):
        raise TrackingError(
            f"MLflow can't be used at {redact(uri)}: {reason}. Start one with mlflow/serve.sh, or give another address by "
            "--tracking-uri or MLFLOW_TRACKING_URI."
        )
    cluster = address or os.environ.get("RAY_ADDRESS") or ""
    if ":" in cluster and "://" not in cluster and (reason := _refusal(f"tcp://{cluster}")):
        raise SweepError(
            f"--address {cluster}: no Ray cluster responds at this address ({reason}); check it, or start one with ray start"
        )


def _refusal(address: str) -> str:
    """Return why a host certainly accepts no connection; empty if it does, or may."""
    with contextlib.suppress(TimeoutError, ValueError):  # slow, or an address that only its library understands
        parts = urllib.parse.urlsplit(address)
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
        try:
            socket.create_connection((parts.hostname or "", port), SECONDS).close()
        except ConnectionRefusedError:
            return "connection refused"
        except socket.gaierror as error:
            if error.errno != socket.EAI_NONAME:  # such as EAI_AGAIN: the name server does not respond now
                return ""
            return f"the host {parts.hostname!r} is unknown ({error.strerror})"
        except OSError:
            return ""
    return ""
