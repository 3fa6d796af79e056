"""Conversations in tokens: what the policy sampled is never tokenised again.

A chat is [first observation][completion][what follows it][completion]...; observations are rendered by the chat template
once, completions stay the ids that the engine drew. The tokens between a completion and the next answer of the policy (end
of turn, the environment's messages, start of the next turn) are read off the template with a marker in the place of the
completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from llmrl.data.pictures import PictureReader
from llmrl.errors import ConfigError
from llmrl.types import Completion, Media, Message, Observation, Prompt

MARKER = "\u2063completion\u2063"  # an invisible separator on both sides: no template and no observation writes that


class Renderer:
    """Observations -> tokens, by `tokenizer`'s chat template, or as plain text lines where it has none."""

    def __init__(self, tokenizer: Any, *, chat: bool | None = None, reader: PictureReader | None = None) -> None:
        self._tokenizer = tokenizer
        self._reader = reader
        self._chat = bool(getattr(tokenizer, "chat_template", None)) if chat is None else chat
        self._followed = lru_cache(maxsize=4096)(self._follows)

    def first(self, messages: Sequence[Message], media: Sequence[Media] = ()) -> tuple[tuple[int, ...], str]:
        """(tokens, text) of a conversation that starts with `messages`, which show `media`, ready for the policy.

        Raises DataError if the messages have more or fewer places for images, ConfigError if the model has no eyes.
        """
        if self._chat:
            text = self._render(messages)
        else:
            text = "\n".join(self._plain(message["content"]) for message in messages) + "\n"
        tokens = tuple(self._tokenizer(text, add_special_tokens=not self._chat)["input_ids"])
        return self._expanded(tokens, media), text

    def following(
        self, completion: Completion, messages: Sequence[Message], media: Sequence[Media] = ()
    ) -> tuple[int, ...]:
        """The tokens between `completion` and the policy's next answer, `messages` among them."""
        key = tuple((str(message["role"]), _frozen(message["content"])) for message in messages)
        tokens = self._expanded(self._followed(key), media)
        if completion.tokens and tokens and completion.tokens[-1] == tokens[0]:
            return tokens[1:]  # the policy has ended its turn itself
        return tokens

    def tokens_before(self, completion: Completion, place: int) -> int:
        """How many of the completion's tokens end before the character `place` of its text."""
        low, high = 0, len(completion.tokens)
        while low < high:  # the longest run of tokens whose text does not reach beyond `place`
            middle = (low + high + 1) // 2
            text = self._tokenizer.decode(completion.tokens[:middle], skip_special_tokens=False)
            low, high = (middle, high) if len(text) <= place else (low, middle - 1)
        return low

    def _follows(self, key: tuple[tuple[str, Any], ...]) -> tuple[int, ...]:
        messages = [{"role": role, "content": _thawed(content)} for role, content in key]
        if not self._chat:
            text = "\n" + "\n".join(self._plain(message["content"]) for message in messages) + "\n"
        else:
            before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARKER}]
            text = self._render([*before, *messages]).rpartition(MARKER)[2]
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _expanded(self, tokens: tuple[int, ...], media: Sequence[Media]) -> tuple[int, ...]:
        if self._reader is not None:
            return self._reader.expand(tokens, media)
        if media:
            raise ConfigError(f"{len(media)} images are shown to a model that reads text only; take one that sees")
        return tokens

    def _plain(self, content: Any) -> str:
        """A message without a chat template."""
        image = self._reader.placeholder if self._reader is not None else ""
        return content if isinstance(content, str) else "".join(str(part.get("text", image)) for part in content)

    def _render(self, messages: Sequence[Message]) -> str:
        text: str = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
        return text


@dataclass(slots=True)
class Talk:
    """One episode's conversation as it grows. `window` is how many observations the policy sees; None: all of them."""

    renderer: Renderer
    prompt: Prompt
    window: int | None = None
    seen: list[Observation] = field(default_factory=list)
    said: list[Completion] = field(default_factory=list)

    def shows(self, observation: Observation | None) -> None:
        """The next observation; None is the prompt of the data row itself."""
        if observation is None:
            messages = self.prompt.messages or ({"role": "user", "content": self.prompt.text},)
            observation = Observation(messages=messages, media=self.prompt.media)
        self.seen.append(observation)

    def context(self) -> Prompt:
        """What the policy sees now: the row's prompt, with its tokens, text and pictures."""
        start = 0 if self.window is None else max(0, len(self.seen) - self.window)
        opening, media = self.seen[start].messages, self.seen[start].media
        if start:
            opening = (*(m for m in self.seen[0].messages if m["role"] == "system"), *opening)
        tokens, text = self._opening(start, opening, media)
        for place in range(start + 1, len(self.seen)):
            said, shown = self.said[place - 1], self.seen[place]
            tokens += said.tokens + self.renderer.following(said, shown.messages, shown.media)
            text += said.text + "".join(f"\n{m['role']}: {_words(m['content'])}\n" for m in shown.messages)
            media += shown.media
        return replace(self.prompt, tokens=tokens, text=text, media=media)

    def _opening(self, start: int, messages: Sequence[Message], media: Sequence[Media]) -> tuple[tuple[int, ...], str]:
        if start == 0 and messages == self.prompt.messages and self.prompt.tokens:
            return self.prompt.tokens, self.prompt.text
        if start == 0 and not self.prompt.messages and messages == ({"role": "user", "content": self.prompt.text},):
            return self.prompt.tokens, self.prompt.text
        return self.renderer.first(messages, media)


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", f"[{part.get('type')}]")) for part in content)


def _frozen(content: Any) -> Any:
    return content if isinstance(content, str) else tuple(tuple(sorted(part.items())) for part in content)


def _thawed(content: Any) -> Any:
    return content if isinstance(content, str) else [dict(part) for part in content]
