"""Tiny encoders of every supported family, made from configurations, and a tokenizer for them; nothing is downloaded."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch

from leebert.methods import METHODS

#: Methods that cut parts which only encoders have; their contracts are tested on encoders.
OF_ENCODERS = frozenset(name for name, told in METHODS.items() if told.group == "static") | {"cost-eff"}

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "sat",
    "ran",
    "flew",
    "on",
    "under",
    "over",
    "mat",
    "roof",
    "tree",
    "big",
    "small",
    "red",
    "blue",
    "old",
    "new",
    "is",
    "was",
    "not",
    "very",
    "and",
    "or",
    "man",
    "woman",
    "child",
    "saw",
    "heard",
    "found",
    "book",
    "house",
    "car",
    "fast",
    "slow",
    "good",
    "bad",
    "happy",
    "sad",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FAMILIES = ("bert", "albert", "roberta", "electra", "distilbert")
#: With the two that are RoBERTa's code under other names, for which a few tests suffice.
EVERY_FAMILY = (*FAMILIES, "xlm-roberta", "camembert")
COMMON: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "num_hidden_layers": 4,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def encoder(family: str, layers: int = 4, seed: int = 0, **options: Any) -> Any:
    """A random encoder of a family, 32 hidden units: a copy of the first that was asked for like this."""
    made, state = _made(family, layers, seed, tuple(sorted(options.items())))
    torch.set_rng_state(state)
    return copy.deepcopy(made)


@functools.cache
def _made(family: str, layers: int, seed: int, given: tuple[tuple[str, Any], ...]) -> tuple[Any, torch.Tensor]:
    """The encoder, and the state in which making it left torch's generator."""
    from transformers import AutoConfig, AutoModel, DistilBertConfig

    options = dict(given)
    torch.manual_seed(seed)
    shape = {**COMMON, "num_hidden_layers": layers, **options}
    if family == "distilbert":
        config = DistilBertConfig(
            vocab_size=64, dim=32, n_heads=2, hidden_dim=48, n_layers=layers, max_position_embeddings=64
        )
    else:
        narrow = {"embedding_size": 16} if family in ("albert", "electra") else {}
        config = AutoConfig.for_model(family, **shape, **narrow)
    return AutoModel.from_config(config), torch.get_rng_state()


def tokenizer() -> Any:
    """A word-level tokenizer in BERT's layout."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def save_backbone(folder: Path, family: str = "bert", **options: Any) -> Path:
    """An encoder and its tokenizer in a folder, as the hub lays them out."""
    encoder(family, **options).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def batch(rows: int = 6, length: int = 11, seed: int = 0, padded: bool = True) -> dict[str, torch.Tensor]:
    """Random ids; later rows are shorter where `padded`."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (rows, length), generator=g)
    mask = torch.ones_like(ids)
    if padded:
        for i in range(rows):
            mask[i, length - i :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.randint(0, 2, (rows,), generator=g)}


def text(length: int) -> dict[str, torch.Tensor]:
    """One row of `length` tokens without padding."""
    ids = torch.ones(1, length, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def text_rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Sentence pairs whose label is whether the second repeats the first's first word."""
    import random

    rng = random.Random(seed)
    rows = []
    for i in range(n):
        first = [rng.choice(WORDS) for _ in range(rng.randint(3, 8))] + [str(i)]
        label = rng.choice(["no", "yes"])
        second = (
            [first[0] if label == "yes" else "bad"]
            + [rng.choice(WORDS[:20]) for _ in range(rng.randint(2, 6))]
            + [str(i)]
        )
        rows.append({"a": " ".join(first), "b": " ".join(second), "label": label})
    return rows


def graded_rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Sentence pairs of happy and sad words; the more of one kind, the surer the label: easy rows and hopeless ones."""
    import math
    import random

    rng = random.Random(seed)
    rows = []
    for i in range(n):
        happy, sad = rng.randint(0, 5), rng.randint(0, 5)
        label = "yes" if rng.random() < 1 / (1 + math.exp(sad - happy)) else "no"
        words = ["happy"] * happy + ["sad"] * sad + [rng.choice(WORDS[:20]) for _ in range(rng.randint(2, 5))]
        rng.shuffle(words)
        rows.append({"a": " ".join(words[::2]), "b": " ".join([*words[1::2], str(i)]), "label": label})
    return rows


def write_task(folder: Path, n: int = 120) -> dict[str, Any]:
    """Train and dev files of such pairs, and the declaration of the task."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    for split, count, seed in (("train", n, 0), ("dev", 40, 1)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in text_rows(count, seed)))
    return {
        "name": "pairs", "files": {s: str(folder / f"{s}.jsonl") for s in ("train", "dev")}, "text": ["a", "b"],
        "label": "label", "labels": ["no", "yes"], "metric": "accuracy",
    }  # fmt: skip
