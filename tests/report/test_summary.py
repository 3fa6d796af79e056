"""The end table and the learning-curve picture."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from llmrl.report.read import full_summary, read_run
from llmrl.report.summary import _draw_learning, _draw_times, duration_text, phase_shares, plot_curves, summary_table
from tests.report.synthetic import write_run


def printed(table: object) -> str:
    out = io.StringIO()
    Console(file=out, width=140).print(table)
    return out.getvalue()


def test_the_table_has_the_numbers_of_the_summary(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", steps=3, prompts=2, group_size=2)
    summary = {
        "accuracy_before": 0.11,
        "accuracy_after": 0.615,
        "accuracy_before_interval": [0.0743, 0.1608],
        "accuracy_after_interval": [0.546, 0.68],
        "n_eval": 200,
        "train_wall_s": 571.4,
        "seconds": {"update": 150.0, "generate": 450.0, "step": 600.0},
        "tokens_per_s": 1234.5,
        "steps": 60,
        "completed_steps": 40,
        "seed": 0,
        "status": "stopped",
    }
    plot_curves(run)
    text = printed(summary_table(summary, run=run))
    for part in ("11.0%  [7.4%, 16.1%]", "61.5%  [54.6%, 68.0%]", "+50.5 points", "200", "9 min 31 s", "40 of 60"):
        assert part in text, part
    for part in ("450.0 s   75.0%", "150.0 s   25.0%", "1,23", "stopped", str(run), "curves.png"):
        assert part in text, part
    assert text.index("generate") < text.index("update")
    assert "600.0" not in text


@pytest.mark.parametrize(
    "summary", [{}, {"seconds": None, "accuracy_after": None, "accuracy_before_interval": [None, 1]}]
)
def test_missing_numbers_are_dashes(summary: dict[str, object]) -> None:
    assert printed(summary_table(summary)).count("–") >= 6


def test_markup_in_values_is_text() -> None:
    assert "[red]x[/red]" in printed(summary_table({"status": "[red]x[/red]", "seed": "[b]"}))


def test_phase_shares_sum_to_one_and_skip_what_is_no_phase() -> None:
    shares = phase_shares({"seconds": {"a": 1.0, "b": 3.0, "step": 4.0, "broken": None}})
    assert shares == [("b", 3.0, 0.75), ("a", 1.0, 0.25)]
    assert phase_shares({"seconds": {"a": 0.0}}) == [("a", 0.0, 0.0)]


def test_durations_read_as_people_say_them() -> None:
    assert [duration_text(s) for s in (0.04, 59.94, 60, 3599.7, 7512)] == [
        "0.0 s",
        "59.9 s",
        "1 min 0 s",
        "1 h 0 min",
        "2 h 5 min",
    ]


def test_the_curves_draw_the_measured_numbers(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r", steps=12, prompts=2, group_size=4))
    learning, times = Figure().subplots(1, 2)
    _draw_learning(learning, run)
    _draw_times(times, run)
    reward, accuracy = learning.get_lines()
    assert list(reward.get_ydata()) == [p.get("reward/mean") for p in run.train]
    assert list(accuracy.get_xdata()) == [0, 10, 12]
    assert list(accuracy.get_ydata()) == [p.get("eval/accuracy") for p in run.evals]
    band = learning.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(min(p.get("eval/low") or 1 for p in run.evals))
    assert band[:, 1].max() == pytest.approx(max(p.get("eval/high") or 0 for p in run.evals))
    names = ("generate", "update", "sync", "checkpoint", "reward")
    tops = [sum(p.get(f"time/{name}") or 0 for name in names) for p in run.train]
    last_layer = times.containers[-1].patches
    assert [bar.get_y() + bar.get_height() for bar in last_layer] == pytest.approx(tops)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_the_picture_is_written_for_runs_of_any_length(tmp_path: Path, steps: int) -> None:
    run = write_run(tmp_path / "$x_1$", steps=steps, prompts=2, group_size=2, finished=False)
    file = plot_curves(run)
    assert file == run / "curves.png"
    image = imread(file)
    assert image.shape[1] > 1000
    colours = len(np.unique((image[..., :3] * 255).astype(np.uint8).reshape(-1, 3), axis=0))
    assert colours > 20
    assert not (run / ".curves.png.partial").exists()


def test_the_table_of_a_run_still_going_on_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", steps=4, prompts=2, group_size=2, finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 5})[:-3])
    assert "running or stopped" in printed(summary_table(full_summary(read_run(run)), run=run))
