"""What a critique is worth: stage I its verdict, stage II the refinement that it led to and its verdict.

Reads what the critique environment tells (`info`: draft, critique, refined) and checks draft and refinement against the
row's answer with another reward. An episode of several rounds is worth their mean. The formulas are in `critique.py`
(Critique-RL, arXiv:2510.24320).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal, cast

from llmrl.importing import load
from llmrl.rewards.critique import (
    HelpMode,
    Parser,
    Scheme,
    credited,
    discrimination_reward,
    graded_discrimination,
    refinement_reward,
    stated_score,
    verdict,
)
from llmrl.rewards.scoring import load_reward
from llmrl.types import Reward, Score, Trajectory

MODES = ("r_refine", "r_delta", "r_correction")
Help = Callable[[float, float], float]  # (draft's, refinement's) correctness or grade -> what the critique did


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueReward:
    """Stage 1 or 2 of Critique-RL.

    checker   import path of the reward that judges draft and refinement; right from `threshold` on.
    known     column that says whether the draft is right, where the data knows; else the checker judges it too.
    scheme, parser, beta: see llmrl.rewards.critique.
    mode      a help mode of llmrl.rewards.critique, or the import path of a function of (draft, refinement), both 0 or 1.
    indirect  stage 2 without the verdict: the help alone (the paper's baseline; malformed critiques are still counted).
    wrong_weight   what verdicts on wrong drafts count beside those on right ones: balances classes in stage 1.
    delta     for graded tasks: the checker's value is the oracle's score, the critique ends with "Score of the final
              answer: x", and a score further off than `delta` is worth nothing (appendix E).
    """

    stage: Literal[1, 2] = 2
    checker: str = "llmrl.rewards.exact_number:ExactNumber"
    args: Mapping[str, Any] = field(default_factory=dict)
    threshold: float = 1.0
    known: str = "correct"
    scheme: Scheme = "paper"
    mode: str = "r_refine"
    parser: Parser = "strict"
    beta: float = 0.2
    indirect: bool = False
    wrong_weight: float = 1.0
    delta: float | None = None
    judge: Reward = field(init=False, repr=False)
    own: Help | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.stage not in (1, 2):
            raise ValueError(f"stage={self.stage}: Critique-RL has stages 1 and 2")
        if self.mode not in MODES and ":" not in self.mode:
            raise ValueError(f"mode={self.mode!r}: use {', '.join(MODES)}, or package.module:function")
        if self.delta is not None and (self.mode == "r_correction" or not self.delta > 0):
            raise ValueError(
                f"delta={self.delta} with mode={self.mode}: above 0, and r_correction knows right and wrong only"
            )
        if not (math.isfinite(self.wrong_weight) and self.wrong_weight > 0):
            raise ValueError(f"wrong_weight={self.wrong_weight}; set it above 0")
        object.__setattr__(self, "judge", load_reward(self.checker, dict(self.args)))
        object.__setattr__(self, "own", load(self.mode, key="mode") if ":" in self.mode else None)

    def __call__(self, trajectory: Trajectory) -> Score:
        info = trajectory.info
        if "critique" not in info:
            return Score(value=None, error="the episode has no critique; use env.name=critique")
        if self.stage == 2 and "refined" not in info:
            return Score(value=None, error="stage 2 needs a refinement; set env.args.refine=true and engines.actor")
        found = [self._round(trajectory, one) for one in info.get("rounds") or [info]]
        if missing := next((score for score in found if score.value is None), None):
            return missing
        flags = dict.fromkeys(flag for score in found for flag in score.flags)
        names = dict.fromkeys(name for score in found for name in score.parts)
        parts = {name: fmean(score.parts[name] for score in found if name in score.parts) for name in names}
        reasons = [
            score.reason if len(found) == 1 else f"round {i}: {score.reason}" for i, score in enumerate(found, 1)
        ]
        value = fmean(cast(float, score.value) for score in found)
        return Score(value=value, parts=parts, flags=tuple(flags), reason="; ".join(reasons))

    def _round(self, trajectory: Trajectory, info: Mapping[str, Any]) -> Score:
        truth = trajectory.prompt.columns.get(self.known) if info.get("stored") and self.delta is None else None
        known = isinstance(truth, int) and truth in (0, 1)
        before = float(cast(int, truth)) if known else self._grade(trajectory, str(info["draft"]))
        texts = [str(text) for text in info.get("refinements") or ([info["refined"]] if "refined" in info else [])]
        after = [self._grade(trajectory, text) for text in texts]
        if before is None or None in after:
            return Score(value=None, reason=f"the {'draft' if before is None else 'refinement'} cannot be judged")
        return self._scored(str(info["critique"]), before, [grade for grade in after if grade is not None])

    def _scored(self, text: str, before: float, after: list[float]) -> Score:
        said = stated_score(text) if self.delta is not None else verdict(text)
        agrees = self._agreement(text, said, before)
        parts = {"verdict_right": agrees, "draft_right": before}
        if self.delta is None:
            parts["verdict_right_on_correct" if before else "verdict_right_on_wrong"] = agrees
        reason = f"verdict {'malformed' if said is None else said}, draft {_word(before)}"
        if after:
            parts["refined_right"] = fmean(after)
            reason += f", refinement {_word(fmean(after))}"
        if self.stage == 1:
            value = agrees if self.delta is not None else discrimination_reward(bool(agrees), scheme=self.scheme)
        else:
            value = fmean(self._help(before, grade, agrees) for grade in after)
        if self.stage == 1 and not before:
            value *= self.wrong_weight
        flags = ("malformed_critique",) if said is None else ()
        return Score(value=value, parts=parts, flags=flags, reason=reason)

    def _agreement(self, text: str, said: object, before: float) -> float:
        if self.delta is None:
            return float(credited(text, bool(before), parser=self.parser))
        return graded_discrimination(said, before, delta=self.delta) if isinstance(said, float) else 0.0

    def _help(self, before: float, after: float, agrees: float) -> float:
        """Stage 2's reward of one refinement."""
        if self.own is None and self.delta is None and not self.indirect:
            mode = cast(HelpMode, self.mode)
            return refinement_reward(
                bool(before), bool(after), bool(agrees), mode=mode, scheme=self.scheme, beta=self.beta
            )
        if self.own is not None:
            helped = float(self.own(before, after))
        elif self.delta is not None:
            helped = after if self.mode == "r_refine" else after - before
        else:
            helped = refinement_reward(bool(before), bool(after), False, mode=cast(HelpMode, self.mode))
        if self.indirect:
            return helped
        return -1.0 if self.scheme == "released" and not agrees else helped + self.beta * agrees

    def _grade(self, trajectory: Trajectory, text: str) -> float | None:
        """1 or 0; on graded tasks the checker's own value."""
        score = self.judge(replace(trajectory, text=text))
        if score.value is None or self.delta is not None:
            return score.value
        return float(score.value >= self.threshold)


def _word(grade: float) -> str:
    return {0.0: "wrong", 1.0: "right"}.get(grade, f"{grade:.3g}")
