"""TextWorld (Cote et al. 2018, arXiv:1806.11532): text adventures, built on this machine and kept in the cache.

env: {name: textworld, args: {challenge: coin_collector, settings: {level: 3}}, turns: 12, memory: window(2)}
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrl.cache import cache_root
from llmrl.envs.game import Step, played

if TYPE_CHECKING:
    from PIL.Image import Image

WANTED = {
    "admissible_commands": True, "inventory": True, "won": True, "lost": True, "score": True, "policy_commands": True,
    "objective": True, "description": True,
}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class TextWorld:
    """A game of one of TextWorld's challenges (coin_collector, simple, treasure_hunter, cooking) with its `settings`, or
    of one's own `path`.

    The seed chooses among `games` games, each built once (some seconds). The policy chooses a command among those that
    are possible now; a step's reward is what it adds to the score. `path` may name any game that TextWorld plays, such as
    ALFWorld's game.tw-pddl. There is nothing to see: use view: text.
    """

    seed: int
    challenge: str = "coin_collector"
    settings: Mapping[str, Any] = field(default_factory=lambda: {"level": 3})
    games: int = 20
    path: str = ""
    env: Any = field(init=False)
    state: Any = field(init=False)
    score: float = 0.0

    def __post_init__(self) -> None:
        import textworld

        path = self.path or str(built(self.challenge, self.settings, self.seed % self.games))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the interpreter has no walkthrough of this game
            self.env = textworld.start(path, textworld.EnvInfos(**WANTED))
        self.state = self.env.reset()

    @property
    def actions(self) -> Sequence[str]:
        hidden = ("look", "inventory")  # both are in every observation
        return [command for command in self.state.admissible_commands if command not in hidden]

    def rules(self) -> str:
        return f"You play a text adventure. {_plain(self.state.objective)} Choose one of the commands you are given."

    def words(self, *, seen: bool) -> str:
        return f"{_plain(self.state.description)} {_plain(self.state.inventory)}\nCommands: {', '.join(self.actions)}"

    def frame(self) -> Image:
        raise ValueError("TextWorld has no pictures; use view: text")

    def act(self, action: int) -> Step:
        self.state, score, done = self.env.step(self.actions[action])
        gained, self.score = score - self.score, score
        return Step(reward=float(gained), over=bool(done), success=bool(self.state.won))

    def hint(self) -> int | None:
        actions, way = list(self.actions), self.state.policy_commands or ()
        return actions.index(way[0]) if way and way[0] in actions else None

    def close(self) -> None:
        self.env.close()


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())


def built(challenge: str, settings: Mapping[str, Any], number: int) -> Path:
    """The file of game `number` of a challenge, built if it is not in the cache. Raises ValueError for an unknown one."""
    import textworld
    from filelock import FileLock
    from textworld.challenges import CHALLENGES
    from textworld.generator import compile_game

    name = f"tw-{challenge}"
    if name not in CHALLENGES:
        known = ", ".join(sorted(key.removeprefix("tw-") for key in CHALLENGES))
        raise ValueError(f"challenge={challenge!r} is none of TextWorld's: {known}")
    made_of = json.dumps([textworld.__version__, challenge, dict(settings), number], sort_keys=True)
    folder = cache_root() / "textworld" / hashlib.sha256(made_of.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    done, file = folder / "done", folder / "game.z8"
    with FileLock(folder / "lock"):
        if not done.exists():
            options = textworld.GameOptions()
            options.seeds, options.path, options.force_recompile = number, str(file), True
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile_game(CHALLENGES[name][1](dict(settings), options), options)
            done.touch()
    return file


textworld = played(TextWorld)
