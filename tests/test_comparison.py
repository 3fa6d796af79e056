"""The comparison of methods: finished runs are skipped, and the table says what the runs' files say."""

import json

import pytest

from llmrl.settings.load import load_recipe
from tests.bench.compare import METHODS, PROMPTS, RECIPES, TASKS, base, runs, train
from tests.bench.compare_report import BEGIN, END, PLOT, diversity, write_report

SAMPLES = 4


def finished_run(run, *, accuracy, right):
    """What a finished run leaves, as far as the comparison reads it."""
    run.folder.mkdir(parents=True)
    (run.folder / "summary.json").write_text(json.dumps({"status": "finished", "accuracy_after": accuracy}))
    (run.folder / "cost.json").write_text(json.dumps({"wall_s": 120.0, "peak_gib": 2.5}))
    (run.folder / "sampled.json").write_text(json.dumps([{"right": n, "distinct": min(n, 2)} for n in right]))
    rows = [{"kind": "eval", "step": step, "eval/accuracy": accuracy} for step in (0, 5)]
    rows += [{"kind": "train", "step": step, "time/step": float(step)} for step in (1, 2, 3)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_method_is_run_on_every_task_the_first_seeds_first(tmp_path):
    found = list(runs(tmp_path, "m"))
    assert len(found) == len({run.folder for run in found}) == len(METHODS) * sum(len(t.seeds) for t in TASKS.values())
    assert [run.seed for run in found] == sorted(run.seed for run in found)
    assert {run.method for run in runs(tmp_path, "m", seeds=1)} == set(METHODS)
    assert all(f"seed={run.seed}" in run.changes and f"name={run.folder.name}" in run.changes for run in found)


def test_all_methods_of_a_task_start_from_one_model_and_may_ask_for_as_many_samples(tmp_path):
    for run in runs(tmp_path, "m"):
        recipe = load_recipe(RECIPES / f"{run.method}.yaml", run.changes)
        more = recipe.rollout.dynamic_sampling
        rounds = 1 + (more.max_rounds if more else 0)
        assert recipe.rollout.prompts_per_step * rounds * recipe.rollout.group_size == PROMPTS * 8
        first = base(run.task, tmp_path, "m")
        assert run.model == (str(first.folder / "stages" / "01-sft" / "model") if first else "m")
        assert not recipe.before
    first = base("countdown", tmp_path, "m")
    assert load_recipe(RECIPES / f"{first.method}.yaml", first.changes).before[0].kind == "sft"


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    run = next(runs(tmp_path, "m"))
    finished_run(run, accuracy=0.5, right=[1])
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("it was started"))
    assert train(run)


def test_the_table_and_the_plot_are_written_between_the_marks(tmp_path):
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    some = [run for run in runs(tmp_path, "m") if run.task == "countdown" and run.method in ("ppo", "pacs")]
    for run in some:
        finished_run(run, accuracy=0.2 + 0.1 * run.seed, right=[4, 2, 0, 0] if run.method == "ppo" else [1, 1, 1, 1])
    (tmp_path / "base-countdown.json").write_text(json.dumps([{"right": 0, "distinct": 0}] * 4))
    for _ in range(2):  # writing again replaces what was written
        write_report(recipes, tmp_path, some, {"countdown": "a title", "addition": "not run"}, samples=SAMPLES)
    text = (recipes / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "not run" not in text
    assert text.count("| ppo |") == text.count("| before training |") == text.count("### a title") == 1
    (ppo,) = (line for line in text.splitlines() if line.startswith("| ppo |"))
    cells = [cell.strip() for cell in ppo.strip("|").split("|")]
    assert cells[1] == "3" and cells[2] == "0.300 (0.20 to 0.40)"
    assert cells[3].startswith("0.375 [") and cells[4].startswith("0.500 [")  # pass@1, and pass@4 of 4 samples
    assert cells[-4:] == ["0.67", "2.0 min", "2.0 s", "2.5 GiB"]  # (1/3 + 1) / 2
    assert (recipes / PLOT).stat().st_size > 1000


def test_diversity_is_undefined_without_two_right_answers_to_one_problem():
    assert diversity([{"right": 1, "distinct": 1}, {"right": 0, "distinct": 0}]) is None
    assert diversity([{"right": 4, "distinct": 1}, {"right": 3, "distinct": 3}]) == 0.5
