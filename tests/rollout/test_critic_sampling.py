"""Choices of critic sampling by hand and by their properties; slow definitions are judged in tests/test_conformance.py."""

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrl.rollout import critic_sampling
from llmrl.rollout.critic_sampling import best_failing, copies, split_point

PROBABILITIES = st.lists(st.floats(0, 1), max_size=10)


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(critic_sampling).failed == 0


def test_split_point_by_hand():
    assert split_point([0.9, 0.1, 0.2]) == 1
    assert split_point([0.1, 0.9]) == 2
    assert split_point([0.5, 0.5]) == 1  # the first of equals
    assert split_point([]) == 0
    assert split_point(torch.tensor([0.1, 0.9, 0.3])) == 2
    assert split_point([0.1, 0.2, 0.9], p_fail=[0.2, 0.1, 0.0]) == 0
    assert split_point([0.1, 0.2, 0.9], p_fail=[0.1, 0.2, 0.9]) == 3  # equal is not larger
    assert split_point([0.9, 0.2, 0.3], p_fail=[0.1, 0.8, 0.7]) == 1  # the cut behind the split does not count


@given(PROBABILITIES)
def test_the_kept_part_ends_with_its_best_token(p_pass):
    kept = split_point(p_pass)
    assert 0 <= kept <= len(p_pass)
    if p_pass:
        assert p_pass[kept - 1] == max(p_pass)
        assert all(p < max(p_pass) for p in p_pass[: kept - 1])


@given(PROBABILITIES)
def test_cutting_where_failing_is_likelier_only_shortens(p_pass):
    p_fail = [1 - p for p in p_pass]
    kept = split_point(p_pass, p_fail=p_fail)
    assert kept <= split_point(p_pass)
    assert all(p >= q for p, q in zip(p_pass[:kept], p_fail[:kept]))


def test_slots_without_a_probability_are_never_chosen():
    assert split_point([math.nan, 0.2, math.nan, 0.4, math.nan]) == 4
    assert split_point([math.nan, math.nan]) == 0
    assert split_point([0.2, 0.4], p_fail=[math.nan, math.nan]) == 2
    assert best_failing([math.nan, 0.1, math.nan], 3) == [1]


def test_split_point_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match="2 probabilities of passing but 1 of failing"):
        split_point([0.1, 0.2], p_fail=[0.1])


def test_copies_by_hand():
    assert copies(10, 4) == [3, 3, 2, 2]
    assert copies(200, 1) == [200]
    assert copies(2, 3) == [1, 1, 0]
    assert copies(0, 2) == [0, 0]


@given(st.integers(0, 500), st.integers(1, 60))
def test_copies_are_as_many_as_asked_and_as_even_as_can_be(total, seeds):
    given_out = copies(total, seeds)
    assert len(given_out) == seeds and sum(given_out) == total
    assert max(given_out) - min(given_out) <= 1
    assert given_out == sorted(given_out, reverse=True)


def test_best_failing_by_hand():
    assert best_failing([0.1, 0.4, 0.3], 1) == [1]
    assert best_failing([0.1, 0.4, 0.3], 9) == [1, 2, 0]
    assert best_failing([0.3, 0.3, 0.3], 2) == [0, 1]
    assert best_failing([], 2) == []


@pytest.mark.parametrize(("total", "seeds"), [(3, 0), (-1, 2)])
def test_copies_refuse_what_has_no_answer(total, seeds):
    with pytest.raises(ValueError, match=f"{total} programs from {seeds} seeds"):
        copies(total, seeds)


def test_best_failing_refuses_to_repair_nothing():
    with pytest.raises(ValueError, match="m=0"):
        best_failing([0.2], 0)
