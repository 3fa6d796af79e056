"""Bad luck with processes and disks, caused for real from outside: signals, dead children, dead ranks, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmrl.train.checkpoint import newest_valid, read_state
from llmrl.train.folder import read_metrics
from tests.durability.harness import CASES, ROOT, START_S, command, finished, start, tail, write_recipe

BOUND_S = 300.0  # for an end that takes seconds (45 with the launcher's 30 of patience) on a machine at rest
QUICK = {"eval.data": {"n": 2}, "eval.every": 0}


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start commands; whatever is left of them is killed after the test."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(recipe: Path, *options: str, processes: int = 1) -> subprocess.Popen[bytes]:
        process = start(command(recipe, *options, processes=processes), recipe.parent / "log.txt")
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def steps_done(recipe: Path) -> int:
    return sum(row["kind"] == "train" for row in read_metrics(recipe.parent / "run"))


def wait_for_step(process: subprocess.Popen[bytes], recipe: Path, step: int) -> None:
    deadline = time.monotonic() + START_S
    while steps_done(recipe) < step:
        assert process.poll() is None, tail(recipe.parent / "log.txt")
        assert time.monotonic() < deadline, "no step in time"
        time.sleep(0.05)


def children(pid: int, marker: str) -> list[int]:
    """Descendants of `pid` whose command line has `marker`."""
    parents, lines = {}, {}
    for entry in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            parents[entry] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            lines[entry] = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
    family, before = {pid}, 0
    while len(family) > before:
        before = len(family)
        family |= {child for child, parent in parents.items() if parent in family}
    return sorted(child for child in family - {pid} if marker in lines.get(child, ""))


def gone(pid: int) -> bool:
    """Whether a process ends within ten seconds; one that is dead and not yet collected counts."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_that_dies_or_hangs_is_replaced_and_counted(
    number: signal.Signals, tmp_path: Path, tiny_model: Path, started: Callable[..., Any]
) -> None:
    changes = {"rollout.isolated": True, "rollout.stall_timeout_s": 8.0, "rollout.max_tokens": 24, "train.steps": 8}
    recipe = write_recipe(tmp_path, tiny_model, QUICK | changes)
    process = started(recipe)
    wait_for_step(process, recipe, 2)
    (engine,) = children(process.pid, "llmrl.rollout.process")
    os.kill(engine, number)
    assert process.wait(START_S) == 0, tail(tmp_path / "log.txt")
    rows = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    assert len(rows) == 8
    assert sum(row["engine/restarts"] for row in rows) == 1
    assert 0 <= sum(row["engine/regenerated"] for row in rows) <= 16
    assert all(row["rollout/errored"] == 0 and row["mismatch/mean_abs_logprob"] < 1e-4 for row in rows)
    assert gone(engine)


@pytest.mark.slow
def test_an_engine_that_keeps_dying_ends_the_run_with_the_end_of_its_log(
    tmp_path: Path, tiny_model: Path, started: Callable[..., Any]
) -> None:
    changes = {"rollout.isolated": True, "limits.max_engine_restarts": 0, "train.steps": 500, "train.save_every": 1}
    recipe = write_recipe(tmp_path, tiny_model, QUICK | changes)
    process = started(recipe)
    wait_for_step(process, recipe, 2)
    os.kill(children(process.pid, "llmrl.rollout.process")[0], signal.SIGKILL)
    assert process.wait(BOUND_S) == 1
    assert "error: the hf engine died (exit code -9)" in tail(tmp_path / "log.txt").replace("\n", " ")
    assert newest_valid(tmp_path / "run")[0] is not None


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_saves_ends_with_its_code_and_resumes_equal(
    number: signal.Signals, code: int, tmp_path: Path, tiny_model: Path, started: Callable[..., Any]
) -> None:
    case = CASES["float32"]
    changes = {"train.save_every": 100, "train.steps": 16, **QUICK}
    expected = finished(write_recipe(tmp_path / "whole", tiny_model, changes), case)
    recipe = write_recipe(tmp_path / "stopped", tiny_model, changes)
    process = started(recipe)
    wait_for_step(process, recipe, 3)
    process.send_signal(number)
    assert process.wait(BOUND_S) == code, tail(recipe.parent / "log.txt")
    folder, _ = newest_valid(recipe.parent / "run")
    assert folder is not None and 3 <= read_state(folder).step == steps_done(recipe) < 16
    assert f"stopped by {number.name} after step {steps_done(recipe)}" in tail(recipe.parent / "log.txt")
    assert finished(recipe, case, "--resume") == expected


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_the_job_in_bounded_time_and_says_so(
    number: signal.Signals, tmp_path: Path, tiny_model: Path, started: Callable[..., Any]
) -> None:
    changes = {"train.steps": 500, "train.save_every": 1, "limits.rank_timeout_s": 10.0}
    recipe = write_recipe(tmp_path, tiny_model, QUICK | changes)
    process = started(recipe, processes=2)
    wait_for_step(process, recipe, 2)
    ranks = children(process.pid, "-m llmrl train")
    assert len(ranks) == 2
    os.kill(ranks[1], number)
    assert process.wait(BOUND_S) == 1
    log = (tmp_path / "log.txt").read_text()
    if number == signal.SIGSTOP:
        assert "error: another process of this run died or hung" in log
    else:
        assert "Signal 9 (SIGKILL)" in log or "died or hung" in log
    assert all(gone(rank) for rank in ranks)
    assert newest_valid(tmp_path / "run")[0] is not None


@pytest.mark.slow
def test_a_rank_with_nothing_to_train_does_not_hold_up_the_others(tmp_path: Path, tiny_model: Path) -> None:
    reward = {"name": "tests.durability.rewards:raises_on_rank_one_in_version_one", "isolated": False}
    changes = {"reward": {"only": reward}, "limits.max_reward_error_rate": 0.6, "train.steps": 3, "eval.every": 0}
    finished(write_recipe(tmp_path, tiny_model, changes), replace(CASES["processes"], name="idle"))
    rows = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    assert [row["reward/errored"] for row in rows] == [0, 0.5, 0]
    assert all(row["grad_norm"] > 0 and row["update/skipped"] == 0 for row in rows)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_and_saves_all_and_resumes_equal(
    tmp_path: Path, tiny_model: Path, started: Callable[..., Any]
) -> None:
    case, changes = CASES["processes"], {"train.save_every": 100, "train.steps": 40}
    expected = finished(write_recipe(tmp_path / "whole", tiny_model, changes), case)
    recipe = write_recipe(tmp_path / "stopped", tiny_model, changes)
    process = started(recipe, processes=2)
    wait_for_step(process, recipe, 3)
    os.kill(children(process.pid, "-m llmrl train")[1], signal.SIGTERM)
    assert process.wait(BOUND_S) == 1  # the launcher's own code
    log = tail(recipe.parent / "log.txt", 20_000)
    assert "exitcode  : 143" in log and "stopped by SIGTERM after step" in log
    folder, _ = newest_valid(recipe.parent / "run")
    assert folder is not None and 3 <= read_state(folder).step == steps_done(recipe) < 40
    assert finished(recipe, case, "--resume") == expected


@pytest.mark.slow
def test_a_rank_that_dies_under_accelerate_launch_ends_the_job(tmp_path: Path, tiny_model: Path) -> None:
    changes = {"train.steps": 500, "train.save_every": 1}
    recipe = write_recipe(tmp_path, tiny_model, QUICK | changes)
    # --cpu would start a single process; without a GPU the trainer takes gloo on the CPU by itself.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        "-m",
    ]
    process = start([*launcher, "llmrl", "train", str(recipe)], tmp_path / "log.txt")
    try:
        wait_for_step(process, recipe, 2)
        ranks = children(process.pid, "-m llmrl train")
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        assert process.wait(BOUND_S) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    log = (tmp_path / "log.txt").read_text()
    assert "SIGKILL" in log or "died or hung" in log


@pytest.mark.slow
def test_a_second_run_in_a_folder_that_is_in_use_is_told_by_whom(
    tmp_path: Path, tiny_model: Path, started: Callable[..., Any]
) -> None:
    recipe = write_recipe(tmp_path, tiny_model, QUICK | {"train.steps": 500})
    first = started(recipe)
    wait_for_step(first, recipe, 1)
    found = subprocess.run(command(recipe, "--resume"), cwd=ROOT, capture_output=True, text=True, timeout=START_S)
    assert found.returncode == 2
    assert f"is in use by process {first.pid}" in found.stderr.replace("\n", " ")
    assert first.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_ends_the_run_and_spares_the_last_checkpoint_and_resume_is_exact(
    tmp_path: Path, tiny_model: Path, started: Callable[..., Any]
) -> None:
    case = CASES["float32"]
    changes = {"train.steps": 14, "train.save_every": 2, "train.keep_last": 2, **QUICK}
    expected = finished(write_recipe(tmp_path / "whole", tiny_model, changes), case)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        recipe = write_recipe(disk, tiny_model, changes)
        process = started(recipe)
        wait_for_step(process, recipe, 5)
        with pytest.raises(OSError, match="No space left"):
            _fill(disk / "ballast")
        assert process.wait(BOUND_S) == 1, tail(disk / "log.txt")
        log = subprocess.run(command(recipe, "--resume"), cwd=ROOT, capture_output=True, text=True, timeout=START_S)
        assert log.returncode == 1 and "error:" in log.stderr and "Traceback" not in log.stderr, log.stderr
        folder, complaints = newest_valid(disk / "run")
        assert folder is not None and read_state(folder).step >= 2 and not complaints
        (disk / "ballast").unlink()
        assert finished(recipe, case, "--resume") == expected
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def _fill(file: Path) -> None:
    """Take all the room there is; raises OSError when there is none left."""
    with file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
