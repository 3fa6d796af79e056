"""Which file a recipe's name stands for: one's own, or one of those that come with llmrl, from any folder."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmrl.cli import app
from llmrl.errors import ConfigError
from llmrl.settings.load import dump_recipe, find_recipe, load_recipe

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


def written(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


BASE = """
name: base
model: {path: m, max_length: 128}
data: {source: addition, args: {low: 1, high: 9}}
reward: {exact: {name: "llmrl.rewards.exact_number:ExactNumber"}, brief: {name: "mine:brief"}}
algo: {name: grpo, clip_high: 0.3}
train: {steps: 5, lr: 1.0e-5}
"""


def test_a_recipe_starts_from_its_base_beside_it_and_says_what_differs(tmp_path):
    written(tmp_path / "a" / "base.yaml", BASE)
    middle = written(tmp_path / "b" / "middle.yaml", "base: ../a/base.yaml\nname: middle\ndata: {args: {high: 99}}")
    own = written(
        tmp_path / "c" / "own.yaml",
        "base: ../b/middle.yaml\nname: own\nreward: {brief: null}\nalgo: {name: rloo}\ntrain: {steps: 7}",
    )
    assert load_recipe(middle).data.args == {"low": 1, "high": 99}
    recipe = load_recipe(own, ["train.steps=9"])
    assert (recipe.name, recipe.train.steps, recipe.train.lr) == ("own", 9, 1e-5)
    assert list(recipe.reward) == ["exact"] and recipe.algo == {"name": "rloo"}
    stored = written(tmp_path / "stored.yaml", dump_recipe(recipe))
    assert load_recipe(stored) == recipe  # a run's record needs no base


def test_a_base_may_be_a_packaged_recipe(tmp_path):
    own = written(tmp_path / "own.yaml", "base: recipes/arithmetic/grpo.yaml\nname: own")
    assert load_recipe(own).name == "own" and load_recipe(own).algo["name"] == "grpo"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: own.yaml", "leads back to a recipe that starts from this one"),
        ("base: [a]", r"base must be the path of a recipe, not \['a'\]"),
        ("base: recipes/arithmetic/gpro.yaml", "did you mean recipes/arithmetic/grpo.yaml"),
    ],
)
def test_a_base_that_cannot_be_says_why(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(written(tmp_path / "own.yaml", text))


@pytest.mark.parametrize(
    ("overrides", "prompt", "completion"),
    [
        ([], 64, 64),
        (["model.max_length=1024"], 768, 256),
        (["rollout.max_tokens=100"], 28, 100),
        (["data.max_prompt_tokens=100"], 100, 28),
        (["model.max_length=2048", "eval.max_tokens=1024"], 1024, 256),
    ],
)
def test_lengths_that_are_left_out_are_what_max_length_leaves(tmp_path, overrides, prompt, completion):
    recipe = load_recipe(written(tmp_path / "own.yaml", BASE), overrides)
    assert (recipe.data.max_prompt_tokens, recipe.rollout.max_tokens) == (prompt, completion)


def test_lengths_that_are_said_and_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is more than model\.max_length=128"):
        load_recipe(written(tmp_path / "own.yaml", BASE), ["data.max_prompt_tokens=100", "rollout.max_tokens=50"])


def test_evaluation_can_be_off(tmp_path):
    file = written(tmp_path / "own.yaml", BASE + "eval: off\n")
    recipe = load_recipe(file)
    assert recipe.eval.held_out is None
    assert load_recipe(written(tmp_path / "stored.yaml", dump_recipe(recipe))) == recipe
    on = written(tmp_path / "on.yaml", BASE + "eval: {every: 5}\n")
    assert load_recipe(on, ["eval=off"]).eval.held_out is None
    with pytest.raises(ConfigError, match=r"eval: off and eval\.every or eval\.tasks exclude each other"):
        load_recipe(on, ["eval.enabled=false"])
    with pytest.raises(ConfigError, match=r"train\.patience=2 counts evaluations.*set eval\.every"):
        load_recipe(file, ["train.patience=2"])


def test_null_takes_a_reward_out():
    sft = str(ROOT / "recipes" / "programs" / "sft.yaml")
    assert load_recipe(sft, ["reward=null"]).reward == {} == load_recipe(sft, ["reward.tests=null"]).reward
    with pytest.raises(ConfigError, match="reward"):
        load_recipe(sft, ["reward=3"])
