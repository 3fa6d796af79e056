"""The environment of a recipe, and the other engines that its environments may ask."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from llmrl.settings.section import Section

WINDOW = re.compile(r"window\((\d+)\)")


class EnvConfig(Section):
    """Answers the policy turn by turn. Each data row is one task; `reward` judges the finished episode beside it."""

    name: str = Field(description="calculator, guess, ... (llmrl/envs), or package.module:Class")
    args: dict[str, Any] = Field(default_factory=dict)
    turns: PositiveInt = Field(8, description="an episode is cut after this many")
    memory: str = Field(
        "conversation",
        pattern=r"^(conversation|window\([1-9][0-9]*\))$",
        description="what the policy sees: the whole conversation, or window(k), the last k observations",
    )
    isolated: bool = Field(True, description="environments live in worker processes that are killed when they hang")
    workers: PositiveInt = Field(2, description="worker processes")
    timeout_s: PositiveFloat = Field(30.0, description="an environment that takes longer for one answer has failed")

    @property
    def window(self) -> int | None:
        """How many observations the policy sees; None: all of them."""
        found = WINDOW.fullmatch(self.memory)
        return int(found.group(1)) if found else None


class PartnerConfig(Section):
    """An engine with frozen weights that environments may ask: an actor, a judge, another player."""

    model: str = Field(
        "",
        description="a folder, a name of `llmrl models list`, a hub id, stage:name, or base: the policy's own weights with "
        "its LoRA adapter off; with urls the name it is served by",
    )
    urls: list[str] = Field(default_factory=list, description="OpenAI-compatible servers, instead of loading a model")
    tokenizer: str = Field("", description="a folder; default: the model's own, for servers the policy's")
    engine: Literal["vllm", "native", "hf"] = "native"
    max_sequences: PositiveInt = Field(64, description="requests the engine runs at once")

    @property
    def loaded(self) -> bool:
        """Whether it is a model of its own, loaded here."""
        return not self.urls and self.model != "base"

    @model_validator(mode="after")
    def _is_somewhere(self) -> PartnerConfig:
        if not (self.model or self.urls):
            raise ValueError("an engine needs a model (a folder, or base) or urls")
        return self
