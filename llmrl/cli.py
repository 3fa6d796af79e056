"""The `llmrl` command: its commands put together, and how it ends.

Exit codes: 0 done, 1 the run failed, 2 something in the recipe, the data or the command line is wrong, 3 a health limit
was passed, 130 and 143 stopped by Ctrl-C and SIGTERM after saving.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from llmrl import __version__
from llmrl.commands import checks, runs
from llmrl.commands import recipes as recipe_commands
from llmrl.commands.chat import chat
from llmrl.commands.compare import compare
from llmrl.commands.envs import envs_app
from llmrl.commands.export import export
from llmrl.commands.launch import launch
from llmrl.commands.models import models_app
from llmrl.commands.plan import plan
from llmrl.commands.privacy import privacy_app
from llmrl.commands.serve import serve
from llmrl.commands.sweep import sweep
from llmrl.commands.train import train
from llmrl.commands.watch import watch
from llmrl.errors import LlmrlError
from llmrl.eval.cli import app as eval_app


def _version(wanted: bool) -> None:
    if wanted:
        print(f"llmrl {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="llmrl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Reinforcement-learning post-training of language models."""


app.command()(train)
app.command()(plan)
app.command()(launch)
app.add_typer(eval_app, name="eval")
app.command()(runs.report)
app.command()(runs.samples)
app.command()(runs.programs)
app.command()(watch)
app.command()(compare)
app.command()(sweep)
app.command()(chat)
app.command()(serve)
app.command()(export)
app.command("hash")(runs.hash_)
app.command()(runs.replay)
app.command()(recipe_commands.recipes)
app.command()(recipe_commands.schema)
app.add_typer(envs_app, name="envs")
app.add_typer(models_app, name="models")
app.add_typer(checks.rewards_app, name="rewards")
app.add_typer(privacy_app, name="privacy")
app.command()(checks.doctor)
app.command()(checks.conformance)

# OpenMP's threads wait for work by spinning, by default for so long that beside another process every operation waits for
# them: on two busy cores a small layer ran 8 times as often with these (tests/bench/README.md).
BRIEF_WAITS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
EXIT_MISSING_FILE = 2  # a path on the command line or in the recipe: the user's to mend


def main() -> None:
    """Entry point: errors that are the user's to mend are one message and an exit code, not a traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name, value in BRIEF_WAITS.items():  # read when torch is imported
        os.environ.setdefault(name, value)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a recipe may name a reward or an algorithm in a file beside it
    try:
        app()
    except (LlmrlError, FileNotFoundError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(error.exit_code if isinstance(error, LlmrlError) else EXIT_MISSING_FILE)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
