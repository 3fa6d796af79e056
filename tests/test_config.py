"""Every recipe of this repository parses and builds its algorithm; overrides; rules between sections."""

import json
from pathlib import Path

import pytest
import yaml

from llmrl.algos import ALGORITHMS, PRESETS
from llmrl.algos.build import build_algorithm
from llmrl.batch import Needs
from llmrl.errors import ConfigError
from llmrl.settings.load import dump_recipe, load_recipe, parse_recipe, recipe_schema

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
PLAIN = {
    "name": "x",
    "model": {"path": "smollm2-135m"},
    "data": {"source": "addition"},
    "reward": {"exact": {"name": "llmrl.rewards.exact_number:ExactNumber"}},
    "algo": {"name": "grpo"},
    "train": {"steps": 10},
}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_recipe_parses_builds_its_algorithm_and_survives_a_round_trip(file, tmp_path):
    recipe = load_recipe(file)
    assert recipe.description
    algo = build_algorithm(recipe.algo)
    assert callable(algo.credit) and callable(algo.loss) and isinstance(algo.needs, Needs)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("name", [*ALGORITHMS, *PRESETS])
def test_every_algorithm_is_built_by_name(name):
    extra = {"constant_tokens": 64} if name == "dr_grpo" else {}
    algo = build_algorithm({"name": name, **extra})
    base, preset = PRESETS.get(name, (name, {}))
    assert f"{type(algo).__module__}:{type(algo).__name__}" == ALGORITHMS[base]
    assert all(getattr(algo, key) == value for key, value in preset.items())


def test_overrides_are_yaml_values_at_dotted_places(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(PLAIN))
    changes = ["train.lr=3e-6", "algo.clip_high=0.5", "model.lora.r=4", "rollout.stop=[a, b]", "eval.max_tokens=null"]
    recipe = load_recipe(file, changes)
    assert recipe.train.lr == 3e-6 and recipe.algo["clip_high"] == 0.5
    assert recipe.model.lora.r == 4 and recipe.model.lora.alpha == 32.0
    assert recipe.rollout.stop == ["a", "b"] and recipe.eval.max_tokens is None
    assert load_recipe(file).train.lr == 1e-6  # the file is not touched


WRONG = {
    "prompt and completion do not fit": (
        {"rollout": {"max_tokens": 600}, "data": {"source": "addition", "max_prompt_tokens": 512}},
        "512 .*600 = 1112 is more than .*1024",
    ),
    "held-out completions do not fit": (
        {"eval": {"max_tokens": 600}, "data": {"source": "addition", "max_prompt_tokens": 512}},
        r"eval\.max_tokens=600 is more",
    ),
    "unequal mini-batches": ({"train": {"steps": 9, "minibatches": 3}}, "prompts_per_step=16 cannot be divided"),
    "endless warm-up": ({"train": {"steps": 9, "warmup_steps": 10}}, "warmup_steps=10 is more than train.steps=9"),
    "a shared head with a model": ({"critic": {"path": "x"}}, r"critic\.path needs a value model of its own"),
    "a shared head that is told": ({"critic": {"privileged": "{answer}"}}, "set critic.kind: separate"),
    "privileged text of nothing": ({"critic": {"kind": "separate", "privileged": "x"}}, "names no column"),
    "a gradient that is stopped anyway": ({"critic": {"kind": "separate", "stop_gradient": True}}, "never moves"),
    "warm-up to the end": ({"critic": {"warmup_steps": 10}}, "the policy would never learn"),
    "no algorithm": ({"algo": {"clip_high": 0.2}}, "algo needs a name"),
    "no reward": ({"reward": {}}, r"reward is empty"),
    "a run name that leaves the folder": ({"name": "../x"}, "name: "),
    "sampler dropout": ({"model": {"path": "x", "lora": {"dropout": 0.1}}}, r"model\.lora\.dropout"),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_rule_between_sections_says_what_is_wrong(why):
    changes, message = WRONG[why]
    parse_recipe(PLAIN)
    with pytest.raises(ConfigError, match=message):
        parse_recipe({**PLAIN, **changes})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "gpro"}, "did you mean 'grpo'"),
        ({"name": "grpo", "clip_hi": 0.3}, "did you mean 'clip_high'"),
        ({"name": "grpo", "clip_high": "much"}, r"algo\.clip_high: .*got 'much'"),
        ({"name": "grpo", "normalize": "tokens"}, r"algo\.normalize"),
        ({"name": "grpo", "clip_low": -1.0}, "clip_low"),
        ({"name": "llmrl.nothing:GRPO"}, "cannot be imported"),
        ({"name": "llmrl.batch:Algorithm"}, "not a dataclass"),
    ],
)
def test_a_wrong_algorithm_section_says_what_is_wrong(section, message):
    with pytest.raises(ConfigError, match=message):
        build_algorithm(section)


def test_an_unknown_key_at_any_depth_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"critic\.warm_up: unknown key; did you mean 'warmup_steps'"):
        parse_recipe({**PLAIN, "critic": {"warm_up": 1}})
    with pytest.raises(ConfigError) as caught:
        parse_recipe({**PLAIN, "trian": {}, "rollout": {"group_sise": 4}, "model": {"path": "x", "lora": {"rr": 2}}})
    text = str(caught.value)
    assert "trian: unknown key; did you mean 'train'" in text
    assert "rollout.group_sise: unknown key; did you mean 'group_size'" in text
    assert "model.lora.rr: unknown key; did you mean 'r'" in text


def test_the_schema_is_json_schema_that_accepts_recipes_and_refuses_typos():
    import jsonschema

    schema = json.loads(recipe_schema())
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    for file in RECIPES:
        kind(schema).validate(yaml.safe_load(file.read_text()))
    with pytest.raises(jsonschema.ValidationError):
        kind(schema).validate({**PLAIN, "trian": {}})
