"""Critique-RL as one run: SFT of actor and critic, stage I until discrimination stops rising, then stage II; its partners."""

import json

import pytest
import torch
from rich.console import Console

from llmrl.errors import ConfigError, LlmrlError
from llmrl.policy.model import load_policy
from llmrl.report.embedded import embedded_samples
from llmrl.report.samples import show_samples
from llmrl.rollout.partners import Partner, open_partners
from llmrl.rollout.store import read_rollouts, rollouts_file
from llmrl.settings.model import LoraConfig
from llmrl.train.checkpoint import checkpoints, digest
from llmrl.train.folder import read_metrics
from llmrl.train.job import judged_by, since_best
from tests.envs.test_critique import ask
from tests.eval.test_endpoint import server  # noqa: F401
from tests.train.test_episode_runs import recipe as episodes_recipe
from tests.train.test_episode_runs import trained

pytestmark = pytest.mark.usefixtures("settings_as_before")
SHORT = {"critic": "{question}\n{attempt}\nRight?", "refine_with": "{critique}\nAgain."}
ACTOR = {"name": "critique", "args": {"online": 1.0, "max_tokens": 6, **SHORT}, "turns": 1, "isolated": False}


def recipe(folder, model, *, steps=2, **sections):
    chains = {"source": "chains", "args": {"part": "mixed", **SHORT}, "limit": 12, "max_prompt_tokens": 120}
    sections = {
        "stages": [
            {"kind": "sft", "data": chains, "train": {"steps": 2, "lr": 1e-3, "batch_size": 2}, "eval": {"data": {"n": 3}}},
            {
                "kind": "rl", "name": "discrimination",
                "env": {**ACTOR, "args": {**ACTOR["args"], "refine": False}},
                "reward": {"critique": {"name": "llmrl.rewards.critique_reward:CritiqueReward", "args": {"stage": 1}}},
                "train": {
                    "steps": 8, "save_every": 1, "best": "eval/reward/critique/verdict_right", "patience": 1,
                },
            },
            {"kind": "rl"},
        ],
        "engines": {"actor": {"model": "stage:sft"}},
        "data": {"source": "chains", "max_prompt_tokens": 60, "limit": 20},
        "reward": {"critique": {"name": "llmrl.rewards.critique_reward:CritiqueReward", "args": {"scheme": "released"}}},
        "algo": {"name": "critique_rl"},
        "eval": {"every": 1, "data": {"n": 3}, "threshold": 1.0},
        **sections,
    }  # fmt: skip
    return episodes_recipe(folder, model, steps=steps, env=ACTOR, **sections)


def test_two_stages_in_one_run_and_every_text_of_an_episode_is_kept(tmp_path, tiny_model, capsys):
    made = recipe(tmp_path, tiny_model)
    train = trained(made)
    first = made.run_dir / "stages" / "02-discrimination"
    summary = json.loads((first / "summary.json").read_text())
    assert summary["completed_steps"] == 1 and summary["started_from"].endswith(
        "01-sft/model"
    )  # nothing rises: one step
    assert (first / "model" / "model.safetensors").is_file()
    assert "reward/critique/verdict_right" in train[0] and "flag/malformed_critique" in train[0]
    evals = [row for row in read_metrics(made.run_dir) if row["kind"] == "eval"]
    assert {"eval/reward/critique/draft_right", "eval/reward/flag/malformed_critique"} <= set(evals[0])
    rows = read_rollouts(rollouts_file(made.run_dir, 1))
    for row in rows:
        assert row.info["critique"] == row.text and set(row.info) == {"draft", "critique", "refined"}
        assert row.scores[-1].reason.startswith("critique: verdict malformed, draft wrong")
    drafts = {row.prompt.id: set() for row in rows}
    for row in rows:
        drafts[row.prompt.id].add(row.info["draft"])
    assert all(len(found) == 1 for found in drafts.values())
    show_samples(made.run_dir, step=1, n=2, console=Console(width=200))
    shown = capsys.readouterr().out
    assert "draft: " in shown and "refined: " in shown and "verdict malformed" in shown
    told = [row["told"] for row in embedded_samples(made.run_dir, [])["rows"]]
    assert all({"draft", "refined"} <= set(one) for one in told)


@pytest.mark.slow
def test_a_killed_run_hears_from_its_actor_what_it_heard(tmp_path, tiny_model):
    whole = recipe(tmp_path / "whole", tiny_model, steps=4)
    trained(whole)
    half = recipe(tmp_path / "cut", tiny_model, steps=2)
    trained(half)
    longer = recipe(tmp_path / "cut", tiny_model, steps=4)
    trained(longer, resume=True)
    assert digest(checkpoints(whole.run_dir)[-1]) == digest(checkpoints(longer.run_dir)[-1])
    files = [folder.run_dir / "partners" / "actor-0.jsonl" for folder in (whole, longer)]
    heard = [{k: v for line in file.read_text().splitlines() for k, v in json.loads(line).items()} for file in files]
    assert heard[0] == heard[1] and heard[0]


def test_the_policy_without_its_adapter_is_a_partner(tmp_path, tiny_model):
    made = recipe(
        tmp_path, tiny_model, stages=[], engines={"actor": {"model": "base"}, "other": {"model": str(tiny_model)}}
    )
    made = made.model_copy(update={"model": made.model.model_copy(update={"lora": LoraConfig(r=4)})})
    policy = load_policy(made.model, source=str(tiny_model), device=torch.device("cpu"), seed=0)
    with torch.no_grad():
        for name, weight in policy.trainable():
            weight.add_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    partners = open_partners(made, {"other": str(tiny_model)}, policy, rank=0)
    asked = [(ask("What is 3 + 4?", max_tokens=20), 1), (ask("Hm", max_tokens=20), 2)]
    found = [partners[name].answers(asked) for name in ("actor", "other")]
    assert found[0] == found[1]
    off = partners["actor"]._engine  # the same engine with the adapter on
    with_adapter = Partner(off._engine, partners["actor"]._renderer, max_length=200)
    assert with_adapter.answers(asked) != found[0]
    for partner in partners.values():
        partner.close()


def test_a_server_is_a_partner(tmp_path, tiny_model, server):  # noqa: F811
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    made = recipe(tmp_path, tiny_model, stages=[], engines={"actor": {"urls": [url], "model": "served"}})
    policy = load_policy(made.model, source=str(tiny_model), device=torch.device("cpu"), seed=0)
    (partner,) = open_partners(made, {}, policy, rank=0).values()
    first = policy.tokenizer("<|user|>")["input_ids"][0]
    asked = ask("Hm", max_tokens=9, temperature=0.5, samples=2)
    assert partner.answers([(asked, 1)]) == [(f"said {first}", f"said {first}")]
    bodies = server.bodies
    assert [body["temperature"] for body in bodies] == [0.5, 0.5] and bodies[0]["seed"] != bodies[1]["seed"]
    partner.close()


@pytest.mark.parametrize(
    ("engines", "reason"),
    [({"actor": {"model": "base"}}, "there is no model.lora"), ({"actor": {"urls": ["localhost:1"]}}, "is no URL")],
)
def test_partners_that_cannot_be_are_told(tmp_path, tiny_model, engines, reason):
    made = recipe(tmp_path, tiny_model, stages=[], engines=engines)
    policy = load_policy(made.model, source=str(tiny_model), device=torch.device("cpu"), seed=0)
    with pytest.raises(LlmrlError, match=reason):
        open_partners(made, {}, policy, rank=0)


def test_the_best_evaluation_is_that_of_the_named_metric():
    rows = [{"kind": "eval", "eval/accuracy": 1 - v, "eval/loss": v} for v in (0.3, 0.1, 0.2)]
    rows = [{"kind": "train", "loss": 1.0}, *rows]
    assert since_best(rows) == since_best(rows, "-eval/loss") == 1 and since_best(rows, "eval/loss") == 2
    assert since_best([{"kind": "eval", "eval/loss": v} for v in (0.3, 0.1, 0.2)]) == 1
    assert judged_by({"eval/loss": 2.0}, "") is None and judged_by({"eval/loss": 2.0}, "-eval/loss") == -2.0
    with pytest.raises(ConfigError, match=r"train.best=eval/acc is no held-out metric here; there are eval/loss"):
        judged_by({"eval/loss": 2.0, "time/eval": 1.0}, "eval/acc")
