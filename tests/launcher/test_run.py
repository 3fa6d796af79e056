"""`llmrl launch` really starts processes, passes signals on, and ends as they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmrl.cli import app
from llmrl.errors import ConfigError
from llmrl.launcher.command import Command
from llmrl.launcher.run import run
from llmrl.settings.load import recipes_folder
from llmrl.train.checkpoint import newest_valid, read_state
from llmrl.train.folder import read_metrics
from tests.durability.harness import ROOT, START_S, start, tail, write_recipe

TWO = ("--gpus-per-node", "0", "--processes", "2")
QUICK = {"eval.data": {"n": 2}, "eval.every": 0}


def launched(recipe: Path, *options: str) -> subprocess.Popen[bytes]:
    return start([sys.executable, "-m", "llmrl", "launch", str(recipe), *options], recipe.parent / "log.txt")


def wait_for_step(process: subprocess.Popen[bytes], recipe: Path, step: int) -> None:
    deadline = time.monotonic() + START_S
    while len([row for row in read_metrics(recipe.parent / "run") if row["kind"] == "train"]) < step:
        assert process.poll() is None, tail(recipe.parent / "log.txt")
        assert time.monotonic() < deadline, "no step in time"
        time.sleep(0.1)


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (3, 3)])
def test_the_exit_code_is_the_childs(code, expected):
    command = Command(arguments=(sys.executable, "-c", f"raise SystemExit({code})"), environment={})
    assert run(command) == expected


def test_a_child_killed_by_a_signal_ends_as_a_shell_would_say():
    text = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run(Command(arguments=(sys.executable, "-c", text), environment={})) == 128 + signal.SIGKILL


def test_the_environment_of_the_command_reaches_the_child():
    text = "import os; raise SystemExit(int(os.environ['OMP_NUM_THREADS']))"
    assert run(Command(arguments=(sys.executable, "-c", text), environment={"OMP_NUM_THREADS": "7"})) == 7


# A child that ends with 1 however it was stopped, as torchrun does; the first signal is answered, not obeyed.
STUBBORN = """
import signal, sys, time
seen = []
signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
print("ready", flush=True)
while len(seen) < int(sys.argv[1]):
    time.sleep(0.02)
sys.exit(1)
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_each_signal_is_passed_on_and_the_end_is_that_of_a_stopped_process(signals):
    program = (
        "import sys; from llmrl.launcher.command import Command; from llmrl.launcher.run import run; "
        "sys.exit(run(Command(arguments=tuple(sys.argv[1:]), environment={})))"
    )
    arguments = [sys.executable, "-c", program, sys.executable, "-c", STUBBORN, str(signals)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        assert process.wait(60) == 143


@pytest.mark.slow
def test_two_processes_run_over_gloo_each_on_cores_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    reward = {"name": "tests.launcher.rewards:NoteTheProcess", "args": {"folder": str(tmp_path)}, "isolated": False}
    recipe = write_recipe(
        tmp_path, tiny_model, {**QUICK, "train.steps": 2, "train.threads": 0, "reward": {"only": reward}}
    )
    process = launched(recipe, *TWO)
    assert process.wait(START_S) == 0, tail(tmp_path / "log.txt")
    notes = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("rank-*.json"))]
    assert [note["rank"] for note in notes] == ["0", "1"]
    assert all(note["world"] == "2" for note in notes)
    cores = [set(note["cores"]) for note in notes]
    if len(os.sched_getaffinity(0)) > 1:
        assert not cores[0] & cores[1] and len(cores[0] | cores[1]) == len(os.sched_getaffinity(0))
    rows = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    assert len(rows) == 2 and all(row["tokens/sampled"] > 0 for row in rows)
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) >= 1


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_in_every_process_and_resume_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model, {**QUICK, "train.steps": 400, "train.save_every": 1000})
    process = launched(recipe, *TWO)
    wait_for_step(process, recipe, 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(START_S) == 143, tail(tmp_path / "log.txt")
    folder, _ = newest_valid(tmp_path / "run")
    assert folder is not None
    saved = read_state(folder).step
    assert saved >= 3  # nothing was to be saved before step 400 but by the signal
    again = launched(recipe, f"train.steps={saved + 2}", *TWO, "--resume")
    assert again.wait(START_S) == 0, tail(tmp_path / "log.txt")
    steps = [row["step"] for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    assert steps == list(range(1, saved + 3))


def test_a_dry_run_of_several_nodes_names_a_head_node_to_fill_in_and_a_real_one_asks_for_it() -> None:
    words = ["launch", str(recipes_folder() / "arithmetic" / "grpo.yaml"), "--gpus-per-node", "0", "--nodes", "2"]
    shown = CliRunner().invoke(app, [*words, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "memory of each process" in shown.output
    for rank in (0, 1):
        assert f"--node-rank {rank} --rdzv-backend c10d --rdzv-endpoint HEAD_NODE:29500" in shown.output
    assert "give it with --head" in shown.output
    assert "HEAD_NODE" not in CliRunner().invoke(app, [*words, "--dry-run", "--head", "first"]).output
    real = CliRunner().invoke(app, words)
    assert isinstance(real.exception, ConfigError) and "need --head" in str(real.exception)
