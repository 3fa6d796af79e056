"""Drawing tokens from logits: one uniform number a row, keyed by (request seed, position), and the inverse CDF.

A draw needs one number instead of one per vocabulary entry, and is the same whatever other rows are in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmrl.types import Sampling

CHUNK_ELEMENTS = 1024 * 1024  # float32 logits handled at once: they stay in a core's cache
BLOCK = 256  # the cumulative sum is taken over blocks first, in float64


def uniforms(seeds: Sequence[int], numbers: Sequence[int]) -> Tensor:
    """One number in [0, 1) for each (seed, number), float64 [N]: SplitMix64 (Steele et al. 2014) of both."""
    state = _mixed(np.array(seeds, dtype=np.uint64)) + np.array(numbers, dtype=np.uint64)
    return torch.from_numpy((_mixed(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mixed(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = x ^ (x >> np.uint64(31))
        return mixed


def draw_tokens(
    logits: Tensor, settings: Sequence[Sampling], numbers: Sequence[int], *, ends: Sequence[int]
) -> tuple[list[int], list[float]]:
    """A token for each row of `logits` [N, V] and its log-probability under the distribution it was drawn from.

    `numbers` are the tokens that each row has already drawn; before `min_tokens` those in `ends` have probability 0.
    A request without a seed draws from torch's global generator.
    """
    seeds = [s.seed if s.seed is not None else int(torch.randint(2**62, ())) for s in settings]
    points = uniforms(seeds, numbers).to(logits.device)
    greedy = torch.tensor([s.temperature == 0 for s in settings], device=logits.device)
    scale = torch.tensor([s.temperature or 1.0 for s in settings], device=logits.device)
    plain = all(s.temperature in (0.0, 1.0) for s in settings)
    tokens, logprobs = [], []
    size = max(1, CHUNK_ELEMENTS // logits.shape[1])
    for start in range(0, len(settings), size):
        part = slice(start, min(start + size, len(settings)))
        values = logits[part]
        held = [number < setting.min_tokens for setting, number in zip(settings[part], numbers[part])]
        if any(held) and ends:
            values = values.clone()
            values[torch.tensor(held).nonzero(), torch.tensor(ends)] = float("-inf")
        if any(_cuts(setting) for setting in settings[part]):
            values = torch.stack([_cut(*row) for row in zip(values, settings[part])])
        if not plain:
            values = values.float() / scale[part, None]
        chosen, value = _drawn(values, points[part], greedy[part])
        tokens.append(chosen)
        logprobs.append(value)
    return torch.cat(tokens).tolist(), torch.cat(logprobs).tolist()


def _cuts(setting: Sampling) -> bool:
    return setting.top_k > 0 or setting.top_p < 1 or setting.min_p > 0


def _cut(logits: Tensor, setting: Sampling) -> Tensor:
    """logits [V] -> float32 logits [V], -inf where the settings cut; the temperature is still to be applied."""
    return processed_logprobs(logits, setting) * (setting.temperature or 1.0) if _cuts(setting) else logits.float()


def _drawn(logits: Tensor, points: Tensor, greedy: Tensor) -> tuple[Tensor, Tensor]:
    """logits [N, V], points [N] in [0, 1) -> tokens [N], log-probabilities [N] float32."""
    rows, vocabulary = logits.shape
    weights = logits.softmax(-1, dtype=torch.float32)
    if vocabulary % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -vocabulary % BLOCK))
    by_block = weights.view(rows, -1, BLOCK)
    blocks = by_block.sum(-1).double().cumsum(-1)
    target = points * blocks[:, -1]
    block = (blocks <= target[:, None]).sum(-1).clamp_max(blocks.shape[1] - 1)
    before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp_min(0)[:, None]).squeeze(1), 0.0)
    inside = by_block[torch.arange(rows, device=logits.device), block].double()
    last = BLOCK - 1 - (inside > 0).flip(1).int().argmax(1)  # rounding must not lead past the last possible token
    place = (inside.cumsum(-1) <= (target - before)[:, None]).sum(-1).minimum(last)
    tokens = block * BLOCK + place
    if bool(greedy.any()):
        tokens = torch.where(greedy, logits.argmax(-1), tokens)
    return tokens, weights.gather(1, tokens[:, None]).squeeze(1).log()


def processed_logprobs(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities [V] that are sampled from: temperature, then top-k, top-p and min-p, renormalised.

    At temperature 0 they are those at temperature 1, since a greedy choice has no distribution of its own.
    """
    logits = logits.float() / (sampling.temperature or 1.0)
    if sampling.temperature == 0:
        return logits.log_softmax(-1)
    if sampling.top_k > 0:
        kth = logits.topk(min(sampling.top_k, logits.numel())).values[-1]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if sampling.top_p < 1:
        values, order = logits.softmax(-1).sort(descending=True)
        dropped = values.cumsum(-1) - values >= sampling.top_p  # the token that crosses top_p stays
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(0, order, dropped), float("-inf"))
    if sampling.min_p > 0:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < sampling.min_p * probabilities.max(), float("-inf"))
    return logits.log_softmax(-1)
