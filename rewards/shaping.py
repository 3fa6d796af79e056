"""Length and repetition shaping: penalties that look at how much was written, not at what.

`SoftOverlong` is DAPO's soft over-long punishment (Yu et al. 2025, arXiv:2503.14476, eq. 13); `RepetitionPenalty` the
n-gram penalty of Yeo et al. 2025 (arXiv:2502.03373). Add them to a correctness reward with `WeightedSum`.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmrl.rewards.validation import expect
from llmrl.types import Score, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftOverlong:
    """0 up to `max_tokens - buffer` sampled tokens, then falling linearly to -1 at `max_tokens`, -1 beyond."""

    max_tokens: int
    buffer: int

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.max_tokens:
            raise ValueError(f"buffer={self.buffer} must be between 1 and max_tokens={self.max_tokens}")

    def penalty(self, length: int) -> float:
        """
        >>> [SoftOverlong(max_tokens=100, buffer=20).penalty(n) for n in (80, 90, 100, 200)]
        [0.0, -0.5, -1.0, -1.0]
        """
        free = self.max_tokens - self.buffer
        return max(-1.0, min(0.0, (free - length) / self.buffer))

    def __call__(self, trajectory: Trajectory) -> Score:
        value = self.penalty(trajectory.sampled)
        return Score(value=value, flags=("overlong",) if value < 0 else ())

    def validate(self) -> None:
        if self.penalty(0) != 0.0 or self.penalty(self.max_tokens) != -1.0:
            raise ValueError("SoftOverlong must be 0 for a short and -1 for a full-length completion")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionPenalty:
    """-`most` times the share of word n-grams that are repeats: 0 for a text without any, near -most for a loop."""

    n: int = 4
    most: float = 1.0

    def __post_init__(self) -> None:
        if self.n < 1 or self.most < 0:
            raise ValueError(f"n={self.n} must be at least 1 and most={self.most} at least 0")

    def share(self, text: str) -> float:
        """Share of repeated n-grams, 0 for texts shorter than n words.

        >>> RepetitionPenalty(n=1).share("a b a b")
        0.5
        """
        words = text.lower().split()
        grams = [tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    def __call__(self, trajectory: Trajectory) -> Score:
        share = self.share(trajectory.text)
        return Score(value=-self.most * share, flags=("repetitive",) if share > 0.5 else ())

    def validate(self) -> None:
        expect(self, "", full=["", "one two three four five six"], none=["so so so so so so so so so"], best=0.0,
               worst=-0.5 * self.most)  # fmt: skip
