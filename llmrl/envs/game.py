"""Games with numbered actions, played in words or pictures: the rules on one side, what a language model needs on the other.

A `Game` knows its state, how to say it and how to draw it. `played` turns one into an environment: the policy answers with
JSON such as {"thoughts": "...", "action": 1}, read by `llmrl.envs.actions` and by nothing else.

    played(NumberLine)(prompt=prompt, seed=3, view="image", target=4)
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from llmrl.envs.actions import action_start, parse_choice
from llmrl.envs.protocol import Turn
from llmrl.types import Completion, Media, Observation, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

View = Literal["text", "image", "both"]
Invalid = Literal["noop", "random"]
VIEWS, INVALID = ("text", "image", "both"), ("noop", "random")
ANSWER = 'Answer with JSON: {"action": ...}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one action led to. `cut`: the game stops at a limit of its own, though it is not over."""

    reward: float = 0.0
    over: bool = False
    cut: bool = False
    success: bool = False


class Game(Protocol):
    """The rules of one game, from one seed. `actions` are what the policy may choose from now, by name."""

    @property
    def actions(self) -> Sequence[str]: ...

    def rules(self) -> str:
        """What the policy is told once, the actions included."""
        ...

    def words(self, *, seen: bool) -> str:
        """The state in words; with `seen`, only what a picture of it does not show."""
        ...

    def frame(self) -> Image:
        """The state as a picture."""
        ...

    def act(self, action: int) -> Step:
        """Do the action of that number."""
        ...


@runtime_checkable
class Hinting(Protocol):
    """A game that knows how it is won, which demonstrations of some skill need."""

    def hint(self) -> int | None:
        """The number of an action on a way to winning; None if the game sees no way from here."""
        ...


@dataclass(slots=True, kw_only=True)
class Played:
    """A game as an environment.

    view     text, image or both: what the policy observes.
    scrambled
             pictures with their pixels in random order: a policy that looks falls to chance.
    invalid  noop: an answer without a valid action costs `penalty` and changes nothing. random: an action is drawn in its
             place; the step costs `penalty` too, and its tokens are left out of the policy's loss.
    """

    game: Game
    seed: int
    view: View = "text"
    scrambled: bool = False
    invalid: Invalid = "noop"
    penalty: float = 0.1
    drawn: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.drawn = random.Random(f"{self.seed} actions")  # not the draws that made the level

    def start(self) -> Observation:
        """The rules as a system message, which every window of the conversation keeps, and the first state."""
        told, shown = {"role": "system", "content": f"{self.game.rules()} {ANSWER}"}, self._shown()
        return Observation(messages=(told, *shown.messages), media=shown.media)

    def act(self, completion: Completion) -> Turn:
        """What the action led to; without a valid one, what `invalid` says."""
        action = parse_choice(completion.text, self.game.actions)
        valid, at = action is not None, action_start(completion.text)
        info: dict[str, Any] = {"success": False, "action": None if action is None else self.game.actions[action]}
        flags = () if valid else ("invalid_action",)
        if action is None and self.invalid == "noop":
            return Turn(reward=-self.penalty, next=self._shown(), flags=flags, info=info, action_at=at)
        if action is None:
            action = self.drawn.randrange(len(self.game.actions))
        step = self.game.act(action)
        return Turn(
            reward=step.reward - (0.0 if valid else self.penalty),
            next=None if step.over and not step.cut else self._shown(),
            truncated=step.cut,
            learns=valid,
            flags=flags,
            info={**info, "success": step.success},
            action_at=at,
        )

    def close(self) -> None:
        """Let the game go."""
        close = getattr(self.game, "close", None)
        if close is not None:
            close()

    def _shown(self) -> Observation:
        if self.view == "text":
            return Observation.of(self.game.words(seen=False))
        text = self.game.words(seen=self.view == "image")
        content = [{"type": "image"}, *([{"type": "text", "text": text}] if text else [])]
        frame = scrambled(self.game.frame(), self.seed) if self.scrambled else self.game.frame()
        return Observation(messages=({"role": "user", "content": content},), media=(Media.image(frame),))


def scrambled(image: Image, seed: int) -> Image:
    """The same pixels in an order that `seed` draws."""
    import numpy as np
    from PIL import Image as Pillow

    pixels = np.asarray(image.convert("RGB"))
    order = np.random.default_rng(seed).permutation(pixels.shape[0] * pixels.shape[1])
    return Pillow.fromarray(pixels.reshape(-1, 3)[order].reshape(pixels.shape))


def played(rules: Callable[..., Game]) -> Callable[..., Played]:
    """What makes environments of a game: its own keywords beside those of `Played`, in one signature that can be checked."""
    ours = [item for item in inspect.signature(Played).parameters.values() if item.name not in ("game", "seed")]
    theirs = [item for item in inspect.signature(rules).parameters.values() if item.name != "seed"]
    front = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("prompt", "seed")]

    def make(*, prompt: Prompt, seed: int, **args: Any) -> Played:
        own = {item.name: args.pop(item.name) for item in ours if item.name in args}
        for name, known in (("view", VIEWS), ("invalid", INVALID)):
            if own.get(name, known[0]) not in known:
                raise ValueError(f"{name}={own[name]!r}: use one of {', '.join(known)}")
        return Played(game=rules(seed=seed, **args), seed=seed, **own)

    make.__signature__ = inspect.Signature([*front, *theirs, *ours])  # type: ignore[attr-defined]
    return make
