"""A run that is killed, at any moment and several times, ends as one that never was."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.durability.__main__ import at_points, at_random
from tests.durability.harness import CASES, finished, write_recipe


def test_three_kills_leave_no_trace(tmp_path: Path, tiny_model: Path) -> None:
    draw = random.Random(random.SystemRandom().random())
    assert at_random(tmp_path, tiny_model, CASES["float32"], kills=3, draw=draw) == (3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("float32", "vllm")])
def test_kills_of_every_kind_of_run_leave_no_trace(name: str, tmp_path: Path, tiny_model: Path) -> None:
    draw = random.Random(random.SystemRandom().random())
    assert at_random(tmp_path, tiny_model, CASES[name], kills=4, draw=draw) == (4, 4)


@pytest.mark.slow
@pytest.mark.vllm
def test_kills_with_a_vllm_engine_leave_no_trace(tmp_path: Path, tiny_model: Path) -> None:
    pytest.importorskip("vllm")
    draw = random.Random(random.SystemRandom().random())
    assert at_random(tmp_path, tiny_model, CASES["vllm"], kills=3, draw=draw) == (3, 3)


@pytest.mark.slow
def test_kills_at_the_rare_moments_leave_no_trace(tmp_path: Path, tiny_model: Path) -> None:
    kills, equal = at_points(tmp_path, tiny_model)
    assert kills == equal >= 20


@pytest.mark.slow
def test_kills_in_the_middle_of_an_episode_leave_no_trace(tmp_path: Path, tiny_model: Path) -> None:
    kills, equal = at_points(tmp_path, tiny_model, name="episode-points")
    assert kills == equal == 6


@pytest.mark.slow
def test_the_comparison_can_fail(tmp_path: Path, tiny_model: Path) -> None:
    case = CASES["float32"]
    one = finished(write_recipe(tmp_path / "one", tiny_model, {"train.steps": 3}), case)
    other = finished(write_recipe(tmp_path / "other", tiny_model, {"train.steps": 3, "seed": 1}), case)
    assert one.digest != other.digest and one.weights != other.weights and one.metrics != other.metrics
    assert replace(one, digest="") != one
