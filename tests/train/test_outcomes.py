"""The outcome critic in a step: judged before it learns, it learns outcomes, cut as you like; whole CodeRL runs."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from llmrl.algos.coderl import CodeRL
from llmrl.errors import ConfigError
from llmrl.losses import pooled_logits, token_scores
from llmrl.policy.model import Policy
from llmrl.policy.outcome_critic import OutcomeCritic, OutcomeHead
from llmrl.rollout.programs import programs, repairs, write_jsonl
from llmrl.rollout.store import read_rollouts, rollouts_file
from llmrl.settings.load import load_recipe
from llmrl.settings.model import OutcomeCriticConfig
from llmrl.settings.recipe import TrainConfig
from llmrl.train.collate import collate, outcome
from llmrl.train.folder import read_metrics
from llmrl.train.learn import learn
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.outcomes import OutcomeTrainer
from llmrl.train.replay import replay
from llmrl.train.updater import Updater
from llmrl.train.world import World
from llmrl.types import Role, Score, Status
from tests.durability.harness import CASES, write_recipe
from tests.tiny import random_batch, random_model, random_trajectories, tiny_models, tiny_tokenizer
from tests.train.test_resumed import trained

pytestmark = pytest.mark.usefixtures("settings_as_before")
UNIFORM = CodeRL(baseline="group_mean", ce_coef=0.0)


def judged_batch(seed, classes=4):
    batch = random_batch(seed, groups=(4, 3, 2, 1))
    draw = torch.Generator().manual_seed(seed)
    return replace(batch, outcome=torch.randint(0, classes, (batch.rows,), generator=draw))


def updater_of(named):
    return Updater(named, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=1e9)


def trainer(kind="separate", *, budget=4096, train=None, classes=4, **config):
    model, head = random_model(), OutcomeHead(64, classes)
    with torch.no_grad():
        head.weight.copy_(0.1 * torch.randn(classes, 64, generator=torch.Generator().manual_seed(1)))
    own = Policy(model=random_model(seed=7), tokenizer=tiny_tokenizer(), source="", lora=False)
    critic = OutcomeCritic(head=head, model=own if kind == "separate" else None)
    policy = LogprobModel(model=model, mode="packed", temperature=1.0, tokens_per_microbatch=budget)
    settings = TrainConfig(steps=10, lr=1e-3, tokens_per_microbatch=budget, **(train or {}))
    return OutcomeTrainer(
        critic=critic, updater=updater_of(critic.trainable()), config=OutcomeCriticConfig(kind=kind, **config),
        train=settings, policy=policy, world=World(), seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["shared", "separate"])
@pytest.mark.parametrize("budget", [1, 20, 4096])
def test_scores_and_predictions_are_those_of_the_whole_batch(kind, budget):
    batch, made = judged_batch(5), trainer(kind, budget=budget)
    with torch.no_grad():
        whole = trainer(kind)
        logits = whole._logits(batch)
    scored, metrics = made.score(batch)
    wanted = token_scores(logits, batch.outcome, batch.mask)
    torch.testing.assert_close(scored.token_scores, wanted, rtol=1e-4, atol=1e-5)
    alive = batch.mask.any(1)
    said = pooled_logits(logits, batch.mask).argmax(1)
    assert metrics["outcome_critic/accuracy"] == pytest.approx(float((said == batch.outcome)[alive].double().mean()))


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_one_step_is_the_gradient_of_the_mean_cross_entropy_however_it_is_cut(kind):
    batch, moved = judged_batch(6), {}
    for budget in (1, 4096):
        made = trainer(kind, budget=budget, lr=1e-3)
        metrics = made.learn(batch, 0)
        moved[budget] = metrics
    reference = trainer(kind)
    pooled = pooled_logits(reference._logits(batch), batch.mask)
    alive = batch.mask.any(1)
    loss = torch.nn.functional.cross_entropy(pooled[alive], batch.outcome[alive])
    loss.backward()
    grads = [p.grad for _, p in reference.critic.trainable() if p.grad is not None]
    norm = float(torch.linalg.vector_norm(torch.stack([grad.norm() for grad in grads])))
    for metrics in moved.values():
        assert metrics["outcome_critic/loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert metrics["outcome_critic/grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert all(p.grad is None for p in reference.policy.model.parameters())


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_outcomes_are_learnt_and_the_policy_stays(kind):
    batch, made = (
        judged_batch(7, classes=2),
        trainer(kind, lr=1e-2 if kind == "separate" else 0.1, epochs=10, classes=2),
    )
    made = replace(made, config=made.config.model_copy(update={"binary": True}))
    batch = replace(batch, outcome=2 + batch.outcome)  # failed or passed
    before = made.score(batch)[1]["outcome_critic/nll"]
    for step in range(3):
        made.learn(batch, step)
    after = made.score(batch)[1]
    assert after["outcome_critic/nll"] < 0.5 * before and after["outcome_critic/accuracy"] > 0.85
    fresh = random_model()
    assert all(torch.equal(p, q) for p, q in zip(made.policy.model.parameters(), fresh.parameters(), strict=True))


def test_a_step_is_judged_by_the_critic_from_before_it():
    batch, made = judged_batch(8), trainer(lr=1e-2)
    wanted = made.score(batch)[0].token_scores
    models = tiny_models(made.policy, updater_of(list(made.policy.model.named_parameters())), outcome_trainer=made)
    learnt, metrics = learn(models, UNIFORM, batch, 0)
    assert torch.equal(learnt.token_scores, wanted) and metrics["outcome_critic/lr"] == 1e-2
    assert not torch.equal(made.score(batch)[0].token_scores, wanted)
    assert "outcome_critic/lr" not in replace(made, config=made.config.model_copy(update={"every": 2})).learn(batch, 1)


def test_in_warm_up_steps_the_policy_stays():
    batch, made, fresh = judged_batch(8), trainer(warmup_steps=1), random_model()
    models = tiny_models(made.policy, updater_of(list(made.policy.model.named_parameters())), outcome_trainer=made)
    _, metrics = learn(models, UNIFORM, batch, 0)
    assert all(torch.equal(p, q) for p, q in zip(made.policy.model.parameters(), fresh.parameters(), strict=True))
    assert metrics["lr"] == 0.0 == metrics["grad_norm"] and metrics["outcome_critic/grad_norm"] > 0
    _, metrics = learn(models, UNIFORM, batch, 1)
    assert metrics["lr"] > 0 and metrics["grad_norm"] > 0


def test_a_row_without_a_verdict_scores_nothing_and_teaches_the_critic_nothing():
    batch = judged_batch(9)
    row = int(batch.mask.any(1).nonzero()[0])
    without = replace(batch, outcome=batch.outcome.index_fill(0, torch.tensor(row), -1))
    assert not trainer().score(without)[0].token_scores[row].any()
    alone = batch.select(torch.tensor([n for n in range(batch.rows) if n != row]))
    assert trainer().learn(without, 0)["outcome_critic/loss"] == pytest.approx(
        trainer().learn(alone, 0)["outcome_critic/loss"], rel=1e-5
    )
    with pytest.raises(ConfigError, match="CodeOutcome"):
        trainer().score(replace(batch, outcome=None))


def test_rows_learn_what_is_beside_them():
    """A greedy row never trains, its reward is its siblings' baseline; a given row is marked; failures have no class."""
    rows = random_trajectories(1, groups=(2, 2))
    score = Score(value=1.0, parts={"tests/outcome": 3.0, "outcome": 9.0})
    rows = [replace(row, scores=(*row.scores[:-1], score)) for row in rows]
    rows[1] = replace(rows[1], role=Role.BASELINE)
    rows[3] = replace(rows[3], role=Role.GIVEN, logprobs=None)
    batch = collate(rows)
    assert not batch.mask[1].any() and batch.baseline[:2].tolist() == [rows[1].reward] * 2
    assert batch.baseline[2:].isnan().all() and batch.given.tolist() == [False, False, False, True]
    assert batch.outcome.tolist() == [3, 3, 3, 3]
    assert outcome(replace(rows[0], status=Status.error("made to fail"))) == -1
    plain = collate(random_trajectories(1, groups=(2, 2)))
    assert plain.baseline is None and plain.given is None and plain.outcome is None


def test_a_coderl_run_holds_greedy_and_given_rows_and_can_be_replayed(tmp_path, tiny_model):
    changes = {**CASES["outcome_critic"].changes, "model.dtype": "float32", "train.steps": 3, "eval.every": 0}
    file = write_recipe(tmp_path, tiny_model, changes)
    trained(file)
    folder = tmp_path / "run"
    for step in (1, 2, 3):
        stored = read_rollouts(rollouts_file(folder, step))
        roles = [row.role for row in stored]
        assert [roles.count(role) for role in Role] == [16, 4, 4]
        greedy = {row.prompt.id: row for row in stored if row.role is Role.BASELINE}
        assert len(greedy) == 4 and all(row.logprobs is None for row in stored if row.role is Role.GIVEN)
        assert all(row.reward == 1.0 and row.text == row.prompt.answer for row in stored if row.role is Role.GIVEN)
    rows = [row for row in read_metrics(folder) if row["kind"] == "train"]
    sampled = [row for row in stored if row.role is Role.SAMPLED]
    assert rows[2]["reward/mean"] == pytest.approx(sum(row.reward for row in sampled) / 16)
    assert rows[2]["reward/greedy"] == pytest.approx(sum(row.reward for row in greedy.values()) / 4)
    assert rows[2]["reference/failed"] == 0.0 and 0 <= rows[2]["outcome_critic/accuracy"] <= 1
    assert rows[0]["lr"] == 0.0 and "outcome_critic/loss" in rows[0] and "outcome_critic/loss" not in rows[1]
    critic = folder / "checkpoints" / "step-000003" / "outcome_critic"
    assert json.loads((critic / "config.json").read_text())["id2label"]["3"] == "passed_test"
    recipe = load_recipe(file, [])
    from llmrl.compose import resolve

    parts = resolve(recipe)
    again = replay(folder, step=3, recipe=recipe, algo=parts.algo, sources=parts.sources)
    assert again.reproduced and again.replayed["outcome_critic/accuracy"] == again.recorded["outcome_critic/accuracy"]


def test_a_reference_that_fails_its_own_reward_trains_nothing_and_is_counted(tmp_path, tiny_model):
    changes = {**CASES["outcome_critic"].changes, "train.steps": 1, "data.columns": {"completion": "problem"}}
    trained(write_recipe(tmp_path, tiny_model, changes | {"outcome_critic": {"lr": 1e-3}, "eval.threshold": 1.0}))
    stored = read_rollouts(rollouts_file(tmp_path / "run", 1))
    assert all("the reference scores -" in row.status.reason for row in stored if row.role is Role.GIVEN)
    (row,) = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    assert row["reference/failed"] == 1.0 and row["rollout/errored"] == 0.0


def test_a_critic_learns_offline_from_the_programs_of_another_run(tmp_path, tiny_model):
    """A run's programs as JSONL, no engine: rewards judge them again, warm-up leaves the policy as it was."""
    changes = {**CASES["outcome_critic"].changes, "model.dtype": "float32", "train.steps": 2, "eval.every": 0}
    trained(write_recipe(tmp_path / "online", tiny_model, changes))
    online = tmp_path / "online" / "run"
    file = tmp_path / "programs.jsonl"
    assert write_jsonl(file, programs(online)) == 2 * (16 + 4)
    pairs = list(repairs(online))
    assert pairs and all("It does not pass the examples" in pair["problem"] for pair in pairs)
    answers = {row.prompt.answer for step in (1, 2) for row in read_rollouts(rollouts_file(online, step))}
    assert {pair["completion"] for pair in pairs} <= answers
    offline = changes | {"rollout.stored": str(file), "outcome_critic": {"lr": 1e-2, "warmup_steps": 2}}
    trained(write_recipe(tmp_path / "offline", tiny_model, offline))
    run = tmp_path / "offline" / "run"
    lines = map(json.loads, file.read_text().splitlines())
    known = {(row["prompt_id"], tuple(row["tokens"])): row["reward"] for row in lines}
    for step in (1, 2):
        stored = [row for row in read_rollouts(rollouts_file(run, step)) if row.role is not Role.GIVEN]
        assert {row.role for row in stored} == {Role.SAMPLED, Role.BASELINE}
        for row in stored:
            own = tuple(row.tokens[len(row.prompt.tokens) :].tolist())
            assert known[row.prompt.id, own] == row.reward and row.logprobs is not None
    rows = [row for row in read_metrics(run) if row["kind"] == "train"]
    assert all(row["lr"] == 0.0 and row["outcome_critic/grad_norm"] > 0 for row in rows)
    policy = load_file(run / "checkpoints" / "step-000002" / "policy" / "model.safetensors")
    before = load_file(tiny_model / "model.safetensors")
    assert all(torch.equal(policy[name], before[name]) for name in before)
