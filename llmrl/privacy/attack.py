"""Attacks on a finished private run, with its own canaries and rows. They read private data: what they find is private."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmrl.errors import RunFolderError
from llmrl.policy.forward import forward
from llmrl.policy.model import load_tokenizer
from llmrl.privacy.audit import Canary, auc, epsilon_lower_bound, exposure, min_k, other_secrets, tpr_at
from llmrl.privacy.build import CANARIES, LEDGER, canary_row, claim
from llmrl.privacy.ledger import load_ledger
from llmrl.settings.recipe import Recipe
from llmrl.train.checkpoint import newest_valid
from llmrl.train.collate import collate
from llmrl.train.problems import load_problems
from llmrl.types import Trajectory

TOGETHER = 16  # rows of one forward pass
EXPOSED = 8  # canaries whose exposure is measured


def audit_run(folder: Path, recipe: Recipe, base: str, *, candidates: int) -> dict[str, Any]:
    """What the model of a private run gives away, compared with `base`, the folder of the model that it started from.

    Membership inference by loss, loss against the base model, and Min-K, with intervals; if canaries were planted, their
    exposure among `candidates` secrets and a lower bound on epsilon. Raises RunFolderError for a run without a checkpoint.
    """
    checkpoint, _ = newest_valid(folder)
    if checkpoint is None or not (folder / LEDGER).is_file():
        raise RunFolderError(f"{folder} holds no private run with a checkpoint: there is nothing to audit")
    ledger = load_ledger(folder / LEDGER)
    tokenizer = load_tokenizer(str(checkpoint / "policy"))
    model, before = open_model(str(checkpoint / "policy")), open_model(base)
    problems = load_problems(recipe, tokenizer, gold=True)
    members, others = (
        list(rows.values())[:candidates] for rows in (problems.gold, problems.held_out_gold)
    )  # taken in the data's order
    found = claim(ledger) | membership(model, before, members, others)
    if (folder / CANARIES).is_file():
        canaries = [Canary(**entry) for entry in json.loads((folder / CANARIES).read_text())]
        found["exposure"] = exposures(model, canaries, tokenizer, candidates=candidates, seed=recipe.seed)
        found["epsilon_lower_bound"] = audited(model, before, canaries, tokenizer, delta=ledger.terms.delta)
    return found


def membership(
    model: nn.Module, before: nn.Module, members: Sequence[Trajectory], others: Sequence[Trajectory]
) -> dict[str, Any]:
    """Three attacks that tell members from other rows, each with its AUC and its true positives at 1 % false ones."""
    after = [token_losses(model, rows) for rows in (members, others)]
    first = [token_losses(before, rows) for rows in (members, others)]
    gained = [[_mean(x) - _mean(y) for x, y in zip(*pair, strict=True)] for pair in zip(after, first, strict=True)]
    return {
        "loss": _attack(*([_mean(x) for x in rows] for rows in after)),
        "reference": _attack(*gained),
        "min_k": _attack(*([min_k(x) for x in rows] for rows in after)),
    }


def exposures(
    model: nn.Module, canaries: Sequence[Canary], tokenizer: Any, *, candidates: int, seed: int
) -> list[float]:
    """The exposure of the first planted canaries, each among `candidates` other secrets."""
    found = []
    for canary in [canary for canary in canaries if canary.included][:EXPOSED]:
        texts = [canary.text, *other_secrets(canary, count=candidates, seed=seed)]
        own, *others = _losses(model, texts, tokenizer)
        found.append(exposure(own, others))
    return found


def audited(model: nn.Module, before: nn.Module, canaries: Sequence[Canary], tokenizer: Any, *, delta: float) -> float:
    """A lower bound on epsilon, by guessing from the gained likelihood which canaries were planted: half are guessed."""
    texts = [canary.text for canary in canaries]
    scores = [x - y for x, y in zip(_losses(model, texts, tokenizer), _losses(before, texts, tokenizer), strict=True)]
    included = [canary.included for canary in canaries]
    return epsilon_lower_bound(scores, included, delta=delta, guesses=2 * (len(canaries) // 4))


def _losses(model: nn.Module, texts: Sequence[str], tokenizer: Any) -> list[float]:
    rows = [canary_row(Canary(text=text, included=False), tokenizer) for text in texts]
    return [_mean(x) for x in token_losses(model, rows)]


def open_model(folder: str) -> nn.Module:
    """A causal language model that is not trained."""
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    return model.eval()


@torch.no_grad()
def token_losses(model: nn.Module, rows: Sequence[Trajectory]) -> list[list[float]]:
    """The negative log-likelihood of each row's learnt tokens, in nats."""
    found = []
    for start in range(0, len(rows), TOGETHER):
        batch = collate(rows[start : start + TOGETHER])
        logprobs = forward(model, batch, mode="plain").logprobs.cpu()
        found += [(-own[mask]).tolist() for own, mask in zip(logprobs, batch.mask, strict=True)]
    return found


def _mean(losses: Sequence[float]) -> float:
    return math.fsum(losses) / len(losses)


def _attack(members: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    return {"auc": asdict(auc(members, others)), "tpr_at_1_percent": asdict(tpr_at(members, others, fpr=0.01))}
