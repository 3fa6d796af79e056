"""Everything that has state goes on as if nothing had happened: half a run and a resumed one equal a whole run, bit by bit.

tests/durability kills such runs at random moments; here they end on their own, in one process.
"""

import io

import pytest
from rich.console import Console

from llmrl.compose import resolve
from llmrl.rollout.store import read_rollouts, rollouts_file
from llmrl.settings.load import load_recipe
from llmrl.start import run
from tests.durability.harness import CASES, result, write_recipe

pytestmark = pytest.mark.usefixtures("settings_as_before")
STEPS = 6


def trained(file, *changes, resume=False):
    recipe = load_recipe(file, list(changes))
    outcome = run(recipe, resolve(recipe), console=Console(file=io.StringIO()), resume=resume)
    assert outcome.exit_code == 0


@pytest.mark.parametrize("name", ["ppo", "critic", "outcome_critic", "pacs", "dynamic", "controller"])
def test_a_resumed_run_equals_a_whole_one(name, tmp_path, tiny_model):
    changes = {**CASES[name].changes, "eval.every": 2, "train.steps": STEPS}
    whole, halves = (write_recipe(tmp_path / part, tiny_model, changes) for part in ("whole", "halves"))
    trained(whole)
    trained(halves, "train.steps=4")
    trained(halves, f"train.steps={STEPS}", resume=True)
    one, other = result(tmp_path / "whole" / "run"), result(tmp_path / "halves" / "run")
    assert one.digest == other.digest and one.weights == other.weights
    assert one.metrics == other.metrics


def test_dynamic_sampling_replaces_groups_in_that_case(tmp_path, tiny_model):
    """Otherwise the case above would say nothing about it."""
    changes = {**CASES["dynamic"].changes, "train.steps": 2}
    plain = {name: value for name, value in changes.items() if "dynamic" not in name}
    seen = []
    for part, settings in (("with", changes), ("without", plain)):
        trained(write_recipe(tmp_path / part, tiny_model, settings))
        rows = read_rollouts(rollouts_file(tmp_path / part / "run", 1))
        seen.append({row.prompt.id for row in rows})
    assert seen[0] != seen[1] and len(seen[0]) == len(seen[1]) == 4
