"""`auto` in a recipe becomes what this machine does best, and a resumed run keeps what it was started with."""

import subprocess
import sys

import pytest

from llmrl.automatic import engine_for, engine_to_play, model_type, settle
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
        assert "model.dtype" not in settled.chosen
    other = "bfloat16" if best_precision().dtype == "float32" else "float32"
    assert len(settle(recipe(tmp_path, f"model.dtype={other}")).warnings) <= 1


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
        dtype = load_recipe(file).model.dtype  # a base's, too
        assert dtype == ("bfloat16" if file.parent.name == "math_large" else "auto"), file


def on_cpu(tmp_path, *changes):
    return engine_for(recipe(tmp_path, *changes), on_gpu=False)


@pytest.mark.parametrize(
    ("changes", "engine", "reason"),
    [
        ((), "native", "faster than vLLM"),
        (("model.forward=plain",), "vllm", "model.forward=plain"),
        (("rollout.max_staleness=1",), "vllm", "max_staleness=1"),
        (("rollout.placement=server",), "vllm", "placement=server"),
        (("model.lora={r: 4}",), "vllm", "LoRA"),
        (("train.backend=fsdp2",), "vllm", "train.backend=fsdp2"),
        (("model.path=/nowhere/unknown",), "vllm", "kind of model"),
    ],
)
def test_the_engine_is_native_on_a_cpu_unless_something_needs_vllm(tmp_path, changes, engine, reason):
    found, why = on_cpu(tmp_path, *changes)
    assert found == engine
    assert reason in why
    assert engine_for(recipe(tmp_path, *changes), on_gpu=True)[0] == "vllm"


def test_a_resumed_run_keeps_its_engine_and_an_explicit_one_is_obeyed(tmp_path):
    before = recipe(tmp_path, "rollout.engine=hf")
    assert settle(before).recipe.rollout.engine == "hf"
    before.run_dir.mkdir(parents=True)
    (before.run_dir / "recipe.yaml").write_text(dump_recipe(before))
    assert settle(recipe(tmp_path), resume=True).recipe.rollout.engine == "hf"


def test_for_gpus_elsewhere_auto_needs_no_look_at_this_machine(tmp_path):
    settled = settle(recipe(tmp_path), on_gpu=True).recipe
    assert (settled.model.dtype, settled.rollout.engine) == ("bfloat16", "vllm")


def test_the_model_kind_is_read_from_its_folder(tiny_model):
    assert model_type(str(tiny_model)) == "llama"
    assert model_type("org/model") == ""


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["recipes/arithmetic/grop.yaml"], "did you mean recipes/arithmetic/grpo.yaml?"),
        (["recipes/arithmetic/grpo.yaml", "train.stepps=3"], "steps"),
    ],
)
def test_a_mistake_in_a_recipe_is_answered_without_torch(command, arguments, answer):
    """What costs a user seconds is the import of torch and transformers."""
    code = (
        "import sys, llmrl.cli\n"
        "try:\n    llmrl.cli.main()\nexcept SystemExit as end:\n    print(end.code)\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code, command, *arguments], capture_output=True, text=True, check=True)
    assert answer in told.stderr
    assert told.stdout.splitlines() == ["2", "[]"]


def test_environments_are_played_by_native_where_it_is_the_faster(monkeypatch, tmp_path, tiny_model):
    monkeypatch.setattr("llmrl.automatic.gpus", list)
    assert engine_to_play("smollm2-135m") == engine_to_play(str(tiny_model)) == "native"
    assert engine_to_play(str(tmp_path)) == "vllm"  # an unknown kind of model
    monkeypatch.setattr("llmrl.automatic.gpus", lambda: ["a card"])
    assert engine_to_play("smollm2-135m") == "vllm"
