"""Saved views as a person sees them: each is opened in Chromium at a real server, and its charts are looked into.

The screenshots lie in `build/views` afterwards (or where LEEBERT_SCREENSHOTS says), to be looked at.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import NO_ASSISTANT, Browser, browser, chromium
from made_sweep import made_sweep

from tune.analysis.labels import algorithm_colour

pytestmark = pytest.mark.slow
NAME = "views-made"
SCREENSHOTS = Path(os.environ.get("LEEBERT_SCREENSHOTS") or Path(__file__).resolve().parent.parent / "build" / "views")
CLO, BLO = map(algorithm_colour, ("clo-v2", "blo"))

LOOK = """
(() => {
  const hex = c => '#' + (c.match(/[0-9]+/g) || []).slice(0, 3).map(n => (+n).toString(16).padStart(2, '0')).join('');
  const colours = (card, what, property) =>
    [...new Set([...card.querySelectorAll(what)].map(mark => hex(getComputedStyle(mark)[property])))].sort();
  const text = element => ((element || {}).innerText || '').trim();
  return {
    cards: [...document.querySelectorAll("[data-testid='experiment-view-compare-runs-card']")].map(card => ({
      title: text(card).split('\\n')[0],
      // MLflow draws each line twice, one time for its points.
      lines: new Set([...card.querySelectorAll('.scatterlayer path.js-line')].map(line => line.getAttribute('d'))).size,
      line_colours: colours(card, '.scatterlayer path.js-line', 'stroke'),
      points: card.querySelectorAll('.scatterlayer path.point').length,
      point_colours: colours(card, '.scatterlayer path.point', 'fill'),
      pictures: [...card.querySelectorAll('img')].filter(image => image.complete).map(image => image.naturalWidth),
      widths: [...card.querySelectorAll('img')].map(image => image.clientWidth),
      axes: card.querySelectorAll('svg .axis').length,
      words: [text(card), ...[...card.querySelectorAll('svg text')].map(label => label.textContent)].join(' '),
    })),
    sections: [...document.querySelectorAll("[data-testid='experiment-view-compare-runs-section-header']")].map(
      header => text(header).split('\\n')[0]),
    rows: [...document.querySelectorAll('.ag-pinned-left-cols-container [role=row]')].map(text).filter(Boolean),
    columns: [...document.querySelectorAll('.ag-header-cell')].map(text).filter(Boolean),
    view: text(document.querySelector("[data-testid='saved-views-trigger']")),
    matching: text(document.body).match(/([0-9]+) matching runs/)?.[1] || '',
    notes: [...document.querySelectorAll('p')].map(text).filter(note => note.includes('—')),
    links: [...document.querySelectorAll('a[href*="viewStateShareKey"]')].map(link => [text(link), link.href]),
  };
})()
"""


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with browser(chromium()) as one:
        one.before_each_page(NO_ASSISTANT)
        yield one


@pytest.fixture(scope="module")
def addresses(page, cli, mlflow_server, tmp_path_factory) -> dict[str, str]:
    """The views of a sweep of 24 configurations of CLO-v2 and 12 of BLO, of which the last CLO-v2 is pruned."""
    made = made_sweep(tmp_path_factory.mktemp("browser") / NAME, mlflow_server.url)
    ran = cli("leebert-tune", "rebuild-mlflow", made.path, "--json")
    assert ran.code == 0, ran.err
    return {name.removeprefix(f"{NAME}: "): address for name, address in ran.json["views"].items()}


def look(page: Browser, url: str, file: str, height: int, done: Any, seconds: float = 90.0) -> dict[str, Any]:
    """What a page shows once `done` says so of it twice in a row with nothing moving; a screenshot either way."""
    # What lies outside of the window is not drawn.
    page.size(1500, height)
    page.open(url)
    deadline, before = time.monotonic() + seconds, None
    while True:
        time.sleep(0.5)
        seen = page.evaluate(LOOK)
        if (seen == before and done(seen)) or time.monotonic() > deadline:
            page.screenshot(SCREENSHOTS / f"{file}.png")
            return dict(seen)
        before = seen


def drawn(*titles: str) -> Any:
    """Whether these cards, and only these, hold marks."""

    def done(seen: dict[str, Any]) -> bool:
        marks = [card["lines"] + card["points"] + card["axes"] + len(card["pictures"]) for card in seen["cards"]]
        return [card["title"] for card in seen["cards"]] == list(titles) and all(marks)

    return done


def by_title(seen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {card["title"]: card for card in seen["cards"]}


def test_clo_vs_blo(page, addresses) -> None:
    seen = look(page, addresses["CLO vs BLO"], "clo-vs-blo", 3800, drawn("Image grid", "Image grid"))
    assert seen["view"] == f"{NAME}: CLO vs BLO"
    assert seen["sections"] == ["Verdict on CLO-v2 and BLO", "Scores and loss weights ω by exit"]
    verdict, by_exit = seen["cards"]
    assert (verdict["pictures"], by_exit["pictures"]) == ([900, 900], [900, 900]), "in full size"
    assert "Summary · CLO-v2 minus BLO" in verdict["words"]
    assert any("CLO-v2 and BLO: +" in text for text in seen["notes"]), "the verdict is above the runs"
    assert min(verdict["widths"]) > 480, "the list of runs is folded away"


def test_speed(page, addresses) -> None:
    titles = ("score in per cent", "layers needed vs. score (%)")
    seen = look(page, addresses["speed"], "speed", 1560, drawn(*titles))
    cards = by_title(seen)
    assert list(cards) == list(titles)
    curve, points = (cards[title] for title in titles)
    assert (curve["lines"], set(curve["line_colours"])) == (35, {CLO, BLO})
    assert "CLO-v2 20 · λ1=" in curve["words"], "the legend names configurations"
    assert "layer speed-up" in curve["words"], "the axis has a title"
    assert set(points["point_colours"]) == {CLO, BLO}
    assert points["points"] == 35


def test_options(page, addresses) -> None:
    options = ("log10 λ1", "log10 λ2", "batch size", "C", "sd over runs (points)")
    titles = ("Parallel Coordinates", "Parallel Coordinates", *(f"{option} vs. score (%)" for option in options))
    seen = look(page, addresses["options"], "configurations", 1950, drawn(*titles))
    assert [card["title"] for card in seen["cards"]] == list(titles)
    every, some = seen["cards"][:2]
    assert (every["axes"], some["axes"]) == (5, 5)
    for word in (
        "log10_lr_theta",
        "variant",
        "log10_lr_omega",
        "batch_size",
        "mean score in per cent",
        "BLO",
        "CLO-v2 C=4",
    ):
        assert word in every["words"]
    assert "cycle_length" in some["words"]
    for card in seen["cards"][2:]:
        both = {CLO} if card["title"].startswith("C ") else {CLO, BLO}
        assert set(card["point_colours"]) == both


def test_no_title_is_cut(page, addresses) -> None:
    """Of sections and of charts, at the smaller of the usual widths."""
    cut = """[...document.querySelectorAll("[data-testid='experiment-view-compare-runs-section-header'] span, "
        + "[data-testid='experiment-view-compare-runs-card'] h5, [data-testid='experiment-view-compare-runs-card'] h4")]
        .filter(title => title.scrollWidth > title.clientWidth + 1 && getComputedStyle(title).overflow === 'hidden')
        .map(title => title.innerText)"""
    for name, cards in (("speed", 2), ("options", 7)):
        look(page, addresses[name], f"{name}-titles", 1950, lambda seen, n=cards: len(seen["cards"]) == n)
        page.size(1440, 1950)
        assert page.evaluate(cut) == []


def test_summary(page, addresses) -> None:
    seen = look(page, addresses["summary"], "summary", 3800, drawn("Image grid", "Image grid"))
    assert seen["sections"] == ["Scores and differences of all methods", "Scores and differences by exit"]
    assert [len(card["pictures"]) for card in seen["cards"]] == [2, 2]


def test_the_table_holds_what_is_useful_and_no_folds(page, addresses) -> None:
    url = addresses["options"].replace("compareRunsMode=CHART", "compareRunsMode=TABLE")
    page.size(1500, 1000)
    seen = look(page, url, "table", 1000, lambda seen: len(seen["rows"]) >= 10 and "cv/layers" in seen["columns"])
    useful = {"variant", "cv/score_pct", "cv/score_std_pct", "cv/layers", "cv/cells", "lr_theta", "lr_omega"}
    others = {
        "batch_size",
        "cycle_length",
        "outcome",
        "Run Name",
        "Created",
        "Duration",
        "Parameters",
        "Metrics",
        "Tags",
    }
    assert useful <= set(seen["columns"]) <= useful | others
    assert not any(re.search(r" s0 f\d", row) for row in seen["rows"])


def test_a_sweep_s_run_shows_its_dataset_source_and_verdict(page, addresses, mlflow_server) -> None:
    from mlflow import MlflowClient

    experiment = addresses["summary"].split("#/experiments/")[1].split("/")[0]
    (run,) = MlflowClient(mlflow_server.url).search_runs([experiment], f"tags.sweep = '{NAME}' AND tags.kind = 'sweep'")
    assert run.data.tags["mlflow.note.content"] == run.data.tags["verdict"]
    url = f"{mlflow_server.url}/#/experiments/{experiment}/runs/{run.info.run_id}?workflowType=machine_learning"
    words = ("CLO-v2 and BLO: +", "mrpc", "leebert-tune sweep", "c0ffee", "Model training")
    page.size(1500, 1400)
    page.open(url)
    deadline, text = time.monotonic() + 60, ""
    while time.monotonic() < deadline and not all(word in text for word in words):
        time.sleep(0.5)
        text = page.evaluate("document.body ? document.body.innerText : ''")
    page.screenshot(SCREENSHOTS / "run.png")
    assert [word for word in words if word not in text] == []


def test_the_links_are_above_the_runs_and_lead_to_the_views(page, addresses, mlflow_server) -> None:
    experiment = addresses["summary"].split("?")[0]
    url = f"{experiment}?workflowType=machine_learning"
    seen = look(page, url, "experiment", 900, lambda seen: any(href in addresses.values() for _, href in seen["links"]))
    mine = {name: href for name, href in seen["links"] if NAME in href}
    assert mine == addresses
