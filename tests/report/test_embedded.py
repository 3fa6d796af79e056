"""Which samples the page carries."""

from __future__ import annotations

from pathlib import Path

from llmrl.report.embedded import MAX_STEPS, MAX_TEXT, ROWS_PER_STEP, choose, embedded_samples, kind_of, row_of
from llmrl.report.html import clipped
from llmrl.report.stored import Sample
from tests.report.synthetic import write_run


def sample(group: int, number: int = 0, *, score: float | None = 0.0, status: str = "done", error: str = "") -> Sample:
    return Sample(
        step=1,
        prompt_id=f"p{group}",
        prompt_text="q",
        answer="a",
        text="t",
        status=status,
        status_reason="",
        version=(0, 0),
        sample=number,
        score=score,
        parts={},
        score_reason="",
        score_error=error,
        flags=(),
        advantage=None,
        sampled=1,
        mean_logprob=None,
    )


def test_kinds_separate_failures_from_wrong_answers() -> None:
    assert kind_of(sample(0, score=1.0)) == "right"
    assert kind_of(sample(0, score=0.1)) == "wrong"
    assert kind_of(sample(0, status="truncated")) == "truncated"
    assert kind_of(sample(0, score=None)) == "error"
    assert kind_of(sample(0, status="error", score=1.0)) == "error"
    assert kind_of(sample(0, score=1.0, error="raised")) == "error"


def test_whole_groups_are_taken_while_they_fit() -> None:
    samples = [sample(g, i) for g in range(5) for i in range(4)]
    assert [(s.prompt_id, s.sample) for s in choose(samples, limit=10)] == [
        (f"p{g}", i) for g in (0, 1) for i in range(4)
    ]


def test_a_first_group_larger_than_the_limit_is_cut() -> None:
    assert len(choose([sample(0, i) for i in range(50)], limit=10)) == 10


def test_kinds_that_the_groups_lack_are_added_a_few_of_each() -> None:
    samples = [sample(0, i) for i in range(4)] + [sample(1, i, status="truncated") for i in range(4)]
    samples += [sample(2, 0, score=1.0), sample(2, 1, score=None)]
    kinds = [kind_of(s) for s in choose(samples, limit=4)]
    assert kinds == ["wrong"] * 4 + ["right"] + ["truncated"] * 3 + ["error"]


def test_the_page_carries_a_bounded_number_of_samples_and_says_how_many(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", steps=2 * MAX_STEPS, prompts=6, group_size=10)
    found = embedded_samples(run, [])
    assert len(found["steps"]) == MAX_STEPS
    assert found["stored"] == 2 * MAX_STEPS
    assert [step["step"] for step in found["steps"]][:: MAX_STEPS - 1] == [1, 2 * MAX_STEPS]
    assert sum(step["shown"] for step in found["steps"]) == len(found["rows"])
    assert all(step["of"] == 60 and 40 <= step["shown"] <= ROWS_PER_STEP + 9 for step in found["steps"])
    assert all(0 <= row["prompt"] < len(found["prompts"]) for row in found["rows"])


def test_a_long_text_loses_its_middle_and_says_so() -> None:
    text = "a" * MAX_TEXT + "b" * MAX_TEXT
    short = clipped(text, MAX_TEXT)
    assert len(short) < MAX_TEXT + 100
    assert short[0] == "a"
    assert short[-1] == "b"
    assert f"{MAX_TEXT:,} characters left out" in short
    assert clipped("a" * MAX_TEXT, MAX_TEXT) == "a" * MAX_TEXT


def test_a_score_of_zero_is_kept_and_none_is_left_out() -> None:
    assert row_of(sample(0, score=0.0), 0)["score"] == 0.0
    assert "score" not in row_of(sample(0, score=None), 0)
    assert row_of(sample(0), 0)["prompt"] == 0
