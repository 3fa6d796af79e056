"""`llmrl models`: pretrained models by name."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

console = Console(soft_wrap=True)
models_app = typer.Typer(help="Pretrained models by name.", no_args_is_help=True)


@models_app.command("list")
def models_list() -> None:
    """List the models that can be pulled by name."""
    from rich.table import Table

    from llmrl.policy.catalog import list_models

    table = Table("name", "download", "licence", "here", "what it is")
    for row in list_models():
        table.add_row(row.name, f"{row.size_mb:.0f} MB", row.licence, "yes" if row.cached else "no", row.description)
    console.print(table)


@models_app.command("pull")
def models_pull(name: Annotated[str, typer.Argument(help="A name of `llmrl models list`.")]) -> None:
    """Fetch a model, check it, convert it, and keep it in the cache."""
    from llmrl.policy.catalog import pull

    print(pull(name, report=lambda text: console.print(text, highlight=False)))
