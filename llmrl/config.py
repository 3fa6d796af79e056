"""The recipe: one YAML file says everything about a run. Its schema, dotted overrides, and errors that help.

    recipe = load_recipe("recipes/arithmetic/grpo.yaml", ["train.steps=50", "algo.clip_high=0.28"])

Unknown keys are errors that name the nearest known one; rules that span sections say what is wrong, the value, and what
to do. `algo` and `reward` stay plain mappings here; `cli.py` turns them into objects.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError
from pydantic import model_validator as rule

from llmrl.data.config import DataConfig, EvalDataConfig
from llmrl.errors import ConfigError
from llmrl.explain import explain, nearest
from llmrl.policy.config import CriticConfig, ModelConfig, ReferenceConfig, Section
from llmrl.policy.config import LoraConfig as LoraConfig
from llmrl.rollout.config import RolloutConfig
from llmrl.stages.config import Stage, Supervised, check_stages, supervised

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
    backend: Literal["auto", "ddp", "fsdp2", "zero2", "zero3"] = Field(
        "auto", description="how processes share the policy; auto: as accelerate launch was configured, else ddp"
    )
    save_every: PositiveInt = Field(20, description="steps between checkpoints; the last step is always saved")
    keep_last: PositiveInt = Field(2, description="checkpoints kept")
    keep_best: bool = Field(True, description="also keep the checkpoint with the best held-out accuracy")
    deterministic: bool = Field(True, description="bit-for-bit repeatable and resumable; costs time on GPUs")
    threads: NonNegativeInt = Field(0, description="CPU threads of the trainer; 0 takes every core it may use")


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
        if isinstance(data, dict) and isinstance(data.get("tasks"), list):
            return {**data, "tasks": [{"name": task} if isinstance(task, str) else task for task in data["tasks"]]}
        return data

    @rule(mode="after")
    def _tasks_run_at_evaluations(self) -> EvalConfig:
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
    reward: dict[str, RewardConfig] = Field(min_length=1, description="parts by name; the score is their weighted sum")
    algo: dict[str, Any] = Field(description="name (grpo, or package.module:Class) and its hyper-parameters")
    critic: CriticConfig | None = Field(None, description="the value model; default: a shared head, if algo needs it")
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    train: TrainConfig
    eval: EvalConfig = Field(default_factory=EvalConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    stages: list[Stage] = Field(
        default_factory=list, description="what is trained before, in order: sft, reward_model, dpo; rl comes last"
    )

    @property
    def run_dir(self) -> Path:
        """Where the run's files go."""
        return Path(self.runs_dir) / self.name

    @property
    def updates_per_step(self) -> int:
        return self.train.epochs * self.train.minibatches

    @property
    def supervised(self) -> list[Supervised]:
        """The stages before the reinforcement learning, in order."""
        return supervised(self.stages)

    @rule(mode="after")
    def _stages_are_used(self) -> Recipe:
        """Every `stage:name` of a reward is a reward model of this recipe, and every reward model is named."""
        check_stages(self.stages, {part: section.args for part, section in self.reward.items()})
        return self

    @rule(mode="after")
    def _spans_sections(self) -> Recipe:
        taken = sorted(set(self.reward) & RESERVED_PARTS)
        if taken:
            raise ValueError(f"reward.{taken[0]}: this name is taken by a metric; rename the part")
        if "name" not in self.algo:
            raise ValueError("algo needs a name, such as `algo: {name: grpo}`")
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
        if self.rollout.placement == "server" and self.rollout.engine != "vllm":
            raise ValueError(
                f"rollout.placement=server serves with vLLM only, not rollout.engine={self.rollout.engine}"
            )
        rollout = self.rollout
        if rollout.sleep and (rollout.engine, rollout.placement, rollout.max_staleness) != ("vllm", "colocated", 0):
            raise ValueError(
                "rollout.sleep=true is for rollout.engine=vllm with rollout.placement=colocated and rollout.max_staleness=0; "
                "engines elsewhere, or at work while the policy trains, have no memory to give back"
            )
        if self.critic is not None and self.critic.warmup_steps >= self.train.steps:
            raise ValueError(
                f"critic.warmup_steps={self.critic.warmup_steps} of train.steps={self.train.steps}: the policy would never "
                "learn; lower it"
            )
        if self.train.warmup_steps > self.train.steps:
            raise ValueError(
                f"train.warmup_steps={self.train.warmup_steps} is more than train.steps={self.train.steps}: the learning "
                "rate would never be reached"
            )
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


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe and apply `section.key=value` overrides (values are YAML).

    Raises ConfigError: missing file (with the nearest recipe), bad YAML, unknown key (with the nearest name), a value
    of the wrong type, or a rule between sections.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(_missing(file))
    try:
        data = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file} holds no recipe: expected `key: value` lines, got {type(data).__name__}")
    for text in overrides or []:
        _override(data, text)
    return parse_recipe(data, where=f"{file}, with its overrides," if overrides else str(file))


def parse_recipe(data: dict[str, Any], *, where: str = "recipe") -> Recipe:
    """A checked Recipe from plain data. Raises ConfigError."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where} is not a valid recipe:\n" + explain(error, Recipe)) from error


# What a resumed run may do differently: how long, how often it looks and saves, and on how much machine.
MAY_CHANGE = ("description", "runs_dir", "limits.", "tracking.", "eval.every", "eval.tasks", "eval.data_dir",
              "train.steps", "train.save_every", "train.keep_", "train.backend", "train.threads",
              "rollout.verify_", "rollout.isolated", "rollout.kv_cache_gib", "rollout.gpu_memory",
              "rollout.stall_timeout_s", "rollout.start_timeout_s", "rollout.placement", "rollout.servers.",
              "rollout.ray.", "rollout.max_staleness", "rollout.threads")  # fmt: skip


def check_same_run(recipe: Recipe) -> None:
    """Raise ConfigError if the run folder holds a run of a recipe that differs in more than MAY_CHANGE."""
    file = recipe.run_dir / "recipe.yaml"
    if not file.is_file():
        return
    before, now = (dict(_flat(r.model_dump(mode="json"))) for r in (load_recipe(file), recipe))
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    changed = [key for key in keys if not key.startswith(MAY_CHANGE)]
    if changed:
        lines = [f"  {key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in changed]
        raise ConfigError(
            f"{recipe.run_dir} is a run of another recipe; resume with its values, or start a run with another name=...\n"
            + "\n".join(lines)
        )


def _flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(place): item for place, item in enumerate(value)}
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default spelled out, as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def recipe_schema() -> str:
    """JSON Schema of recipes, for editors."""
    return json.dumps(Recipe.model_json_schema(), indent=2)


def recipes_folder() -> Path:
    """Where the packaged recipes lie."""
    return Path(__file__).parent / "recipes"


def _missing(file: Path) -> str:
    packaged = sorted(str(p.relative_to(recipes_folder().parent)) for p in recipes_folder().rglob("*.yaml"))
    close = difflib.get_close_matches(str(file), packaged, n=1, cutoff=0.5)
    return f"no recipe at {file}" + (
        f"; did you mean {close[0]}?" if close else "; `llmrl recipes` lists what there is"
    )


def _override(data: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"override {text!r} is not of the form section.key=value")
    node = data
    if parts[0] == "stages" and len(parts) > 2:
        node, parts = _stage(data.get("stages"), parts[1], text), parts[2:]
    for part in parts[:-1]:
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {text!r}: {part} holds {child!r}, not a section")
        node = child
    try:
        node[parts[-1]] = _with_spaces(yaml.safe_load(value), text)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or error
        raise ConfigError(f"override {text!r}: the value is not valid YAML ({reason}); quote it") from error


def _stage(stages: Any, which: str, text: str) -> dict[str, Any]:
    """The stage that an override names, by its place or by its name."""
    found = {}
    for place, stage in enumerate(stages if isinstance(stages, list) else []):
        if isinstance(stage, dict):
            found[str(place)] = found[str(stage.get("name") or stage.get("kind"))] = stage
    if which not in found:
        raise ConfigError(f"override {text!r}: the recipe has no stage {which!r}; {nearest(which, list(found))}")
    return found[which]


def _with_spaces(value: Any, text: str) -> Any:
    """YAML reads {low:1} as the key "low:1" without a value, which nobody means."""
    if isinstance(value, dict) and any(":" in str(key) and item is None for key, item in value.items()):
        raise ConfigError(f"override {text!r}: YAML wants a space after the colon, {{key: value}}")
    return value
