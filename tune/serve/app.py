"""The server: its front in this process, its replicas on Ray Serve."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import math
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import ConfigError, LeebertError
from leebert.exported.manifest import Exits, Manifest
from tune.serve.control import OperatingPoint, Target
from tune.serve.front import Front
from tune.serve.model import operating_points, require_texts
from tune.serve.replica import DRAIN_S, Replica, ReplicaOptions, replicas_needed
from tune.serve.requests import Limits

log = logging.getLogger(__name__)

#: Prefix of the application's name, and the deployment's name, in Ray Serve.
APPLICATION, DEPLOYMENT = "leebert", "model"

#: Seconds for which the load must ask for more replicas, or for fewer, before their number changes.
UPSCALE_S, DOWNSCALE_S = 5.0, 60.0

#: Files that the server has open beside the connections of clients.
SPARE_FILES = 256

#: Pending connections of the listening sockets.
BACKLOG = 4096


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """Options of the command `leebert-tune serve`.

    Attributes:
        folder: The exported model.
        host: Address to listen on.
        port: Port; 0: any free one.
        exits: The exit criterion of requests that choose none; None: the model's own.
        target: The aim of load control; None: that threshold, whatever the load.
        replicas: Number of replicas, or the smallest if `max_replicas` is larger.
        max_replicas: Largest number of replicas; None: as many as `replicas`.
        threads: Threads of ONNX Runtime per replica.
        limits: Limits.
        address: Ray cluster; None: Ray is started on this machine.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8000
    exits: Exits | None = None
    target: Target | None = None
    replicas: int = 1
    max_replicas: int | None = None
    threads: int = 1
    limits: Limits = dataclasses.field(default_factory=Limits)
    address: str | None = None


def describe(manifest: Manifest, own: Exits, points: Sequence[OperatingPoint], target: Target | None) -> str:
    """Say in one line what a server does.

    Args:
        manifest: The model.
        own: The server's exit criterion.
        points: The points of load control.
        target: Its aim.

    Returns:
        Model, target, floor and curve.
    """
    model = f"{manifest.name} ({manifest.task}, {manifest.precision}), exit criterion {own.criterion}"
    if target is None:
        threshold = own.threshold
        return model + (f", threshold {threshold:g}" if threshold is not None else "") + ", whatever the load"
    first, last = points[0], points[-1]
    return (
        f"{model}; target p99 {target.p99_ms:g} ms, floor {target.max_loss:g} points below the full model; "
        f"{len(points)} operating points from {first.milliseconds:.1f} ms ({100 * first.score:.1f}) to "
        f"{last.milliseconds:.1f} ms ({100 * last.score:.1f})"
    )


def serve_model(options: ServerOptions, manifest: Manifest, say: Callable[[str], None] = print) -> int:
    """Serve a model until a signal comes.

    Args:
        options: The options.
        manifest: That of the model, which was loaded once to check it.
        say: Called with a line when the server is ready.

    Returns:
        The signal.

    Raises:
        ConfigError: The model lacks what is asked for, or the address is in use.
        ServeError: Ray Serve can't start the replicas.
    """
    require_texts(manifest)
    target, own = options.target, options.exits or manifest.exits
    points = operating_points(manifest, own, target.max_loss if target else None)
    if target is not None:
        _warn_of_target(manifest, target)
    public = listening_socket(options.host, options.port)
    connections = possible_connections(options.limits.connections)
    options = dataclasses.replace(options, limits=dataclasses.replace(options.limits, connections=connections))
    import uvloop

    about = {
        "name": manifest.name, "task": manifest.task, "labels": manifest.labels, "text_columns": manifest.text_columns,
        "precision": manifest.precision, "exits": dataclasses.asdict(own),
        "target": target and dataclasses.asdict(target), "points": [_without_nan(dataclasses.asdict(point)) for point in points],
    }  # fmt: skip
    address = f"http://{options.host}:{public.getsockname()[1]}"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        ready = functools.partial(say, f"serving {describe(manifest, own, points, target)} on {address}")
        return runner.run(_Server(options, public, about).run(ready))


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN, which JSON lacks, by None."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _warn_of_target(manifest: Manifest, target: Target) -> None:
    """Warn of a target that a single text can miss."""
    full = sum(manifest.timing.segments) if manifest.timing else 0.0
    if full > target.p99_ms:
        log.warning(
            "a text that passes all layers takes %.1f ms on average: the target of %g ms can be missed at any load",
            full, target.p99_ms,
        )  # fmt: skip


def possible_connections(wanted: int) -> int:
    """Raise the limit of open files of this process as far as it may for connections.

    Args:
        wanted: Number of connections.

    Returns:
        The number for which the limit leaves files.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    needed = wanted + SPARE_FILES
    if soft == unlimited or soft >= needed:
        return wanted
    allowed = needed if hard == unlimited else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):
        allowed = soft
    if allowed < needed:
        log.warning(
            "this machine allows %d open files (ulimit -n): at most %d connections", allowed, allowed - SPARE_FILES
        )
    return min(wanted, max(1, allowed - SPARE_FILES))


def listening_socket(host: str, port: int) -> socket.socket:
    """Open a socket for clients.

    asyncio and uvicorn would not turn Nagle's algorithm off on sockets whose protocol is 0, which costs 40 ms per request.

    Args:
        host: Address.
        port: Port; 0: any free one.

    Raises:
        ConfigError: The address is in use or none of this machine.
    """
    sock = None
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol or socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(place)
        sock.listen(BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        if sock is not None:
            sock.close()
        raise ConfigError(f"can't listen on {host}:{port}: {error}; give another --host or --port") from None
    sock.setblocking(False)
    return sock


class _Server:
    """The front's event loop, with Ray Serve started and stopped in threads."""

    def __init__(self, options: ServerOptions, public: socket.socket, about: dict[str, Any]) -> None:
        self.options, self._public = options, public
        self._token = secrets.token_hex(16)
        self.front = Front(options.limits, self._token, about)
        self._signal = 0
        self._stop = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> int:
        """Serve until a signal comes; returns it."""
        import uvicorn

        loop = asyncio.get_running_loop()
        own = "127.0.0.1" if self.options.address is None else _own_address()
        inner = await loop.create_server(self.front.accept, own, 0)
        port = inner.sockets[0].getsockname()[1]
        config = uvicorn.Config(
            self.front, loop="uvloop", http="httptools", ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, date_header=False, backlog=BACKLOG, timeout_graceful_shutdown=int(DRAIN_S),
        )  # fmt: skip
        http = _http_server(config)
        self.front.connections = lambda: len(http.server_state.connections)
        serving = asyncio.ensure_future(http.serve(sockets=[self._public]))
        self._catch_signals()
        options = self.options
        replica = ReplicaOptions(
            str(options.folder.resolve()), options.threads, options.exits, options.target, options.limits, own, port,
            self._token,
        )  # fmt: skip
        ray_thread = _RayThread(options, replica)
        try:
            await self._until_stopped(ray_thread, ready)
        finally:
            self.front.draining = True
            http.should_exit = True
            with contextlib.suppress(Exception):
                await asyncio.wait_for(serving, DRAIN_S + 5)
            await loop.run_in_executor(None, ray_thread.stop)
            inner.close()
        return self._signal

    async def _until_stopped(self, ray_thread: _RayThread, ready: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        stopped = asyncio.ensure_future(self._stop.wait())
        starting = loop.run_in_executor(None, ray_thread.start)
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            self._catch_signals()  # Ray sets its own handlers
            await _while_not(lambda: self.front.ready or self._stop.is_set())
            if not self._stop.is_set():
                ready()
        await stopped
        ray_thread.cancelled = True
        with contextlib.suppress(Exception):
            await starting

    def _catch_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._caught, number)

    def _caught(self, number: int) -> None:
        if not self._stop.is_set():
            log.info("%s: no new requests; open ones are answered", signal.Signals(number).name)
        self._signal = number
        self.front.draining = True
        self._stop.set()


async def _while_not(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.05)


def _own_address() -> str:
    """This machine's address in the cluster."""
    import ray

    return str(ray.util.get_node_ip_address())


def _http_server(config: Any) -> Any:
    import uvicorn

    class Http(uvicorn.Server):
        """uvicorn's server, whose signals this program handles itself."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leave signals alone."""
            yield

    return Http(config)


def _logs() -> str:
    import ray

    with contextlib.suppress(Exception):
        return str(Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve")
    return "the logs of Ray"


class ServeError(LeebertError):
    """Ray Serve failed."""


class _RayThread:
    """Starts Ray and the replicas, and stops them; called from threads, since both block."""

    def __init__(self, options: ServerOptions, replica: ReplicaOptions) -> None:
        self._options, self._replica = options, replica
        self._started = False
        self._name = f"{APPLICATION}-{secrets.token_hex(4)}"  # a cluster may have several servers
        #: Set when a signal has come: Ray Serve need not start any more.
        self.cancelled = False

    def start(self) -> None:
        """Start Ray, unless there is a cluster, and the application; returns when its replicas have loaded the model."""
        from ray import serve

        _start_ray(self._options)
        self._started = True
        if self.cancelled:
            return
        serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False, "log_level": "WARNING"})
        try:
            serve.run(_application(self._options, self._replica), name=self._name, route_prefix=None)
        except RuntimeError as error:
            raise ServeError(f"Ray Serve could not start the replicas: {error}; its logs are in {_logs()}") from None

    def stop(self) -> None:
        """Stop the application, and Ray if it was started here."""
        if not self._started:
            return
        import ray
        from ray import serve

        # Not `serve.shutdown`: it kills Ray Serve's controller while that ends, and Ray prints a line of it.
        with contextlib.suppress(Exception):
            serve.delete(self._name)
        ray.shutdown()


def _start_ray(options: ServerOptions) -> None:
    import ray

    for name in ("ray", "ray.serve"):  # the server says itself what matters
        logging.getLogger(name).setLevel(logging.ERROR)

    if options.address is not None:
        ray.init(address=options.address, logging_level="ERROR", log_to_driver=False)
        return
    cores = max(os.cpu_count() or 1, (options.max_replicas or options.replicas) * options.threads)
    # "local": not the cluster that RAY_ADDRESS names.
    ray.init(
        address="local", num_cpus=cores, include_dashboard=False, logging_level="ERROR", log_to_driver=False,
        configure_logging=False,
    )  # fmt: skip


def _application(options: ServerOptions, replica: ReplicaOptions) -> Any:
    from ray import serve

    scaling: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas is not None and options.max_replicas > options.replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": options.replicas, "max_replicas": options.max_replicas, "upscale_delay_s": UPSCALE_S,
                "downscale_delay_s": DOWNSCALE_S, "policy": {"policy_function": replicas_needed},
            }
        }  # fmt: skip
    deployment: Any = serve.deployment(
        Replica, name=DEPLOYMENT, ray_actor_options={"num_cpus": options.threads}, health_check_period_s=2.0,
        health_check_timeout_s=30.0, graceful_shutdown_timeout_s=DRAIN_S + 5, **scaling,
    )  # fmt: skip
    return deployment.bind(replica)
