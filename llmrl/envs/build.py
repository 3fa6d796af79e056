"""A recipe's `env` section -> where its environments live."""

from __future__ import annotations

import inspect
from importlib.util import find_spec

from llmrl.envs import ENVIRONMENTS, PACKAGES
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
    """The environment's import path. Raises ConfigError: no such name, arguments it has not, a package that is missing."""
    path = ENVIRONMENTS.get(config.name, config.name)
    if ":" not in path:
        raise ConfigError(f"env.name={config.name!r} is no environment; {nearest(config.name, list(ENVIRONMENTS))}")
    if config.name in PACKAGES and find_spec(PACKAGES[config.name][0]) is None:
        package, install = PACKAGES[config.name]
        raise ConfigError(f"env.name={config.name} needs the package {package}, which is missing: {install}")
    make = load(path, key="env.name")
    try:
        inspect.signature(make).bind(prompt=None, seed=0, **config.args)
    except TypeError as error:
        raise ConfigError(f"env.args: {config.name}: {error}") from error
    return path
