"""How near training comes to the machine's limit: `python -m tests.bench.limits --model FOLDER`.

Measures the rate of one large matrix product of the same type in the same run (of float32 ones the faster of MKL's and
oneDNN's), then a forward and backward pass over about
2,048 packed tokens, and prints useful work (6 operations per weight and unique token; the output layer only where a
token is scored; nothing for what is recomputed) as a share of that rate. Rounds alternate, medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from tests.bench.contestants import add_dtype, add_model

SHAPE = (4096, 576, 1536)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.limits", description=__doc__)
    add_model(parser)
    add_dtype(parser)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=46, help="tokens of a prompt")
    parser.add_argument("--completion", type=int, default=26, help="tokens of a completion, on average")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    from llmrl.memory import keep_freed_memory

    keep_freed_memory()
    made = Training(options.model, options.dtype)
    batch = uneven_batch(options.groups, options.group_size, options.prompt, options.completion, made.vocabulary)
    made.run(batch)
    peaks, found = [], []
    for _ in range(options.rounds):
        peaks.append(gemm_rate(options.dtype))
        found.append(made.run(batch))
    peak = statistics.median(peaks)
    times = {name: statistics.median(one[name] for one in found) for name in ("forward", "backward", "update")}
    tokens, useful = made.useful(batch)
    rate = useful / (times["forward"] + times["backward"])
    print(f"{options.dtype} matrix product {SHAPE}: {peak / 1e9:.0f} GFLOP/s")
    print(f"{tokens} unique tokens: " + ", ".join(f"{name} {value:.2f} s" for name, value in times.items()))
    print(f"useful {useful / 1e12:.2f} TFLOP at {rate / 1e9:.0f} GFLOP/s = {rate / peak:.0%} of the product's rate")
    print(
        json.dumps(
            {
                "bench": "limits",
                "dtype": options.dtype,
                "gemm_gflops": round(peak / 1e9),
                "tokens": tokens,
                "share": round(rate / peak, 3),
            }
            | {name: round(value, 3) for name, value in times.items()}
        )
    )


def gemm_rate(dtype: str) -> float:
    """Operations a second of one product, by the library that is faster at it."""
    import torch

    from llmrl.policy.products import product

    rows, inner, columns = SHAPE
    a, b = (torch.randn(size, inner).to(getattr(torch, dtype)) for size in (rows, columns))
    return max(_rate(torch.nn.functional.linear, a, b), _rate(product, a, b))


def _rate(multiply: Callable[[Any, Any], Any], a: Any, b: Any) -> float:
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        multiply(a, b)
        times.append(time.perf_counter() - begin)
    return 2.0 * len(a) * len(b) * a.shape[1] / statistics.median(times[3:])


class Training:
    """A policy with its optimizer, to be timed."""

    def __init__(self, source: str, dtype: str) -> None:
        import torch

        from llmrl.policy.model import load_policy
        from llmrl.settings.recipe import ModelConfig
        from llmrl.train.updater import Updater

        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        policy = load_policy(ModelConfig(path=source, dtype=dtype), source=source, device=torch.device("cpu"), seed=0)
        self.model: Any = policy.causal_lm
        self.vocabulary = self.model.config.vocab_size
        self._updater = Updater(policy.trainable(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=1.0)

    def run(self, batch: Any) -> dict[str, float]:
        """Seconds of one forward pass, backward pass and optimizer step."""
        from llmrl.policy.forward import forward

        times = [time.perf_counter()]
        loss = forward(self.model, batch, mode="packed").logprobs.sum() * 1e-3
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        self._updater.step(1e-9)
        times.append(time.perf_counter())
        return {name: b - a for name, a, b in zip(("forward", "backward", "update"), times, times[1:])}

    def useful(self, batch: Any) -> tuple[int, float]:
        """(unique tokens, operations that a forward and backward pass over them cannot do without)."""
        from llmrl.policy.packing import packed_tokens

        head = self.model.get_output_embeddings().weight.numel()
        body = sum(p.numel() for p in self.model.base_model.layers.parameters())
        tokens = packed_tokens(batch)
        return tokens, 6.0 * body * tokens + 6.0 * head * int(batch.mask.sum())


def uneven_batch(groups: int, size: int, prompt: int, completion: int, vocabulary: int) -> Any:
    """Random tokens; completions are between half and one and a half times `completion` long."""
    import random
    from dataclasses import replace

    from llmrl.train.collate import collate
    from llmrl.types import Prompt, Score, Status, Trajectory

    draw = random.Random(0)
    rows = []
    for group in range(groups):
        shared = tuple(draw.randrange(vocabulary) for _ in range(prompt))
        for sample in range(size):
            own = draw.randint(max(1, completion // 2), completion + completion // 2)
            row = Trajectory(
                prompt=Prompt(id=str(group), tokens=shared, text=""), sample=sample, text="", status=Status.done(),
                tokens=[*shared, *(draw.randrange(vocabulary) for _ in range(own))], mask=[0] * prompt + [1] * own,
                logprobs=[0.0] * (prompt + own), step=[-1] * prompt + [0] * own, scores=(Score(value=float(sample)),),
            )  # fmt: skip
            rows.append(row)
    batch = collate(rows)
    return replace(batch, advantages=batch.mask.float())


if __name__ == "__main__":
    main()
