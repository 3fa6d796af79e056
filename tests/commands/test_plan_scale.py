"""`llmrl plan --scale` on a run folder: what it reads, what it prints, and what it refuses."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llmrl.algos.build import build_algorithm, check_run
from llmrl.cli import app
from llmrl.commands.plan_scale import Question, plan_scale
from llmrl.errors import ConfigError
from llmrl.rollout.store import rollouts_file, write_rollouts
from llmrl.settings.load import dump_recipe, load_recipe, recipes_folder
from llmrl.step_time import Group, read_run
from tests.tiny import trajectory

FILE = recipes_folder() / "arithmetic" / "grpo.yaml"
SMALL = ("rollout.prompts_per_step=4", "rollout.group_size=2")
RECIPE = load_recipe(FILE, list(SMALL))
ASKED = Question(recipe=FILE, overrides=SMALL, cores=2, max_staleness=2)


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
    assert (found.workers, found.engine_cores, found.trainer_cores) == (1, 2, 2)
    first = {name: values[0] for name, values in found.columns.items()}
    assert len(found.columns["step_s"]) == 2
    assert [first[name] for name in ("tokens", "decode_steps", "run_tokens", "samples")] == [32, 6, 33, 8]
    assert first["step_s"] == pytest.approx(4.0 + 2.2 + 0.8 + 0.5 + 0.2)
    assert found.groups[0] == Group(prompt=3, lengths=(2, 6), trained=0)  # no advantage, not run
    assert found.groups[1] == Group(prompt=3, lengths=(2, 6), trained=11)


def test_workers_that_were_bound_to_cores_count_each_their_own(run: Path) -> None:
    (run / "environment.json").write_text(json.dumps({"cpus": 1, "command": ["/x/llmrl/launcher/rank.py", "train"]}))
    for rank in (0, 1):
        (run / f"engine-{rank}.log").touch()
    found = read_run(run)
    assert (found.workers, found.engine_cores, found.trainer_cores) == (2, 1, 1)
    assert found.columns["tokens"][0] == 16


def test_a_run_is_reproduced_and_every_number_of_workers_predicted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = plan_scale(replace(ASKED, measured=(run,)), Console(width=160))
    text = capsys.readouterr().out
    assert {result.layout.trainers for result in results} == {1, 2}
    one = next(r for r in results if r.layout.trainers == 1 and r.layout.staleness == 0)
    assert one.step_s == pytest.approx(read_run(run).step_s, rel=0.1)
    assert "the runs are alike in size" in text and "gradients are exchanged at no cost" in text


CLUSTERS = [{"cores": 8}, {"gpus_per_node": 4}, {"nodes": 2, "gpus_per_node": 2}]


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize(
    "changes", [(), ("algo.importance_cap=null",), ("rollout.engine=native",), ("rollout.sleep=true",)]
)
def test_every_layout_is_one_that_train_accepts(
    cluster: dict[str, int], changes: tuple[str, ...], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = replace(ASKED, overrides=(*SMALL, *changes), measured=(run,), **cluster)
    results = plan_scale(question, Console(width=160))
    for layout in (result.layout for result in results):
        recipe = load_recipe(FILE, [*question.overrides, *layout.changes])  # the rules of a recipe
        check_run(recipe, build_algorithm(recipe.algo), ranks=layout.trainers)  # the rules of train's start
        assert recipe.rollout.max_staleness == layout.staleness
        assert (recipe.rollout.placement == "server") == layout.apart
        if layout.staleness:
            assert not layout.apart or layout.trainers == 1
    stale = any(result.layout.staleness for result in results)
    assert stale == (changes == ())
    assert ("left out" in capsys.readouterr().out) == (changes != () or "gpus_per_node" in cluster)


def test_launch_takes_the_command_that_is_called_the_best(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan_scale(replace(ASKED, measured=(run,), cores=4), Console(width=400))
    best = capsys.readouterr().out.rpartition("the best: llmrl ")[2]
    done = CliRunner().invoke(app, [*shlex.split(best), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "the command:" in done.output


def test_a_cluster_where_train_accepts_nothing_says_why(run: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be shared equally by 3 processes"):
        plan_scale(replace(ASKED, measured=(run,), processes=3), Console())


def test_gpus_come_with_a_warning_about_whose_costs_these_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = plan_scale(replace(ASKED, gpus_per_node=4, measured=(run,)), Console(width=160))
    assert {(r.layout.trainers, r.layout.engines) for r in results if r.layout.apart} == {(1, 3), (2, 2)}
    assert "those of the machine that was measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("missing", "message"),
    [("metrics.jsonl", "there is no metrics.jsonl"), ("rollouts", "no rollouts are stored"), ("", "which warms up")],
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
        plan_scale(ASKED, Console())
