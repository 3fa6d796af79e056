"""A private step against opacus alone on the same model: `python -m tests.bench.private_step [--records 16 --tokens 96]`.

Both clip each record's gradient to one threshold, add the same noise and move by AdamW; the same rows, in one process, taking
turns, the first turn warming up. LoRA and full fine-tuning of a random Llama of --hidden; figures are medians of CPU seconds.
`exact` is the largest difference of the two clipped sums' norms, relative, with the noise left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llmrl.privacy.gradients import RecordGradients
from llmrl.privacy.groups import parameter_groups
from llmrl.privacy.ledger import Ledger, terms_of
from llmrl.privacy.optimizer import PrivateOptimizer
from llmrl.privacy.planning import plan
from llmrl.privacy.randomness import SeededSource
from llmrl.train.updater import Updater
from tests.tiny import random_model

LR, RATE = 1e-4, 0.01


def losses_of(model: nn.Module, tokens: Tensor) -> Tensor:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    logits = model(input_ids=tokens, position_ids=positions, use_cache=False).logits[:, :-1]
    return -logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0].mean(1)


def ours(model: nn.Module, tokens: Tensor, steps: int) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    """(a step, the clipped sums' squared norm)."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    inner = Updater(list(named.items()), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=math.inf)
    gradients = RecordGradients(model, parameter_groups(list(named), "flat"))
    ledger = Ledger(terms_of(plan(8.0, 1e-5, q=RATE, steps=steps), unit="row", mode="fixed", accountant="rdp",
                             guarantee=False))  # fmt: skip
    private = PrivateOptimizer(inner, gradients, named, ledger=ledger, file=None, thresholds=[1.0], rule="isotropic",
                               expected_batch=len(tokens), source=SeededSource(0))  # fmt: skip
    group = torch.arange(len(tokens))

    def step() -> None:
        private.backward(losses_of(model, tokens).sum(), group)
        private.step(LR)

    def size() -> Tensor:
        sums, _ = gradients.clipped(losses_of(model, tokens).sum(), [1.0], group)
        return torch.stack([x.square().sum() for x in sums.values()]).sum()

    return step, size


def opacus(model: nn.Module, tokens: Tensor, sigma: float) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    """The same with opacus' hooks and optimizer."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    wrapped: Any = GradSampleModule(model.train(), loss_reduction="mean")
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    private = DPOptimizer(torch.optim.AdamW(trained, lr=LR, weight_decay=0.0), noise_multiplier=sigma, max_grad_norm=1.0,
                          expected_batch_size=len(tokens))  # fmt: skip

    def step() -> None:
        private.zero_grad()
        losses_of(wrapped, tokens).mean().backward()
        private.step()

    def size() -> Tensor:
        private.zero_grad()
        losses_of(wrapped, tokens).mean().backward()
        private.clip_and_accumulate()
        total = torch.stack([p.summed_grad.square().sum() for p in trained]).sum()
        private.zero_grad()
        return total

    return step, size


def compare(model: nn.Module, tokens: Tensor, *, rounds: int) -> dict[str, float]:
    """Medians of CPU seconds a step, and their ratio: above 1 ours is faster."""
    sides = {"opacus": opacus(copy.deepcopy(model), tokens, 1.0), "ours": ours(model, tokens, 1000)}
    sizes = {name: float(size()) for name, (_, size) in sides.items()}
    turns: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, (step, _) in sides.items():
            begin = time.process_time()
            step()
            turns[name].append(time.process_time() - begin)
    medians = {name: statistics.median(own[1:]) for name, own in turns.items()}
    exact = abs(math.sqrt(sizes["ours"]) / math.sqrt(sizes["opacus"]) - 1)
    return {**medians, "ratio": medians["opacus"] / medians["ours"], "exact": exact}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "records": 16,
        "tokens": 96,
        "hidden": 256,
        "layers": 4,
        "vocabulary": 4096,
        "rounds": 7,
    }.items():
        options.add_argument(f"--{name}", type=int, default=value)
    chosen = options.parse_args()
    warnings.filterwarnings("ignore", message="Full backward hook")
    torch.set_num_threads(1)
    from peft import LoraConfig, get_peft_model

    def model() -> Any:
        return random_model(
            "llama", hidden_size=chosen.hidden, intermediate_size=3 * chosen.hidden, num_hidden_layers=chosen.layers,
            num_attention_heads=chosen.hidden // 32, num_key_value_heads=chosen.hidden // 32,
            vocab_size=chosen.vocabulary,
        )  # fmt: skip

    tokens = torch.randint(
        5, chosen.vocabulary, (chosen.records, chosen.tokens), generator=torch.Generator().manual_seed(0)
    )
    lora = get_peft_model(model(), LoraConfig(r=8, target_modules="all-linear"))
    for p in (p for name, p in lora.named_parameters() if "lora_B" in name):
        p.data.normal_(std=0.02)
    found = {name: compare(net, tokens, rounds=chosen.rounds) for name, net in (("lora", lora), ("full", model()))}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
