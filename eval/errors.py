"""The error that reaches the user as one line: what is wrong, the value, what to do."""

from __future__ import annotations


class EvalError(ValueError):
    """An evaluation cannot start or go on; the message says what to do."""
