"""Whether llmrl and TRL compute the same loss and gradient: one stored rollout, float32, both implementations."""

from __future__ import annotations

import argparse
from typing import Any

Row = tuple[list[int], list[int], float]  # prompt tokens, completion tokens, reward


def compare(model: str, rows: list[Row]) -> dict[str, float]:
    """Relative differences of loss and gradient on `rows`: of the loss, of the gradient as one long vector (the norm of
    the difference over the norm), and the gap of the worst single parameter over the largest gradient.
    """
    import torch

    options = argparse.Namespace(
        side="trl_default", model=model, mode="equal", steps=1, trl_batch=8, trl_attention="sdpa"
    )
    from tests.bench.contestants import trl_trainer

    trainer = trl_trainer(options)
    trainer.model.float()
    trainer.args.steps_per_generation = trainer.current_gradient_accumulation_steps = 1
    trainer.accelerator.native_amp = False
    policy = trainer.model
    policy.train()
    their_loss, theirs = _gradient(policy, lambda: trainer._compute_loss(policy, _trl_inputs(rows, trainer)))
    our_loss, ours = _gradient(policy, lambda: _our_loss(policy, rows))
    gap = torch.stack([(ours[name] - theirs[name]).norm() for name in theirs]).norm()
    size = torch.stack([grad.norm() for grad in theirs.values()]).norm()
    worst = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    largest = max(float(grad.abs().max()) for grad in theirs.values())
    return {
        "loss_ours": our_loss,
        "loss_trl": their_loss,
        "loss_gap": abs(our_loss - their_loss),
        "gradient_relative": float(gap / size),
        "gradient_worst": worst / largest,
    }


def _gradient(model: Any, loss: Any) -> tuple[float, dict[str, Any]]:
    model.zero_grad()
    value = loss()
    value.backward()
    return float(value), {name: p.grad.clone() for name, p in model.named_parameters()}


def _trl_inputs(rows: list[Row], trainer: Any) -> dict[str, Any]:
    import torch
    from trl.trainer.utils import pad

    def padded(items: list[list[int]], side: str, value: int) -> Any:
        return pad([torch.tensor(item) for item in items], padding_value=value, padding_side=side)

    prompts, made = [row[0] for row in rows], [row[1] for row in rows]
    fill = trainer._tokenizer.pad_token_id
    mask = padded([[1] * len(item) for item in made], "right", 0)
    by_group: dict[tuple[int, ...], list[float]] = {}
    for prompt, _, reward in rows:
        by_group.setdefault(tuple(prompt), []).append(reward)
    deviations = {prompt: torch.tensor(rewards) for prompt, rewards in by_group.items()}
    advantages = torch.tensor(
        [
            float((reward - deviations[tuple(prompt)].mean()) / (deviations[tuple(prompt)].std() + 1e-4))
            for prompt, _, reward in rows
        ]
    )
    return {
        "prompt_ids": padded(prompts, "left", fill),
        "prompt_mask": padded([[1] * len(item) for item in prompts], "left", 0),
        "completion_ids": padded(made, "right", fill),
        "completion_mask": mask,
        "advantages": advantages,
        "num_items_in_batch": mask.sum(),
    }


def _our_loss(model: Any, rows: list[Row]) -> Any:
    from llmrl.algos.grpo import GRPO
    from llmrl.policy.forward import forward
    from llmrl.train.collate import collate
    from llmrl.types import Prompt, Score, Status, Trajectory

    trajectories = [
        Trajectory(
            prompt=Prompt(id=str(prompt), tokens=tuple(prompt), text=""),
            tokens=prompt + made,
            mask=[False] * len(prompt) + [True] * len(made),
            logprobs=[0.0] * (len(prompt) + len(made)),
            step=[-1] * len(prompt) + [0] * len(made),
            text="",
            status=Status.done(),
            scores=(Score(value=reward),),
        )
        for prompt, made, reward in rows
    ]
    algo = GRPO(importance_cap=None)
    batch = algo.credit(collate(trajectories))
    return algo.loss(forward(model, batch, mode="packed"), batch).value
