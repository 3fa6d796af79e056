"""From a recipe's privacy section and a number of records to the run's plan and terms: arithmetic alone, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmrl.control.knob import Knob
from llmrl.errors import ConfigError
from llmrl.privacy.ledger import Terms, terms_of
from llmrl.privacy.planning import Plan, decayed_sigmas, epsilon_by, plan
from llmrl.settings.controller import ControllerConfig, KnobConfig
from llmrl.settings.privacy import PrivacyConfig
from llmrl.settings.recipe import Recipe

THRESHOLD = KnobConfig(low=1e-3, high=1e2, log=True, max_change=0.05)  # at most 1.8 times as large after a decision


def section_of(recipe: Recipe) -> PrivacyConfig:
    """The recipe's privacy section. Raises ConfigError if it has none."""
    if recipe.privacy is None:
        raise ConfigError("the recipe has no privacy section; add one, such as privacy: {epsilon: 4, delta: 1.0e-5}")
    return recipe.privacy


def held_records(prompts: Sequence[Mapping[str, Any]], section: PrivacyConfig) -> int:
    """How many records rows with these columns are."""
    return len(prompts) if section.unit == "row" else len({str(columns.get(section.unit)) for columns in prompts})


def plan_of(recipe: Recipe, *, records: int) -> tuple[Plan, Terms]:
    """The plan and the terms of a recipe on so many records. Raises ConfigError."""
    section = section_of(recipe)
    q = section.expected_batch / max(1, records)
    if not q <= 1:
        raise ConfigError(
            f"privacy.expected_batch={section.expected_batch} of {records} records is more than all; lower it"
        )
    found = plan(section.epsilon, section.delta, q=q, steps=recipe.train.steps, accountant=section.accountant)
    terms = terms_of(
        found, unit=section.unit, mode=section.mode, accountant=section.accountant, sigmas=_schedule(found, section),
        guarantee=section.state == "released",
    )  # fmt: skip
    return found, terms


def _schedule(found: Plan, section: PrivacyConfig) -> tuple[tuple[float, int], ...]:
    """A falling schedule scaled up until it costs no more than the target; empty for constant noise."""
    if section.sigma_decay == 1.0:
        return ()
    scale = 1.0
    while True:
        schedule = decayed_sigmas(scale * found.sigma, found.steps, ratio=section.sigma_decay)
        history = [(sigma, found.q, steps) for sigma, steps in schedule]
        if epsilon_by(section.accountant, history, found.delta) <= found.epsilon:
            return schedule
        scale *= 1.01


def private_knobs(section: ControllerConfig, privacy: PrivacyConfig, plan: Plan) -> list[Knob]:
    """The norm of all thresholds together and, in the adaptive mode, sigma. Raises ConfigError."""
    limits = section.knobs.get("threshold", THRESHOLD)
    knobs = [Knob(name="threshold", default=privacy.threshold, **limits.model_dump())]
    if privacy.mode == "adaptive":
        knobs.append(Knob(name="sigma", low=plan.lowest_sigma, high=4 * plan.sigma, default=plan.sigma, log=True))
    return knobs
