"""Prompt -> Trajectory: ask an engine for a group of completions of each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmrl.rollout.engine import RolloutEngine, Told, generated
from llmrl.seeding import key
from llmrl.settings.rollout import RolloutConfig
from llmrl.types import Completion, Prompt, Request, Role, Sampling, Trajectory


def roll(
    engine: RolloutEngine, prompts: Sequence[Prompt], config: RolloutConfig, *, seed: int, step: int, version: int,
    baseline: bool = False,
) -> list[Trajectory]:  # fmt: skip
    """`config.group_size` trajectories of each prompt, siblings together, in the order of the prompts; with `baseline`
    the greedy completions of all prompts after them.

    `step` is the training step, `version` that of the policy that samples. Every request's draws are keyed by (seed,
    step, prompt, sample), so they depend neither on the batch nor on the number of processes.
    """
    places = [(prompt, sample) for prompt in prompts for sample in range(config.group_size)]
    requests = [
        Request(
            tokens=prompt.tokens, media=prompt.media, sampling=sampling(config, key(seed, step, "sample", prompt.id, i))
        )
        for prompt, i in places
    ]
    if baseline:
        best = Sampling(max_tokens=config.max_tokens, temperature=0.0, stop=tuple(config.stop), seed=0)
        requests += [Request(tokens=prompt.tokens, media=prompt.media, sampling=best) for prompt in prompts]
    completions = engine.generate(requests)
    found = [single_turn(p, c, sample=i, version=version) for (p, i), c in zip(places, completions)]
    others = zip(prompts, completions[len(places) :])
    return found + [single_turn(p, c, sample=0, version=version, role=Role.BASELINE) for p, c in others]


def greedy(
    engine: RolloutEngine, prompts: Sequence[Prompt], *, sampling: Sampling, seed: int, version: int,
    told: Told | None = None,
) -> list[Trajectory]:  # fmt: skip
    """One trajectory a prompt for evaluation, each with a seed of its own; `told` hears how many are finished."""
    requests = [
        Request(tokens=prompt.tokens, media=prompt.media, sampling=replace(sampling, seed=key(seed, "eval", prompt.id)))
        for prompt in prompts
    ]
    completions = generated(engine, requests, told)
    return [single_turn(p, c, sample=0, version=version) for p, c in zip(prompts, completions, strict=True)]


def sampling(config: RolloutConfig, seed: int) -> Sampling:
    """The sampling settings of one training request."""
    return Sampling(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        stop=tuple(config.stop),
        seed=seed,
    )


def single_turn(prompt: Prompt, completion: Completion, *, sample: int, version: int, **rest: Any) -> Trajectory:
    """A prompt followed by one completion, all of it environment step 0; `rest` are further fields of the trajectory."""
    return Trajectory.of(
        prompt, completion.tokens, completion.logprobs, text=completion.text, status=completion.status,
        version=(version, version), sample=sample, **rest,
    )  # fmt: skip
