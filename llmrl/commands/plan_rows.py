"""What a recipe will do, in words: the first table of `llmrl plan`."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

from llmrl.algos.build import warnings
from llmrl.automatic import settle
from llmrl.batch import Algorithm
from llmrl.control.build import described, knobs_of
from llmrl.data.source import is_remote, load_train_eval
from llmrl.seeding import key
from llmrl.settings.model import CriticConfig, OutcomeCriticConfig
from llmrl.settings.recipe import Recipe
from llmrl.settings.stages import RLStage
from llmrl.stages.pairs import stage_data
from llmrl.train.problems import answer_notes, few_problems


def rows_of(recipe: Recipe, algo: Algorithm) -> list[tuple[str, str]]:
    """(what, how much) rows about a run of `recipe`.

    Raises DataError for data that training would refuse.
    """
    settled = settle(recipe)
    recipe = settled.recipe
    rollout, train = recipe.rollout, recipe.train
    samples = rollout.prompts_per_step * rollout.group_size
    updates = recipe.train.updates_per_step
    policy = (
        "on-policy: one update per rollout"
        if updates == 1
        else f"off-policy: {updates} updates per rollout ({train.epochs} epochs x {train.minibatches} minibatches)"
    )
    adapter = f", LoRA r={recipe.model.lora.r}" if recipe.model.lora else ""
    data, held_out, notes = _data(recipe)
    rows = [
        ("run folder", str(recipe.run_dir)),
        ("model", f"{recipe.model.path}, {recipe.model.dtype}{adapter}"),
        *settled.chosen.items(),
        *(("warning", warning) for warning in settled.warnings),
        *stage_rows(recipe),
        *data,
        ("algorithm", f"{recipe.algo['name']}: {_settings(algo)}"),
        ("needs", ", ".join(algo.needs.names) or "nothing beyond the rollouts"),
        *([("value model", _critic(recipe))] if algo.needs.values else []),
        *([("outcome critic", _outcome_critic(recipe))] if algo.needs.token_scores or recipe.outcome_critic else []),
        *([("reference", _reference(recipe))] if algo.needs.ref_logprobs else []),
        *([("controller", described(recipe.controller, knobs_of(recipe, algo)))] if recipe.controller else []),
        ("steps", f"{train.steps}"),
        ("prompts per step", f"{rollout.prompts_per_step}"),
        ("samples per step", f"{samples} ({rollout.group_size} for each prompt)"),
        ("tokens per step", f"at most {samples * rollout.max_tokens:,} sampled"),
        (
            "whole run",
            f"{train.steps * samples:,} samples, at most {train.steps * samples * rollout.max_tokens:,} tokens",
        ),
        ("optimizer updates", f"{train.steps * updates:,}, {policy}"),
        ("evaluation", _evaluation(recipe, held_out)),
        ("checkpoints", f"every {train.save_every} steps and at the end, {train.keep_last} kept"),
    ]
    if rollout.top_p < 1 or rollout.top_k > 0 or rollout.min_p > 0:
        bias = "top_p, top_k and min_p bias the sampler against the trainer's full softmax; watch the mismatch"
        rows.append(("note", bias))
    rows += [("note", note) for note in notes if recipe.reward]
    if few := few_problems(held_out or 0, gold=algo.needs.gold):
        rows.append(("note", few))
    return [*rows, *(("note", warning) for warning in warnings(recipe, algo))]


def _critic(recipe: Recipe) -> str:
    critic = recipe.critic or CriticConfig()
    warmup = f", alone for {critic.warmup_steps} steps" if critic.warmup_steps else ""
    told = f", told {critic.privileged!r}" if critic.privileged else ""
    if critic.kind == "shared":
        stopped = ", the gradient stops there" if critic.stop_gradient else ""
        return f"a head on the policy{stopped}, lr {critic.lr:g}{warmup}"
    adapter = f", LoRA r={critic.lora.r}" if critic.lora else ""
    return f"{critic.path or recipe.model.path}{adapter}, lr {critic.lr:g}{warmup}{told}"


def _outcome_critic(recipe: Recipe) -> str:
    critic = recipe.outcome_critic or OutcomeCriticConfig()
    often = f"every {critic.every} steps" if critic.every > 1 else "every step" if critic.every else "never trained"
    learns = f"{often}, lr {critic.lr:g}" + (f", alone for {critic.warmup_steps} steps" if critic.warmup_steps else "")
    if critic.kind == "shared":
        return f"a head on the policy's states, {learns}"
    return f"{critic.path or recipe.model.path}{f', LoRA r={critic.lora.r}' if critic.lora else ''}, {learns}"


def _reference(recipe: Recipe) -> str:
    reference = recipe.reference
    if reference.kind == "reset_every":
        fresh = ", with fresh Adam averages" if reference.reset_optimizer else ""
        return f"the policy of every {reference.every} steps{fresh}"
    return "the first policy" if reference.kind == "fixed" else f"average of the policies, decay {reference.decay:g}"


def stage_rows(recipe: Recipe) -> list[tuple[str, str]]:
    """A row for each stage before. Raises DataError for data whose rows say nothing to learn."""
    rows = []
    for place, stage in enumerate(recipe.before, start=1):
        if isinstance(stage, RLStage):
            own = recipe.of_stage(stage)
            said = f"{own.train.steps:,} steps of {own.algo['name']}, lr {own.train.lr:g}"
        else:
            unit = "examples" if stage.kind == "sft" else "pairs"
            said = f"{stage.train.steps:,} steps of {stage.train.batch_size} {unit}, lr {stage.train.lr:g}"
            said += ", LoRA" if recipe.model.lora and stage.lora else ""
        start = f", from the policy of {stage.start}" if stage.start else ""
        rows.append((f"stage {place}: {stage.title}", f"{said}, on {stage_data(stage, recipe)}{start}"))
    return rows


def _data(recipe: Recipe) -> tuple[list[tuple[str, str]], int | None, list[str]]:
    """A row for each source that counts what generators and files give, the number of held-out problems, and what a user
    should know; a data set on the hub is not fetched.
    """
    data = recipe.data
    if is_remote(data, recipe.eval.data):
        return [("data", f"{data.called}, looked at when training starts")], None, []
    both = load_train_eval(data, recipe.eval.held_out, seed=key(recipe.seed, "data"))
    trained, held_out = (Counter(row.source for row in rows) for rows in both)
    found = []
    for name, own in data.each().items():
        said = f"{own.source}: {trained[name]:,} problems to train on, {held_out[name]:,} held out"
        found.append((f"data: {name}" if name else "data", said))
    for place, source in enumerate(data.sources):
        part = source.weight / sum(data.weights.values()) * recipe.rollout.prompts_per_step
        judges = ", ".join(source.reward or recipe.reward)
        judged = f", judged by {judges}" if judges else ""
        found[place] = (found[place][0], f"{found[place][1]}; {part:.3g} of a step's prompts{judged}")
    by_source = [[row for row in both[0] if row.source == name] for name in data.weights]
    return found, len(both[1]), [note for rows in by_source for note in answer_notes(rows)]


def _settings(algo: Algorithm) -> str:
    """The hyper-parameters, those that are off left out."""
    values = {field.name: getattr(algo, field.name) for field in fields(algo)}
    return ", ".join(f"{name}={value}" for name, value in values.items() if value not in (None, 0.0))


def _evaluation(recipe: Recipe, held_out: int | None) -> str:
    if not recipe.eval.enabled:
        return "off: no held-out problems"
    often = f"every {recipe.eval.every} steps, " if recipe.eval.every else ""
    count = held_out if held_out is not None else f"at most {recipe.eval.data.n}" if recipe.eval.data.n else "all"
    return f"{often}before and after, on {count} held-out problems"
