"""What pydantic finds wrong -> lines that say where, what was expected, what was given, and the nearest known name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from llmrl.nearest import nearest

# Starts of pydantic's error types -> what was expected, in words for people who do not know pydantic.
PLAIN_WORDS = {
    "int_": "must be a whole number",
    "float_": "must be a number",
    "bool_": "must be true or false",
    "string_type": "must be text; quote it",
    "dict_type": "must be a section of `key: value` lines",
    "model_type": "must be a section of `key: value` lines",
    "model_attributes_type": "must be a section of `key: value` lines",
    "list_type": "must be a list, such as [a, b]",
}


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One indented line for each thing wrong; an unknown key comes with the nearest key of its section of `model`."""
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            parent = _fields_at(model, item["loc"][:-1])
            hint = nearest(str(item["loc"][-1]), parent) if parent else ""
            lines.append(f"{place}: unknown key; {hint}")
        elif item["type"] == "missing":
            lines.append(f"{place}: missing; add it")
        elif item["type"] == "union_tag_invalid":
            kinds = [kind.strip(" '") for kind in item["ctx"]["expected_tags"].split(",")]
            lines.append(f"{place}: {item['ctx']['tag']!r} is no kind of stage; {nearest(item['ctx']['tag'], kinds)}")
        elif item["type"] == "union_tag_not_found":
            lines.append(f"{place}.kind: missing; add it")
        else:
            message = plain_message(item)
            lines.append(f"{place}: {message}" if place and not message.startswith(place) else message)
    return "\n".join(f"  {line}" for line in lines)


def plain_message(item: Mapping[str, Any]) -> str:
    """What pydantic found wrong with one value, in words for people who do not know pydantic."""
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error":
        return message
    wanted = next((words for kind, words in PLAIN_WORDS.items() if str(item["type"]).startswith(kind)), None)
    if wanted is None:
        wanted = message.replace("Input should be", "must be", 1)
    return f"{wanted} (got {item['input']!r})"


def _fields_at(model: Any, location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        if (tagged := _by_tag(model)) and part in tagged:
            model = tagged[str(part)]
        elif isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
            model = annotation if _by_tag(annotation) else _section_of(annotation)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _by_tag(annotation: Any) -> dict[str, Any]:
    """Tag -> model of a discriminated union (`kind: sft`), alone or in a list; pydantic names the tag in the place."""
    parts = [annotation, *getattr(annotation, "__args__", ())]
    union = next((part for part in parts if any(getattr(m, "discriminator", None) for m in _metadata(part))), None)
    if union is None:
        return {}
    key = next(m.discriminator for m in _metadata(union) if getattr(m, "discriminator", None))
    kinds = union.__origin__.__args__
    return {tag: kind for kind in kinds for tag in kind.model_fields[key].annotation.__args__}


def _metadata(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__metadata__", ())


def _section_of(annotation: Any) -> Any:
    """The section model inside `Section | None` or `dict[str, Section]`."""
    inner = [annotation, *getattr(annotation, "__args__", ())]
    return next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
