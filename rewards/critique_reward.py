"""What a critique is worth: stage I its verdict, stage II the refinement that it led to and its verdict.

Reads what the critique environment tells (`info`: draft, critique, refined) and checks draft and refinement against the
row's answer with another reward. The formulas are in `critique.py` (Critique-RL, arXiv:2510.24320).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from llmrl.rewards.critique import (
    HelpMode,
    Parser,
    Scheme,
    credited,
    discrimination_reward,
    refinement_reward,
    verdict,
)
from llmrl.rewards.scoring import load_reward
from llmrl.types import Reward, Score, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueReward:
    """Stage 1 or 2 of Critique-RL.

    checker   import path of the reward that judges draft and refinement; right from `threshold` on.
    known     column that says whether the draft is right, where the data knows; else the checker judges it too.
    scheme, mode, parser, beta: see llmrl.rewards.critique.
    """

    stage: Literal[1, 2] = 2
    checker: str = "llmrl.rewards.exact_number:ExactNumber"
    args: Mapping[str, Any] = field(default_factory=dict)
    threshold: float = 1.0
    known: str = "correct"
    scheme: Scheme = "paper"
    mode: HelpMode = "r_refine"
    parser: Parser = "strict"
    beta: float = 0.2
    judge: Reward = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.stage not in (1, 2):
            raise ValueError(f"stage={self.stage}: Critique-RL has stages 1 and 2")
        object.__setattr__(self, "judge", load_reward(self.checker, dict(self.args)))

    def __call__(self, trajectory: Trajectory) -> Score:
        info = trajectory.info
        if "critique" not in info:
            return Score(value=None, error="the episode has no critique; use env.name=critique")
        truth = trajectory.prompt.columns.get(self.known)
        before = bool(truth) if isinstance(truth, bool | int) else self._right(trajectory, str(info["draft"]))
        if before is None:
            return Score(value=None, reason="the draft cannot be judged")
        text = str(info["critique"])
        agrees = credited(text, before, parser=self.parser)
        parts = {"verdict_right": float(agrees), "draft_right": float(before)}
        flags = () if verdict(text) is not None else ("malformed_critique",)
        if self.stage == 1:
            return Score(value=discrimination_reward(agrees, scheme=self.scheme), parts=parts, flags=flags)
        if "refined" not in info:
            return Score(value=None, error="stage 2 needs a refinement; set env.args.refine=true and engines.actor")
        after = self._right(trajectory, str(info["refined"]))
        if after is None:
            return Score(value=None, reason="the refinement cannot be judged")
        value = refinement_reward(before, after, agrees, mode=self.mode, scheme=self.scheme, beta=self.beta)
        return Score(value=value, parts=parts | {"refined_right": float(after)}, flags=flags)

    def _right(self, trajectory: Trajectory, text: str) -> bool | None:
        score = self.judge(replace(trajectory, text=text))
        return None if score.value is None else score.value >= self.threshold
