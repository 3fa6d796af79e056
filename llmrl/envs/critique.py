"""Two players: an actor drafts, the policy criticises the draft, the actor writes it anew.

    engine actor  the draft                  (stored in the row, or asked for: `online`)
    policy        critique with a verdict    (the policy is the critic)
    engine actor  the refinement             (asked only with refine: true, stage II)

A row's prompt is the question; unless its draft is written online it has an `attempt`. Siblings criticise the same draft.
Rewards read `draft`, `critique` and `refined` from the episode's `info`, of every round in `rounds`
(`llmrl.rewards.critique_reward`). Critique-RL, Xi et al. 2025, arXiv:2510.24320; the interface strings ("Correctness of
the final answer:", "The answer is") are its, the wording around them is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmrl.data.critiques import CRITIC, REFINE, filled
from llmrl.envs.protocol import Ask, Turn
from llmrl.seeding import generator
from llmrl.types import Completion, Message, Observation, Prompt


@dataclass(slots=True)
class Critique:
    """One draft and what becomes of it.

    refine        ask the actor to write the draft anew with the critique.
    online        share of the prompts whose draft the actor writes now, at `temperature`; the others have it in the data.
                  A prompt is always of one kind. Rows without a stored draft get one anyway.
    samples       refinements of one critique: 1 is greedy, more are drawn at `temperature` and averaged by the reward.
    rounds        how often critique and refinement follow each other; the second critique is one of the refinement.
    max_tokens    longest draft and refinement.
    actor         the engine's name in the recipe's `engines`.
    critic, refine_with   the prompts, with {question}, {attempt} and {critique}.
    attempt       the column of the stored draft: text, or a list of steps.
    """

    prompt: Prompt
    seed: int = 0
    refine: bool = True
    online: float = 0.0
    samples: int = 1
    rounds: int = 1
    temperature: float = 1.0
    max_tokens: int = 256
    actor: str = "actor"
    critic: str = CRITIC
    refine_with: str = REFINE
    attempt: str = "attempt"
    draft: str = ""
    stored: bool = False
    critique: str = ""
    done: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if min(self.samples, self.rounds) < 1 or (self.rounds > 1 and not self.refine):
            raise ValueError(
                f"samples={self.samples}, rounds={self.rounds}, refine={self.refine}: both at least 1, and rounds above 1 "
                "need refine: true"
            )

    def start(self) -> Observation | Ask:
        """The stored draft, or the question to the actor for one."""
        found = self.prompt.columns.get(self.attempt) or ""
        stored = "\n".join(map(str, found)) if isinstance(found, list | tuple) else str(found)
        if stored and generator("online draft", self.prompt.id).random() >= self.online:
            self.stored = True
            return self._shown(stored)
        return self._ask(self._question(), temperature=self.temperature, shared=True)

    def act(self, completion: Completion) -> Turn | Ask:
        """The episode's end, or the question to the actor for a refinement."""
        self.critique = completion.text
        if not self.refine:
            return self._ended({})
        messages = refine_messages(self._question(), self.draft, self.critique, self.refine_with)
        greedy = self.samples == 1
        return self._ask(messages, temperature=0.0 if greedy else self.temperature, samples=self.samples)

    def told(self, *texts: str) -> Observation | Turn:
        """The actor's draft, or its refinements: the end, or the next draft."""
        if not self.draft:
            return self._shown(texts[0])
        found = {"refined": texts[0]} | ({"refinements": list(texts)} if len(texts) > 1 else {})
        if len(self.done) + 1 == self.rounds:
            return self._ended(found)
        info = self._told(found)
        return Turn(info=info, next=self._shown(texts[0]))

    def _ended(self, found: dict[str, Any]) -> Turn:
        info = self._told(found)
        return Turn(info=info | ({"rounds": self.done} if len(self.done) > 1 else {}))

    def _told(self, found: dict[str, Any]) -> dict[str, Any]:
        info = {"draft": self.draft, "critique": self.critique, **found}
        if self.stored and not self.done:
            info["stored"] = True  # the data may know whether it is right
        self.done.append(info)
        return info

    def _ask(self, messages: tuple[Message, ...], **how: Any) -> Ask:
        return Ask(engine=self.actor, messages=messages, max_tokens=self.max_tokens, **how)

    def _question(self) -> tuple[Message, ...]:
        return self.prompt.messages or ({"role": "user", "content": self.prompt.text},)

    def _shown(self, draft: str) -> Observation:
        self.draft = draft or "(nothing)"
        question = str(self._question()[-1]["content"])
        return Observation.of(filled(self.critic, question=question, attempt=self.draft))


def refine_messages(question: tuple[Message, ...], draft: str, critique: str, template: str) -> tuple[Message, ...]:
    """The actor's conversation: the question, its draft, the critique of it."""
    return (
        *question,
        {"role": "assistant", "content": draft},
        {"role": "user", "content": filled(template, critique=critique)},
    )
