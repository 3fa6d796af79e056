"""A recipe's `algo` section -> a frozen algorithm, with the same strictness as the rest of the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from llmrl.algos import ALGORITHMS, PRESETS
from llmrl.batch import Algorithm, Needs, Warns
from llmrl.errors import ConfigError
from llmrl.importing import load
from llmrl.nearest import nearest
from llmrl.settings.explain import plain_message
from llmrl.settings.recipe import Recipe

MOVED = dict.fromkeys(("kl_target", "kl_rate"), "controller: {name: adaptive_kl, args: {target: 0.05, rate: 1.0}}")


def build_algorithm(section: Mapping[str, Any]) -> Algorithm:
    """The algorithm that `section` names, with its other keys as hyper-parameters.

    `name` is a key of ALGORITHMS or PRESETS, or the import path "package.module:Class" of a frozen dataclass. Raises
    ConfigError: unknown name or hyper-parameter (with the nearest one), wrong type, or a senseless value.
    """
    name = str(section.get("name", ""))
    given = {key: value for key, value in section.items() if key != "name"}
    base, preset = PRESETS.get(name, (name, {}))
    path = ALGORITHMS.get(base, base)
    if ":" not in path:
        raise ConfigError(f"algo.name={name!r} is no algorithm; {nearest(name, [*ALGORITHMS, *PRESETS])}")
    kind = _load(path)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in given:
        if key in MOVED:
            raise ConfigError(f"algo.{key} is a controller's now: {MOVED[key]}")
        if key not in fields:
            raise ConfigError(f"algo.{key}: {name} has no such hyper-parameter; {nearest(key, list(fields))}")
    values = preset | given
    try:
        checked = {key: TypeAdapter(_annotation(kind, key)).validate_python(value) for key, value in values.items()}
    except ValidationError as error:
        wrong = next(key for key, value in values.items() if _rejects(kind, key, value))
        raise ConfigError(f"algo.{wrong}: {plain_message(error.errors()[0])}") from error
    try:
        algo: Algorithm = kind(**checked)
        needs = algo.needs
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"algo: {error}") from error
    if not isinstance(needs, Needs):
        raise ConfigError(f"algo.name={path!r}: its needs are {needs!r}; give llmrl.batch.Needs(values=True), say")
    return algo


def check_run(recipe: Recipe, algo: Algorithm, *, ranks: int) -> None:
    """Raise ConfigError if `train` with this many processes would refuse the recipe: the one rule for train, plan, launch."""
    check_siblings(recipe, algo)
    check_beside(recipe, algo)
    check_critic(recipe, algo)
    check_staleness(recipe, algo, ranks=ranks)
    check_shares(recipe, ranks=ranks)


def check_shares(recipe: Recipe, *, ranks: int) -> None:
    """Raise ConfigError if the prompts of a step cannot be shared equally by `ranks`; says which numbers would do."""
    prompts, minibatches = recipe.rollout.prompts_per_step, recipe.train.minibatches
    unit = ranks * minibatches
    if prompts % unit == 0:
        return
    below, above = prompts // unit * unit, -(-prompts // unit) * unit
    fits = max(n for n in range(1, ranks + 1) if prompts % (n * minibatches) == 0)
    sizes = f"rollout.prompts_per_step={above}" + (f" (or {below})" if below else "")
    raise ConfigError(
        f"rollout.prompts_per_step={prompts} cannot be shared equally by {ranks} processes and "
        f"train.minibatches={minibatches}; use {sizes}, or {fits} processes"
    )


def check_siblings(recipe: Recipe, algo: Algorithm) -> None:
    """Raise ConfigError if the algorithm compares siblings and there are none."""
    if algo.needs.siblings and recipe.rollout.group_size < 2:
        raise ConfigError(
            f"rollout.group_size={recipe.rollout.group_size} gives {recipe.algo['name']} a zero advantage: it compares "
            "completions of one prompt; set rollout.group_size >= 2"
        )


def check_beside(recipe: Recipe, algo: Algorithm) -> None:
    """Raise ConfigError if the algorithm wants greedy or given completions of prompts whose answers take several turns."""
    if recipe.env is not None and (algo.needs.greedy or algo.needs.references):
        raise ConfigError(
            f"{recipe.algo['name']} as it is set compares with greedy completions or learns from given ones, and an "
            "environment has neither; set algo.baseline=group_mean and algo.ce_coef=0, or remove env"
        )


def check_critic(recipe: Recipe, algo: Algorithm) -> None:
    """Raise ConfigError for a value model, or a reference that follows, which the algorithm does not ask for."""
    name = recipe.algo["name"]
    if recipe.critic is not None and not algo.needs.values:
        raise ConfigError(f"critic: {name} has no value model; remove the section, or use ppo")
    if recipe.reference.kind != "fixed" and not algo.needs.ref_logprobs:
        raise ConfigError(
            f"reference.kind={recipe.reference.kind}: {name} asks no reference model as it is set; give it a kl_coef "
            "(pacs: reference: model), or remove the section"
        )


def check_staleness(recipe: Recipe, algo: Algorithm, *, ranks: int) -> None:
    """Raise ConfigError if batches may be stale and the loss would take them for fresh ones.

    A stale token was sampled by an older policy; its gradient is right only with a truncated importance weight between
    the two (decoupled PPO, Hilton et al. 2022; AReaL, Fu et al. 2025), which `importance_cap` switches on.
    """
    rollout = recipe.rollout
    if rollout.max_staleness == 0:
        return
    if getattr(algo, "importance_cap", None) is None:
        known = hasattr(algo, "importance_cap")
        raise ConfigError(
            f"rollout.max_staleness={rollout.max_staleness} trains on samples of older policies, and "
            f"{recipe.algo['name']} takes them for fresh ones; "
            + ("set algo.importance_cap=2.0" if known else "use an algorithm with importance_cap, such as grpo or ppo")
        )
    if rollout.placement != "colocated" and ranks > 1:
        raise ConfigError(
            f"rollout.max_staleness={rollout.max_staleness} with rollout.placement={rollout.placement} works with one "
            f"trainer process, and there are {ranks}; use placement colocated"
        )


def warnings(recipe: Recipe, algo: Algorithm) -> list[str]:
    """What a user should know of the algorithm under this recipe's settings."""
    return algo.warnings(updates=recipe.train.updates_per_step) if isinstance(algo, Warns) else []


def _load(path: str) -> Any:
    kind = load(path, key="algo.name")
    if not dataclasses.is_dataclass(kind):
        raise ConfigError(f"algo.name={path!r} is not a dataclass; an algorithm's fields are its hyper-parameters")
    return kind


def _annotation(kind: Any, key: str) -> Any:
    import typing

    return typing.get_type_hints(kind)[key]


def _rejects(kind: Any, key: str, value: Any) -> bool:
    try:
        TypeAdapter(_annotation(kind, key)).validate_python(value)
    except ValidationError:
        return True
    return False
