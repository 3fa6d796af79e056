"""Generation with the trained model itself: a KV cache over the Hugging Face model, prompts shared by siblings.

The engine for a CPU. It works on the very weights that train, so nothing is copied after an update, no second process
holds a second model, and the sampler's numbers are the trainer's. A prompt runs once for all its siblings, and what
several prompts begin with once for all of them; a decoding step is one forward pass over the newest token of every live
row, packed without padding:

    prompts  [P0 P1 | Q0 Q1 Q2]  ->  step  [a | b | c | d]  ->  step  [a | c | d]   (b has ended)

A row attends to its group's prompt and to its own tokens. Draws are keyed by (request seed, position), so a completion
depends neither on the other rows nor on how requests are cut into batches, up to rounding of the logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmrl.batch import Picture
from llmrl.data.pictures import PictureReader, load_pictures
from llmrl.errors import EngineError
from llmrl.policy.decode import KVCache, decoding_attention
from llmrl.policy.fused import FusedDecoder
from llmrl.policy.head import output_logits
from llmrl.policy.loading import ending_tokens, open_causal_lm
from llmrl.policy.prepacked import prepacked_linears
from llmrl.policy.vision import seen, text_config
from llmrl.rollout.draw import draw_tokens
from llmrl.rollout.engine import ChecksumRequest, EngineSettings, collect, readable, seen_through, written
from llmrl.rollout.verify import checksums, copy_weights
from llmrl.types import Completion, Request, Status

_Hidden = Callable[[Tensor, Tensor, KVCache], Tensor]  # tokens [L], positions [L] -> hidden states [L, D]
PREFILL_TOKENS = 8192  # prompt tokens of one forward pass
SPARE_SHARE = 16  # ended rows are carried along until they are a sixteenth of the batch: dropping them copies the cache


@dataclass(slots=True, eq=False)
class _Row:
    """One request while it is being generated."""

    index: int
    request: Request
    room: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    truncated: bool = False
    ended: bool = False


class NativeEngine:
    """At most `settings.max_sequences` rows at once, refilled as rows end.

    `model` is the trainer's own causal LM, whose weights are then never copied; without it the model of `settings` is
    loaded and `load` copies weights into it. The model must pass `check_forward` for the packed forward.
    """

    def __init__(
        self, settings: EngineSettings, *, model: Any = None, tokenizer: Any = None, reader: PictureReader | None = None
    ) -> None:
        self._shared = model is not None
        self._model: Any = _load(settings) if model is None else model
        self._reader = load_pictures(settings.model) if model is None else reader
        if tokenizer is None:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(settings.model, trust_remote_code=False)
        self._tokenizer = tokenizer
        self._settings = settings
        self._parts: list[torch.nn.Module] = []
        self._ends = sorted(ending_tokens(self._model, self._tokenizer))

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return collect(self, requests)

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        readable(requests, self._reader, self._settings.model)
        waiting = deque(self._groups(requests))
        live: list[_Row] = []
        cache: KVCache | None = None
        with prepacked_linears(self._model):
            self._parts = list(self._model.modules())
            newest = FusedDecoder.of(self._model) or self._hidden
            while waiting or live:
                cache = self._advanced(waiting, live, cache, newest)
                ended = [row for row in live if row.ended]
                if len(ended) * SPARE_SHARE > len(live) or len(ended) == len(live):
                    yield from ((row.index, self._completion(row)) for row in ended)
                    kept = [place for place, row in enumerate(live) if not row.ended]
                    live = [live[place] for place in kept]
                    cache = cache.kept(kept) if kept else None
                yield None

    def _advanced(
        self, waiting: deque[list[_Row]], live: list[_Row], cache: KVCache | None, newest: _Hidden
    ) -> KVCache:
        """Admit what fits beside the `live` rows, or draw one more token for each of them; returns their cache."""
        with self._generating():
            batch = self._admitted(waiting, len(live))
            if batch:
                live += [row for group in batch for row in group]
                fresh = self._prefill(batch)
                return fresh if cache is None else cache.joined(fresh)
            assert cache is not None
            self._step(live, cache, newest)
            return cache

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Nothing to do for the trainer's own model."""
        if not self._shared:
            copy_weights(self._model, weights, source=self._settings.model)

    def checksums(self, request: ChecksumRequest) -> dict[str, int]:
        return checksums(self._model, request)

    def close(self) -> None:
        self._model, self._parts = None, []

    def _groups(self, requests: Sequence[Request]) -> list[list[_Row]]:
        """Requests of one prompt together, at most `max_sequences` of them, in order of first appearance."""
        found: dict[tuple[Any, ...], list[_Row]] = {}
        for index, request in enumerate(requests):
            room = min(request.sampling.max_tokens, self._settings.max_length - len(request.tokens))
            if not request.tokens or room < 1:
                raise EngineError(
                    f"a prompt of {len(request.tokens)} tokens leaves no room in {self._settings.max_length}"
                )
            found.setdefault(request.prefix, []).append(_Row(index, request, room))
        most = self._settings.max_sequences
        return [rows[at : at + most] for rows in found.values() for at in range(0, len(rows), most)]

    def _admitted(self, waiting: deque[list[_Row]], live: int) -> list[list[_Row]]:
        """The next groups that fit beside `live` rows and into one prefill."""
        batch: list[list[_Row]] = []
        tokens = 0
        while waiting and live + len(waiting[0]) <= self._settings.max_sequences:
            tokens += len(waiting[0][0].request.tokens)
            if batch and tokens > PREFILL_TOKENS:
                break
            live += len(waiting[0])
            batch.append(waiting.popleft())
        return sorted(
            batch, key=lambda group: group[0].request.tokens
        )  # as they are packed, and their pictures with them

    @contextmanager
    def _generating(self) -> Iterator[None]:
        before = [vars(part)["training"] for part in self._parts]
        try:
            # The model's own switch walks through the tree and sets slow attributes: 3 ms a token for 30 layers.
            for part in self._parts:
                vars(part)["training"] = False
            with torch.no_grad(), decoding_attention(text_config(self._model)):
                yield
        finally:
            for part, training in zip(self._parts, before, strict=True):
                vars(part)["training"] = training

    def _prefill(self, groups: list[list[_Row]]) -> KVCache:
        """Run the prompts and draw every row's first token."""
        device = next(self._model.parameters()).device
        prompts = [group[0].request.tokens for group in groups]
        with_pictures = [place for place, group in enumerate(groups) if group[0].request.media]
        cache, tokens, positions = KVCache.of_prompts(
            prompts, [len(group) for group in groups], device=device, whole=with_pictures
        )
        assert cache.index is not None
        last = cache.index.gather(1, cache.prompt_length[:, None] - 1)[:, 0]
        shown: list[Picture] = []
        if self._reader is not None:
            shown = [picture for group in groups for picture in self._reader.read(group[0].request.media)]
        hidden = self._hidden(tokens, positions, cache, shown)
        logits = output_logits(self._model, hidden[last])
        self._draw([row for group in groups for row in group], logits[cache.group])
        return cache

    def _step(self, live: list[_Row], cache: KVCache, newest: _Hidden) -> None:
        device = cache.group.device
        tokens = torch.tensor([row.tokens[-1] for row in live], device=device)
        positions = torch.tensor([len(r.request.tokens) + len(r.tokens) - 1 for r in live], device=device)
        cache.extend()
        hidden = newest(tokens, positions, cache)
        self._draw(live, output_logits(self._model, hidden))

    def _hidden(self, tokens: Tensor, positions: Tensor, cache: KVCache, shown: Sequence[Picture] = ()) -> Tensor:
        out = self._model.base_model(
            input_ids=tokens[None], position_ids=positions[None], use_cache=False, decoding=cache,
            **seen(self._model, shown, tokens.device),
        )  # fmt: skip
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def _draw(self, rows: list[_Row], logits: Tensor) -> None:
        """The next token of every row that has not ended; `logits` [rows, V]."""
        settings = [row.request.sampling for row in rows]
        numbers = [len(row.tokens) for row in rows]
        tokens, logprobs = draw_tokens(logits, settings, numbers, ends=self._ends)
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if row.ended:
                continue
            row.tokens.append(token)
            row.logprobs.append(logprob)
            stopped = token in self._ends or self._met_stop(row)
            row.truncated = not stopped and len(row.tokens) >= row.room
            row.ended = stopped or row.truncated

    def _met_stop(self, row: _Row) -> bool:
        stop = row.request.sampling.stop
        return bool(stop) and any(text in self._text(row) for text in stop)

    def _text(self, row: _Row) -> str:
        return written(self._tokenizer, row.tokens, row.request.sampling, ended=row.tokens[-1] in self._ends)

    def _completion(self, row: _Row) -> Completion:
        made = Completion(
            tokens=tuple(row.tokens),
            logprobs=tuple(row.logprobs),
            text=self._text(row),
            status=Status.truncated() if row.truncated else Status.done(),
        )
        return seen_through(made, self._reader)


def _load(settings: EngineSettings) -> Any:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, _ = open_causal_lm(settings.model, getattr(torch, settings.dtype))
    return model.to(device).eval()
