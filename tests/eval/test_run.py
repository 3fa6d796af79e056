"""The runner: right samples to the right question, resume, determinism, failures that are data and not zeros."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmrl.errors import EngineError, EvalError
from llmrl.eval.records import Record, read_records
from llmrl.eval.run import Judge, run_task
from llmrl.eval.task import Question, Source, Task
from llmrl.types import Sampling, Score, Status, Trajectory
from tests.eval.fakes import FakeEngine, prompt

TASK = Task(
    name="toy",
    source=Source(file="toy.jsonl"),
    read=lambda row, number: Question(id=str(number), answer="", columns={}),
    verifier="llmrl.rewards.exact_number:ExactNumber",
    vote="llmrl.eval.voting:number",
    template="{problem}",
    plain_template="{problem}",
    plain_stop=("STOP",),
    plain_response="[{response}]",
    breakdown=("level",),
)


def _run(
    tmp_path: Path,
    engine: Any,
    *,
    count: int = 5,
    samples: int = 3,
    seed: int = 0,
    settings: Any = None,
    **changes: Any,
) -> list[Record]:
    return run_task(
        [prompt(i, answer=str(i * i), level="even" if i % 2 == 0 else "odd") for i in range(count)],
        engine=engine,
        judge=changes.pop("judge", None) or Judge.of(TASK, "chat"),
        sampling=Sampling(max_tokens=changes.pop("max_tokens", 20), temperature=1.0),
        samples=samples,
        seed=seed,
        path=tmp_path / "toy.jsonl",
        settings=settings or {"samples": samples, "seed": seed},
        **changes,
    )


def _square(number: int, seed: int | None) -> str:
    return f"It is {number * number}."


def test_every_question_gets_its_own_samples_and_its_own_gold(tmp_path: Path) -> None:
    records = _run(tmp_path, FakeEngine(_square))
    assert [record.question for record in records] == ["q0", "q1", "q2", "q3", "q4"]
    for i, record in enumerate(records):
        assert record.gold == str(i * i)
        assert record.columns == {"level": "even" if i % 2 == 0 else "odd"}
        assert [sample.text for sample in record.samples] == [f"It is {i * i}."] * 3
        assert [sample.value for sample in record.samples] == [1.0] * 3
        assert [sample.answer for sample in record.samples] == [str(i * i)] * 3
        assert all(sample.logprob == -0.5 * sample.tokens for sample in record.samples)


def test_an_engine_without_stream_gives_the_same_records(tmp_path: Path) -> None:
    streamed = _run(tmp_path / "a", FakeEngine(_square), count=70, samples=2)

    class Plain:
        generate = FakeEngine(_square).generate

    assert _run(tmp_path / "b", Plain(), count=70, samples=2) == streamed


def test_what_a_request_draws_depends_on_seed_question_and_sample_alone(tmp_path: Path) -> None:
    def echo(number: int, seed: int | None) -> str:
        return f"{seed}"

    whole = _run(tmp_path / "a", FakeEngine(echo), count=5)
    part = _run(tmp_path / "b", FakeEngine(echo), count=2, samples=2)
    other = _run(tmp_path / "c", FakeEngine(echo), count=2, samples=2, seed=1)
    for i in range(2):
        assert [s.text for s in part[i].samples] == [s.text for s in whole[i].samples[:2]]
        assert not {s.text for s in part[i].samples} & {s.text for s in other[i].samples}
    texts = [sample.text for record in whole for sample in record.samples]
    assert len(set(texts)) == len(texts)


def test_an_engine_that_dies_loses_no_finished_question_and_the_next_call_asks_only_the_rest(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="died"):
        _run(tmp_path, FakeEngine(_square, dies_after=8))
    _, kept = read_records(tmp_path / "toy.jsonl")
    assert [record.question for record in kept] == ["q3", "q4"]  # it answers the last first
    engine = FakeEngine(_square)
    resumed = _run(tmp_path, engine)
    assert len(engine.asked) == 3 * (5 - len(kept))
    assert resumed == _run(tmp_path / "fresh", FakeEngine(_square))
    idle = FakeEngine(_square)
    assert _run(tmp_path, idle) == resumed
    assert not idle.asked


def test_a_torn_last_line_is_asked_again_but_a_broken_one_before_it_is_refused(tmp_path: Path) -> None:
    whole = _run(tmp_path, FakeEngine(_square))
    path = tmp_path / "toy.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:30])
    engine = FakeEngine(_square)
    assert _run(tmp_path, engine) == whole
    assert len(engine.asked) == 3
    path.write_text("\n".join([lines[0], lines[1][:30], *lines[2:]]) + "\n")
    with pytest.raises(EvalError, match=r"toy\.jsonl:2: not a record"):
        _run(tmp_path, engine)


def test_results_of_other_settings_are_never_mixed(tmp_path: Path) -> None:
    _run(tmp_path, FakeEngine(_square), settings={"samples": 3, "data": {"origin": "here", "sha256": "a"}})
    with pytest.raises(EvalError, match=r"other settings \(samples: 3 there, 4 now\); choose another --out"):
        _run(tmp_path, FakeEngine(_square), settings={"samples": 4, "data": {"origin": "here", "sha256": "a"}})
    with pytest.raises(EvalError, match=r"data: .*'sha256': 'a'.*'sha256': 'b'"):
        _run(tmp_path, FakeEngine(_square), settings={"samples": 3, "data": {"origin": "here", "sha256": "b"}})
    moved = FakeEngine(_square)
    _run(tmp_path, moved, settings={"samples": 3, "data": {"origin": "there", "sha256": "a"}})
    assert not moved.asked
    (tmp_path / "toy.jsonl").write_text("something else\n")
    with pytest.raises(EvalError, match="not a file of an evaluation"):
        _run(tmp_path, FakeEngine(_square))


def test_a_failed_completion_is_no_wrong_answer(tmp_path: Path) -> None:
    def say(number: int, seed: int | None) -> str | Status:
        return Status.error("out of memory") if number == 1 else _square(number, seed)

    records = _run(tmp_path, FakeEngine(say))
    assert [sample.value for sample in records[1].samples] == [None] * 3
    assert records[1].samples[0].status == "error"
    assert records[1].samples[0].status_reason == "out of memory"
    assert "out of memory" in records[1].samples[0].error


def test_a_verifier_that_raises_is_recorded_with_its_reason(tmp_path: Path) -> None:
    def verifier(trajectory: Trajectory) -> Score:
        raise RuntimeError("no such gold")

    records = _run(tmp_path, FakeEngine(_square), judge=Judge(task=TASK, mode="chat", reward=verifier))
    assert {sample.value for record in records for sample in record.samples} == {None}
    assert "RuntimeError: no such gold" in records[0].samples[0].error


def test_a_vote_that_raises_leaves_the_verdict_and_says_so(tmp_path: Path) -> None:
    from dataclasses import replace

    judge = Judge.of(replace(TASK, vote="json:loads"), "chat")
    records = _run(tmp_path, FakeEngine(_square), judge=judge)
    assert records[0].samples[0].value == 1.0
    assert records[0].samples[0].answer is None
    assert "vote_failed" in records[0].samples[0].flags


def test_scorers_and_truncation_reach_the_record(tmp_path: Path) -> None:
    judge = Judge.of(TASK, "chat", {"length": lambda t: Score(value=float(len(t.text)))})
    records = _run(tmp_path, FakeEngine(lambda n, s: "9" * 30), judge=judge)
    assert records[0].samples[0].scores == {"length": 20.0}
    assert records[0].samples[0].status == "truncated"


def test_in_plain_mode_the_verifier_reads_the_cut_completion_in_its_frame(tmp_path: Path) -> None:
    seen: list[str] = []

    def verifier(trajectory: Trajectory) -> Score:
        seen.append(trajectory.text)
        return Score(value=0.0)

    judge = Judge(task=TASK, mode="plain", reward=verifier)
    _run(tmp_path, FakeEngine(lambda n, s: "a {x} STOP b"), judge=judge, count=1, samples=1)
    assert seen == ["[a {x} ]"]


def test_any_text_survives_the_file(tmp_path: Path) -> None:
    odd = 'a\u2028b\n\r"\\ \x00 \ud800 ' + chr(0x1F600)
    records = run_task(
        [prompt(0, answer=odd, level=odd)],
        engine=FakeEngine(lambda n, s: "é"),
        judge=Judge.of(TASK, "chat"),
        sampling=Sampling(max_tokens=9),
        samples=1,
        seed=0,
        path=tmp_path / "toy.jsonl",
        settings={},
    )
    assert read_records(tmp_path / "toy.jsonl")[1] == records
    assert records[0].gold == odd


def test_progress_tells_the_running_score_and_starts_from_what_is_there(tmp_path: Path) -> None:
    told: list[tuple[int, int, float | None]] = []

    def say(number: int, seed: int | None) -> str:
        return "16" if number in (3, 4) else "-1"

    _run(tmp_path, FakeEngine(say), samples=1, progress=lambda *now: told.append(now))
    assert told[0] == (0, 5, None)
    assert told[-1] == (5, 5, pytest.approx(0.2))
    told.clear()
    _run(tmp_path, FakeEngine(say), samples=1, progress=lambda *now: told.append(now))
    assert told == [(5, 5, pytest.approx(0.2))]


def test_a_file_holds_one_json_object_a_line_with_its_schema(tmp_path: Path) -> None:
    _run(tmp_path, FakeEngine(_square))
    rows = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert rows[0] == {"schema": "llmrl.eval.samples/1", "settings": {"samples": 3, "seed": 0}}
    assert sorted(row["index"] for row in rows[1:]) == [0, 1, 2, 3, 4]
