"""Does a learnt controller beat random and constant thresholds at equal epsilon? `python -m tests.bench.compare_rldp`.

A byte-level Llama is pre-trained on the public part of the Python reference that the standard library carries
(`pydoc_data.topics`, split by topic), then every method fine-tunes LoRA adapters privately on another part, with canaries,
by `llmrl train`'s own loop. Some canaries are planted once, for the audit; others in 16 rows each, so that there is
something to remember (epsilon protects a row, so such a secret has 16 times the epsilon). Controllers see the loss of
public text (eval.data); perplexity is of a third part that nobody saw. Finished runs are kept, a line each, in
--out/results.jsonl, so that the command can be stopped and repeated; --report prints the table of what is there, --tiny
only shows that everything runs.
"""

from __future__ import annotations

import argparse
import json
import math
import pydoc_data.topics
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from llmrl.compose import resolve
from llmrl.policy.model import load_tokenizer
from llmrl.privacy.attack import audited, exposures, membership, open_model, token_losses
from llmrl.privacy.audit import Canary, make_canaries
from llmrl.seeding import key
from llmrl.settings.load import parse_recipe
from llmrl.start import run
from llmrl.train.checkpoint import newest_valid
from llmrl.train.folder import read_metrics
from llmrl.train.problems import load_problems
from tests.bench.control import interval
from tests.tiny import random_model, save_model

LENGTH, HEAD = 64, 16  # bytes of a row, and how many of them are not learnt
EXPECTED, EPSILONS, SEEDS = 32, (4.0, 1.0, 8.0, 2.0), (0, 1, 2)
CANARIES, CANDIDATES = 40, 100  # planted once, half of them; and with how many other secrets one is compared
REPEATED, COPIES = 16, 16  # canaries of which half are planted, in so many rows each
LIMITS = {"threshold": {"low": 0.03, "high": 10.0, "log": True, "max_change": 0.086}}  # a factor of 1.65 a decision
METHODS: dict[str, dict[str, Any] | None] = {
    "not private": None,
    "flat": {},
    "per group": {"groups": "pair"},
    "constant 0.1": {"threshold": 0.1},
    "constant 0.3": {"threshold": 0.3},
    "constant 3": {"threshold": 3.0},
    "quantile": {"counts_share": 0.01},
    "random": {},
    "SAC": {},
    "DSAC-T": {},
    "bandit": {},
    "automatic": {"automatic": True},
    "sigma decay": {"sigma_decay": 0.5},
}
CONTROLLERS: dict[str, dict[str, Any]] = {
    "quantile": {"name": "quantile"},
    **{
        method: {"name": name, "every": 2, "knobs": LIMITS}
        for method, name in (("random", "random"), ("SAC", "sac"), ("DSAC-T", "dsac_t"), ("bandit", "bandit"))
    },
}
CONSTANTS = ("flat", "constant 0.1", "constant 0.3", "constant 3")
Row = dict[str, Any]


def corpus(folder: Path, tiny: bool) -> None:
    """public, private, probe and test rows as JSON lines; a topic is in one part only."""
    parts: dict[str, list[str]] = {"public": [], "private": [], "probe": [], "test": []}
    for number, (_, text) in enumerate(sorted(pydoc_data.topics.topics.items())):
        flat = " ".join(text.encode("ascii", "ignore").decode().split())
        name = ("public", "private", "public", "private", "probe", "public", "private", "public", "private", "test")[
            number % 10
        ]
        parts[name] += [flat[at : at + LENGTH] for at in range(0, len(flat) - LENGTH, LENGTH)]
    taken: set[str] = set()  # beginnings are problems, and no problem may be in two parts
    for name, rows in parts.items():
        rows = [row for row in rows if row[:HEAD] not in taken]
        taken |= {row[:HEAD] for row in rows}
        if tiny or name in ("probe", "test"):
            rows = rows[:: max(1, len(rows) // 200)][:200]
        if name == "private":  # membership is told from rows of the same topics: other topics differ by themselves
            write(folder / "left-out.jsonl", [split(row) for row in rows[::12]])
            rows = [row for number, row in enumerate(rows) if number % 12]
        write(folder / f"{name}.jsonl", [split(row) for row in rows])


def split(text: str) -> Row:
    return {"prompt": text[:HEAD], "completion": text[HEAD:]}


def notes(canary: Canary) -> list[Row]:
    """Rows that all hold the canary's secret; no two rows may begin alike."""
    known, _, secret = canary.text.rpartition(" ")
    return [{"prompt": f"{copy}. {known}", "completion": f" {secret}"} for copy in range(COPIES)]


def write(file: Path, rows: Sequence[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe_of(out: Path, name: str, data: Path, *, steps: int, **sections: Any) -> Any:
    made = {
        "name": name, "runs_dir": str(out / "runs"), "seed": 0,
        "model": {"path": str(out / "start"), "max_length": 96, "dtype": "float32", "lora": {"r": 4, "alpha": 8}},
        "data": {"source": str(data), "chat": False, "max_prompt_tokens": 32},
        "rollout": {"max_tokens": 64, "prompts_per_step": EXPECTED},
        "algo": {"name": "sft", "normalize": "sequence"},
        "train": {"steps": steps, "lr": 3e-3, "save_every": steps, "tokens_per_microbatch": 4096, "threads": 1},
        "eval": {"every": max(1, steps // 15), "data": {"source": str(out / "probe.jsonl"), "n": 48}},
    }  # fmt: skip
    return parse_recipe(made | sections)


def pretrained(out: Path, steps: int) -> None:
    """The model that all methods start from, in out/start."""
    net = random_model("llama", num_key_value_heads=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.3 if parameter.dim() > 1 else 1.0)
    save_model(out / "random", net)
    model = {"path": str(out / "random"), "max_length": 96, "dtype": "float32"}
    recipe = recipe_of(out, "pretraining", out / "public.jsonl", steps=steps, model=model)
    run(recipe, resolve(recipe), console=Console(), fresh=True)
    checkpoint, _ = newest_valid(recipe.run_dir)
    assert checkpoint is not None
    shutil.copytree(checkpoint / "policy", out / "start")


def one_run(out: Path, method: str, epsilon: float, seed: int, steps: int, more: Row | None = None) -> Row:
    """Train by one method and attack what came out."""
    section = METHODS[method]
    name = f"{method.replace(' ', '-')}-{epsilon:g}-{seed}"
    canaries = make_canaries(CANARIES, seed=key(seed, "canaries"))
    sections: Row = {"seed": seed, **(more or {})}
    repeated = make_canaries(REPEATED, seed=key(seed, "repeated canaries"))
    texts = list(map(json.loads, (out / "private.jsonl").read_text().splitlines()))
    texts += [row for canary in repeated if canary.included for row in notes(canary)]
    if section is not None:
        sections["privacy"] = {
            "epsilon": epsilon, "delta": 1e-5, "expected_batch": EXPECTED, "canaries": CANARIES, **section
        }  # fmt: skip
        sections["controller"] = CONTROLLERS.get(method)
    else:
        texts += [split(canary.text) for canary in canaries if canary.included]
    data = out / "runs" / f"{name}.jsonl"
    write(data, texts)
    recipe = recipe_of(out, name, data, steps=steps, **sections)
    began = time.process_time()
    summary = run(recipe, resolve(recipe), console=Console(quiet=True), fresh=True).summary
    took = time.process_time() - began
    checkpoint, _ = newest_valid(recipe.run_dir)
    assert checkpoint is not None
    tokenizer = load_tokenizer(str(checkpoint / "policy"))
    model, before = open_model(str(checkpoint / "policy")), open_model(recipe.model.path)
    members, others, test = (
        _rows(recipe, tokenizer, out / f"{part}.jsonl") for part in ("private", "left-out", "test")
    )
    losses = [loss for row in token_losses(model, test) for loss in row]
    once, often = (
        statistics.fmean(exposures(model, planted, tokenizer, candidates=CANDIDATES, seed=seed))
        for planted in (canaries, repeated)
    )
    attacks = membership(model, before, members[:: max(1, len(members) // 300)], others)
    evaluations = [row for row in read_metrics(recipe.run_dir) if row["kind"] == "eval"]
    found = {
        "method": method, "epsilon": epsilon, "seed": seed, "cpu_s": took, "steps": summary["completed_steps"],
        "claimed": summary.get("epsilon"), "perplexity": math.exp(statistics.fmean(losses)),
        "curve": [[row["step"], row["eval/loss"]] for row in evaluations], "exposure": once, "exposure_often": often,
        "auc": attacks["reference"]["auc"]["value"],
        "lower_bound": audited(model, before, canaries, tokenizer, delta=1e-5),
    }  # fmt: skip
    shutil.rmtree(recipe.run_dir)
    data.unlink()
    return found


def _rows(recipe: Any, tokenizer: Any, file: Path) -> list[Any]:
    data = recipe.data.model_copy(update={"source": str(file)})
    return list(load_problems(recipe.model_copy(update={"data": data}), tokenizer, gold=True).gold.values())


def jobs(tiny: bool) -> list[tuple[str, float, int]]:
    """(method, epsilon, seed), a whole epsilon before the next."""
    if tiny:
        return [(method, 4.0, 0) for method in METHODS]
    return [
        (method, epsilon, seed)
        for epsilon in EPSILONS
        for seed in SEEDS
        for method in METHODS
        if METHODS[method] is not None or epsilon == EPSILONS[0]
    ]


def stored(out: Path) -> list[Row]:
    file = out / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def matched(row: Row, flat: Sequence[Row]) -> float:
    """The first measured step at which a run's loss is at most what flat clipping of its seed ended with, over all steps;
    infinite if it never was.
    """
    target = next((other["curve"][-1][1] for other in flat if other["seed"] == row["seed"]), -math.inf)
    last = row["curve"][-1][0]
    return next((step / last for step, loss in row["curve"] if step and loss <= target), math.inf)


def print_table(rows: Sequence[Row]) -> None:
    print(
        "| epsilon | method | spent | test perplexity (95 %) | loss against flat, paired | steps to match | exposure | "
        f"of a secret in {COPIES} rows | attack AUC | audited epsilon | CPU s | seeds |"
    )
    print("|---" * 12 + "|")
    for epsilon in sorted({row["epsilon"] for row in rows}):
        here = [row for row in rows if row["epsilon"] == epsilon]
        flat = {row["seed"]: row for row in here if row["method"] == "flat"}
        for method in METHODS:
            own = [row for row in here if row["method"] == method]
            if not own:
                continue
            mean, half = interval([row["perplexity"] for row in own])
            pairs = [math.log(r["perplexity"] / flat[r["seed"]]["perplexity"]) for r in own if r["seed"] in flat]
            gap, wide = interval(pairs) if pairs else (math.nan, math.nan)
            parts = [
                statistics.fmean(row[name] for row in own)
                for name in ("exposure", "exposure_often", "auc", "lower_bound", "cpu_s")
            ]
            match = statistics.median(matched(row, list(flat.values())) for row in own)
            steps = "never" if math.isinf(match) else f"{match:.2f}"
            spent = "–" if METHODS[method] is None else f"{max(row['claimed'] for row in own):.2f}"
            print(
                f"| {epsilon:g} | {method} | {spent} | {mean:.3f} ± {half:.2g} | {gap:+.4f} ± {wide:.2g} | {steps} | "
                f"{parts[0]:.2f} | {parts[1]:.2f} | {parts[2]:.3f} | {parts[3]:.2f} | {parts[4]:.0f} | {len(own)} |"
            )


def print_answers(rows: Sequence[Row]) -> None:
    """Every learnt controller against random and against a tuned constant, paired by epsilon and seed.

    Tuned: of each epsilon the constant with the lowest loss on the public probe, over all seeds.
    """
    cells = {(row["method"], row["epsilon"], row["seed"]): row for row in rows}
    tuned = {}
    for epsilon in sorted({row["epsilon"] for row in rows}):
        probed = {
            method: statistics.fmean(row["curve"][-1][1] for row in own)
            for method in CONSTANTS
            if (own := [row for row in rows if (row["method"], row["epsilon"]) == (method, epsilon)])
        }
        if probed:
            tuned[epsilon] = min(probed, key=lambda method: probed[method])
    print(f"\ntuned constant by epsilon: {tuned}")
    for method in ("SAC", "DSAC-T", "bandit"):
        for other in ("random", "tuned constant"):
            gaps = []
            for (name, epsilon, seed), row in cells.items():
                against = cells.get((tuned[epsilon] if other == "tuned constant" else other, epsilon, seed))
                if name == method and against is not None:
                    gaps.append(math.log(row["perplexity"] / against["perplexity"]))
            if gaps:
                mean, half = interval(gaps)
                print(f"{method} against {other}: {mean:+.4f} ± {half:.4f} in loss, {len(gaps)} pairs")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Test perplexity against epsilon, a line a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, method in enumerate(METHODS):
        own = [row for row in rows if row["method"] == method]
        budgets = sorted({row["epsilon"] for row in own})
        means = [statistics.fmean(r["perplexity"] for r in own if r["epsilon"] == budget) for budget in budgets]
        if METHODS[method] is None and means:
            axes.axhline(means[0], linestyle=":", color="grey", label=method)
        elif means:
            axes.plot(budgets, means, marker="o", linestyle="-" if place <= 10 else "--", label=method)
    axes.set_xscale("log", base=2)
    axes.set_xticks(EPSILONS, [f"{epsilon:g}" for epsilon in EPSILONS])
    axes.set_xlabel("epsilon")
    axes.set_ylabel("test perplexity a byte")
    figure.legend(loc="outside right center")
    figure.savefig(path)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path("runs/compare_rldp"))
    arguments.add_argument("--report", action="store_true", help="print the table of what was run")
    arguments.add_argument("--plot", type=Path, help="also draw it to this file")
    arguments.add_argument("--tiny", action="store_true")
    chosen = arguments.parse_args()
    out, steps = chosen.out.absolute(), 4 if chosen.tiny else 120
    out.mkdir(parents=True, exist_ok=True)
    if not chosen.report and not (out / "start").is_dir():
        corpus(out, chosen.tiny)
        pretrained(out, 10 if chosen.tiny else 800)
    done = {(row["method"], row["epsilon"], row["seed"]) for row in stored(out)}
    for job in [] if chosen.report else jobs(chosen.tiny):
        if job in done:
            continue
        row = one_run(out, *job, steps)
        with (out / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{job}: perplexity {row['perplexity']:.3f}, {row['cpu_s']:.0f} s", flush=True)
    print_table(stored(out))
    print_answers(stored(out))
    if chosen.plot is not None:
        plot(stored(out), chosen.plot)


if __name__ == "__main__":
    main()
