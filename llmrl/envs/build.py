"""A recipe's `env` section -> where its environments live."""

from __future__ import annotations

import inspect

from llmrl.envs import ENVIRONMENTS
from llmrl.envs.host import Hosted, Inline, Maker
from llmrl.errors import ConfigError
from llmrl.importing import load
from llmrl.nearest import nearest
from llmrl.settings.env import EnvConfig


def open_host(config: EnvConfig) -> Inline | Hosted:
    """Worker processes, or this one. Raises ConfigError for a name that is no environment or arguments it has not."""
    path = check_environment(config)
    maker = Maker(path=path, args=config.args)
    return Hosted(maker, workers=config.workers, timeout_s=config.timeout_s) if config.isolated else Inline(maker)


def check_environment(config: EnvConfig) -> str:
    """The environment's import path. Raises ConfigError."""
    path = ENVIRONMENTS.get(config.name, config.name)
    if ":" not in path:
        raise ConfigError(f"env.name={config.name!r} is no environment; {nearest(config.name, list(ENVIRONMENTS))}")
    make = load(path, key="env.name")
    try:
        inspect.signature(make).bind(prompt=None, seed=0, **config.args)
    except TypeError as error:
        raise ConfigError(f"env.args: {config.name}: {error}") from error
    return path
