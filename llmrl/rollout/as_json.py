"""Dataclasses of plain data as JSON: what crosses to servers' workers and to Ray's actors, so that nothing is pickled."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


def to_json(value: Any) -> str:
    """A dataclass, or a list of them. NaN stays NaN."""
    return json.dumps(value, default=asdict)


def from_json(kind: type[T], text: str) -> T:
    """The `kind` that `to_json` wrote."""
    return TypeAdapter(kind).validate_python(json.loads(text))
