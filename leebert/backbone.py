"""Hugging Face encoders taken apart by layer, without a copy of anybody's modeling file.

An encoder is embeddings, a mask and M layers; :class:`LayerStack` gives access to the three, so that training can see
every layer and inference can stop after any. What differs between families is one entry of :data:`FAMILIES`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import PreTrainedModel

from leebert.errors import BackboneError

#: One layer of an encoder: its states (B, L, H) and attention mask → the next states.
Layer = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Family:
    """How an architecture is taken apart: its input states (B, L, H) and its M layers, one call each.

    counts_from_padding: whether positions are counted from `pad_token_id` + 1, as RoBERTa does, instead of from 0.
    """

    embed: Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor]
    layers: Callable[[Any], list[nn.Module]]
    counts_from_padding: bool = False


def _ids_and_types(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    # With one segment there is nothing to tell apart: whatever a tokenizer says, a token is of segment 0.
    types = batch.get("token_type_ids") if model.config.type_vocab_size > 1 else None
    states: torch.Tensor = model.embeddings(
        input_ids=batch["input_ids"], token_type_ids=types, position_ids=batch.get("position_ids")
    )
    return states


def _electra_embed(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    states = _ids_and_types(model, batch)
    return model.embeddings_project(states) if hasattr(model, "embeddings_project") else states


def _albert_layers(model: Any) -> list[nn.Module]:
    # ALBERT's layers share weights in groups: the same module stands in the list as often as it is applied.
    config = model.encoder.config  # which says fewer layers than the model's where some were taken out
    groups = albert_groups(config.num_hidden_layers, config.num_hidden_groups)
    return [model.encoder.albert_layer_groups[group] for group in groups]


def albert_groups(num_layers: int, num_groups: int) -> list[int]:
    """Which group of weights each layer of an ALBERT applies, as its code has it."""
    return [int(i / (num_layers / num_groups)) for i in range(num_layers)]


_ROBERTA = Family(_ids_and_types, lambda model: list(model.encoder.layer), counts_from_padding=True)

FAMILIES: dict[str, Family] = {
    "bert": Family(_ids_and_types, lambda model: list(model.encoder.layer)),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": Family(_electra_embed, lambda model: list(model.encoder.layer)),
    "albert": Family(
        lambda model, batch: model.encoder.embedding_hidden_mapping_in(_ids_and_types(model, batch)), _albert_layers
    ),
    "distilbert": Family(
        lambda model, batch: model.embeddings(batch["input_ids"], position_ids=batch.get("position_ids")),
        lambda model: list(model.transformer.layer),
    ),
}


class LayerStack:
    """An encoder as embeddings and M layers. Not a module: the parameters stay where Hugging Face put them."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        kind = encoder.config.model_type
        if kind not in FAMILIES:
            raise BackboneError(
                f"backbones of type {kind!r} are not known; known are {', '.join(FAMILIES)} "
                "(an entry of leebert.backbone.FAMILIES adds one)"
            )
        self.encoder = encoder
        self.family = FAMILIES[kind]

    def begin(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Input states (B, L, H) and the attention mask that the layers take (None where nothing is masked)."""
        states = self.family.embed(self.encoder, batch)
        mask = create_bidirectional_mask(
            config=self.encoder.config, inputs_embeds=states, attention_mask=batch.get("attention_mask")
        )
        return states, mask

    def layers(self) -> list[nn.Module]:
        """M callables of (states, mask), each returning the next states."""
        return self.family.layers(self.encoder)


def _similar(name: str) -> str:
    """Suggest an installed package whose name is similar; empty where there is none."""
    installed = [module.name for module in pkgutil.iter_modules() if module.ispkg]
    close = difflib.get_close_matches(name, installed, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def locate(spec: str) -> tuple[str, str | None]:
    """A backbone as the user names it → (folder or hub id, revision).

    `spec` is a folder, `package:NAME/path` for weights inside an installed package, or a hub id with optional @revision.
    """
    if spec.startswith("package:"):
        name, _, inner = spec.removeprefix("package:").partition("/")
        found = importlib.util.find_spec(name) if name.isidentifier() else None
        if found is None or not found.submodule_search_locations:
            raise BackboneError(
                f"backbone {spec}: no package {name!r} is installed{_similar(name)}; check the name, or install the package "
                "that contains the weights"
            )
        root = Path(next(iter(found.submodule_search_locations))).resolve()
        folder = (root / inner).resolve()
        if root not in (folder, *folder.parents):
            raise BackboneError(f"backbone {spec}: the path leaves the package")
        return _folder(spec, folder), None
    if Path(spec).exists() or spec.startswith((".", "/", "~")):
        return _folder(spec, Path(spec).expanduser()), None
    name, _, revision = spec.partition("@")
    return name, revision or None


def _folder(spec: str, folder: Path) -> str:
    if not folder.is_dir():
        raise BackboneError(f"backbone {spec}: there is no folder {folder}")
    if not (folder / "config.json").is_file():
        raise BackboneError(
            f"backbone {spec}: {folder} holds no config.json; point to a folder in Hugging Face's layout"
        )
    return str(folder)


def load_config(spec: str) -> PreTrainedConfig:
    """The encoder's configuration. Raises BackboneError with what to do."""
    from transformers import AutoConfig

    where, revision = locate(spec)
    with _explained(spec, where):
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
    if config.model_type == "leebert":
        raise BackboneError(f"backbone {spec}: this folder holds an early-exit model already; give a plain encoder")
    layers = getattr(config, "num_hidden_layers", None)
    if layers is not None and layers < 2:
        raise BackboneError(f"backbone {spec}: {layers} layer; an early-exit model needs at least two to exit between")
    if config.model_type not in FAMILIES:
        raise BackboneError(
            f"backbone {spec}: type {config.model_type!r} is not known; known are {', '.join(FAMILIES)}"
        )
    return config


def load_encoder(spec: str) -> PreTrainedModel:
    """The pretrained encoder, float32, from safetensors only: pickled weights are never opened, no remote code runs."""
    from transformers import AutoModel

    config = load_config(spec)
    where, revision = locate(spec)
    with _explained(spec, where), torch.random.fork_rng():
        encoder, told = AutoModel.from_pretrained(
            where,
            config=config,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    missing = sorted(told["missing_keys"])
    if any(key.startswith("pooler.") for key in missing):
        encoder.pooler = None  # a random pooler is worse than none, and would differ from process to process
    others = [key for key in missing if not key.startswith("pooler.")]
    if others:
        raise BackboneError(
            f"backbone {spec}: its weights lack {len(others)} parameter(s) of a {config.model_type} encoder, such as {others[0]}"
        )
    return encoder


def load_tokenizer(spec: str) -> Any:
    """The encoder's tokenizer. Raises BackboneError where there is none."""
    from transformers import AutoTokenizer

    where, revision = locate(spec)
    if Path(where).is_dir():
        known = (
            "tokenizer.json",
            "vocab.txt",
            "vocab.json",
            "spiece.model",
            "sentencepiece.bpe.model",
            "tokenizer.model",
        )
        if not any((Path(where) / name).is_file() for name in known):
            raise BackboneError(
                f"backbone {spec}: no tokenizer in {where} (none of {', '.join(known)}); save it beside the model"
            )
    with _explained(spec, where):
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=False)


class _explained:
    """Turns what transformers and the hub raise into one sentence that says what to do."""

    def __init__(self, spec: str, where: str) -> None:
        self.spec, self.where = spec, where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, BackboneError) or not isinstance(error, Exception):
            return
        text = str(error)
        first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        if "trust_remote_code" in text or "custom code" in text:
            raise BackboneError(
                f"backbone {self.spec}: it needs code from its repository, which is never run here"
            ) from None
        if "safetensors" in text and Path(self.where).is_dir():
            raise BackboneError(
                f"backbone {self.spec}: no model.safetensors in {self.where}; pickled weights (pytorch_model.bin) are "
                "never opened, convert them with transformers' save_pretrained on a machine that you trust"
            ) from None
        if not Path(self.where).is_dir() and _is_network(error):
            raise BackboneError(
                f"backbone {self.spec}: the Hugging Face hub can't be reached and the model is not in the local cache; "
                "check the connection, or give a local folder or package:NAME/path as --backbone"
            ) from None
        raise BackboneError(f"backbone {self.spec}: {first}") from None


def _is_network(error: BaseException) -> bool:
    words = (
        "connect",
        "offline",
        "couldn't reach",
        "max retries",
        "name resolution",
        "timed out",
        "cached files",
        "hub",
    )
    seen: BaseException | None = error
    while seen is not None:
        if any(word in f"{type(seen).__name__} {seen}".lower() for word in words):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
