"""Whole runs whose prompts are episodes: they train, resume bit for bit, replay, and engines agree token by token."""

import io

import pytest
from rich.console import Console

from llmrl.compose import resolve
from llmrl.report.page import write_report
from llmrl.rollout.store import read_rollouts, rollouts_file
from llmrl.settings.load import load_recipe, parse_recipe, recipes_folder
from llmrl.start import run
from llmrl.train.checkpoint import checkpoints, digest
from llmrl.train.folder import read_metrics
from llmrl.train.replay import replay
from llmrl.types import Ending

pytestmark = pytest.mark.usefixtures("settings_as_before")


def recipe(folder, model, *, steps=3, engine="native", env=None, **sections):
    return parse_recipe(
        {
            "name": "run",
            "runs_dir": str(folder),
            "model": {"path": str(model), "dtype": "float32", "max_length": 200},
            "data": {"source": "episodes", "max_prompt_tokens": 60, "limit": 20},
            "env": {"name": "guess", "args": {"high": 9}, "turns": 3, "isolated": False, **(env or {})},
            "rollout": {
                "engine": engine,
                "isolated": engine == "vllm",
                "prompts_per_step": 2,
                "group_size": 3,
                "max_tokens": 6,
            },
            "algo": {"name": "grpo"},
            "train": {"steps": steps, "lr": 1e-3, "threads": 1, "tokens_per_microbatch": 512, "save_every": 2},
            "eval": {"data": {"n": 4}, "threshold": 0.9},
            "limits": {"max_mismatch": 5.0},
            **sections,
        }
    )


def trained(recipe, **how):
    outcome = run(recipe, resolve(recipe), console=Console(file=io.StringIO()), **how)
    assert outcome.exit_code == 0 and outcome.summary["status"] == "finished"
    return [row for row in read_metrics(recipe.run_dir) if row["kind"] == "train"]


@pytest.mark.parametrize("memory", ["conversation", "window(1)"])
def test_episodes_train_resume_and_replay(memory, tmp_path, tiny_model):
    env = {"memory": memory, "isolated": memory == "conversation", "workers": 1}
    whole = recipe(tmp_path / "whole", tiny_model, env=env)
    rows = trained(whole)
    assert all(row["mismatch/mean_abs_logprob"] < 1e-4 and row["episode/turns"] > 1 for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows)
    stored = read_rollouts(rollouts_file(whole.run_dir, 1))
    assert {row.ending for row in stored} == {Ending.CONTINUES, Ending.TRUNCATED}
    assert len({row.episode for row in stored}) == 6
    half = recipe(tmp_path / "half", tiny_model, env=env, steps=2)
    trained(half)
    trained(half.model_copy(update={"train": whole.train}), resume=True)
    assert digest(checkpoints(half.run_dir)[-1]) == digest(checkpoints(whole.run_dir)[-1])
    parts = resolve(whole)
    assert replay(whole.run_dir, step=2, recipe=whole, algo=parts.algo, sources=parts.sources).reproduced


@pytest.mark.parametrize(
    "algo",
    [
        {"name": "vl_dac", "kl_coef": 0.1, "thought_weight": 0.5},
        {"name": "rl4vlm"},
        {"name": "loop"},
    ],
    ids=lambda algo: algo["name"],
)
def test_agents_in_a_game_train_and_resume_bit_for_bit(algo, tmp_path, tiny_model):
    env = {"name": "numberline", "args": {"high": 3, "invalid": "random"}, "memory": "window(1)"}
    critic = {} if algo["name"] == "loop" else {"critic": {"hidden": [16], "stop_gradient": True, "warmup_steps": 1}}
    sections = {"algo": algo, **critic}
    whole = recipe(tmp_path / "whole", tiny_model, env=env, **sections)
    rows = trained(whole)
    assert all(row["flag/invalid_action"] > 0.5 for row in rows)  # a random model writes no JSON
    assert write_report(whole.run_dir).read_text().count('class="film"') == 6
    half = recipe(tmp_path / "half", tiny_model, env=env, steps=2, **sections)
    trained(half)
    trained(half.model_copy(update={"train": whole.train}), resume=True)
    assert digest(checkpoints(half.run_dir)[-1]) == digest(checkpoints(whole.run_dir)[-1])


@pytest.mark.vllm
def test_vllm_and_the_native_engine_play_the_same_episodes_at_temperature_0(tmp_path, tiny_model):
    found = {}
    for engine in ("native", "vllm"):
        one = recipe(tmp_path / engine, tiny_model, engine=engine, steps=1)
        trained(one)
        again = one.model_copy(update={"rollout": one.rollout.model_copy(update={"temperature": 1e-4})}, deep=True)
        again = again.model_copy(update={"name": "cold"})
        trained(again)
        found[engine] = read_rollouts(rollouts_file(again.run_dir, 1))
    assert [row.tokens.tolist() for row in found["native"]] == [row.tokens.tolist() for row in found["vllm"]]
    assert [row.prompt.tokens for row in found["native"]] == [row.prompt.tokens for row in found["vllm"]]


@pytest.mark.parametrize("name", ["guess", "calculator"])
def test_the_recipes_of_environments_parse_and_find_theirs(name):
    from llmrl.envs.build import check_environment

    found = load_recipe(recipes_folder() / name / "grpo.yaml")
    assert found.env is not None and found.env.name == name and check_environment(found.env).startswith("llmrl.envs.")


@pytest.mark.parametrize("name", ["numberline", "ezpoints", "minigrid", "textworld", "miniworld"])
def test_the_recipes_of_agents_parse_and_their_environments_take_their_arguments(name, monkeypatch):
    from llmrl.algos.build import build_algorithm
    from llmrl.envs import PACKAGES
    from llmrl.envs.build import check_environment

    for key in PACKAGES:  # arguments are checked whether the package is there or not
        monkeypatch.setitem(PACKAGES, key, ("json", ""))
    found = load_recipe(recipes_folder() / "agents" / name / "vl_dac.yaml")
    assert found.env is not None and check_environment(found.env).startswith("llmrl.envs.")
    assert build_algorithm(found.algo).needs.values and found.critic.stop_gradient
