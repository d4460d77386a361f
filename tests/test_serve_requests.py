"""Requests of the server: what is read, what is refused and how; metrics in Prometheus' format."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tune.serve.metrics import METRICS, Metrics, page
from tune.serve.requests import Limits, Refusal, check_content_type, read_request

COLUMNS = (("sentence1", "#1 String"), ("sentence2", "#2 String"))
LIMITS = Limits(texts=3, characters=50)
RECORD = {"sentence1": "one", "sentence2": "two"}


def read(value, columns=COLUMNS):
    return read_request(json.dumps(value).encode(), columns, LIMITS)


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": [RECORD]},
        {"instances": [{"#1 String": "one", "#2 String": "two", "id": 7}]},
        {"inputs": [RECORD], "params": None},
        {"dataframe_split": {"columns": ["sentence2", "sentence1"], "data": [["two", "one"]]}},
    ],
)
def test_mlflows_forms_of_a_table_give_the_same_texts(body):
    assert read(body).texts == [("one", "two")]


def test_a_request_without_rows_has_no_texts():
    assert read({"dataframe_records": []}).texts == []


def test_parameters_that_choose_exits_are_kept_and_nulls_left_out():
    params = {"max_loss": 0.5, "threshold": None, "truncate": True, "batch_size": 8}
    request = read({"inputs": [RECORD], "params": params})
    assert (request.choice, request.truncate) == ({"max_loss": 0.5}, True)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"[]", 422, "a list: send an object with dataframe_records"),
        (b"{}", 422, "no rows; send"),
        (b'{"dataframe_record": []}', 422, "did you mean"),
        (b'{"inputs": [], "instances": []}', 422, "instances and inputs"),
        (b'{"inputs": 3}', 422, "a number: should be a list of rows"),
        (b'{"inputs": [null]}', 422, "row 0 is null"),
        (b'{"inputs": [{"sentence1": "a"}]}', 422, "row 0: no column sentence2 or #2 String"),
        (b'{"inputs": [{"sentence1": "a", "sentence2": " "}]}', 422, "row 0, column sentence2"),
        (b'{"inputs": [{"sentence1": 1, "sentence2": "b"}]}', 422, "1 should be a text"),
        (b'{"inputs": [{"sentence1": "a", "#1 String": "c", "sentence2": "b"}]}', 422, "name the same text"),
        (b'{"inputs": [{"sentence1": "\\ud800", "sentence2": "b"}]}', 422, "should be a text"),
        (b'{"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}', 422, "row 0: should be a list of 1"),
        (b'{"inputs": [], "params": []}', 422, "params is a list"),
        (b'{"inputs": [], "params": {"treshold": 1}}', 422, "did you mean"),
        (b'{"inputs": [], "params": {"threshold": NaN}}', 422, "should be a finite number"),
        (b'{"inputs": [], "params": {"max_loss": true}}', 422, "should be a finite number"),
        (b'{"inputs": [], "params": {"threshold": 1' + b"0" * 400 + b"}}", 422, "should be a finite number"),
        (b'{"inputs": [], "params": {"patience": 0}}', 422, "patience: 0 should be a whole number"),
        (b'{"inputs": [], "params": {"truncate": "yes"}}', 422, "true or false"),
        (b'{"inputs": [], "params": {"criterion": 3}}', 422, "the name of an exit criterion"),
    ],
)
def test_bad_requests_are_refused_with_one_message_that_says_where(body, status, message):
    with pytest.raises(Refusal, match=message.replace("(", r"\(")) as caught:
        read_request(body, COLUMNS, LIMITS)
    assert caught.value.status == status
    assert "\n" not in str(caught.value)
    assert set(json.loads(caught.value.body)) == {"error_code", "message"}


def test_limits_of_rows_and_characters():
    with pytest.raises(Refusal, match="4 rows") as caught:
        read({"inputs": [RECORD] * 4})
    assert caught.value.status == 413
    with pytest.raises(Refusal, match="51 characters, and the server takes 50") as caught:
        read({"inputs": [RECORD | {"sentence2": "x" * 51}]})
    assert caught.value.status == 422


def test_only_json_is_taken():
    check_content_type("application/json")
    check_content_type("Application/JSON; charset=utf-8")
    for other in ("", "text/csv", "application/x-www-form-urlencoded", "application/jsonx"):
        with pytest.raises(Refusal, match="application/json") as caught:
            check_content_type(other)
        assert caught.value.status == 415


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["inputs", "params", "sentence1", "sentence2", "threshold", "columns", "data"]), inner
        )
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(_JSON)
def test_any_json_is_read_or_refused(value):
    try:
        texts, refusal = read(value).texts, None
    except Refusal as error:
        texts, refusal = [], error
    assert all(len(row) == 2 for row in texts)
    assert refusal is None or (refusal.status in (400, 413, 422) and len(refusal.body) < 1000)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(body):
    with pytest.raises(Refusal):
        read_request(body, COLUMNS, LIMITS)


def test_the_page_of_metrics_is_what_prometheus_reads():
    first, second = Metrics(), Metrics()
    first.add("requests_total", status=200)
    first.add("requests_total", 2, status=429)
    for size in (1, 3, 1000):
        second.observe("batch_texts", size)
    second.set("threshold", 0.25)
    second.add("texts_total", 5, exit_layer=3)
    text = page({"": first.snapshot(), 'a"\n': json.loads(json.dumps(second.snapshot()))})
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {s.labels["status"]: s.value for s in families["leebert_requests"].samples} == {"200": 1, "429": 2}
    buckets = {s.labels.get("le", s.name): s.value for s in families["leebert_batch_texts"].samples}
    assert (buckets["1"], buckets["2"], buckets["4"], buckets["64"], buckets["+Inf"]) == (1, 1, 2, 2, 3)
    assert (buckets["leebert_batch_texts_sum"], buckets["leebert_batch_texts_count"]) == (1004, 3)
    assert families["leebert_threshold"].samples[0].labels == {"replica": 'a"\n'}
    assert all(family.documentation for family in families.values())


def test_gauges_of_an_ended_replica_go_and_its_counters_stay():
    metrics = Metrics()
    metrics.set("threshold", 0.5)
    metrics.add("texts_total", exit_layer=1)
    text = page({"a": metrics.snapshot()}, frozenset({"a"}))
    assert "leebert_texts_total" in text
    assert "leebert_threshold" not in text
    assert all(help_.endswith(".") for _, help_, _ in METRICS.values())
