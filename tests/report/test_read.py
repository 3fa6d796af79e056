"""Reading run folders: whole, broken, resumed, still going on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrl.report.read import columns, full_summary, phases, read_run, series, spread
from tests.report.synthetic import train_line, write_run


def metrics_run(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "metrics.jsonl").write_text(text)
    return path


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = write_run(tmp_path / "r", steps=12, prompts=3, group_size=4)
    lines = [json.loads(line) for line in (written / "metrics.jsonl").read_text().splitlines()]
    run = read_run(written)
    assert [p.step for p in run.train] == list(range(1, 13))
    assert [p.step for p in run.evals] == [0, 10, 12]
    assert series(run.train, "reward/mean")[1] == [x["reward/mean"] for x in lines if x["kind"] == "train"]
    assert run.recipe["algo"]["name"] == "grpo"
    assert run.notes == ()


def test_a_truncated_last_line_is_left_out_and_named(tmp_path: Path) -> None:
    run = read_run(metrics_run(tmp_path / "r", '{"kind":"train","step":1,"loss":0.5}\n{"kind":"train","step":2,"lo'))
    assert [p.step for p in run.train] == [1]
    assert any("line 2" in note for note in run.notes)


def test_lines_that_are_no_metrics_are_counted(tmp_path: Path) -> None:
    text = '[1]\n{"kind":"train"}\n{"kind":"train","step":true}\n{"kind":"odd","step":1}\n\n{"kind":"eval","step":0}\n'
    run = read_run(metrics_run(tmp_path / "r", text))
    assert (len(run.train), len(run.evals)) == (0, 1)
    assert any("4 unreadable" in note for note in run.notes)


def test_a_resumed_run_counts_the_last_line_of_a_step(tmp_path: Path) -> None:
    steps = [(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25), (3, 0.35)]
    text = "".join(json.dumps({"kind": "train", "step": s, "reward/mean": r}) + "\n" for s, r in steps)
    run = read_run(metrics_run(tmp_path / "r", text))
    assert series(run.train, "reward/mean") == ([1, 2, 3], [0.1, 0.25, 0.35])


def test_non_finite_numbers_are_none_and_leave_no_point(tmp_path: Path) -> None:
    text = "".join(f'{{"kind":"train","step":{i},"loss":{v}}}\n' for i, v in enumerate(("null", "NaN", "1"), start=1))
    run = read_run(metrics_run(tmp_path / "r", text))
    assert [p.get("loss") for p in run.train] == [None, None, 1.0]
    assert series(run.train, "loss") == ([3], [1.0])


def test_a_run_without_summary_gets_one_from_its_metrics(tmp_path: Path) -> None:
    written = write_run(tmp_path / "r", steps=20, prompts=3, group_size=4)
    expected = json.loads((written / "summary.json").read_text())
    (written / "summary.json").unlink()
    got = full_summary(read_run(written))
    for key in ("accuracy_before", "accuracy_after", "accuracy_after_interval", "n_eval", "seed", "completed_steps"):
        assert got[key] == expected[key], key
    assert got["train_wall_s"] == pytest.approx(expected["train_wall_s"])
    assert got["seconds"] == pytest.approx(expected["seconds"])
    assert got["status"] == "running or stopped"


def test_an_evaluation_before_training_is_no_result_after_it(tmp_path: Path) -> None:
    run = read_run(metrics_run(tmp_path / "r", '{"kind":"eval","step":0,"eval/accuracy":0.1,"eval/n":200}\n'))
    summary = full_summary(run)
    assert summary["accuracy_before"] == 0.1
    assert "accuracy_after" not in summary


def test_the_written_summary_wins_over_the_derived_one(tmp_path: Path) -> None:
    written = write_run(tmp_path / "r", steps=3, prompts=2, group_size=2)
    (written / "summary.json").write_text('{"train_wall_s": 99.0, "accuracy_after": null}')
    summary = full_summary(read_run(written))
    assert summary["train_wall_s"] == 99.0
    assert summary["accuracy_after"] is not None


def test_phases_are_sorted_by_time_and_leave_out_the_whole_step(tmp_path: Path) -> None:
    text = '{"kind":"train","step":1,"time/a":1,"time/b":3,"time/step":9}\n{"kind":"eval","step":1,"time/eval":2}\n'
    assert phases(read_run(metrics_run(tmp_path / "r", text))) == ["b", "eval", "a"]


def test_no_folder_is_an_error_that_names_the_runs_there_are(tmp_path: Path) -> None:
    write_run(tmp_path / "quick", steps=1, prompts=2, group_size=2)
    with pytest.raises(FileNotFoundError, match="quick"):
        read_run(tmp_path / "quik")


def test_a_folder_without_run_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run folder"):
        read_run(tmp_path)


def test_a_broken_recipe_and_summary_are_noted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = metrics_run(tmp_path / "r", '{"kind":"train","step":1,"loss":1}\n')
    (path / "recipe.yaml").write_text("a: [1\nb: }")
    (path / "summary.json").write_text('{"steps": 1')
    run = read_run(path)
    assert run.recipe_text == "a: [1\nb: }"
    assert len(run.train) == 1
    assert sorted(note.split()[0] for note in run.notes) == ["recipe.yaml", "summary.json"]


def test_columns_are_the_union_over_steps(tmp_path: Path) -> None:
    text = '{"kind":"train","step":1,"a":1,"word":"x","flag":true}\n{"kind":"train","step":2,"b":null}\n'
    assert columns(read_run(metrics_run(tmp_path / "r", text)).train) == ["a", "b"]


@given(st.lists(st.integers(), max_size=60), st.integers(min_value=2, max_value=20))
def test_spread_keeps_the_ends_the_order_and_the_limit(items: list[int], limit: int) -> None:
    numbered = list(enumerate(items))
    chosen = spread(numbered, limit)
    assert len(chosen) == min(limit, len(items))
    assert chosen == sorted(set(chosen))
    if items:
        assert (chosen[0], chosen[-1]) == (numbered[0], numbered[-1])


def test_synthetic_numbers_are_finite_but_for_the_one_written_as_null() -> None:
    import random

    from tests.report.synthetic import rollout_rows

    rng = random.Random(1)
    rows = rollout_rows(17, 20, 4, 4, rng)
    line = train_line(17, 20, rows, rng)
    assert line["loss"] is None
    assert all(math.isfinite(v) for k, v in line.items() if k not in ("loss", "kind"))
