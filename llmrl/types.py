"""The shared words: what a prompt, a completion, a trajectory and a score are.

Everything here is ragged, frozen and on the CPU; there is no torch, so that rewards and data code import in a moment.
Rollouts make these objects, rewards read them, `train/collate.py` turns them into a `Batch` of tensors.

A trajectory is one flat row of tokens; the prompt, what the policy sampled and what an environment replied are
interleaved, and `mask` says which tokens the policy sampled. Two turns with the prompt P0 P1, actions A, observations E:

    tokens   P0  P1  A0  A1  A2  E0  E1  A3  A4
    mask      0   0   1   1   1   0   0   1   1
    step     -1  -1   0   0   0  -1  -1   1   1
    logprobs  0   0  l0  l1  l2   0   0  l3  l4

Index t always speaks of token t: `logprobs[t]` is log p(tokens[t] | tokens[:t]).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol, Self

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """An image that a prompt shows, known by what it holds: the same picture has the same `hash`.

    >>> Media.of(b"...").hash == Media.of(b"...").hash
    True
    """

    data: bytes = field(repr=False)  # a PNG file
    hash: str

    @classmethod
    def of(cls, data: bytes) -> Media:
        return cls(data=data, hash=hashlib.sha256(data).hexdigest())

    @classmethod
    def image(cls, picture: Any) -> Media:
        """A PIL image, an array ([H, W] or [H, W, 3] uint8), an encoded file's bytes, or the path of one; kept as RGB PNG.

        Raises OSError for a file that is no image, ValueError and TypeError for an array of another kind.
        """
        from PIL import Image

        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8:
                raise ValueError(f"an image array must be uint8 (0 to 255), not {picture.dtype}")
            picture = Image.fromarray(picture)
        elif isinstance(picture, bytes):
            picture = Image.open(io.BytesIO(picture))
        elif isinstance(picture, str | os.PathLike):
            picture = Image.open(picture)
        elif not isinstance(picture, Image.Image):
            raise TypeError(f"an image is a PIL image, an array, bytes or a path, not {type(picture).__name__}")
        encoded = io.BytesIO()
        picture.convert("RGB").save(encoded, format="PNG", compress_level=1)
        return cls.of(encoded.getvalue())

    def open(self) -> Any:
        """The PIL image, RGB."""
        from PIL import Image

        return Image.open(io.BytesIO(self.data)).convert("RGB")


Message = Mapping[str, Any]  # of a chat: role and content, text or a list of parts
# Any, so that lists are accepted too; a Trajectory turns whatever it gets into a read-only array.
Numbers = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question, ready for an engine.

    `id` is the group key: completions of one prompt share it. `tokens` are the ids the engine receives (the chat
    template is already applied), `text` the same as a string. `answer` and the other `columns` of the data row are what
    verifiers compare with; no engine and no policy sees them. `source` names one of several `data.sources`.

    >>> Prompt(id="add/0", tokens=(1, 2), text="What is 3 + 4?", answer="7").answer
    '7'
    """

    id: str
    tokens: tuple[int, ...]
    text: str
    answer: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    media: tuple[Media, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the policy is shown next: new chat messages, and the pictures that they mention, in order."""

    messages: tuple[Message, ...]
    media: tuple[Media, ...] = ()

    @classmethod
    def of(cls, text: str, *, role: str = "user", media: tuple[Media, ...] = ()) -> Observation:
        """One message; pictures come before its text.

        >>> Observation.of("too high").messages
        ({'role': 'user', 'content': 'too high'},)
        """
        return cls(messages=({"role": role, "content": content(text, len(media))},), media=media)


def content(text: str, images: int = 0) -> str | list[dict[str, str]]:
    """What a chat message holds: `text` alone, or parts as chat templates know them, `images` pictures before it.

    >>> content("What is this?", 1)
    [{'type': 'image'}, {'type': 'text', 'text': 'What is this?'}]
    """
    return [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}] if images else text


class StatusKind(StrEnum):
    """How the sampling of a trajectory ended; TRUNCATED means that `max_tokens` was hit."""

    DONE = "done"
    TRUNCATED = "truncated"
    ERROR = "error"


class Role(StrEnum):
    """What a trajectory is for: SAMPLED rows are what an algorithm learns from; a BASELINE is a greedy completion that
    others are compared with, and never trains; a GIVEN one was not sampled, the data gave it.
    """

    SAMPLED = "sampled"
    BASELINE = "baseline"
    GIVEN = "given"


class Ending(StrEnum):
    """What follows a row in its episode: another row; nothing, since the task is over; or nothing any more, because the
    episode was cut (a step limit), so that a value model says what would have come.
    """

    CONTINUES = "continues"
    TERMINATED = "terminated"
    TRUNCATED = "truncated"


@dataclass(frozen=True, slots=True)
class Status:
    """How a trajectory ended, and why if it failed: a bad rollout is data, never a crash and never a silent 0.

    >>> Status.error("engine did not answer in 60 s")
    Status(kind=<StatusKind.ERROR: 'error'>, reason='engine did not answer in 60 s')
    """

    kind: StatusKind
    reason: str = ""

    @classmethod
    def done(cls) -> Status:
        return cls(StatusKind.DONE)

    @classmethod
    def truncated(cls) -> Status:
        return cls(StatusKind.TRUNCATED)

    @classmethod
    def error(cls, reason: str) -> Status:
        return cls(StatusKind.ERROR, reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a reward says of one environment step.

    `value` None means "not applicable" (an unparsable gold answer, say): the row is left out and counted. `parts` holds
    the components before weighting, for the logs. `error` is set when the reward itself failed (raised, timed out,
    returned NaN): also left out and counted, never a 0. `flags` are things seen on the way ("many_boxes") that are
    counted in the metrics.

    >>> Score(value=1.0, parts={"exact": 1.0, "format": 0.0}).value
    1.0
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    error: str = ""
    flags: tuple[str, ...] = ()

    def plus(self, other: Score) -> Score:
        """Both together: values add up, and are None if one is.

        >>> Score(value=1.0).plus(Score(value=0.5, flags=("short",)))
        Score(value=1.5, parts={}, reason='', error='', flags=('short',))
        """
        both = self.value is not None and other.value is not None
        return Score(
            value=self.value + other.value if both else None,  # type: ignore[operator]
            parts={**self.parts, **other.parts},
            reason="; ".join(text for text in (self.reason, other.reason) if text),
            error="; ".join(text for text in (self.error, other.error) if text),
            flags=(*self.flags, *(flag for flag in other.flags if flag not in self.flags)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample one completion. `seed` keys every random draw of the request.

    Before `min_tokens` the end-of-sequence tokens have probability 0.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Token ids in. Ask an engine for one completion of `tokens`."""

    tokens: tuple[int, ...]
    sampling: Sampling
    media: tuple[Media, ...] = ()

    @property
    def prefix(self) -> tuple[Any, ...]:
        """What requests must share to be siblings: the same tokens under the same images."""
        return self.tokens, tuple(item.hash for item in self.media)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Token ids out. `logprobs[i]` is the log-probability (nats) of `tokens[i]` under the distribution it was drawn from,
    that is after temperature (and after top-p, top-k and min-p where the engine applies them).

    `status` is TRUNCATED if `max_tokens` ended it; the end-of-sequence token, if sampled, is the last of `tokens`.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    status: Status


def _frozen_array(values: Sequence[Any] | np.ndarray, dtype: type) -> np.ndarray:
    array: np.ndarray = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """One rollout of one prompt, or one environment step of an episode. All arrays have length T; lists are accepted and
    become read-only arrays.

    An episode of several rows shares `episode` and the prompt's `id`; each row's `prompt` is what the policy saw before it
    wrote, `turn` counts the rows, `thought` the sampled tokens before the action, and `ending` says what follows. After a
    cut, `final` is what the policy would have seen next. `info` is what the environment tells the reward. `logprobs` is
    None for completions that no engine sampled (gold rows).

    `text` is what the policy wrote in its last turn, special tokens too, but not the one that ended it; `version` the oldest
    and newest policy version that sampled a token of it, `sample` its number within the group, `scores` one per environment
    step (empty before rewards ran).

    >>> t = Trajectory(prompt=Prompt(id="a", tokens=(5, 6), text="2+2="), tokens=[5, 6, 9], mask=[0, 0, 1],
    ...                logprobs=[0, 0, -0.5], step=[-1, -1, 0], text="4", status=Status.done())
    >>> t.length, t.sampled
    (3, 1)
    """

    prompt: Prompt
    tokens: Numbers  # [T] int64
    mask: Numbers  # [T] bool, True where the policy sampled
    logprobs: Numbers | None  # [T] float32, of the sampler, 0 elsewhere
    step: Numbers  # [T] int32, environment step, -1 elsewhere
    text: str
    status: Status
    version: tuple[int, int] = (0, 0)
    sample: int = 0
    role: Role = Role.SAMPLED
    scores: tuple[Score, ...] = ()
    episode: str = ""
    turn: int = 0
    thought: int = 0
    ending: Ending = Ending.TERMINATED
    final: Prompt | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = {"tokens": np.int64, "mask": np.bool_, "logprobs": np.float32, "step": np.int32}
        if self.logprobs is None:
            del arrays["logprobs"]
        for name, dtype in arrays.items():
            object.__setattr__(self, name, _frozen_array(getattr(self, name), dtype))
        lengths = {name: len(getattr(self, name)) for name in arrays}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"a trajectory's arrays must have one length, got {lengths}")
        if bool(((self.step >= 0) != self.mask).any()):
            raise ValueError("step must be >= 0 exactly where mask is True")

    @classmethod
    def of(
        cls, prompt: Prompt, said: Sequence[int], logprobs: Sequence[float] | None = None, *, text: str = "",
        status: Status | None = None, **rest: Any,
    ) -> Self:  # fmt: skip
        """`prompt` and the tokens `said` after it, all of them environment step 0."""
        sizes = len(prompt.tokens), len(said)
        return cls(
            prompt=prompt, tokens=[*prompt.tokens, *said], mask=np.repeat([False, True], sizes),
            logprobs=None if logprobs is None else [*[0.0] * sizes[0], *logprobs], step=np.repeat([-1, 0], sizes),
            text=text, status=status or Status.done(), **rest,
        )  # fmt: skip

    @property
    def length(self) -> int:
        """Number of tokens, prompt included."""
        return len(self.tokens)

    @property
    def sampled(self) -> int:
        """Number of tokens the policy sampled."""
        return int(self.mask.sum())

    @property
    def steps(self) -> int:
        """Number of environment steps, those without a sampled token included; at least 1."""
        return max(1, len(self.scores), int(self.step.max(initial=-1)) + 1)

    def with_outcome(self, outcome: Score) -> Trajectory:
        """This trajectory with `outcome`, which judges it as a whole, added to the last step's score. Rewards that the
        environment gave stay.
        """
        nothing = Score(value=0.0)
        own = (*self.scores, *[nothing] * (self.steps - len(self.scores)))
        return replace(self, scores=(*own[:-1], own[-1].plus(outcome)))

    @property
    def reward(self) -> float | None:
        """Sum of the step scores; None if any step has none."""
        values = [score.value for score in self.scores]
        if not values or any(value is None for value in values):
            return None
        return float(sum(value for value in values if value is not None))


def by_episode(trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """The rows of each episode, in order of first appearance; a trajectory of no episode is one of its own."""
    found: dict[object, list[Trajectory]] = {}
    for place, trajectory in enumerate(trajectories):
        found.setdefault(trajectory.episode or place, []).append(trajectory)
    return list(found.values())


def total(episode: Sequence[Trajectory]) -> float | None:
    """The rewards of an episode's rows together; None if one has none."""
    rewards = [row.reward for row in episode]
    return None if None in rewards else float(sum(reward for reward in rewards if reward is not None))


class Reward(Protocol):
    """Anything that scores a finished trajectory. It must not change it, and must be callable from any process."""

    def __call__(self, trajectory: Trajectory) -> Score: ...
