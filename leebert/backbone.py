"""Run Hugging Face encoders layer by layer, without copies of their modeling files.

An encoder consists of embeddings, a mask and M layers. :class:`LayerStack` gives access to all three, so that training can
attach exits to every layer and inference can stop after any. Families differ only in their entry of :data:`FAMILIES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import PreTrainedModel

from leebert.backbone_files import locate
from leebert.errors import BackboneError

#: One layer of an encoder: maps states (B, L, H) and the attention mask to the next states.
Layer = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Family:
    """Access to the parts of an architecture.

    Attributes:
        embed: Computes the input states (B, L, H) of a model and a batch.
        layers: Returns the model's M layers.
        counts_from_padding: Whether positions count from `pad_token_id` + 1, as in RoBERTa, instead of from 0.
    """

    embed: Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor]
    layers: Callable[[Any], list[nn.Module]]
    counts_from_padding: bool = False


def _ids_and_types(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    # With one segment, every token belongs to segment 0, whatever the tokenizer returns.
    types = batch.get("token_type_ids") if model.config.type_vocab_size > 1 else None
    states: torch.Tensor = model.embeddings(
        input_ids=batch["input_ids"], token_type_ids=types, position_ids=batch.get("position_ids")
    )
    return states


def _electra_embed(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    states = _ids_and_types(model, batch)
    return model.embeddings_project(states) if hasattr(model, "embeddings_project") else states


def _albert_layers(model: Any) -> list[nn.Module]:
    # ALBERT's layers share weights in groups: the list holds the same module as often as it is applied.
    config = model.encoder.config  # has fewer layers than the model's configuration if some were removed
    groups = albert_groups(config.num_hidden_layers, config.num_hidden_groups)
    return [model.encoder.albert_layer_groups[group] for group in groups]


def albert_groups(num_layers: int, num_groups: int) -> list[int]:
    """Return the group of weights that each layer of an ALBERT applies, as in its code."""
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
    """An encoder as embeddings and M layers. It is not a module: the parameters keep their Hugging Face names.

    Args:
        encoder: A Hugging Face encoder.

    Raises:
        BackboneError: The family is not supported.
    """

    def __init__(self, encoder: PreTrainedModel) -> None:
        kind = encoder.config.model_type
        if kind not in FAMILIES:
            raise BackboneError(
                f"backbones of type {kind!r} are not supported; supported types are {', '.join(FAMILIES)} "
                "(add one to leebert.backbone.FAMILIES)"
            )
        self.encoder = encoder
        self.family = FAMILIES[kind]

    def begin(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute the input states (B, L, H) and the attention mask of the layers (None if nothing is masked)."""
        states = self.family.embed(self.encoder, batch)
        mask = create_bidirectional_mask(
            config=self.encoder.config, inputs_embeds=states, attention_mask=batch.get("attention_mask")
        )
        return states, mask

    def layers(self) -> list[nn.Module]:
        """Return the M layers, callables (states, mask) → next states."""
        return self.family.layers(self.encoder)


def load_config(spec: str) -> PreTrainedConfig:
    """Load the encoder's configuration. Raises BackboneError."""
    from transformers import AutoConfig

    location, revision = locate(spec)
    with _explained(spec, location):
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
    if config.model_type == "leebert":
        raise BackboneError(f"backbone {spec}: this folder already holds an early-exit model; give a plain encoder")
    layers = getattr(config, "num_hidden_layers", None)
    if layers is not None and layers < 2:
        raise BackboneError(f"backbone {spec}: {layers} layer; an early-exit model needs at least two")
    if config.model_type not in FAMILIES:
        raise BackboneError(
            f"backbone {spec}: type {config.model_type!r} is not supported; supported types are {', '.join(FAMILIES)}"
        )
    return config


def load_encoder(spec: str) -> PreTrainedModel:
    """Load the pretrained encoder in float32, from safetensors only, without pickles and remote code. Raises BackboneError."""
    from transformers import AutoModel

    config = load_config(spec)
    location, revision = locate(spec)
    with _explained(spec, location), torch.random.fork_rng():
        encoder, loading = AutoModel.from_pretrained(
            location,
            config=config,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    missing = sorted(loading["missing_keys"])
    if any(key.startswith("pooler.") for key in missing):
        encoder.pooler = None  # a random pooler is worse than none, and would differ between processes
    absent = [key for key in missing if not key.startswith("pooler.")]
    if absent:
        raise BackboneError(
            f"backbone {spec}: its weights lack {len(absent)} parameter(s) of a {config.model_type} encoder, such as {absent[0]}"
        )
    return encoder


def load_tokenizer(spec: str) -> Any:
    """Load the encoder's tokenizer. Raises BackboneError if there is none."""
    from transformers import AutoTokenizer

    location, revision = locate(spec)
    if Path(location).is_dir():
        files = (
            "tokenizer.json",
            "vocab.txt",
            "vocab.json",
            "spiece.model",
            "sentencepiece.bpe.model",
            "tokenizer.model",
        )
        if not any((Path(location) / name).is_file() for name in files):
            raise BackboneError(
                f"backbone {spec}: no tokenizer in {location} (none of {', '.join(files)}); save it beside the model"
            )
    with _explained(spec, location):
        return AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=False)


class _explained:
    """Context that converts errors of transformers and the hub into one BackboneError that says what to do."""

    def __init__(self, spec: str, location: str) -> None:
        self.spec, self.location = spec, location

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, BackboneError) or not isinstance(error, Exception):
            return
        text = str(error)
        first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        if "trust_remote_code" in text or "custom code" in text:
            raise BackboneError(
                f"backbone {self.spec}: it needs code from its repository, which leebert never runs; use a model of a supported type"
            ) from None
        if "safetensors" in text and Path(self.location).is_dir():
            raise BackboneError(
                f"backbone {self.spec}: no model.safetensors in {self.location}; pickled weights (pytorch_model.bin) are "
                "never opened, convert them with transformers' save_pretrained on an isolated machine"
            ) from None
        if not Path(self.location).is_dir() and _is_network_error(error):
            raise BackboneError(
                f"backbone {self.spec}: the Hugging Face hub can't be reached and the model is not in the local cache; "
                "check the connection, or give a local folder or package:NAME/path as --backbone"
            ) from None
        raise BackboneError(f"backbone {self.spec}: {first}") from None


def _is_network_error(error: BaseException) -> bool:
    phrases = (
        "connect",
        "offline",
        "couldn't reach",
        "max retries",
        "name resolution",
        "timed out",
        "cached files",
        "hub",
    )
    current: BaseException | None = error
    while current is not None:
        if any(word in f"{type(current).__name__} {current}".lower() for word in phrases):
            return True
        current = current.__cause__ or current.__context__
    return False
