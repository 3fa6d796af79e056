"""A byte tokenizer, an engine that says what it is told, and prompts: all that the runner needs, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from llmrl.errors import EngineError
from llmrl.rollout.pool import EnginePool
from llmrl.types import Completion, Prompt, Request, Status

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


_OPEN: list[EnginePool] = []


def opened(pool: EnginePool) -> EnginePool:
    """`pool`, which `pools_closed` closes."""
    _OPEN.append(pool)
    return pool


@pytest.fixture
def pools_closed() -> Iterator[None]:
    yield
    while _OPEN:
        _OPEN.pop().close()


def byte_tokenizer(*, chat: bool = True) -> Any:
    """One token a byte; with a small chat template or none."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<end>", *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    if chat:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def prompt(number: int, answer: str = "", **columns: Any) -> Prompt:
    """Question number `number`; its only token is its number."""
    return Prompt(id=f"q{number}", tokens=(number,), text=f"question {number}", answer=answer, columns=columns)


class FakeEngine:
    """Answers `say(first prompt token, seed)`; streams in reverse order; may die after `dies_after` completions."""

    def __init__(self, say: Callable[[int, int | None], str | Status], *, dies_after: int | None = None) -> None:
        self.say = say
        self.dies_after = dies_after
        self.asked: list[Request] = []
        self.closed = False

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        self.asked += requests
        for count, place in enumerate(reversed(range(len(requests)))):
            if self.dies_after is not None and count >= self.dies_after:
                raise EngineError("the engine died")
            yield None
            request = requests[place]
            yield place, self.complete(request)

    def complete(self, request: Request) -> Completion:
        said = self.say(request.tokens[0], request.sampling.seed)
        if isinstance(said, Status):
            return Completion(tokens=(), logprobs=(), text="", status=said)
        cut = len(said) > request.sampling.max_tokens
        text = said[: request.sampling.max_tokens]
        status = Status.truncated() if cut else Status.done()
        return Completion(tokens=tuple(text.encode()), logprobs=(-0.5,) * len(text.encode()), text=text, status=status)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.asked += requests
        return [self.complete(request) for request in requests]

    def load(self, weights: Any, *, version: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True
