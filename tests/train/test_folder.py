"""The run folder: who may use it, and what is written in it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmrl.errors import RunFolderError
from llmrl.settings.load import load_recipe, parse_recipe
from llmrl.train.folder import Lock, Metrics, open_folder, read_metrics, write_summary


def recipe(runs, name="run"):
    return parse_recipe(
        {
            "name": name,
            "runs_dir": str(runs),
            "model": {"path": "tiny"},
            "data": {"source": "addition"},
            "reward": {"exact": {"name": "llmrl.rewards.exact_number:ExactNumber"}},
            "algo": {"name": "grpo"},
            "train": {"steps": 3},
        }
    )


def opened(runs, **more):
    open_folder(recipe(runs), **{"resume": False, "fresh": False, **more}).release()


def test_a_new_folder_holds_the_whole_recipe_and_the_environment(tmp_path):
    opened(tmp_path)
    stored = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert stored == recipe(tmp_path)
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["train"]["lr"] == 1e-6  # defaults spelled out
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["python"].startswith("3.") and "torch" in environment["packages"]


def test_an_existing_run_is_never_written_over(tmp_path):
    opened(tmp_path)
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(RunFolderError, match=r"exists already; continue it with --resume, start over with --fresh"):
        opened(tmp_path)
    opened(tmp_path, resume=True)


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(RunFolderError, match="nothing to resume"):
        opened(tmp_path, resume=True)
    assert not (tmp_path / "run").exists()


def test_fresh_moves_the_old_run_aside_and_deletes_nothing(tmp_path):
    for number in range(3):
        opened(tmp_path, fresh=True)
        (tmp_path / "run" / "note").write_text(str(number))
    kept = {folder.name: (folder / "note").read_text() for folder in tmp_path.iterdir()}
    assert kept == {"run": "2", "run.1": "0", "run.2": "1"}


def test_a_folder_in_use_is_refused_also_for_fresh_and_freed_when_its_process_dies(tmp_path):
    opened(tmp_path)
    hold = "import sys, time; from pathlib import Path; from llmrl.train.folder import Lock\n"
    hold += "lock = Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", hold, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as other:
        assert other.stdout.readline() == "held\n"
        for choice in ({"resume": True}, {"fresh": True}):
            with pytest.raises(RunFolderError, match=f"in use by process {other.pid}"):
                opened(tmp_path, **choice)
        other.kill()
        other.wait()
    opened(tmp_path, resume=True)


def test_the_lock_is_of_this_process_too(tmp_path):
    lock = Lock(tmp_path)
    with pytest.raises(RunFolderError, match=f"process {os.getpid()}"):
        Lock(tmp_path)
    lock.release()
    Lock(tmp_path).release()


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # to root nothing is read-only
    try:
        with pytest.raises(RunFolderError, match=r"not writable .*another runs_dir"):
            opened(tmp_path / "runs")
    finally:
        os.seteuid(user)


def test_a_file_in_the_way_says_so(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunFolderError, match="cannot be used"):
        opened(tmp_path / "runs")


def test_metrics_are_one_line_a_row_and_a_resume_cuts_them_back(tmp_path):
    metrics = Metrics(tmp_path, keep_bytes=0)
    metrics.append("train", 1, {"loss": 0.5, "grad_norm": math.inf})
    kept = metrics.bytes
    metrics.append("train", 2, {"loss": math.nan})
    metrics.close()
    assert read_metrics(tmp_path) == [
        {"kind": "train", "step": 1, "grad_norm": None, "loss": 0.5},
        {"kind": "train", "step": 2, "loss": None},
    ]
    again = Metrics(tmp_path, keep_bytes=kept)
    again.append("train", 2, {"loss": 0.25})
    again.close()
    assert [row["loss"] for row in read_metrics(tmp_path)] == [0.5, 0.25]


def test_half_a_line_of_a_killed_run_is_not_a_row(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "train", "st')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    assert read_metrics(tmp_path / "nowhere") == []


def test_the_summary_by_hand(tmp_path):
    opened(tmp_path)
    run = tmp_path / "run"
    metrics = Metrics(run, keep_bytes=0)
    low_high = {"eval/low": 0.1, "eval/high": 0.3, "eval/n": 50}
    metrics.append("eval", 0, {"eval/accuracy": 0.2, "time/eval": 4.0, **low_high})
    for step in (1, 2):
        metrics.append(
            "train", step, {"tokens/sampled": 300, "time/step": 2.0, "time/generate": 1.25, "time/update": 0.5}
        )
    metrics.append("eval", 2, {"eval/accuracy": 0.6, "time/eval": 3.0, **low_high, "eval/high": 0.7})
    metrics.close()
    summary = write_summary(run, recipe=recipe(tmp_path), status="interrupted")
    assert summary == json.loads((run / "summary.json").read_text())
    expected = {
        "status": "interrupted",
        "accuracy_before": 0.2,
        "accuracy_before_interval": [0.1, 0.3],
        "accuracy_after": 0.6,
        "accuracy_after_interval": [0.1, 0.7],
        "accuracy_after_step": 2,
        "n_eval": 50,
        "train_wall_s": 4.0,
        "seconds": {"eval": 7.0, "generate": 2.5, "update": 1.0, "checkpoint": 0.0},
        "tokens_per_s": 150.0,
        "steps": 3,
        "completed_steps": 2,
        "seed": 0,
    }
    assert {name: summary[name] for name in expected} == expected


def test_a_summary_of_nothing_is_a_summary(tmp_path):
    opened(tmp_path)
    summary = write_summary(tmp_path / "run", recipe=recipe(tmp_path), status="failed")
    assert (summary["accuracy_before"], summary["tokens_per_s"], summary["completed_steps"]) == (None, None, 0)
