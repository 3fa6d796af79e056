"""Every error that reaches the user as one message, and the exit code it ends a command with.

2: something in the recipe, the data or the command line is wrong. 3: a health limit was passed. 1: the run failed.
"""

from __future__ import annotations


class LlmrlError(Exception):
    """An error whose message is all that a user needs: what is wrong, the value, and what to do."""

    exit_code = 1


class ConfigError(LlmrlError, ValueError):
    """A recipe or an override is wrong; the message says what, where, and what to do."""

    exit_code = 2


class DataError(LlmrlError, ValueError):
    """Something is wrong with the data or with what a recipe says of it; the message names the file and the line."""

    exit_code = 2


class CatalogError(LlmrlError, RuntimeError):
    """A model could not be found, fetched or converted; the message says what to do."""

    exit_code = 2


class RunFolderError(LlmrlError, RuntimeError):
    """The run folder cannot be used; the message says why and what to do."""

    exit_code = 2


class ReplayError(LlmrlError, ValueError):
    """The step cannot be replayed; the message says why."""

    exit_code = 2


class EvalError(LlmrlError, ValueError):
    """An evaluation cannot start or go on; the message says what to do."""

    exit_code = 2


class LimitExceeded(LlmrlError, RuntimeError):
    """A health limit of the recipe was passed; the run stops instead of training on garbage."""

    exit_code = 3


class EngineError(LlmrlError, RuntimeError):
    """An engine could not start, died more often than allowed, or was given weights that do not fit."""


class CheckpointError(LlmrlError, RuntimeError):
    """A checkpoint could not be written, or none can be used."""


class StorageError(LlmrlError, RuntimeError):
    """The run's files could not be written during training; the last checkpoint is as it was."""


class RankLost(LlmrlError, RuntimeError):
    """Another process of this run died, hung or failed, so that this one cannot go on."""
