"""Commands that check things without training anything: this machine, the maths, a recipe's rewards."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from llmrl.commands.arguments import Overrides, RecipeFile

rewards_app = typer.Typer(no_args_is_help=True)
COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}


def doctor() -> None:
    """Look at this machine: what is there, what is missing, what would make it faster."""
    from rich.table import Table

    from llmrl.commands.doctor import Finding, examine
    from llmrl.rewards.sandbox import isolation_report

    table = Table("what", "state", "detail")
    findings = examine()
    for rung, reason in isolation_report().items():
        findings.append(Finding(f"code sandbox: {rung}", "warn" if reason else "ok", reason or "works"))
    for finding in findings:
        table.add_row(finding.what, f"[{COLOURS[finding.state]}]{finding.state}[/]", escape(finding.detail))
    Console(soft_wrap=True).print(table)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


def conformance(
    seeds: Annotated[int, typer.Option(min=1, help="Random samples of each check.")] = 5,
) -> None:
    """Check losses and algorithms against slow definitions on this machine; exits with 1 if any check fails."""
    from llmrl.conformance import fitting_table, run
    from llmrl.eval import metrics
    from llmrl.rewards import critique, outcomes

    outside = {
        **{name: getattr(outcomes, name) for name in ("outcome_of", "outcome_return")},
        **{name: getattr(critique, name) for name in ("verdict", "credited", "discrimination_reward")},
        **{name: getattr(critique, name) for name in ("refinement_reward", "graded_discrimination")},
        **{name: getattr(metrics, name) for name in ("n_at_k", "critique_metrics")},
    }
    results = run(range(seeds), outside=outside)
    console = Console()
    console.print(fitting_table(results, console))
    failed = [result for result in results if not result.passed]
    for result in failed:
        console.print(
            f"{result.name}, {result.check}: error {result.error:.3g}, allowed {result.tolerance:.3g}", style="red"
        )
    if failed:
        raise typer.Exit(1)


@rewards_app.callback()
def rewards() -> None:
    """Try a recipe's rewards on its own data."""


@rewards_app.command("check")
def check_rewards(
    recipe: RecipeFile,
    overrides: Overrides = None,
    part: Annotated[str | None, typer.Option(help="Only this part of the reward.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows to look at.")] = 500,
    show: Annotated[int, typer.Option(min=0, help="Problems to print of each part.")] = 5,
) -> None:
    """Do the data's own gold answers get full marks, and empty answers none? Exits with 1 if not."""
    from llmrl.compose import rewards_of
    from llmrl.data.source import load_train_eval
    from llmrl.errors import ConfigError
    from llmrl.nearest import nearest
    from llmrl.rewards.check import check_rows
    from llmrl.rewards.combine import OfSources
    from llmrl.seeding import key
    from llmrl.settings.load import load_recipe

    loaded = load_recipe(recipe, overrides)
    parts = dict(rewards_of(loaded).rewards)
    if part is not None and part not in parts:
        raise ConfigError(f"--part {part}: the reward has no such part; {nearest(part, list(parts))}")
    found, held_out = load_train_eval(loaded.data, loaded.eval.held_out, seed=key(loaded.seed, "data"))
    chosen = [*held_out, *found][:limit]
    judging = {one.title: one.reward for one in loaded.data.sources}
    console, bad = Console(soft_wrap=True), 0
    for name, reward in parts.items():
        if part in (None, name):
            mine = [row for row in chosen if name in (judging.get(row.source) or parts)]
            rows = [{**row.columns, "answer": row.answer, "id": row.id} for row in mine]
            problems = check_rows(reward.reward if isinstance(reward, OfSources) else reward, rows)
            bad += len(problems)
            kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(p.kind for p in problems).items())
            console.print(f"{name}: {len(rows)} rows, {kinds or 'every gold answer gets full marks'}", markup=False)
            for problem in problems[:show]:
                console.print(f"  {problem.kind} {problem.id}: {problem.detail}", markup=False, highlight=False)
    if bad:
        raise typer.Exit(1)
