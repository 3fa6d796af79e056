"""What a vision-language model's processor makes of pictures: the tokens that stand for one, and the numbers it is read as.

In a prompt each picture is one placeholder token as the chat template writes it. `expand` puts the tokens of that picture
in its place, once, where the prompt is made: everything after (engines, trajectories, training) sees the expanded tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrl.errors import DataError
from llmrl.types import Media

if TYPE_CHECKING:
    from torch import Tensor

    from llmrl.batch import Picture

KEPT = 64  # pictures whose numbers are kept for the next call
OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def load_pictures(source: str) -> PictureReader | None:
    """The reader of the model in a local folder or hub id; None for a model without eyes."""
    if not sees(source):
        return None
    from transformers import AutoProcessor

    return PictureReader(AutoProcessor.from_pretrained(source, trust_remote_code=False))


def sees(source: str) -> bool:
    """Whether the model in a local folder has a vision tower, by its config.json."""
    config = Path(source) / "config.json"
    return config.is_file() and "vision_config" in json.loads(config.read_text())


class PictureReader:
    """`processor` is a transformers processor with an image token, such as Idefics3Processor."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.token: int = processor.image_token_id
        self.placeholder: str = processor.image_token
        self._of_size = lru_cache(maxsize=None)(self._tokens_of_size)
        self._size = lru_cache(maxsize=4096)(lambda media: media.open().size)
        self._read = lru_cache(maxsize=KEPT)(self._picture)

    def tokens(self, media: Media) -> tuple[int, ...]:
        """The tokens that stand for a picture; they depend on its size alone."""
        return self._of_size(self._size(media))

    def expand(self, tokens: Sequence[int], media: Sequence[Media]) -> tuple[int, ...]:
        """`tokens` with each placeholder replaced by the tokens of its picture, in order.

        Raises DataError if there are more or fewer placeholders than pictures.
        """
        count = sum(token == self.token for token in tokens)
        if count != len(media):
            raise DataError(
                f"a prompt has {count} places for images and {len(media)} images; its text must not contain "
                f"{self.placeholder} itself, and its chat template must write one for every image"
            )
        if not media:
            return tuple(tokens)
        found: list[int] = []
        waiting = iter(media)
        for token in tokens:
            found += self.tokens(next(waiting)) if token == self.token else (token,)
        return tuple(found)

    def collapse(self, tokens: Sequence[int], media: Sequence[Media]) -> tuple[int, ...]:
        """The inverse of `expand`, for an engine that expands by itself. Raises ValueError if `tokens` is no expansion."""
        found: list[int] = []
        start = 0
        for number, item in enumerate(media):
            own = self.tokens(item)
            ends = len(tokens) - len(own) + 1
            at = next((i for i in range(start, ends) if tuple(tokens[i : i + len(own)]) == own), None)
            if at is None:
                raise ValueError(f"the tokens of image {number} ({item.hash[:8]}) are not in the prompt")
            found += [*tokens[start:at], self.token]
            start = at + len(own)
        return (*found, *tokens[start:])

    def read(self, media: Sequence[Media]) -> tuple[Picture, ...]:
        """The pictures as the model's forward pass takes them."""
        return tuple(self._read(item) for item in media)

    def save_pretrained(self, folder: Path) -> None:
        """Write the processor, tokenizer included."""
        self._processor.save_pretrained(folder)

    def _picture(self, media: Media) -> Picture:
        from llmrl.batch import Picture

        return Picture(hash=media.hash, tensors=self._processed(media.open())[1])

    def _tokens_of_size(self, size: tuple[int, int]) -> tuple[int, ...]:
        from PIL import Image

        return self._processed(Image.new("RGB", size))[0]

    def _processed(self, image: Any) -> tuple[tuple[int, ...], Mapping[str, Tensor]]:
        made = self._processor(text=[self.placeholder], images=[image], add_special_tokens=False, return_tensors="pt")
        return tuple(made["input_ids"][0].tolist()), {name: x for name, x in made.items() if name not in OF_TEXT}
