"""`llmrl privacy`: plan, train and audit under differential privacy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from llmrl.commands.arguments import Overrides, RecipeFile, RunFolder

if TYPE_CHECKING:
    from llmrl.settings.recipe import Recipe

privacy_app = typer.Typer(no_args_is_help=True)
console = Console(soft_wrap=True)


@privacy_app.callback()
def privacy() -> None:
    """Supervised fine-tuning under differential privacy: plan, train, audit."""


@privacy_app.command("plan")
def plan_privacy(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Say what noise a recipe's budget needs, and what its steps cost by each accountant; no model is loaded."""
    from llmrl.settings.load import load_recipe

    show_plan(load_recipe(recipe, overrides))


def show_plan(recipe: Recipe) -> None:
    """Print the privacy plan of a recipe. Records are counted before any is left out as too long."""
    from llmrl.commands.private_run import data_of, plan_of, section_of
    from llmrl.privacy.planning import epsilons

    section = section_of(recipe)
    rows = data_of(recipe)[0]
    records = len(rows) if section.unit == "row" else len({str(row.columns.get(section.unit)) for row in rows})
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
    history = [(sigma, found.q, steps) for sigma, steps in terms.sigmas]
    for name, cost in epsilons(history, section.delta).items():
        table.add_row(f"epsilon by {name}", f"{cost:.4g}")
    console.print(table)


@privacy_app.command("train")
def train_private(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in its folder.")] = False,
) -> None:
    """Fine-tune under the recipe's privacy section; ends with what may be claimed."""
    from llmrl.commands.private_run import section_of, train_privately
    from llmrl.compose import policy_folder
    from llmrl.settings.load import load_recipe

    loaded = load_recipe(recipe, overrides)
    section_of(loaded)
    _, summary = train_privately(
        loaded, policy_folder(loaded), resume=resume,
        say=lambda metrics: console.print(f"step {metrics['step']:.0f}  spent {metrics['privacy/spent']:.1%}"),
    )  # fmt: skip
    console.print_json(json.dumps(summary))


@privacy_app.command("audit")
def audit(
    run: RunFolder,
    candidates: Annotated[int, typer.Option(min=10, help="Rows and secrets to compare with.")] = 200,
) -> None:
    """Attack a private run: membership inference, canary exposure, a lower bound on epsilon. Its output is not private."""
    from llmrl.commands.private_run import audit_run

    console.print_json(json.dumps(audit_run(run, candidates=candidates)))
