"""Runs of a tiny model through the real command line, killed, resumed, and compared with runs that were not.

The judge is what a run leaves on disk: the digest of its last checkpoint (float32 weights and optimizer), the bytes of
the policy's safetensors, and metrics.jsonl without wall times.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmrl.train.checkpoint import digest, newest_valid
from llmrl.train.folder import read_metrics

ROOT = Path(__file__).resolve().parents[2]
START_S = 900.0  # a loaded machine takes long to import torch
WALL_TIMES = ("time/", "tokens/per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A kind of run: dotted recipe overrides, and how many processes train."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    processes: int = 1


EPISODES = {
    "data": {"source": "episodes", "max_prompt_tokens": 60, "limit": 30},
    "model.max_length": 200,
    "reward": {},
}
CASES = {
    case.name: case
    for case in (
        Case(name="float32"),
        Case(name="masters", changes={"model.dtype": "bfloat16", "train.threads": 2}),
        Case(name="lora", changes={"model.lora": {"r": 4, "alpha": 8}, "algo.kl_coef": 0.01}),
        Case(name="minibatches", changes={"train.epochs": 2, "train.minibatches": 2, "train.schedule": "cosine"}),
        Case(name="child", changes={"rollout.isolated": True, "reward.letters.isolated": True}),
        Case(name="native", changes={"model.dtype": "bfloat16", "rollout.engine": "native"}),
        Case(name="processes", processes=2),
        Case(name="stale", changes={"rollout.max_staleness": 1}),
        Case(name="stale-processes", changes={"rollout.max_staleness": 2, "rollout.isolated": True}, processes=2),
        Case(
            name="ppo",
            changes={
                "algo": {"name": "ppo", "kl_coef": 0.05},
                "controller": {"name": "adaptive_kl", "args": {"target": 0.01}},
                "critic": {"warmup_steps": 3, "whiten_targets": True},
                "reference": {"kind": "ema", "decay": 0.8},
                "train.epochs": 2,
            },
        ),
        Case(
            name="critic",
            changes={
                "model.dtype": "bfloat16",
                "algo.name": "ppo",
                "critic": {"kind": "separate", "lr": 1e-3, "privileged": "{answer}", "max_privileged_tokens": 32},
            },
        ),
        Case(
            name="pacs",
            changes={
                "algo": {"name": "pacs", "reference": "model", "label_above": 0.2},
                "reference": {"kind": "reset_every", "every": 3, "reset_optimizer": True},
                "train.minibatches": 2,
            },
        ),
        Case(
            name="outcome_critic",
            changes={
                "model.dtype": "bfloat16",
                "algo.name": "coderl",
                "reward": {"tests": {"name": "tests.durability.rewards:outcome_of_letters"}},
                "outcome_critic": {"lr": 1e-3, "every": 2, "minibatches": 2, "warmup_steps": 1},
            },
        ),
        Case(
            name="controller",  # learns from what the run shows, and sets the loss, the rate and the sampling
            changes={
                "algo": {"name": "grpo", "kl_coef": 0.05},
                "controller": {
                    "name": "sac",
                    "every": 2,
                    "observes": ["kl_ref", "length/mean"],
                    "knobs": {
                        "clip_high": {"low": 0.1, "high": 0.5},
                        "lr": {"low": 1e-4, "high": 1e-2, "log": True, "max_change": 0.5},
                        "temperature": {"low": 0.7, "high": 1.5},
                    },
                    "args": {"hidden": [8], "warmup": 1, "batch_size": 4},
                },
            },
        ),
        Case(
            name="dynamic",  # about half of the groups are uniform and get replaced
            changes={
                "algo.name": "dapo",
                "rollout.dynamic_sampling": {"max_rounds": 2},
                "reward.letters.name": "tests.durability.rewards:mostly_letters",
            },
        ),
        Case(
            name="episodes",  # several turns in worker processes, a value head, cut episodes that bootstrap
            changes={
                **EPISODES,
                "algo": {"name": "vl_dac", "kl_coef": 0.05},
                "critic": {"hidden": [16], "stop_gradient": True, "warmup_steps": 2},
                "env": {"name": "guess", "args": {"high": 9}, "turns": 3, "workers": 1},
            },
        ),
        Case(
            name="episodes-stale",
            changes={
                **EPISODES,
                "env": {"name": "tests.durability.rewards:Slow", "turns": 4, "memory": "window(1)", "isolated": False},
                "rollout.max_staleness": 1,
            },
        ),
        Case(
            name="vllm",
            changes={
                "model.dtype": "bfloat16",
                "rollout.engine": "vllm",
                "rollout.isolated": True,
                "rollout.kv_cache_gib": 1,
                "train.steps": 8,
            },
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a finished run left: compare with ==."""

    digest: str
    weights: str
    metrics: tuple[tuple[tuple[str, Any], ...], ...]


def write_recipe(folder: Path, model: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """A recipe of 12 short steps on `model`, with dotted `changes`; its run folder is `folder`/run."""
    recipe: dict[str, Any] = {
        "name": "run",
        "runs_dir": str(folder),
        "model": {"path": str(model), "dtype": "float32", "max_length": 128},
        "data": {"source": "addition", "args": {"low": 1, "high": 9}, "max_prompt_tokens": 100, "limit": 30},
        "rollout": {"engine": "hf", "isolated": False, "prompts_per_step": 4, "group_size": 4, "max_tokens": 8},
        "reward": {
            "exact": {"name": "llmrl.rewards.exact_number:ExactNumber", "isolated": False},
            "letters": {"name": "tests.durability.rewards:share_of_letters", "weight": 0.5, "isolated": False},
        },
        "algo": {"name": "grpo"},
        "train": {"steps": 12, "lr": 1.0e-3, "save_every": 2, "threads": 1, "tokens_per_microbatch": 256},
        "eval": {"every": 3, "data": {"n": 6}, "threshold": 0.25},
        "limits": {"max_mismatch": 5.0},
    }
    for dotted, value in (changes or {}).items():
        *path, last = dotted.split(".")
        node = recipe
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def command(recipe: Path, *options: str, processes: int = 1, point: str = "") -> list[str]:
    """`python -m llmrl train recipe`, or `processes` of it under torchrun; with a kill `point`, through the driver."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    program = ["tests.durability.driver", point] if point else ["llmrl"]
    return [*launcher, "-m", *program, "train", str(recipe), *options]


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command from the checkout in a session of its own, its output appended to `log`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        return subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the whole job at once, as a machine does that loses power; torchrun's ranks are in sessions of their own."""
    doomed = [process.pid, *descendants(process.pid)]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none notices the others' end
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    process.wait()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in doomed):
        assert time.monotonic() < deadline, "killed processes are still there"
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    """Processes that `pid` started, and those that they started."""
    parents = {}
    for entry in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parents[entry] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    family, before = {pid}, 0
    while len(family) > before:
        before = len(family)
        family |= {child for child, parent in parents.items() if parent in family}
    return sorted(family - {pid})


def alive(pid: int) -> bool:
    """Whether a process exists and is more than an uncollected exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def finished(recipe: Path, case: Case, *options: str) -> Result:
    """Run to the end and return what was left. Raises AssertionError with the log's end if the run fails."""
    log = recipe.parent / "log.txt"
    process = start(command(recipe, *options, processes=case.processes), log)
    try:
        code = process.wait(START_S)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    assert code == 0, f"exit code {code}: {tail(log)}"
    return result(recipe.parent / "run")


def result(run: Path) -> Result:
    """What a run left on disk."""
    folder, complaints = newest_valid(run)
    assert folder is not None and not complaints, complaints
    return Result(
        digest=digest(folder),
        weights=hashlib.sha256((folder / "policy" / "model.safetensors").read_bytes()).hexdigest(),
        metrics=tuple(
            tuple((name, value) for name, value in row.items() if not name.startswith(WALL_TIMES))
            for row in read_metrics(run)
        ),
    )


def options_for(run: Path) -> tuple[str, ...]:
    """How a user would go on after a kill: --resume, unless the kill came before the run had begun."""
    return ("--resume",) if (run / "recipe.yaml").exists() else ()


def killed_at_random(
    recipe: Path, case: Case, *, kills: int, whole_s: float, training_s: float, draw: random.Random
) -> int:
    """Start the run and kill it up to `kills` times, resuming each time; leaves it unfinished or finished.

    Half the moments are drawn from the whole duration, half from the time in which steps are made. Returns how many
    kills struck before the run had ended.
    """
    run, log = recipe.parent / "run", recipe.parent / "log.txt"
    struck = 0
    for number in range(kills):
        process = start(command(recipe, *options_for(run), processes=case.processes), log)
        if number % 2:
            time.sleep(draw.uniform(0, whole_s))
        else:
            _wait_for_training(process, log, log.stat().st_size)
            time.sleep(draw.uniform(0, training_s / 2))
        if process.poll() is not None:
            assert process.returncode == 0, tail(log)
            return struck
        kill(process)
        struck += 1
    return struck


def killed_at(point: str, recipe: Path) -> None:
    """Start or resume the run, which kills itself at `point` (see driver.py). Raises AssertionError if it does not."""
    log = recipe.parent / "log.txt"
    process = start(command(recipe, *options_for(recipe.parent / "run"), point=point), log)
    code = process.wait(START_S)
    assert code == -signal.SIGKILL, f"{point} was not reached, exit code {code}: {tail(log)}"


def _wait_for_training(process: subprocess.Popen[bytes], log: Path, before: int) -> None:
    """Until the run has printed its first line, which it does when everything is built."""
    deadline = time.monotonic() + START_S
    while log.stat().st_size <= before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def tail(log: Path, characters: int = 3000) -> str:
    """The end of a log."""
    return log.read_text(errors="replace")[-characters:]
