"""Stages under the real command line: killed at chosen moments, stopped by SIGTERM, and on two processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from llmrl.train.folder import read_metrics
from tests.durability.harness import CASES, START_S, Case, command, finished, start, tail, write_recipe

pytestmark = pytest.mark.slow
TRAIN = {"steps": 6, "lr": 1e-3, "batch_size": 4, "save_every": 2}
STAGES = [{"kind": kind, "train": TRAIN, "eval": {"data": {"n": 6}}} for kind in ("sft", "dpo")]
CHANGES: dict[str, Any] = {"stages": STAGES, "train.steps": 2}
POINTS = (
    "after llmrl.train.log:Log.step 5",
    "torn llmrl.train.folder:Metrics.append 5",
    "before llmrl.train.checkpoint:seal 2",
    "before llmrl.stages.run:seal 1",
    "after llmrl.stages.run:seal 1",
    "before llmrl.stages.run:shutil.rmtree 3",
    "after llmrl.stages.follow:Follower._step 5",
    "before llmrl.stages.follow:seal 2",
    "after llmrl.stages.follow:seal 2",
    "before llmrl.stages.run:seal 2",
)


def stage_rows(run: Path) -> list[dict[str, Any]]:
    rows = [row for folder in sorted((run / "stages").iterdir()) for row in read_metrics(folder)]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "tokens/per_s"))} for row in rows]


def test_kills_at_the_rare_moments_of_a_stage_leave_no_trace(tmp_path: Path, tiny_model: Path) -> None:
    case = CASES["float32"]
    whole = finished(write_recipe(tmp_path / "whole", tiny_model, CHANGES), case)
    for number, point in enumerate(POINTS):
        recipe = write_recipe(tmp_path / str(number), tiny_model, CHANGES)
        log = recipe.parent / "log.txt"
        assert start(command(recipe, point=point), log).wait(START_S) == -signal.SIGKILL, f"{point}: {tail(log)}"
        assert finished(recipe, case, "--resume") == whole, point
        assert stage_rows(recipe.parent / "run") == stage_rows(tmp_path / "whole/run"), point


def test_two_processes_learn_what_one_does_and_resume_to_the_same(tmp_path: Path, tiny_model: Path) -> None:
    pair = Case(name="pair", processes=2)
    whole = finished(write_recipe(tmp_path / "two", tiny_model, CHANGES), pair)
    finished(write_recipe(tmp_path / "one", tiny_model, CHANGES), CASES["float32"])
    losses = [[row["loss"] for row in stage_rows(tmp_path / n / "run") if "loss" in row] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == 12

    recipe = write_recipe(tmp_path / "stopped", tiny_model, CHANGES)
    log = recipe.parent / "log.txt"
    process = start(command(recipe, processes=2), log)
    while "sft: step 2/6" not in (log.read_text() if log.exists() else ""):
        assert process.poll() is None, tail(log)
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(START_S) != 0
    assert finished(recipe, pair, "--resume") == whole


def test_sigterm_ends_a_stage_with_its_exit_code_and_says_how_to_go_on(tmp_path: Path, tiny_model: Path) -> None:
    longer = [{**STAGES[0], "train": {**TRAIN, "steps": 2000, "save_every": 1000}}]
    recipe = write_recipe(tmp_path, tiny_model, {**CHANGES, "stages": longer})
    log = recipe.parent / "log.txt"
    process = start(command(recipe), log)
    while "sft: step 3/" not in (log.read_text() if log.exists() else ""):
        assert process.poll() is None, tail(log)
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(START_S) == 143
    said = log.read_text()
    assert "stopped by SIGTERM in stage sft after step" in said and "--resume" in said
    assert len(list((tmp_path / "run/stages/01-sft/checkpoints").glob("step-*"))) == 1
    assert "Warning" not in said and "Traceback" not in said, tail(log)
