"""The reference engine: batched generation with the plain Hugging Face model. Slow, short, and easy to trust."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from llmrl.batch import Picture
from llmrl.data.pictures import load_pictures
from llmrl.policy.loading import ending_tokens, open_causal_lm
from llmrl.policy.vision import seen
from llmrl.rollout.draw import processed_logprobs
from llmrl.rollout.engine import ChecksumRequest, EngineSettings, collect, readable, seen_through, written
from llmrl.rollout.verify import checksums, copy_weights
from llmrl.types import Completion, Request, Status

if TYPE_CHECKING:
    from torch import Tensor


class HFEngine:
    """Left-padded batches of at most `max_sequences` requests with a KV cache.

    Every request draws from its own generator, keyed by its seed, so that a completion does not depend on its batch.
    """

    def __init__(self, settings: EngineSettings) -> None:
        from transformers import AutoTokenizer

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, _ = open_causal_lm(settings.model, getattr(torch, settings.dtype))
        self._model: Any = model.to(self._device).eval()
        self._reader = load_pictures(settings.model)
        self._tokenizer = AutoTokenizer.from_pretrained(settings.model, trust_remote_code=False)
        self._settings = settings
        self._ends = frozenset(ending_tokens(self._model, self._tokenizer))

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        readable(requests, self._reader, self._settings.model)
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].tokens))
        for start in range(0, len(order), self._settings.max_sequences):
            chosen = order[start : start + self._settings.max_sequences]
            yield None
            yield from zip(chosen, self._generate_batch([requests[index] for index in chosen]), strict=True)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return collect(self, requests)

    @torch.no_grad()
    def _generate_batch(self, requests: Sequence[Request]) -> list[Completion]:
        longest = max(len(request.tokens) for request in requests)
        fill = next(iter(self._ends), 0)
        rows = [[fill] * (longest - len(r.tokens)) + list(r.tokens) for r in requests]
        attention = torch.tensor([[0] * (longest - len(r.tokens)) + [1] * len(r.tokens) for r in requests])
        attention = attention.to(self._device)
        tokens = torch.tensor(rows, device=self._device)
        position = (attention.cumsum(1) - 1).clamp_min(0)
        draws = [_RowState(request, self._tokenizer, self._ends, self._room(request)) for request in requests]
        cache: Any = None
        shown = seen(self._model, self._pictures(requests), self._device)
        while not all(draw.finished for draw in draws):
            out = self._model(
                input_ids=tokens, attention_mask=attention, position_ids=position, past_key_values=cache,
                use_cache=True, **shown,
            )  # fmt: skip
            cache, shown = out.past_key_values, {}
            logits = out.logits[:, -1].float()
            chosen = [draw.advance(row, fill) for draw, row in zip(draws, logits, strict=True)]
            tokens = torch.tensor(chosen, device=self._device)[:, None]
            attention = torch.cat([attention, attention.new_ones(len(draws), 1)], dim=1)
            position = position[:, -1:] + 1
        return [seen_through(draw.completion(), self._reader) for draw in draws]

    def _pictures(self, requests: Sequence[Request]) -> list[Picture]:
        if self._reader is None:
            return []
        return [picture for request in requests for picture in self._reader.read(request.media)]

    def _room(self, request: Request) -> int:
        return min(request.sampling.max_tokens, self._settings.max_length - len(request.tokens))

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        copy_weights(self._model, weights, source=self._settings.model)

    def checksums(self, request: ChecksumRequest) -> dict[str, int]:
        return checksums(self._model, request)

    def close(self) -> None:
        self._model = None


class _RowState:
    """One request while it is being generated."""

    def __init__(self, request: Request, tokenizer: Any, ends: frozenset[int], room: int) -> None:
        self._sampling = request.sampling
        self._tokenizer = tokenizer
        self._ends = ends
        self._room = room
        self._generator = torch.Generator()
        if request.sampling.seed is not None:
            self._generator.manual_seed(request.sampling.seed)
        else:
            self._generator.seed()
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self.finished = room <= 0
        self._truncated = self.finished

    def advance(self, logits: Tensor, fill: int) -> int:
        """Draw the next token from `logits` [V]; once finished, `fill`."""
        if self.finished:
            return fill
        logits = logits.cpu()
        if len(self._tokens) < self._sampling.min_tokens:
            logits = logits.index_fill(0, torch.tensor(sorted(self._ends)), float("-inf"))
        logprobs = processed_logprobs(logits, self._sampling)
        if self._sampling.temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial(logprobs.exp(), 1, generator=self._generator))
        self._tokens.append(token)
        self._logprobs.append(float(logprobs[token]))
        stopped = token in self._ends or any(stop in self._text() for stop in self._sampling.stop)
        self._truncated = not stopped and len(self._tokens) >= self._room
        self.finished = stopped or self._truncated
        return token

    def _text(self) -> str:
        ended = bool(self._tokens) and self._tokens[-1] in self._ends
        return written(self._tokenizer, self._tokens, self._sampling, ended=ended)

    def completion(self) -> Completion:
        return Completion(
            tokens=tuple(self._tokens),
            logprobs=tuple(self._logprobs),
            text=self._text(),
            status=Status.truncated() if self._truncated else Status.done(),
        )
