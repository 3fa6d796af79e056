"""Rows that are environment steps: where rewards land, what is stored, who may see images, what a cut bootstraps from."""

import math
from dataclasses import replace

import pytest
import torch

from llmrl.algos.grpo import GRPO
from llmrl.algos.ppo import PPO
from llmrl.batch import Needs
from llmrl.credit import gae
from llmrl.policy.packing import packed_tokens
from llmrl.rollout.engine import EngineError, readable
from llmrl.rollout.store import read_rollouts, write_rollouts
from llmrl.train.collate import collate
from llmrl.train.learn import annotate, known_logprobs, learn
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.sample import judged
from llmrl.types import Ending, Media, Prompt, Request, Sampling, Score
from tests.tiny import random_batch, random_model, tiny_models, trajectory
from tests.train.test_values import parts

PICTURE, OTHER = Media.of(b"a picture"), Media.of(b"another")


def test_an_outcome_is_added_to_the_last_step_and_the_environments_rewards_stay():
    row = trajectory((5, 6), [[7, 8], [9], [10]], reward=0.25)  # the environment gave 0 and 0.25
    (found,) = judged([row], lambda rows: [Score(value=1.0, flags=("seen",))])
    assert [score.value for score in found.scores] == [0.0, 1.25] and found.scores[-1].flags == ("seen",)
    rewards = collate([found]).rewards[0]
    assert rewards.tolist() == [0.0, 0.0, 0.0, 0.0, 0.0, 1.25]
    (bare,) = judged([replace(row, scores=())], lambda rows: [Score(value=1.0)])
    assert [score.value for score in bare.scores] == [0.0, 1.0]


def test_only_the_last_row_of_an_episode_is_judged_and_every_row_knows_the_total():
    first = replace(trajectory((5,), [[6]], group="g", reward=0.5), episode="g/0", ending=Ending.CONTINUES)
    last = replace(trajectory((5, 6, 7), [[8, 9]], group="g", reward=0.0), episode="g/0", turn=1)
    seen = []

    def score(rows):
        seen.extend(rows)
        return [Score(value=1.0) for _ in rows]

    batch = collate(judged([first, last], score))
    assert [row.turn for row in seen] == [1]
    assert batch.score.tolist() == [1.5, 1.5] and batch.rewards.sum(1).tolist() == [0.5, 1.0]
    assert batch.episode.tolist() == [0, 0] and batch.turn.tolist() == [0, 1]
    assert batch.terminated.tolist() == [False, True] and not batch.truncated.any()


def test_a_step_without_a_sampled_token_leaves_its_reward_on_the_token_before():
    row = trajectory((5, 6), [[7, 8], [9], [10]])
    scores = tuple(Score(value=value) for value in (1.0, 2.0, 4.0, 8.0))
    silent = replace(row, step=[-1, -1, 1, 1, -1, 3], scores=scores)  # steps 0 and 2 sampled nothing
    assert collate([silent]).rewards[0].tolist() == [0.0, 0.0, 1.0, 2.0 + 4.0, 0.0, 8.0]


def test_rows_of_a_group_with_different_prompts_are_packed_apart_and_learn_the_same():
    rows = [trajectory((5, 6, 7), [[8, 9]], group="g", sample=0, reward=1.0)]
    rows += [trajectory((5, 6), [[9, 8]], group="g", sample=1), trajectory((5, 6), [[8]], group="g", sample=2)]
    batch = collate(rows)
    assert batch.prefixes.tolist() == [0, 1, 1] and batch.group.unique().tolist() == [0]
    assert packed_tokens(batch) == 3 + 2 + 2 + 1  # the shorter prompt is a part of the longer
    packed, plain = (
        LogprobModel(model=random_model(), mode=mode, temperature=1.0, tokens_per_microbatch=99).logprobs(batch)
        for mode in ("packed", "plain")
    )
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-5)
    shown = [replace(row, prompt=replace(row.prompt, media=(PICTURE,))) for row in rows[1:]]
    assert collate([*rows, *shown]).prefixes.tolist() == [0, 1, 1, 2, 2]


def test_images_are_refused_by_engines_that_read_text_and_tell_siblings_apart():
    sampling = Sampling(max_tokens=1)
    plain = Request(tokens=(1, 2), sampling=sampling)
    one, other = (replace(plain, media=(media,)) for media in (PICTURE, OTHER))
    assert len({plain.prefix, one.prefix, other.prefix}) == 3 and one.prefix == replace(one).prefix
    readable([plain], None, "smollm2-135m")
    with pytest.raises(EngineError, match="1 of 2 prompts show images, and smollm2-135m reads text only"):
        readable([plain, one], None, "smollm2-135m")


def test_a_stored_rollout_is_the_one_that_was_trained(tmp_path):
    row = trajectory((5, 6), [[7, 8], [9], [10]], reward=0.25)
    prompt = replace(row.prompt, media=(PICTURE,), messages=({"role": "user", "content": "look"},), columns={"n": 3})
    final = Prompt(id=prompt.id, tokens=(5, 6, 11), text="what came next", media=(OTHER,))
    whole = replace(row, prompt=prompt, episode="e", turn=2, ending=Ending.TRUNCATED, final=final, info={"won": False})
    gold = replace(row, logprobs=None)
    file = tmp_path / "rollouts" / "step-000001.parquet"
    write_rollouts(file, [whole, whole, gold], [None] * 3)
    first, second, third = read_rollouts(file)
    assert first.prompt == second.prompt == prompt and first.final == final and third.logprobs is None
    names = ("episode", "turn", "ending", "info", "scores", "text", "status", "version", "sample")
    assert all(getattr(first, name) == getattr(whole, name) for name in names)
    assert (first.tokens == whole.tokens).all() and (first.logprobs == whole.logprobs).all()
    assert sorted(path.name for path in (file.parent / "media").iterdir()) == sorted(
        f"{media.hash}.png" for media in (PICTURE, OTHER)
    )  # each picture once


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_a_cut_row_bootstraps_from_the_value_of_what_came_next(kind):
    cut = trajectory((5, 6), [[7, 8, 9]], group="a", reward=1.0)
    cut = replace(cut, ending=Ending.TRUNCATED, final=Prompt(id="a", tokens=(5, 6, 7, 8, 9, 11), text=""))
    ended = trajectory((5, 6, 7), [[8, 9]], group="b", reward=-1.0)
    batch = collate([cut, ended])
    logprob_model, updater, critic_trainer = parts(kind)
    models = tiny_models(logprob_model, updater, critic_trainer=critic_trainer)
    ready = annotate(models, Needs(values=True), batch)
    # The value before a token that follows the final observation, by a row of its own.
    wanted = annotate(models, Needs(values=True), collate([trajectory((5, 6, 7, 8, 9, 11), [[1]])])).values[0, 6]
    assert float(ready.final_values[0]) == pytest.approx(float(wanted), rel=1e-5) and ready.final_values[1] == 0
    algo = PPO(gamma=0.9, lam=0.5, whiten_advantages=False)
    credited = algo.credit(ready)
    rewards = ready.rewards.clone()
    rewards[0, 4] += 0.9 * ready.final_values[0]
    advantages, returns = gae(rewards, ready.values, ready.mask, gamma=0.9, lam=0.5)
    torch.testing.assert_close(credited.advantages, advantages)
    torch.testing.assert_close(credited.returns, returns)


def test_rows_that_no_engine_sampled_are_no_mismatch_and_weigh_one():
    rows = [trajectory((5, 6), [[7, 8]], group="g", sample=n, reward=float(n), logprob=-30.0) for n in range(2)]
    gold = [replace(row, logprobs=None) for row in rows]
    model = random_model()
    logprob_model = LogprobModel(model=model, mode="packed", temperature=1.0, tokens_per_microbatch=99)
    batch = GRPO().credit(collate(gold))
    out = logprob_model(batch)
    assert torch.equal(known_logprobs(batch, out).logprobs, out.logprobs.detach())

    class NoStep:
        backward, step, discard = (lambda self, *a: (0.0, True),) * 3

    metrics = learn(tiny_models(logprob_model, NoStep()), GRPO(), collate(gold), 0)[1]
    assert metrics["mismatch/mean_abs_logprob"] == 0.0 and math.isfinite(metrics["loss"])
    assert learn(tiny_models(logprob_model, NoStep()), GRPO(), collate(rows), 0)[1]["mismatch/mean_abs_logprob"] > 10


def test_a_plug_ins_typo_in_needs_is_refused():
    with pytest.raises(TypeError, match="valuse"):
        Needs(valuse=True)
    assert random_batch(1).episode is None
