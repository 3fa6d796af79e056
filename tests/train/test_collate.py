"""Trajectories -> Batch, by hand."""

import math
from dataclasses import replace

import pytest
import torch

from llmrl.train.collate import collate, usable, with_totals
from llmrl.types import Score, Status
from tests.tiny import trajectory


def rows():
    """Group a: two turns with a reply between them (rewards 0.25, then 1), and one token; group b: two tokens."""
    two_turns = replace(
        trajectory((10, 11), [[20, 21], [30], [22]], group="a"), scores=(Score(value=0.25), Score(value=1.0))
    )
    return [
        two_turns,
        trajectory((10, 11), [[23]], group="a", sample=1, reward=-1.0),
        trajectory((12,), [[24, 25]], group="b", reward=2.0),
    ]


def test_every_field_of_three_rows():
    batch = collate(rows())
    assert batch.tokens.tolist() == [[10, 11, 20, 21, 30, 22], [10, 11, 23, 0, 0, 0], [12, 24, 25, 0, 0, 0]]
    assert batch.length.tolist() == [6, 3, 3]
    assert batch.mask.int().tolist() == [[0, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0]]
    assert batch.logprobs.tolist() == [[0, 0, -1, -1, 0, -1], [0, 0, -1, 0, 0, 0], [0, -1, -1, 0, 0, 0]]
    assert batch.step.tolist() == [[-1, -1, 0, 0, -1, 1], [-1, -1, 0, -1, -1, -1], [-1, 0, 0, -1, -1, -1]]
    assert batch.rewards.tolist() == [[0, 0, 0, 0.25, 0, 1], [0, 0, -1, 0, 0, 0], [0, 0, 2, 0, 0, 0]]
    assert batch.group.tolist() == [0, 0, 1]
    assert batch.score.tolist() == [1.25, -1.0, 2.0]
    assert batch.prompt_length.tolist() == [2, 2, 1]
    assert (float(batch.tokens_total), float(batch.sequences_total)) == (6.0, 3.0)
    assert batch.advantages is None and batch.old_logprobs is None and batch.ref_logprobs is None
    assert (
        batch.tokens.dtype == torch.int64 and batch.logprobs.dtype == torch.float32 and batch.mask.dtype == torch.bool
    )


UNUSABLE = {
    "a failed rollout": {"status": Status.error("engine died")},
    "no score": {"scores": ()},
    "a score that does not apply": {"scores": (Score(value=None),)},
    "a reward that failed": {"scores": (Score(value=None, error="raised"),)},
}


@pytest.mark.parametrize("why", UNUSABLE)
def test_an_unusable_row_keeps_its_tokens_and_loses_everything_that_trains(why):
    first, second, third = rows()
    batch = collate([first, replace(second, **UNUSABLE[why]), third])
    assert batch.tokens[1].tolist() == [10, 11, 23, 0, 0, 0]
    assert not batch.mask[1].any() and not batch.rewards[1].any() and not batch.logprobs[1].any()
    assert batch.step[1].tolist() == [-1] * 6
    assert math.isnan(float(batch.score[1]))
    assert batch.group.tolist() == [0, 0, 1]
    assert (float(batch.tokens_total), float(batch.sequences_total)) == (5.0, 2.0)


def test_a_step_without_a_score_makes_the_whole_row_unusable():
    first, *_ = rows()
    assert usable(first, mask_truncated=False)
    assert not usable(replace(first, scores=(Score(value=1.0), Score(value=None))), mask_truncated=False)


def test_nothing_sampled_is_unusable():
    assert not usable(trajectory((10, 11), [[]], reward=1.0), mask_truncated=False)


def test_truncated_rows_train_unless_masked():
    cut = replace(rows()[1], status=Status.truncated())
    assert collate([cut]).mask.any()
    masked = collate([cut], mask_truncated=True)
    assert not masked.mask.any() and math.isnan(float(masked.score[0]))
    assert collate([rows()[1]], mask_truncated=True).mask.any()


def test_no_trajectories_are_an_error_and_no_usable_ones_are_not():
    with pytest.raises(ValueError, match="at least one"):
        collate([])
    batch = collate([replace(rows()[0], status=Status.error("x"))])
    assert (float(batch.tokens_total), float(batch.sequences_total)) == (1.0, 1.0)  # a denominator, never 0


def test_totals_are_what_reduce_makes_of_this_ranks():
    batch = with_totals(collate(rows()), reduce=lambda totals: totals * 3)
    assert (float(batch.tokens_total), float(batch.sequences_total)) == (18.0, 9.0)
