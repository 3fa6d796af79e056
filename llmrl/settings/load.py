"""Reading a recipe: one YAML file says everything about a run. Dotted overrides, and errors that help.

    recipe = load_recipe("recipes/arithmetic/grpo.yaml", ["train.steps=50", "algo.clip_high=0.28"])

Unknown keys are errors that name the nearest known one; rules that span sections say what is wrong, the value, and what
to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from llmrl.errors import ConfigError
from llmrl.nearest import closest, nearest
from llmrl.settings.base import BASE, with_base
from llmrl.settings.explain import explain
from llmrl.settings.recipe import Recipe


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe (a file, or a name of `llmrl recipes`) and apply `section.key=value` overrides (YAML values).

    Raises ConfigError: missing file (with the nearest recipe), bad YAML, unknown key (with the nearest name), a value
    of the wrong type, or a rule between sections.
    """
    file = find_recipe(path)
    data = with_base(read_recipe(file), file, read_recipe)
    for text in overrides or []:
        _override(data, text)
    return parse_recipe(data, where=f"{file}, with its overrides," if overrides else str(file))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """What a recipe's file says, as plain data. Raises ConfigError: no such file, bad YAML, no mapping."""
    file = find_recipe(path)
    try:
        data = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file} holds no recipe: expected `key: value` lines, got {type(data).__name__}")
    return data


def find_recipe(path: str | Path) -> Path:
    """The file at `path`; failing that, the packaged recipe of this name, as `llmrl recipes` prints it. Raises ConfigError.

    >>> find_recipe("recipes/arithmetic/grpo.yaml").is_file()
    True
    """
    file = Path(path)
    if file.is_file():
        return file
    packaged = recipes_folder().parent / file
    if packaged in recipes_folder().rglob("*.yaml"):
        return packaged
    raise ConfigError(_missing(file))


def parse_recipe(data: dict[str, Any], *, where: str = "recipe") -> Recipe:
    """A checked Recipe from plain data. Raises ConfigError."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where} is not a valid recipe:\n" + explain(error, Recipe)) from error


# What a resumed run may do differently: how long, how often it looks and saves, and on how much machine.
MAY_CHANGE = ("description", "runs_dir", "limits.", "tracking.", "eval.every", "eval.tasks", "eval.data_dir",
              "train.steps", "train.max_hours", "train.log_",
              "train.patience", "train.save_every", "train.keep_", "train.backend", "train.threads",
              "rollout.verify_", "rollout.isolated", "rollout.kv_cache_gib", "rollout.gpu_memory",
              "rollout.stall_timeout_s", "rollout.start_timeout_s", "rollout.placement", "rollout.servers.",
              "rollout.ray.", "rollout.max_staleness", "rollout.threads")  # fmt: skip


def check_same_run(recipe: Recipe) -> None:
    """Raise ConfigError if the run folder holds a run of a recipe that differs in more than MAY_CHANGE."""
    file = recipe.run_dir / "recipe.yaml"
    if not file.is_file():
        return
    before, now = (dict(flat(r.model_dump(mode="json"))) for r in (load_recipe(file), recipe))
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    # `auto` goes on with what the run was started with
    changed = [key for key in keys if not key.startswith(MAY_CHANGE) and now.get(key) != "auto"]
    if changed:
        lines = [f"  {key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in changed]
        raise ConfigError(
            f"{recipe.run_dir} is a run of another recipe; resume with its values, or start a run with another name=...\n"
            + "\n".join(lines)
        )


def flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested plain data; sections of a list are numbered."""
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(place): item for place, item in enumerate(value)}
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default spelled out, as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def recipe_schema() -> str:
    """JSON Schema of recipes, for editors. A recipe with a `base` may leave sections out."""
    schema = Recipe.model_json_schema()
    schema["properties"][BASE] = {"type": "string", "description": "a recipe that this one starts from"}
    whole = {"required": schema.pop("required")}
    return json.dumps(schema | {"if": {"not": {"required": [BASE]}}, "then": whole}, indent=2)


def recipes_folder() -> Path:
    """Where the packaged recipes lie."""
    return Path(__file__).parents[1] / "recipes"


def _missing(file: Path) -> str:
    packaged = sorted(str(p.relative_to(recipes_folder().parent)) for p in recipes_folder().rglob("*.yaml"))
    close = closest(str(file), packaged)
    hint = f"did you mean {close}?" if close else "`llmrl recipes` lists what there is"
    return f"no recipe at {file}; {hint}"


def _override(data: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"override {text!r} is not of the form section.key=value")
    node, rest = data, parts[:-1]
    while rest:
        part, *rest = rest
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if rest and isinstance(child, list) and any(isinstance(item, dict) for item in child):
            part, *rest = rest
            child = _item(child, part, text)
        if not isinstance(child, dict):
            raise ConfigError(f"override {text!r}: {part} holds {child!r}, not a section")
        node = child
    try:
        node[parts[-1]] = _with_spaces(yaml.safe_load(value), text)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or error
        raise ConfigError(f"override {text!r}: the value is not valid YAML ({reason}); quote it") from error


def _item(items: list[Any], which: str, text: str) -> dict[str, Any]:
    """The stage or data source that an override names, by its place or by its name."""
    found = {}
    for place, item in enumerate(items):
        if isinstance(item, dict):
            name = item.get("name") or item.get("kind") or item.get("source")
            found[str(place)] = found[str(name)] = item
    if which not in found:
        raise ConfigError(f"override {text!r}: the list has no {which!r}; {nearest(which, list(found))}")
    return found[which]


def _with_spaces(value: Any, text: str) -> Any:
    """YAML reads {low:1} as the key "low:1" without a value, which nobody means."""
    if isinstance(value, dict) and any(":" in str(key) and item is None for key, item in value.items()):
        raise ConfigError(f"override {text!r}: YAML wants a space after the colon, {{key: value}}")
    return value
