"""Rendered frames to learn to see on: shapes, numbers and letters in colours on a plain ground, drawn with Pillow.

Frame i depends on the seed and on i alone. A frame knows what lies where, in words, so that it teaches twice: every part
of the picture by the word for it (`words`), and the whole by questions with answers (the generator `frames`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from llmrl.seeding import generator

COLOURS = {
    "red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 60, 220), "yellow": (235, 210, 40),
    "purple": (150, 50, 180), "grey": (120, 120, 120), "orange": (240, 140, 30),
}  # fmt: skip
GROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0)}
SHAPES = ("disc", "square", "triangle")
SIGNS = (*map(str, range(14)), "A", "J", "Q", "K", "+", "-", "*", "=")
EDGE = 64  # pixels of a frame
ROWS, COLUMNS = ("top", "upper", "lower", "bottom"), ("left", "left middle", "right middle", "right")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A shape or a sign of one colour; `x` and `y` are its middle and `size` its height, in pixels."""

    what: str
    colour: str
    x: int
    y: int
    size: int

    @property
    def word(self) -> str:
        """What it is, in one word: a sign by itself, a shape by its colour."""
        return self.colour if self.what in SHAPES else self.what

    @property
    def name(self) -> str:
        return f"{self.colour} {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A plain ground with things on it that do not overlap."""

    ground: str
    things: tuple[Thing, ...]

    def image(self) -> Any:
        """The PIL image, EDGE x EDGE pixels."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (EDGE, EDGE), GROUNDS[self.ground])
        draw = ImageDraw.Draw(image)
        for thing in self.things:
            _draw(draw, thing)
        return image

    def words(self, parts: int) -> list[str]:
        """A word for each of `parts` x `parts` parts of the picture, row by row: of the thing whose middle is in it, or of
        one that reaches into it, or of the ground.
        """
        width = EDGE / parts
        found = []
        for row in range(parts):
            for column in range(parts):
                middle = ((column + 0.5) * width, (row + 0.5) * width)
                gaps = [(max(abs(t.x - middle[0]), abs(t.y - middle[1])), t) for t in self.things]
                near = [(gap, t.word) for gap, t in gaps if gap < width / 2 + t.size / 3]
                found.append(min(near)[1] if near else self.ground)
        return found


def _draw(draw: Any, thing: Thing) -> None:
    colour, half = COLOURS[thing.colour], thing.size / 2
    box = [thing.x - half, thing.y - half, thing.x + half, thing.y + half]
    if thing.what == "disc":
        draw.ellipse(box, fill=colour)
    elif thing.what == "square":
        draw.rectangle(box, fill=colour)
    elif thing.what == "triangle":
        draw.polygon([(box[0], box[3]), (box[2], box[3]), (thing.x, box[1])], fill=colour)
    else:
        draw.text((thing.x, thing.y), thing.what, fill=colour, font=_font(thing.size), anchor="mm")


@cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def make_frame(rng: random.Random, *, most: int = 4) -> Frame:
    """1 to `most` things of different names in places that do not touch."""
    ground = rng.choices(list(GROUNDS), weights=(3, 1))[0]
    things: list[Thing] = []
    for _ in range(rng.randint(1, most)):
        for _ in range(20):
            size = rng.randint(9, 20)
            x, y = (rng.randint(size // 2 + 1, EDGE - size // 2 - 1) for _ in range(2))
            what = rng.choice(SIGNS) if rng.random() < 0.6 else rng.choice(SHAPES)
            thing = Thing(what=what, colour=rng.choice(list(COLOURS)), x=x, y=y, size=size)
            apart = all(max(abs(x - t.x), abs(y - t.y)) > (size + t.size) / 2 + 2 for t in things)
            if apart and thing.name not in {t.name for t in things}:
                things.append(thing)
                break
    return Frame(ground=ground, things=tuple(things))


def frames(seed: int, index: int, *, most: int = 4) -> dict[str, Any]:
    """A frame and a question about it: what a sign or a colour is, where it is, which is further left, how many there are.

    >>> row = frames(0, 0)
    >>> row["images"][0].size, bool(row["answer"])
    ((64, 64), True)
    """
    rng = generator(seed, "frames", index)
    frame = make_frame(rng, most=most)
    question, answer = _question(rng, frame)
    return {
        "id": f"frames/{seed}/{index}",
        "prompt": question,
        "answer": answer,
        "images": [frame.image()],
        "identity": f"{seed}/{index}",
    }


def _question(rng: random.Random, frame: Frame) -> tuple[str, str]:
    things = frame.things
    thing = rng.choice(things)
    asked = [("How many things are there?", str(len(things)))]
    place = f"{ROWS[thing.y * 4 // EDGE]} {COLUMNS[thing.x * 4 // EDGE]}"
    if _only(things, "name", thing):
        asked += [(f"Where is the {thing.name}?", place)] * 2
    if _only(things, "what", thing):
        asked += [(f"What colour is the {thing.what}?", thing.colour)] * 2
    if _only(things, "colour", thing):
        asked += [(f"What is {thing.colour}?", thing.what)] * 4
    if len(things) > 1:
        first, second = rng.sample(things, 2)
        if abs(first.x - second.x) > 4:
            nearer = min((first, second), key=lambda one: one.x)
            asked.append((f"Which is further left, the {first.name} or the {second.name}?", nearer.name))
        if abs(first.y - second.y) > 4:
            higher = min((first, second), key=lambda one: one.y)
            asked.append((f"Which is higher, the {first.name} or the {second.name}?", higher.name))
    return rng.choice(asked)


def _only(things: Sequence[Thing], name: str, thing: Thing) -> bool:
    return sum(getattr(one, name) == getattr(thing, name) for one in things) == 1
