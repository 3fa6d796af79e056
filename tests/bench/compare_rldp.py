"""Does a learnt controller beat random and constant thresholds at equal epsilon? `python -m tests.bench.compare_rldp`.

A byte-level Llama is pre-trained on the public half of the Python reference that the standard library carries
(`pydoc_data.topics`), then every method fine-tunes all of it privately on the other half, with canaries. Finished runs are
kept in --out and skipped, so that the command can be stopped and repeated. Noise is seeded here: the figures compare
methods, and no run claims a guarantee. `--tiny` only shows that everything runs.
"""

from __future__ import annotations

import argparse
import json
import math
import pydoc_data.topics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from llmrl.control.config import SACConfig
from llmrl.privacy.audit import auc, exposure, make_canaries, other_secrets
from llmrl.privacy.controllers import Constant, Controller, Knobs, Limited, Quantile, Random, soft_actor_critic
from llmrl.privacy.ledger import Ledger, terms_of
from llmrl.privacy.planning import plan
from llmrl.privacy.randomness import SeededSource
from llmrl.privacy.sft import PrivateRun, Row, Settings, dp_sft, mean_loss, row_losses
from llmrl.seeding import generator
from tests.tiny import random_model

METHODS = ("not private", "flat", "per layer", "automatic", "quantile", "random", "constant 0.3", "sac", "dsac-t")
LENGTH, EXPECTED = 64, 32.0
LOW, HIGH = 0.03, 3.0


def text_row(text: str, unit: str) -> Row:
    tokens = tuple(5 + byte for byte in text.encode()[:LENGTH])
    return Row(tokens=tokens, mask=(False, *[True] * (len(tokens) - 1)), unit=unit)


def corpus() -> tuple[list[Row], list[Row], list[Row]]:
    """(public, private, held out) rows: the topics are split, never a topic's own text."""
    parts: tuple[list[Row], list[Row], list[Row]] = ([], [], [])
    for number, (topic, text) in enumerate(sorted(pydoc_data.topics.topics.items())):
        part = parts[(0, 1, 0, 1, 2)[number % 5]]
        flat = " ".join(text.split())
        part += [text_row(flat[at : at + LENGTH], f"{topic} {at}") for at in range(0, len(flat) - LENGTH, LENGTH)]
    return parts


def pretrained(public: Sequence[Row], steps: int, file: Path) -> Any:
    from safetensors.torch import load_file, save_file

    net = random_model("llama", seed=0, num_key_value_heads=2).train()
    if file.is_file():
        net.load_state_dict(load_file(file))
        return net
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.3 if parameter.dim() > 1 else 1.0)
    adam, draw = torch.optim.AdamW(net.parameters(), lr=2e-3), generator(0, "pretraining")
    for _ in range(steps):
        row_losses(net, draw.sample(list(public), 16)).mean().backward()
        adam.step(), adam.zero_grad()
    save_file(net.state_dict(), file)
    return net


def controller_of(method: str, start: Knobs, seed: int) -> Controller:
    bounds: dict[str, Any] = {"low": LOW / math.sqrt(len(start.thresholds)), "high": HIGH}
    if method in ("sac", "dsac-t"):
        config = SACConfig(distributional="released_2024" if method == "dsac-t" else None)
        return soft_actor_critic(start, low=LOW, high=HIGH, change=0.5, seed=seed, config=config)
    if method == "random":
        return Limited(Random(start, **bounds, seed=seed), start, **bounds)
    return Quantile(start) if method == "quantile" else Constant(start)


def one_run(net: Any, data: tuple[list[Row], list[Row], list[Row]], method: str, epsilon: float, seed: int,
            steps: int, threshold: float) -> dict[str, Any]:  # fmt: skip
    public, private, held_out = data
    canaries = make_canaries(20, seed=seed)
    rows = [*private, *(text_row(c.text, c.text) for c in canaries if c.included)]
    settings = Settings(
        steps=steps, expected_batch=EXPECTED, lr=1e-3, thresholds=1e6 if method == "not private" else threshold,
        groups="layer" if method == "per layer" else "flat", automatic=method == "automatic", micro_batch=16,
        counts_share=0.01 if method == "quantile" else 0.0, interval=2,
    )  # fmt: skip
    found = plan(epsilon, 1e-5, q=EXPECTED / len(rows), steps=steps)
    if method == "not private":
        found = replace(found, sigma=found.sigma * 1e-12)
    terms = terms_of(
        found, unit="row", mode="adaptive" if method == "not private" else "fixed", accountant="rdp", guarantee=False
    )
    ledger = Ledger(terms) if method != "not private" else _Unlimited(terms)
    run = PrivateRun(net, rows, settings, ledger, source=SeededSource(seed), public=public[:16])
    run.controller = controller_of(method, run.knobs, seed)
    began = time.perf_counter()
    curve: list[float] = []
    outcome = dp_sft(run, on_step=lambda m: curve.append(m.get("privacy/probe_loss", math.nan)))
    took = time.perf_counter() - began
    candidates = [
        exposure(mean_loss(net, [text_row(c.text, "")]),
                 [mean_loss(net, [text_row(t, "")]) for t in other_secrets(c, count=50, seed=seed)])
        for c in canaries if c.included
    ]  # fmt: skip
    members = [mean_loss(net, [row]) for row in private[:100]]
    return {
        "method": method, "epsilon": epsilon, "seed": seed, "steps": outcome.steps, "seconds": took,
        "perplexity": math.exp(mean_loss(net, held_out[:100])), "nominal_epsilon": outcome.nominal_epsilon,
        "exposure": sum(candidates) / len(candidates), "curve": [x for x in curve if math.isfinite(x)],
        "auc": asdict(auc(members, [mean_loss(net, [row]) for row in held_out[:100]])),
    }  # fmt: skip


class _Unlimited(Ledger):
    """Admits everything: the comparison's run without privacy."""

    def nearest(self, sigma: float, q: float) -> float | None:
        return sigma

    def admit(self, sigma: float, q: float, *, step: int) -> bool:
        return True


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path("runs/compare_rldp"))
    arguments.add_argument("--tiny", action="store_true")
    arguments.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    chosen = arguments.parse_args()
    steps, epsilons, seeds = (4, (4.0,), (0,)) if chosen.tiny else (150, (1.0, 2.0, 4.0, 8.0), (0, 1, 2))
    chosen.out.mkdir(parents=True, exist_ok=True)
    data = corpus()
    for epsilon in epsilons:
        for seed in seeds:
            for method in chosen.methods:
                file = chosen.out / f"{method.replace(' ', '_')}-{epsilon:g}-{seed}.json"
                if not file.is_file():
                    net = pretrained(data[0], 20 if chosen.tiny else 600, chosen.out / f"start-{steps}.safetensors")
                    threshold = 0.3 if method == "constant 0.3" else 1.0
                    file.write_text(json.dumps(one_run(net, data, method, epsilon, seed, steps, threshold)))
                row = json.loads(file.read_text())
                print(shown(row), flush=True)


def shown(row: dict[str, Any]) -> str:
    """A run in one line."""
    name = f"{row['method']:15} eps {row['epsilon']:g} seed {row['seed']}"
    text = f"{name}: perplexity {row['perplexity']:.3f}, exposure {row['exposure']:.2f}"
    return f"{text}, AUC {row['auc']['value']:.3f}, {row['seconds']:.1f} s"


if __name__ == "__main__":
    main()
