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
        table.add_row(
            row.name,
            f"{row.size_mb:.0f} MB" if row.size_mb else "made here",
            row.licence,
            "yes" if row.cached else "no",
            row.description,
        )
    console.print(table)


@models_app.command("build")
def models_build(
    name: Annotated[str, typer.Argument(help="A name of `llmrl models list` that is made here.")],
    seed: Annotated[int, typer.Option(help="Keys the new weights and both trainings.")] = 0,
    lessons: Annotated[int, typer.Option(help="Steps of the first training, of 64 frames each.", min=1)] = 600,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override the recipe agents/frames/sft.")] = None,
) -> None:
    """Make a vision-language model on this machine: a text model with a new vision tower, trained on rendered frames."""
    from llmrl.commands.build_model import build

    print(build(name, seed=seed, lessons=lessons, console=console, overrides=set_ or []))


@models_app.command("pull")
def models_pull(name: Annotated[str, typer.Argument(help="A name of `llmrl models list`.")]) -> None:
    """Fetch a model, check it, convert it, and keep it in the cache."""
    from llmrl.policy.catalog import pull

    print(pull(name, report=lambda text: console.print(text, highlight=False)))
