"""The `data` and `eval` sections of a recipe: where problems come from and how they become prompts."""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llmrl.settings.section import Section


class DataConfig(Section):
    """Where training problems come from.

    >>> DataConfig(source="addition", args={"high": 20}).limit is None
    True
    """

    source: str = Field(
        description="a generator (addition, arithmetic, chains, countdown, episodes, frames, programs), "
        "reasoning_gym:<task>, a .jsonl, .json or .parquet path (globs allowed), apps:<path>, code_contests:<path>, "
        "mbpp:<path>, attempts:<path> (drafts for critics), or a datasets hub id"
    )
    split: str = Field("train", description="hub split; for a generator: train or held_out")
    subset: str | None = Field(None, description="hub configuration name")
    args: dict[str, Any] = Field(default_factory=dict, description="difficulty knobs of a generator")
    columns: dict[str, str] = Field(
        default_factory=dict, description="our names -> the data's: prompt, answer and id, and any other to rename"
    )
    template: str | None = Field(None, description="text of the user's turn; {name} stands for a column of the row")
    system: str | None = Field(None, description="system message; needs a chat template")
    chat: bool | Literal["auto"] = Field("auto", description="apply the chat template (auto: if the tokenizer has one)")
    max_prompt_tokens: int = Field(
        512,
        ge=1,
        description="longer prompts are dropped and counted; default: what model.max_length leaves beside a completion",
    )
    limit: int | None = Field(None, ge=1, description="use this many rows; for a generator: make this many")
    shuffle: bool = Field(True, description="shuffle rows before the limit, and anew in every epoch")

    @field_validator("template")
    @classmethod
    def _template_is_plain(cls, value: str | None) -> str | None:
        if value is not None and not template_fields(value):
            raise ValueError(f"template {value!r} names no column; write for example '{{prompt}}'")
        return value

    @model_validator(mode="after")
    def _system_needs_chat(self) -> DataConfig:
        if self.system is not None and self.chat is False:
            raise ValueError("a system message needs a chat template; remove `system` or `chat: false`")
        return self


class EvalDataConfig(Section):
    """Where held-out problems come from. What is left out is taken from the training data's section.

    With the same source, the problems are a part of it that training never sees. `seed` is not the run's seed, so that
    every run of a recipe is measured on the same problems.
    """

    source: str | None = None
    split: str | None = Field(
        None, description="default: held_out of a generator, the same split of the same data, or a new source's test"
    )
    subset: str | None = None
    args: dict[str, Any] | None = None
    columns: dict[str, str] | None = None
    template: str | None = None
    system: str | None = None
    chat: bool | Literal["auto"] | None = None
    max_prompt_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(200, ge=1, description="number of problems; null takes all of a file")
    seed: int = Field(0, description="which problems are drawn; not the run's seed")


def template_fields(template: str) -> list[str]:
    """Names of the columns a template uses, in order. Raises ValueError for anything but plain `{name}` fields.

    >>> template_fields("{problem} Put the answer in \\\\boxed{{}}.")
    ['problem']
    """
    return [name for _, name in template_parts(template) if name is not None]


def template_parts(template: str) -> Iterator[tuple[str, str | None]]:
    """(literal text, column name or None) pairs. Attribute access, indexing, conversions and formats are refused."""
    for literal, name, spec, conversion in string.Formatter().parse(template):
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise ValueError(f"template field {{{name}}} is not a plain column name; braces are written {{{{ and }}}}")
        yield literal, name
