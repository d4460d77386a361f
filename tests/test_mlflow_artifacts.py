"""Files beside a sweep's run: where they stand, and what is said where they can't be put."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import time
from pathlib import Path

import pytest
import requests
from PIL import Image
from proxy import Fault, proxy
from test_tracking import Sweep, whole_sweep

from leebert.errors import TrackingError
from tune.tracking.artifacts import log_file
from tune.tracking.audit import RunDifference
from tune.tracking.events import Picture, Summary
from tune.tracking.images import picture_files
from tune.tracking.rebuild import write_missing
from tune.tracking.server import FilesRefused, is_refusal


def one_pixel() -> bytes:
    drawn = io.BytesIO()
    Image.new("RGB", (1, 1)).save(drawn, format="png")
    return drawn.getvalue()


AGAIN = "leebert-tune rebuild-mlflow it"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text("<p>found</p>")
    return path


def sent(uri: str) -> Sweep:
    sweep = Sweep(uri)
    sweep.send(whole_sweep()[:1])
    return sweep


def refused(uri: str, sweep: Sweep, page: Path) -> str:
    with pytest.raises(TrackingError) as error:
        log_file(uri, sweep.experiment, sweep.name, page, command=AGAIN)
    assert error.value.__cause__ is None
    return str(error.value)


def test_a_page_is_at_the_address_that_is_returned(mlflow_app, page, tmp_path) -> None:
    from mlflow import MlflowClient

    sweep = sent(mlflow_app.url)
    address = log_file(sweep.uri, sweep.experiment, sweep.name, page, command=AGAIN)
    run = sweep.runs()[sweep.name].info
    assert (
        address
        == f"{sweep.uri}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/reports/page.html?workflowType=machine_learning"
    )
    copy = MlflowClient(sweep.uri).download_artifacts(run.run_id, "reports/page.html", str(tmp_path))
    assert Path(copy).read_text() == page.read_text()


def test_of_a_database_the_run_is_named(tmp_path, page, monkeypatch, new_database) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts
    sweep = sent(new_database(tmp_path))
    told = log_file(sweep.uri, sweep.experiment, sweep.name, page, command=AGAIN)
    assert told == f"reports/page.html of run {sweep.runs()[sweep.name].info.run_id}"


def test_a_database_that_does_not_exist_is_not_created(tmp_path, page, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused("sqlite:///new/mlflow.db", Sweep("unused"), page)
    assert f"no database {tmp_path}/new/mlflow.db; fill it by: {AGAIN}" in said
    assert not (tmp_path / "new").exists()


def test_an_experiment_or_sweep_that_the_server_lacks_is_named(mlflow_app, page) -> None:
    known, unknown = sent(mlflow_app.url), Sweep(mlflow_app.url)
    assert f"has no run of sweep {unknown.name} in experiment {unknown.experiment!r}" in refused(
        known.uri, unknown, page
    )
    unknown.experiment = known.experiment
    said = refused(known.uri, unknown, page)
    assert f"has no run of sweep {unknown.name} in experiment {known.experiment!r}; fill it by: {AGAIN}" in said


def test_a_server_that_is_away_is_reported_soon_and_without_secrets(page) -> None:
    with proxy("http://nowhere", lambda path: None) as url:
        pass  # nobody listens there any more
    started = time.monotonic()
    said = refused(url.replace("http://", "http://me:secret@"), Sweep("unused"), page)
    assert time.monotonic() - started < 10
    assert said.startswith(f"MLflow can't be used at {url}: ")
    assert "secret" not in said


def test_a_server_that_takes_no_files_is_reported_with_its_reason(mlflow_app, page) -> None:
    sweep = sent(mlflow_app.url)
    with proxy(mlflow_app.url, lambda path: Fault(403, b"no files here") if "artifacts" in path else None) as url:
        said = refused(url, sweep, page)
    assert said.startswith(f"MLflow can't be used at {url}: ")
    assert "403" in said


PICTURE = Picture("verdict", "contents", one_pixel)


def test_a_picture_is_among_the_files_that_charts_show_and_has_one_name(mlflow_app) -> None:
    from mlflow import MlflowClient

    sweep, client = Sweep(mlflow_app.url), MlflowClient(mlflow_app.url)
    start, summary = whole_sweep()[:1], Summary("CLO-v2", {"summary/configs": 3}, time_ms=5, pictures=[PICTURE])
    sweep.send([*start, summary])
    run = sweep.runs()["Summary · CLO-v2"]
    assert run.data.tags["mlflow.loggedImages"] == "True"
    files = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "images")}
    assert files == set(picture_files("verdict", 5, hashlib.sha256(b"contents").hexdigest()))
    sweep.send([*start, dataclasses.replace(summary, pictures=[dataclasses.replace(PICTURE, contents="others")])])
    assert sweep.runs()["Summary · CLO-v2"].info.run_id != run.info.run_id, "other pictures are other contents"


def test_a_server_that_takes_no_files_gets_everything_else(mlflow_app, log_lines) -> None:
    with proxy(mlflow_app.url, lambda path: Fault(403, b"no files here") if "artifacts" in path else None) as url:
        sweep = Sweep(url)
        sent_ = sweep.send([*whole_sweep()[:1], Summary("CLO-v2", {"summary/configs": 3}, pictures=[PICTURE])])
    assert "no files here" in sent_.pictures_refused
    sweep.uri = mlflow_app.url
    assert sweep.runs()["Summary · CLO-v2"].info.status == "FINISHED"
    assert [line for line in log_lines() if "accepts no pictures (403: " in line]


def test_a_server_that_is_busy_or_lets_a_token_expire_gets_the_pictures_later(mlflow_app) -> None:
    from mlflow import MlflowClient

    faults = [Fault(status) for status in (401, 429)]
    with proxy(mlflow_app.url, lambda path: faults.pop() if "artifacts" in path and faults else None) as url:
        sweep = Sweep(url)
        sent_ = sweep.send([*whole_sweep()[:1], Summary("CLO-v2", {"summary/configs": 3}, pictures=[PICTURE])])
    assert not faults
    assert not sent_.pictures_refused
    sweep.uri = mlflow_app.url
    run_id = sweep.runs()["Summary · CLO-v2"].info.run_id
    assert len(MlflowClient(mlflow_app.url).list_artifacts(run_id, "images")) == 2


def test_errors_of_a_connection_are_no_refusal_of_files() -> None:
    def answered(status: int) -> requests.HTTPError:
        response = requests.Response()
        response.status_code = status
        return requests.HTTPError(response=response)

    temporary = [requests.exceptions.ChunkedEncodingError(), requests.ConnectionError()]
    temporary += [answered(status) for status in (401, 408, 425, 429, 502)]
    assert not any(is_refusal(error) for error in temporary)
    assert all(is_refusal(error) for error in (answered(403), PermissionError(), FilesRefused()))


NO_FILES, NONE_LISTED = Fault(403, b"no files here"), Fault(200, b'{"files": []}')


@pytest.mark.slow
@pytest.mark.parametrize("listing", [NO_FILES, NONE_LISTED])
def test_a_rebuild_expects_no_pictures_of_a_server_that_refuses_them_and_sends_them_once_it_does_not(
    mlflow_app, log_lines, caplog, listing
) -> None:
    from mlflow import MlflowClient

    sweep, client, refusing = Sweep(mlflow_app.url), MlflowClient(mlflow_app.url), True
    events = [*whole_sweep()[:1], Summary("CLO-v2", {"summary/configs": 3}, time_ms=5, pictures=[PICTURE])]
    events[0] = dataclasses.replace(events[0], time_ms=1)

    def fault(path: str) -> Fault | None:
        return (listing if "artifacts?" in path else NO_FILES) if refusing and "mlflow-artifacts" in path else None

    def rebuilt() -> tuple[int, list[RunDifference]]:
        started = time.monotonic()
        result = write_missing(sweep.send(events), events, lambda: None)
        assert time.monotonic() - started < 15, "a refusal is not tried again for half a minute"
        return result

    def run_id() -> str:
        return str(client.search_runs([sent_.experiment_id], "tags.kind = 'summary'")[0].info.run_id)

    with proxy(mlflow_app.url, fault) as sweep.uri:
        sent_ = sweep.send(events)
        first = run_id()
        caplog.clear()
        assert rebuilt() == (0, [])
        assert run_id() == first
        assert len([line for line in log_lines() if "accepts no pictures (403: " in line]) == 1
        client.log_metric(first, "summary/configs", 7)
        caplog.clear()
        assert rebuilt() == (1, [])
        assert (second := run_id()) != first, "a wrong value cannot be mended in place"
        assert len([line for line in log_lines() if "accepts no pictures (403: " in line]) == 1
        refusing = False
        assert rebuilt() == (1, [])
        assert run_id() == second
        assert len(client.list_artifacts(second, "images")) == 2
        assert rebuilt() == (0, [])
