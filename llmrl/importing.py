"""Objects by import path, "package.module:name": how recipes name what is code. The one loader of the whole code base."""

from __future__ import annotations

import importlib
from typing import Any

from llmrl.errors import ConfigError
from llmrl.nearest import closest


def load(path: str, *, key: str = "name") -> Any:
    """What `path` names. Raises ConfigError, which speaks of the setting `key`: not of this form, no such module or name,
    or the import fails.

    >>> load("llmrl.importing:load").__name__
    'load'
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{key}={path!r} is not of the form 'package.module:name'")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{key}={path!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        close = closest(name, (other for other in dir(module) if not other.startswith("_")))
        guess = f"; did you mean {close!r}?" if close else ""
        raise ConfigError(f"{key}={path!r}: {module_name} has no {name!r}{guess}")
    return getattr(module, name)
