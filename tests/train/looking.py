"""An environment that shows a picture a turn, for tests."""

from dataclasses import dataclass, field

import numpy as np

from llmrl.envs.protocol import Turn
from llmrl.types import Completion, Media, Observation, Prompt


@dataclass(slots=True)
class Looking:
    """Black and white stripes that move by a pixel a turn; a letter from the first half of the alphabet is rewarded."""

    prompt: Prompt
    seed: int
    turns: int = 0
    shown: list[int] = field(default_factory=list)

    def start(self) -> Observation:
        return self._frame()

    def act(self, completion: Completion) -> Turn:
        self.turns += 1
        return Turn(reward=float(sum(ord(letter) % 2 for letter in completion.text)), next=self._frame())

    def _frame(self) -> Observation:
        lines = (np.arange(24) + self.turns + self.seed % 7) % 6 < 3
        frame = np.where(lines[:, None, None], 255, 0).astype(np.uint8) * np.ones((24, 24, 3), np.uint8)
        return Observation.of(f"turn {self.turns}", media=(Media.image(frame),))


@dataclass(slots=True)
class Bright:
    """One turn under a white or a black picture: a letter with an odd code is right for white, an even one for black.

    As many levels are white as black, so an answer that does not depend on the picture is right half the time. With
    `exchanged` every level shows the picture of the other kind.
    """

    prompt: Prompt
    seed: int
    exchanged: bool = False

    def start(self) -> Observation:
        shade = 255 * ((self.seed + self.exchanged) % 2)
        return Observation.of("?", media=(Media.image(np.full((24, 24, 3), shade, np.uint8)),))

    def act(self, completion: Completion) -> Turn:
        return Turn(reward=float(bool(completion.text) and ord(completion.text[0]) % 2 == self.seed % 2))
