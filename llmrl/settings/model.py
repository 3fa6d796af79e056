"""The parts of a recipe about models: policy, adapter, value model and reference model. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from pydantic import model_validator as rule

from llmrl.settings.data import template_fields
from llmrl.settings.section import Section

MOVES_BASE = "changes the base weights, so that the adapter by itself would not fit the model it names"
NEEDS_DATA = "looks at data before training, which a resumed run would have to repeat exactly"
REFUSED_INITS = {
    "pissa": MOVES_BASE, "olora": MOVES_BASE, "corda": MOVES_BASE, "loftq": "is for quantised models, which are not trained",
    "eva": NEEDS_DATA, "lora_ga": NEEDS_DATA, "mica": NEEDS_DATA,
}  # fmt: skip


class LoraConfig(Section):
    """A LoRA adapter (Hu et al. 2021)."""

    r: PositiveInt = Field(16, description="rank")
    alpha: PositiveInt = Field(32, description="the adapter is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, le=0, description="must be 0: sampler and trainer would disagree otherwise")
    target: Literal["all-linear"] | list[str] = Field("all-linear", description="layers that get an adapter")
    rslora: bool = Field(False, description="scale by alpha / sqrt(r)")
    dora: bool = Field(False, description="learn each row's length apart from its direction; slower")
    modules_to_save: list[str] = Field(
        default_factory=list, description="modules trained whole beside the adapter, such as [embed_tokens, lm_head]"
    )
    init: str = Field("default", description="how A starts: default (uniform), gaussian or orthogonal")

    @field_validator("init")
    @classmethod
    def _init_leaves_the_base_alone(cls, value: str) -> str:
        if value in ("default", "gaussian", "orthogonal"):
            return value
        known = next((reason for name, reason in REFUSED_INITS.items() if value.startswith(name)), "is not known")
        raise ValueError(f"init={value}: {known}; use default, gaussian or orthogonal")


class ModelConfig(Section):
    """Which model, in which precision. The optimizer always works on float32 weights."""

    path: str = Field(description="catalogue name (llmrl models list), local folder, or hub id")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="precision of forward and backward pass; auto: the faster on the machine that runs it"
    )
    max_length: PositiveInt = Field(1024, description="tokens of prompt and completion together")
    lora: LoraConfig | None = None
    vision_tower: bool = Field(
        False, description="a vision-language model's tower trains too; its text part and projector always do"
    )
    resize: bool = Field(
        False, description="add embedding rows for tokens that only the tokenizer knows, each the mean of the others"
    )
    gradient_checkpointing: bool = False
    forward: Literal["auto", "flex", "packed", "plain"] = Field(
        "auto",
        description="packed shares prompts and pads nothing, flex does so by a GPU kernel; auto checks and falls back",
    )


class CriticConfig(Section):
    """The value model of an algorithm that needs values, such as ppo. Its optimizer is its own."""

    kind: Literal["shared", "separate"] = Field(
        "shared", description="a head on the policy's hidden states, or a model of its own with a head"
    )
    hidden: list[PositiveInt] = Field(
        default_factory=list, description="widths of an MLP under the value, such as [3072, 2048]; none: a linear head"
    )
    stop_gradient: bool = Field(False, description="shared: the value loss moves the head alone, not the policy")
    path: str | None = Field(None, description="separate: name, folder or hub id of the model; default: model.path")
    lora: LoraConfig | None = Field(None, description="separate: train an adapter and the head only")
    lr: PositiveFloat = Field(1e-5, description="peak learning rate; the schedule is the one of train")
    warmup_steps: NonNegativeInt = Field(0, description="first steps, in which only the value model learns")
    whiten_targets: bool = Field(
        False, description="learn (return - mean) / deviation, both running averages; credit still sees plain values"
    )
    target_decay: float = Field(0.9, ge=0, lt=1, description="how much of the running averages a step keeps")
    target_std_floor: PositiveFloat = Field(0.05, description="smallest deviation that targets are divided by")
    privileged: str | None = Field(
        None, description="separate: text that only the value model reads, before the prompt, such as '{answer}'"
    )
    max_privileged_tokens: PositiveInt = 256

    @field_validator("privileged")
    @classmethod
    def _plain_fields(cls, template: str | None) -> str | None:
        if template is not None and not template_fields(template):
            raise ValueError(f"privileged={template!r} names no column, so it tells nothing; write '{{answer}}'")
        return template

    @rule(mode="after")
    def _kinds(self) -> CriticConfig:
        of_its_own = ("path", "lora", "privileged")
        wrong = [name for name in of_its_own if self.kind == "shared" and getattr(self, name) is not None]
        if wrong:
            raise ValueError(
                f"critic.{wrong[0]} needs a value model of its own; set critic.kind: separate, or remove it"
            )
        if self.kind == "separate" and self.stop_gradient:
            raise ValueError(
                "critic.stop_gradient is for kind: shared; the loss of a separate value model never moves the policy"
            )
        return self


Pool = Literal["max", "mean", "last"]


class OutcomeCriticConfig(Section):
    """The outcome critic: a token classifier that learns what becomes of programs. Its optimizer is its own."""

    kind: Literal["shared", "separate"] = Field(
        "separate", description="a model of its own with a head, or a head on the policy's states, which it never moves"
    )
    path: str | None = Field(None, description="separate: name, folder or hub id of the model; default: model.path")
    lora: LoraConfig | None = Field(None, description="separate: train an adapter and the head only")
    binary: bool = Field(False, description="two classes, passed or not, instead of the four outcomes")
    pool: Pool = Field("max", description="how the logits of a program's tokens make its prediction")
    alignment: Literal["inclusive", "shifted"] = Field(
        "inclusive", description="a token's score is that of the state which has read it, or of the one before"
    )
    scale: Literal["none", "mean_one", "max_one"] = Field(
        "none", description="divide the scores of a program by their mean or maximum"
    )
    lr: PositiveFloat = Field(2e-5, description="peak learning rate; the schedule is the one of train")
    every: NonNegativeInt = Field(1, description="steps between its updates; 0: it stays as it was loaded")
    epochs: PositiveInt = Field(1, description="passes over a step's programs")
    minibatches: PositiveInt = Field(1, description="optimizer steps per pass")
    warmup_steps: NonNegativeInt = Field(0, description="first steps, in which only the outcome critic learns")

    @rule(mode="after")
    def _kinds(self) -> OutcomeCriticConfig:
        wrong = [name for name in ("path", "lora") if self.kind == "shared" and getattr(self, name) is not None]
        if wrong:
            raise ValueError(f"outcome_critic.{wrong[0]} needs a model of its own; set kind: separate, or remove it")
        if not self.every and self.path is None:
            raise ValueError("outcome_critic.every=0 never trains a critic that starts knowing nothing; give it a path")
        return self


class ReferenceConfig(Section):
    """The reference model of an algorithm that needs one (a KL term, pacs with reference: model)."""

    kind: Literal["fixed", "reset_every", "ema"] = Field(
        "fixed", description="the first policy; the policy of every `every` steps; or an average of all policies"
    )
    every: PositiveInt = Field(50, description="reset_every: steps between resets to the policy")
    reset_optimizer: bool = Field(False, description="reset_every: Adam's averages start anew with the reference")
    decay: float = Field(0.99, ge=0, lt=1, description="ema: how much of the average a step keeps")
