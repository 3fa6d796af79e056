"""The data source `demonstrations`: turns of random play as examples of an answer's form."""

import json
from collections import Counter, defaultdict

import pytest

from llmrl.data.source import load_rows, load_train_eval
from llmrl.envs.cards import value_of
from llmrl.errors import ConfigError, DataError
from llmrl.settings.data import DataConfig, EvalDataConfig
from llmrl.settings.load import load_recipe

LINE = {"env": "numberline", "args": {"high": 5}, "turns": 8}


def source(limit=200, **args):
    return DataConfig(source="demonstrations", args={**LINE, **args}, limit=limit)


def state(row):
    return row.prompt[-1]["content"]


def test_rows_are_what_the_policy_would_see_with_every_action_about_as_often():
    rows = load_rows(source(), seed=3)
    assert len(rows) == 200 == len({row.id for row in rows})
    assert all([message["role"] for message in row.prompt] == ["system", "user"] for row in rows)
    actions = Counter(json.loads(row.answer)["action"] for row in rows)
    assert set(actions) == {"-", "+"} and 70 < actions["-"] < 130  # five standard deviations are 35
    answers = defaultdict(set)
    for row in rows:
        answers[state(row)].add(row.answer)
        assert row.columns["completion"] == row.answer
    assert max(map(len, answers.values())) == 2, "the same state comes with either action"
    assert load_rows(source(), seed=3) == rows != load_rows(source(), seed=4)


def test_a_states_variants_are_all_on_one_side_of_the_split():
    train, held_out = load_train_eval(source(), EvalDataConfig(n=20), seed=0)
    assert len(held_out) == 20 and not {state(row) for row in train} & {state(row) for row in held_out}


def test_with_skill_answers_follow_the_games_hints():
    for skill, low, high in (
        (1.0, 1.0, 1.0),
        (0.5, 0.6, 0.9),
        (0.0, 0.3, 0.7),
    ):  # of the others half are right by chance
        rows = load_rows(source(skill=skill), seed=1)
        right = 0
        for row in rows:
            target, place = (int(word) for word in state(row).replace(".", " ").split() if word.isdigit())
            right += json.loads(row.answer)["action"] == ("+" if target > place else "-")
        assert low <= right / len(rows) <= high
    formulas = load_rows(source(env="ezpoints", args={}, turns=6, skill=1.0, limit=80), seed=0)
    ends = [state(row) for row in formulas if json.loads(row.answer)["action"] == "="]
    assert len(ends) > 10
    assert all(value_of(text.partition("Formula: ")[2].split()) == 12 for text in ends)


def test_thoughts_say_the_state_and_pictures_come_along():
    rows = load_rows(source(limit=10, args={"view": "image"}, thoughts=True), seed=0)
    for row in rows:
        assert len(row.images) == 1 and row.images[0].data.startswith(b"\x89PNG")
        assert json.loads(row.answer)["thoughts"].startswith("Target: ")


def test_mistakes_are_told():
    for changed, kind, reason in (
        ({"env": "numberlin"}, ConfigError, "numberlin"),
        ({"args": {"hight": 3}}, ConfigError, "hight"),
        ({"env": "guess", "args": {}}, ConfigError, "no list of actions"),
        ({"turns": 0}, DataError, "turns=0"),
        ({"turn": 3}, DataError, "turns"),
        ({"skill": 1.5}, DataError, "skill=1.5"),
        ({"env": "blackjack", "args": {}, "skill": 0.5}, ConfigError, "no hints"),
    ):
        with pytest.raises(kind, match=reason):
            load_rows(source(**changed), seed=0)


@pytest.mark.parametrize("game", ["numberline", "ezpoints", "minigrid", "textworld"])
def test_a_recipes_examples_are_of_the_game_that_it_plays(game):
    recipe = load_recipe(f"recipes/agents/{game}/vl_dac.yaml")
    shown = recipe.stages[0].data.args
    assert (shown["env"], shown["args"], shown["turns"]) == (recipe.env.name, recipe.env.args, recipe.env.turns)
