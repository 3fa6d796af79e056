"""What every section of a recipe is built on."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors."""

    # What checks a section is built at its first use: the recipe's own is enough for all of its sections.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


def without_nulls(parts: Any) -> Any:
    """Named parts without those that are null; null is no parts. Anything else stays, for pydantic to refuse.

    >>> without_nulls({"tests": {"weight": 1}, "format": None}), without_nulls(None)
    ({'tests': {'weight': 1}}, {})
    """
    if isinstance(parts, dict):
        return {name: part for name, part in parts.items() if part is not None}
    return {} if parts is None else parts
