"""`llmrl export`: a run's policy as a folder, a GGUF file, or a repository on the Hugging Face hub, with a model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from llmrl.commands.arguments import RunFolder, Step

console = Console(soft_wrap=True)


def export(
    run: RunFolder,
    to: Annotated[Literal["folder", "gguf", "hub"], typer.Option(help="What to make.")] = "folder",
    out: Annotated[Path | None, typer.Option(help="The folder, or the .gguf file. Default: in the run folder.")] = None,
    step: Step = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="The LoRA adapter by itself, not merged.")] = False,
    precision: Annotated[Literal["f32", "f16", "bf16", "q8_0"], typer.Option(help="Of a GGUF file.")] = "f16",
    repo: Annotated[str | None, typer.Option(help="org/name on the hub; needed with --to hub.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Hub: readable by everyone; private otherwise.")] = False,
) -> None:
    """Export a run's policy. Nothing leaves this machine unless --to hub names a repository."""
    from llmrl.errors import ConfigError
    from llmrl.eval.models import find_model
    from llmrl.policy.gguf_export import hf_to_gguf

    if (to == "hub") != (repo is not None):
        raise ConfigError("--to hub and --repo org/name belong together")
    if adapter and to == "gguf":
        raise ConfigError("a GGUF file holds the merged model; leave --adapter out")
    model = find_model(str(run), step=step)
    if to == "gguf":
        file = out or run / "export" / f"{run.resolve().name}-{precision}.gguf"
        file.parent.mkdir(parents=True, exist_ok=True)
        for note in hf_to_gguf(Path(model.path), file, precision=precision, name=run.resolve().name):
            console.print(note, markup=False, highlight=False)
        print(file)
        return
    folder = out or run / "export" / ("adapter" if adapter else "policy")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty, and nothing is overwritten; name another one with --out")
    write_folder(run, Path(model.path), folder, adapter=adapter)
    if to == "hub":
        print(_pushed(folder, str(repo), public=public))
        return
    print(folder)


def write_folder(run: Path, policy: Path, folder: Path, *, adapter: bool) -> None:
    """A checkpoint's model, or its adapter, with a model card, in place of `folder`. Raises ConfigError: no adapter."""
    from llmrl.errors import ConfigError
    from llmrl.report.card import model_card
    from llmrl.report.read import read_run

    source = policy / "adapter" if adapter else policy
    if not source.is_dir():
        raise ConfigError(f"{policy} holds no adapter: the run trained all weights; leave --adapter out")
    base = str(read_run(run).recipe.get("model", {}).get("path", "an unknown model"))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("adapter"))
    (folder / "README.md").write_text(model_card(run, base=base, adapter=adapter))


def _pushed(folder: Path, repo: str, *, public: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx  # the one that it uses: httpx or httpx2, by version

    from llmrl.errors import StorageError

    api = HfApi()
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        found = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Exported by llmrl")
    except (httpx.HTTPError, OSError, HFValidationError) as error:
        raise StorageError(
            f"{folder} is written, and could not be uploaded to {repo}: {error}; `hf auth login` gives access"
        ) from error
    return str(found)
