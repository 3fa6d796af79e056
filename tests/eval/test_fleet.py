"""Several engines as one: every request once, deaths that the others make up for, and the answers of a single engine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmrl.errors import EngineError, EvalError
from llmrl.eval import fleet as engines_of
from llmrl.eval.cli import app
from llmrl.eval.fleet import devices, environments
from llmrl.eval.records import read_records
from llmrl.rollout.pool import EnginePool
from llmrl.types import Completion, Request, Sampling
from tests.eval.fakes import FakeEngine, opened, pools_closed  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("pools_closed")


def fleet(engines: Sequence[FakeEngine], **more: Any) -> EnginePool:
    return opened(engines_of.fleet(engines, **more))


class Slow(FakeEngine):
    """A fake engine that needs `pause_s` for each completion and may fail with another error than its own."""

    def __init__(self, *, pause_s: float = 0.0, dies_after: int | None = None, error: type[Exception] = EngineError):
        super().__init__(lambda number, seed: f"said {number}")
        self.pause_s, self.left, self.error = pause_s, dies_after, error

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        for item in super().stream(requests):
            if item is not None:
                if self.left == 0:
                    raise self.error("it broke")
                if self.left is not None:
                    self.left -= 1
                time.sleep(self.pause_s)
            yield item


def requests(count: int) -> list[Request]:
    return [Request(tokens=(i,), sampling=Sampling(max_tokens=20)) for i in range(count)]


def texts(found: Sequence[Completion]) -> list[str]:
    return [one.text for one in found]


EXPECTED = [f"said {i}" for i in range(100)]


def test_every_request_is_answered_once_and_a_slow_engine_gets_fewer() -> None:
    fast, slow = Slow(pause_s=0.001), Slow(pause_s=0.02)
    engine = fleet([fast, slow], batch=4)
    assert texts(engine.generate(requests(100))) == EXPECTED
    assert len(fast.asked) + len(slow.asked) == 100
    assert 4 <= len(slow.asked) < len(fast.asked)
    engine.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine")]


def test_what_an_engine_left_undone_is_done_by_the_others() -> None:
    notes: list[str] = []
    engines = [Slow(pause_s=0.002), Slow(pause_s=0.002, dies_after=3), Slow(pause_s=0.002, dies_after=0)]
    assert texts(fleet(engines, batch=5, say=notes.append).generate(requests(100))) == EXPECTED
    assert len(notes) == 2 and all("the others go on: it broke" in note for note in notes)


def test_an_engine_that_dies_last_gives_its_work_to_one_that_waits() -> None:
    idle, dying = Slow(), Slow(pause_s=0.01, dies_after=6)
    assert texts(fleet([idle, dying], batch=50, say=lambda note: None).generate(requests(100))) == EXPECTED


def test_when_all_are_gone_it_is_an_engine_error_after_what_was_finished() -> None:
    engine = fleet([Slow(dies_after=3), Slow(dies_after=2)], batch=10, say=lambda note: None)
    done: list[Any] = []
    with pytest.raises(EngineError, match="it broke"):
        done.extend(item for item in engine.stream(requests(50)) if item)
    assert len(done) == 5
    with pytest.raises(RuntimeError, match="it broke"):  # a defect is not made up for
        fleet([Slow(pause_s=0.05), Slow(dies_after=0, error=RuntimeError)], batch=3).generate(requests(50))


def test_who_stops_listening_ends_the_work() -> None:
    engines = [Slow(pause_s=0.002), Slow(pause_s=0.002)]
    stream = fleet(engines, batch=2).stream(requests(1000))
    next(item for item in stream if item)
    stream.close()  # type: ignore[attr-defined]
    time.sleep(0.05)
    assert sum(len(engine.asked) for engine in engines) < 1000
    assert fleet(engines).generate([]) == []


def test_each_engine_gets_cores_or_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 8})
    assert environments(2) == [
        {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "4"},
        {"OMP_NUM_THREADS": "2", "VLLM_CPU_OMP_THREADS_BIND": "5,8"},
    ]
    with pytest.raises(EvalError, match="engines=4, but this process may use 3 CPU cores"):
        environments(4)
    assert devices() == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices() == 4
    assert environments(2) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c,GPU-d")
    assert environments(4)[2] == {"CUDA_VISIBLE_DEVICES": "GPU-c"}


@pytest.mark.slow
def test_two_real_engines_give_the_samples_of_one_and_survive_the_death_of_one(
    tmp_path: Path, tiny_model: Path
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    start = ["--model", str(tiny_model), "--tasks", "addition", "--limit", "40", "--samples", "4", "--max-tokens", "24"]
    more = ["--engine", "hf", "--dtype", "float32", "--max-sequences", "8"]
    kept: list[Any] = []
    for count in ("1", "2"):
        out = tmp_path / count
        result = CliRunner().invoke(app, [*start, *more, "--engines", count, "--out", str(out)])
        assert result.exit_code == 0, result.output
        kept.append(read_records(out / "addition.jsonl")[1])
    assert {file.name for file in (tmp_path / "2").glob("engine*.log")} == {"engine-0.log", "engine-1.log"}
    alone, both = ([[s.text for s in record.samples] for record in records] for records in kept)
    assert alone == both
