"""`auto` in a recipe becomes what this machine does best, and a resumed run keeps what it was started with."""

import yaml

from llmrl.automatic import settle
from llmrl.commands.plan_rows import rows_of
from llmrl.hardware import best_precision
from llmrl.settings.load import check_same_run, dump_recipe, load_recipe

RECIPE = "recipes/arithmetic/grpo.yaml"


def recipe(tmp_path, *changes):
    return load_recipe(RECIPE, [f"runs_dir={tmp_path}", *changes])


def test_auto_becomes_this_machines_choice_and_says_why(tmp_path):
    settled = settle(recipe(tmp_path))
    assert settled.recipe.model.dtype == best_precision().dtype
    assert best_precision().reason in settled.chosen["model.dtype"]
    assert settled.lines[0].startswith("model.dtype: ")


def test_an_explicit_choice_is_obeyed(tmp_path):
    for dtype in ("bfloat16", "float32"):
        settled = settle(recipe(tmp_path, f"model.dtype={dtype}"))
        assert settled.recipe.model.dtype == dtype
        assert not settled.chosen
    other = "bfloat16" if best_precision().dtype == "float32" else "float32"
    assert len(settle(recipe(tmp_path, f"model.dtype={other}")).lines) <= 1


def test_a_resumed_run_keeps_its_precision_on_another_machine(tmp_path):
    other = "bfloat16" if best_precision().dtype == "float32" else "float32"
    before = recipe(tmp_path, f"model.dtype={other}")
    before.run_dir.mkdir(parents=True)
    (before.run_dir / "recipe.yaml").write_text(dump_recipe(before))
    again = recipe(tmp_path)
    check_same_run(again)  # auto is no other recipe
    assert settle(again, resume=True).recipe.model.dtype == other
    assert settle(again).recipe.model.dtype == best_precision().dtype  # a fresh one decides anew


def test_the_plan_says_what_auto_chose(tmp_path, tiny_model):
    from llmrl.algos.build import build_algorithm

    loaded = recipe(tmp_path, f"model.path={tiny_model}")
    rows = dict(rows_of(loaded, build_algorithm(loaded.algo)))
    assert best_precision().reason in rows["model.dtype"]


def test_small_recipes_leave_the_precision_to_the_machine():
    import pathlib

    for file in pathlib.Path("recipes").rglob("*.yaml"):
        dtype = yaml.safe_load(file.read_text())["model"].get("dtype", "auto")
        assert dtype == ("bfloat16" if file.parent.name == "math_large" else "auto"), file
