"""A small data set of reviews from templates, for demonstrations and tests: no download, no licence.

A review has one opinion, which is its label. In half of the reviews, the easy ones, it is the first word. In the others, the hard
ones, it follows later, at one of three distances. An encoder whose first layers see only a few words
(:mod:`leebert.data.synthetic.encoder`) therefore needs few layers for easy reviews and more for hard ones.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from leebert.errors import DataError

LABELS = ("negative", "positive")

#: Reviews of the demo: few enough for a sweep in a minute or two on two cores.
ROWS, DEV_ROWS = 1176, 384

_POSITIVE = ("wonderful", "great", "lovely", "superb", "charming", "excellent")
_NEGATIVE = ("awful", "bad", "horrible", "poor", "dreadful", "dull")
_THINGS = (
    "soup", "bread", "wine", "pasta", "salad", "coffee", "waiter", "music", "room", "bed", "view", "pool", "garden", "staff",
    "menu", "service",
)  # fmt: skip
_PLACES = ("in the hotel", "by the river", "at the corner", "near the station", "in the harbour", "on the hill")
_TIMES = ("last week", "on Monday", "in spring", "this time", "for lunch", "after work")
_COMPANY = ("with friends", "with the family", "with my boss", "all alone")


@dataclasses.dataclass(frozen=True)
class Form:
    """A template of a review, with the opinion at another place in each.

    Attributes:
        template: The review; `{o}` is the opinion, `{t}` the thing, `{a}` and `{b}` two circumstances.
        difficulty: `easy` if the opinion comes first, else `hard`.
    """

    template: str
    difficulty: str


#: In six reviews, each label has the easy form three times and each hard form once.
FORMS = (
    *(Form("{o} {t} {a} {b} .", "easy"),) * 3,
    Form("What a {o} {t} {a} {b} .", "hard"),
    Form("The {t} {a} was {o} {b} .", "hard"),
    Form("The {t} {a} {b} was {o} .", "hard"),
)


def vocabulary() -> list[str]:
    """Return all words of the reviews in lower case, sorted."""
    phrases = (*_POSITIVE, *_NEGATIVE, *_THINGS, *_PLACES, *_TIMES, *_COMPANY)
    templates = " ".join(form.template for form in FORMS).split()
    words = {word for phrase in phrases for word in phrase.split()} | {w for w in templates if not w.startswith("{")}
    return sorted({word.lower() for word in words})


def _review(rng: random.Random, label: int, form: Form) -> str:
    kinds = rng.sample((_PLACES, _TIMES, _COMPANY), 2)
    a, b = (rng.choice(kind) for kind in kinds)
    opinion = rng.choice(_POSITIVE if label else _NEGATIVE)
    text = form.template.format(o=opinion, t=rng.choice(_THINGS), a=a, b=b)
    return text[0].upper() + text[1:]


def demo_rows(rows: int, seed: int | str, avoid: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Generate different reviews, balanced by label and form.

    Args:
        rows: Number of reviews.
        seed: The seed; equal seeds give equal reviews.
        avoid: Reviews that are not used.

    Returns:
        Dictionaries with `text`, `label` and `difficulty`.
    """
    rng = random.Random(f"reviews/{seed}")
    # Each group of twelve has every kind; shuffled, so that the order does not reveal the label.
    kinds = [(i % 2, FORMS[i // 2 % len(FORMS)]) for i in range(rows)]
    rng.shuffle(kinds)
    used, reviews = set(avoid), []
    for label, form in kinds:
        text = _review(rng, label, form)
        while text in used:
            text = _review(rng, label, form)
        used.add(text)
        reviews.append({"text": text, "label": LABELS[label], "difficulty": form.difficulty})
    return reviews


def demo_task(folder: str | Path) -> dict[str, Any]:
    """Return the declaration of the data set as a task, for `own_task` or a YAML file."""
    return {
        "name": "demo",
        "files": {"train": str(Path(folder) / "train.jsonl"), "dev": str(Path(folder) / "dev.jsonl")},
        "text": ["text"],
        "label": "label",
        "labels": list(LABELS),
        "metric": "accuracy",
    }


def write_demo(folder: str | Path, rows: int = 600, dev_rows: int = 200, seed: int = 0) -> dict[str, Any]:
    """Write `train.jsonl` and `dev.jsonl`; equal arguments give equal files.

    Args:
        folder: Created if missing.
        rows: Number of training reviews.
        dev_rows: Number of development reviews.
        seed: The seed.

    Returns:
        The declaration of the task (:func:`demo_task`).

    Raises:
        DataError: Fewer than twelve reviews, which can't hold every kind.
    """
    folder, kinds = Path(folder), len(FORMS) * len(LABELS)
    for name, count in (("rows", rows), ("dev_rows", dev_rows)):
        if count < kinds:
            raise DataError(f"{folder}: {name} is {count}; at least {kinds} are needed, one of each kind of review")
    folder.mkdir(parents=True, exist_ok=True)
    train = demo_rows(rows, f"{seed}/train")
    dev = demo_rows(dev_rows, f"{seed}/dev", avoid=frozenset(row["text"] for row in train))
    for name, reviews in (("train", train), ("dev", dev)):
        text = "".join(json.dumps(row) + "\n" for row in reviews)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
    return demo_task(folder)
