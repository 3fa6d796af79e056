"""`llmrl models build`: a vision-language model made on this machine, because no package with a small one is known.

Three steps, all keyed by the seed: a vision tower and projector are put before the text model; they learn to say what is
where in rendered frames, word by word (`llmrl.policy.eyes`); the whole learns to answer questions about frames, by the
recipe agents/frames/sft.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from llmrl.cache import cache_root
from llmrl.errors import CatalogError
from llmrl.nearest import nearest
from llmrl.policy.build_vlm import Eyes, build_vlm
from llmrl.policy.catalog import MADE, locked, pull
from llmrl.seeding import key

BATCH = 64  # frames of a first lesson


def build(name: str, *, seed: int, lessons: int, console: Console, overrides: Sequence[str] = ()) -> Path:
    """The finished folder of the model `name`, in the cache; an older one is replaced. `lessons` are steps of the first
    training, `overrides` change the recipe of the second, which goes on from its last checkpoint if it was killed.

    Raises CatalogError for another name, or if the training was interrupted.
    """
    if name not in MADE:
        raise CatalogError(f"{name!r} is not made here; {nearest(name, MADE)}")
    text = pull(MADE[name].text, report=console.print)
    models = cache_root() / "models"
    with locked(models / f".{name}.lock", console.print):
        folder = models / f".making-{name}-{key(name, seed, lessons, *overrides):x}"
        eyes = folder / "eyes"
        if not eyes.is_dir():
            console.print("new vision tower and projector")
            first_lessons(text, folder / "lessons", seed=seed, steps=lessons, say=console.print)
            (folder / "lessons").replace(eyes)
        made = _answering(folder, seed=seed, overrides=overrides, console=console)
        shutil.copytree(made, folder / "made", dirs_exist_ok=True)  # the run stays whole until its folder goes
        if (models / name).exists():
            shutil.rmtree(folder / "before", ignore_errors=True)
            (models / name).replace(folder / "before")
        (folder / "made").replace(models / name)
        shutil.rmtree(folder)
    return models / name


def first_lessons(
    text: Path, folder: Path, *, seed: int, steps: int, say: Callable[[str], None], eyes: Eyes | None = None
) -> None:
    """Write `folder`: the text model in `text` behind a new vision tower that knows words for parts of frames."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from llmrl.data.frames import make_frame
    from llmrl.policy.eyes import teach_words
    from llmrl.seeding import generator

    eyes = eyes or Eyes()
    build_vlm(text, folder, seed=seed, eyes=eyes)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    side = round(eyes.tokens**0.5)

    def lesson(step: int) -> tuple[list[Any], list[list[str]]]:
        frames = [make_frame(generator(seed, "lesson", step, number)) for number in range(BATCH)]
        return [frame.image() for frame in frames], [frame.words(side) for frame in frames]

    def report(step: int, loss: float, recognised: float) -> None:
        if step % 50 == 49:
            say(f"words of frames: step {step + 1} of {steps}, loss {loss:.2f}, recognised {recognised:.0%}")

    teach_words(model, processor, lesson, steps=steps, report=report)
    model.to(AutoConfig.from_pretrained(folder).dtype).save_pretrained(folder)


def _answering(folder: Path, *, seed: int, overrides: Sequence[str], console: Console) -> Path:
    """Train folder/eyes by the recipe; returns the folder of the policy."""
    from llmrl.compose import resolve
    from llmrl.settings.load import load_recipe, recipes_folder
    from llmrl.start import run
    from llmrl.train.checkpoint import checkpoints

    own = [f"model.path={folder / 'eyes'}", f"runs_dir={folder}", f"seed={seed}"]
    recipe = load_recipe(recipes_folder() / "agents" / "frames" / "sft.yaml", [*own, *overrides])
    outcome = run(recipe, resolve(recipe), console=console, resume=(recipe.run_dir / "recipe.yaml").is_file())
    if outcome.exit_code:
        raise CatalogError(f"the training of {recipe.name} was interrupted; the same command goes on with it")
    return checkpoints(recipe.run_dir)[-1] / "policy"
