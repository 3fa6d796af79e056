"""The composition root: the one place that turns the names in a recipe into objects."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmrl.batch import Algorithm, Controller
    from llmrl.settings.recipe import Recipe, RewardConfig
    from llmrl.start import Parts
    from llmrl.train.evaluate import Benchmarks
    from llmrl.train.models import Sources


def resolve(recipe: Recipe, *, coming: Collection[str] = ()) -> Parts:
    """Turn the names in a recipe into objects: algorithm, reward, model folder, interval.

    `coming` are folders that stages before this recipe will leave; they stay what they are.
    """
    from llmrl.algos.build import build_algorithm, check_run
    from llmrl.control.build import knobs_of
    from llmrl.rewards.scoring import score_all
    from llmrl.rewards.telemetry import Watched
    from llmrl.settings.stages import RLStage, SFTStage

    # Mistakes in these are told before torch is imported.
    check_trackers(recipe)
    algo, reward = build_algorithm(recipe.algo), Watched(reward=rewards_of(recipe))
    check_run(recipe, algo, ranks=int(os.environ.get("WORLD_SIZE", "1")))
    knobs_of(recipe, algo)
    check_benchmarks(recipe)
    check_models(recipe, coming=coming)
    check_data(recipe)
    from llmrl.eval.metrics import wilson_interval
    from llmrl.start import Parts

    left = recipe.stage_models.values()
    of_stages = {
        stage.title: resolve(recipe.of_stage(stage), coming=left)
        for stage in recipe.before
        if isinstance(stage, SFTStage | RLStage)
    }
    sources = sources_of(recipe, coming=coming)
    return Parts(
        algo=algo,
        score=lambda trajectories: score_all(reward, trajectories),
        interval=wilson_interval,
        sources=sources,
        benchmarks=benchmarks_of(recipe, sources.policy),
        controller=controller_of(recipe, algo),
        of_stages=of_stages,
    )


def controller_of(recipe: Recipe, algo: Algorithm) -> Callable[[], Controller] | None:
    """What makes the recipe's controller; None without one, or if private training makes it. Raises ConfigError."""
    from llmrl.control.build import make_controller

    if recipe.controller is None or recipe.privacy is not None:
        return None
    make_controller(recipe, algo)  # mistakes in its args are told before anything is loaded
    return partial(make_controller, recipe, algo)


def sources_of(recipe: Recipe, *, coming: Collection[str] = ()) -> Sources:
    """The local folders of the models that a recipe names; those of its stages, and `coming`, may not be there yet."""
    from llmrl.policy.resize import resized
    from llmrl.settings.stages import replaced
    from llmrl.train.models import Sources

    later = {*coming, *recipe.stage_models.values()}

    def folder(path: str | None) -> str:
        named = replaced(path, recipe.stage_models) if path else ""
        return named if named in later or not named else model_folder(named)

    policy = folder(recipe.model.path)
    return Sources(
        policy=resized(policy) if recipe.model.resize else policy,
        critic=folder(recipe.critic.path) if recipe.critic else "",
        outcome_critic=folder(recipe.outcome_critic.path) if recipe.outcome_critic else "",
        partners={name: folder(partner.model) for name, partner in recipe.engines.items() if partner.loaded},
    )


def check_models(recipe: Recipe, *, coming: Collection[str] = ()) -> None:
    """Raise CatalogError for a model's name that is none; nothing is fetched. `coming`: see `sources_of`."""
    from llmrl.policy.catalog import MODELS
    from llmrl.policy.catalog import resolve as resolve_model
    from llmrl.settings.stages import replaced

    critics = [critic.path for critic in (recipe.critic, recipe.outcome_critic) if critic is not None and critic.path]
    engines = [partner.model for partner in recipe.engines.values() if partner.loaded]
    paths = {replaced(path, recipe.stage_models) for path in (recipe.model.path, *critics, *engines)}
    for path in paths - {*coming, *recipe.stage_models.values(), *MODELS}:
        resolve_model(path)


def check_data(recipe: Recipe) -> None:
    """Raise DataError for a data source that is none, or a generator that cannot give what is asked; files are not read."""
    from llmrl.data.files import is_file_source
    from llmrl.data.generators import is_generator
    from llmrl.data.source import load_train_eval
    from llmrl.seeding import key

    sources = [own.source for own in recipe.data.each().values()]
    if all(is_generator(source) or not (is_file_source(source) or "/" in source) for source in sources):
        load_train_eval(recipe.data, recipe.eval.held_out, seed=key(recipe.seed, "data"))


def check_benchmarks(recipe: Recipe) -> None:
    """Raise ConfigError for a name in `eval.tasks` that is no benchmark."""
    from llmrl.errors import ConfigError, EvalError
    from llmrl.eval.tasks import find_task

    for task in recipe.eval.tasks:
        try:
            find_task(task.name)
        except EvalError as error:
            raise ConfigError(f"eval.tasks: {error}") from error


def benchmarks_of(recipe: Recipe, source: str) -> Benchmarks | None:
    """The benchmarks that the recipe's `eval.tasks` names, their questions loaded. Raises ConfigError or DataError."""
    from llmrl.errors import ConfigError, EvalError
    from llmrl.eval.hooks import training_benchmarks

    if not recipe.eval.tasks:
        return None
    try:
        return training_benchmarks(recipe, source, say=print)
    except EvalError as error:
        raise ConfigError(f"eval.tasks: {error}") from error


def model_folder(path: str) -> str:
    """The local folder of a recipe's model; one of the catalogue or the hub is fetched if it is not here yet."""
    from llmrl.policy.catalog import resolve as resolve_model
    from llmrl.policy.hub import fetch

    found = resolve_model(path, report=print)
    return str(fetch(found) if isinstance(found, str) else found)


def check_trackers(recipe: Recipe) -> None:
    """Raise ConfigError for a tracker that is not installed."""
    from llmrl.errors import ConfigError

    for name in recipe.tracking.to:
        if find_spec(name) is None:
            raise ConfigError(f"tracking.to={name} needs a package that is missing: pip install 'llmrl[{name}]'")


def rewards_of(recipe: Recipe) -> Any:
    """The recipe's reward: the weighted sum of its parts. A TRL reward function is adapted."""
    from llmrl.errors import ConfigError
    from llmrl.rewards.combine import OfSources, WeightedSum, no_outcome
    from llmrl.rewards.scoring import load_reward
    from llmrl.settings.stages import replaced

    if not recipe.reward:
        return no_outcome  # the environment's rewards are all there are
    parts: dict[str, Any] = {}
    for name, section in recipe.reward.items():
        section = section.model_copy(update={"args": replaced(section.args, recipe.stage_models)})
        try:
            part = load_reward(section.name, section.args)  # also of an isolated one: mistakes show at once
        except ValueError as error:
            raise ConfigError(f"reward.{name}: {error}") from error
        except TypeError as error:
            raise ConfigError(f"reward.{name}.args: {error}") from error
        except ImportError as error:
            raise ConfigError(f"reward.{name}: {section.name} needs a package that is missing: {error}") from error
        adapted = _adapted(part) if is_trl_reward(part) else None
        part = _isolated(section, adapted) if section.isolated else adapted or part
        judged = frozenset(one.title for one in recipe.data.sources if one.reward is None or name in one.reward)
        parts[name] = OfSources(reward=part, sources=judged) if len(judged) < len(recipe.data.sources) else part
    return WeightedSum(rewards=parts, weights={name: part.weight for name, part in recipe.reward.items()})


def _adapted(function: Any) -> Any:
    from llmrl.rewards.trl_adapter import TRLReward

    return TRLReward(function=function)


def _isolated(section: RewardConfig, adapted: Any) -> Any:
    """The reward in killable workers, which build their own from its name; what an adapter wraps is sent as it is."""
    from llmrl.rewards.pool import IsolatedReward, RewardPool

    built, args = (section.name, section.args) if adapted is None else (adapted, None)
    return IsolatedReward(RewardPool(built, args, item_s=section.timeout_s, deadline_s=section.step_timeout_s))


def is_trl_reward(reward: Any) -> bool:
    """TRL's reward functions take `completions`; ours take one trajectory."""
    return inspect.isfunction(reward) and "completions" in inspect.signature(reward).parameters
