"""Whole runs of a tiny model through the hf engine: stored losses, learning, and what the run folder holds."""

import io
import json
import math
import warnings

import pytest
from rich.console import Console

from llmrl.compose import resolve
from llmrl.errors import ConfigError
from llmrl.rollout.store import read_rollouts, rollouts_file
from llmrl.settings.load import parse_recipe
from llmrl.settings.recipe import ModelConfig
from llmrl.start import run
from llmrl.train.checkpoint import checkpoints, damage, digest
from llmrl.train.folder import read_metrics
from llmrl.train.replay import replay
from llmrl.train.telemetry import WATCHED

pytestmark = pytest.mark.usefixtures("settings_as_before")

# Five steps of the test's recipe in float32, seed 0, as they came out when this test was written.
GOLDEN_LOSS = [-0.04366315, -0.1233396, -0.1127903, -0.04251662, -0.02405488]
GOLDEN_GRAD_NORM = [3.076276, 3.360839, 3.535054, 4.229506, 4.525086]
GOLDEN_REWARD = [0.453497, 0.3963542, 0.427381, 0.4434786, 0.4488636]


def recipe(tmp_path, model, *, steps, train=None, **sections):
    return parse_recipe(
        {
            "name": "run",
            "runs_dir": str(tmp_path),
            "model": {"path": str(model), "dtype": "float32", "max_length": 128},
            "data": {"source": "addition", "args": {"low": 1, "high": 9}, "max_prompt_tokens": 100, "limit": 30},
            "rollout": {
                "engine": "hf",
                "isolated": False,
                "prompts_per_step": 4,
                "group_size": 4,
                "max_tokens": 8,
                **sections.pop("rollout", {}),
            },
            "reward": {"ascii": {"name": "tests.train.rewards:share_of_ascii"}},
            "algo": {"name": "grpo"},
            "train": {"steps": steps, "lr": 1e-3, "threads": 1, "tokens_per_microbatch": 256, **(train or {})},
            "eval": {"data": {"n": 6}, "threshold": 0.9},
            "limits": {"max_mismatch": 5.0},
            **sections,
        }
    )


def trained(recipe):
    outcome = run(recipe, resolve(recipe), console=Console(file=io.StringIO()))
    assert outcome.exit_code == 0 and outcome.summary["status"] == "finished"
    return [row for row in read_metrics(recipe.run_dir) if row["kind"] == "train"]


def test_five_steps_give_the_stored_losses(tmp_path, tiny_model):
    rows = trained(recipe(tmp_path, tiny_model, steps=5, train={"epochs": 2, "minibatches": 2, "schedule": "linear"}))
    assert [row["loss"] for row in rows] == pytest.approx(GOLDEN_LOSS, rel=1e-3, abs=1e-6)
    assert [row["grad_norm"] for row in rows] == pytest.approx(GOLDEN_GRAD_NORM, rel=1e-3)
    assert [row["reward/mean"] for row in rows] == pytest.approx(GOLDEN_REWARD, rel=1e-6)
    assert all(row["mismatch/mean_abs_logprob"] < 1e-5 for row in rows)  # the hf engine and the packed forward agree


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8}])
def test_the_native_engine_samples_from_the_weights_that_train(tmp_path, tiny_model, lora):
    """Its log-probabilities are the trainer's after every update, adapter included, though nothing is sent to it."""
    made = recipe(tmp_path, tiny_model, steps=4, train={"lr": 1e-2}, rollout={"engine": "native"})
    made = made.model_copy(
        update={"model": ModelConfig(path=str(tiny_model), dtype="float32", max_length=128, lora=lora)}
    )
    rows = trained(made)
    assert len({row["loss"] for row in rows}) == 4
    assert all(row["approx_kl"] == 0 for row in rows)  # one update: the policy that sampled is the one that learns
    assert all(row["mismatch/mean_abs_logprob"] < 1e-5 for row in rows)


def test_the_native_engine_is_refused_for_a_model_that_does_not_pack(tmp_path, tiny_model):
    made = recipe(tmp_path, tiny_model, steps=1, rollout={"engine": "native"})
    made = made.model_copy(update={"model": ModelConfig(path=str(tiny_model), forward="plain", max_length=128)})
    with pytest.raises(ConfigError, match=r"needs model\.forward=packed"):
        run(made, resolve(made), console=Console(file=io.StringIO()))


@pytest.mark.parametrize("name", ["grpo", "pacs", "ppo"])
def test_a_tiny_task_is_learned(tmp_path, tiny_model, name):
    """Printable characters only: from well under half of them to most."""
    made = recipe(tmp_path, tiny_model, steps=25, train={"lr": 5e-3}, algo={"name": name})
    rows = trained(made)
    first, last = rows[0]["reward/mean"], sum(row["reward/mean"] for row in rows[-3:]) / 3
    assert first < 0.6 and last > 0.8, f"{first} -> {last}"
    summary = json.loads((made.run_dir / "summary.json").read_text())
    assert summary["accuracy_after"] > summary["accuracy_before"]


def told(tmp_path, tiny_model, privileged):
    """Five PPO steps, the first two of them warm-up, with a value model that is told something."""
    critic = {"kind": "separate", "privileged": privileged, "max_privileged_tokens": 40, "warmup_steps": 2, "lr": 1e-2}
    made = recipe(
        tmp_path / str(len(privileged)), tiny_model, steps=5, train={"save_every": 2, "keep_last": 9},
        algo={"name": "ppo"}, critic=critic,
    )  # fmt: skip
    rows = trained(made)
    return made.run_dir, rows, [read_rollouts(rollouts_file(made.run_dir, step)) for step in range(1, 6)]


def test_what_the_value_model_is_told_does_not_reach_the_policy(tmp_path, tiny_model):
    """Requests, samples, log-probs and weights are the same to the bit until the policy learns from the values."""
    one, rows, rollouts = told(tmp_path, tiny_model, "{answer}")
    other, other_rows, other_rollouts = told(tmp_path, tiny_model, "{identity} is {answer}")
    for mine, yours in zip(rollouts[:3], other_rollouts[:3], strict=True):
        for a, b in zip(mine, yours, strict=True):
            assert a.prompt.tokens == b.prompt.tokens and a.tokens.tolist() == b.tokens.tolist()
            assert a.logprobs.tobytes() == b.logprobs.tobytes()
    for name in ("policy/model.safetensors", "optimizer.safetensors"):
        files = [(run / "checkpoints" / "step-000002" / name).read_bytes() for run in (one, other)]
        assert files[0] == files[1]
    assert rows[0]["policy_loss"] == other_rows[0]["policy_loss"] != 0  # values are still zero
    assert rows[1]["value_loss"] != other_rows[1]["value_loss"]  # but it is told something else
    assert digest(checkpoints(one)[0]) != digest(checkpoints(other)[0])
    assert all(row["mismatch/mean_abs_logprob"] < 1e-5 for row in rows)


def test_steps_of_ppo_can_be_replayed(tmp_path, tiny_model):
    """With everything that has state: separate value model, privileged text, adaptive KL, a reference that averages."""
    made = recipe(
        tmp_path, tiny_model, steps=4, train={"save_every": 2, "epochs": 2},
        algo={"name": "ppo", "kl_coef": 0.05}, reference={"kind": "ema", "decay": 0.5},
        controller={"name": "adaptive_kl", "args": {"target": 0.01}},
        critic={"kind": "separate", "privileged": "{answer}", "max_privileged_tokens": 40, "whiten_targets": True},
    )  # fmt: skip
    rows = trained(made)
    assert len({row["kl_coef"] for row in rows}) > 2
    parts = resolve(made)
    for step in (2, 4):
        again = replay(made.run_dir, step=step, recipe=made, algo=parts.algo, sources=parts.sources)
        assert again.reproduced and again.replayed["kl_coef"] == again.recorded["kl_coef"]
        assert again.replayed["value_loss"] == again.recorded["value_loss"]


def test_a_value_model_that_nobody_asks_for_is_refused(tmp_path, tiny_model):
    made = recipe(tmp_path, tiny_model, steps=1, critic={"lr": 1e-3})
    with pytest.raises(ConfigError, match="grpo has no value model"):
        run(made, resolve(made), console=Console(file=io.StringIO()))


def test_a_run_leaves_everything_its_folder_promises(tmp_path, tiny_model):
    made = recipe(tmp_path, tiny_model, steps=4, train={"save_every": 2, "keep_best": False})
    rows = trained(made)
    files = {file.name for file in made.run_dir.iterdir()}
    assert {"recipe.yaml", "environment.json", "metrics.jsonl", "summary.json", "rollouts", "checkpoints"} <= files
    assert [folder.name for folder in checkpoints(made.run_dir)] == ["step-000002", "step-000004"]
    assert all(damage(folder) is None for folder in checkpoints(made.run_dir))
    for row in rows:
        stored = read_rollouts(rollouts_file(made.run_dir, row["step"]))
        assert len(stored) == 16 and row["reward/mean"] == pytest.approx(sum(t.reward for t in stored) / 16)
        assert {t.version for t in stored} == {(row["step"] - 1, row["step"] - 1)}
        assert all(value is None or math.isfinite(value) for value in row.values() if not isinstance(value, str))
        assert all(row[f"flag/{name}"] == 0 for name in WATCHED if name != "truncated")
        assert row["flag/truncated"] == row["rollout/truncated"]


def test_truncated_and_uniform_rollouts_do_not_stop_a_run(tmp_path, tiny_model):
    """Every completion is one token long and truncated: nothing trains, and the weights stay as they were."""
    rollout = {"max_tokens": 1, "mask_truncated": True, "dynamic_sampling": {"max_rounds": 1}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = trained(recipe(tmp_path, tiny_model, steps=2, rollout=rollout))
    assert [row["tokens/trained"] for row in rows] == [0.0, 0.0]
    assert [row["update/skipped"] for row in rows] == [0.0, 0.0]


def test_held_out_completions_end_at_the_stop_strings_too(tmp_path, tiny_model):
    """Otherwise a base model is measured on what it writes behind its answer."""
    letters = [chr(code) for code in range(33, 127)]
    found = []
    for name, stop in (("with", letters), ("without", [])):
        made = recipe(tmp_path, tiny_model, steps=1, rollout={"stop": stop, "max_tokens": 20}, name=name)
        trained(made)
        found.append(next(row for row in read_metrics(made.run_dir) if row["kind"] == "eval"))
    assert found[0]["eval/truncated"] < found[1]["eval/truncated"]
    assert found[0]["eval/length_mean"] < found[1]["eval/length_mean"] / 2


def test_a_run_without_held_out_problems_trains_on_all_of_a_small_file(tmp_path, tiny_model):
    rows = [{"prompt": f"What is {a} + 1?", "answer": str(a + 1)} for a in range(6)]
    file = tmp_path / "six.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = recipe(tmp_path, tiny_model, steps=2, data={"source": str(file)}, eval=False)
    assert len(trained(made)) == 2
    assert not [row for row in read_metrics(made.run_dir) if row["kind"] == "eval"]
    assert json.loads((made.run_dir / "summary.json").read_text())["accuracy_after"] is None


def test_a_run_ends_evaluated_and_saved_when_its_hours_are_over(tmp_path, tiny_model):
    made = recipe(tmp_path, tiny_model, steps=50, train={"max_hours": 1e-9, "save_every": 50})
    said = io.StringIO()
    outcome = run(made, resolve(made), console=Console(file=said, width=200))
    assert outcome.exit_code == 0 and outcome.summary["status"] == "finished"
    assert outcome.summary["completed_steps"] == 1 and "train.max_hours" in outcome.summary["ended"]
    assert "ended after step 1: train.max_hours=1e-09 is over" in said.getvalue()
    assert [row["step"] for row in read_metrics(made.run_dir) if row["kind"] == "eval"] == [0, 1]
    assert [folder.name for folder in checkpoints(made.run_dir)] == ["step-000001"]


def test_a_run_ends_when_evaluations_get_no_better_and_goes_on_with_more_patience(tmp_path, tiny_model):
    settings = {"train": {"lr": 1e-9, "patience": 2}, "eval": {"every": 1, "data": {"n": 6}, "threshold": 2.0}}
    made = recipe(tmp_path, tiny_model, steps=6, **settings)  # nothing reaches the threshold, so nothing gets better
    outcome = run(made, resolve(made), console=Console(file=io.StringIO()))
    assert outcome.summary["completed_steps"] == 2 and "train.patience=2" in outcome.summary["ended"]
    more = made.model_copy(update={"train": made.train.model_copy(update={"patience": 4})})
    for asked, steps in ((made, 2), (more, 4)):
        again = run(asked, resolve(asked), console=Console(file=io.StringIO()), resume=True)
        assert again.summary["completed_steps"] == steps
