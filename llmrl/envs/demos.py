"""Demonstrations of a game: what a supervised start learns from, the form of an answer and nothing of how to win.

Each row is one state, as the policy would see it, and an answer with a possible action drawn at random, or by `choose`; with
`thoughts` the answer first says the state in words, so that a model that is shown pictures learns to read them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmrl.atomic import replacing, write_text
from llmrl.data.rows import words
from llmrl.envs.build import check_environment
from llmrl.envs.game import Game, Hinting, Played
from llmrl.errors import ConfigError
from llmrl.importing import load
from llmrl.seeding import key
from llmrl.settings.env import EnvConfig
from llmrl.types import Completion, Observation, Prompt, Status

Choose = Callable[[Game, random.Random], int]  # the number of an action


def any_action(game: Game, draw: random.Random) -> int:
    return draw.randrange(len(game.actions))


def demonstrations(
    config: EnvConfig, *, seed: int, thoughts: bool, choose: Choose = any_action
) -> Iterator[tuple[Observation, str]]:
    """Endlessly (what the policy sees, an answer), episode after episode. Raises ConfigError for what is no game."""
    for number in range(2**62):
        yield from _episode(config, number, seed=seed, thoughts=thoughts, choose=choose)


def some_skill(skill: float) -> Choose:
    """Of `skill` of all turns the game's own hint, where it has one to give; else any action."""
    if not skill:
        return any_action

    def choose(game: Game, draw: random.Random) -> int:
        if not isinstance(game, Hinting):
            raise ConfigError(f"skill={skill}: {type(game).__name__} has no hints to show skill with; use skill: 0")
        best = game.hint() if draw.random() < skill else None
        return any_action(game, draw) if best is None else best

    return choose


def demonstration(seed: int, index: int, *, config: EnvConfig, thoughts: bool, skill: float) -> dict[str, Any]:
    """Row `index` of the data source `demonstrations`: a turn of an episode. What the policy sees is the problem, and each
    time that it is seen a variant; turns of a short episode come again as the variants that they were. Raises ConfigError
    for what is no game.
    """
    number, turn = divmod(index, config.turns)
    episode = _remembered(config.model_dump_json(), number, seed, thoughts, skill)
    place = turn % len(episode)
    shown, answer = episode[place]
    variant, messages = f"{number}/{place}", [dict(message) for message in shown.messages]
    seen = json.dumps([messages, [item.hash for item in shown.media]], ensure_ascii=False)
    return {
        "id": f"{config.name}/{seed}/{variant}", "problem": messages, "answer": answer, "completion": answer,
        "identity": seen, "variant": variant, **({"images": [item.data for item in shown.media]} if shown.media else {}),
    }  # fmt: skip


@lru_cache(maxsize=2)  # rows are made in order, so that an episode is asked for once a turn
def _remembered(
    config: str, number: int, seed: int, thoughts: bool, skill: float
) -> tuple[tuple[Observation, str], ...]:
    settings = EnvConfig.model_validate_json(config)
    return tuple(_episode(settings, number, seed=seed, thoughts=thoughts, choose=some_skill(skill)))


def _episode(
    config: EnvConfig, number: int, *, seed: int, thoughts: bool, choose: Choose
) -> Iterator[tuple[Observation, str]]:
    make = load(check_environment(config))
    own = key(seed, "demonstrations", number)
    environment = make(prompt=Prompt(id=f"demo/{number}", tokens=(), text=""), seed=own, **config.args)
    if not isinstance(environment, Played):
        raise ConfigError(f"env.name={config.name} has no list of actions to demonstrate; write your own examples")
    draw, shown = random.Random(f"{own} actions"), environment.start()  # not the draws that made the level
    rules = shown.messages[0]
    try:
        for _ in range(config.turns):
            game = environment.game
            action = game.actions[choose(game, draw)]
            said = {"thoughts": " ".join(game.words(seen=False).split())} if thoughts else {}
            answer = json.dumps({**said, "action": action}, ensure_ascii=False)
            messages = shown.messages if shown.messages[0] is rules else (rules, *shown.messages)
            yield Observation(messages=messages, media=shown.media), answer
            turn = environment.act(Completion(tokens=(), logprobs=(), text=answer, status=Status.done()))
            if turn.next is None or turn.truncated:
                break
            shown = turn.next
    finally:
        environment.close()


def write_demonstrations(
    config: EnvConfig, file: Path, *, rows: int, seed: int = 0, thoughts: bool = True, choose: Choose | None = None
) -> Path:
    """A .jsonl file of `rows` examples for an sft stage, its pictures in a folder beside it. They are all different, unless
    `choose` names the actions: how often it names each is then what is learnt.
    """
    lines: list[str] = []
    known: set[str] = set()
    pictures = file.with_suffix("")
    misses = 0
    for shown, answer in demonstrations(config, seed=seed, thoughts=thoughts, choose=choose or any_action):
        turns = [{"role": m["role"], "content": words(m["content"])} for m in shown.messages]
        row: dict[str, Any] = {"messages": [*turns, {"role": "assistant", "content": answer}]}
        for item in shown.media:
            pictures.mkdir(parents=True, exist_ok=True)
            path = pictures / f"{item.hash}.png"
            if not path.exists():
                with replacing(path) as partial:
                    partial.write_bytes(item.data)
            row.setdefault("images", []).append(f"{pictures.name}/{path.name}")
        line = json.dumps(row, ensure_ascii=False)
        misses = misses + 1 if line in known else 0
        if line not in known or choose is not None:
            lines.append(line)
        known.add(line)
        if len(lines) == rows or (misses > 2000 and choose is None):  # a small game has only so many states
            break
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(f"{line}\n" for line in lines))
    return file
