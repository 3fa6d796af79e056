"""Whole runs on pictures: rows of images and environments that show them train, resume bit for bit, and replay."""

import json

import pytest

from llmrl.compose import resolve
from llmrl.rollout.store import read_rollouts, rollouts_file
from llmrl.settings.load import parse_recipe
from llmrl.train.checkpoint import checkpoints, digest
from llmrl.train.replay import replay
from tests.tiny import picture
from tests.train.test_episode_runs import trained

pytestmark = pytest.mark.usefixtures("settings_as_before")


def recipe(folder, *, model, steps=3, engine="native", **sections):
    return parse_recipe(
        {
            "name": "run",
            "runs_dir": str(folder),
            "model": {"dtype": "float32", "max_length": 200, **model},
            "rollout": {"engine": engine, "isolated": False, "prompts_per_step": 2, "group_size": 3, "max_tokens": 6},
            "train": {"steps": steps, "lr": 1e-3, "threads": 1, "tokens_per_microbatch": 512, "save_every": 2},
            "eval": {"data": {"n": 4}, "threshold": 0.9},
            "limits": {"max_rollout_error_rate": 0.9},  # of 272 tokens one is the placeholder, which ends an episode
            **sections,
        }
    )


def shown(folder):
    """The stored rollouts of step 1, and the pictures beside them."""
    return read_rollouts(rollouts_file(folder, 1)), sorted((folder / "rollouts" / "media").iterdir())


@pytest.mark.parametrize(
    ("engine", "memory", "forward", "algo"),
    [
        ("native", "window(2)", "packed", {"name": "grpo"}),
        ("native", "conversation", "packed", {"name": "vl_dac"}),
        ("hf", "conversation", "plain", {"name": "grpo"}),
    ],
)
def test_episodes_with_pictures_train_resume_and_replay(engine, memory, forward, algo, tmp_path, tiny_vlm):
    sections = {
        "env": {"name": "tests.train.looking:Looking", "turns": 3, "memory": memory, "isolated": False},
        "data": {"source": "episodes", "limit": 20, "max_prompt_tokens": 60},
        "model": {"path": str(tiny_vlm), "forward": forward, "vision_tower": True},
        "algo": algo,
    }
    whole = recipe(tmp_path / "whole", engine=engine, **sections)
    rows = trained(whole)
    assert all(row["mismatch/mean_abs_logprob"] < 1e-4 for row in rows) and any(row["grad_norm"] > 0 for row in rows)
    stored, files = shown(whole.run_dir)
    wanted = {"window(2)": [1, 2, 2], "conversation": [1, 2, 3]}[memory]
    assert all(len(row.prompt.media) == wanted[row.turn] for row in stored)
    assert {file.stem for file in files} >= {media.hash for row in stored for media in row.prompt.media}
    assert len(files) < sum(len(row.prompt.media) for row in stored)
    half = recipe(tmp_path / "half", engine=engine, steps=2, **sections)
    trained(half)
    trained(half.model_copy(update={"train": whole.train}), resume=True)
    assert digest(checkpoints(half.run_dir)[-1]) == digest(checkpoints(whole.run_dir)[-1])
    parts = resolve(whole)
    assert replay(whole.run_dir, step=2, recipe=whole, algo=parts.algo, sources=parts.sources).reproduced


def test_a_column_of_images_trains_and_pictures_are_stored_once(tmp_path, tiny_vlm):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number).data)
    lines = [{"prompt": f"what is {n}?", "images": [f"{n % 3}.png"], "answer": str(n)} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = recipe(
        tmp_path, steps=2, model={"path": str(tiny_vlm)},
        data={"source": str(tmp_path / "rows.jsonl"), "max_prompt_tokens": 60},
        reward={"ascii": {"name": "tests.train.rewards:share_of_ascii"}}, algo={"name": "grpo"},
    )  # fmt: skip
    rows = trained(made)
    assert all(row["mismatch/mean_abs_logprob"] < 1e-4 for row in rows)
    stored, files = shown(made.run_dir)
    assert len(stored) == 6 and {len(row.prompt.media) for row in stored} == {1} and 1 <= len(files) <= 3


def test_a_policy_learns_to_look(tmp_path, tiny_vlm):
    """White or black: half of the answers are right without looking. Under exchanged pictures the learnt ones are wrong."""
    bright = {"name": "tests.train.looking:Bright", "turns": 1, "isolated": False}
    made = recipe(
        tmp_path, steps=24, model={"path": str(tiny_vlm), "vision_tower": True}, env=bright, algo={"name": "grpo"},
        data={"source": "episodes", "limit": 400, "max_prompt_tokens": 60},
        rollout={"engine": "native", "isolated": False, "prompts_per_step": 16, "group_size": 8, "max_tokens": 1},
        train={"steps": 24, "lr": 2e-3, "threads": 1, "tokens_per_microbatch": 4096, "save_every": 24},
        eval={"data": {"n": 40}, "threshold": 0.9},
    )  # fmt: skip
    rows = trained(made)
    assert rows[0]["reward/mean"] < 0.7 and sum(row["reward/mean"] for row in rows[-4:]) / 4 > 0.9
    exchanged = recipe(
        tmp_path / "exchanged", steps=1, model={"path": str(checkpoints(made.run_dir)[-1] / "policy")},
        env={**bright, "args": {"exchanged": True}}, algo={"name": "grpo"}, data=made.data.model_dump(),
        eval={"data": {"n": 40}, "threshold": 0.9},
    )  # fmt: skip
    assert trained(exchanged)[0]["reward/mean"] < 0.2
