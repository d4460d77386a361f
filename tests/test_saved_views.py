"""Saved views: what they hold, how they are written to a real server, what is said where they can't be."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import quick
from encoders import save_backbone, write_task
from made_sweep import SPEC, made_sweep
from proxy import Fault, proxy
from test_sweep import space
from test_tracking import Sweep, whole_sweep

from tune.space import SweepSpec
from tune.store.folder import SweepFolder, spec_of
from tune.store.lease import Lease
from tune.store.ledger import SweepState
from tune.tracking import names, views
from tune.tracking import saved_views as saving
from tune.tracking.events import SavedViews, Summary, SweepVerdict, View
from tune.tracking.publish import Publisher
from tune.tracking.views import ViewContents, decoded, encoded, saved_views, view_contents, view_key

FOUND = ViewContents(
    ("clo-v2", "blo"), ("lr_theta", "lr_omega", "batch_size"), ("cycle_length",), 36,
)  # fmt: skip
SMALL = {"space": {"lr_theta": [1e-4], "lr_omega": [1e-3], "cycle_length": [2, 4]}}


def cards(view: View) -> list[dict[str, Any]]:
    return [card for card in view.state["compareRunCharts"] if not card["deleted"]]


# The views themselves.


def test_each_view_keeps_to_its_sweep_and_omits_folds() -> None:
    made = saved_views("mrpc-small", FOUND)
    assert [view.name for view in made] == [
        "mrpc-small: CLO vs BLO", "mrpc-small: speed", "mrpc-small: options", "mrpc-small: summary",
    ]  # fmt: skip
    kinds = ["summary", "config", "config", "summary"]
    for view, kind in zip(made, kinds, strict=True):
        where = view.state["searchFilter"]
        assert where.startswith(f"tags.sweep = 'mrpc-small' AND tags.kind = '{kind}'")
        assert view.state["runsHiddenMode"] == "SHOW_ALL"
    assert [("groupBy" in view.state) for view in made] == [False] * 4


def test_each_chart_shows_what_runs_of_its_kind_have_and_each_metric_has_a_place() -> None:
    for view in saved_views("s", FOUND):
        kind = "summary" if "'summary'" in view.state["searchFilter"] else "config"
        listed = {line.pattern for line in names.NAMES if line.family == "metric" and kind in line.runs}
        metrics, params = set(), set()
        for card in cards(view):
            metrics |= {card["metricKey"]} if "metricKey" in card else set()
            metrics |= {*card.get("selectedMetricKeys", ()), *card.get("selectedMetrics", ())}
            metrics |= {card["selectedXAxisMetricKey"]} if "selectedXAxisMetricKey" in card else set()
            params |= set(card.get("selectedParams", ()))
            for axis in (card.get("xaxis"), card.get("yaxis")):
                if axis:
                    (metrics if axis["type"] == "METRIC" else params).add(axis["dataAccessKey"])
        assert metrics <= listed
        swept = {"lr_theta", "lr_omega", "batch_size", "cycle_length"}
        assert params <= names.config_params({"algorithm": "clo-v2"} | dict.fromkeys(swept, 1)).keys()
        # MLflow makes a card of its own for every metric that is the first of none.
        assert {card.get("metricKey") for card in view.state["compareRunCharts"]} >= listed
        sections = {section["uuid"] for section in view.state["compareRunSections"]}
        assert {card["metricSectionId"] for card in view.state["compareRunCharts"]} == sections
        ids = [card["uuid"] for card in view.state["compareRunCharts"]]
        assert len(ids) == len(set(ids))


def parallel(of: ViewContents) -> list[list[str]]:
    return [card["selectedParams"] for card in cards(saved_views("s", of)[2]) if card["type"] == "PARALLEL"]


def test_one_parallel_chart_has_all_algorithms_and_another_the_options_that_only_some_use() -> None:
    assert parallel(FOUND) == [
        ["log10_lr_theta", "variant", "log10_lr_omega", "batch_size"],
        ["log10_lr_theta", "log10_lr_omega", "batch_size", "cycle_length"],
    ]
    assert parallel(ViewContents(("blo", "slo"), ("lr_theta",))) == [["log10_lr_theta", "variant"]]


def test_titles_state_when_mlflow_loads_a_part_only() -> None:
    def noted(complete: int, begun: int) -> list[bool]:
        made = saved_views("s", ViewContents(("clo-v2", "blo"), complete=complete, begun=begun))[1:3]
        titles = [[section["name"] for section in view.state["compareRunSections"]] for view in made]
        assert all(len({title.endswith(" (the best 100 only)") for title in of_view}) == 1 for of_view in titles)
        return [of_view[0].endswith(" (the best 100 only)") for of_view in titles]

    assert noted(100, 100) == [False, False]
    assert noted(100, 101) == [False, True], "pruned ones count where they are shown"
    assert noted(101, 130) == [True, True]


def test_every_option_has_its_chart() -> None:
    options = tuple(f"option_{i}" for i in range(9))
    (scatters,) = ([card["xaxis"]["dataAccessKey"] for card in cards(saved_views("s", ViewContents(("blo", "slo"), options))[2])
                    if card["type"] == "SCATTER"],)  # fmt: skip
    assert scatters == [*options, "cv/score_std_pct"]


@pytest.mark.parametrize(
    ("methods", "title"),
    [
        (("blo", "clo-v1", "clo-v2"), "CLO vs BLO"),
        (("uniform", "slo"), "SLO vs Uniform"),
        (("hyper", "clo-v2", "blo"), "CLO vs BLO vs Hypergradient"),
        (("fastbert-clo-v2", "blo"), "BLO vs FastBERT-CLO"),
        (("slo",), "methods compared"),
        (("slo", "blo", "uniform", "rand"), "methods compared"),
    ],
)
def test_the_first_view_is_titled_by_the_methods_that_it_compares(methods: tuple[str, ...], title: str) -> None:
    assert saved_views("s", ViewContents(methods))[0].name == f"s: {title}"


def test_the_views_of_summaries_are_pictures() -> None:
    views_ = {view.slug: view for view in saved_views("s", FOUND)}
    shown = []
    for slug in ("clo-vs-blo", "summary"):
        assert all(card["type"] == "IMAGE" for card in cards(views_[slug]))
        assert all(len(card["imageKeys"]) == 2 for card in cards(views_[slug])), "one alone would be small"
        shown += [key for card in cards(views_[slug]) for key in card["imageKeys"]]
        assert views_[slug].state["runListHidden"], "pictures fill the width"
        alone = [
            card["imageKeys"]
            for card in views_[slug].state["compareRunCharts"]
            if card["uuid"].startswith("no-") and card["type"] == "IMAGE"
        ]
        assert alone == [[key] for key in names.PICTURES], "MLflow makes a card of its own for every other picture"
    assert set(shown) == set(names.PICTURES)
    assert shown[:2] == ["verdict", "score against layer speed-up"]


def test_a_tag_holds_a_view_and_mlflow_takes_both_its_key_and_its_length() -> None:
    from mlflow.utils.validation import MAX_EXPERIMENT_TAG_VAL_LENGTH, _validate_experiment_tag

    for view in saved_views("a" * 100, FOUND):
        value = encoded(view, 5, 7)
        assert decoded(value) == (view.name, view.state, 5)
        assert len(value) < MAX_EXPERIMENT_TAG_VAL_LENGTH / 4
        _validate_experiment_tag("mlflow.sharedViewState." + view_key("a" * 100, view), value)


@pytest.mark.parametrize("damaged", ["", "{}", "[]", '{"name": "x", "createdAt": 1, "state": "deflate;e30="}', "null"])
def test_what_is_no_view_of_ours_is_distinguished(damaged: str) -> None:
    with pytest.raises(ValueError):
        decoded(damaged)


def test_what_views_depend_on_is_read_from_the_ledger(tmp_path: Path) -> None:
    made = made_sweep(tmp_path, "sqlite:///nowhere.db", **SMALL)
    spec = SweepSpec.model_validate({**SPEC, **SMALL})
    known = view_contents(spec, made.ledger.read(epochs=False))
    assert (known.algorithms, known.complete, known.begun) == (("clo-v2", "blo"), 2, 3)
    assert (known.shared, known.others) == ((), ("cycle_length",)), "what has one value tells nothing apart"
    assert view_contents(spec, SweepState()) == ViewContents(("clo-v2", "blo"), (), ("cycle_length",))
    assert parallel(known) == [["variant"], ["cycle_length"]]
    whole = view_contents(SweepSpec.model_validate(SPEC), SweepState())
    assert (whole.shared, whole.others) == (FOUND.shared, FOUND.others)


class Heard:
    """Keeps what it is told, where a tracker would send it."""

    sweep = "s"

    def __init__(self) -> None:
        self.events: list[Any] = []

    def put(self, event: Any) -> None:
        self.events.append(event)


def test_a_sweep_is_shown_from_its_start_and_again_whenever_it_has_doubled(tmp_path: Path) -> None:
    spec = SweepSpec.model_validate(SPEC)
    whole = made_sweep(tmp_path, "sqlite:///nowhere.db")
    heard: Any = Heard()
    sentences: list[str] = []
    showing, state, told = Publisher(heard, spec, whole), SweepState(), []
    showing.start(state)
    assert [type(event) for event in heard.events] == [SavedViews]
    for record in whole.ledger.in_order():
        state.apply(record)
        before = len(heard.events)
        showing.follow(state)
        if new := heard.events[before:]:
            assert isinstance(new[-1], SavedViews)
            assert {type(event) for event in new[:-1]} <= {Summary, SweepVerdict}
            sentences.append(new[-1].sentence)
            told.append(sum(c.state == "complete" for c in state.history()))
    assert told == [1, 2, 4, 8, 16, 32]
    assert not sentences[0], "one method has no partner yet"
    assert sentences[-1].startswith("CLO-v2 and BLO: ")


def test_a_trouble_with_views_never_reaches_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, log_lines: Callable[[], list[str]]
) -> None:
    class Broken(Heard):
        def put(self, event: Any) -> None:
            raise RuntimeError("no")

    broken: Any = Broken()
    made = made_sweep(tmp_path, "sqlite:///nowhere.db", **SMALL)
    state = made.ledger.read()
    showing = Publisher(broken, SweepSpec.model_validate({**SPEC, **SMALL}), made)
    showing.start(SweepState())
    showing.follow(state)
    no_views, no_summaries = "no saved views: RuntimeError: no", "no summaries: RuntimeError: no"
    assert log_lines() == [no_views, no_summaries, no_views]
    caplog.clear()
    showing.end(state)
    assert log_lines() == [no_summaries, no_views]


def test_views_are_made_anew_when_mlflow_begins_to_load_a_part(tmp_path: Path) -> None:
    def titles(n: int) -> list[str]:
        heard: Any = Heard()
        showing = Publisher(heard, SweepSpec.model_validate(SPEC), SweepFolder(tmp_path))
        showing.start(at(64))
        heard.events.clear()
        for known in (at(65), at(n)):
            showing.follow(known)
        return [
            event.views[1].state["compareRunSections"][0]["name"]
            for event in heard.events if isinstance(event, SavedViews)
        ]  # fmt: skip

    def at(complete: int) -> SweepState:
        state = SweepState()
        for i in range(complete):
            state.apply({"kind": "suggest", "config": f"c{i}", "index": i, "values": {"algorithm": "blo"}})
            state.apply({"kind": "complete", "config": f"c{i}"})
        return state

    assert titles(100) == []
    assert titles(101) == ["Score (%) against layer speed-up (the best 100 only)"]


def test_a_summary_states_the_whole_in_numbers(tmp_path: Path) -> None:
    from tune.tracking.summary import pool_of, summaries

    made = made_sweep(tmp_path, "sqlite:///nowhere.db")
    whole = summaries(pool_of(made, spec_of(made), made.ledger.read()))
    told = {summary.label: summary for summary in whole.events}
    assert set(told) == {"BLO", "CLO-v2", "CLO-v2 minus BLO", "CLO-v2 C=2 minus BLO", "CLO-v2 C=4 minus BLO"}
    pictured = [summary for summary in whole.events if summary.pictures]
    assert [summary.label for summary in pictured] == ["CLO-v2 minus BLO"]
    assert whole.sentence in pictured[0].note
    assert sorted(picture.key for picture in pictured[0].pictures) == sorted(names.PICTURES)
    for picture in pictured[0].pictures:
        assert picture.draw().startswith(b"\x89PNG")
    clo, diff = told["CLO-v2"], told["CLO-v2 C=4 minus BLO"]
    assert clo.note == "23 configurations, 3 runs each"
    mean = 100 * sum(v for v in clo.depth["summary/score"] if v is not None) / 6
    assert clo.metrics["summary/score_pct"] == pytest.approx(mean, abs=1e-3)
    assert not any(name.endswith(("_low", "_high")) for name in clo.metrics)
    assert diff.metrics.keys() == {"paired/diff_pct", "paired/pairs"}, "3 runs are too few for an interval"
    assert not any(math.isnan(value) for one in (clo, diff) for value in one.metrics.values())
    assert len({summary.colour for label, summary in told.items() if "minus" in label}) == 3


# In MLflow.


def tags(uri: str, experiment: str) -> dict[str, str]:
    from mlflow import MlflowClient

    view_contents = MlflowClient(uri).get_experiment_by_name(experiment)
    assert view_contents is not None
    return dict(view_contents.tags)


def write_note(uri: str, experiment: str, note: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    client.set_experiment_tag(client.get_experiment_by_name(experiment).experiment_id, "mlflow.note.content", note)


def of_sweep(view_contents: dict[str, str], sweep: str) -> set[str]:
    prefix = f"mlflow.sharedViewState.{sweep}."
    return {key.removeprefix(prefix) for key in view_contents if key.startswith(prefix)}


def test_sweeps_share_an_experiment_and_a_second_time_changes_nothing(tmp_path: Path, new_database) -> None:
    from mlflow import MlflowClient

    uri = new_database(tmp_path)
    one, two = Sweep(uri), Sweep(uri)
    two.experiment = one.experiment
    for sweep in (one, two):
        sweep.send([*whole_sweep()[:1], SavedViews(saved_views(sweep.name, FOUND))])
    slugs = {"clo-vs-blo", "speed", "configurations", "summary"}
    before = tags(uri, one.experiment)
    assert of_sweep(before, one.name) == of_sweep(before, two.name) == slugs
    newest_first = sorted(
        slugs, key=lambda slug: -json.loads(before[f"mlflow.sharedViewState.{two.name}.{slug}"])["updatedAt"]
    )
    assert newest_first[0] == "clo-vs-blo", "the menu begins with what was updated last"

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(one.experiment).experiment_id
    note = "what this is for\n\n" + before["mlflow.note.content"] + "\n\nand so on"
    client.set_experiment_tag(experiment, "mlflow.note.content", note)
    sent = one.send([SavedViews(saved_views(one.name, FOUND))])
    assert tags(uri, one.experiment) == {**before, "mlflow.note.content": note}
    assert [address.split("#")[0] for address in sent.views.values()] == ["http://127.0.0.1:5000/"] * 4

    more = ViewContents(FOUND.algorithms, FOUND.shared, FOUND.others, 140)
    one.send([SavedViews(saved_views(one.name, more))])
    after = tags(uri, one.experiment)
    key = f"mlflow.sharedViewState.{one.name}.speed"
    assert after.keys() == before.keys()
    assert {k for k in after if after[k] != before[k]} == {key, "mlflow.note.content"}
    assert json.loads(after[key])["createdAt"] == json.loads(before[key])["createdAt"]
    assert after["mlflow.note.content"] == note


def test_the_links_open_from_the_description_whatever_the_servers_name(tmp_path: Path, new_database) -> None:
    uri = new_database(tmp_path)
    sweep = Sweep(uri)
    sweep.send([SavedViews(saved_views(sweep.name, FOUND))])
    (line,) = tags(uri, sweep.experiment)["mlflow.note.content"].splitlines()
    assert line.startswith(
        f"**{sweep.name}**: [CLO vs BLO](#/experiments/1/runs?viewStateShareKey={sweep.name}.clo-vs-blo&"
    )
    assert line.count("](#/experiments/1/runs?viewStateShareKey=") == 4


def test_in_a_full_description_the_oldest_links_make_room_and_the_rest_stays(tmp_path: Path, new_database) -> None:
    uri = new_database(tmp_path)
    sweeps = [Sweep(uri) for _ in range(4)]
    own = "what this is for " + "x" * 18_500
    for sweep in sweeps:
        sweep.experiment = sweeps[0].experiment
        sweep.send([SavedViews(saved_views(sweep.name, FOUND))])
        if sweep is sweeps[0]:
            write_note(uri, sweep.experiment, own + "\n\n" + tags(uri, sweep.experiment)["mlflow.note.content"])
    lines = tags(uri, sweeps[0].experiment)["mlflow.note.content"].split("\n\n")
    there = [sweep.name for sweep in reversed(sweeps) if any(line.startswith(f"**{sweep.name}**") for line in lines)]
    assert 0 < len(there) < len(sweeps)
    assert there == [sweep.name for sweep in reversed(sweeps)][: len(there)], "the newest stay"
    assert own in lines
    assert [line for line in lines if "Links of older sweeps are dropped" in line] == lines[-1:]
    before = tags(uri, sweeps[0].experiment)
    sweeps[-1].send([SavedViews(saved_views(sweeps[-1].name, FOUND))])
    assert tags(uri, sweeps[0].experiment) == before

    full = "y" * 20_000
    write_note(uri, sweeps[0].experiment, full)
    sweeps[0].send([SavedViews(saved_views(sweeps[0].name, FOUND))])
    assert tags(uri, sweeps[0].experiment)["mlflow.note.content"] == full


NO_SUCH_TAGS = Fault(400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "no such tags here"}')


@pytest.fixture
def refused(mlflow_app) -> Iterator[str]:
    """A way to the server on which experiments take no tags."""
    with proxy(mlflow_app.url, lambda path: NO_SUCH_TAGS if "set-experiment-tag" in path else None) as url:
        yield url


@pytest.mark.slow
def test_a_server_that_rejects_the_tags_loses_nothing_else(refused: str, log_lines: Callable[[], list[str]]) -> None:
    sweep = Sweep(refused)
    events = whole_sweep()
    made = SavedViews(saved_views(sweep.name, FOUND))
    tracker = sweep.send([events[0], made, *events[1:-1], made, events[-1]])
    assert len(sweep.runs()) == 7
    assert tracker.views == {}
    assert tracker.url is not None
    (line,) = log_lines()
    assert "doesn't accept the saved views (INVALID_PARAMETER_VALUE: no such tags here)" in line
    assert f"`leebert-tune views {sweep.name}` tries again" in line


@pytest.mark.slow
@pytest.mark.parametrize("outage", [Fault(503, b"<html>busy</html>"), Fault()], ids=["busy", "cut"])
def test_views_wait_for_a_server_that_is_away_for_a_while(
    outage: Fault, mlflow_server, log_lines: Callable[[], list[str]]
) -> None:
    left = [3]

    def fault(path: str) -> Fault | None:
        left[0] -= "set-experiment-tag" in path
        return outage if "set-experiment-tag" in path and left[0] >= 0 else None

    with proxy(mlflow_server.url, fault) as url:
        sweep = Sweep(url)
        tracker = sweep.send([whole_sweep()[0], SavedViews(saved_views(sweep.name, FOUND))])
    assert len(of_sweep(tags(mlflow_server.url, sweep.experiment), sweep.name)) == 4
    assert len(tracker.views) == 4
    assert [("Training continues" in line, "is back" in line) for line in log_lines()] == [(True, False), (False, True)]


@pytest.mark.parametrize("status", quick.only([403], [403, 404, 501]))
def test_a_server_that_forbids_or_does_not_know_such_tags_holds_nothing_up(
    status: int, mlflow_app, log_lines: Callable[[], list[str]]
) -> None:
    refusal = Fault(status, b"no")
    with proxy(mlflow_app.url, lambda path: refusal if "set-experiment-tag" in path else None) as url:
        sweep = Sweep(url)
        start, *_, end = whole_sweep()
        sweep.send([start, SavedViews(saved_views(sweep.name, FOUND)), end])
    (line,) = log_lines()
    assert f"failed with error code {status}" in line
    sweep.uri = mlflow_app.url
    assert [run.info.status for run in sweep.runs().values()] == ["FINISHED"]


def test_views_that_were_taken_keep_their_links_when_later_ones_are_refused(
    mlflow_app, log_lines: Callable[[], list[str]]
) -> None:
    taken = [5]  # four views and the links

    def fault(path: str) -> Fault | None:
        taken[0] -= "set-experiment-tag" in path
        return NO_SUCH_TAGS if taken[0] < 0 and "set-experiment-tag" in path else None

    with proxy(mlflow_app.url, fault) as url:
        sweep = Sweep(url)
        more = ViewContents(FOUND.algorithms, FOUND.shared, FOUND.others, 140)
        tracker = sweep.send([whole_sweep()[0], *(SavedViews(saved_views(sweep.name, of)) for of in (FOUND, more))])
    assert taken[0] < 0
    assert len(tracker.views) == 4
    assert any("doesn't accept the saved views" in line for line in log_lines())


@pytest.mark.slow
def test_a_rebuild_ends_well_where_the_tags_are_rejected_and_prints_the_plain_link(refused: str, cli, tmp_path) -> None:
    made = made_sweep(tmp_path / "refused", refused, **SMALL)
    ran = cli("leebert-tune", "rebuild-mlflow", made.path)
    assert ran.code == 0, ran.err
    assert f"MLflow: {refused}/#/experiments/" in ran.out
    assert "viewStateShareKey" not in ran.out
    assert "doesn't accept the saved views" in ran.err
    again = cli("leebert-tune", "views", made.path)
    assert again.code == 1
    assert again.err.startswith("error: MLflow at ")
    assert "doesn't accept the saved views" in again.err
    assert len(again.err.splitlines()) == 1


@pytest.mark.slow
def test_the_command_makes_views_again_that_somebody_deleted(mlflow_app, cli, tmp_path) -> None:
    from mlflow import MlflowClient

    made = made_sweep(tmp_path / "sweeps" / "deleted", mlflow_app.url, **SMALL)
    assert cli("leebert-tune", "rebuild-mlflow", made.path).code == 0
    before = tags(mlflow_app.url, "leebert-mrpc")
    experiment = MlflowClient(mlflow_app.url).get_experiment_by_name("leebert-mrpc").experiment_id
    MlflowClient(mlflow_app.url).delete_experiment_tag(experiment, "mlflow.sharedViewState.deleted.speed")
    ran = cli("leebert-tune", "views", "deleted", "--storage", made.path.parent, "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["sweep"], ran.json["running"], ran.json["complete"]) == ("deleted", False, 2)
    after = tags(mlflow_app.url, "leebert-mrpc")
    assert after.keys() == before.keys()
    assert {key for key in after if after[key] != before[key]} <= {"mlflow.sharedViewState.deleted.speed"}
    plain = cli("leebert-tune", "views", "deleted", "--storage", made.path.parent)
    for (name, address), line in zip(ran.json["views"].items(), plain.out.splitlines(), strict=True):
        assert line.split()[-1] == address
        assert name in line


@pytest.mark.slow
def test_a_sweep_that_is_still_running_gets_its_views_and_is_reported_as_running(mlflow_app, cli, tmp_path) -> None:
    made = made_sweep(tmp_path / "running", mlflow_app.url, end=False, **SMALL)
    assert cli("leebert-tune", "rebuild-mlflow", made.path).code == 0
    lease = Lease.take(made.path)
    try:
        ran = cli("leebert-tune", "views", made.path)
    finally:
        lease.release()
    assert ran.code == 0, ran.err
    assert "still running: the views show its 2 completed configurations" in ran.out


def test_a_sweep_that_mlflow_does_not_have_or_that_nobody_has(mlflow_app, cli, tmp_path) -> None:
    made = made_sweep(tmp_path / "unsent", mlflow_app.url, tracking={"uri": mlflow_app.url, "experiment": "none"})
    ran = cli("leebert-tune", "views", made.path)
    assert ran.code == 1
    assert "has no configurations of sweep unsent in experiment 'none'" in ran.err
    assert f"leebert-tune rebuild-mlflow {made.path}" in ran.err
    with urllib.request.urlopen(f"{mlflow_app.url}/api/2.0/mlflow/experiments/search?max_results=100") as answer:
        assert "none" not in {one["name"] for one in json.load(answer)["experiments"]}, "and none was created"

    nothing = cli("leebert-tune", "views", "nothing", "--storage", tmp_path)
    assert (nothing.code, nothing.err) == (
        1,
        f"error: no sweep 'nothing' in {tmp_path}; its sweeps: unsent; set another storage by --storage or LEEBERT_STORAGE\n",
    )

    empty = made_sweep(tmp_path / "empty", mlflow_app.url, configs=0)
    ran = cli("leebert-tune", "views", empty.path)
    assert (ran.code, "has no configuration yet" in ran.err) == (1, True)


def test_views_from_another_folder_leave_no_empty_database_behind(cli, tmp_path, monkeypatch) -> None:
    made = made_sweep(tmp_path / "swept", "sqlite:///mlflow.db", **SMALL)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ran = cli("leebert-tune", "views", made.path)
    assert ran.code == 1
    assert f"no database {tmp_path}/elsewhere/mlflow.db; fill it by: leebert-tune rebuild-mlflow" in ran.err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_server_that_is_away_is_one_line(cli, tmp_path) -> None:
    with proxy("http://nowhere", lambda path: None) as url:
        pass  # nobody listens there any more
    made = made_sweep(tmp_path / "away", url, **SMALL)
    ran = cli("leebert-tune", "views", made.path)
    assert ran.code == 1
    assert ran.err.startswith("error: MLflow can't be used at ")


def test_another_version_of_the_server_is_named(mlflow_app, monkeypatch) -> None:
    import mlflow

    minor = ".".join(mlflow.__version__.split(".")[:2])
    assert minor in views.KNOWN_VERSIONS, "look at all views in a browser, then add it"
    assert saving.doubts(mlflow_app.url) == ""
    monkeypatch.setattr(saving, "KNOWN_VERSIONS", ("2.9",))
    assert f"this is {mlflow.__version__}" in saving.doubts(mlflow_app.url)
    assert saving.doubts("sqlite:///mlflow.db") == ""


@pytest.mark.slow
def test_a_sweep_ends_well_where_the_tags_are_rejected(refused: str, cli_without_ray, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_backbone(tmp_path / "backbone", layers=3)
    (tmp_path / "task.json").write_text(json.dumps(write_task(tmp_path / "data", n=80)))
    ran = cli_without_ray(
        "leebert-tune", "sweep", space(tmp_path / "space.yaml", tmp_path), "--name", "unwelcome",
        "--tracking-uri", refused,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert f"MLflow: {refused}/#/experiments/" in ran.out
    assert "viewStateShareKey" not in ran.out
    assert ran.err.count("doesn't accept the saved views") == 1
