"""Reading stored rollouts."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrl.report.stored import read_samples, read_scores_and_lengths, rollout_files
from tests.report.synthetic import SCHEMA, rollout_rows, write_rollouts


def stored(path: Path, rows: list[dict[str, object]]) -> Path:
    (path / "rollouts").mkdir()
    return write_rollouts(path, 7, rows)


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = rollout_rows(3, 9, 6, 8, random.Random(5))
    samples = read_samples(stored(tmp_path, rows), step=7)
    assert len(samples) == len(rows)
    for sample, row in zip(samples, rows):
        assert (sample.text, sample.status, sample.score, sample.step) == (row["text"], row["status"], row["score"], 7)
        assert sample.advantage == row["advantage"]
        kept = [value for value, sampled in zip(row["logprobs"], row["mask"]) if sampled]
        assert sample.sampled == len(kept)
        if kept:
            assert sample.mean_logprob == pytest.approx(sum(kept) / len(kept), rel=1e-5)
        else:
            assert sample.mean_logprob is None


def test_scores_and_lengths_agree_with_the_samples(tmp_path: Path) -> None:
    file = stored(tmp_path, rollout_rows(3, 9, 6, 8, random.Random(5)))
    samples = read_samples(file, step=7)
    assert read_scores_and_lengths(file) == ([s.score for s in samples], [s.sampled for s in samples])


def test_files_are_found_in_step_order_and_half_written_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    for name in ("step-000010.parquet", "step-000002.parquet", "step-000003.parquet.tmp", "notes.txt"):
        (tmp_path / "rollouts" / name).touch()
    assert list(rollout_files(tmp_path)) == [2, 10]
    assert rollout_files(tmp_path / "none") == {}


def test_a_file_that_is_no_parquet_is_a_value_error_naming_it(tmp_path: Path) -> None:
    file = tmp_path / "step-000001.parquet"
    for content in (b"", b"PAR1 but cut off"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="step-000001"):
            read_samples(file, step=1)
        with pytest.raises(ValueError, match="step-000001"):
            read_scores_and_lengths(file)


def test_a_table_without_rows_gives_no_samples(tmp_path: Path) -> None:
    file = stored(tmp_path, [])
    assert read_samples(file, step=7) == []
    assert read_scores_and_lengths(file) == ([], [])


def test_absent_columns_read_as_empty(tmp_path: Path) -> None:
    file = tmp_path / "step-000001.parquet"
    pq.write_table(pa.table({"text": ["a", "b"]}), file)
    samples = read_samples(file, step=1)
    assert [(s.text, s.score, s.advantage, s.sampled, s.parts) for s in samples] == [
        ("a", None, None, 0, {}),
        ("b", None, None, 0, {}),
    ]
    assert read_scores_and_lengths(file) == ([None, None], [0, 0])


def test_a_nan_score_and_empty_rows_among_others_keep_their_places(tmp_path: Path) -> None:
    rows = rollout_rows(3, 9, 1, 3, random.Random(5))
    rows[0]["score"] = float("nan")
    rows[1] |= {"tokens": [], "mask": [], "logprobs": [], "step": []}
    (tmp_path / "rollouts").mkdir()
    file = tmp_path / "rollouts" / "step-000007.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)
    samples = read_samples(file, step=7)
    assert samples[0].score is None
    assert (samples[1].sampled, samples[1].mean_logprob) == (0, None)
    assert samples[2].sampled == sum(rows[2]["mask"])
