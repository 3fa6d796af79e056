"""From a recipe to its models: the policy, its forward pass and optimizer, the value model, the reference.

Training and replay build them alike; a checkpoint holds the tensors of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from llmrl.batch import Algorithm, Batch
from llmrl.data.pictures import PictureReader
from llmrl.data.prompts import privileged_tokens
from llmrl.errors import ConfigError
from llmrl.hardware import dtype_here
from llmrl.policy.critic import Critic, load_critic
from llmrl.policy.forward import ForwardMode, check_forward, short_window
from llmrl.policy.model import Policy, check_vocabulary, load_policy, load_tokenizer, model_length
from llmrl.policy.outcome_critic import OutcomeCritic, load_outcome_critic
from llmrl.rollout.roll import single_turn
from llmrl.seeding import key
from llmrl.settings.model import CriticConfig, OutcomeCriticConfig
from llmrl.settings.recipe import Recipe, TrainConfig
from llmrl.train.backends.build import choose, share, share_critic
from llmrl.train.collate import collate, with_totals
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.outcomes import OutcomeTrainer
from llmrl.train.protocols import Optimizer, Shards, Stored
from llmrl.train.reference import Reference
from llmrl.train.values import CriticTrainer
from llmrl.train.world import World
from llmrl.types import Completion, Media, Prompt, Score, Status, Trajectory

SELF_CHECK_NATS = {"float32": 1e-3, "bfloat16": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Folders or hub ids of the models that a recipe names."""

    policy: str
    critic: str = ""  # of a separate value model; empty: the policy's
    outcome_critic: str = ""  # of a separate outcome critic; empty: the policy's
    partners: Mapping[str, str] = field(default_factory=dict)  # of the engines that environments may ask, by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What learns, how, and what it is compared with."""

    policy: Policy
    logprob_model: LogprobModel
    optimizer: Optimizer
    shards: Shards
    config: TrainConfig
    world: World
    seed: int
    critic_trainer: CriticTrainer | None = None
    outcome_trainer: OutcomeTrainer | None = None
    reference: Reference | None = None
    privileged: Callable[[Prompt], tuple[int, ...]] | None = None  # tokens that only the value model reads
    mask_truncated: bool = False  # completions without an end do not train
    reader: PictureReader | None = None  # of a policy that sees
    denominators: tuple[float, float] | None = None  # public (tokens, sequences) of an update instead of its own
    # Private training: what the last step made public. Nothing else about a step leaves `learn`.
    released: Callable[[], Mapping[str, float]] | None = None

    def collate(self, trajectories: Sequence[Trajectory]) -> Batch:
        """A step's rollouts as tensors."""
        return collate(trajectories, mask_truncated=self.mask_truncated, privileged=self.privileged, reader=self.reader)

    def with_totals(self, batch: Batch) -> Batch:
        """The batch as one update of its own, with what its losses are divided by."""
        if self.denominators is None:
            return with_totals(batch, reduce=self.world.sum_)
        tokens, sequences = torch.tensor(self.denominators)
        return replace(batch, tokens_total=tokens, sequences_total=sequences)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """What a checkpoint needs beside the policy's folder, by file, on rank 0. Every rank must call it."""
        return {name: part.state() for name, part in self._stored.items()}

    @property
    def _stored(self) -> dict[str, Stored]:
        reference = self.reference if self.reference is not None and self.reference.stored else None
        parts = {"critic": self.critic_trainer, "outcome_critic": self.outcome_trainer, "reference": reference}
        return {"optimizer": self.shards} | {name: part for name, part in parts.items() if part is not None}

    def join_gather(self) -> None:
        """Take part in the gathering of a rank that writes a checkpoint."""
        self.policy.join_gather()
        if self.critic is not None:
            self.critic.join_gather()
        if self.outcome_trainer is not None:
            self.outcome_trainer.critic.join_gather(self.policy)

    def exports(self) -> dict[str, Callable[[Path], None]]:
        """What a checkpoint writes as folders of their own, by name, in the order of `join_gather`."""
        found: dict[str, Callable[[Path], None]] = {"policy": self.policy.save}
        if self.critic is not None:
            found["critic"] = self.critic.save
        if self.outcome_trainer is not None:
            found["outcome_critic"] = partial(self.outcome_trainer.critic.save, policy=self.policy)
        return found

    def load(self, read: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Restore what `tensors` gave. Raises ValueError, KeyError or OSError if it is of other models."""
        for name, part in self._stored.items():
            part.load(read(name))

    def follow(self, step: int) -> None:
        """After `step` steps are done: let the reference follow the policy, if the recipe says so."""
        if self.reference is not None:
            self.reference.follow(step)

    @property
    def critic(self) -> Critic | None:
        return None if self.critic_trainer is None else self.critic_trainer.critic


def build_models(
    recipe: Recipe, algo: Algorithm, sources: Sources, prompts: list[Prompt], notes: list[str], world: World
) -> Models:
    """Everything as it was before the first step. `prompts` are for self-checks; `notes` gets what a user should know."""
    policy = load_policy(recipe.model, source=sources.policy, device=world.device, seed=key(recipe.seed, "adapter"))
    notes.extend(policy.notes)
    check_vocabulary(policy, (token for prompt in prompts for token in prompt.tokens))
    logprob_model = make_logprob_model(recipe, policy, prompts, notes)
    config = recipe.critic or CriticConfig()
    privileged = None
    if config.privileged is not None:
        tokenizer = load_tokenizer(sources.policy)
        privileged = privileged_tokens(tokenizer, config.privileged, prompts, limit=config.max_privileged_tokens)
    critic = make_critic(recipe, config, policy, sources, prompts, notes, world) if algo.needs.values else None
    backend = choose(recipe.train, world)
    if world.size > 1:
        notes.append(f"{world.size} processes share the policy: {backend}")
    shared = share(backend, recipe.train, policy, logprob_model, world)
    critic_trainer = reference = None
    if critic is not None:
        critic, updater = share_critic(backend, recipe.train, critic, world)
        critic_trainer = CriticTrainer(critic=critic, updater=updater, config=config)
    outcome_trainer = None
    if recipe.outcome_critic is not None or algo.needs.token_scores:
        judge = make_outcome_critic(recipe, shared.policy, sources, prompts, notes, world)
        judge, updater = share_critic(backend, recipe.train, judge, world, joint_loss=False)
        outcome_trainer = OutcomeTrainer(
            critic=judge, updater=updater, config=recipe.outcome_critic or OutcomeCriticConfig(), train=recipe.train,
            policy=shared.logprob_model, world=world, seed=recipe.seed,
        )  # fmt: skip
    if algo.needs.ref_logprobs:
        reference = Reference(recipe.reference, shared.optimizer, shared.shards)
    return Models(
        policy=shared.policy, logprob_model=shared.logprob_model, optimizer=shared.optimizer, shards=shared.shards,
        config=recipe.train, world=world, seed=recipe.seed, critic_trainer=critic_trainer, outcome_trainer=outcome_trainer,
        reference=reference, privileged=privileged, mask_truncated=recipe.rollout.mask_truncated, reader=policy.pictures,
    )  # fmt: skip


def make_logprob_model(recipe: Recipe, policy: Policy, prompts: list[Prompt], notes: list[str]) -> LogprobModel:
    return LogprobModel(
        model=policy.causal_lm,
        mode=forward_mode(recipe, policy.causal_lm, _probe(prompts, policy.pictures), notes),
        temperature=recipe.rollout.temperature,
        tokens_per_microbatch=recipe.train.tokens_per_microbatch,
    )


def forward_mode(recipe: Recipe, model: nn.Module, probe: Batch, notes: list[str], *, name: str = "") -> ForwardMode:
    """The forward pass that agrees with the model itself on `probe`: what the recipe says, or with auto the fastest.
    `name` is the model's, if it is not the policy.

    Raises ConfigError if none does: such a model would train on wrong probabilities.
    """
    name = name or recipe.model.path
    asked = "plain" if recipe.privacy is not None else recipe.model.forward  # packed rows are not apart
    probe = probe.to(next(model.parameters()).device)
    problems: list[str] = []
    fastest: tuple[ForwardMode, ...] = ("flex", "packed") if probe.tokens.is_cuda else ("packed",)
    modes: tuple[ForwardMode, ...] = (*fastest, "plain") if asked == "auto" else (asked,)
    for mode in modes:
        problem = check_forward(model, probe, mode=mode, tolerance=SELF_CHECK_NATS[dtype_here(recipe.model.dtype)])
        if problem is None and mode != "plain":
            problem = short_window(model, recipe.model.max_length)
        if problem is None:
            notes.extend(f"model.forward: using {mode}, because {reason}" for reason in problems)
            return mode
        problems.append(problem)
    raise ConfigError(f"{name} cannot be trained with model.forward={asked}: {'; '.join(problems)}")


def _probe(prompts: list[Prompt], reader: PictureReader | None) -> Batch:
    """A few rows for the self-check: two prompts, each continued by pieces of other prompts, under a picture if the model
    sees.
    """
    rows = []
    for prompt in prompts[:2]:
        if reader is not None:
            example = Media.image(np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8))
            tokens = (*reader.tokens(example), *prompt.tokens)
            prompt = replace(prompt, tokens=tokens, media=(example, *prompt.media))
        for number, other in enumerate(prompts[2:5] or prompts):
            tokens = tuple(t for t in other.tokens if reader is None or t != reader.token)[: 5 + 4 * number]
            made = Completion(tokens=tokens, logprobs=(0.0,) * len(tokens), text="", status=Status.done())
            rows.append(single_turn(prompt, made, sample=number, version=0))
    return collate([replace(row, scores=(Score(value=0.0),)) for row in rows], reader=reader)


def make_critic(
    recipe: Recipe,
    config: CriticConfig,
    policy: Policy,
    sources: Sources,
    prompts: list[Prompt],
    notes: list[str],
    world: World,
) -> Critic:
    """The recipe's value model. Raises ConfigError for one that cannot read what the policy writes."""
    source = sources.critic or sources.policy
    critic = load_critic(
        config, recipe.model, policy, source=source, device=world.device, seed=key(recipe.seed, "value adapter")
    )
    if critic.model is not None:
        longest = model_length(source)
        wanted = recipe.model.max_length + (config.max_privileged_tokens if config.privileged else 0)
        if longest is not None and wanted > longest:
            raise ConfigError(
                f"the value model would read up to {wanted} tokens, more than the {longest} of {source}; lower "
                "model.max_length or critic.max_privileged_tokens"
            )
        own = critic.model.causal_lm
        critic = replace(critic, mode=forward_mode(recipe, own, _probe(prompts, policy.pictures), notes, name=source))
    return critic


def make_outcome_critic(
    recipe: Recipe, policy: Policy, sources: Sources, prompts: list[Prompt], notes: list[str], world: World
) -> OutcomeCritic:
    """The recipe's outcome critic. Raises ConfigError for one that cannot read what the policy writes."""
    config, source = recipe.outcome_critic or OutcomeCriticConfig(), sources.outcome_critic or sources.policy
    critic = load_outcome_critic(
        config, recipe.model, policy, source=source, device=world.device, seed=key(recipe.seed, "outcome adapter")
    )
    longest, reads = model_length(source), (critic.model or policy).causal_lm
    words = reads.get_input_embeddings()
    positions = any(isinstance(part, nn.Embedding) and part is not words for part in reads.modules())
    if positions and longest is not None and recipe.model.max_length >= longest:  # rotary positions have no end
        raise ConfigError(
            f"the outcome critic reads one token more than model.max_length={recipe.model.max_length}, and {source} reads "
            f"{longest}; lower model.max_length"
        )
    if critic.model is None:
        return critic
    mode = forward_mode(recipe, critic.model.causal_lm, _probe(prompts, policy.pictures), notes, name=source)
    return replace(critic, mode=mode)
