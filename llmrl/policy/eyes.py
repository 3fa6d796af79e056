"""First lessons of a new vision tower: what each image token stands for, as a word of the language model.

The projector's output for a part of a picture is pulled towards the input embedding of the word for what is there, so that
the language model reads image tokens as words from the start. Only tower and projector train, and only they run: a
hundredth of the cost of a step through the language model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Lesson = tuple[Sequence[Any], Sequence[Sequence[str]]]  # pictures (PIL), and a word for each image token of each


def teach_words(
    model: Any, processor: Any, lessons: Callable[[int], Lesson], *, steps: int, lr: float = 1e-3,
    report: Callable[[int, float, float], None] | None = None,
) -> float:  # fmt: skip
    """Train tower and projector of `model` (float32) on `lessons(step)`; returns the share of words recognised at the end,
    the most common one (the ground) left out.

    The loss is cross-entropy over the words seen so far, of the dot products of outputs and word embeddings, plus the
    squared distance to the right one in units of its length; the most common word counts less. `report` gets step, loss
    and that share.
    """
    trained = [*model.model.vision_model.parameters(), *model.model.connector.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.01)
    vocabulary: dict[str, Tensor] = {}
    recognised = 0.0
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # products in bfloat16 where the machine has them
    try:
        for step in range(steps):
            pictures, words = lessons(step)
            for word in {word for one in words for word in one} - vocabulary.keys():
                vocabulary[word] = _embedding(model, processor.tokenizer, word)
            names = sorted(vocabulary)
            table = torch.stack([vocabulary[name] for name in names])
            wanted = torch.tensor([[names.index(word) for word in one] for one in words])
            pixels = processor.image_processor([[picture] for picture in pictures], return_tensors="pt")
            shown = {name: pixels[name] for name in ("pixel_values", "pixel_attention_mask")}
            out = model.model.get_image_features(**shown, return_dict=True).pooler_output.float()
            common = torch.bincount(wanted.flatten(), minlength=len(names)).argmax()
            loss, recognised = _loss(out, table, wanted, wanted != common)
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            if report is not None:
                report(step, float(loss.detach()), recognised)
    finally:
        torch.set_float32_matmul_precision(precision)
    return recognised


def _loss(out: Tensor, table: Tensor, wanted: Tensor, rare: Tensor) -> tuple[Tensor, float]:
    """out [B, T, D], table [W, D], wanted and rare [B, T] -> (loss, share of the rare words that are recognised)."""
    length = table.norm(dim=-1).mean()
    logits = (out / length) @ (table / length).T * 10
    distance = ((out - table[wanted]) / length).square().sum(-1)
    surprise = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
    losses = surprise.view_as(distance) + distance
    right = (logits.argmax(-1) == wanted)[rare].float().mean()
    return losses[rare].mean() + 0.3 * losses[~rare].mean(), float(right)


@torch.no_grad()
def _embedding(model: Any, tokenizer: Any, word: str) -> Tensor:
    """[D] the mean input embedding of a word's tokens."""
    tokens = tokenizer(f" {word}", add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    embedded: Tensor = model.get_input_embeddings()(tokens).float().mean(0)
    return embedded
