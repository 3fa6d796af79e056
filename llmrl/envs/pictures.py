"""Pictures of small worlds, with Pillow: a white canvas, playing cards, a grid of tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

RANKS = {1: "A", 11: "J", 12: "Q", 13: "K"}


def canvas(width: int, height: int) -> tuple[Image, Any, Any]:
    """(white RGB image, what draws on it, a font that suits it)."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    image = Pillow.new("RGB", (width, height), "white")
    return image, ImageDraw.Draw(image), _font(max(8, min(width, height) // 6))


@cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def cards(hands: Sequence[Sequence[int | None]], *, size: int, below: str = "") -> Image:
    """Rows of cards by rank (1 to 13; None lies face down), with a line of text under them; `size` is the edge."""
    image, draw, _ = canvas(size, size)
    rows = len(hands) + bool(below)
    high, gap = size / rows, size / 24
    for row, hand in enumerate(hands):
        wide = min(size / max(3, len(hand)), high)
        font = _font(max(8, int(wide / 2)))
        for place, rank in enumerate(hand):
            box = [place * wide + gap / 2, row * high + gap, (place + 1) * wide - gap / 2, (row + 1) * high - gap]
            draw.rectangle(box, outline="black", fill="white" if rank else "navy")
            if rank:
                middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
                draw.text(middle, RANKS.get(rank, str(rank)), fill="red", font=font, anchor="mm")
    if below:
        draw.text((gap, len(hands) * high + gap), below, fill="black", font=_font(max(8, size // 8)))
    return image


def tiles(rows: Sequence[str], look: Mapping[str, tuple[str, str]], *, tile: int) -> Image:
    """A map of characters as squares of `tile` pixels. `look`: character -> (colour of the square, of a disc on it or "")."""
    image, draw, _ = canvas(tile * max(map(len, rows)), tile * len(rows))
    for y, row in enumerate(rows):
        for x, character in enumerate(row):
            ground, disc = look[character]
            box = [x * tile, y * tile, (x + 1) * tile - 1, (y + 1) * tile - 1]
            draw.rectangle(box, fill=ground, outline="gray")
            if disc:
                draw.ellipse([box[0] + tile / 5, box[1] + tile / 5, box[2] - tile / 5, box[3] - tile / 5], fill=disc)
    return image
