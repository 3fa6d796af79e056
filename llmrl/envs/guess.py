"""Number guessing: the environment thinks of a number, every guess is answered with "higher" or "lower"."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from llmrl.envs.protocol import Turn
from llmrl.types import Completion, Observation, Prompt

NUMBER = re.compile(r"\d{1,6}")


@dataclass(slots=True)
class Guess:
    """A number from `low` to `high`, drawn by the episode's seed; each hint narrows the range that is left.

    A right guess gives 1, a guess outside the range that is left or no number at all costs `penalty`.
    """

    prompt: Prompt
    seed: int
    low: int = 1
    high: int = 16
    penalty: float = 0.1
    number: int = field(init=False)
    left: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.number = random.Random(self.seed).randint(self.low, self.high)
        self.left = (self.low, self.high)

    def start(self) -> Observation:
        return Observation.of(f"Guess my number, {self.low} to {self.high}. Answer with a number only.")

    def act(self, completion: Completion) -> Turn:
        """A hint, or the end after the right guess."""
        found = NUMBER.search(completion.text)
        low, high = self.left
        if found is None or not low <= int(found.group()) <= high:
            again = Observation.of(f"Guess a number from {low} to {high}.")
            return Turn(reward=-self.penalty, next=again, flags=("bad_guess",))
        guess = int(found.group())
        if guess == self.number:
            return Turn(reward=1.0, info={"success": True})
        if guess < self.number:
            self.left = (guess + 1, high)
            return Turn(next=Observation.of(f"higher than {guess}"), info={"success": False})
        self.left = (low, guess - 1)
        return Turn(next=Observation.of(f"lower than {guess}"), info={"success": False})
