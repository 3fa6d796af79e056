"""What a strategy chooses by: a number per sample. Any reward is a scorer; here are two more, and how names become them.

    --scorer likelihood
    --scorer llmrl.rewards.reward_model:RewardModel --scorer-args '{model: folder}'
    --scorer llmrl.eval.scorers:ValueModel --scorer-args '{model: runs/x/checkpoints/step-50/policy, head: head.safetensors}'

A scorer sees the question and the sample, never the verdict; whether it peeks at the gold answer is up to it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmrl.errors import EvalError
from llmrl.types import Reward, Score, Trajectory

SHORT = {"likelihood": "llmrl.eval.scorers:Likelihood"}
HEAD_FILE = "value_head.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerSpec:
    """A scorer by import path (or "likelihood") and the arguments it is built with."""

    path: str
    args: Mapping[str, Any] = field(default_factory=dict)


def build_scorers(specs: Sequence[ScorerSpec]) -> dict[str, Reward]:
    """Scorers by name (that of their class or function), each safe to call from threads. EvalError if one cannot be."""
    from llmrl.rewards.scoring import load_reward

    found: dict[str, Reward] = {}
    for spec in specs:
        path = SHORT.get(spec.path, spec.path)
        try:
            scorer = load_reward(path, spec.args)
        except (ValueError, TypeError) as error:
            known = f" (or one of: {', '.join(SHORT)})" if ":" not in spec.path else ""
            raise EvalError(f"scorer {spec.path}: {error}{known}") from error
        name = path.rpartition(":")[2]
        name = name if name not in found else f"{name}-{len(found) + 1}"
        found[name] = OneAtATime(scorer)
    return found


class OneAtATime:
    """A scorer behind a lock: judging runs in threads, and a network is to be loaded once and to work alone."""

    def __init__(self, scorer: Reward) -> None:
        self._scorer, self._lock = scorer, threading.Lock()

    def __call__(self, trajectory: Trajectory) -> Score:
        return self.score_batch([trajectory])[0]

    def score_batch(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        from llmrl.rewards.scoring import score_all

        with self._lock:
            return score_all(self._scorer, trajectories)


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """The sampler's own confidence: exp of the mean log-probability of the completion's tokens, in 0..1."""

    def __call__(self, trajectory: Trajectory) -> Score:
        if trajectory.logprobs is None:
            return Score(value=None, reason="no engine sampled this completion")
        logprobs = trajectory.logprobs[trajectory.mask].astype(np.float64)
        if not len(logprobs) or not np.isfinite(logprobs).all():
            return Score(value=None, reason="the engine gave no log-probabilities")
        return Score(value=math.exp(float(logprobs.mean())))


@dataclass(slots=True, kw_only=True)
class ValueModel:
    """A trained critic: the value of the state in which the completion's last token was chosen.

    `model` is a Hugging Face folder or hub id, `head` a safetensors file with `weight` [D] and `bias` [], and `mean` and
    `deviation` [] if its targets were whitened (default: value_head.safetensors in the folder). It reads the policy's
    token ids, so it has the policy's tokenizer.
    """

    model: str
    head: str = ""
    dtype: str = "float32"
    device: str = "cpu"
    _parts: Any = None

    def _load(self) -> Any:
        if self._parts is None:
            import torch
            from safetensors.torch import load_file
            from transformers import AutoModel

            file = Path(self.head) if self.head else Path(self.model) / HEAD_FILE
            if not file.is_file():
                raise ValueError(f"no value head at {file}; give head: with the file that training wrote")
            head = {name: tensor.float().to(self.device) for name, tensor in load_file(file).items()}
            dtype = getattr(torch, self.dtype)
            network = AutoModel.from_pretrained(self.model, dtype=dtype, trust_remote_code=False)
            if head["weight"].shape != (network.config.hidden_size,):
                raise ValueError(f"{file} has weight {tuple(head['weight'].shape)}, not [{network.config.hidden_size}]")
            self._parts = network.to(self.device).eval(), head
        return self._parts

    def __call__(self, trajectory: Trajectory) -> Score:
        return self.score_batch([trajectory])[0]

    def score_batch(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """One forward a row. ValueError if there is no head, or it does not fit the model."""
        import torch

        network, head = self._load()
        scores = []
        for trajectory in trajectories:
            before = trajectory.tokens[:-1]  # the state that the last token was chosen in
            with torch.inference_mode():
                ids = torch.tensor(before, device=self.device)[None]
                last = network(input_ids=ids).last_hidden_state[0, -1].float()
            value = float(last @ head["weight"] + head["bias"])
            scores.append(Score(value=value * float(head.get("deviation", 1.0)) + float(head.get("mean", 0.0))))
        return scores
