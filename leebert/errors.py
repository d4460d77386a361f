"""What can go wrong, as one family of exceptions whose messages are meant for the person who typed the command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LeebertError(Exception):
    """Base class: the message names the file, row or key, the value seen, and what to do about it."""


class ConfigError(LeebertError):
    """A configuration file, option or value is wrong."""


class DataError(LeebertError):
    """A data file, split, row or fold is wrong."""


class CacheError(DataError):
    """A file that is made from the data once, and made again where it is damaged, can't be used."""


class DivergedError(DataError):
    """A loss, gradient or weight of a training run was not finite."""


class BackboneError(LeebertError):
    """An encoder or its tokenizer can't be used."""


class CheckpointError(LeebertError):
    """A checkpoint is missing, incomplete or altered."""


class StorageError(LeebertError):
    """What a run has to keep can't be written: the disk is full, read-only or gone."""


class DeviceError(LeebertError):
    """A device or precision was asked for that this machine lacks."""


class TrackingError(LeebertError):
    """The MLflow tracking server can't be used."""


class SweepError(LeebertError):
    """A sweep can't be started, found or read."""


class LeaseError(SweepError):
    """Another driver has a sweep, or has taken it over."""


def nearest(key: str, valid: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for a misspelt key, or an empty string."""
    close = difflib.get_close_matches(key, list(valid), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
