"""MiniGrid and BabyAI (Chevalier-Boisvert et al. 2023, arXiv:2306.13831): missions in rooms, in words or pictures.

env: {name: minigrid, args: {level: BabyAI-GoToRedBallGrey-v0, view: image}, turns: 32}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmrl.envs.game import Step, played
from llmrl.envs.gym import Gym, resized

if TYPE_CHECKING:
    from PIL.Image import Image

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")


@dataclass(slots=True, kw_only=True)
class MiniGrid:
    """One level by its gymnasium id; `kwargs` are its own, such as max_steps.

    `names` are the actions that the policy may choose (the first ones of MiniGrid's seven, in its order). Words and
    pictures show what the agent sees: the 7 x 7 squares before it, or with `pov` False pictures show the whole grid. The
    reward is MiniGrid's, 1 - 0.9 steps / limit on success. `size` is the picture's edge in pixels.
    """

    seed: int
    level: str = "MiniGrid-Empty-5x5-v0"
    kwargs: dict[str, Any] = field(default_factory=dict)
    names: Sequence[str] = ACTIONS
    pov: bool = True
    size: int = 64
    gym: Gym = field(init=False)

    def __post_init__(self) -> None:
        self.names = tuple(self.names)
        if self.names != ACTIONS[: len(self.names)]:
            raise ValueError(f"names={self.names} are not the first of MiniGrid's actions {', '.join(ACTIONS)}")
        self.gym = Gym(seed=self.seed, id=self.level, kwargs=self.kwargs, names=self.names, modules=("minigrid",))

    @property
    def actions(self) -> Sequence[str]:
        return self.names

    @property
    def grid(self) -> Any:
        """MiniGrid's own environment."""
        return self.gym.env.unwrapped

    def rules(self) -> str:
        return f"You walk in a grid of rooms and see what is before you. Actions: {', '.join(self.names)}."

    def words(self, *, seen: bool) -> str:
        mission = f"Mission: {self.grid.mission}."
        if seen:
            return mission
        carried = f" You carry a {_called(self.grid.carrying)}." if self.grid.carrying else ""
        return f"{mission} You see: {', '.join(self.in_view()) or 'nothing'}.{carried}"

    def in_view(self) -> list[str]:
        """What the agent sees, nearest first, and how far the wall before it is: '2 ahead', '1 left'."""
        grid, visible = self.grid.gen_obs_grid()
        middle, front = grid.width // 2, grid.height - 1
        found = []
        for x in range(grid.width):
            for y in range(grid.height):
                thing, ahead, side = grid.get(x, y), front - y, x - middle
                here = ahead == side == 0
                if thing is None or here or not visible[x, y] or thing.type == "floor":
                    continue
                if thing.type == "wall" and not (side == 0 or (ahead == 0 and abs(side) == 1)):
                    continue
                where = [f"{ahead} ahead"] if ahead else []
                where += [f"{abs(side)} {'left' if side < 0 else 'right'}"] if side else []
                found.append((ahead + abs(side), side, f"{_called(thing)} {' '.join(where)}"))
        return [text for _, _, text in sorted(found)]

    def frame(self) -> Image:
        squares = self.grid.agent_view_size if self.pov else max(self.grid.width, self.grid.height)
        tile = max(4, self.size // squares)
        return resized(self.grid.get_frame(highlight=not self.pov, tile_size=tile, agent_pov=self.pov), self.size)

    def act(self, action: int) -> Step:
        return self.gym.act(action)

    def close(self) -> None:
        self.gym.close()


def _called(thing: Any) -> str:
    """'closed green door', 'red ball', 'wall', 'goal'."""
    if thing.type in ("wall", "goal", "lava"):
        return str(thing.type)
    state = ""
    if thing.type == "door":
        state = "open " if thing.is_open else ("locked " if thing.is_locked else "closed ")
    return f"{state}{thing.color} {thing.type}"


minigrid = played(MiniGrid)
