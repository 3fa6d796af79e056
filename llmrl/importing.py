"""Objects by import path, "package.module:name": how recipes name what is code."""

from __future__ import annotations

import importlib
from typing import Any

from llmrl.errors import ConfigError


def load(path: str, *, key: str = "name") -> Any:
    """What `path` names. Raises ConfigError, which speaks of the recipe's `key`: no such module or attribute, or its import
    fails.
    """
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise ConfigError(f"{key}={path!r} is no import path; write package.module:name")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(f"{key}={path!r} cannot be imported: {type(error).__name__}: {error}") from error
