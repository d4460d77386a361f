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
      bars: card.querySelectorAll('.barlayer .point path').length,
      bar_colours: colours(card, '.barlayer .point path', 'fill'),
      axes: card.querySelectorAll('svg .axis').length,
      words: [text(card), ...[...card.querySelectorAll('svg text')].map(label => label.textContent)].join(' '),
    })),
    sections: [...document.querySelectorAll("[data-testid='experiment-view-compare-runs-section-header']")].map(
      header => text(header).split('\\n')[0]),
    rows: [...document.querySelectorAll('.ag-pinned-left-cols-container [role=row]')].map(text).filter(Boolean),
    columns: [...document.querySelectorAll('.ag-header-cell')].map(text).filter(Boolean),
    view: text(document.querySelector("[data-testid='saved-views-trigger']")),
    matching: text(document.body).match(/([0-9]+) matching runs/)?.[1] || '',
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
        marks = [card["lines"] + card["points"] + card["bars"] + card["axes"] for card in seen["cards"]]
        return [card["title"] for card in seen["cards"]] == list(titles) and all(marks)

    return done


def by_title(seen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {card["title"]: card for card in seen["cards"]}


def test_clo_vs_blo(page, addresses) -> None:
    titles = ("depth/score", "depth/omega_ce", "cv/score_pct", "cv/score_std_pct", "cv/layers")
    seen = look(page, addresses["CLO vs BLO"], "clo-vs-blo", 1280, drawn(*titles))
    assert [card["title"] for card in seen["cards"]] == list(titles)
    assert seen["view"] == f"{NAME}: CLO vs BLO"
    assert seen["sections"] == ["Score and ω by exit: mean and range", "Cross-validated score and layers needed"]
    cards = by_title(seen)
    for title in titles[:2]:
        # A mean and the two edges of the range, for either group.
        assert cards[title]["lines"] == 6
        assert {CLO, BLO} <= set(cards[title]["line_colours"])
        assert cards[title]["points"] == 36, "each at 6 exits"
        assert "depth/layer" in cards[title]["words"]
        assert all(f"{group} ({title})" in cards[title]["words"] for group in ("CLO-v2", "BLO"))
    for title in titles[2:]:
        assert (cards[title]["bars"], set(cards[title]["bar_colours"])) == (2, {CLO, BLO})
    assert seen["matching"] == "35", "completed configurations; neither folds, nor what was pruned"
    assert not any(re.search(r" s0 f\d", row) for row in seen["rows"])


def test_speed_against_accuracy(page, addresses) -> None:
    titles = ("curve/score", "cv/layers vs. cv/score_pct")
    seen = look(page, addresses["score against mean exit layer"], "speed", 1560, drawn(*titles))
    cards = by_title(seen)
    assert list(cards) == list(titles)
    curve, points = (cards[title] for title in titles)
    assert (curve["lines"], set(curve["line_colours"])) == (35, {CLO, BLO})
    assert "curve/layers" in curve["words"]
    assert set(points["point_colours"]) == {CLO, BLO}
    assert points["points"] == 35


def test_all_configurations(page, addresses) -> None:
    options = ("log10_lr_theta", "log10_lr_omega", "batch_size", "cycle_length", "cv/score_std_pct")
    titles = ("Parallel Coordinates", "Parallel Coordinates", *(f"{option} vs. cv/score_pct" for option in options))
    seen = look(page, addresses["all configurations"], "configurations", 1950, drawn(*titles))
    assert [card["title"] for card in seen["cards"]] == list(titles)
    every, some = seen["cards"][:2]
    assert (every["axes"], some["axes"]) == (5, 5)
    for word in ("log10_lr_theta", "variant", "log10_lr_omega", "batch_size", "cv/score_pct", "BLO", "CLO-v2 C=4"):
        assert word in every["words"]
    assert "cycle_length" in some["words"]
    for card in seen["cards"][2:]:
        both = {CLO} if card["title"].startswith("cycle_length") else {CLO, BLO}
        assert set(card["point_colours"]) == both
    assert seen["matching"] == "36", "what was pruned is here as well"


def test_summary(page, addresses) -> None:
    lines = [" vs ".join(f"{key}{end}" for end in ("", "_low", "_high")) for key in ("paired/diff", "summary/score")]
    bars = [f"{key}{end}" for key in ("paired/diff_pct", "summary/score_pct") for end in ("_low", "", "_high")]
    seen = look(page, addresses["summary"], "summary", 2080, drawn(*lines, *bars))
    assert [card["title"] for card in seen["cards"]] == [*lines, *bars]
    diff, score = (by_title(seen)[title] for title in lines)
    assert (score["lines"], set(score["line_colours"])) == (6, {CLO, BLO})
    assert (diff["lines"], len(diff["line_colours"])) == (6, 2), "C=2 and C=4, either with its interval"
    assert not {CLO, BLO} & set(diff["line_colours"])
    assert all(by_title(seen)[title]["bars"] == 2 for title in bars)
    assert (seen["matching"], len(seen["rows"])) == ("4", 4)


def test_the_table_holds_what_is_useful_and_no_folds(page, addresses) -> None:
    url = addresses["all configurations"].replace("compareRunsMode=CHART", "compareRunsMode=TABLE")
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


def test_the_links_are_above_the_runs_and_lead_to_the_views(page, addresses, mlflow_server) -> None:
    experiment = addresses["summary"].split("?")[0]
    url = f"{experiment}?workflowType=machine_learning"
    seen = look(page, url, "experiment", 900, lambda seen: any(href in addresses.values() for _, href in seen["links"]))
    mine = {name: href for name, href in seen["links"] if NAME in href}
    assert mine == addresses
