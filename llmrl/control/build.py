"""From a recipe's `controller` section to what the job's `Controller` slot holds. torch is imported when one is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from llmrl.batch import Algorithm, Controller
from llmrl.control.knob import Knob
from llmrl.errors import ConfigError
from llmrl.importing import load
from llmrl.nearest import nearest
from llmrl.seeding import key
from llmrl.settings.controller import PROGRESS, ControllerConfig
from llmrl.settings.explain import plain_message
from llmrl.settings.recipe import Recipe

if TYPE_CHECKING:
    from llmrl.control.controllers import Chooser

T = TypeVar("T")
# A run is over after some dozens of decisions: many updates for each (README.md has the figures).
LEARNERS: dict[str, dict[str, Any]] = {
    "sac": {"updates_per_step": 16},
    "dsac_t": {"updates_per_step": 16, "distributional": "released_2024"},
}


def knobs_of(recipe: Recipe, algo: Algorithm) -> list[Knob]:
    """The knobs of the recipe's controller, each from the recipe's own value; none of adaptive_kl or a private run's.

    Raises ConfigError: a name that nothing here has, a range that does not hold the start or makes no sense at an end.
    """
    section = recipe.controller
    if section is None or recipe.privacy is not None:
        return []
    if section.name == "adaptive_kl" and not getattr(algo, "kl_coef", 0.0):
        raise ConfigError(
            "controller.name=adaptive_kl steers kl_coef, which is 0 and stays 0; set algo.kl_coef above 0"
        )
    return [_knob(name, recipe, algo) for name in section.knobs]


def _knob(name: str, recipe: Recipe, algo: Algorithm) -> Knob:
    assert recipe.controller is not None
    where, title, limits = f"controller.knobs.{name}", recipe.algo["name"], recipe.controller.knobs[name]
    own = {item.name: getattr(algo, item.name) for item in fields(algo)}
    values = own | {"lr": recipe.train.lr, "temperature": recipe.rollout.temperature}
    if name in values and not isinstance(values[name], float):
        raise ConfigError(
            f"{where}: {name}={values[name]!r} is no number to begin with; set it to one, or remove the knob"
        )
    if name not in values:
        numbers = [other for other, value in values.items() if isinstance(value, float)]
        raise ConfigError(f"{where}: {title} has no such number; {nearest(name, numbers)}")
    if name == "temperature" and (algo.needs.gold or recipe.rollout.stored or recipe.rollout.max_staleness):
        raise ConfigError(f"{where}: only samples of the very policy that trains are drawn at it; remove the knob")
    for end in (limits.low, limits.high):
        if name not in own and end <= 0:
            raise ConfigError(f"{where}: {name}={end} makes no step; keep its range above 0")
        try:
            there = replace(algo, **{name: end}) if name in own else algo
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
        if there.needs != algo.needs:
            raise ConfigError(
                f"{where}: {title} needs other things at {end} than at {values[name]}, where it begins; leave 0 out of both"
            )
    return Knob(name=name, default=values[name], **limits.model_dump())


def described(section: ControllerConfig, knobs: Sequence[Knob], *, private: bool = False) -> str:
    """What a controller does, for a plan."""
    if section.name == "adaptive_kl":
        return "adaptive_kl sets kl_coef by kl_ref, after every step"
    ranges = ", ".join(f"{k.name} from {k.default:g} within {k.low:g} to {k.high:g}" for k in knobs)
    often = f"every {section.every} steps" if section.every > 1 else "every step"
    if private:
        return f"{section.name} sets {ranges}, {often}, by released numbers"
    paid = f"the change of {section.reward}" if section.pays == "change" else section.reward
    return f"{section.name} sets {ranges}, {often}; sees {', '.join(section.observes or [PROGRESS])}; is paid {paid}"


def make_controller(recipe: Recipe, algo: Algorithm) -> Controller:
    """The controller of a recipe that has one and is not private. Raises ConfigError, for its `args` too."""
    section, knobs, seed = recipe.controller, knobs_of(recipe, algo), key(recipe.seed, "controller")
    assert section is not None
    if section.name == "adaptive_kl":
        from llmrl.control.adaptive_kl import AdaptiveKL

        return built(AdaptiveKL, section.args, coef=getattr(algo, "kl_coef", 0.0))
    from llmrl.control.pacing import PAID, Paced

    seen = section.observes or [PROGRESS]
    return Paced(
        knob_controller(section, knobs, fields=seen, reward=PAID, seed=seed), knobs, fields=seen,
        reward=section.reward, change=section.pays == "change", every=section.every,
    )  # fmt: skip


def knob_controller(
    section: ControllerConfig, knobs: Sequence[Knob], *, fields: Sequence[str], reward: str, seed: int
) -> Controller:
    """What chooses `knobs` by `fields` of a view and is paid its `reward`: a named one, or the user's own class.

    That is called as `Class(knobs=knobs, seed=seed, **args)`. Raises ConfigError.
    """
    from llmrl.control.controllers import KnobController
    from llmrl.control.pacing import Checked

    if ":" in section.name:
        own = built(load(section.name, key="controller.name"), section.args, knobs=tuple(knobs), seed=seed)
        for method in ("observe", "state", "load"):
            if not hasattr(own, method):
                raise ConfigError(f"controller.name={section.name}: it has no {method}; see llmrl.batch.Controller")
        return Checked(own, knobs)
    chooser = chooser_of(section, fields=len(fields), knobs=len(knobs), seed=seed)
    return KnobController(knobs=knobs, fields=fields, reward=reward, chooser=chooser)


def chooser_of(section: ControllerConfig, *, fields: int, knobs: int, seed: int) -> Chooser:
    """What tells the named controllers apart. Raises ConfigError for `args` that it has not."""
    from llmrl.control.config import SACConfig
    from llmrl.control.controllers import Constant, Random
    from llmrl.control.learner import Learner
    from llmrl.control.ucb1 import Bandit

    if section.name in LEARNERS:
        config = built(SACConfig, LEARNERS[section.name] | section.args)
        return Learner(fields=fields, knobs=knobs, config=config, seed=seed)
    if section.name == "bandit":
        return built(Bandit, section.args, knobs=knobs, seed=seed)
    return built(Random, section.args, seed=seed) if section.name == "random" else built(Constant, section.args)


def built(kind: Callable[..., T], args: Mapping[str, Any], **own: Any) -> T:
    """`kind(**own, **args)`, `args` checked by its annotations. Raises ConfigError: unknown name, wrong type or value."""
    takes = inspect.signature(kind).parameters
    known = [name for name, p in takes.items() if name not in own and p.kind is not p.VAR_KEYWORD]
    hints = get_type_hints(kind.__init__ if inspect.isclass(kind) else kind)
    given = {}
    for name, value in args.items():
        if name not in known:
            hint = nearest(name, known) if known else "it has none"
            raise ConfigError(f"controller.args.{name}: {kind.__name__} has no such setting; {hint}")
        try:
            given[name] = TypeAdapter(hints.get(name, Any)).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"controller.args.{name}: {plain_message(error.errors()[0])}") from error
    try:
        return kind(**own, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"controller.args: {error}") from error
