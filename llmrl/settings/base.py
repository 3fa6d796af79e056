"""`base: other.yaml` in a recipe: it starts from another one and says only what differs. And lengths that are left out.

    base: ../arithmetic/grpo.yaml
    name: mine
    train: {lr: 2.0e-6}

Sections are merged key by key. A section that names another thing (`algo.name`, a reward part's `name`) replaces the
base's, whose settings were about something else; `null` takes a reward part or an engine out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmrl.errors import ConfigError

BASE = "base"
LISTED = ("reward", "engines")  # sections whose keys are names that the user gives
MAX_TOKENS = 256  # of a completion, where the recipe does not say


def with_base(
    data: dict[str, Any], file: Path, read: Callable[[Path], dict[str, Any]], seen: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """A recipe's plain `data`, read from `file`, on top of the recipe that its `base` names, which `read` reads.

    A path is looked for beside `file`, then as `read` does. Raises ConfigError for recipes that start from each other.
    """
    if BASE not in data:
        return data
    named = data[BASE]
    if not isinstance(named, str):
        raise ConfigError(f"{file}: base must be the path of a recipe, not {named!r}")
    beside = file.parent / named
    other = beside if beside.is_file() else Path(named)
    seen = (*seen, file.resolve())
    if other.resolve() in seen:
        raise ConfigError(f"{file}: base={named} leads back to a recipe that starts from this one")
    base = with_base(read(other), other, read, seen)
    return overlaid(base, {key: value for key, value in data.items() if key != BASE})


def overlaid(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Two recipes' plain data as one, `new` on top.

    >>> overlaid({"algo": {"name": "grpo", "clip_high": 1}, "train": {"steps": 5, "lr": 1}},
    ...          {"algo": {"name": "rloo"}, "train": {"steps": 9}})
    {'algo': {'name': 'rloo'}, 'train': {'steps': 9, 'lr': 1}}
    """
    whole = _merged(old, new)
    for section in LISTED:
        if isinstance(whole.get(section), dict):
            whole[section] = {name: part for name, part in whole[section].items() if part is not None}
    return whole


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(old)
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping) and _alike(before, value):
            found[key] = _merged(before, value)
        else:
            found[key] = value
    return found


def _alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether `new` says something about the same thing, and does not name another."""
    return bool(new.get("name", old.get("name")) == old.get("name"))


def with_lengths(data: Any) -> Any:
    """A recipe's plain data with `rollout.max_tokens` and `data.max_prompt_tokens` as `model.max_length` leaves them."""
    if not isinstance(data, Mapping):
        return data
    model, rows, rollout, held_out = (data.get(name) or {} for name in ("model", "data", "rollout", "eval"))
    if not all(isinstance(section, Mapping) for section in (model, rows, rollout)):
        return data
    length, asked, prompt = model.get("max_length", 1024), rollout.get("max_tokens"), rows.get("max_prompt_tokens")
    evaluated = held_out.get("max_tokens") if isinstance(held_out, Mapping) else None
    given = [number for number in (length, asked, prompt, evaluated) if number is not None]
    if not all(isinstance(number, int) and number > 0 for number in given):
        return data  # the sections' own checks say what is wrong
    if asked is None:
        asked = max(1, min(MAX_TOKENS, length // 2 if prompt is None else length - prompt))
    if prompt is None:
        prompt = max(1, length - max(asked, evaluated or 0))
    return {**data, "rollout": {**rollout, "max_tokens": asked}, "data": {**rows, "max_prompt_tokens": prompt}}
