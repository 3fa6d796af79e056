"""Supervised stages of a tiny model: what they learn, what they leave, and that an interrupted one ends the same."""

import hashlib
import io
import json
import os
import signal
import socket

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from llmrl.compose import resolve
from llmrl.errors import CheckpointError, ConfigError, LimitExceeded
from llmrl.report.page import write_report
from llmrl.report.summary import summary_table
from llmrl.settings.load import parse_recipe
from llmrl.stages.follow import Follower, checkpoints
from llmrl.stages.run import check_stages
from llmrl.start import run
from llmrl.train.checkpoint import folder_of, seal
from llmrl.train.folder import read_metrics
from llmrl.train.log import Log
from llmrl.train.world import World

pytestmark = pytest.mark.usefixtures("settings_as_before")

SCORED = {"name": "llmrl.rewards.reward_model:RewardModel", "args": {"model": "stage:reward_model"}}
HERE = {**SCORED, "isolated": False}


def recipe(tmp_path, model, *stages, dtype="float32", lora=None, reward=None, **train):
    settings = {"steps": 6, "lr": 3e-3, "batch_size": 4, "save_every": 2, **train}
    return parse_recipe(
        {
            "name": "run",
            "runs_dir": str(tmp_path),
            "model": {"path": str(model), "dtype": dtype, "max_length": 128, "lora": lora},
            "data": {"source": "addition", "args": {"low": 1, "high": 9}, "max_prompt_tokens": 100, "limit": 30},
            "rollout": {
                "engine": "hf", "isolated": False, "prompts_per_step": 2, "group_size": 4, "max_tokens": 8,
            },
            "reward": {"r": reward or {"name": "tests.train.rewards:share_of_ascii"}},
            "algo": {"name": "grpo"},
            "train": {"steps": 1, "lr": 1e-12, "threads": 1, "tokens_per_microbatch": 256},
            "eval": {"data": {"n": 6}, "threshold": 0.9},
            "limits": {"max_mismatch": 5.0},
            "stages": [{"kind": kind, "train": settings, "eval": {"data": {"n": 6}}} for kind in stages],
        }
    )  # fmt: skip


def go(made, *, resume=False):
    said = io.StringIO()
    return run(made, resolve(made), console=Console(file=said, width=200), resume=resume), said.getvalue()


def model_hash(made, stage="01-sft"):
    return hashlib.sha256((made.run_dir / "stages" / stage / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model):
    """A run with an SFT stage that nothing interrupted."""
    made = recipe(tmp_path_factory.mktemp("whole"), tiny_model, "sft")
    outcome, said = go(made)
    torch.use_deterministic_algorithms(False)
    assert outcome.exit_code == 0
    return made, outcome, said


def dies_at(monkeypatch, step, error, where=Log, name="step"):
    """The log (of the loop, or TRL's follower) raises, or sends a signal, as its step-th call ends."""
    inner = getattr(where, name)

    def deadly(self, *args):
        found = inner(self, *args)
        number = found.step if where is Log else args[0]
        if number == step:
            if isinstance(error, signal.Signals):
                os.kill(os.getpid(), error)
            else:
                raise error
        return found

    monkeypatch.setattr(where, name, deadly)


def saved(made, stage="01-sft"):
    """Names of a stage's checkpoints, those of the loop and those of TRL."""
    folder = made.run_dir / "stages" / stage
    return [path.name for path in (*sorted((folder / "checkpoints").glob("step-*")), *checkpoints(folder))]


def test_sft_learns_and_the_reinforcement_learning_starts_from_it(whole, tiny_model):
    made, outcome, said = whole
    stage = outcome.summary["stages"][0]
    assert stage["eval_loss_after"] < 0.8 * stage["eval_loss_before"] and "stage sft: step 6/6" in said
    learnt = load_file(made.run_dir / "stages/01-sft/model/model.safetensors")
    policy = load_file(folder_of(made.run_dir, 1) / "policy/model.safetensors")
    base = load_file(tiny_model / "model.safetensors")
    for name in base:  # one step at a learning rate of 1e-12 moves nothing
        torch.testing.assert_close(policy[name], learnt[name], rtol=0, atol=1e-9)
    assert any(not torch.allclose(base[name], learnt[name], atol=1e-4) for name in base)


def test_a_stage_leaves_metrics_a_plain_model_folder_and_no_pickle_of_settings(whole):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made, _, _ = whole
    folder = made.run_dir / "stages/01-sft"
    AutoModelForCausalLM.from_pretrained(folder / "model"), AutoTokenizer.from_pretrained(folder / "model")
    rows = read_metrics(folder)
    assert [(r["kind"], r["step"]) for r in rows] == [("eval", 0), *(("train", n) for n in range(1, 7)), ("eval", 6)]
    assert {"loss", "grad_norm", "lr", "time/step", "tokens/trained", "tokens/per_s"} <= rows[1].keys()
    assert saved(made) == []
    assert not [*made.run_dir.rglob("training_args.bin"), *made.run_dir.rglob("README.md")]


def test_report_and_summary_show_the_stages(whole):
    made, outcome, _ = whole
    page = write_report(made.run_dir).read_text()
    assert 'id="stage-charts"' in page and '"name":"01-sft"' in page and '"eval/loss"' in page
    out = io.StringIO()
    Console(file=out, width=120).print(summary_table(outcome.summary))
    assert "stage sft" in out.getvalue() and "held-out loss" in out.getvalue()


def test_a_killed_stage_resumes_from_its_newest_checkpoint_and_ends_bit_for_bit_the_same(
    whole, tmp_path, tiny_model, monkeypatch
):
    made = recipe(tmp_path, tiny_model, "sft")
    with monkeypatch.context() as patched:
        dies_at(patched, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            go(made)
    assert saved(made) == ["step-000004"]
    outcome, said = go(made, resume=True)
    assert outcome.exit_code == 0 and "resuming after step 4" in said
    assert model_hash(made) == model_hash(whole[0])
    timeless = [
        [{k: v for k, v in row.items() if not k.startswith(("time/", "tokens/per_s"))} for row in read_metrics(folder)]
        for folder in (made.run_dir / "stages/01-sft", whole[0].run_dir / "stages/01-sft")
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stage_killed_while_its_model_is_written_ends_bit_for_bit_the_same(
    whole, tmp_path, tiny_model, monkeypatch, when
):
    def deadly(folder):
        if when == "after":
            seal(folder)
        raise KeyboardInterrupt

    made = recipe(tmp_path, tiny_model, "sft")
    with monkeypatch.context() as patched:
        patched.setattr("llmrl.stages.run.seal", deadly)
        with pytest.raises(KeyboardInterrupt):
            go(made)
    outcome, said = go(made, resume=True)
    assert outcome.exit_code == 0 and "resuming after step 6" in said
    assert model_hash(made) == model_hash(whole[0])


def test_sigterm_saves_and_the_resumed_stage_ends_the_same(whole, tmp_path, tiny_model, monkeypatch):
    made = recipe(tmp_path, tiny_model, "sft", "dpo")
    with monkeypatch.context() as patched:
        dies_at(patched, 3, signal.SIGTERM)
        outcome, _ = go(made)
    assert outcome.exit_code == 143 and outcome.summary["status"] == "interrupted"
    assert (outcome.stopped_in.stage, outcome.stopped_in.step) == ("sft", 3)
    assert not (made.run_dir / "stages/02-dpo").exists() and not (made.run_dir / "stages/01-sft/model").exists()
    with monkeypatch.context() as patched:
        dies_at(patched, 3, signal.SIGTERM, Follower, "_step")
        outcome, said = go(made, resume=True)
    # The signal of TRL's step 3 arrives after its Trainer was told what to do, so it ends with step 4.
    assert (outcome.stopped_in.stage, outcome.stopped_in.step) == ("dpo", 4) and "resuming after step 3" in said
    assert model_hash(made) == model_hash(whole[0]) and saved(made, "02-dpo") == ["checkpoint-4"]
    outcome, said = go(made, resume=True)
    assert outcome.exit_code == 0 and "resuming from checkpoint-4" in said
    _, said = go(made, resume=True)  # nothing left to do
    assert "stage sft: finished before" in said and "stage dpo: finished before" in said


def test_a_torn_checkpoint_is_named_and_the_one_before_is_used(whole, tmp_path, tiny_model, monkeypatch):
    made = recipe(tmp_path, tiny_model, "sft", keep_last=3)
    with monkeypatch.context() as patched:
        dies_at(patched, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            go(made)
    os.truncate(made.run_dir / "stages/01-sft/checkpoints/step-000004/optimizer.safetensors", 100)
    outcome, said = go(made, resume=True)
    assert "step-000004" in said and "resuming after step 2" in said and outcome.exit_code == 0
    assert model_hash(made) == model_hash(whole[0])


def test_a_torn_checkpoint_of_trl_is_named_and_the_one_before_is_used(tmp_path, tiny_model, monkeypatch):
    made = recipe(tmp_path, tiny_model, "dpo", keep_last=3)
    with monkeypatch.context() as patched:
        dies_at(patched, 5, KeyboardInterrupt(), Follower, "_step")
        with pytest.raises(KeyboardInterrupt):
            go(made)
    os.truncate(made.run_dir / "stages/01-dpo/checkpoint-4/optimizer.pt", 100)
    outcome, said = go(made, resume=True)
    assert "checkpoint-4 is not whole" in said and "resuming from checkpoint-2" in said and outcome.exit_code == 0


def test_two_rl_stages_follow_each_other_with_sections_of_their_own(tmp_path, tiny_model):
    first = {"kind": "rl", "name": "first", "algo": {"name": "rloo"}, "train": {"steps": 2, "lr": 1e-3}}
    made = recipe(tmp_path, tiny_model, "sft", steps=2)
    made = parse_recipe({**made.model_dump(), "stages": [made.stages[0].model_dump(), first, {"kind": "rl"}]})
    outcome, _ = go(made)
    assert outcome.exit_code == 0 and [s["name"] for s in outcome.summary["stages"]] == ["sft", "first"]
    rows = [row for row in read_metrics(made.run_dir / "stages/02-first") if row["kind"] == "train"]
    assert len(rows) == 2 and "reward/mean" in rows[0]
    sft, policy, last = (
        load_file(folder / "model.safetensors")
        for folder in (
            made.run_dir / "stages/01-sft/model",
            made.run_dir / "stages/02-first/model",
            folder_of(made.run_dir, 1) / "policy",
        )
    )
    assert any(not torch.allclose(sft[name], policy[name], atol=1e-6) for name in sft)
    for name in policy:  # the last stage starts where the one before ended
        torch.testing.assert_close(last[name], policy[name], rtol=0, atol=1e-9)


def test_a_model_that_was_damaged_after_its_stage_is_an_error(tmp_path, tiny_model):
    made = recipe(tmp_path, tiny_model, "sft", steps=1)
    go(made)
    os.truncate(made.run_dir / "stages/01-sft/model/model.safetensors", 100)
    with pytest.raises(CheckpointError, match="the model of stage sft is damaged"):
        go(made, resume=True)


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path, tiny_model):
    made = recipe(tmp_path, tiny_model, "sft", lr=1e30, steps=9)
    with pytest.raises(LimitExceeded, match="non-finite loss or gradient") as caught:
        go(made)
    assert any("in stage sft" in note for note in caught.value.__notes__)
    assert not (made.run_dir / "stages/01-sft/model").exists()


@pytest.mark.slow
def test_a_reward_model_scores_the_rollouts_in_the_pool(tmp_path, tiny_model):
    made = recipe(tmp_path, tiny_model, "sft", "reward_model", reward=SCORED, dtype="bfloat16")
    outcome, said = go(made)
    rows = [row for row in read_metrics(made.run_dir) if row["kind"] == "train"]
    assert outcome.exit_code == 0 and rows[0]["reward/errored"] == 0 and rows[0]["reward/std"] > 0
    assert "stage reward_model: 30 examples" in said and "01-sft/model" in said


@pytest.mark.parametrize("lora", [None, {"r": 8}])
def test_dpo_raises_the_margin_of_the_chosen_over_the_rejected(tmp_path, tiny_model, lora):
    rows = [{"prompt": f"{n} + 1", "chosen": "yes", "rejected": "no"} for n in range(80)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = recipe(tmp_path, tiny_model, "dpo", lora=lora)
    stage = made.stages[0].model_dump() | {"data": {"source": str(tmp_path / "pairs.jsonl")}}
    made = parse_recipe({**made.model_dump(), "stages": [stage]})
    end = go(made)[0].summary["stages"][0]
    assert end["eval_pairs_margin_before"] == 0 and end["eval_pairs_margin_after"] > 0.1
    assert end["eval_pairs_accuracy_after"] == 1.0


@pytest.mark.parametrize("kind", ["sft", "reward_model"])
def test_an_adapter_is_merged_into_the_model_that_a_stage_leaves(tmp_path, tiny_model, kind):
    reward = HERE if kind == "reward_model" else None
    made = recipe(tmp_path, tiny_model, kind, lora={"r": 4}, reward=reward, steps=3)
    assert go(made)[0].exit_code == 0
    learnt = load_file(made.run_dir / f"stages/01-{kind}/model/model.safetensors")
    base = load_file(tiny_model / "model.safetensors")
    assert not [name for name in learnt if "lora" in name]
    shared = [name for name in learnt if name in base]
    assert any(not torch.equal(learnt[n], base[n]) for n in shared if "proj" in n)
    assert all(torch.equal(learnt[n], base[n]) for n in shared if "norm" in n or "embed" in n)


@pytest.mark.parametrize("kind", ["dpo", "reward_model"])
def test_an_adapter_of_pairs_is_the_recipes_own(tmp_path, tiny_model, kind):
    reward = HERE if kind == "reward_model" else None
    lora = {"r": 4, "target": ["q_proj"], "modules_to_save": ["norm"]}
    made = recipe(tmp_path, tiny_model, kind, lora=lora, reward=reward, steps=2)
    assert go(made)[0].exit_code == 0
    learnt = load_file(made.run_dir / f"stages/01-{kind}/model/model.safetensors")
    base = load_file(tiny_model / "model.safetensors")
    changed = {name for name in base if name in learnt and not torch.equal(learnt[name], base[name])}
    assert "model.norm.weight" in changed and {n for n in changed if "proj" in n} == {n for n in base if "q_proj" in n}
    other = recipe(tmp_path / "other", tiny_model, kind, lora={"target": ["q_porj"]}, reward=reward, steps=2)
    with pytest.raises(ConfigError, match="no layer 'q_porj'"):
        go(other)


def test_no_stage_tries_to_reach_the_network(tmp_path, tiny_model, monkeypatch):
    asked = []
    resolve_name = socket.getaddrinfo
    monkeypatch.delenv("CI", raising=False)  # TRL is silent there anyway
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: (asked.append(host), resolve_name(host, *rest, **more))[1]
    )
    made = recipe(tmp_path, tiny_model, "sft", "dpo", "reward_model", reward=HERE, steps=1)
    assert go(made)[0].exit_code == 0
    assert asked == []


def test_a_job_that_spreads_the_model_is_refused_before_it_trains(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="launched with FSDP"):
        check_stages(recipe(tmp_path, tiny_model, "dpo"), World())


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path, tiny_model):
    with pytest.raises(ConfigError, match=r"stages\.0\.dpo\.train\.batch_size=4 .* by 3 processes"):
        check_stages(recipe(tmp_path, tiny_model, "dpo"), World(size=3))


def test_trackers_get_a_stage_and_the_reinforcement_learning_after_it(tmp_path, tiny_model):
    pytest.importorskip("tensorboard")
    made = recipe(tmp_path, tiny_model, "sft", steps=1)
    made = parse_recipe({**made.model_dump(), "tracking": {"to": ["tensorboard"]}})
    assert go(made)[0].exit_code == 0
    found = [path.relative_to(made.run_dir).parts[0] for path in made.run_dir.rglob("events.out.tfevents.*")]
    assert "stages" in found and len(set(found)) == 2
