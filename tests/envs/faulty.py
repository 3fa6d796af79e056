"""Environments that break in every way, by what the policy writes."""

import os
import time
from dataclasses import dataclass, field

from llmrl.envs.protocol import Ask, Turn
from llmrl.types import Observation


@dataclass
class Faulty:
    prompt: object
    seed: int
    seen: list = field(default_factory=list)

    def start(self):
        if self.prompt.answer == "bad start":
            raise ValueError("no such level")
        return Observation.of(f"task {self.prompt.id} {self.seed % 1000}")

    def act(self, completion):
        self.seen.append(completion.text)
        if completion.text == "raise":
            raise RuntimeError("fell over")
        if completion.text == "hang":
            time.sleep(600)
        if completion.text == "die":
            os._exit(7)
        if completion.text == "nonsense":
            return {"reward": 1}
        if completion.text == "nan":
            return Turn(reward=float("nan"))
        if completion.text == "ask":
            return Ask(engine="friend", messages=({"role": "user", "content": "help"},), max_tokens=4)
        if completion.text == "end":
            return Turn(reward=1.0, info={"success": True, "seen": list(self.seen)})
        return Turn(next=Observation.of(f"seen {len(self.seen)}"))

    def told(self, text):
        return Turn(reward=0.5, next=Observation.of(f"friend says {text}"))
