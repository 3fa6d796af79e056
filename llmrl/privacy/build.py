"""From a recipe's `privacy` section to what the training loop needs of it: plan, ledger, records, optimizer, controller."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmrl.control.build import LEARNERS
from llmrl.data.gold import plain_ids
from llmrl.errors import ConfigError, DataError, RunFolderError
from llmrl.privacy.audit import Canary, make_canaries
from llmrl.privacy.controllers import controller_of
from llmrl.privacy.forward import through_the_head
from llmrl.privacy.gradients import RecordGradients
from llmrl.privacy.groups import parameter_groups
from llmrl.privacy.ledger import Ledger, load_ledger
from llmrl.privacy.optimizer import PrivateOptimizer
from llmrl.privacy.planning import Plan
from llmrl.privacy.randomness import PoissonStream, SecureSource
from llmrl.privacy.steering import Steering
from llmrl.privacy.terms import plan_of, section_of
from llmrl.seeding import key
from llmrl.settings.privacy import PrivacyConfig
from llmrl.settings.recipe import Recipe
from llmrl.train.evaluate import held_out_loss
from llmrl.train.models import Models
from llmrl.train.problems import Problems
from llmrl.types import Prompt, Score, Trajectory

LEDGER, CANARIES = "ledger.json", "canaries.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """A private run's share of the job."""

    models: Models  # with the private optimizer in the plain one's place
    stream: PoissonStream
    gold: dict[str, Trajectory]  # by prompt id; rows of one record share their trajectory's prompt id
    controller: Steering
    admits: Callable[[], bool]
    claim: Callable[[], dict[str, Any]]  # what the summary says of privacy


def make_private(recipe: Recipe, models: Models, problems: Problems, folder: Path) -> Private:
    """What turns supervised fine-tuning of `problems` into a private run, whose ledger is in `folder`.

    Held-out rows are taken to be public: they are measured, and a controller may see their loss. Raises ConfigError for
    what cannot be trained privately, RunFolderError if the ledger there promises something else.
    """
    section = section_of(recipe)
    if models.world.size > 1:
        raise ConfigError("private training runs in one process; start one")
    canaries = make_canaries(section.canaries, seed=key(recipe.seed, "canaries"))
    planted = [canary_row(canary, models.policy.tokenizer) for canary in canaries if canary.included]
    records = records_of([*problems.train, *(row.prompt for row in planted)], section)
    ledger, found = _ledger(recipe, len(records), folder / LEDGER)
    if canaries:
        (folder / CANARIES).write_text(json.dumps([asdict(canary) for canary in canaries], indent=1))
    source = SecureSource()
    optimizer = _optimizer(section, models, ledger, folder / LEDGER, source)
    models = _opened(models, recipe, optimizer)
    public = list(problems.held_out_gold.values())
    if not public and recipe.controller is not None and recipe.controller.name in ("bandit", *LEARNERS):
        raise ConfigError(
            f"controller.name={recipe.controller.name} learns from the loss of public text: give eval.data some"
        )
    measure = held_out_loss(models, public)
    controller = Steering(
        optimizer,
        controller_of(recipe.controller, section, optimizer.thresholds, found, seed=key(recipe.seed, "controller")),
        steps=recipe.train.steps, interval=recipe.controller.every if recipe.controller else 1, reward=section.utility,
        raw=section.state == "raw",
        probe=lambda: measure(0)["eval/loss"] if public else math.nan,
    )  # fmt: skip
    unit = {prompt.id: record[0].id for record in records for prompt in record}
    given = {**problems.gold, **{row.prompt.id: row for row in planted}}
    gold = {name: replace(given[name], prompt=replace(given[name].prompt, id=unit[name])) for name in unit}
    return Private(
        models=models, stream=PoissonStream(records, source=source, q=found.q), gold=gold, controller=controller,
        admits=lambda: optimizer.next_sigma() is not None, claim=lambda: claim(ledger),
    )  # fmt: skip


def claim(ledger: Ledger) -> dict[str, Any]:
    """What may be said of a run: its promise, or that it has none."""
    terms = ledger.terms
    status = "guaranteed" if terms.guarantee else "heuristic"
    epsilon = ledger.epsilon() if terms.guarantee else None
    return {"privacy_status": status, "epsilon": epsilon, "delta": terms.delta, "unit": terms.unit, "paid": ledger.paid}


def records_of(prompts: Sequence[Prompt], section: PrivacyConfig) -> list[tuple[Prompt, ...]]:
    """Prompts by unit, at most `rows_per_unit` of each. Which are left out depends on the unit alone."""
    units: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        units.setdefault(_unit(prompt, section), []).append(prompt)
    if len({prompt.id for prompt in prompts}) < len(prompts):
        raise DataError("some training rows share an id; give each its own, or leave ids out")
    return [tuple(own[: section.rows_per_unit]) for own in units.values()]


def _unit(prompt: Prompt, section: PrivacyConfig) -> str:
    if section.unit == "row" or prompt.id.startswith("canary/"):
        return prompt.id
    if section.unit not in prompt.columns:
        raise DataError(f"{prompt.id} has no column {section.unit!r}, which privacy.unit names")
    return f"{section.unit}={prompt.columns[section.unit]}"


def canary_row(canary: Canary, tokenizer: Any) -> Trajectory:
    """A canary as a row of its own unit, all of it learnt."""
    ids = plain_ids(tokenizer, canary.text)
    prompt = Prompt(id=f"canary/{canary.text}", tokens=tuple(ids[:1]), text="")
    return Trajectory.of(prompt, ids[1:], text=canary.text, scores=(Score(value=0.0),))


def _ledger(recipe: Recipe, records: int, file: Path) -> tuple[Ledger, Plan]:
    found, terms = plan_of(recipe, records=records)
    ledger = load_ledger(file) if file.is_file() else Ledger(terms)
    if ledger.terms != terms:
        raise RunFolderError(f"{file} promises other terms than the recipe on this data; start another run")
    return ledger, found


def _optimizer(
    section: PrivacyConfig, models: Models, ledger: Ledger, file: Path, source: SecureSource
) -> PrivateOptimizer:
    named = dict(models.policy.trainable())
    groups = parameter_groups(list(named), section.groups)
    rule = tuple(section.noise_rule) if isinstance(section.noise_rule, list) else section.noise_rule
    return PrivateOptimizer(
        models.optimizer, RecordGradients(models.policy.model, groups), named, ledger=ledger, file=file,
        thresholds=[section.threshold / math.sqrt(len(groups))] * len(groups), rule=rule,
        expected_batch=section.expected_batch, source=source, counts_share=section.counts_share,
        automatic=section.automatic, keep_norms=section.state == "raw",
    )  # fmt: skip


def _opened(models: Models, recipe: Recipe, optimizer: PrivateOptimizer) -> Models:
    """The models with the private optimizer; a loss is that of a record, over public numbers only."""
    head = models.policy.causal_lm.get_output_embeddings()
    logprob_model = models.logprob_model
    if any(parameter.requires_grad for parameter in head.parameters()):
        logprob_model = replace(logprob_model, forward=through_the_head)
    return replace(
        models, logprob_model=logprob_model, optimizer=optimizer, released=optimizer.metrics,
        denominators=(float(recipe.model.max_length), 1.0),
    )  # fmt: skip


def public_notes(notes: Sequence[str]) -> list[str]:
    """What may be told of the data: lengths of training rows stay inside."""
    return [note for note in notes if not note.startswith("training")]
