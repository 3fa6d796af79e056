"""Private runs through `llmrl train`'s own loop."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

from llmrl.cli import app
from llmrl.compose import resolve
from llmrl.errors import ConfigError, LlmrlError, RunFolderError
from llmrl.privacy import build
from llmrl.privacy.build import CANARIES, LEDGER
from llmrl.privacy.ledger import LedgerError, load_ledger
from llmrl.privacy.randomness import SeededSource
from llmrl.privacy.terms import plan_of
from llmrl.settings.load import parse_recipe
from llmrl.start import run
from llmrl.train.checkpoint import digest, folder_of
from llmrl.train.log import Log
from tests.tiny import random_model, save_model

PUBLIC = {
    "kind",
    "step",
    "lr",
    "grad_norm",
    "update/skipped",
    "privacy/sigma",
    "privacy/spent",
    "privacy/threshold_mean",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model"), random_model("llama")))


def data(source, folder, steps=3, controller=None, **privacy):
    return {
        "controller": controller,
        "name": "private", "runs_dir": str(folder), "seed": 3,
        "model": {"path": source, "max_length": 136, "lora": {"r": 2, "alpha": 4}, "dtype": "float32"},
        "data": {"source": "addition", "args": {"low": 2, "high": 30}, "limit": 40, "max_prompt_tokens": 120},
        "algo": {"name": "sft", "normalize": "sequence"}, "rollout": {"max_tokens": 16},
        "train": {"steps": steps, "lr": 1e-3, "save_every": 2, "tokens_per_microbatch": 256, "threads": 1},
        "eval": {"data": {"n": 6}},
        "privacy": {"epsilon": 8, "delta": 1e-3, "expected_batch": 5, "groups": "pair", **privacy},
    }  # fmt: skip


def trained(recipe, **how):
    return run(recipe, resolve(recipe), console=Console(quiet=True), **how).summary


def rows_of(recipe, kind="train"):
    lines = [json.loads(line) for line in (recipe.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


class Known(SeededSource):
    """Seeded draws that pass for secret ones, so that runs can be compared."""

    secure = True


def test_what_cannot_be_private_is_refused_with_the_reason(source, tmp_path):
    def refused(says, **changes):
        with pytest.raises(ConfigError, match=says):
            parse_recipe(data(source, tmp_path) | changes)

    refused("one record's gradient depend on others", algo={"name": "grpo"}, reward={"x": {"name": "a:b"}})
    refused("drawn once, used once", train={"steps": 3, "lr": 1e-3, "epochs": 2})
    refused("packed rows", model={"path": source, "max_length": 136, "forward": "packed"})
    refused("counts_share", controller={"name": "quantile"})
    refused("has no KL", controller={"name": "adaptive_kl"})
    typo = {"treshold": {"low": 0.1, "high": 1}}
    refused("not a knob of a private run's recipe; did you mean 'threshold'", controller={"name": "sac", "knobs": typo})
    refused("controller.reward", controller={"name": "sac", "reward": "-loss"})
    refused("controller.every now", privacy={"epsilon": 8, "delta": 1e-3, "interval": 2})
    refused("planned beforehand", privacy={"epsilon": 8, "delta": 1e-3, "sigma_decay": 0.5, "mode": "adaptive"})


def test_a_run_claims_its_target_and_leaves_public_numbers_only(source, tmp_path):
    recipe = parse_recipe(data(source, tmp_path, canaries=12))
    summary = trained(recipe)
    assert summary["status"] == "finished" and summary["completed_steps"] == 3
    assert summary["epsilon"] == 8 and summary["privacy_status"] == "guaranteed" and summary["unit"] == "row"
    ledger = load_ledger(recipe.run_dir / LEDGER)
    assert ledger.paid == 3 and ledger.epsilon() == 8
    assert len(rows_of(recipe)) == 3 and all(set(row) == PUBLIC for row in rows_of(recipe))
    assert {"eval/loss", "eval/n"} <= set(rows_of(recipe, "eval")[0])
    files = {file.name for file in recipe.run_dir.iterdir()}
    assert {"checkpoints", LEDGER, CANARIES} <= files and "rollouts" not in files
    held = {file.name for file in folder_of(recipe.run_dir, 3).iterdir()}
    assert held == {"policy", "optimizer.safetensors", "controller.safetensors", "state.json", "manifest.json"}

    with pytest.raises(LlmrlError):
        trained(recipe)  # a finished run is not begun again
    before = (recipe.run_dir / LEDGER).read_text()
    assert trained(recipe, resume=True)["completed_steps"] == 3
    assert (recipe.run_dir / LEDGER).read_text() == before

    found = json.loads(CliRunner().invoke(app, ["privacy", "audit", str(recipe.run_dir), "--candidates", "10"]).stdout)
    assert found["epsilon"] == 8 and 0 <= found["epsilon_lower_bound"] < 8
    for attack in ("loss", "reference", "min_k"):
        interval = found[attack]["auc"]
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    assert all(0 <= value <= 4 for value in found["exposure"])  # log2 of 11 candidates is 3.5

    with pytest.raises(RunFolderError, match="promises other terms"):
        trained(parse_recipe(data(source, tmp_path, canaries=12, epsilon=80)), resume=True)
    (recipe.run_dir / LEDGER).write_text(before.replace('"steps": 3', '"steps": 2'))
    with pytest.raises(LedgerError):
        trained(recipe, resume=True)


def test_a_resumed_run_equals_one_that_was_never_stopped(source, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SecureSource", lambda: Known(5))
    more = {"steps": 4, "controller": {"name": "quantile"}, "counts_share": 0.05}
    whole, halves = (parse_recipe(data(source, tmp_path / name, **more)) for name in ("whole", "halves"))
    trained(whole)
    original = Log.step

    def stops(self, state, metrics, clock):
        if state.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, state, metrics, clock)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "step", stops)
        assert trained(halves)["status"] == "interrupted"
    assert load_ledger(halves.run_dir / LEDGER).paid == 2
    assert trained(halves, resume=True)["status"] == "finished"
    assert rows_of(halves) == rows_of(whole)
    assert digest(folder_of(halves.run_dir, 4)) == digest(folder_of(whole.run_dir, 4))
    ledgers = [load_ledger(recipe.run_dir / LEDGER) for recipe in (halves, whole)]
    assert ledgers[0].entries == ledgers[1].entries


def test_a_killed_run_pays_again_for_what_was_lost_and_draws_other_noise(source, tmp_path, monkeypatch):
    recipe = parse_recipe(data(source, tmp_path, steps=5))
    original, lost = Log.step, []

    def dies(self, state, metrics, clock):
        if state.step == 2:
            lost.append(dict(metrics))
            raise KeyboardInterrupt  # after step 3 was paid for and made, before any checkpoint of it
        return original(self, state, metrics, clock)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            trained(recipe)
    assert load_ledger(recipe.run_dir / LEDGER).paid == 3
    summary = trained(recipe, resume=True)
    # Five steps were planned and one of them was lost: four are left in the model, and the run ends as finished.
    assert (summary["status"], summary["completed_steps"], summary["paid"]) == ("finished", 4, 5)
    ledger = load_ledger(recipe.run_dir / LEDGER)
    assert [(entry.first, entry.steps) for entry in ledger.entries] == [(0, 3), (2, 2)]
    assert rows_of(recipe)[2]["grad_norm"] != lost[0]["grad_norm"]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_is_resumed_within_its_budget(source, tmp_path):
    """SIGKILL after some step was paid for, three times; whatever was lost is paid for, and no noise comes twice."""
    made = data(source, tmp_path, steps=30)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made))
    recipe = parse_recipe(made)
    file, seen = recipe.run_dir / LEDGER, []
    command = [sys.executable, "-m", "llmrl", "train", str(tmp_path / "recipe.yaml")]
    for kill in range(3):
        run_ = subprocess.Popen(
            command + ["--resume"] * bool(kill), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = load_ledger(file).paid if file.exists() else 0
        deadline = time.monotonic() + 240
        while run_.poll() is None and time.monotonic() < deadline:
            if file.exists() and load_ledger(file).paid >= before + 4 + kill:
                break
            time.sleep(0.002)
        assert run_.poll() is None, "it ended before it could be killed"
        run_.kill()
        run_.wait()
        seen += rows_of(recipe)
    assert subprocess.run([*command, "--resume"], capture_output=True).returncode == 0
    ledger, rows = load_ledger(file), rows_of(recipe)
    assert ledger.paid == 30 and ledger.epsilon() == 8
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    made_again = sum(entry.steps for entry in ledger.entries) - len(rows)
    assert 0 < made_again < 30  # something was lost, and paid for
    by_step = {}
    for row in [*seen, *rows]:
        by_step.setdefault(row["step"], set()).add(row["grad_norm"])
    assert any(len(norms) > 1 for norms in by_step.values())  # steps that were made again are other steps
    assert len({row["grad_norm"] for row in rows}) == len(rows)


def test_all_of_the_model_is_trained_as_one_record_at_a_time_would(source, tmp_path, monkeypatch):
    """Full fine-tuning, with the output layer: without noise and with a wide threshold a step is that of plain SFT."""

    class Everyone(Known):
        def uniform(self, size, *, step, name):
            return torch.zeros(size, dtype=torch.float64)

        def normal(self, size, *, step, name):
            return torch.zeros(size)

    monkeypatch.setattr(build, "SecureSource", lambda: Everyone(0))
    shared = {"expected_batch": 5, "threshold": 50.0, "groups": "flat"}
    made = data(source, tmp_path, steps=2, **shared)
    made["model"]["lora"], made["data"]["limit"] = None, 10
    private = parse_recipe(made)
    trained(private)
    plain = parse_recipe(
        {name: part for name, part in made.items() if name != "privacy"}
        | {"name": "plain", "rollout": {"max_tokens": 16, "prompts_per_step": 10}}
    )
    trained(plain)
    # Adam does not see that the sums are divided by the expected batch here and by the records there.
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder_of(r.run_dir, 2) / "policy" / "model.safetensors") for r in (private, plain))
    start = load_file(f"{source}/model.safetensors")
    for name, tensor in theirs.items():
        moved, expected = ours[name] - start[name], tensor - start[name]
        assert float((moved - expected).norm()) <= 0.02 * float(expected.norm()) + 1e-7, name


def test_a_user_with_many_rows_is_one_record(source, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{n} + 1 =", "completion": str(n + 1), "user": f"u{n % 8}"} for n in range(30)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    user = {"unit": "user", "rows_per_unit": 2, "expected_batch": 4, "state": "raw"}
    made = data(source, tmp_path, controller={"name": "random"}, **user)
    made["data"] = {"source": str(file), "max_prompt_tokens": 120}
    made["eval"] = {"data": {"source": "addition", "args": {"low": 2, "high": 30}, "n": 4}}
    recipe = parse_recipe(made)
    summary = trained(recipe)
    ledger = load_ledger(recipe.run_dir / LEDGER)
    assert ledger.terms.q == 0.5 and ledger.terms.unit == "user" and summary["completed_steps"] == 3
    assert summary["privacy_status"] == "heuristic" and summary["epsilon"] is None  # because of state: raw
    assert ledger.epsilon() == math.inf


def test_a_learning_controller_steers_the_noise_within_the_budget(source, tmp_path):
    controller = {"name": "sac", "args": {"warmup": 2}}
    recipe = parse_recipe(data(source, tmp_path, steps=6, controller=controller, mode="adaptive"))
    summary = trained(recipe)
    ledger = load_ledger(recipe.run_dir / LEDGER)
    assert ledger.share <= 1 and summary["completed_steps"] == ledger.paid
    sigmas = {row["privacy/sigma"] for row in rows_of(recipe)}
    assert len(sigmas) > 2 and "knob/sigma" in rows_of(recipe)[1]


def test_a_falling_schedule_costs_no_more_than_the_target(source, tmp_path):
    recipe = parse_recipe(data(source, tmp_path, steps=20, sigma_decay=0.5))
    _, terms = plan_of(recipe, records=100)
    assert terms.sigmas[0][0] > terms.sigmas[-1][0] and terms.steps == 20
    with pytest.raises(ConfigError, match="more than all"):
        plan_of(recipe, records=3)


def test_the_plan_is_printed():
    shown = CliRunner().invoke(app, ["plan", "recipes/private/sft.yaml"])
    assert shown.exit_code == 0, shown.output
    for word in ("guaranteed", "epsilon 4 at delta 0.0001", "q = 0.032", "epsilon by rdp"):
        assert word in " ".join(shown.output.split())


def test_a_plan_counts_the_rows_that_training_will_draw_from(tmp_path):
    rows = [json.dumps({"prompt": f"What is {n}?", "completion": str(n)}) for n in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    own = [
        "plan",
        "recipes/private/sft.yaml",
        f"data.source={tmp_path / 'rows.jsonl'}",
        "data.args={}",
        "data.limit=null",
    ]
    counted = []
    for how in ([], ["eval=off"]):
        shown = CliRunner().invoke(app, [*own, *how])
        assert shown.exit_code == 0, shown.output
        counted.append(int(re.search(r"(\d+), of which a step draws", shown.output)[1]))
    assert counted[0] < 200 and counted[1] == 200
