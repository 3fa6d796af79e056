"""What an outcome critic says about a program, and the loss that uses it: CodeRL's part of `llmrl.losses`.

An outcome critic gives every token of a program one logit per outcome class. Pooled over the program they predict the
outcome; read token by token they say how much each token speaks for the outcome that the program had, and weigh its
log-probability. Le et al. 2022, arXiv:2207.01780. Import these functions from `llmrl.losses`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from llmrl.later import torch

if TYPE_CHECKING:
    from torch import Tensor

Pool = Literal["max", "mean", "last"]
Alignment = Literal["inclusive", "shifted"]
ScoreScale = Literal["none", "mean_one", "max_one"]
NllNormalize = Literal["token", "sequence", "sum"]


def pooled_logits(logits: Tensor, mask: Tensor, *, pool: Pool = "max") -> Tensor:
    """The program's logits from its tokens' logits: logits [B, T, K], mask [B, T] bool -> [B, K].

    max takes each class's largest logit over the tokens of the program, mean their mean, last those of the last token.
    Only slots inside the mask are read, so padding never changes a prediction (the released CodeRL critic pools over
    padding as well, and reads its verdict there). A row without any mask gives 0.

    Raises ValueError for an unknown pool.

    >>> pooled_logits(torch.tensor([[[1.0, 5.0], [3.0, 2.0], [9.0, 9.0]]]), torch.tensor([[True, True, False]]))
    tensor([[3., 5.]])
    """
    inside = mask[:, :, None]
    alive = mask.any(dim=1, keepdim=True)
    zeros = torch.zeros_like(logits)
    if pool == "max":
        highest = torch.where(inside, logits, -torch.inf).amax(dim=1)
        return torch.where(alive, highest, zeros[:, 0])
    if pool == "mean":
        return torch.where(inside, logits, zeros).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    if pool == "last":
        at = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, at, -1).amax(dim=1, keepdim=True)
        return torch.where((at == last)[:, :, None], logits, zeros).sum(dim=1)
    raise ValueError(f"pool={pool!r} is not a way to pool; use max, mean or last")


def token_scores(
    logits: Tensor,
    outcome: Tensor,
    mask: Tensor,
    *,
    alignment: Alignment = "inclusive",
    scale: ScoreScale = "none",
) -> Tensor:
    """CodeRL's q of every token: the critic's probability of the outcome that the program really had.

    logits [B, T, K], outcome [B] int64 (a class in 0..K-1), mask [B, T] bool -> [B, T], 0 outside the mask
    (arXiv:2207.01780, eqs. 9-10). The softmax is taken in at least float32.

    alignment  inclusive: token t is judged by the state at t, which has read it (the paper).
               shifted: by the state at the sampled token before it, which has not (the released code, whose decoder
               reads its input one place late). The first token of a row has no such state and scores 0.
    scale      mean_one and max_one divide a row by its mean or its maximum over the mask, because the scores of failing
               programs are often several times smaller than those of passing ones. A row of zeros stays zero.

    Raises ValueError for an unknown option and for a row with tokens whose outcome is no class: a program without a
    verdict has no score.

    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 1.0986]]])
    >>> token_scores(logits, torch.tensor([1]), torch.tensor([[True, True]]))
    tensor([[0.5000, 0.7500]])
    >>> token_scores(logits, torch.tensor([1]), torch.tensor([[True, True]]), alignment="shifted")
    tensor([[0.0000, 0.5000]])
    """
    classes = logits.shape[-1]
    wrong = mask.any(dim=1) & ((outcome < 0) | (outcome >= classes))
    if bool(wrong.any()):
        raise ValueError(
            f"outcome={outcome[wrong].tolist()} in rows {wrong.nonzero().flatten().tolist()}; a row with sampled tokens "
            f"needs one of the {classes} classes (0..{classes - 1}): leave rows without a verdict out of the mask"
        )
    wide = torch.where(mask[:, :, None], logits, 0.0).to(torch.promote_types(logits.dtype, torch.float32))
    label = outcome.clamp(0, classes - 1)[:, None, None].expand(-1, mask.shape[1], 1)
    scores = torch.where(mask, wide.softmax(dim=-1).gather(2, label).squeeze(2), 0.0)
    if alignment == "shifted":
        scores = _of_the_token_before(scores, mask)
    elif alignment != "inclusive":
        raise ValueError(f"alignment={alignment!r} is not known; use inclusive or shifted")
    if scale == "none":
        return scores
    if scale == "mean_one":
        unit = scores.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    elif scale == "max_one":
        unit = scores.amax(dim=1, keepdim=True)
    else:
        raise ValueError(f"scale={scale!r} is not a scale; use none, mean_one or max_one")
    return scores / torch.where(unit > 0, unit, 1.0)


def weighted_nll(logprobs: Tensor, weights: Tensor, mask: Tensor, *, normalize: NllNormalize = "token") -> Tensor:
    """-weight * log-prob over the sampled tokens, as one number: all [B, T] -> []. No gradient flows into the weights.

    token     sum / sampled tokens                                (CodeRL's released code)
    sequence  mean over the rows of each row's token mean
    sum       mean over the rows of each row's sum                (CodeRL's paper, arXiv:2207.01780, eq. 14)

    A row without any mask is no row. A token of weight 0 does not enter the sum, whatever its log-prob, but counts in
    the denominators. With negative weights the loss has no lower bound. Raises ValueError for an unknown normalisation.

    >>> weighted_nll(torch.tensor([[-1.0, -2.0], [-4.0, 0.0]]), torch.tensor([[1.0, 0.5], [-1.0, 0.0]]),
    ...              torch.tensor([[True, True], [True, False]]))
    tensor(-0.6667)
    """
    used = mask & (weights != 0)
    terms = -torch.where(used, weights, 0.0).detach() * torch.where(used, logprobs, 0.0)
    lengths, rows = mask.sum(dim=1), mask.any(dim=1).sum().clamp(min=1)
    if normalize == "token":
        return terms.sum() / lengths.sum().clamp(min=1)
    if normalize == "sequence":
        return (terms.sum(dim=1) / lengths.clamp(min=1)).sum() / rows
    if normalize == "sum":
        return terms.sum() / rows
    raise ValueError(f"normalize={normalize!r} is not a normalisation; use token, sequence or sum")


def _of_the_token_before(scores: Tensor, mask: Tensor) -> Tensor:
    """Every sampled token gets the score of the sampled token before it in its row, the first one 0: [B, T]."""
    at = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    seen = torch.where(mask, at, -1).cummax(dim=1).values  # the newest sampled slot up to and including t
    before = torch.cat([torch.full_like(seen[:, :1], -1), seen[:, :-1]], dim=1)
    return torch.where(mask & (before >= 0), scores.gather(1, before.clamp(min=0)), 0.0)
