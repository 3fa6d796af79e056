"""A recipe with a `privacy` section -> a private run: rows, plan, ledger, controller, checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmrl.data.prompts import to_prompts
from llmrl.data.rows import Row as DataRow
from llmrl.data.source import load_train_eval
from llmrl.errors import ConfigError, DataError, RunFolderError
from llmrl.privacy.audit import Canary, make_canaries
from llmrl.privacy.controllers import (
    Bandit,
    Constant,
    Controller,
    Knobs,
    Limited,
    Quantile,
    Random,
    decayed_sigmas,
    soft_actor_critic,
)
from llmrl.privacy.ledger import Ledger, Terms, load_ledger, terms_of
from llmrl.privacy.planning import Plan, plan
from llmrl.privacy.sft import Outcome, PrivateRun, Row, Settings, by_unit, dp_sft, mean_loss
from llmrl.seeding import key
from llmrl.settings.load import check_same_run, dump_recipe
from llmrl.settings.privacy import PrivacyConfig
from llmrl.settings.recipe import Recipe

LEDGER, CANARIES, CHECKPOINT = "ledger.json", "canaries.json", "private"


def section_of(recipe: Recipe) -> PrivacyConfig:
    """The recipe's privacy section. Raises ConfigError if it has none."""
    if recipe.privacy is None:
        raise ConfigError("the recipe has no privacy section; add one, such as privacy: {epsilon: 4, delta: 1.0e-5}")
    return recipe.privacy


def data_of(recipe: Recipe) -> tuple[list[DataRow], list[DataRow]]:
    """(training rows, held-out rows) of the recipe."""
    return load_train_eval(recipe.data, recipe.eval.data, seed=key(recipe.seed, "data"))


def learnt_rows(rows: Sequence[DataRow], recipe: Recipe, tokenizer: Any) -> list[Row]:
    """Tokenised prompts with the completion or the answer to learn; rows that are too long are left out, each by itself."""
    from llmrl.stages.examples import completion_ids

    section, of = section_of(recipe), {row.id: row for row in rows}
    found = []
    for prompt in to_prompts(rows, tokenizer, recipe.data)[0]:
        row = of[prompt.id]
        text = str(row.columns.get("completion") or row.answer)
        if not text:
            raise DataError(f"{row.origin}: no completion and no answer to learn")
        ids = completion_ids(prompt, text, tokenizer)
        if len(prompt.tokens) + len(ids) <= recipe.model.max_length:
            mask = (*[False] * len(prompt.tokens), *[True] * len(ids))
            found.append(Row(tokens=(*prompt.tokens, *ids), mask=mask, unit=_unit(row, section, row.id)))
    return found


def _unit(row: DataRow, section: PrivacyConfig, identity: str) -> str:
    if section.unit == "row":
        return identity
    if section.unit not in row.columns:
        raise DataError(f"{row.origin}: no column {section.unit!r}, which privacy.unit names")
    return str(row.columns[section.unit])


def canary_row(canary: Canary, tokenizer: Any) -> Row:
    """A canary as a row of its own unit, all of it learnt."""
    ids = tuple(tokenizer(canary.text)["input_ids"])
    return Row(tokens=ids, mask=(False, *[True] * (len(ids) - 1)), unit=f"canary {canary.text}")


def plan_of(recipe: Recipe, *, records: int) -> tuple[Plan, Terms]:
    """The plan and the terms of a recipe on so many records. Raises ConfigError."""
    section = section_of(recipe)
    q = section.expected_batch / max(1, records)
    if not q <= 1:
        raise ConfigError(
            f"privacy.expected_batch={section.expected_batch} of {records} records is more than all; lower it"
        )
    found = plan(section.epsilon, section.delta, q=q, steps=recipe.train.steps, accountant=section.accountant)
    schedule = _schedule(found, section)
    terms = terms_of(
        found, unit=section.unit, mode=section.mode, accountant=section.accountant, sigmas=schedule,
        guarantee=section.state == "released",
    )  # fmt: skip
    return found, terms


def _schedule(found: Plan, section: PrivacyConfig) -> tuple[tuple[float, int], ...]:
    """A falling schedule scaled up until it costs no more than the target; empty for constant noise."""
    from llmrl.privacy.planning import epsilon_by

    if section.sigma_decay == 1.0:
        return ()
    if section.mode == "adaptive":
        raise ConfigError("privacy.sigma_decay is planned beforehand; set privacy.mode=fixed")
    scale = 1.0
    while True:
        schedule = decayed_sigmas(scale * found.sigma, found.steps, ratio=section.sigma_decay)
        history = [(sigma, found.q, steps) for sigma, steps in schedule]
        if epsilon_by(section.accountant, history, found.delta) <= found.epsilon:
            return schedule
        scale *= 1.01


def controller_of(section: PrivacyConfig, start: Knobs, lowest_sigma: float, seed: int) -> Controller:
    """The controller that a recipe names, held to its limits."""
    made: dict[str, Any] = {
        "constant": lambda: Constant(start),
        "random": lambda: Random(start, low=section.threshold_low, high=section.threshold_high, seed=seed),
        "bandit": lambda: Bandit(start),
        "quantile": lambda: Quantile(start),
        "sac": lambda: soft_actor_critic(
            start, low=section.threshold_low, high=section.threshold_high, change=section.max_change, seed=seed
        ),
    }
    return Limited(
        made[section.controller](), start, low=section.threshold_low, high=section.threshold_high,
        rate=section.max_change, warm_up=section.warm_up, lowest_sigma=lowest_sigma,
    )  # fmt: skip


def build(recipe: Recipe, policy: Any, rows: list[Row], public: list[Row], ledger: Ledger, lowest: float) -> PrivateRun:
    """The run, from its first step."""
    section = section_of(recipe)
    settings = Settings(
        steps=recipe.train.steps, expected_batch=section.expected_batch, lr=recipe.train.lr, groups=section.groups,
        thresholds=section.threshold, rule=_rule(section), rows_per_unit=section.rows_per_unit,
        automatic=section.automatic, counts_share=section.counts_share, interval=section.interval,
        warmup_steps=recipe.train.warmup_steps, schedule=recipe.train.schedule, betas=recipe.train.betas,
        weight_decay=recipe.train.weight_decay, micro_batch=section.micro_batch, raw_state=section.state == "raw",
    )  # fmt: skip
    run = PrivateRun(
        policy.model, rows, settings, ledger, ledger_file=recipe.run_dir / LEDGER, public=public
    )  # fmt: skip
    run.controller = controller_of(section, run.knobs, lowest, key(recipe.seed, "controller"))
    return run


def _rule(section: PrivacyConfig) -> Any:
    return tuple(section.noise_rule) if isinstance(section.noise_rule, list) else section.noise_rule


def train_privately(recipe: Recipe, source: str, *, resume: bool, say: Any) -> tuple[Outcome, dict[str, Any]]:
    """Run a private recipe. Held-out rows are taken to be public: they are measured, and a controller may see their loss.

    The run folder gets the recipe, the ledger, public metrics, the policy, and canaries.json if there are any, which is
    for the audit and is private. Raises RunFolderError if the folder holds a run and `resume` is not set.
    """
    import torch

    from llmrl.policy.model import load_policy

    section, folder = section_of(recipe), recipe.run_dir
    begun = (folder / LEDGER).is_file()
    if begun and not resume:
        raise RunFolderError(f"{folder} holds a private run; add --resume, or give another name=...")
    if begun:
        check_same_run(recipe)
    policy = load_policy(recipe.model, source=source, device=torch.device("cpu"), seed=key(recipe.seed, "adapter"))
    train_rows, held_out = data_of(recipe)
    rows = learnt_rows(train_rows, recipe, policy.tokenizer)
    public = learnt_rows(held_out, recipe, policy.tokenizer)
    canaries = make_canaries(section.canaries, seed=key(recipe.seed, "canaries"))
    rows += [canary_row(canary, policy.tokenizer) for canary in canaries if canary.included]
    units = len(by_unit(rows, rows_per_unit=section.rows_per_unit))
    found, terms = plan_of(recipe, records=units)
    ledger = load_ledger(folder / LEDGER) if begun else Ledger(terms)
    if ledger.terms != terms:
        raise RunFolderError(f"{folder / LEDGER} promises other terms than the recipe on this data; start another run")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    if canaries:
        (folder / CANARIES).write_text(json.dumps([asdict(canary) for canary in canaries], indent=1))
    run = build(recipe, policy, rows, public, ledger, found.lowest_sigma)
    if begun and (folder / CHECKPOINT).is_dir():
        _load(run, folder / CHECKPOINT)
    before = mean_loss(run.model, public)
    with open(folder / "metrics.jsonl", "a") as out:

        def step(metrics: dict[str, float]) -> None:
            out.write(json.dumps({"kind": "train", **metrics}) + "\n")
            out.flush()
            if run.done % recipe.train.save_every == 0:
                _save(run, folder / CHECKPOINT)
            say(metrics)

        outcome = dp_sft(run, on_step=step)
    _save(run, folder / CHECKPOINT)
    ledger.save(folder / LEDGER)
    policy.save(folder / "policy")
    summary = {
        "steps": outcome.steps, "stopped": outcome.stopped, "delta": outcome.delta,
        "epsilon": outcome.epsilon if math.isfinite(outcome.epsilon) else None,
        "privacy_status": "guaranteed" if ledger.terms.guarantee else "heuristic",
        "held_out_loss_before": before, "held_out_loss_after": mean_loss(run.model, public),
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    return outcome, summary


def _save(run: PrivateRun, folder: Path) -> None:
    import os
    import shutil

    from safetensors.torch import save_file

    tensors, plain = run.state()
    fresh = folder.with_name(folder.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, fresh / "state.safetensors")
    (fresh / "state.json").write_text(json.dumps(plain))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


def _load(run: PrivateRun, folder: Path) -> None:
    from safetensors.torch import load_file

    run.load(load_file(folder / "state.safetensors"), json.loads((folder / "state.json").read_text()))


def audit_run(folder: Path, *, candidates: int = 200) -> dict[str, Any]:
    """Attack a finished private run with its own canaries and rows. Reads private data: its result is not private."""
    import torch
    from transformers import AutoModelForCausalLM

    from llmrl.policy.model import load_tokenizer
    from llmrl.privacy.audit import auc, epsilon_lower_bound, exposure, min_k, other_secrets, tpr_at
    from llmrl.settings.load import load_recipe

    recipe = load_recipe(folder / "recipe.yaml")
    ledger = load_ledger(folder / LEDGER)
    tokenizer = load_tokenizer(str(folder / "policy"))
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", trust_remote_code=False).eval()
    base = AutoModelForCausalLM.from_pretrained(recipe.model.path, trust_remote_code=False).eval()
    member, other = (learnt_rows(rows, recipe, tokenizer)[:candidates] for rows in data_of(recipe))

    def attack(score: Any) -> dict[str, Any]:
        members, others = [score(row) for row in member], [score(row) for row in other]
        return {"auc": asdict(auc(members, others)), "tpr_at_1_percent": asdict(tpr_at(members, others, fpr=0.01))}

    def loss(net: Any, row: Row) -> float:
        return mean_loss(net, [row])

    @torch.no_grad()
    def tokens(row: Row) -> list[float]:
        ids = torch.tensor([row.tokens])
        logprobs = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        losses = -logprobs.gather(1, ids[0, 1:, None])[:, 0]
        return [x for x, learnt in zip(losses.tolist(), row.mask[1:], strict=True) if learnt]

    found: dict[str, Any] = {
        "claimed_epsilon": ledger.epsilon() if ledger.terms.guarantee else None,
        "privacy_status": "guaranteed" if ledger.terms.guarantee else "heuristic",
        "loss": attack(lambda row: loss(model, row)),
        "reference": attack(lambda row: loss(model, row) - loss(base, row)),
        "min_k": attack(lambda row: min_k(tokens(row))),
    }
    if (folder / CANARIES).is_file():
        canaries = [Canary(**entry) for entry in json.loads((folder / CANARIES).read_text())]
        scores = [loss(model, canary_row(c, tokenizer)) - loss(base, canary_row(c, tokenizer)) for c in canaries]
        found["epsilon_lower_bound"] = epsilon_lower_bound(
            scores, [c.included for c in canaries], delta=ledger.terms.delta, guesses=2 * (len(canaries) // 4)
        )
        inside = [c for c in canaries if c.included][:8]
        found["exposure"] = [
            exposure(
                loss(model, canary_row(c, tokenizer)),
                [
                    loss(model, canary_row(Canary(text=text, included=False), tokenizer))
                    for text in other_secrets(c, count=candidates, seed=recipe.seed)
                ],
            )
            for c in inside
        ]
    return found
