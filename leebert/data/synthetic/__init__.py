"""A small paraphrase data set from templates, for demonstrations and tests: no download, no licence.

Half of the pairs are easy and half are hard, so that shallow exits suffice for some samples only.

| difficulty | paraphrase | different |
| --- | --- | --- |
| easy | almost the same words | an unrelated event |
| hard | voice, order and words changed | roles swapped, negated, or another number or day; same words or synonyms |
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from leebert.errors import DataError

LABELS = ("different", "paraphrase")

#: Agents and recipients: a word and its synonym.
_PARTIES = (
    ("museum", "gallery"), ("school", "academy"), ("hospital", "clinic"), ("company", "firm"),
    ("farmer", "grower"), ("lawyer", "attorney"), ("doctor", "physician"), ("teacher", "instructor"),
    ("shop", "store"), ("police", "officers"), ("author", "writer"), ("council", "assembly"),
    ("airline", "carrier"), ("bank", "lender"), ("newspaper", "daily"), ("student", "pupil"),
    ("tenant", "renter"), ("merchant", "trader"), ("director", "manager"), ("charity", "foundation"),
)  # fmt: skip
#: Objects: a plural and its synonym.
_OBJECTS = (
    ("paintings", "pictures"), ("cars", "automobiles"), ("letters", "notes"), ("houses", "homes"),
    ("coats", "jackets"), ("boats", "vessels"), ("computers", "machines"), ("bikes", "bicycles"),
    ("films", "movies"), ("stones", "rocks"), ("sofas", "couches"), ("photos", "photographs"),
    ("tickets", "passes"), ("carpets", "rugs"), ("presents", "gifts"), ("reports", "accounts"),
)  # fmt: skip
#: Verbs: past, base form, participle; past and participle of a synonym.
_VERBS = (
    ("sent", "send", "sent", "shipped", "shipped"),
    ("gave", "give", "given", "handed", "handed"),
    ("lent", "lend", "lent", "loaned", "loaned"),
    ("showed", "show", "shown", "presented", "presented"),
    ("offered", "offer", "offered", "proposed", "proposed"),
    ("mailed", "mail", "mailed", "posted", "posted"),
    ("delivered", "deliver", "delivered", "took", "taken"),
    ("awarded", "award", "awarded", "granted", "granted"),
)
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ADJECTIVES = ("old", "new", "small", "expensive", "red", "heavy", "broken", "rare")


@dataclasses.dataclass(frozen=True)
class Event:
    """An agent hands objects to a recipient; the numbers are positions in the word lists."""

    agent: int
    verb: int
    number: int
    adjective: int
    thing: int
    recipient: int
    day: int
    denied: bool = False

    def plain(self) -> str:
        """Write the event in the active voice, with the first words of the lists."""
        past, base = _VERBS[self.verb][:2]
        verb = f"did not {base}" if self.denied else past
        objects = f"{_NUMBERS[self.number]} {_ADJECTIVES[self.adjective]} {_OBJECTS[self.thing][0]}"
        agent, recipient = _PARTIES[self.agent][0], _PARTIES[self.recipient][0]
        return f"The {agent} {verb} {objects} to the {recipient} on {_DAYS[self.day]} ."

    def near(self, rng: random.Random) -> str:
        """Write the event almost as `plain`: the day first, or without the adjective."""
        text = self.plain().removesuffix(" .")
        day = f" on {_DAYS[self.day]}"
        if rng.random() < 0.5:
            return f"On {_DAYS[self.day]} , t{text.removesuffix(day)[1:]} ."
        return f"{text.replace(f' {_ADJECTIVES[self.adjective]} ', ' ', 1)} ."

    def reworded(self, rng: random.Random) -> str:
        """Write the event in the passive voice, mostly with synonyms."""
        participle = _VERBS[self.verb][4 if rng.random() < 0.7 else 2]
        noun = _OBJECTS[self.thing][rng.random() < 0.7]
        agent, recipient = (_PARTIES[i][rng.random() < 0.7] for i in (self.agent, self.recipient))
        objects = f"{_NUMBERS[self.number]} {_ADJECTIVES[self.adjective]} {noun}"
        verb = f"were {'not ' if self.denied else ''}{participle}"
        if rng.random() < 0.5:
            return f"On {_DAYS[self.day]} , {objects} {verb} to the {recipient} by the {agent} ."
        return f"{objects.capitalize()} {verb} to the {recipient} by the {agent} on {_DAYS[self.day]} ."

    def altered(self, rng: random.Random) -> Event:
        """Change the event: roles swapped, negated, another number or another day."""
        kind = rng.choice(("roles", "roles", "denied", "number", "day"))
        if kind == "roles":
            return dataclasses.replace(self, agent=self.recipient, recipient=self.agent)
        if kind == "denied":
            return dataclasses.replace(self, denied=not self.denied)
        if kind == "number":
            return dataclasses.replace(self, number=_another(rng, len(_NUMBERS), self.number))
        return dataclasses.replace(self, day=_another(rng, len(_DAYS), self.day))


def _another(rng: random.Random, count: int, current: int) -> int:
    return (current + rng.randrange(1, count)) % count


def _event(rng: random.Random) -> Event:
    agent = rng.randrange(len(_PARTIES))
    return Event(
        agent=agent,
        verb=rng.randrange(len(_VERBS)),
        number=rng.randrange(len(_NUMBERS)),
        adjective=rng.randrange(len(_ADJECTIVES)),
        thing=rng.randrange(len(_OBJECTS)),
        recipient=_another(rng, len(_PARTIES), agent),
        day=rng.randrange(len(_DAYS)),
        denied=rng.random() < 0.15,  # so that "not" does not reveal the label
    )


def _pair(rng: random.Random, event: Event, label: int, hard: bool) -> tuple[str, str]:
    if label == 1:
        return event.plain(), event.reworded(rng) if hard else event.near(rng)
    if hard:
        altered = event.altered(rng)
        # Half of them use the form of the hard paraphrases; otherwise the form would reveal the label.
        return event.plain(), altered.plain() if rng.random() < 0.5 else altered.reworded(rng)
    unrelated = _event(rng)
    different = dataclasses.replace(
        unrelated, thing=_another(rng, len(_OBJECTS), event.thing), verb=_another(rng, len(_VERBS), event.verb)
    )
    return event.plain(), rng.choice((different.plain(), different.reworded(rng)))


def demo_rows(rows: int, seed: int | str, avoid: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Generate sentence pairs, balanced by label and difficulty.

    About one pair in twenty shares its first sentence with the pair before, as in real data.

    Args:
        rows: Number of pairs.
        seed: The seed; equal seeds give equal pairs.
        avoid: Sentences that are not used.

    Returns:
        Dictionaries with `sentence1`, `sentence2`, `label` and `difficulty`.
    """
    rng = random.Random(f"paraphrases/{seed}")
    pairs: list[dict[str, Any]] = []
    event = _event(rng)
    used = set(avoid)
    # Each group of four has every kind once; shuffled, so that the order does not reveal the label.
    kinds = [(i % 2, i // 2 % 2 == 1) for i in range(rows)]
    rng.shuffle(kinds)
    while len(pairs) < rows:
        label, hard = kinds[len(pairs)]
        shared = bool(pairs) and rng.random() < 0.05
        event = event if shared else _event(rng)
        first, second = _pair(rng, event, label, hard)
        if second in used or first == second or (first in used and not shared):
            continue
        used |= {first, second}
        difficulty = "hard" if hard else "easy"
        pairs.append({"sentence1": first, "sentence2": second, "label": LABELS[label], "difficulty": difficulty})
    return pairs


def demo_task(folder: str | Path) -> dict[str, Any]:
    """Return the declaration of the data set as a task, for `own_task` or a YAML file."""
    return {
        "name": "demo",
        "files": {"train": str(Path(folder) / "train.jsonl"), "dev": str(Path(folder) / "dev.jsonl")},
        "text": ["sentence1", "sentence2"],
        "label": "label",
        "labels": list(LABELS),
        "metric": "accuracy",
        "group_by": ["sentence1", "sentence2"],
    }


def write_demo(folder: str | Path, rows: int = 600, dev_rows: int = 200, seed: int = 0) -> dict[str, Any]:
    """Write `train.jsonl` and `dev.jsonl`; equal arguments give equal files.

    Args:
        folder: Created if missing.
        rows: Number of training pairs.
        dev_rows: Number of development pairs.
        seed: The seed.

    Returns:
        The declaration of the task (:func:`demo_task`).

    Raises:
        DataError: Fewer than four pairs, which can't hold every kind.
    """
    folder = Path(folder)
    for name, count in (("rows", rows), ("dev_rows", dev_rows)):
        if count < 4:
            raise DataError(f"{folder}: {name} is {count}; at least 4 are needed, one of each kind of pair")
    folder.mkdir(parents=True, exist_ok=True)
    train = demo_rows(rows, f"{seed}/train")
    sentences = frozenset(row[column] for row in train for column in ("sentence1", "sentence2"))
    for name, pairs in (("train", train), ("dev", demo_rows(dev_rows, f"{seed}/dev", avoid=sentences))):
        text = "".join(json.dumps(row) + "\n" for row in pairs)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
    return demo_task(folder)
