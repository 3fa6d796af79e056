"""The `stages` section of a recipe: what is trained before the rest of the recipe, and in which order.

    stages:
      - {kind: sft, train: {steps: 50, lr: 1.0e-5}}
      - {kind: reward_model, train: {steps: 100, lr: 1.0e-5}}
      - {kind: rl, name: first, algo: {name: grpo}, train: {steps: 100}}   # what differs from the rest of the recipe
      - {kind: rl}          # the rest of the recipe

Each stage starts from the policy of the last one that trained it, or from the one that `start` names. `sft` and `rl` are
runs of the training loop with sections of their own; `reward_model` and `dpo` are TRL's trainers. A reward model is no
policy: it leaves the policy as it is, and a reward names it as `stage:reward_model`. Engines and a value model may name a
stage's policy alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from llmrl.nearest import nearest
from llmrl.settings.base import overlaid
from llmrl.settings.data import DataConfig, EvalDataConfig
from llmrl.settings.section import Section

REFERENCE = "stage:"  # how a recipe's value names the model of a stage
BASE = "base"  # the stage before all others: the recipe's model
NAMING = ("reward", "engines", "critic", "outcome_critic")  # sections of a recipe that may name a stage's model
WHOLE = ("reward", "env", "engines")  # sections that an rl stage replaces, where it has its own


class StageTrainConfig(Section):
    """The optimisation of a supervised stage. AdamW works on float32 weights here too."""

    steps: PositiveInt = Field(description="optimizer steps")
    lr: PositiveFloat = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    batch_size: PositiveInt = Field(8, description="examples (or pairs) of an optimizer step, over all processes")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    save_every: PositiveInt = Field(50, description="steps between checkpoints; the end is always saved")
    keep_last: PositiveInt = Field(1, description="checkpoints kept")

    @model_validator(mode="after")
    def _the_peak_is_reached(self) -> StageTrainConfig:
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} is more than steps={self.steps}: the learning rate would never be reached"
            )
        return self


class SFTTrainConfig(StageTrainConfig):
    """The optimisation of supervised fine-tuning."""

    tokens_per_microbatch: PositiveInt = Field(2048, description="tokens of one forward pass")

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, data: Any) -> Any:
        if isinstance(data, dict) and "microbatch_size" in data:
            raise ValueError(
                f"microbatch_size={data['microbatch_size']} is tokens_per_microbatch now: tokens of one forward pass, 2048 "
                "by default, whatever the number of examples"
            )
        return data


class PairTrainConfig(StageTrainConfig):
    """The optimisation on pairs."""

    microbatch_size: PositiveInt | None = Field(None, description="pairs of one forward pass; default: all at once")

    @model_validator(mode="after")
    def _parts_fit(self) -> PairTrainConfig:
        if self.batch_size % (self.microbatch_size or self.batch_size):
            raise ValueError(
                f"batch_size={self.batch_size} cannot be divided into parts of microbatch_size={self.microbatch_size}; "
                "make it a multiple"
            )
        return self


class StageEvalConfig(Section):
    """The loss on held-out examples."""

    every: NonNegativeInt = Field(0, description="steps between evaluations; 0: only before and after")
    data: EvalDataConfig = Field(default_factory=EvalDataConfig)


class _Stage(Section):
    name: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", description="names the stage's folder; default: its kind")
    start: str = Field(
        "", description="the stage whose policy it starts from, or base; default: the last one that made one"
    )

    @property
    def title(self) -> str:
        """What the stage is called in the run folder and in messages."""
        return self.name or str(self.kind)  # type: ignore[attr-defined]


class _Supervised(_Stage):
    data: DataConfig | None = Field(None, description="default: the recipe's own data section")
    eval: StageEvalConfig = Field(default_factory=StageEvalConfig)
    lora: bool = Field(True, description="with model.lora: train its adapter; false trains every weight")


class SFTStage(_Supervised):
    """Supervised fine-tuning: the loss is that of the completion alone.

    Rows have `completion`, chat `messages` (every assistant's turn is an example), or an `answer`.
    """

    kind: Literal["sft"]
    train: SFTTrainConfig


class RewardModelStage(_Supervised):
    """A reward model from pairs (Bradley-Terry): a classifier head on the policy so far.

    Rows have `chosen` and `rejected`, or an `answer`, whose counterpart is a wrong answer made for it.
    """

    kind: Literal["reward_model"]
    train: PairTrainConfig
    center: float = Field(0.0, ge=0, description="weight of the penalty that keeps rewards around zero")


class DPOStage(_Supervised):
    """Direct preference optimisation (Rafailov et al. 2023) on pairs, against the model it starts from.

    Rows as for a reward model.
    """

    kind: Literal["dpo"]
    train: PairTrainConfig
    beta: PositiveFloat = Field(0.1, description="how strongly the policy is held to where it starts")
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)


class RLStage(_Stage):
    """Reinforcement learning. The last stage is what the rest of the recipe describes; an earlier one says here what
    differs from it. `reward`, `env`, `engines` and an `algo` of another name replace the recipe's, other sections are
    merged into it key by key; a `controller` is never taken from the recipe.
    """

    kind: Literal["rl"]
    data: dict[str, Any] = Field(default_factory=dict)
    rollout: dict[str, Any] = Field(default_factory=dict)
    env: dict[str, Any] | None = None
    engines: dict[str, Any] | None = None
    reward: dict[str, Any] | None = None
    algo: dict[str, Any] = Field(default_factory=dict)
    critic: dict[str, Any] = Field(default_factory=dict)
    outcome_critic: dict[str, Any] = Field(default_factory=dict)
    reference: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    eval: dict[str, Any] = Field(default_factory=dict)
    controller: dict[str, Any] = Field(default_factory=dict)
    limits: dict[str, Any] = Field(default_factory=dict)

    @property
    def sections(self) -> dict[str, Any]:
        """The sections that it has of its own."""
        return {name: value for name, value in self.model_dump(exclude={"kind", "name", "start"}).items() if value}


Stage = Annotated[SFTStage | RewardModelStage | DPOStage | RLStage, Field(discriminator="kind")]
LoopStage = SFTStage | RLStage
PairStage = RewardModelStage | DPOStage


def merged(sections: Mapping[str, Any], stage: RLStage) -> dict[str, Any]:
    """A recipe's `sections` as an earlier rl stage has them.

    >>> merged({"algo": {"name": "grpo"}, "train": {"steps": 9, "lr": 1}}, RLStage(kind="rl", train={"steps": 2}))["train"]
    {'steps': 2, 'lr': 1}
    """
    own = stage.sections
    return overlaid({name: value for name, value in sections.items() if name not in WHOLE or name not in own}, own)


def references(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """(where, name) of every `stage:name` in nested plain data.

    >>> list(references({"args": {"model": "stage:judge"}}, "reward.r"))
    [('reward.r.args.model', 'judge')]
    """
    if isinstance(value, str) and value.startswith(REFERENCE):
        yield place, value.removeprefix(REFERENCE)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from references(item, f"{place}.{key}" if place else key)


def replaced(value: Any, folders: Mapping[str, str]) -> Any:
    """Nested plain data with every `stage:name` replaced by that stage's folder."""
    if isinstance(value, str) and value.startswith(REFERENCE):
        return folders[value.removeprefix(REFERENCE)]
    return {key: replaced(item, folders) for key, item in value.items()} if isinstance(value, Mapping) else value


def check_stages(stages: list[Stage], sections: Mapping[str, Any]) -> None:
    """Raise ValueError unless names differ, an rl stage is the last of the list or has no follower, and models that are
    named (in stages, and in the `sections` of the recipe) are those of stages before, of the right kind, and used.
    """
    if stages and isinstance(stages[-1], RLStage) and stages[-1].sections:
        names = ", ".join(stages[-1].sections)
        raise ValueError(
            f"stages.{len(stages) - 1}: the last rl stage is what the rest of the recipe describes; move {names} there"
        )
    before = stages[:-1] if stages and isinstance(stages[-1], RLStage) else stages
    kinds: dict[str, str] = {}
    used: set[str] = set()
    for place, stage in enumerate(stages):
        if stage.start and stage.start != BASE:
            _check_model(stage.start, kinds, f"stages.{place}.start", policy=True)
        if isinstance(stage, RLStage):
            used |= _checked(stage.sections, kinds, f"stages.{place}.")
        if place < len(before):
            if stage.title in kinds or stage.title == BASE:
                raise ValueError(
                    f"stages.{place}: a stage is called {stage.title!r} already; give one of them a name of its own"
                )
            kinds[stage.title] = stage.kind
    used |= _checked(sections, kinds, "")
    if unused := [name for name, kind in kinds.items() if kind == "reward_model" and name not in used]:
        raise ValueError(
            f"the reward model of stage {unused[0]!r} is trained and scores nothing; name it in a reward, such as "
            f"{{name: llmrl.rewards.reward_model:RewardModel, args: {{model: {REFERENCE}{unused[0]}}}}}, or remove it"
        )


def _checked(sections: Mapping[str, Any], kinds: Mapping[str, str], where: str) -> set[str]:
    found = [(place, name) for part in NAMING for place, name in references(sections.get(part), part)]
    for place, name in found:
        _check_model(name, kinds, where + place, policy=not place.startswith("reward."))
    return {name for _, name in found}


def _check_model(name: str, kinds: Mapping[str, str], where: str, *, policy: bool) -> None:
    fitting = [other for other, kind in kinds.items() if (kind != "reward_model") == policy]
    if name not in fitting:
        what = "stage before it that makes a policy" if policy else "reward_model stage"
        hint = nearest(name, fitting) if fitting else "the recipe lists none"
        raise ValueError(f"{where}: {REFERENCE}{name} is no {what}; {hint}")
