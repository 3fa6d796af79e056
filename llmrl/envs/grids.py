"""Worlds on a grid of characters: FrozenLake and Sokoban, as text or as coloured tiles."""

from __future__ import annotations

import json
import os
import random
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llmrl.envs.game import Step, played
from llmrl.envs.pictures import tiles

if TYPE_CHECKING:
    from PIL.Image import Image

Place = tuple[int, int]  # row, column
MOVES: dict[str, Place] = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
S = TypeVar("S", bound=Hashable)


def shortest(
    start: S, moves: Callable[[S], Iterable[tuple[int, S]]], done: Callable[[S], bool], *, most: int = 200_000
) -> list[int] | None:
    """The fewest moves from `start` to a state that is `done`, by breadth-first search; None if `most` states hold none."""
    seen: set[S] = {start}
    queue: deque[tuple[S, tuple[int, ...]]] = deque([(start, ())])
    while queue and len(seen) < most:
        state, path = queue.popleft()
        if done(state):
            return list(path)
        for action, after in moves(state):
            if after not in seen:
                seen.add(after)
                queue.append((after, (*path, action)))
    return None


@dataclass(slots=True, kw_only=True)
class FrozenLake:
    """Walk over ice from S to the goal G and into no hole H: 1 at the goal, which ends the game as a hole does.

    `edge` is the lake's, `holes` the share of squares that are holes (there is always a way). On `slippery` ice a step
    goes where it should, or to either side, each with chance 1/3. The game is cut after 4 * edge^2 steps. As in
    gymnasium's FrozenLake-v1, whose maps are fixed. `size` is the picture's edge in pixels.
    """

    seed: int
    edge: int = 4
    holes: float = 0.2
    slippery: bool = False
    size: int = 64
    actions: tuple[str, ...] = tuple(MOVES)
    draw: random.Random = field(init=False)
    map: tuple[str, ...] = field(init=False)
    at: Place = (0, 0)
    steps: int = 0

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        while True:
            squares = ["H" if self.draw.random() < self.holes else "." for _ in range(self.edge**2)]
            squares[0], squares[-1] = "S", "G"
            self.map = tuple("".join(squares[i : i + self.edge]) for i in range(0, len(squares), self.edge))
            if self.way() is not None:
                return

    def way(self) -> list[int] | None:
        """The shortest way to the goal from here, if the ice does not slip."""

        def moves(at: Place) -> Iterable[tuple[int, Place]]:
            after = ((action, self._after(at, action)) for action in range(4))
            return [(action, place) for action, place in after if self._square(place) != "H"]

        return shortest(self.at, moves, lambda at: self._square(at) == "G")

    def hint(self) -> int | None:
        return next(iter(self.way() or ()), None)

    def rules(self) -> str:
        return "Cross the frozen lake from S to G. H is a hole: stay out. You are at @. Actions: left, down, right, up."

    def words(self, *, seen: bool) -> str:
        return "" if seen else "\n".join(self._shown())

    def frame(self) -> Image:
        look = {".": ("white", ""), "S": ("white", ""), "H": ("black", ""), "G": ("green", ""), "@": ("white", "red")}
        return tiles(self._shown(), look, tile=max(4, self.size // self.edge))

    def act(self, action: int) -> Step:
        if self.slippery:
            action = (action + self.draw.choice((-1, 0, 1))) % 4  # the two sides are the neighbours in MOVES
        self.at = self._after(self.at, action)
        self.steps += 1
        here = self._square(self.at)
        if here in "GH":
            return Step(reward=float(here == "G"), over=True, success=here == "G")
        return Step(cut=self.steps >= 4 * self.edge**2)

    def _after(self, at: Place, action: int) -> Place:
        down, right = MOVES[self.actions[action]]
        return min(self.edge - 1, max(0, at[0] + down)), min(self.edge - 1, max(0, at[1] + right))

    def _square(self, at: Place) -> str:
        return self.map[at[0]][at[1]]

    def _shown(self) -> list[str]:
        row, column = self.at
        return [line[:column] + "@" + line[column + 1 :] if y == row else line for y, line in enumerate(self.map)]


@dataclass(slots=True, kw_only=True)
class Sokoban:
    """Push every box $ onto a target `.` (a box there is *, you are @, or + on a target).

    `step_cost` off every step, 1 for a box onto a target, -1 for one off it, 10 at the end (Racaniere et al. 2017,
    arXiv:1707.06203). Levels are drawn by the seed from `levels`, a file of {"level": ...} lines such as Boxoban's; or,
    without one, made with `boxes` boxes in a room of `edge` squares, by pulling them from their targets. The game is cut
    after 12 * edge steps. `size` is the picture's edge in pixels.
    """

    seed: int
    levels: str = ""
    boxes: int = 1
    edge: int = 5
    step_cost: float = 0.1
    size: int = 80
    actions: tuple[str, ...] = tuple(MOVES)
    walls: frozenset[Place] = field(init=False)
    targets: frozenset[Place] = field(init=False)
    crates: frozenset[Place] = field(init=False)
    at: Place = field(init=False)
    lines: tuple[str, ...] = field(init=False)
    steps: int = 0

    def __post_init__(self) -> None:
        draw = random.Random(self.seed)
        self.lines = draw.choice(read_levels(self.levels)) if self.levels else _made(draw, self.edge, self.boxes)
        found = {(y, x): character for y, line in enumerate(self.lines) for x, character in enumerate(line)}
        self.walls = frozenset(place for place, character in found.items() if character == "#")
        self.targets = frozenset(place for place, character in found.items() if character in ".*+")
        self.crates = frozenset(place for place, character in found.items() if character in "$*")
        self.at = next(place for place, character in found.items() if character in "@+")

    def way(self, *, most: int = 200_000) -> list[int] | None:
        """The fewest moves that put every box onto a target, if a search over `most` states finds any."""

        def moves(state: tuple[Place, frozenset[Place]]) -> Iterable[tuple[int, tuple[Place, frozenset[Place]]]]:
            after = ((action, self._after(*state, action)) for action in range(4))
            return [(action, found) for action, found in after if not any(map(self._stuck, found[1] - state[1]))]

        return shortest((self.at, self.crates), moves, lambda state: state[1] == self.targets, most=most)

    def hint(self) -> int | None:
        return next(iter(self.way() or ()), None)

    def rules(self) -> str:
        return (
            "Push every box onto a target. # wall, $ box, . target, * box on target, @ you, + you on target. "
            "Actions: left, down, right, up."
        )

    def words(self, *, seen: bool) -> str:
        return "" if seen else "\n".join(self._shown())

    def frame(self) -> Image:
        look = {
            "#": ("dimgray", ""), " ": ("white", ""), ".": ("salmon", ""), "$": ("white", "brown"),
            "*": ("salmon", "brown"), "@": ("white", "green"), "+": ("salmon", "green"),
        }  # fmt: skip
        return tiles(self._shown(), look, tile=max(4, self.size // max(map(len, self.lines))))

    def act(self, action: int) -> Step:
        before = len(self.crates & self.targets)
        self.at, self.crates = self._after(self.at, self.crates, action)
        self.steps += 1
        gained = len(self.crates & self.targets) - before
        won = self.crates == self.targets
        reward = gained - self.step_cost + (10.0 if won else 0.0)
        return Step(reward=reward, over=won, success=won, cut=not won and self.steps >= 12 * len(self.lines))

    def _after(self, at: Place, crates: frozenset[Place], action: int) -> tuple[Place, frozenset[Place]]:
        down, right = MOVES[self.actions[action]]
        there, beyond = (at[0] + down, at[1] + right), (at[0] + 2 * down, at[1] + 2 * right)
        if there in self.walls or (there in crates and (beyond in self.walls or beyond in crates)):
            return at, crates
        return there, crates - {there} | {beyond} if there in crates else crates

    def _stuck(self, box: Place) -> bool:
        """Whether a box lies in a corner that is no target: it will never leave it."""
        row, column = box
        upright = (row - 1, column) in self.walls or (row + 1, column) in self.walls
        sideways = (row, column - 1) in self.walls or (row, column + 1) in self.walls
        return box not in self.targets and upright and sideways

    def _shown(self) -> list[str]:
        def character(place: Place) -> str:
            if place in self.walls:
                return "#"
            if place == self.at:
                return "+" if place in self.targets else "@"
            if place in self.crates:
                return "*" if place in self.targets else "$"
            return "." if place in self.targets else " "

        return ["".join(character((y, x)) for x in range(len(line))) for y, line in enumerate(self.lines)]


@cache
def read_levels(path: str) -> tuple[tuple[str, ...], ...]:
    """The levels of a .jsonl file, each a tuple of lines. `$LLMRL_DATA` may stand in the path."""
    lines = Path(os.path.expandvars(path)).expanduser().read_text(encoding="utf-8").splitlines()
    return tuple(tuple(json.loads(line)["level"].split("\n")) for line in lines)


def _made(draw: random.Random, edge: int, boxes: int) -> tuple[str, ...]:
    """A room with walls around it, boxes pulled away from their targets at random, so that pushing can put them back."""
    floor = [(y, x) for y in range(1, edge + 1) for x in range(1, edge + 1)]
    while True:
        *targets, at = draw.sample(floor, boxes + 1)
        crates = set(targets)
        for _ in range(20 * boxes * edge):
            down, right = MOVES[draw.choice(list(MOVES))]
            there, behind = (at[0] + down, at[1] + right), (at[0] - down, at[1] - right)
            if there in crates or there not in floor:
                continue
            if behind in crates and draw.random() < 0.7:
                crates = crates - {behind} | {at}
            at = there
        if not crates & set(targets):
            break
    look = {place: "." for place in targets} | {place: "$" for place in crates}
    look[at] = "+" if at in targets else "@"
    wide = range(edge + 2)
    return tuple("".join(look.get((y, x), " " if (y, x) in floor else "#") for x in wide) for y in wide)


frozen_lake, sokoban = played(FrozenLake), played(Sokoban)
