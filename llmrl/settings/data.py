"""The `data` and `eval` sections of a recipe: where problems come from and how they become prompts."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llmrl.nearest import nearest
from llmrl.settings.section import Section


class SourceConfig(Section):
    """One place that rows come from, and how a row becomes a prompt."""

    source: str = Field(
        "",
        description="a generator (addition, arithmetic, chains, countdown, episodes, frames, programs), "
        "reasoning_gym:<task>, a .jsonl, .json or .parquet path (globs allowed), apps:<path>, code_contests:<path>, "
        "mbpp:<path>, attempts:<path> (drafts for critics), or a datasets hub id",
    )
    split: str = Field("train", description="hub split; for a generator: train or held_out")
    subset: str | None = Field(None, description="hub configuration name")
    args: dict[str, Any] = Field(default_factory=dict, description="difficulty knobs of a generator")
    columns: dict[str, str] = Field(
        default_factory=dict, description="our names -> the data's: prompt, answer and id, and any other to rename"
    )
    template: str | None = Field(None, description="text of the user's turn; {name} stands for a column of the row")
    system: str | None = Field(None, description="system message; needs a chat template")
    limit: int | None = Field(None, ge=1, description="use this many rows; for a generator: make this many")

    @field_validator("template")
    @classmethod
    def _template_is_plain(cls, value: str | None) -> str | None:
        if value is not None and not template_fields(value):
            raise ValueError(f"template {value!r} names no column; write for example '{{prompt}}'")
        return value


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


class MixedSource(SourceConfig):
    """One of several sources (`data.sources`)."""

    source: str = Field(min_length=1, description="as data.source")
    name: str = Field(
        "", pattern=r"^[A-Za-z0-9._-]*$", description="for metrics and ids; default: the source's last word"
    )
    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="its part of the prompts, relative to the others'"
    )
    reward: list[str] | None = Field(None, description="the parts of `reward` that judge it; default: all")
    eval: EvalDataConfig | None = Field(
        None, description="its held-out problems; default: drawn from it, as many of eval.data.n as its weight says"
    )

    @field_validator("reward", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def title(self) -> str:
        """What the source is called.

        >>> MixedSource(source="data/hard.jsonl").title, MixedSource(source="reasoning_gym:leg_counting").title
        ('hard', 'leg_counting')
        """
        last = re.sub(r"\.(jsonl|json|parquet)$", "", re.split(r"[:/]", self.source)[-1])
        return self.name or re.sub(r"[^A-Za-z0-9._-]+", "_", last)


class DataConfig(SourceConfig):
    """Where training problems come from: one source, or several (`sources`) with what holds for all of them.

    >>> DataConfig(source="addition", args={"high": 20}).limit is None
    True
    """

    sources: list[MixedSource] = Field(default_factory=list, description="several sources instead of one")
    chat: bool | Literal["auto"] = Field("auto", description="apply the chat template (auto: if the tokenizer has one)")
    max_prompt_tokens: int = Field(
        512,
        ge=1,
        description="longer prompts are dropped and counted; default: what model.max_length leaves beside a completion",
    )
    shuffle: bool = Field(True, description="shuffle rows before the limit, and anew in every epoch")

    @field_validator("source", mode="before")
    @classmethod
    def _null_is_none(cls, value: Any) -> Any:
        return "" if value is None else value  # takes the source of a `base` away

    @model_validator(mode="after")
    def _system_needs_chat(self) -> DataConfig:
        if self.chat is False and any(one.system is not None for one in (self, *self.sources)):
            raise ValueError("a system message needs a chat template; remove `system` or `chat: false`")
        return self

    @model_validator(mode="after")
    def _one_or_several(self) -> DataConfig:
        if not self.source and not self.sources:
            raise ValueError("no source; name one (source: problems.jsonl), or several (sources: [{source: ...}, ...])")
        if not self.sources:
            return self
        for name in ("source", "split", "subset", "args", "columns", "limit"):
            if (value := getattr(self, name)) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(
                    f"{name}={value!r} is about one source, and `sources` lists several: say it in their entries "
                    f"(to drop what a base recipe says: source: null, sources: [])"
                )
        titles = [source.title for source in self.sources]
        if twice := next((title for title in titles if titles.count(title) > 1), None):
            raise ValueError(f"two of `sources` are called {twice!r}; give one of them a `name`")
        return self

    def without_rewards(self) -> dict[str, Any]:
        """As plain data, for a stage that has none."""
        return self.model_dump() | {"sources": [one.model_dump() | {"reward": None} for one in self.sources]}

    @property
    def called(self) -> str:
        """The sources in a line."""
        return self.source or " + ".join(source.title for source in self.sources)

    def each(self) -> dict[str, DataConfig]:
        """Every source as a section of its own, by name; one without a name if there is one only."""
        if not self.sources:
            return {"": self}
        shared = self.model_dump(exclude={"sources", "source"})
        own = {source.title: source.model_dump(include=set(SourceConfig.model_fields)) for source in self.sources}
        told = {title: {key: value for key, value in said.items() if value is not None} for title, said in own.items()}
        return {title: DataConfig.model_validate(shared | said) for title, said in told.items()}

    @property
    def weights(self) -> dict[str, float]:
        """By the names of `each`."""
        return {source.title: source.weight for source in self.sources} or {"": 1.0}


def check_mixture(data: DataConfig, held_out: EvalDataConfig, rewards: Iterable[str]) -> None:
    """Raise ValueError for sources whose rewards or held-out problems do not fit the rest of the recipe."""
    if not data.sources:
        return
    known, judging = list(rewards), set()
    for place, source in enumerate(data.sources):
        for name in source.reward if source.reward is not None else known:
            if name not in known:
                hint = nearest(name, known) if known else "the recipe has none"
                raise ValueError(f"data.sources.{place}.reward: no part of `reward` is called {name!r}; {hint}")
            judging.add(name)
        if source.reward == [] and known:
            raise ValueError(f"data.sources.{place}.reward is empty: nothing would judge {source.title}; name a part")
    if idle := [name for name in known if name not in judging]:
        raise ValueError(f"reward.{idle[0]} judges none of data.sources; name it in one of them, or remove it")
    for name, value in held_out:
        if name not in ("n", "seed") and value is not None:
            raise ValueError(f"eval.data.{name}={value!r} with several sources: say it in data.sources.N.eval")


def shares(count: int, weights: Sequence[float]) -> list[int]:
    """`count` divided by `weights`: whole numbers that sum up to it, none more than about one off its exact part.

    More to divide never makes a share smaller, so that shares of a growing number are a schedule.

    >>> shares(8, [3, 1]), [shares(count, [1, 1, 1]) for count in (1, 2, 3)]
    ([6, 2], [[0, 1, 0], [1, 1, 0], [1, 1, 1]])
    """
    left, weight, found = count, sum(map(Fraction, weights)), [0] * len(weights)
    for place in sorted(
        range(len(weights)), key=lambda place: -weights[place]
    ):  # what rounding leaves is spread over few
        own = Fraction(weights[place])
        found[place] = math.floor(left * own / weight + Fraction(1, 2))
        left, weight = left - found[place], weight - own
    return found


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
