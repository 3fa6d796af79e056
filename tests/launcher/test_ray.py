"""`llmrl launch --ray`: the command, and the job on a real cluster of this machine where Ray has its job server."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from llmrl.launcher import ray as launching
from llmrl.launcher.topology import topology
from llmrl.train.folder import read_metrics
from tests.durability.harness import write_recipe

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 3, 4, 5, 6, 7)
HAS_JOBS = importlib.util.find_spec("ray") is not None and importlib.util.find_spec("aiohttp_cors") is not None


def test_the_driver_reads_what_the_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = topology(backend="fsdp2", nodes=2, gpus_per_node=8, processes=None)
    words = ("train", "r.yaml", "name=a b", "--resume")
    command = launching.job_command(chosen, words, name="run", address="http://head:8265", cores=64, now=NOW)
    assert command[:7] == (
        "ray", "job", "submit", "--address", "http://head:8265", "--submission-id", "run-20260304-050607"
    )  # fmt: skip
    environment = json.loads(command[command.index("--runtime-env-json") + 1])
    assert environment == {"env_vars": {"PYTHONPATH": str(ROOT)}}
    begin = command.index("llmrl.launcher.ray")
    seen: dict[str, object] = {}

    def drive(*arguments: object, **named: object) -> int:
        seen.update(named, chosen=arguments[0], words=arguments[1])
        return 7

    monkeypatch.setattr(launching, "drive", drive)
    assert launching.main(command[begin + 1 :]) == 7
    assert seen == {"chosen": chosen, "words": list(words), "name": "run", "cores": 64, "folder": str(Path.cwd())}


def test_a_run_can_be_submitted_again() -> None:
    chosen = topology(backend="ddp", nodes=1, gpus_per_node=0, processes=2)
    first, second = (
        launching.job_command(chosen, (), name="run", address=None, cores=1, now=NOW.replace(second=second))
        for second in (1, 2)
    )
    assert [one for one, other in zip(first, second, strict=True) if one != other] == ["run-20260304-050601"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(the job server's address, the environment to reach it) of a cluster with two CPUs."""
    command = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
    token = tmp_path / "token"
    token.write_text("a" * 64)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = [command, "start", "--head", "--num-cpus=2", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    subprocess.run([*start, f"--dashboard-port={port}"], env=environment, check=True, capture_output=True, timeout=120)
    yield f"http://127.0.0.1:{port}", environment
    subprocess.run([command, "stop", "--force"], env=environment, check=True, capture_output=True, timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_JOBS, reason="no ray[default]")
def test_a_job_trains_with_two_processes_and_resumes(
    cluster: tuple[str, dict[str, str]], tmp_path: Path, tiny_model: Path
) -> None:
    address, environment = cluster
    recipe = write_recipe(tmp_path, tiny_model, {"rollout.engine": "hf", "train.steps": 2})
    command = [sys.executable, "-m", "llmrl", "launch", str(recipe), "--ray", "--ray-address", address]
    command += ["--gpus-per-node", "0", "--processes", "2", "--cores", "1"]
    for more in ([], ["train.steps=3", "--resume"]):
        done = subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (run,) = tmp_path.glob("*/metrics.jsonl")
    assert [row["step"] for row in read_metrics(run.parent) if row["kind"] == "train"] == [1, 2, 3]
