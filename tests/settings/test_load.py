"""Which file a recipe's name stands for: one's own, or one of those that come with llmrl, from any folder."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmrl.cli import app
from llmrl.errors import ConfigError
from llmrl.settings.load import find_recipe, load_recipe

ROOT = Path(__file__).parents[2]
NAMES = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "recipes").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_names_that_llmrl_recipes_prints_are_recipes_in_any_folder():
    printed = CliRunner().invoke(app, ["recipes"], env={"COLUMNS": "80"}).output
    assert len(NAMES) > 10
    for name in NAMES:
        assert name in printed
        assert find_recipe(name).samefile(ROOT / name)


def test_a_plan_of_a_packaged_recipe_works_in_any_folder():
    done = CliRunner().invoke(app, ["plan", "recipes/arithmetic/grpo.yaml", "train.steps=7"])
    assert done.exit_code == 0, done.output
    assert "runs/arithmetic" in done.output or "steps" in done.output


def test_a_file_of_ones_own_comes_before_a_packaged_one():
    own = Path("recipes/arithmetic/grpo.yaml")
    own.parent.mkdir(parents=True)
    own.write_text((ROOT / own).read_text())
    assert find_recipe(own) == own
    assert load_recipe(own, ["train.steps=7"]).train.steps == 7


def test_a_job_of_a_cluster_gets_the_whole_path_of_a_packaged_recipe():
    words = [
        "launch",
        "recipes/arithmetic/grpo.yaml",
        "--slurm",
        "--dry-run",
        "--gpus-per-node",
        "0",
        "--processes",
        "2",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    (path,) = {word for word in done.output.split() if word.endswith("recipes/arithmetic/grpo.yaml")}
    assert Path(path).is_absolute() and Path(path).samefile(ROOT / "recipes/arithmetic/grpo.yaml")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("recipes/arithmetic/gpro.yaml", "did you mean recipes/arithmetic/grpo.yaml?"),
        ("recipes/../recipes/arithmetic/grpo.yaml", "did you mean recipes/arithmetic/grpo.yaml?"),
        ("mine.yaml", "`llmrl recipes` lists what there is"),
        ("recipes", "no recipe at recipes; "),
    ],
)
def test_what_is_no_recipe_gets_the_nearest_name_or_where_to_look(typed, hint):
    with pytest.raises(ConfigError) as caught:
        load_recipe(typed)
    assert hint in str(caught.value)
