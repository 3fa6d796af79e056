"""The numbers behind the charts, by hand and against numpy."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrl.report.figures import distributions, length_histograms, metric_columns, reward_shares
from llmrl.report.read import Point
from tests.report.synthetic import write_run


def test_few_reward_levels_are_shown_as_they_are_with_unscored_rows_last() -> None:
    labels, shares = reward_shares([[0.0, 1.0, 1.0, None], [0.1, 0.1, 0.1, 0.1]])
    assert labels == ["0", "0.1", "1", "none"]
    assert shares == [[0.25, 0.0, 0.5, 0.25], [0.0, 1.0, 0.0, 0.0]]


def test_many_rewards_fall_into_equal_bins_ends_included() -> None:
    labels, shares = reward_shares([[i / 70 for i in range(71)]])
    assert len(labels) == 7
    counts = [share * 71 for share in shares[0]]
    assert counts == pytest.approx([10] * 6 + [11], abs=1e-3)


def test_rewards_that_are_all_missing_are_one_level() -> None:
    assert reward_shares([[None, None]]) == (["none"], [[1.0]])


def test_length_histograms_cover_thirds_and_sum_to_one() -> None:
    found = length_histograms([1, 2, 3], [[1, 1], [2, 2], [3, 0]])
    assert found["edges"] == [0, 1, 2, 3]
    assert [group["shares"] for group in found["groups"]] == [[0, 1, 0, 0], [0, 0, 1, 0], [0.5, 0, 0, 0.5]]
    assert [group["label"].split(":")[0] for group in found["groups"]] == ["early", "middle", "late"]
    assert len(length_histograms([4, 5], [[1], [900]])["groups"]) == 1


def test_a_long_run_is_averaged_in_buckets_and_gaps_do_not_count_as_zero() -> None:
    points = [Point(step=i, values={"loss": None if i == 2 else float(i)}) for i in range(1, 6)]
    found = metric_columns(points, limit=3)
    assert found == {"step": [2, 4, 5], "columns": {"loss": [1.0, 3.5, 5.0]}, "bucket": 2}


def test_distributions_leave_out_and_name_an_unreadable_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", steps=4, prompts=2, group_size=2)
    (run / "rollouts" / "step-000003.parquet").write_bytes(b"broken")
    notes: list[str] = []
    found = distributions(run, notes)
    assert found["step"] == [1, 2, 4]
    assert len(notes) == 1
    assert "step-000003" in notes[0]


def test_a_run_without_rollouts_has_no_distributions(tmp_path: Path) -> None:
    assert distributions(tmp_path, []) == {"step": []}
