"""Does a policy look? The same levels with pictures of others: `env: {name: "tests.bench.scrambled:scrambled"}`.

Text and rules are the level's own, every picture is of another level of the same environment in a random state, so a policy
that reads its pictures falls to chance.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from llmrl.envs.build import check_environment
from llmrl.envs.protocol import Ask, Turn
from llmrl.importing import load
from llmrl.settings.env import EnvConfig
from llmrl.types import Completion, Media, Observation, Prompt


@dataclass(slots=True)
class Scrambled:
    """An environment whose observations show `pictures` in place of its own."""

    inner: Any
    pictures: tuple[Media, ...]
    draw: random.Random

    def start(self) -> Observation | None:
        return self._changed(self.inner.start())

    def act(self, completion: Completion) -> Turn | Ask:
        turn: Turn | Ask = self.inner.act(completion)
        return replace(turn, next=self._changed(turn.next)) if isinstance(turn, Turn) else turn

    def _changed(self, shown: Observation | None) -> Observation | None:
        if shown is None:
            return None
        return replace(shown, media=tuple(self.draw.choice(self.pictures) for _ in shown.media))


def scrambled(*, prompt: Prompt, seed: int, of: str, others: int = 12, **args: Any) -> Scrambled:
    """The environment `of` with pictures from the starts of `others` other levels."""
    make = load(check_environment(EnvConfig(name=of, args=args)))
    draw = random.Random(f"scrambled {seed}")
    pictures: list[Media] = []
    for _ in range(others):
        shown = make(prompt=prompt, seed=draw.randrange(2**31), **args).start()
        pictures += shown.media if shown is not None else ()
    if not pictures:
        raise ValueError(f"{of} shows no pictures with args={args}; set view: image")
    return Scrambled(inner=make(prompt=prompt, seed=seed, **args), pictures=tuple(pictures), draw=draw)
