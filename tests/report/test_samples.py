"""The terminal viewer."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from rich.console import Console

from llmrl.report.samples import advantage_style, show_samples, step_ranges, visible
from tests.report.synthetic import rollout_rows, write_rollouts, write_run


def shown(run: Path, *, step: int | None = None, n: int = 100, colour: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=colour, color_system="standard" if colour else None)
    show_samples(run, step=step, n=n, console=console)
    return out.getvalue()


def test_prompt_answer_completion_parts_and_reasons_are_shown(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    row = rollout_rows(1, 9, 1, 1, random.Random(0))[0]
    row |= {"prompt_text": "What is 2 + 2?", "answer": "4", "text": "It is 5", "score": 0.1, "advantage": -0.7}
    row |= {"parts": json.dumps({"exact": 0, "format": 1}), "score_reason": "expected 4", "flags": ["many_boxes"]}
    row |= {"status": "truncated", "status_reason": "max tokens", "score_error": ""}
    write_rollouts(tmp_path, 3, [row])
    text = shown(tmp_path)
    for part in ("What is 2 + 2?", "It is 5", "exact 0", "format 1", "reward 0.1", "advantage -0.7", "expected 4"):
        assert part in text
    for part in ("many_boxes", "truncated", "max tokens", "step 3"):
        assert part in text


def test_the_latest_step_is_the_default_and_n_bounds_the_samples(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", steps=5, prompts=3, group_size=4)
    assert "step 5 · 2 of 12" in shown(run, n=2)
    assert shown(run, n=2).count("reward ") - shown(run, n=2).count("reward failed") == 2
    assert "10 more in" in shown(run, n=2)
    assert "step 2 · 12 of 12" in shown(run, step=2)
    assert " more in " not in shown(run, step=2)


def test_model_text_reaches_the_terminal_without_escapes_or_markup(tmp_path: Path) -> None:
    hostile = "\x1b[2J\x1b]0;title\x07[bold red]big[/] [link=http://x]y[/link] [/nope] \u202eevil\x9b31m\r"
    run = write_run(tmp_path / "r", steps=1, prompts=1, group_size=2, hostile=[hostile])
    text = shown(run)
    assert not any(char in text for char in "\x1b\x07\u202e\x9b\r")
    assert "[bold red]big[/] [link=http://x]y[/link] [/nope]" in text
    assert "␛[2J" in text


def test_colour_follows_the_advantage(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    rows = rollout_rows(1, 9, 1, 3, random.Random(0))
    for row, (text, advantage) in zip(rows, [("better", 0.5), ("worse", -2.0), ("same", 0.0)]):
        row |= {"text": text, "advantage": advantage, "status": "done", "score": 1.0}
    write_rollouts(tmp_path, 1, rows)
    text = shown(tmp_path, colour=True)
    assert "\x1b[32mbetter" in text
    assert "\x1b[1;31mworse" in text
    assert "\x1b[32msame" not in text
    assert "\x1b[31msame" not in text


@pytest.mark.parametrize(
    ("advantage", "style"),
    [(None, ""), (0.0, ""), (1e-9, ""), (0.2, "green"), (1.5, "bold green"), (-1.0, "red"), (-1.1, "bold red")],
)
def test_advantage_styles(advantage: float | None, style: str) -> None:
    assert advantage_style(advantage) == style


def test_ordinary_text_of_every_script_stays_as_it_is() -> None:
    text = "naïve 数学 ∑ عربي 👩\u200d🔬\n\tx"
    assert visible(text) == text
    assert visible("\x00\x7f") == "␀\\x7f"


def test_a_step_that_was_not_stored_is_an_error_that_names_those_that_were(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", steps=6, prompts=2, group_size=2, store_every=2)
    with pytest.raises(FileNotFoundError, match="step 3; stored: 2, 4, 6"):
        shown(run, step=3)
    with pytest.raises(FileNotFoundError, match="no stored rollouts"):
        shown(tmp_path)
    with pytest.raises(ValueError, match="n=0"):
        shown(run, n=0)


def test_steps_are_named_in_ranges() -> None:
    assert step_ranges([3, 1, 2, 7, 9, 10]) == "1-3, 7, 9-10"
    assert step_ranges([]) == ""
