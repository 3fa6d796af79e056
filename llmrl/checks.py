"""Commands that check things without training anything: this machine, the maths."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}


def doctor() -> None:
    """Look at this machine: what is there, what is missing, what would make it faster."""
    from rich.table import Table

    from llmrl.doctor import examine

    table = Table("what", "state", "detail")
    findings = examine()
    for finding in findings:
        table.add_row(finding.what, f"[{COLOURS[finding.state]}]{finding.state}[/]", escape(finding.detail))
    Console(soft_wrap=True).print(table)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


def conformance(
    seeds: Annotated[int, typer.Option(min=1, help="Random samples of each check.")] = 5,
) -> None:
    """Check losses and algorithms against slow definitions on this machine; exits with 1 if any check fails."""
    from llmrl.conformance import run, table

    results = run(range(seeds))
    console = Console()
    console.print(table(results))
    failed = [result for result in results if not result.passed]
    for result in failed:
        console.print(
            f"{result.name}, {result.check}: error {result.error:.3g}, allowed {result.tolerance:.3g}", style="red"
        )
    if failed:
        raise typer.Exit(1)
