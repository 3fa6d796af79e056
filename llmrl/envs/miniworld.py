"""MiniWorld (Chevalier-Boisvert et al. 2023, arXiv:2306.13831): rooms in three dimensions, drawn without a display.

env: {name: miniworld, args: {level: MiniWorld-OneRoom-v0, view: image}, turns: 64, memory: window(4)}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmrl.envs.game import Step, played
from llmrl.envs.gym import Gym

if TYPE_CHECKING:
    from PIL.Image import Image

ACTIONS = ("left", "right", "forward")


@dataclass(slots=True, kw_only=True)
class MiniWorld:
    """One level by its gymnasium id; `kwargs` are its own. `size` is the picture's longer edge in pixels, 0 leaves 60 x 80.

    The levels of the paper (OneRoom, Hallway, FourRooms, WallGap) ask to reach a red box; the reward is MiniWorld's,
    1 - 0.2 steps / limit. In words the policy is told where the box lies, walls or not.
    """

    seed: int
    level: str = "MiniWorld-OneRoom-v0"
    kwargs: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    actions: Sequence[str] = ACTIONS
    gym: Gym = field(init=False)

    def __post_init__(self) -> None:
        self.gym = Gym(
            seed=self.seed, id=self.level, kwargs=self.kwargs, names=tuple(self.actions), modules=("miniworld",),
            size=self.size,
        )  # fmt: skip

    def rules(self) -> str:
        return f"Walk to the red box. Actions: {', '.join(self.actions)}."

    def words(self, *, seen: bool) -> str:
        if seen:
            return ""
        ahead, side = self.compass()
        return f"The red box is {abs(ahead):.1f} {'ahead' if ahead >= 0 else 'behind'}, {abs(side):.1f} " + (
            "left." if side >= 0 else "right."
        )

    def compass(self) -> tuple[float, float]:
        """(how far ahead, how far to the left) the box lies, in metres."""
        world = self.gym.env.unwrapped
        away = world.box.pos - world.agent.pos
        direction = world.agent.dir
        forward, left = (math.cos(direction), -math.sin(direction)), (-math.sin(direction), -math.cos(direction))
        return float(away[0] * forward[0] + away[2] * forward[1]), float(away[0] * left[0] + away[2] * left[1])

    def frame(self) -> Image:
        return self.gym.frame()

    def act(self, action: int) -> Step:
        return self.gym.act(action)

    def close(self) -> None:
        self.gym.close()


miniworld = played(MiniWorld)
