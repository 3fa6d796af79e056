"""A gymnasium environment as a game: its reset is the start, its discrete actions are the policy's.

    env: {name: gym, args: {id: CartPole-v1, actions: [left, right]}, turns: 50}

What it observes is said in words (numbers, arrays, texts, dictionaries of them) or shown as a picture: an observation that
is an image, or what `render` draws.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrl.envs.game import Step, played

if TYPE_CHECKING:
    from PIL.Image import Image

# gymnasium imports the packages that register with it, and miniworld's pyglet looks for a display unless told otherwise.
os.environ.setdefault("PYGLET_HEADLESS", "true")


@dataclass(slots=True, kw_only=True)
class Gym:
    """The environment that `gymnasium.make(id, **kwargs)` gives.

    names     what the actions are called, in order; default: their numbers. Fewer names than actions leave out the last.
    task      what the policy is told beside the actions.
    success   an episode counts as solved if its rewards add up to more than this.
    modules   imported first, for packages that register their environments then.
    size      the longer edge of pictures in pixels; 0 leaves them as they are.

    Raises ValueError for an action space that is not discrete.
    """

    seed: int
    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    names: Sequence[str] = ()
    task: str = "Act in the environment."
    success: float = 0.0
    modules: Sequence[str] = ()
    size: int = 0
    env: Any = field(init=False)
    observation: Any = field(init=False)
    total: float = 0.0
    first: int = field(init=False)

    def __post_init__(self) -> None:
        import importlib

        import gymnasium

        for name in self.modules:
            importlib.import_module(name)
        self.env = gymnasium.make(self.id, **{"render_mode": "rgb_array", **self.kwargs})
        space = self.env.action_space
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise ValueError(f"{self.id} has actions {space}; only Discrete ones can be named in an answer")
        if len(self.names) > int(space.n):
            raise ValueError(f"{self.id} has {space.n} actions, and names has {len(self.names)}")
        self.names = tuple(self.names) or tuple(str(number) for number in range(int(space.n)))
        self.first = int(space.start)
        random.seed(self.seed)  # some environments draw from the global generators in spite of their seed
        np.random.seed(self.seed % 2**32)
        self.observation, _ = self.env.reset(seed=self.seed % 2**31)

    @property
    def actions(self) -> Sequence[str]:
        return self.names

    def rules(self) -> str:
        return f"{self.task} Actions: {', '.join(self.names)}."

    def words(self, *, seen: bool) -> str:
        return in_words(self.observation, seen=seen)

    def frame(self) -> Image:
        """The observation if it is an image, else what the environment draws. Raises ValueError if it draws nothing."""
        shown = next(iter(images(self.observation)), None)
        shown = self.env.render() if shown is None else shown
        if shown is None:
            raise ValueError(f"{self.id} draws nothing with render_mode={self.env.render_mode!r}; use view: text")
        return resized(np.asarray(shown), self.size)

    def act(self, action: int) -> Step:
        self.observation, reward, terminated, truncated, _ = self.env.step(self.first + action)
        self.total += float(reward)
        solved = bool(terminated or truncated) and self.total > self.success
        return Step(reward=float(reward), over=bool(terminated), cut=bool(truncated and not terminated), success=solved)

    def close(self) -> None:
        self.env.close()


def images(observation: Any) -> list[np.ndarray]:
    """The arrays in an observation that are pictures: bytes of height x width x 3, at least 16 pixels wide."""
    if isinstance(observation, dict):
        return [found for part in observation.values() for found in images(part)]
    array = observation if isinstance(observation, np.ndarray) else None
    is_picture = array is not None and array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
    return [array] if array is not None and is_picture and min(array.shape[:2]) >= 16 else []


def in_words(observation: Any, *, seen: bool = False) -> str:
    """An observation as text; with `seen`, only the texts in it, since a picture shows the rest.

    >>> in_words({"mission": "go", "at": np.array([1.0, -0.25])})
    'mission: go; at: 1 -0.25'
    """
    if isinstance(observation, str):
        return observation
    if isinstance(observation, dict):
        parts = ((name, in_words(part, seen=seen)) for name, part in observation.items())
        return "; ".join(f"{name}: {text}" for name, text in parts if text)
    if isinstance(observation, tuple | list):
        return ", ".join(text for part in observation if (text := in_words(part, seen=seen)))
    if seen:
        return ""
    if images(observation):
        return "(a picture)"
    if isinstance(observation, np.ndarray):
        return " ".join(f"{number:.4g}" for number in observation.ravel().tolist())
    return f"{observation:.4g}" if isinstance(observation, float | np.floating) else str(observation)


def resized(frame: np.ndarray, size: int) -> Image:
    """An RGB array as a picture whose longer edge has `size` pixels; 0 leaves it."""
    from PIL import Image as Pillow

    image = Pillow.fromarray(np.ascontiguousarray(frame[..., :3]).astype(np.uint8))
    if size and max(image.size) != size:
        scale = size / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    return image


gym = played(Gym)
