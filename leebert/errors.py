"""Exceptions whose messages are written for users of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LeebertError(Exception):
    """Base class; a message names the file, row or key, the value, and what to do."""


class ConfigError(LeebertError):
    """A configuration file, option or value is wrong."""


class DataError(LeebertError):
    """A data file, split, row or fold is wrong."""


class CacheError(DataError):
    """A file in a cache can't be used; it can be rebuilt from the data."""


class DivergedError(DataError):
    """A loss, gradient or weight of a training run was not finite."""


class BackboneError(LeebertError):
    """An encoder or its tokenizer can't be used."""


class CheckpointError(LeebertError):
    """A checkpoint is missing, incomplete or altered."""


class StorageError(LeebertError):
    """A file of a run can't be written: the disk is full, read-only or gone."""


class DeviceError(LeebertError):
    """This machine lacks the requested device or precision."""


class TrackingError(LeebertError):
    """The MLflow tracking server can't be used."""


class SweepError(LeebertError):
    """A sweep can't be started, found or read."""


class LeaseError(SweepError):
    """Another driver runs the sweep, or has taken it over."""


def nearest(key: str, valid: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for a misspelt key.

    Args:
        key: The misspelt key.
        valid: The valid keys.

    Returns:
        The text, with a leading space; empty if no valid key is similar.
    """
    close = difflib.get_close_matches(key, list(valid), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
