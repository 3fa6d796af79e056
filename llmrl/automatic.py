"""Turns every `auto` of a recipe into what it means on this machine, so that a run's record holds no `auto`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmrl.hardware import best_precision, warning_for
from llmrl.settings.load import load_recipe
from llmrl.settings.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A recipe without `auto`. `chosen` says what was chosen and why, by key; `warnings` are about explicit choices."""

    recipe: Recipe
    chosen: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """All of it, for a terminal."""
        return [*(f"{key}: {text}" for key, text in self.chosen.items()), *(f"warning: {w}" for w in self.warnings)]


def settle(recipe: Recipe, *, resume: bool = False) -> Settled:
    """Decide what the recipe leaves to `auto`. A resumed run keeps what it was started with, on whatever machine."""
    if recipe.model.dtype != "auto":
        warning = warning_for(recipe.model.dtype)
        return Settled(recipe=recipe, warnings=(f"model.dtype={recipe.model.dtype}: {warning}",) if warning else ())
    stored = recipe.run_dir / "recipe.yaml"
    before = load_recipe(stored).model.dtype if resume and stored.is_file() else "auto"
    if before == "auto":
        best = best_precision()
        dtype, said = best.dtype, f"{best.dtype}, by auto: {best.reason}"
    else:
        dtype, said = before, f"{before}, as the run was started with"
    model = recipe.model.model_copy(update={"dtype": dtype})
    return Settled(recipe=recipe.model_copy(update={"model": model}), chosen={"model.dtype": said})
