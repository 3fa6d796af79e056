"""JSON validity: does the completion hold JSON, and does it satisfy a schema?"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmrl.rewards.text_answer import final_text
from llmrl.types import Score, Trajectory

LONGEST = 200_000


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


@dataclass(frozen=True, slots=True, kw_only=True)
class JSONSchema:
    """1.0 for JSON that satisfies the schema, `parses` for other JSON, else 0.0.

    schema: a JSON Schema (draft 2020-12), or "" to take each row's own from `prompt.columns[column]` (an object or
    JSON text); a row without one is not applicable. fenced: a single ```json block is accepted, else the whole final
    text must be JSON. Duplicate keys and NaN are refused. Remote references are never fetched.
    """

    schema: Mapping[str, Any] = field(default_factory=dict)
    column: str = "schema"
    parses: float = 0.0
    fenced: bool = True

    def __post_init__(self) -> None:
        if self.schema:
            import jsonschema

            try:
                jsonschema.Draft202012Validator.check_schema(dict(self.schema))
            except jsonschema.SchemaError as error:
                raise ValueError(f"schema is not a JSON Schema: {error.message}") from error

    def _text(self, text: str) -> str:
        said = final_text(text) or ""
        blocks = re.findall(r"^```(?:json)?[ \t]*\n(.*?)^```[ \t]*$", said, re.DOTALL | re.MULTILINE)
        return str(blocks[0]) if self.fenced and len(blocks) == 1 else said

    def __call__(self, trajectory: Trajectory) -> Score:
        import jsonschema
        from referencing import Registry  # an empty one: nothing is fetched
        from referencing.exceptions import Unresolvable

        schema = self.schema or trajectory.prompt.columns.get(self.column)
        try:
            schema = json.loads(schema) if isinstance(schema, str) else schema
            jsonschema.Draft202012Validator.check_schema(schema)
        except (ValueError, jsonschema.SchemaError) as error:
            return Score(value=None, reason=f"the row's schema cannot be used: {str(error)[:100]}")
        if not isinstance(schema, Mapping) or not schema:
            return Score(value=None, reason="the row has no schema")
        try:
            value = json.loads(
                self._text(trajectory.text[:LONGEST]),
                parse_constant=_refuse_constant,
                object_pairs_hook=_no_duplicates,
            )
        except (ValueError, RecursionError) as error:
            return Score(value=0.0, reason=f"not JSON: {str(error)[:100]}", flags=("not_json",))
        validator = jsonschema.Draft202012Validator(dict(schema), registry=Registry())
        try:
            problem = jsonschema.exceptions.best_match(validator.iter_errors(value))
        except Unresolvable as error:
            return Score(value=None, reason=f"the schema refers to {str(error)[:100]}")
        if problem is not None:
            return Score(value=self.parses, reason=f"against the schema: {problem.message[:150]}")
        return Score(value=1.0)

    def validate(self) -> None:
        """Raises ValueError if empty text or broken JSON scores."""
        from llmrl.rewards.validation import expect

        expect(self, "", full=[], none=["", "{", "no json", '{"a": NaN}'], columns={self.column: {"type": "object"}})


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice")
    return made
