"""The `stages` section: what it says, and what it says when it is wrong."""

import pytest
import yaml

from llmrl.errors import ConfigError
from llmrl.settings.load import check_same_run, dump_recipe, load_recipe, parse_recipe
from llmrl.settings.stages import replaced

PLAIN = {
    "name": "x",
    "model": {"path": "smollm2-135m"},
    "data": {"source": "addition"},
    "reward": {"exact": {"name": "llmrl.rewards.exact_number:ExactNumber"}},
    "algo": {"name": "grpo"},
    "train": {"steps": 10},
}
SFT = {"kind": "sft", "train": {"steps": 3}}
MODEL = {"kind": "reward_model", "train": {"steps": 3}}
SCORED = {"learned": {"name": "llmrl.rewards.reward_model:RewardModel", "args": {"model": "stage:reward_model"}}}

WRONG = {
    "unknown kind": ([{"kind": "stf"}], "stages.0: 'stf' is no kind of stage; did you mean 'sft'"),
    "no kind": ([{"train": {}}], "stages.0.kind: missing; add it"),
    "unknown key of a stage": ([{**SFT, "trian": {}}], "stages.0.sft.trian: unknown key; did you mean 'train'"),
    "unknown key deeper": (
        [{"kind": "dpo", "train": {"steps": 2, "stps": 3}}],
        "stages.0.dpo.train.stps: unknown key; did you mean 'steps'",
    ),
    "unknown key of the data": (
        [{**SFT, "data": {"source": "x", "colums": {}}}],
        "stages.0.sft.data.colums: unknown key; did you mean 'columns'",
    ),
    "no steps": ([{"kind": "sft", "train": {}}], "stages.0.sft.train.steps: missing; add it"),
    "a key of another kind": ([{**SFT, "beta": 0.1}], "stages.0.sft.beta: unknown key"),
    "wrong type": ([{"kind": "sft", "train": {"steps": "many"}}], "stages.0.sft.train.steps: must be a whole number"),
    "the last rl with sections": (
        [SFT, {"kind": "rl", "train": {"lr": 1}}],
        "stages.1: the last rl stage is what the rest of the recipe describes; move train there",
    ),
    "an earlier rl with a typo": (
        [{"kind": "rl", "train": {"stps": 3}}, {"kind": "rl"}],
        "stages.0.rl: train.stps: Extra inputs are not permitted",
    ),
    "an earlier rl that does not fit": (
        [{"kind": "rl", "rollout": {"max_tokens": 4000}}, {"kind": "rl"}],
        "stages.0.rl: data.max_prompt_tokens=768 + rollout.max_tokens=4000",
    ),
    "a start that is no stage": (
        [{**SFT, "start": "stf"}],
        "stages.0.start: stage:stf is no stage before it that makes",
    ),
    "a name that means the start": ([{**SFT, "name": "base"}], "stages.0: a stage is called 'base' already"),
    "a renamed key": (
        [{"kind": "sft", "train": {"steps": 3, "microbatch_size": 4}}],
        "microbatch_size=4 is tokens_per_microbatch now",
    ),
    "twice the same name": ([SFT, SFT], "stages.1: a stage is called 'sft' already"),
    "uneven batches": (
        [{"kind": "dpo", "train": {"steps": 3, "batch_size": 6, "microbatch_size": 4}}],
        "batch_size=6 cannot be divided into parts of microbatch_size=4",
    ),
    "no list": ("sft", "stages: must be a list"),
    "a reward model that scores nothing": ([MODEL], "stage 'reward_model' is trained and scores nothing"),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_wrong_stage_is_an_error_that_names_it_and_the_field(why):
    stages, message = WRONG[why]
    with pytest.raises(ConfigError) as caught:
        parse_recipe({**PLAIN, "stages": stages})
    assert message in str(caught.value)


def test_a_reward_may_name_only_a_reward_model_of_the_recipe():
    parse_recipe({**PLAIN, "stages": [MODEL], "reward": SCORED})
    wrong = {"learned": {**SCORED["learned"], "args": {"model": "stage:reward_modle"}}}
    for stages, hint in (([MODEL], "did you mean 'reward_model'"), ([SFT], "lists none")):
        with pytest.raises(ConfigError, match=hint):
            parse_recipe({**PLAIN, "stages": stages, "reward": wrong})
    with pytest.raises(ConfigError, match="stage:sft is no reward_model stage"):
        parse_recipe({**PLAIN, "stages": [SFT], "reward": {"l": {**SCORED["learned"], "args": {"model": "stage:sft"}}}})


def test_every_stage_starts_from_the_last_policy_and_never_from_a_reward_model(tmp_path):
    stages = [SFT, MODEL, {"kind": "dpo", "train": {"steps": 3}}, {"kind": "rl"}]
    recipe = parse_recipe({**PLAIN, "stages": stages, "reward": SCORED, "runs_dir": str(tmp_path)})
    sft, model, dpo = recipe.before
    assert recipe.start_of(sft) is None
    assert recipe.start_of(model) == recipe.start_of(dpo) == tmp_path / "x/stages/01-sft/model"
    assert recipe.start_of(None) == tmp_path / "x/stages/03-dpo/model"
    args = replaced({"model": "stage:reward_model", "scale": "logit"}, recipe.stage_models)
    assert args == {"model": str(recipe.stage_dir(model) / "model"), "scale": "logit"}


def test_a_stage_starts_from_the_one_it_names():
    other = {**SFT, "name": "critic", "start": "base"}
    recipe = parse_recipe({**PLAIN, "stages": [SFT, other, {"kind": "rl", "start": "sft"}]})
    assert recipe.start_of(recipe.before[1]) is None
    assert recipe.start_of(None) == recipe.run_dir / "stages/01-sft/model"
    assert parse_recipe({**PLAIN, "stages": [SFT, {"kind": "rl", "start": "base"}]}).start_of(None) is None


def test_an_earlier_rl_stage_is_the_recipe_with_its_own_sections():
    first = {"kind": "rl", "name": "first", "algo": {"name": "rloo"}, "train": {"steps": 2, "lr": 1e-3},
             "reward": {"other": {"name": "llmrl.rewards.exact_number:ExactNumber"}}}  # fmt: skip
    recipe = parse_recipe({**PLAIN, "train": {"steps": 9, "warmup_steps": 1}, "stages": [SFT, first, {"kind": "rl"}]})
    own = recipe.of_stage(recipe.before[1])
    assert (own.train.steps, own.train.lr, own.train.warmup_steps) == (2, 1e-3, 1)
    assert own.algo == {"name": "rloo"} and list(own.reward) == ["other"] and own.stages == []
    assert own.run_dir == recipe.run_dir / "stages/02-first"
    assert own.model.path == str((recipe.run_dir / "stages/01-sft/model").absolute())


def test_an_engine_may_run_the_policy_of_a_stage_and_no_reward_model():
    env = {"name": "llmrl.envs.guess:Guess"}
    sections = {**PLAIN, "env": env, "engines": {"actor": {"model": "stage:sft"}}, "stages": [SFT]}
    assert parse_recipe(sections).engines["actor"].model == "stage:sft"
    with pytest.raises(ConfigError, match=r"engines\.actor\.model: stage:stf is no stage before it"):
        parse_recipe({**sections, "engines": {"actor": {"model": "stage:stf"}}})


def test_an_outcome_critic_is_no_part_of_sft_and_may_start_from_a_stage():
    sections = {**PLAIN, "algo": {"name": "coderl"}, "outcome_critic": {"path": "stage:sft"}, "stages": [SFT]}
    recipe = parse_recipe(sections)
    assert recipe.of_stage(recipe.before[0]).outcome_critic is None
    with pytest.raises(ConfigError, match=r"outcome_critic\.path: stage:stf is no stage before it"):
        parse_recipe({**sections, "outcome_critic": {"path": "stage:stf"}})


def test_the_embedding_is_grown_once_by_the_first_stage():
    again = {**SFT, "name": "again"}
    recipe = parse_recipe({**PLAIN, "model": {"path": "smollm2-135m", "resize": True}, "stages": [SFT, again]})
    assert [recipe.of_stage(stage).model.resize for stage in recipe.before] == [True, False]


def test_only_sections_that_load_models_name_stages():
    recipe = parse_recipe({**PLAIN, "data": {"source": "addition", "template": "stage:sft {prompt}"}, "stages": [SFT]})
    assert recipe.of_stage(recipe.before[0]).data.template == "stage:sft {prompt}"


def test_overrides_reach_a_stage_by_name_and_by_place(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({**PLAIN, "stages": [SFT, {"kind": "rl"}]}))
    assert load_recipe(file, ["stages.sft.train.lr=3e-6"]).before[0].train.lr == 3e-6
    assert load_recipe(file, ["stages.0.eval.every=2"]).before[0].eval.every == 2
    with pytest.raises(ConfigError, match="has no 'stf'; did you mean 'sft'"):
        load_recipe(file, ["stages.stf.train.lr=1"])


def test_a_resumed_run_may_not_change_its_stages_and_the_error_names_the_key(tmp_path):
    recipe = parse_recipe({**PLAIN, "stages": [SFT], "runs_dir": str(tmp_path)})
    recipe.run_dir.mkdir()
    (recipe.run_dir / "recipe.yaml").write_text(dump_recipe(recipe))
    check_same_run(recipe)
    changed = parse_recipe({**PLAIN, "stages": [{**SFT, "train": {"steps": 4}}], "runs_dir": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"stages\.0\.train\.steps: was 3, is 4"):
        check_same_run(changed)
