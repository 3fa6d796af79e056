"""What `--env` names: an environment, with what to call it. No torch, so that a mistake is told at once."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from llmrl.envs.build import check_environment
from llmrl.errors import EvalError
from llmrl.settings.env import EnvConfig
from llmrl.settings.load import find_recipe, load_recipe


def find_environment(text: str) -> tuple[str, EnvConfig]:
    """(what to call it, the environment): a name, a YAML mapping such as '{name: minigrid, turns: 20}', or a recipe.

    Raises EvalError for anything else.
    """
    if text.endswith((".yaml", ".yml")):
        recipe = load_recipe(find_recipe(Path(text)))
        if recipe.env is None:
            raise EvalError(f"--env {text}: this recipe has no env section")
        return recipe.name, recipe.env
    try:
        section = yaml.safe_load(text)
        config = EnvConfig(**(section if isinstance(section, dict) else {"name": str(section)}))
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        raise EvalError(f"--env {text!r} is no name, recipe or mapping of an env section: {error}") from error
    check_environment(config)
    levels = config.args.get("level") or config.args.get("id") or config.args.get("challenge")
    view, scrambled = config.args.get("view", ""), "scrambled" if config.args.get("scrambled") else ""
    return "-".join(str(part) for part in (config.name, levels, view, scrambled) if part), config
