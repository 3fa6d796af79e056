import json

import pytest
from typer.testing import CliRunner

from llmrl.cli import app
from llmrl.commands.private_run import CANARIES, LEDGER, plan_of, train_privately
from llmrl.errors import ConfigError, RunFolderError
from llmrl.privacy.ledger import LedgerError, load_ledger
from llmrl.settings.load import parse_recipe
from tests.tiny import random_model, save_model


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model"), random_model("llama")))


def data(source, folder, **privacy):
    return {
        "name": "private", "runs_dir": str(folder), "seed": 3,
        "model": {"path": source, "max_length": 200, "lora": {"r": 2, "alpha": 4}},
        "data": {"source": "addition", "args": {"low": 2, "high": 30}, "limit": 40, "max_prompt_tokens": 120},
        "reward": {"exact": {"name": "llmrl.rewards.exact_number:ExactNumber"}},
        "algo": {"name": "sft"}, "rollout": {"max_tokens": 16},
        "train": {"steps": 3, "lr": 1e-3, "save_every": 2},
        "eval": {"data": {"n": 6}},
        "privacy": {"epsilon": 8, "delta": 1e-3, "expected_batch": 5, "groups": "pair", "canaries": 12, **privacy},
    }  # fmt: skip


def trained(source, folder, **privacy):
    recipe = parse_recipe(data(source, folder, **privacy))
    return recipe, train_privately(recipe, source, resume=False, say=lambda metrics: None)


def test_reinforcement_learning_is_refused_with_the_reason(source, tmp_path):
    said = data(source, tmp_path) | {"algo": {"name": "grpo"}}
    with pytest.raises(ConfigError, match="one record's gradient depend on others"):
        parse_recipe(said)
    with pytest.raises(ConfigError, match="counts_share"):
        parse_recipe(data(source, tmp_path, controller="quantile"))


def test_a_run_claims_its_target_and_leaves_public_numbers_only(source, tmp_path):
    recipe, (outcome, summary) = trained(source, tmp_path)
    assert outcome.steps == 3 and summary["epsilon"] == 8 and summary["privacy_status"] == "guaranteed"
    ledger = load_ledger(recipe.run_dir / LEDGER)
    assert ledger.paid == 3 and ledger.terms.unit == "row" and ledger.epsilon() == 8
    lines = [json.loads(line) for line in (recipe.run_dir / "metrics.jsonl").read_text().splitlines()]
    public = {"kind", "step", "lr", "privacy/sigma", "privacy/spent", "privacy/threshold_mean", "privacy/update_norm",
              "privacy/probe_loss"}  # fmt: skip
    assert len(lines) == 3 and all(set(line) == public for line in lines)
    files = {file.name for file in recipe.run_dir.iterdir()}
    assert files == {"recipe.yaml", "metrics.jsonl", "summary.json", LEDGER, CANARIES, "private", "policy"}

    found = json.loads(CliRunner().invoke(app, ["privacy", "audit", str(recipe.run_dir), "--candidates", "10"]).stdout)
    assert found["claimed_epsilon"] == 8 and 0 <= found["epsilon_lower_bound"] < 8
    for attack in ("loss", "reference", "min_k"):
        interval = found[attack]["auc"]
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    assert all(0 <= value <= 4 for value in found["exposure"])  # log2 of 11 candidates is 3.5


def test_a_finished_run_is_not_begun_again_and_a_resumed_one_pays_no_more(source, tmp_path):
    recipe, _ = trained(source, tmp_path, controller="quantile", counts_share=0.05)
    with pytest.raises(RunFolderError, match="holds a private run"):
        train_privately(recipe, source, resume=False, say=lambda metrics: None)
    before = (recipe.run_dir / LEDGER).read_text()
    outcome, _ = train_privately(recipe, source, resume=True, say=lambda metrics: None)
    assert outcome.steps == 3 and (recipe.run_dir / LEDGER).read_text() == before
    (recipe.run_dir / LEDGER).write_text(before.replace('"steps": 3', '"steps": 2'))
    with pytest.raises(LedgerError):
        train_privately(recipe, source, resume=True, say=lambda metrics: None)


def test_raw_state_is_called_heuristic(source, tmp_path):
    _, (outcome, summary) = trained(source, tmp_path, state="raw", controller="random")
    assert summary["privacy_status"] == "heuristic" and summary["epsilon"] is None and outcome.steps == 3


def test_a_falling_schedule_costs_no_more_than_the_target(source, tmp_path):
    recipe = parse_recipe(data(source, tmp_path, sigma_decay=0.5) | {"train": {"steps": 20, "lr": 1e-3}})
    _, terms = plan_of(recipe, records=100)
    assert terms.sigmas[0][0] > terms.sigmas[-1][0] and terms.steps == 20
    with pytest.raises(ConfigError, match="more than all"):
        plan_of(recipe, records=3)


def test_the_plan_is_printed_and_plain_training_points_to_the_private_command(tmp_path):
    shown = CliRunner().invoke(app, ["plan", "recipes/private/sft.yaml"])
    assert shown.exit_code == 0, shown.output
    for word in ("guaranteed", "epsilon 4 at delta 0.0001", "q = 0.032", "epsilon by rdp"):
        assert word in " ".join(shown.output.split())
    refused = CliRunner().invoke(app, ["train", "recipes/private/sft.yaml"])
    assert refused.exit_code != 0 and "llmrl privacy train" in str(refused.exception)
