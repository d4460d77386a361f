"""The engine of a replica and the front, in one process: batches, limits, clients that go, replicas that end."""

import asyncio
import collections
import contextlib
import json
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune.serve.control import OperatingPoint, Target
from tune.serve.engine import Engine
from tune.serve.front import Front
from tune.serve.metrics import Metrics
from tune.serve.model import fixed_rows
from tune.serve.queue import TURNS, Job, Queue, Row, batch_size, form_batch
from tune.serve.requests import Limits, Refusal
from tune.serve.wire import HEADER, HELLO, LONGEST_GREETING, Frames
from tune.serve.worker import Worker

POINTS = (OperatingPoint(0.1, 0.9, 1.0, 10.0), OperatingPoint(0.6, 0.89, 2.0, 5.0))


class Model:
    """Answers at once, or when `go` is set; remembers its batches."""

    columns = (("text",),)

    def __init__(self):
        self.batches, self.go, self.encoded = [], threading.Event(), 0
        self.runs = threading.Event()  # a batch has reached the model
        self.go.set()
        self.error = None

    def encode(self, texts, *, truncate):
        self.encoded += len(texts)
        return [Row(text[0], len(text[0])) for text in texts]

    def choose(self, choice):
        return tuple(choice.items())

    def exits_at(self, threshold):
        return ("own", threshold)

    def describe(self, exits):
        return {"criterion": str(exits)}

    def run(self, rows, exits):
        self.runs.set()
        self.go.wait(60)
        self.batches.append(([row.inputs for row in rows], exits))
        if self.error:
            raise self.error
        return [{"label": row.inputs, "exit_layer": 2} for row in rows]


@contextlib.contextmanager
def engine_of(model, target=None, fixed=100.0, **limits):
    """An engine; by default a batch takes about as long as one row, so that it takes whatever waits."""
    engine = Engine(model, POINTS, target, Limits(**limits), Metrics(), fixed)
    try:
        yield engine
    finally:
        model.go.set()
        engine.close()
        assert engine.join(5)


def rows(*texts):
    return [Row(text, len(text)) for text in texts]


async def until(condition, seconds=5):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def test_requests_that_wait_share_a_batch_and_get_their_own_rows():
    async def run():
        model = Model()
        with engine_of(model) as engine:
            model.go.clear()
            first = engine.submit(rows("aa"), None)
            await until(lambda: not engine._queue)
            others = [engine.submit(rows(f"b{i}", f"c{i}"), None) for i in range(3)]
            model.go.set()
            assert [row["label"] for row in await first] == ["aa"]
            for i, other in enumerate(others):
                assert [(row["row"], row["label"]) for row in await other] == [(0, f"b{i}"), (1, f"c{i}")]
        assert [len(texts) for texts, _ in model.batches] == [1, 6]

    asyncio.run(run())


def test_requests_with_their_own_exits_are_grouped_and_keep_them_under_load():
    async def run():
        model = Model()
        with engine_of(model, Target(20, 1)) as engine:
            model.go.clear()
            first = engine.submit(rows("aa"), None)
            await until(lambda: not engine._queue)
            asked = [engine.submit(rows("bb"), ("asked", 1.0)) for _ in range(6)]
            adaptive = [engine.submit(rows("cc"), None) for _ in range(6)]
            model.go.set()
            for future in (first, *asked, *adaptive):
                await future
            assert {row["criterion"] for future in asked for row in future.result()} == {"('asked', 1.0)"}
            assert {row["criterion"] for future in adaptive for row in future.result()} == {"('own', 0.6)"}, "13 waited"
        for texts, exits in model.batches:
            assert len(set(texts)) == 1
            assert exits[0] == ("asked" if texts[0] == "bb" else "own")

    asyncio.run(run())


def test_a_batch_is_the_oldest_row_and_later_ones_of_similar_length():
    job = SimpleNamespace(exits=None, rows=rows("x" * 20, "x" * 5, "x" * 22, "x" * 40, "x" * 19))
    queue = collections.deque((job, place) for place in range(5))
    assert [place for _, place in form_batch(queue, 8)] == [0, 2, 4]
    assert [place for _, place in queue] == [1, 3]
    assert [place for _, place in form_batch(queue, 1)] == [1]


@given(st.integers(1, 10_000), st.floats(0, 8))
def test_the_size_of_a_batch_gives_what_waits_the_least_mean_delay(waiting, fixed):
    def delay(size):
        return (fixed + size) * (waiting / size + 1) / 2

    size = batch_size(waiting, fixed)
    assert delay(size) <= min(delay(size + 1), delay(max(1, size - 1))) * 1.05


@given(st.integers(2, 32), st.floats(0, 2))
def test_the_fixed_time_of_a_batch_follows_from_its_time_and_that_of_its_rows(count, fixed):
    assert fixed_rows(count, (fixed + count) / (count * (fixed + 1))) == pytest.approx(fixed, abs=1e-9)
    assert fixed_rows(count, 1.2) == 0
    assert fixed_rows(count, 1 / count) == count


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60)), min_size=1, max_size=20), st.integers(1, 9))
def test_large_requests_get_a_fifth_of_the_rows_while_ordinary_ones_wait_and_all_are_taken_once(requests, most):
    queue = Queue()
    jobs = [Job(rows(*("a" * n for n in range(1, size + 1))), None, None, 0.0, large) for large, size in requests]
    for job in jobs:
        queue.add(job)
    assert len(queue) == sum(size for _, size in requests)
    taken = collections.Counter()
    ordinary = since = 0
    while queue:
        both = queue.ordinary and queue.large
        batch = queue.take(most, most)
        assert 1 <= len(batch) <= most
        taken.update((jobs.index(job), place) for job, place in batch)
        since = 0 if batch[0][0].large else since + len(batch)
        ordinary = ordinary + 1 if both and not batch[0][0].large else 0
        assert not both or since < TURNS * most + most
        assert ordinary <= TURNS * most
    assert set(taken.values()) == {1}
    assert len(taken) == sum(size for _, size in requests)


def test_large_requests_take_turns_and_the_rows_of_one_that_is_dropped_go():
    queue = Queue()
    first, second = (Job(rows(*"a" * n), None, None, 0.0, True) for n in (100, 40))
    queue.add(first)
    queue.add(second)
    assert [queue.take(8, 4)[0][0] for _ in range(4)] == [first, second, first, second]
    queue.drop(first)
    assert (len(queue), queue.large_requests) == (32, 1)


def test_a_large_request_neither_holds_up_others_nor_makes_the_server_faster():
    async def run():
        model = Model()
        with engine_of(model, Target(200, 1), waiting=500, wait_ms=100) as engine:
            model.go.clear()
            held = [engine.submit(rows("a"), None)]
            await until(lambda: not engine._queue)
            held.append(engine.submit(rows(*"b" * 400), None))
            held += [engine.submit(rows("c"), None) for _ in range(3)]
            engine.tick()
            model.go.set()
            await asyncio.gather(*held)
            engine.tick()
            assert engine.controller.changes == 0
        batches = [texts for texts, _ in model.batches]
        assert batches[:2] == [["a"], ["c"] * 3]
        assert sum(len(texts) for texts in batches[2:]) == 400
        assert {exits for _, exits in model.batches} == {("own", 0.1)}

    asyncio.run(run())


def test_large_requests_that_wait_fill_their_own_share_of_the_queue_only():
    async def run():
        model = Model()
        with engine_of(model, Target(20, 1), waiting=500) as engine:
            model.go.clear()
            held = [engine.submit(rows("a"), None)]
            await until(lambda: not engine._queue)
            held.append(engine.submit(rows(*"b" * 400), None))
            with pytest.raises(Refusal, match="400 waiting texts of large requests"):
                engine.submit(rows(*"b" * 101), None)
            held.append(engine.submit(rows("c"), None))
            model.go.set()
            await asyncio.gather(*held)

    asyncio.run(run())


def test_a_full_queue_refuses_with_the_seconds_to_wait():
    async def run():
        model = Model()
        with engine_of(model, waiting=10, wait_ms=30) as engine:
            model.go.clear()
            held = [engine.submit(rows("a"), None)]
            await until(lambda: not engine._queue)
            held += [engine.submit(rows("a"), None) for _ in range(7)]
            with pytest.raises(Refusal, match="7 waiting texts, a wait of 35 ms") as caught:
                engine.submit(rows("a"), None)
            assert (caught.value.status, caught.value.retry_after) == (429, 1)
            model.go.set()
            await asyncio.gather(*held)
            with pytest.raises(Refusal, match="0 waiting texts"):
                engine.submit(rows(*"abcdefghijk"), None)
            model.go.clear()
            held = [engine.submit(rows("a"), None)]
            await until(lambda: not engine._queue)
            held.append(engine.submit(rows("a"), None))
            await asyncio.sleep(0.04)  # the oldest has waited for longer than the limit
            with pytest.raises(Refusal, match="1 waiting texts"):
                engine.submit(rows("a"), None)
            model.go.set()
            await asyncio.gather(*held)
        with pytest.raises(Refusal, match="shutting down") as caught:
            engine.submit(rows("a"), None)
        assert caught.value.status == 503

    asyncio.run(run())


def test_what_waits_at_a_shutdown_is_answered_and_cancelled_requests_are_dropped():
    async def run():
        model = Model()
        with engine_of(model) as engine:
            model.go.clear()
            first = engine.submit(rows("a"), None)
            await until(lambda: not engine._queue)
            gone, last = engine.submit(rows("b"), None), engine.submit(rows("c"), None)
            gone.cancel()
            await asyncio.sleep(0)
            engine.close()
            model.go.set()
            assert (await first)[0]["label"] == "a"
            assert (await last)[0]["label"] == "c"
        assert [texts for texts, _ in model.batches] == [["a"], ["c"]]

    asyncio.run(run())


def test_an_error_of_the_model_reaches_the_requests_of_its_batch_and_the_engine_lives():
    async def run():
        model = Model()
        with engine_of(model) as engine:
            model.error = ValueError("broken")
            with pytest.raises(Refusal, match="the server failed to run the model") as caught:
                await engine.submit(rows("a"), None)
            assert caught.value.status == 500, "it is no fault of the request"
            model.error = None
            assert await engine.submit(rows("b"), None)
            assert await engine.submit([], None) == []

    asyncio.run(run())


def test_readings_set_the_gauges():
    async def run():
        model = Model()
        with engine_of(model, Target(20, 1)) as engine:
            await engine.submit(rows("a"), None)
            engine.tick()
            values = {name: value for name, _, value in engine.metrics.snapshot()["values"]}
            assert (values["threshold"], values["score"], values["score_floor"]) == (0.1, 0.9, 0.89)
            assert values["waiting_texts"] == 0

    asyncio.run(run())


# The front with a replica's worker, over a real connection


class Served:
    """A front and a worker in one event loop; requests go straight to the ASGI application."""

    def __init__(self, model, **limits):
        self.model, self.limits = model, Limits(**limits)
        self.front = Front(self.limits, "token", {"name": "toy"})

    async def __aenter__(self):
        self.inner = await asyncio.get_running_loop().create_server(self.front.accept, "127.0.0.1", 0)
        self.port = self.inner.sockets[0].getsockname()[1]
        metrics = Metrics()
        self.engine = Engine(self.model, POINTS, None, self.limits, metrics)
        hello = {"token": "token", "replica": "one"}
        worker = Worker(self.model, self.engine, self.limits, metrics, hello)
        self.working = asyncio.ensure_future(worker.run("127.0.0.1", self.port))
        await until(lambda: self.front.ready)
        return self

    async def __aexit__(self, *_):
        self.working.cancel()
        self.model.go.set()
        self.engine.close()
        self.engine.join(5)
        self.inner.close()
        for frames in list(self.front.replicas):
            frames.close()
        await asyncio.sleep(0.01)

    async def ask(self, body, path="/invocations", method="POST", headers=None, gone=None):
        """Send a request; `gone` is an event after which the client has closed its connection."""
        body = body if isinstance(body, list) else [body]
        messages = [
            {"type": "http.request", "body": part, "more_body": at < len(body) - 1} for at, part in enumerate(body)
        ]
        sent = []

        async def receive():
            if messages:
                return messages.pop(0)
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        names = {"content-type": "application/json"} | (headers or {})
        raw = [(name.encode(), value.encode()) for name, value in names.items()]
        await self.front({"type": "http", "path": path, "method": method, "headers": raw}, receive, send)
        if not sent:
            return None, {}, b""
        return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, sent[1]["body"]


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """A worker connects again at once."""
    monkeypatch.setattr("tune.serve.worker.RETRY_S", 0.05)


def in_front(test, **limits):
    """Run a coroutine function with a front, a worker and their model."""

    async def run():
        async with Served(Model(), **limits) as served:
            await test(served)

    asyncio.run(run())


BODY = json.dumps({"inputs": [{"text": "hello"}]}).encode()


def test_a_request_is_answered_in_mlflows_form_with_its_exit():
    async def test(served):
        status, headers, body = await served.ask(BODY)
        assert (status, headers["content-type"]) == (200, "application/json")
        expected = {"row": 0, "label": "hello", "exit_layer": 2, "criterion": "('own', 0.1)"}
        assert json.loads(body) == {"predictions": [expected]}
        status, _, body = await served.ask(BODY[:-1] + b', "params": {"max_loss": 0.5}}')
        assert json.loads(body)["predictions"][0]["criterion"] == "(('max_loss', 0.5),)"
        many = json.dumps({"inputs": [{"text": f"t{i}"} for i in range(30)]}).encode()
        status, _, body = await served.ask([many[:50], many[50:]])
        assert [row["label"] for row in json.loads(body)["predictions"]] == [f"t{i}" for i in range(30)]
        assert json.loads((await served.ask(b'{"inputs": []}'))[2]) == {"predictions": []}

    in_front(test)


def test_paths_methods_sizes_and_types_are_refused_before_a_replica_hears_of_them():
    async def test(served):
        assert (await served.ask(b"", path="/invocation"))[0] == 404
        status, headers, _ = await served.ask(b"", method="GET")
        assert (status, headers["allow"]) == (405, "POST")
        assert (await served.ask(BODY, headers={"content-type": "text/csv"}))[0] == 415
        assert (await served.ask(BODY, headers={"content-length": "1001"}))[0] == 413
        assert (await served.ask([b" " * 600, b" " * 600]))[0] == 413
        assert (await served.ask(b" " * 1200))[0] == 413
        assert (await served.ask(b"{"))[0] == 400
        assert not served.model.batches
        text = (await served.ask(b"", path="/metrics", method="GET"))[2].decode()
        assert 'leebert_requests_total{status="413"} 3' in text
        assert served.front._bytes == 0

    in_front(test, body_bytes=1000)


def test_a_connection_whose_body_was_not_read_is_closed_and_others_are_kept(monkeypatch):
    async def test(served):
        length = {"content-length": str(len(BODY))}
        for bytes_held, expected in ((0, 429), (len(BODY), 200)):
            monkeypatch.setattr("tune.serve.front.MOST_BYTES", bytes_held)
            for body in (BODY, [BODY[:9], BODY[9:]]):
                status, headers, _ = await served.ask(body, headers=length)
                assert (status, headers.get("connection")) == (expected, "close" if expected == 429 else None)
        monkeypatch.setattr("tune.serve.front.MOST_BYTES", 100 * len(BODY))
        served.model.go.clear()
        served.model.runs.clear()
        held = [asyncio.ensure_future(served.ask(BODY))]
        await until(served.model.runs.is_set)
        held += [asyncio.ensure_future(served.ask(BODY)) for _ in range(3)]
        await until(lambda: any(one.done() for one in held))
        refused = next(one.result() for one in held if one.done())
        assert (refused[0], refused[1].get("connection")) == (429, None), "the replica's queue is full"
        encoded = served.model.encoded
        assert (await served.ask(BODY))[0] == 429
        assert served.model.encoded == encoded, "what is refused is not tokenised"
        served.model.go.set()
        await asyncio.gather(*held)

    in_front(test, waiting=2)


def test_a_client_that_goes_takes_its_waiting_texts_along():
    async def test(served):
        served.model.go.clear()
        held = asyncio.ensure_future(served.ask(BODY))
        await until(lambda: served.engine._arrived == 1 and not served.engine._queue)
        gone = asyncio.Event()
        going = asyncio.ensure_future(served.ask(BODY.replace(b"hello", b"gone"), gone=gone))
        await until(lambda: len(served.engine._queue) == 1)
        gone.set()
        assert (await going)[0] is None
        await until(lambda: not served.engine._queue)
        served.model.go.set()
        assert (await held)[0] == 200
        assert [texts for texts, _ in served.model.batches] == [["hello"]]
        assert 'status="499"' in (await served.ask(b"", path="/metrics", method="GET"))[2].decode()

    in_front(test)


def test_a_replica_that_ends_fails_only_its_requests_with_503_and_a_new_one_takes_over():
    async def test(served):
        served.model.go.clear()
        held = asyncio.ensure_future(served.ask(BODY))
        await until(lambda: served.engine._arrived == 1)
        for frames in list(served.front.replicas):
            frames._transport.abort()
        status, headers, body = await held
        assert (status, headers["retry-after"]) == (503, "1")
        assert "ended before it answered" in json.loads(body)["message"]
        status, headers, body = await served.ask(BODY)
        assert status == 503
        assert (await served.ask(b"", path="/healthz", method="GET"))[0] == 503
        served.model.go.set()
        await until(lambda: served.front.ready)  # the worker connects again
        assert (await served.ask(BODY))[0] == 200
        assert (await served.ask(b"", path="/healthz", method="GET"))[0] == 200

    in_front(test)


def test_a_flood_is_refused_with_429_and_the_memory_for_bodies_is_bounded(monkeypatch):
    monkeypatch.setattr("tune.serve.front.MOST_BYTES", 50 * len(BODY))

    async def test(served):
        served.model.go.clear()
        flood = [
            asyncio.ensure_future(served.ask(BODY, headers={"content-length": str(len(BODY))})) for _ in range(200)
        ]
        await until(lambda: sum(one.done() for one in flood) >= 150)
        assert served.front._bytes <= 50 * len(BODY)
        served.model.go.set()
        statuses = collections.Counter([status for status, _, _ in await asyncio.gather(*flood)])
        assert set(statuses) == {200, 429}
        assert served.front._bytes == 0
        assert not any(replica.open for replica in served.front.replicas.values())

    in_front(test, waiting=20)


def test_a_front_that_drains_refuses_new_requests_and_answers_those_it_holds():
    async def test(served):
        served.model.go.clear()
        held = asyncio.ensure_future(served.ask(BODY))
        await until(lambda: served.engine._arrived == 1)
        served.front.draining = True
        assert (await served.ask(BODY))[0] == 503
        assert b"shutting down" in (await served.ask(b"", path="/healthz", method="GET"))[2]
        served.model.go.set()
        assert (await held)[0] == 200

    in_front(test)


def test_a_stranger_on_the_replicas_port_is_not_heard(monkeypatch):
    """Nor kept: wrong tokens, and silence."""
    monkeypatch.setattr("tune.serve.front.GREETING_S", 0.1)

    async def test(served):
        loop, lost = asyncio.get_running_loop(), []

        async def stranger():
            return (
                await loop.create_connection(lambda: Frames(lambda *_: None, lost.append), "127.0.0.1", served.port)
            )[1]

        greetings = (
            b'{"token": "wrong"}',
            '{"token": "t\u00f6ken"}'.encode(),
            b'{"token": "\\ud800"}',
            b'{"token": 1}',
        )
        for payload in (*greetings, b"[]", b"no json", b"\xff"):
            (await stranger()).send(HELLO, 0, payload)
        await until(lambda: len(lost) == 7)
        await stranger()
        await until(lambda: len(lost) == 8)
        assert len(served.front.replicas) == 1
        assert (await served.ask(BODY))[0] == 200

    in_front(test)


def test_a_stranger_that_announces_more_than_a_greeting_is_cut_off_before_it_sends_it():
    async def test(served):
        frames, closed = served.front.accept(), []
        frames._transport = SimpleNamespace(close=lambda: closed.append(True))
        frames.data_received(HEADER.pack(LONGEST_GREETING, HELLO, 0))
        assert not closed
        frames.data_received(bytes(LONGEST_GREETING) + HEADER.pack(LONGEST_GREETING + 1, HELLO, 0))
        assert len(closed) == 2, "once for its token, once for its length"

    in_front(test)


def test_frames_survive_any_split():
    received = []
    one = Frames(lambda _, kind, number, payload: received.append((kind, number, payload)), lambda _: None)
    written = bytearray()
    sender = Frames(lambda *_: None, lambda _: None)
    sender._transport = SimpleNamespace(write=written.extend, is_closing=lambda: False)
    expected = [(2, i, bytes(i)) for i in range(20)]
    for kind, number, payload in expected:
        sender.send(kind, number, payload)
    for start in range(0, len(written), 7):
        one.data_received(bytes(written[start : start + 7]))
    assert received == expected


def test_the_time_of_the_engine_is_that_of_its_clock():
    started = time.perf_counter()
    with engine_of(Model()) as engine:
        engine.tick()
        assert engine._read >= started
        assert engine.busy == 0
        assert engine.alive
