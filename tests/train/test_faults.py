"""Bad luck, caused for real: what a run does when a reward, a loss, the data or the disk fails it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from llmrl.compose import resolve
from llmrl.errors import DataError, LimitExceeded, RunFolderError
from llmrl.rollout.store import read_rollouts, rollouts_file
from llmrl.settings.load import load_recipe
from llmrl.start import Outcome, run
from llmrl.train.checkpoint import checkpoints
from llmrl.train.folder import Lock, Metrics, read_metrics
from tests.durability.harness import write_recipe

QUIET = Console(quiet=True)
REWARDS = "tests.durability.rewards"


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def trained(folder: Path, model: Path, changes: dict[str, Any], **options: bool) -> Outcome:
    """A run in this process; three steps unless `changes` say otherwise."""
    recipe = load_recipe(write_recipe(folder, model, {"train.steps": 3, "eval.data": {"n": 2}, **changes}))
    return run(recipe, resolve(recipe), console=QUIET, **options)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder / "run") if row["kind"] == "train"]


def reward(name: str) -> dict[str, Any]:
    return {"reward": {"only": {"name": f"{REWARDS}:{name}", "isolated": False}}}


def test_a_reward_that_raises_on_some_rows_costs_those_rows_and_is_counted(tmp_path: Path, tiny_model: Path) -> None:
    changes = {**reward("raises_now_and_then"), "limits.max_reward_error_rate": 0.9}
    assert trained(tmp_path, tiny_model, changes).exit_code == 0
    errored = [row["reward/errored"] for row in rows(tmp_path)]
    assert 0 < sum(errored) / len(errored) < 0.6
    for row in rows(tmp_path):
        assert row["tokens/trained"] < row["tokens/sampled"] or row["reward/errored"] == 0
        assert row["grad_norm"] > 0


def test_a_reward_that_returns_nan_is_an_error_and_not_a_zero(tmp_path: Path, tiny_model: Path) -> None:
    changes = {**reward("nan_for_sample_one"), "limits.max_reward_error_rate": 0.25}
    assert trained(tmp_path, tiny_model, changes).exit_code == 0
    assert [row["reward/errored"] for row in rows(tmp_path)] == [0.25] * 3
    assert all(row["reward/mean"] > 0 for row in rows(tmp_path))


def test_a_reward_that_fails_too_often_ends_the_run_with_code_3(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(
        LimitExceeded, match=r"step 0: the reward failed on 2 of 2 held-out problems, more than limits"
    ) as e:
        trained(tmp_path, tiny_model, reward("raises_always"))
    assert e.value.exit_code == 3 and not rows(tmp_path)
    with pytest.raises(LimitExceeded, match=r"step 1: reward/errored=1 is above limits.max_reward_error_rate=0.1") as e:
        trained(tmp_path, tiny_model, {**reward("raises_always"), "eval": {"enabled": False}})
    assert e.value.exit_code == 3
    assert len(rows(tmp_path)) == 1 and not checkpoints(tmp_path / "run")


def test_a_loss_that_is_nan_is_skipped_and_counted_and_moves_nothing(tmp_path: Path, tiny_model: Path) -> None:
    assert trained(tmp_path, tiny_model, {**reward("overflows_in_version_two"), "train.steps": 4}).exit_code == 0
    assert [row["update/skipped"] for row in rows(tmp_path)] == [0, 0, 1, 0]
    assert rows(tmp_path)[2]["loss"] is None
    assert all(row["loss"] is not None and row["grad_norm"] > 0 for row in rows(tmp_path) if not row["update/skipped"])


def test_losses_that_stay_nan_end_the_run_with_code_3(tmp_path: Path, tiny_model: Path) -> None:
    changes = {**reward("overflows_always"), "limits.max_skipped_updates": 1, "train.steps": 9}
    with pytest.raises(LimitExceeded, match=r"step 2: 2 updates in a row had a non-finite loss or gradient") as e:
        trained(tmp_path, tiny_model, changes)
    assert e.value.exit_code == 3
    assert len(rows(tmp_path)) == 2


def test_a_corrupt_row_is_named_with_its_file_and_line_before_anything_starts(tmp_path: Path, tiny_model: Path) -> None:
    data = tmp_path / "data.jsonl"
    lines = [f'{{"problem": "What is {n} + {n}?", "answer": "{2 * n}"}}' for n in range(60)]
    lines[41] = lines[41][:20]
    data.write_text("\n".join(lines))
    changes = {"data": {"source": str(data), "max_prompt_tokens": 100}}
    with pytest.raises(DataError, match=r"data\.jsonl:42: invalid JSON") as e:
        trained(tmp_path, tiny_model, changes)
    assert e.value.exit_code == 2


def test_a_reward_that_hangs_is_killed_and_counted_and_not_a_zero(tmp_path: Path, tiny_model: Path) -> None:
    hanging = {"name": f"{REWARDS}:hangs_on_sample_two", "timeout_s": 0.5}
    changes = {"reward": {"only": hanging}, "limits.max_reward_error_rate": 0.3, "train.steps": 2}
    begin = time.monotonic()
    assert trained(tmp_path, tiny_model, changes).exit_code == 0
    assert time.monotonic() - begin < 60
    for row in rows(tmp_path):
        assert row["reward/timed_out"] == row["reward/errored"] == 0.25
        assert row["reward/mean"] > 0 and row["grad_norm"] > 0
    stored = read_rollouts(rollouts_file(tmp_path / "run", 1))
    assert [t.reward is None for t in stored] == [t.sample == 2 for t in stored]


def test_a_second_run_in_one_folder_is_kept_out_and_told_who_is_there(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "run").mkdir()
    lock = Lock(tmp_path / "run")
    for options in ({}, {"fresh": True}):
        with pytest.raises(RunFolderError, match=f"is in use by process {os.getpid()}; wait for it, or give"):
            trained(tmp_path, tiny_model, {}, **options)
    lock.release()
    assert trained(tmp_path, tiny_model, {}).exit_code == 0


def test_fresh_moves_the_old_run_aside_and_resume_needs_one(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(RunFolderError, match="nothing to resume"):
        trained(tmp_path, tiny_model, {}, resume=True)
    assert not (tmp_path / "run").exists()
    trained(tmp_path, tiny_model, {"train.steps": 1})
    with pytest.raises(RunFolderError, match="exists already"):
        trained(tmp_path, tiny_model, {})
    trained(tmp_path, tiny_model, {"train.steps": 2}, fresh=True)
    assert len(rows(tmp_path)) == 2 and len(read_metrics(tmp_path / "run.1")) > 0


def test_a_resume_with_changes_records_both_recipes(tmp_path: Path, tiny_model: Path) -> None:
    trained(tmp_path, tiny_model, {"train.steps": 1})
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    trained(tmp_path, tiny_model, {"train.steps": 2}, resume=True)
    assert (tmp_path / "run" / "recipe.yaml.1").read_text() == before
    assert load_recipe(tmp_path / "run" / "recipe.yaml").train.steps == 2 == len(rows(tmp_path))
    trained(tmp_path, tiny_model, {"train.steps": 2}, resume=True)
    assert not (tmp_path / "run" / "recipe.yaml.2").exists()


def test_resuming_with_another_model_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    trained(tmp_path, tiny_model, {"train.steps": 1})
    with pytest.raises(RunFolderError, match=r"was started with model.lora=None"):
        trained(tmp_path, tiny_model, {"model.lora": {"r": 2, "alpha": 4}}, resume=True)


def test_a_shortened_metrics_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(RunFolderError, match="has 3 bytes, and had 100 when the checkpoint was written"):
        Metrics(tmp_path, keep_bytes=100)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_place_is_told_before_anything_starts(tmp_path: Path, tiny_model: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(RunFolderError, match=r"run cannot be used: .*Read-only file system.*choose another") as e:
            trained(tmp_path, tiny_model, {"runs_dir": str(place)})
        assert e.value.exit_code == 2
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_told_before_anything_starts(tmp_path: Path, tiny_model: Path) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o500)
    with pytest.raises(RunFolderError, match="is not writable"):
        trained(tmp_path, tiny_model, {"runs_dir": str(place)})
