"""What `leebert-tune serve` does beyond its capacity: connections, a flood, clients that go, a replica that is killed.

python benchmarks/flood.py --model x/mrpc-int8

In turn: --connections clients that only connect; as many that send a request at once; clients that send one and close; a
steady load, during which the replica is killed. After each, an ordinary request must be answered. Prints how requests were
answered and the memory of front and replica. About a minute.

Targets: 10,000 connections are held; the memory of front and replica grows by at most 200 MB; of the requests under which
the replica ends, each is answered with 200, 429 or 503.
"""

from __future__ import annotations

import asyncio
import collections
import os
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from common import Result, glue, parser, scratch, stop
from surge import server

from tune.serve.load import Client, Sample, about_server, http_request, place_of, read_samples

#: Clients that send and close at once.
LEAVERS = 500
#: Clients of the load under which a replica is killed.
STEADY = 16
#: Seconds after which a request counts as lost.
PATIENCE_S = 120.0


class Target:
    """The server under test, and what it answered."""

    def __init__(self, address: str, samples: Sequence[Sample]) -> None:
        self.host, self.port = place_of(address)
        self.requests = [http_request(self.host, sample.body) for sample in samples]
        processes = psutil.Process().children(recursive=True)
        self.front = psutil.Process().children()[0]
        self.replica = next(one for one in processes if "Replica" in one.name())

    def memory(self) -> float:
        """Memory of front and replica in MB."""
        return sum(one.memory_info().rss for one in (self.front, self.replica)) / 2**20

    async def connect(self) -> Client:
        """Open a connection."""
        _, client = await asyncio.get_running_loop().create_connection(Client, self.host, self.port)
        return client

    async def ask(self, which: int, client: Client | None = None) -> int:
        """Send a request; returns its status, 0: no answer."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                client = client or await self.connect()
                status, _ = await client.ask(self.requests[which % len(self.requests)])
        except (OSError, TimeoutError):
            status = 0
        finally:
            if client is not None and client.transport is not None:
                client.transport.close()
        return status

    async def answers(self) -> None:
        """Stop the benchmark if an ordinary request is not answered."""
        for _ in range(100):
            if (status := await self.ask(0)) == 200:
                return
            await asyncio.sleep(0.1)
        stop(f"an ordinary request is answered with status {status}")


async def connections(target: Target, count: int, result: Result) -> None:
    """Connect, and send nothing; then send all at once."""
    clients = [await target.connect() for _ in range(count)]
    await target.answers()
    open_ones = sum(client.transport is not None and not client.transport.is_closing() for client in clients)
    result.target("connections held", open_ones, count, least=True)
    started = time.perf_counter()
    statuses = collections.Counter(await asyncio.gather(*(target.ask(i, one) for i, one in enumerate(clients))))
    result.figure("flood: until the last answer", time.perf_counter() - started, "s")
    for status, number in sorted(statuses.items()):
        result.figure(f"flood: status {status}", number, "requests")
    result.target("flood: requests without an answer", statuses[0], 0)
    await target.answers()


async def leavers(target: Target) -> None:
    """Send requests and close at once."""
    for which in range(LEAVERS):
        client = await target.connect()
        assert client.transport is not None
        client.transport.write(target.requests[which % len(target.requests)])
        await asyncio.sleep(0)
        client.transport.close()
    await target.answers()


async def killed(target: Target, result: Result) -> None:
    """Kill the replica under a steady load."""
    statuses, over = collections.Counter[int](), asyncio.Event()

    async def one(which: int) -> None:
        while not over.is_set():
            status = await target.ask(which)
            statuses[status] += 1
            if status != 200:
                await asyncio.sleep(0.05)

    steady = [asyncio.ensure_future(one(which)) for which in range(STEADY)]
    await asyncio.sleep(1.0)
    os.kill(target.replica.pid, signal.SIGKILL)
    started = time.perf_counter()
    await asyncio.sleep(0.2)
    await _until_ready(target)
    result.figure("killed replica: until another answers", time.perf_counter() - started, "s")
    over.set()
    await asyncio.gather(*steady)
    for status, number in sorted(statuses.items()):
        result.figure(f"killed replica: status {status}", number, "requests")
    result.target("killed replica: other statuses", sum(statuses[s] for s in statuses if s not in (200, 429, 503)), 0)


async def _until_ready(target: Target) -> None:
    while await target.ask(0) != 200:
        await asyncio.sleep(0.1)


async def run(target: Target, options: Any, result: Result) -> None:
    """Do all of it."""
    await target.answers()
    before = target.memory()
    result.figure("memory before", before, "MB")
    await connections(target, options.connections, result)
    await leavers(target)
    result.figure("memory after", target.memory(), "MB")
    result.target("growth of memory", target.memory() - before, 200.0)
    await killed(target, result)


def main() -> None:
    """Start the server and load it."""
    made = parser(__doc__)
    made.add_argument("--model", type=Path, required=True, help="folder that `leebert export` wrote")
    made.add_argument("--data", type=Path, help="texts; by default MRPC's dev split in LEEBERT_DATA")
    made.add_argument("--connections", type=int, default=10_000, help="clients (%(default)s)")
    options = made.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if options.connections + 100 > hard:
        stop(f"--connections {options.connections}: this machine allows {hard} open files (ulimit -Hn)")
    result = Result("flood", options)
    data = options.data or glue() / "MRPC" / "dev.tsv"
    with scratch() as out, server(options.model, out, "--p99-ms", "50", "--max-loss", "1") as address:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        samples = read_samples(data, about_server(address))
        asyncio.run(run(Target(address, samples), options, result))
    result.end("fp32")


if __name__ == "__main__":
    main()
