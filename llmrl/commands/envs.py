"""`llmrl envs`: the environments, and demonstrations of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console(soft_wrap=True)
envs_app = typer.Typer(no_args_is_help=True, help="Environments for agents.")


@envs_app.command("list")
def list_() -> None:
    """List the environments that come with llmrl, and which packages are missing here."""
    from importlib.util import find_spec

    from llmrl.envs import ENVIRONMENTS, PACKAGES

    for name in ENVIRONMENTS:
        package, install = PACKAGES.get(name, ("", ""))
        missing = f"  needs {package}: {install}" if package and find_spec(package) is None else ""
        console.print(f"{name}{missing}", markup=False, highlight=False)


@envs_app.command()
def demos(
    env: Annotated[str, typer.Argument(help="Name, recipe, or '{name: ..., args: ...}'.")],
    out: Annotated[Path, typer.Argument(help="The .jsonl file to write; pictures go into a folder beside it.")],
    rows: Annotated[int, typer.Option(help="Examples, at most.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
    thoughts: Annotated[bool, typer.Option(help="Say the state before the action.")] = True,
    skill: Annotated[float, typer.Option(help="Share of actions from the game's own hints.", min=0, max=1)] = 0.0,
) -> None:
    """Write examples for an sft stage: the form of an answer, its actions drawn at random or from the game's hints."""
    from llmrl.envs.demos import some_skill, write_demonstrations
    from llmrl.eval.environments import find_environment

    _, config = find_environment(env)
    choose = some_skill(skill) if skill else None
    print(write_demonstrations(config, out, rows=rows, seed=seed, thoughts=thoughts, choose=choose))
