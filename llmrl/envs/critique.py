"""Two players: the policy criticises a draft, a frozen actor writes it anew.

    policy        critique with a verdict    (the policy is the critic)
    engine actor  the refinement             (asked only with refine: true, stage II)

The data row has `question`, `attempt` (the draft) and `answer`; rewards read `draft`, `critique` and `refined` from the
episode's `info` (`llmrl.rewards.critique_reward`). Critique-RL, Xi et al. 2025, arXiv:2510.24320; the interface strings
("Correctness of the final answer:", "The answer is") are its, the wording around them is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmrl.envs.protocol import Ask, Turn
from llmrl.types import Completion, Observation, Prompt

CRITIC = (
    'Check this solution step by step. For each step write "Step sentence:", then "Correctness of the step:" Correct or '
    'Wrong, then "Explanation:". End with a line "Correctness of the final answer:" Correct or Wrong.\n\n'
    "Question: {question}\nSolution: {attempt}"
)
REFINE = (
    'Here is a critique of your solution. Follow it and write the whole solution again; end with "The answer is ...".\n\n'
    "{critique}"
)


@dataclass(slots=True)
class Critique:
    """`critic` and `refine_with` are the two prompts, with {question}, {attempt} and {critique}; `question` and `attempt`
    name the data's columns. `rounds` above 1 lets the policy criticise the refinement again.
    """

    prompt: Prompt
    seed: int = 0
    refine: bool = True
    actor: str = "actor"
    question: str = "question"
    attempt: str = "attempt"
    critic: str = CRITIC
    refine_with: str = REFINE
    max_tokens: int = 256
    rounds: int = 1
    draft: str = ""
    critique: str = ""
    done: int = 0

    def start(self) -> Observation:
        missing = [name for name in (self.question, self.attempt) if not self._column(name)]
        if missing:
            raise ValueError(
                f"row {self.prompt.id} has no column {missing[0]!r}; there are {', '.join(self.prompt.columns)}"
            )
        self.draft = self._column(self.attempt)
        return self._shown(self.draft)

    def act(self, completion: Completion) -> Turn | Ask:
        """The episode's end, or the question to the actor."""
        self.critique = completion.text
        if not self.refine:
            return Turn(info={"draft": self.draft, "critique": self.critique})
        messages = (
            {"role": "user", "content": self._column(self.question)},
            {"role": "assistant", "content": self.draft},
            {"role": "user", "content": self.refine_with.replace("{critique}", self.critique)},
        )
        return Ask(engine=self.actor, messages=messages, max_tokens=self.max_tokens)

    def told(self, text: str) -> Turn:
        """The actor's refinement: the end, or the next draft."""
        self.done += 1
        info: dict[str, Any] = {"draft": self.draft, "critique": self.critique, "refined": text}
        if self.done == self.rounds:
            return Turn(info=info)
        self.draft = text
        return Turn(info=info, next=self._shown(text))

    def _column(self, name: str) -> str:
        return str(self.prompt.columns.get(name) or "")

    def _shown(self, attempt: str) -> Observation:
        text = self.critic.replace("{question}", self._column(self.question)).replace("{attempt}", attempt)
        return Observation.of(text)
