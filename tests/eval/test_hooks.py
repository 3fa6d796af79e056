"""Benchmarks during training: what recipes may name, what lands in the run's metrics, and that resuming changes nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from llmrl.compose import resolve
from llmrl.errors import ConfigError
from llmrl.eval.hooks import metrics, training_benchmarks
from llmrl.eval.records import Record, Sample, read_records
from llmrl.report.page import write_report
from llmrl.settings.load import parse_recipe
from llmrl.settings.recipe import Recipe
from llmrl.start import run
from llmrl.train.folder import read_metrics
from llmrl.train.world import World
from tests.eval.fakes import FakeEngine

pytestmark = pytest.mark.usefixtures("settings_as_before")


def recipe(folder: Path, model: Path, *, steps: int = 3, tasks: Any = ("addition",), **evals: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "run",
            "runs_dir": str(folder),
            "model": {"path": str(model), "dtype": "float32", "max_length": 128},
            "data": {"source": "addition", "args": {"low": 1, "high": 9}, "max_prompt_tokens": 100, "limit": 30},
            "rollout": {"engine": "hf", "isolated": False, "prompts_per_step": 2, "group_size": 4, "max_tokens": 8},
            "reward": {"ascii": {"name": "tests.train.rewards:share_of_ascii", "isolated": False}},
            "algo": {"name": "grpo"},
            "train": {"steps": steps, "lr": 1e-3, "threads": 1, "tokens_per_microbatch": 256, "save_every": 1},
            "eval": {"every": 1, "data": {"n": 3}, "tasks": list(tasks), **evals},
            "limits": {"max_mismatch": 5.0},
        }
    )


def train(made: Recipe, **more: Any) -> list[dict[str, Any]]:
    outcome = run(made, resolve(made), console=Console(file=io.StringIO()), **more)
    assert outcome.exit_code == 0
    return [row for row in read_metrics(made.run_dir) if row["kind"] == "eval"]


TASKS = (
    {"name": "addition", "limit": 4, "samples": 2, "temperature": 0.8, "max_tokens": 5, "every": 2},
    {"name": "arithmetic", "limit": 3, "max_tokens": 4},
)


def benchmark_part(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name.startswith(("eval/addition", "eval/arithmetic"))}


def test_benchmarks_land_in_metrics_and_report_and_a_resumed_run_records_the_same(
    tmp_path: Path, tiny_model: Path
) -> None:
    whole = train(recipe(tmp_path / "whole", tiny_model, tasks=TASKS))
    assert [row["step"] for row in whole] == [0, 1, 2, 3]
    assert [row["step"] for row in whole if "eval/addition/score" in row] == [0, 2, 3]  # its own `every`, and the last
    assert all({"eval/arithmetic/score", "eval/arithmetic/low", "eval/arithmetic/high"} <= set(row) for row in whole)
    assert whole[0]["eval/addition/n"] == 4 and whole[0]["eval/addition/pass@2"] >= whole[0]["eval/addition/score"]
    settings, records = read_records(tmp_path / "whole" / "run" / "benchmarks" / "step-000002" / "addition.jsonl")
    assert (settings["sampling"]["samples"], settings["sampling"]["temperature"]) == (2, 0.8)
    assert len(records) == 4 and all(sample.tokens <= 5 for record in records for sample in record.samples)
    text = write_report(tmp_path / "whole" / "run").read_text()
    assert "eval/addition/score" in text

    part = recipe(tmp_path / "part", tiny_model, tasks=TASKS, steps=2)
    train(part)
    stale = tmp_path / "part" / "run" / "benchmarks" / "step-000003" / "addition.jsonl"
    stale.parent.mkdir()
    stale.write_text("from another time\n")  # made before a crash, say
    resumed = train(recipe(tmp_path / "part", tiny_model, tasks=TASKS), resume=True)
    assert [benchmark_part(row) for row in resumed] == [benchmark_part(row) for row in whole]
    assert (
        read_records(stale)[1]
        == read_records(tmp_path / "whole" / "run" / "benchmarks" / "step-000003" / "addition.jsonl")[1]
    )


def test_benchmarks_do_not_touch_training(tmp_path: Path, tiny_model: Path) -> None:
    losses = []
    for name, tasks in (("with", TASKS), ("without", ())):
        made = recipe(tmp_path / name, tiny_model, tasks=tasks)
        train(made)
        losses.append([row["loss"] for row in read_metrics(made.run_dir) if row["kind"] == "train"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("tasks", "reason"),
    [
        (["adition"], "eval.tasks: unknown task 'adition'; did you mean 'addition'"),
        (["addition", "addition"], "named twice"),
        ([{"name": "addition", "max_tokens": 400}], r"needs \d+ tokens .* more than model.max_length=128"),
        ([{"name": "addition", "samples": 2, "temperature": 0}], "would all be the same"),
        (["countdown_hard"], "give --data-dir"),
    ],
)
def test_wrong_benchmarks_are_refused_before_anything_runs(
    tmp_path: Path, tiny_model: Path, tasks: Any, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve(recipe(tmp_path, tiny_model, tasks=tasks))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tasks": [{"name": "addition", "every": 3}], "every": 2}, "every=3 is no multiple of eval.every=2"),
        ({"tasks": [{"name": "addition", "sample": 3}]}, "sample"),
    ],
)
def test_wrong_keys_of_benchmarks_are_errors_of_the_recipe(
    tmp_path: Path, tiny_model: Path, changes: Any, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        recipe(tmp_path, tiny_model, **changes)


class Called(FakeEngine):
    """Counts how often it is asked."""

    calls = 0

    def generate(self, requests: Any) -> Any:
        self.calls += 1
        return super().generate(requests)


@pytest.mark.parametrize(("limit", "order"), [(5, (1, 0)), (1, (0, 1))])
def test_two_ranks_ask_each_question_once_and_get_the_numbers_of_one(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, limit: int, order: tuple[int, int]
) -> None:
    monkeypatch.setattr("llmrl.eval.run.WINDOW", 2)
    made = recipe(tmp_path, tiny_model, tasks=[{"name": "addition", "limit": limit, "max_tokens": 9}])
    benchmarks = training_benchmarks(made, str(tiny_model))

    def engine() -> FakeEngine:
        return FakeEngine(lambda number, seed: str((seed or 0) % 3))

    alone = benchmarks(engine(), World(), 0)
    path = tmp_path / "run" / "benchmarks" / "step-000000" / "addition.jsonl"
    kept = read_records(path)
    gathered: list[Record] = []
    ranks = [
        SimpleNamespace(
            rank=rank,
            size=2,
            main=rank == 0,
            share=lambda items, rank=rank: items[rank::2],
            gather=lambda items: gathered.extend(items) or list(gathered),
        )
        for rank in order
    ]
    asked, calls = [], []
    for world in ranks:  # the last to gather has everything, as both would
        one = Called(lambda number, seed: str((seed or 0) % 3))
        together = benchmarks(one, world, 0)  # type: ignore[arg-type]
        asked.append(len(one.asked))
        calls.append(one.calls)
    assert asked == [limit // 2, limit - limit // 2][:: 1 if order == (1, 0) else -1]
    assert calls[0] == calls[1]  # an engine that rank 0 holds for everybody is called by all ranks together
    assert together == alone
    assert read_records(path) == kept
    assert [file.name for file in path.parent.iterdir()] == ["addition.jsonl"]


def test_a_benchmark_that_could_not_be_scored_says_so_and_stops_nothing() -> None:
    sample = Sample(text="", tokens=1, logprob=None, status="error", value=None, error="the engine failed")
    record = Record(index=0, question="q", prompt="", prompt_tokens=1, gold="", columns={}, samples=(sample,))
    assert metrics("toy", [record]) == {"eval/toy/n": 1.0, "eval/toy/unscored": 1.0}
    assert json.dumps(metrics("toy", [record]), allow_nan=False)
