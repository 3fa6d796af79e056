"""`llmrl plan --scale` on a run folder: what it reads, what it prints, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from llmrl.errors import ConfigError
from llmrl.rollout.store import rollouts_file, write_rollouts
from llmrl.scale.commands import Question, plan_scale
from llmrl.scale.costs import read_run
from llmrl.scale.workload import Group
from llmrl.settings.load import dump_recipe, load_recipe, recipes_folder
from tests.tiny import trajectory

RECIPE = load_recipe(
    recipes_folder() / "arithmetic" / "grpo.yaml", ["rollout.prompts_per_step=4", "rollout.group_size=2"]
)
EMPTY = Question(
    nodes=1, gpus_per_node=0, processes=None, cores=2, bound=True, measured=(), check=(), given=(), network_gb_s=None,
    max_staleness=2,
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three steps of four prompts: completions of 2 and 6 tokens, the first prompt's with advantages of zero."""
    folder = tmp_path / "run"
    (folder / "rollouts").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(RECIPE))
    (folder / "environment.json").write_text(json.dumps({"cpus": 2, "command": ["llmrl", "train"]}))
    lines = []
    for step in (1, 2, 3):
        rows = [
            trajectory((1, 2, 3), [[7] * size], group=f"g{number}", sample=sample)
            for number in range(4)
            for sample, size in enumerate((2, 6))
        ]
        advantages = [0.0 if row.prompt.id == "g0" else 1.0 for row in rows]
        write_rollouts(rollouts_file(folder, step), rows, advantages)
        times = {"generate": 4.0, "update": 2.0 + step / 10, "reward": 0.8, "sync": 0.5, "checkpoint": 1.0}
        times["step"] = sum(times.values()) + 0.2
        values = {"tokens/sampled": 32, "tokens/packed": 33} | {f"time/{name}": s for name, s in times.items()}
        lines.append(json.dumps({"kind": "train", "step": step, **values}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_a_run_is_read_without_its_first_step_and_its_checkpoints(run: Path) -> None:
    found = read_run(run)
    assert (found.workers, found.machine, found.engine_threads, found.trainer_threads) == (1, 2, 2, 2)
    assert len(found.rows) == 2
    row = found.rows[0]
    assert (row.tokens, row.decode_steps, row.run_tokens, row.samples) == (32, 6, 33, 8)
    assert row.step_s == pytest.approx(4.0 + 2.2 + 0.8 + 0.5 + 0.2)
    assert found.groups[0] == Group(prompt=3, lengths=(2, 6), trained=0)  # no advantage, not run
    assert found.groups[1] == Group(prompt=3, lengths=(2, 6), trained=11)


def test_workers_that_were_bound_to_cores_count_each_their_own(run: Path) -> None:
    (run / "environment.json").write_text(json.dumps({"cpus": 1, "command": ["/x/llmrl/launching/rank.py", "train"]}))
    for rank in (0, 1):
        (run / f"engine-{rank}.log").touch()
    found = read_run(run)
    assert (found.workers, found.machine, found.engine_threads, found.trainer_threads) == (2, 2, 1, 1)
    assert found.rows[0].tokens == 16 and found.rows[0].engine_cores == 1


def test_a_run_is_reproduced_and_every_number_of_workers_predicted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = plan_scale(RECIPE, replace(EMPTY, measured=(run,)), Console(width=160))
    text = capsys.readouterr().out
    assert {result.layout.trainers for result in results} == {1, 2}
    one = next(r for r in results if r.layout.trainers == 1 and r.layout.staleness == 0)
    assert one.step_s == pytest.approx(read_run(run).step_s, rel=0.1)
    assert "the runs are alike in size" in text and "gradients are exchanged at no cost" in text


def test_a_cluster_of_gpus_gets_splits_and_a_warning_about_whose_costs_these_are(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = plan_scale(RECIPE, replace(EMPTY, gpus_per_node=4, measured=(run,)), Console(width=160))
    assert {(r.layout.trainers, r.layout.engines) for r in results if not r.layout.shared} == {(1, 3), (2, 2)}
    assert "those of the machine that was measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("missing", "message"),
    [("metrics.jsonl", "there is no metrics.jsonl"), ("rollouts", "no rollouts are stored"), ("", "which warm up")],
)
def test_a_folder_that_says_too_little_is_refused(missing: str, message: str, run: Path) -> None:
    if missing == "rollouts":
        for file in (run / "rollouts").iterdir():
            file.unlink()
    elif missing:
        (run / missing).unlink()
    else:
        (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(ConfigError, match=message):
        read_run(run)


def test_without_a_measured_run_it_says_how_to_make_one() -> None:
    with pytest.raises(ConfigError, match="train a few steps"):
        plan_scale(RECIPE, EMPTY, Console())
