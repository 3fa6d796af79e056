"""What every section of a recipe is built on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors."""

    # What checks a section is built at its first use: the recipe's own is enough for all of its sections.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
