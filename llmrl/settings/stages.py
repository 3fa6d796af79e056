"""The `stages` section of a recipe: what is trained before, and in which order.

    stages:
      - {kind: sft, train: {steps: 50, lr: 1.0e-5}}
      - {kind: reward_model, train: {steps: 100, lr: 1.0e-5}}
      - {kind: rl}          # the rest of the recipe

Each stage starts from the model of the last one that trained the policy. A reward model is no policy: it leaves the
policy as it is, and a reward names it as `stage:reward_model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from llmrl.nearest import nearest
from llmrl.settings.data import DataConfig, EvalDataConfig
from llmrl.settings.section import Section

REFERENCE = "stage:"  # how a reward's argument names the model of a stage


class StageTrainConfig(Section):
    """The optimisation of a supervised stage. AdamW works on float32 weights here too."""

    steps: PositiveInt = Field(description="optimizer steps")
    lr: PositiveFloat = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    batch_size: PositiveInt = Field(8, description="examples (or pairs) of an optimizer step, over all processes")
    microbatch_size: PositiveInt | None = Field(None, description="examples of one forward pass; default: all at once")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    save_every: PositiveInt = Field(50, description="steps between checkpoints; the end is always saved")
    keep_last: PositiveInt = Field(1, description="checkpoints kept")

    @model_validator(mode="after")
    def _numbers_fit(self) -> StageTrainConfig:
        if self.batch_size % (self.microbatch_size or self.batch_size):
            raise ValueError(
                f"batch_size={self.batch_size} cannot be divided into parts of microbatch_size={self.microbatch_size}; "
                "make it a multiple"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} is more than steps={self.steps}: the learning rate would never be reached"
            )
        return self


class StageEvalConfig(Section):
    """The loss on held-out examples."""

    every: NonNegativeInt = Field(0, description="steps between evaluations; 0: only before and after")
    data: EvalDataConfig = Field(default_factory=EvalDataConfig)


class _Supervised(Section):
    name: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", description="names the stage's folder; default: its kind")
    data: DataConfig | None = Field(None, description="default: the recipe's own data section")
    train: StageTrainConfig
    eval: StageEvalConfig = Field(default_factory=StageEvalConfig)
    lora: bool = Field(True, description="with model.lora: train its adapter; false trains every weight")

    @property
    def title(self) -> str:
        """What the stage is called in the run folder and in messages."""
        return self.name or str(self.kind)  # type: ignore[attr-defined]


class SFTStage(_Supervised):
    """Supervised fine-tuning: the loss is that of the completion alone.

    Rows have `completion`, chat `messages` (every assistant's turn is an example), or an `answer`.
    """

    kind: Literal["sft"]


class RewardModelStage(_Supervised):
    """A reward model from pairs (Bradley-Terry): a classifier head on the policy so far.

    Rows have `chosen` and `rejected`, or an `answer`, whose counterpart is a wrong answer made for it.
    """

    kind: Literal["reward_model"]
    center: float = Field(0.0, ge=0, description="weight of the penalty that keeps rewards around zero")


class DPOStage(_Supervised):
    """Direct preference optimisation (Rafailov et al. 2023) on pairs, against the model it starts from.

    Rows as for a reward model.
    """

    kind: Literal["dpo"]
    beta: PositiveFloat = Field(0.1, description="how strongly the policy is held to where it starts")
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)


class RLStage(Section):
    """The reinforcement learning that the rest of the recipe describes."""

    kind: Literal["rl"]


Supervised = SFTStage | RewardModelStage | DPOStage
Stage = Annotated[SFTStage | RewardModelStage | DPOStage | RLStage, Field(discriminator="kind")]


def supervised(stages: list[Stage]) -> list[Supervised]:
    """The stages before the reinforcement learning."""
    return [stage for stage in stages if not isinstance(stage, RLStage)]


def check_stages(stages: list[Stage], rewards: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError unless names differ, rl, if there, is the last, and reward models and `rewards` (the arguments of
    the recipe's rewards by part) name each other.
    """
    for place, stage in enumerate(stages):
        if isinstance(stage, RLStage) and place != len(stages) - 1:
            raise ValueError(f"stages.{place}: rl is the last stage; move it to the end")
    names = [stage.title for stage in supervised(stages)]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ValueError(f"stages.{place}: a stage is called {name!r} already; give one of them a name of its own")
    models = [stage.title for stage in supervised(stages) if stage.kind == "reward_model"]
    used = set()
    for part, args in rewards.items():
        for key, value in args.items():
            if not isinstance(value, str) or not value.startswith(REFERENCE):
                continue
            used.add(name := value.removeprefix(REFERENCE))
            if name not in models:
                hint = nearest(name, models) if models else "the recipe lists none"
                raise ValueError(f"reward.{part}.args.{key}: {value} is no reward_model stage; {hint}")
    if unused := [name for name in models if name not in used]:
        raise ValueError(
            f"the reward model of stage {unused[0]!r} is trained and scores nothing; name it in a reward, such as "
            f"{{name: llmrl.rewards.reward_model:RewardModel, args: {{model: {REFERENCE}{unused[0]}}}}}, or remove it"
        )
