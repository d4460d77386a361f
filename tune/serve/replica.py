"""A replica: the class that Ray Serve starts, watches and replaces."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import time
from typing import Any

from leebert.exported.manifest import Exits
from tune.serve.control import Target
from tune.serve.requests import Limits

#: Seconds that a shutdown waits for open requests.
DRAIN_S = 30.0
#: Time of a batch outside the model, in rows: to hand it to the model's thread, and its answers back.
HANDOVER = 0.05
#: Seconds in which frames on their way arrive.
ON_THEIR_WAY_S = 0.2


@dataclasses.dataclass(frozen=True)
class ReplicaOptions:
    """What a replica needs; sent to it once.

    Attributes:
        folder: The exported model, on every node under this path.
        threads: Threads of ONNX Runtime.
        exits: The exit criterion of requests that choose none; None: the model's own.
        target: The aim of load control; None: fixed thresholds.
        limits: Limits.
        host: Address of the front.
        port: Its port for replicas.
        token: What the front expects to hear.
    """

    folder: str
    threads: int
    exits: Exits | None
    target: Target | None
    limits: Limits
    host: str
    port: int
    token: str


class Replica:
    """Loads a model, predicts once with it, and answers the front's requests from a thread of its own.

    Args:
        options: Its options.
    """

    def __init__(self, options: ReplicaOptions) -> None:
        from tune.serve.engine import Engine
        from tune.serve.metrics import Metrics
        from tune.serve.model import ServedModel, operating_points
        from tune.serve.worker import Worker

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        model = ServedModel(options.folder, options.threads, options.exits)
        fixed = model.warm_up()
        target, metrics = options.target, Metrics()
        points = operating_points(model.manifest, model.own, target.max_loss if target else None)
        self._engine = Engine(model, points, target, options.limits, metrics, fixed + HANDOVER)
        hello = {"token": options.token, "replica": f"{os.uname().nodename}-{os.getpid()}", "pid": os.getpid()}
        self._worker = Worker(model, self._engine, options.limits, metrics, hello)
        self._thread = threading.Thread(
            target=_run, args=(self._worker.run, options.host, options.port), name="front", daemon=True
        )
        self._thread.start()

    def __del__(self) -> None:
        """Answer open requests before Ray Serve ends the replica, which sees none of them: they bypass its proxy."""
        if (worker := getattr(self, "_worker", None)) is None:
            return
        worker.drain()
        time.sleep(ON_THEIR_WAY_S)
        self._engine.close()
        self._engine.join(DRAIN_S)
        time.sleep(ON_THEIR_WAY_S)

    def check_health(self) -> None:
        """Fail, so that Ray Serve replaces the replica, if one of its threads has ended."""
        if not (self._engine.alive and self._thread.is_alive()):
            raise RuntimeError("a thread of the replica has ended; its log has the error")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The share of time in which the model runs, for :func:`replicas_needed`."""
        return {"busy": self._engine.busy}

    async def __call__(self) -> dict[str, Any]:
        """Describe the replica; requests come over its connection to the front."""
        return {"pid": os.getpid(), "busy": self._engine.busy}


def _run(run: Any, host: str, port: int) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(host, port))


#: Share of time in which the models of replicas should run; above it more replicas are started.
BUSY = 0.6


def replicas_needed(context: Any) -> tuple[int, dict[str, Any]]:
    """Ray Serve's autoscaling policy: enough replicas for a mean busy share of :data:`BUSY`.

    Args:
        context: Ray Serve's `AutoscalingContext`.

    Returns:
        The number of replicas, and the policy's state.
    """
    shares = list((context.aggregated_metrics or {}).get("busy", {}).values())
    needed = context.current_num_replicas
    if shares:
        work = sum(shares) / len(shares) * context.current_num_replicas
        needed = max(1, round(work / BUSY + 0.49))
    return min(max(needed, context.capacity_adjusted_min_replicas), context.capacity_adjusted_max_replicas), {}
