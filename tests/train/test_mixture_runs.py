"""A run on several data sources: what each is judged by, what is said of it, and that a resumed run equals a whole one."""

import io
import json
from collections import Counter

import pytest
from rich.console import Console

from llmrl.algos.build import build_algorithm
from llmrl.commands.plan_rows import rows_of
from llmrl.compose import resolve
from llmrl.report.page import write_report
from llmrl.rollout.store import read_rollouts, rollouts_file
from llmrl.settings.load import load_recipe
from llmrl.start import run
from llmrl.train.folder import read_metrics
from tests.durability.harness import result, write_recipe

pytestmark = pytest.mark.usefixtures("settings_as_before")

CHANGES = {
    "data": {
        "sources": [
            {"source": "addition", "args": {"low": 1, "high": 9}, "weight": 2, "limit": 6, "reward": "letters"},
            {"source": "arithmetic", "name": "hard", "limit": 30, "template": "Now: {prompt}"},
        ],
        "max_prompt_tokens": 100,
    },
    "reward.ascii": {"name": "tests.train.rewards:share_of_ascii", "isolated": False},
    "rollout.prompts_per_step": 4,
    "eval": {"every": 2, "data": {"n": 6}},
    "train.steps": 6,
}


def trained(file, *changes, resume=False):
    recipe, told = load_recipe(file, list(changes)), io.StringIO()
    assert run(recipe, resolve(recipe), console=Console(file=told, width=200), resume=resume).exit_code == 0
    return recipe.run_dir, told.getvalue()


def test_a_mixture_trains_is_told_by_source_and_resumes_exactly(tmp_path, tiny_model):
    whole, halves = (write_recipe(tmp_path / part, tiny_model, CHANGES) for part in ("whole", "halves"))
    folder, told = trained(whole)
    rows = [row for step in range(1, 7) for row in read_rollouts(rollouts_file(folder, step))]
    group = load_recipe(whole).rollout.group_size
    assert Counter(row.prompt.source for row in rows) == {"addition": 16 * group, "hard": 8 * group}
    for row in rows:
        assert set(row.scores[-1].parts) == (
            {"letters"} if row.prompt.source == "addition" else {"exact", "letters", "ascii"}
        )
        assert ("Now: " in row.prompt.text) == (row.prompt.source == "hard")
    metrics = read_metrics(folder)
    means = {
        name: [row.reward for row in rows[: 4 * group] if row.prompt.source == name] for name in ("addition", "hard")
    }
    for name, values in means.items():
        assert metrics[1][f"source/{name}/reward"] == pytest.approx(sum(values) / len(values))
    evals = [row for row in metrics if row["kind"] == "eval"]
    assert {(row["eval/source/addition/n"], row["eval/source/hard/n"], row["eval/n"]) for row in evals} == {(4, 2, 6)}
    for row in evals:
        parts = [row[f"eval/source/{name}/accuracy"] * row[f"eval/source/{name}/n"] for name in ("addition", "hard")]
        assert sum(parts) == pytest.approx(row["eval/accuracy"] * 6)
    assert "training, hard: 30 prompts" in told and "  hard: 0." in told
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["sources"]["hard"]["n_eval"] == 2 and summary["sources"]["hard"]["accuracy_after"] is not None
    page = write_report(folder).read_text()
    assert "eval/source/hard/accuracy" in page and "source/addition/reward" in page

    trained(halves, "train.steps=4")
    trained(halves, "train.steps=6", resume=True)
    one, other = result(tmp_path / "whole" / "run"), result(tmp_path / "halves" / "run")
    assert one.digest == other.digest and one.weights == other.weights
    assert one.metrics == other.metrics


def test_the_loss_of_supervised_training_is_told_by_source(tmp_path, tiny_model):
    changes = {**CHANGES, "reward": {}, "algo": {"name": "sft"}, "rollout.group_size": 1}
    changes["data"] = {**CHANGES["data"], "sources": [{**one, "reward": None} for one in CHANGES["data"]["sources"]]}
    changes = {name: value for name, value in changes.items() if name != "reward.ascii"}
    folder, _ = trained(write_recipe(tmp_path, tiny_model, {**changes, "train.steps": 2}))
    last = read_metrics(folder)[-1]
    parts = [last[f"eval/source/{name}/loss"] for name in ("addition", "hard")]
    assert min(parts) < last["eval/loss"] < max(parts)


def test_plan_counts_the_rows_of_each_source(tmp_path, tiny_model):
    recipe = load_recipe(write_recipe(tmp_path, tiny_model, CHANGES))
    rows = dict(rows_of(recipe, build_algorithm(recipe.algo)))
    addition = "addition: 6 problems to train on, 4 held out; 2.67 of a step's prompts, judged by letters"
    hard = "arithmetic: 30 problems to train on, 2 held out; 1.33 of a step's prompts, judged by ascii, exact, letters"
    assert (rows["data: addition"], rows["data: hard"]) == (addition, hard)
