"""The sections of a recipe, and the rules that span them. `algo` and `reward` stay plain mappings here; compose.py turns
them into objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError
from pydantic import model_validator as rule

from llmrl.settings.base import with_lengths
from llmrl.settings.controller import ControllerConfig
from llmrl.settings.data import DataConfig, EvalDataConfig, check_mixture
from llmrl.settings.env import EnvConfig, PartnerConfig
from llmrl.settings.model import CriticConfig, ModelConfig, OutcomeCriticConfig, ReferenceConfig
from llmrl.settings.privacy import PrivacyConfig
from llmrl.settings.rollout import RolloutConfig
from llmrl.settings.section import Section, without_nulls
from llmrl.settings.stages import BASE, NAMING, LoopStage, RLStage, SFTStage, Stage, check_stages, merged, replaced

RESERVED_PARTS = frozenset({"mean", "std", "errored", "timed_out", "not_applicable"})  # metrics named reward/...


class RewardConfig(Section):
    """One part of the reward: an object by import path, called with `args`."""

    name: str = Field(description="import path, such as llmrl.rewards.exact_number:ExactNumber")
    args: dict[str, Any] = Field(default_factory=dict)
    weight: float = 1.0
    isolated: bool = Field(True, description="score in worker processes that are killed when they hang")
    timeout_s: PositiveFloat = Field(
        30.0, description="a call for one trajectory is killed and counted after this long"
    )
    step_timeout_s: PositiveFloat = Field(300.0, description="the same for all trajectories of a step")


class TrainConfig(Section):
    """The optimisation."""

    steps: PositiveInt
    lr: PositiveFloat = 1e-6
    lr_groups: dict[Literal["head", "adapter", "vision_tower"], PositiveFloat] = Field(
        default_factory=dict, description="peak learning rates of the output layer, the LoRA adapter, the vision tower"
    )
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    epochs: PositiveInt = Field(1, description="passes over each rollout")
    minibatches: PositiveInt = Field(1, description="optimizer steps per pass; 1 with epochs 1 is on-policy")
    tokens_per_microbatch: PositiveInt = Field(
        2048, description="tokens of one forward pass; whole groups stay together"
    )
    stop_kl: PositiveFloat | None = Field(
        None, description="end a rollout's updates when the policy is this far from its start, nats per token"
    )
    log_completions: NonNegativeInt = Field(4, description="completions of a step that trackers (tracking.to) get")
    max_hours: PositiveFloat | None = Field(
        None, description="end after this long, evaluated and saved; counted anew after a resume"
    )
    patience: PositiveInt | None = Field(
        None, description="end after so many evaluations (eval.every) in a row without a better one than before"
    )
    backend: Literal["auto", "ddp", "fsdp2", "zero2", "zero3"] = Field(
        "auto", description="how processes share the policy; auto: as accelerate launch was configured, else ddp"
    )
    save_every: PositiveInt = Field(20, description="steps between checkpoints; the last step is always saved")
    keep_last: PositiveInt = Field(2, description="checkpoints kept")
    keep_best: bool = Field(True, description="also keep the checkpoint with the best held-out accuracy")
    best: str = Field(
        "",
        description="held-out metric that says which evaluation is best, instead of eval/accuracy (a minus before it: less "
        "is better); a stage then hands its best saved policy on, not its last",
    )
    deterministic: bool = Field(True, description="bit-for-bit repeatable and resumable; costs time on GPUs")
    threads: NonNegativeInt = Field(0, description="CPU threads of the trainer; 0 takes every core it may use")

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps per rollout."""
        return self.epochs * self.minibatches

    @rule(mode="after")
    def _kept_and_reached(self) -> TrainConfig:
        if self.best and not self.keep_best:
            raise ValueError(f"train.best={self.best} with train.keep_best=false: that checkpoint would be removed")
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"train.warmup_steps={self.warmup_steps} is more than train.steps={self.steps}: the learning rate would "
                "never be reached"
            )
        return self


class BenchmarkConfig(Section):
    """A benchmark of `llmrl eval tasks` (or a task file) with sampling settings of its own; null is the task's default."""

    name: str
    limit: PositiveInt | None = Field(None, description="ask this many of its questions, the same ones every time")
    samples: PositiveInt = Field(1, description="completions per question; 1 without a temperature is greedy")
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: PositiveInt | None = None
    mode: Literal["chat", "plain"] | None = None
    shots: NonNegativeInt | None = Field(None, description="worked examples before the question")
    seed: NonNegativeInt = 0
    every: NonNegativeInt | None = Field(None, description="a multiple of eval.every, which is the default")


class EvalConfig(Section):
    """Held-out evaluation during training: one completion per problem, scored by the recipe's own reward.

    Benchmarks named by `tasks` run at the same steps, with their own prompts and verifiers.
    """

    enabled: bool = Field(True, description="false, or `eval: off`: no held-out problems at all")
    every: NonNegativeInt = Field(0, description="steps between evaluations; 0: only before and after")
    data: EvalDataConfig = Field(default_factory=EvalDataConfig)
    temperature: float = Field(0.0, ge=0)
    max_tokens: PositiveInt | None = Field(None, description="default: that of the rollouts")
    threshold: float = Field(1.0, description="a problem counts as solved from this score on")
    tasks: list[BenchmarkConfig] = Field(default_factory=list, description="benchmarks: names, or names with settings")
    data_dir: str | None = Field(None, description="local copies of the benchmarks; null reads them from the hub")

    @rule(mode="before")
    @classmethod
    def _names_are_tasks(cls, data: Any) -> Any:
        if data is False or data == "off":  # YAML reads `off` as false
            return {"enabled": False}
        if isinstance(data, dict) and isinstance(data.get("tasks"), list):
            return {**data, "tasks": [{"name": task} if isinstance(task, str) else task for task in data["tasks"]]}
        return data

    @property
    def held_out(self) -> EvalDataConfig | None:
        """Where held-out problems come from; None: there are none."""
        return self.data if self.enabled else None

    @rule(mode="after")
    def _tasks_run_at_evaluations(self) -> EvalConfig:
        if not self.enabled and (self.tasks or self.every):
            raise ValueError("eval: off and eval.every or eval.tasks exclude each other; remove one of them")
        for task in self.tasks:
            if task.every and (not self.every or task.every % self.every):
                raise ValueError(f"task {task.name}: every={task.every} is no multiple of eval.every={self.every}")
        return self


class LimitsConfig(Section):
    """When a run stops instead of training on garbage. Rates are shares of a step's trajectories."""

    max_reward_error_rate: float = Field(0.1, ge=0, le=1, description="rewards that raised, timed out or gave NaN")
    max_unscored_rate: float = Field(0.5, ge=0, le=1, description="rewards that did not apply: no readable gold answer")
    max_rollout_error_rate: float = Field(0.1, ge=0, le=1)
    max_skipped_updates: NonNegativeInt = Field(3, description="non-finite losses or gradients in a row")
    max_engine_restarts: NonNegativeInt = Field(3, description="engine replacements within one step")
    rank_timeout_s: PositiveFloat = Field(1800.0, description="longest wait of one process for the others")
    max_mismatch: PositiveFloat = Field(1.0, description="mean |sampler - trainer| log-probability, nats per token")


class TrackingConfig(Section):
    """Metrics always go to metrics.jsonl; these trackers get them too."""

    to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    project: str = "llmrl"


class Recipe(Section):
    """Everything about one run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run folder is runs/<name>")
    description: str = ""
    seed: NonNegativeInt = 0
    runs_dir: str = "runs"
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    env: EnvConfig | None = Field(
        None, description="what answers the policy's turns; default: nothing, one turn a prompt"
    )
    engines: dict[str, PartnerConfig] = Field(
        default_factory=dict, description="frozen models that environments may ask"
    )
    reward: Annotated[dict[str, RewardConfig], BeforeValidator(without_nulls)] = Field(
        default_factory=dict,
        description="parts by name; the score is their weighted sum, added to the environment's rewards",
    )
    algo: dict[str, Any] = Field(description="name (grpo, or package.module:Class) and its hyper-parameters")
    critic: CriticConfig | None = Field(None, description="the value model; default: a shared head, if algo needs it")
    outcome_critic: OutcomeCriticConfig | None = Field(
        None, description="the critic of programs; default: a model of its own, if algo needs it"
    )
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    train: TrainConfig
    controller: ControllerConfig | None = Field(
        None, description="what sets hyper-parameters while training runs; default: nothing"
    )
    eval: EvalConfig = Field(default_factory=EvalConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    privacy: PrivacyConfig | None = Field(None, description="train under differential privacy (algo: sft)")
    stages: list[Stage] = Field(
        default_factory=list,
        description="what is trained before, in order: sft, reward_model, dpo, rl; the last rl is this recipe",
    )

    @property
    def run_dir(self) -> Path:
        """Where the run's files go."""
        return Path(self.runs_dir) / self.name

    @property
    def before(self) -> list[Stage]:
        """The stages before what the rest of the recipe describes, in order."""
        return self.stages[:-1] if self.stages and isinstance(self.stages[-1], RLStage) else list(self.stages)

    def stage_dir(self, stage: Stage) -> Path:
        """Where one of the stages before leaves its files."""
        return self.run_dir / "stages" / f"{self.before.index(stage) + 1:02d}-{stage.title}"

    def start_of(self, stage: Stage | None) -> Path | None:
        """The folder of the policy that a stage (None: the rest of the recipe) starts from; None: the recipe's model."""
        earlier = self.before if stage is None else self.before[: self.before.index(stage)]
        last = self.stages[-1] if self.stages and isinstance(self.stages[-1], RLStage) else None
        this = stage or last
        named = this.start if this else ""
        for other in reversed(earlier if named != BASE else []):
            if other.title == named or (not named and other.kind != "reward_model"):
                return self.stage_dir(other) / "model"
        return None

    @property
    def stage_models(self) -> dict[str, str]:
        """The absolute folder of each stage's model, by name; it is there once the stage is finished."""
        return {stage.title: str((self.stage_dir(stage) / "model").absolute()) for stage in self.before}

    def of_stage(self, stage: LoopStage) -> Recipe:
        """A stage on the training loop as a recipe of its own, whose run folder is the stage's.

        Raises pydantic's ValidationError for sections that do not fit together.
        """
        folder = self.stage_dir(stage)
        shared = {"name": folder.name, "runs_dir": str(folder.parent), "description": f"a stage of {self.name}"}
        own = self.model_dump(exclude={"stages", "controller"})
        if isinstance(stage, RLStage):
            own = merged(own, stage)
        else:
            own |= self._supervised(stage)
        if start := self.start_of(stage):
            own["model"] = own["model"] | {"path": str(start.absolute()), "resize": False}  # the first one did that
        own |= {name: replaced(own[name], self.stage_models) for name in NAMING}
        return Recipe.model_validate(own | shared)

    def _supervised(self, stage: SFTStage) -> dict[str, Any]:
        data, held_out = stage.data or self.data, stage.eval.data
        if stage.data is None:
            held_out = self.eval.data.model_copy(update=held_out.model_dump(exclude_unset=True))
        kept = {"backend", "deterministic", "threads"}
        model = self.model.model_dump() | ({} if stage.lora else {"lora": None})
        train = stage.train.model_dump(exclude={"batch_size"}) | self.train.model_dump(include=kept)
        longest = min(data.max_prompt_tokens, self.model.max_length - 1)
        return {
            "model": model, "train": train, "algo": {"name": "sft"},
            "data": data.without_rewards() | {"max_prompt_tokens": longest},
            "rollout": {
                "prompts_per_step": stage.train.batch_size, "group_size": 1, "max_tokens": self.model.max_length - longest
            },
            "eval": {
                "enabled": self.eval.enabled, "every": stage.eval.every if self.eval.enabled else 0,
                "data": held_out.model_dump(),
            },
            "reward": {}, "env": None, "engines": {}, "critic": None, "outcome_critic": None, "reference": {},
        }  # fmt: skip

    @rule(mode="after")
    def _stages_fit(self) -> Recipe:
        """Every `stage:name` is a stage's, every reward model is used, and every stage is a recipe that could be run."""
        check_stages(self.stages, self.model_dump(include=set(NAMING)))
        for place, stage in enumerate(self.before):
            if isinstance(stage, SFTStage | RLStage):
                try:
                    self.of_stage(stage)
                except ValidationError as error:
                    told = "; ".join(_said(part) for part in error.errors())
                    raise ValueError(f"stages.{place}.{stage.title}: {told}") from error
        return self

    @rule(mode="after")
    def _privacy_is_possible(self) -> Recipe:
        """Private training is supervised: what couples records has no bounded sensitivity."""
        if self.privacy is None:
            return self
        if self.algo.get("name") != "sft":
            raise ValueError(
                f"privacy with algo.name={self.algo.get('name')}: reinforcement learning is not private here. Group "
                "baselines, whitening and denominators over the batch make one record's gradient depend on others, so that "
                "clipping bounds nothing, and rollouts and rewards would leave the run; set algo.name=sft, or remove privacy"
            )
        if self.stages:
            raise ValueError("privacy with stages: only the last stage would be private; remove one of them")
        only: dict[str, tuple[object, object]] = {
            "train.epochs": (self.train.epochs, 1), "train.minibatches": (self.train.minibatches, 1),
            "rollout.max_staleness": (self.rollout.max_staleness, 0), "env": (self.env, None),
            "data.sources": (self.data.sources, []),  # records are drawn alike, not by weights
            "train.max_hours": (self.train.max_hours, None),  # how long steps take tells how many records are drawn
        }  # fmt: skip
        for name, (value, wanted) in only.items():
            if value != wanted:
                raise ValueError(
                    f"privacy with {name}={value}: a step's records are drawn once, used once and kept nowhere, and "
                    f"nothing may depend on how many they are; set {name}={wanted}"
                )
        if self.model.forward not in ("auto", "plain"):
            raise ValueError(
                f"privacy with model.forward={self.model.forward}: packed rows are not kept apart; set it to plain"
            )
        self.privacy.check(counts=self.controller is not None and self.controller.name == "quantile")
        return self

    @rule(mode="before")
    @classmethod
    def _lengths_fit(cls, data: Any) -> Any:
        return with_lengths(data)

    @rule(mode="after")
    def _spans_sections(self) -> Recipe:
        check_mixture(self.data, self.eval.data, self.reward)
        if self.controller is not None:
            self.controller.check(private=self.privacy is not None)
        taken = sorted(set(self.reward) & RESERVED_PARTS)
        if taken:
            raise ValueError(f"reward.{taken[0]}: this name is taken by a metric; rename the part")
        if not self.reward and self.env is None and self.algo.get("name") != "sft":
            raise ValueError("reward is empty and there is no env: nothing would be learnt; name a reward")
        if self.engines and self.env is None:
            raise ValueError(
                f"engines.{next(iter(self.engines))}: only environments ask other engines, and there is no env"
            )
        if "name" not in self.algo:
            raise ValueError("algo needs a name, such as `algo: {name: grpo}`")
        if self.algo["name"] == "sft" and self.rollout.temperature != 1:
            raise ValueError(
                f"rollout.temperature={self.rollout.temperature} would scale the probabilities that sft learns; set it to 1 "
                "(eval.temperature is the one of the evaluation)"
            )
        tokens = self.data.max_prompt_tokens + self.rollout.max_tokens
        if tokens > self.model.max_length:
            raise ValueError(
                f"data.max_prompt_tokens={self.data.max_prompt_tokens} + rollout.max_tokens={self.rollout.max_tokens} = "
                f"{tokens} is more than model.max_length={self.model.max_length}; lower one or raise the last"
            )
        if self.eval.max_tokens and self.data.max_prompt_tokens + self.eval.max_tokens > self.model.max_length:
            raise ValueError(
                f"data.max_prompt_tokens={self.data.max_prompt_tokens} + eval.max_tokens={self.eval.max_tokens} is more "
                f"than model.max_length={self.model.max_length}; lower one or raise the last"
            )
        if self.rollout.prompts_per_step % self.train.minibatches:
            raise ValueError(
                f"rollout.prompts_per_step={self.rollout.prompts_per_step} cannot be divided into "
                f"train.minibatches={self.train.minibatches} equal parts; make it a multiple"
            )
        if self.rollout.engine == "native":
            self._native_shares_the_model()
        if self.critic is not None and self.critic.warmup_steps >= self.train.steps:
            raise ValueError(
                f"critic.warmup_steps={self.critic.warmup_steps} of train.steps={self.train.steps}: the policy would never "
                "learn; lower it"
            )
        if self.train.patience and not self.eval.every:
            raise ValueError(f"train.patience={self.train.patience} counts evaluations during training; set eval.every")
        return self

    def _native_shares_the_model(self) -> None:
        taken = {
            "rollout.placement": (self.rollout.placement, "colocated"),
            "rollout.max_staleness": (self.rollout.max_staleness, 0),
            "train.backend": (self.train.backend, "ddp"),
        }
        for key, (value, only) in taken.items():
            if value not in (only, "auto"):
                raise ValueError(
                    f"{key}={value}: rollout.engine=native samples with the very model that trains, whole and in turns; "
                    f"set {key}={only}, or rollout.engine=vllm"
                )


def _said(error: Any) -> str:
    """One of pydantic's errors in a line."""
    place = ".".join(str(part) for part in error["loc"])
    return f"{place}: {error['msg']}" if place else str(error["msg"]).removeprefix("Value error, ")
