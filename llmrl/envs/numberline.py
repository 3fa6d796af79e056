"""NumberLine, of gym-cards (Zhai et al. 2024, arXiv:2405.10292), re-made from its rules: walk to the target."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmrl.envs.game import Step, played
from llmrl.envs.pictures import canvas

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(slots=True, kw_only=True)
class NumberLine:
    """Positions 0 to `high`; 1 for reaching the target, -1 for a step that comes no nearer, 0 otherwise.

    The game is cut after 2 * high steps. `size` is the picture's edge in pixels.
    """

    seed: int
    high: int = 5
    size: int = 64
    actions: tuple[str, ...] = ("-", "+")
    target: int = field(init=False)
    place: int = field(init=False)
    steps: int = 0

    def __post_init__(self) -> None:
        self.target, self.place = random.Random(self.seed).sample(range(self.high + 1), 2)

    def rules(self) -> str:
        return "Walk on the number line to the target. Actions: - is one down, + is one up."

    def words(self, *, seen: bool) -> str:
        return "" if seen else f"Target: {self.target}. You are at: {self.place}."

    def act(self, action: int) -> Step:
        before = abs(self.target - self.place)
        self.place = min(self.high, max(0, self.place + (1 if action else -1)))
        self.steps += 1
        now = abs(self.target - self.place)
        if now == 0:
            return Step(reward=1.0, over=True, success=True)
        return Step(reward=0.0 if now < before else -1.0, cut=self.steps >= 2 * self.high)

    def hint(self) -> int:
        return int(self.target > self.place)

    def frame(self) -> Image:
        """The line with a red target above and a blue walker below it, and both numbers in words."""
        image, draw, font = canvas(self.size, self.size)
        edge, row = self.size / 8, self.size * 0.72
        at = [edge + (self.size - 2 * edge) * number / self.high for number in range(self.high + 1)]
        draw.line([(edge, row), (self.size - edge, row)], fill="black")
        for x in at:
            draw.line([(x, row - self.size / 20), (x, row + self.size / 20)], fill="black")
        wide = self.size / 14
        x = at[self.target]
        draw.polygon([(x - wide, row - 3 * wide), (x + wide, row - 3 * wide), (x, row - wide)], fill="red")
        x = at[self.place]
        draw.ellipse([x - wide, row + wide, x + wide, row + 3 * wide], fill="blue")
        draw.text((2, 1), f"Target: {self.target}", fill="red", font=font)
        draw.text((2, 1 + self.size / 5), f"Now: {self.place}", fill="blue", font=font)
        return image


number_line = played(NumberLine)
