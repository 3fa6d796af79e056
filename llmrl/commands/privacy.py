"""`llmrl privacy`: audits of runs under differential privacy, and what `llmrl plan` says of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from llmrl.commands.arguments import RunFolder

if TYPE_CHECKING:
    from llmrl.settings.recipe import Recipe

privacy_app = typer.Typer(no_args_is_help=True)
console = Console(soft_wrap=True)


@privacy_app.callback()
def privacy() -> None:
    """Audits of private runs; `llmrl plan` and `llmrl train` take recipes with a `privacy` section."""


def show_plan(recipe: Recipe) -> None:
    """Print what noise a recipe's budget needs, and what its steps cost by each accountant; no model is loaded.

    Records are counted before any is left out as too long.
    """
    from llmrl.control.build import described
    from llmrl.data.source import load_train_eval
    from llmrl.privacy.planning import epsilons
    from llmrl.privacy.terms import held_records, plan_of, private_knobs, section_of
    from llmrl.seeding import key

    section = section_of(recipe)
    rows = load_train_eval(recipe.data, recipe.eval.held_out, seed=key(recipe.seed, "data"))[0]
    records = held_records([row.columns for row in rows], section)
    found, terms = plan_of(recipe, records=records)
    table = Table("privacy", "")
    sigmas = ", ".join(f"{sigma:.4g} x {steps}" for sigma, steps in terms.sigmas)
    for name, value in {
        "status": "guaranteed" if terms.guarantee else "heuristic: no guarantee holds",
        "promise": f"epsilon {section.epsilon:g} at delta {section.delta:g}, unit {section.unit}",
        "records": f"{records}, of which a step draws {section.expected_batch:g} on average (q = {found.q:.4g})",
        "steps": str(found.steps),
        "sigma": f"{sigmas} ({terms.mode}); never below {found.lowest_sigma:.4g} in the adaptive mode",
        "filter": f"order {found.order}, budget {found.budget:.4g}",
    }.items():
        table.add_row(name, value)
    if recipe.controller is not None:
        steered = described(recipe.controller, private_knobs(recipe.controller, section, found), private=True)
        table.add_row("controller", steered)
    costs = epsilons([(sigma, found.q, steps) for sigma, steps in terms.sigmas], section.delta)
    table.add_row(*_told(*next(costs)))
    console.print(table)
    for name, cost in costs:  # each takes a second or two
        console.print(*_told(name, cost), highlight=False)


def _told(accountant: str, cost: float) -> tuple[str, str]:
    return f"epsilon by {accountant}", f"{cost:.4g}"


@privacy_app.command("audit")
def audit(
    run: RunFolder,
    candidates: Annotated[int, typer.Option(min=10, help="Rows and secrets to compare with.")] = 200,
) -> None:
    """Attack a private run: membership inference, canary exposure, a lower bound on epsilon. Its output is not private."""
    from llmrl.compose import model_folder
    from llmrl.privacy.attack import audit_run
    from llmrl.train.replay import stored_recipe

    recipe = stored_recipe(run)
    base = model_folder(recipe.model.path)
    console.print_json(json.dumps(audit_run(run, recipe, base, candidates=candidates)))
