"""Writes run folders that look like real ones: accuracy climbs, loss is noisy, lengths shrink, some rollouts fail.

The numbers are made up from a seed; the formats are those a training run writes. Tests and screenshots use it.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

RECIPE = """name: {name}
seed: {seed}
model:
  id: smollm2-135m
  dtype: bfloat16
data:
  generator: addition
  low: 2
  high: 99
rollout:
  engine: vllm
  prompts: {prompts}
  group_size: {group_size}
  max_tokens: 64
algo:
  name: grpo
  clip_low: 0.2
  clip_high: 0.28
train:
  steps: {steps}
  lr: 2.0e-05
"""


def write_run(
    path: Path,
    *,
    steps: int = 40,
    seed: int = 0,
    prompts: int = 8,
    group_size: int = 8,
    eval_every: int = 10,
    store_every: int = 1,
    finished: bool = True,
    hostile: Sequence[str] = (),
) -> Path:
    """Write a run folder at `path` and return it. `hostile` texts replace the first completions of each step."""
    rng = random.Random(seed)
    (path / "rollouts").mkdir(parents=True)
    (path / "recipe.yaml").write_text(
        RECIPE.format(name=path.name, seed=seed, prompts=prompts, group_size=group_size, steps=steps)
    )
    (path / "environment.json").write_text(
        json.dumps({"python": "3.11.7", "packages": {"torch": "2.13.0+cpu", "vllm": "0.32.0"}, "cpus": 2})
    )
    lines: list[dict[str, Any]] = [eval_line(0, steps, rng)]
    for step in range(1, steps + 1):
        rows = rollout_rows(step, steps, prompts, group_size, rng)
        for row, text in zip(rows, hostile):
            row["text"] = text
            row["prompt_text"] = text
        if step % store_every == 0:
            write_rollouts(path, step, rows)
        lines.append(train_line(step, steps, rows, rng))
        if step % eval_every == 0 or step == steps:
            lines.append(eval_line(step, steps, rng))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    if finished:
        (path / "summary.json").write_text(json.dumps(summary(lines, steps, seed)))
    return path


def skill(step: int, steps: int) -> float:
    """The share of right answers the made-up policy gives: 0.11 at the start, a little over 0.6 at the end."""
    progress = step / max(steps, 1)
    return 0.11 + 0.53 / (1 + math.exp(-9 * (progress - 0.42))) - 0.53 / (1 + math.exp(9 * 0.42)) * (1 - progress)


def rollout_rows(step: int, steps: int, prompts: int, group_size: int, rng: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for p in range(prompts):
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        chance = min(0.98, max(0.0, rng.gauss(skill(step, steps), 0.22)))
        group = [rollout_row(step, steps, p, i, a, b, chance, rng) for i in range(group_size)]
        scored = [row["score"] for row in group if row["score"] is not None]
        mean = sum(scored) / len(scored) if scored else 0.0
        std = math.sqrt(sum((s - mean) ** 2 for s in scored) / len(scored)) if scored else 0.0
        for row in group:
            row["advantage"] = None if row["score"] is None else (row["score"] - mean) / (std + 1e-4)
        rows += group
    return rows


def rollout_row(
    step: int, steps: int, p: int, i: int, a: int, b: int, chance: float, rng: random.Random
) -> dict[str, Any]:
    right = rng.random() < chance
    given = a + b if right else a + b + rng.choice([-10, -1, 1, 2, 10, 100])
    wordy = rng.random() > step / max(steps, 1)
    text = f"To add {a} and {b}, we first add the tens, then the ones.\n{a} + {b} = {given}" if wordy else str(given)
    status, reason, score_error = "done", "", ""
    draw = rng.random()
    if draw < 0.06 * (1.2 - step / max(steps, 1)):
        status, right, text = "truncated", False, f"{a} plus {b} is " + "the sum of the two numbers, which is " * 6
    elif draw > 0.995:
        status, reason, text = "error", "engine did not answer in 60 s", ""
    elif draw > 0.99:
        score_error = "reward raised ValueError: could not convert string to float: '1O4'"
    scored = status != "error" and not score_error
    sampled = max(1, min(64, len(text) // 3 + rng.randint(0, 6))) if text else 0
    prompt_length = 24
    length = prompt_length + sampled
    prompt = f"<|im_start|>user\nWhat is {a} + {b}? Answer with the number only.<|im_end|>\n<|im_start|>assistant\n"
    exact, short = float(right and scored), float(not wordy)
    return {
        "prompt_id": f"add/{step}/{p}",
        "prompt_text": prompt,
        "answer": str(a + b),
        "text": text,
        "tokens": [rng.randrange(49152) for _ in range(length)],
        "mask": [t >= prompt_length for t in range(length)],
        "logprobs": [0.0 if t < prompt_length else -rng.expovariate(3.0) for t in range(length)],
        "step": [-1 if t < prompt_length else 0 for t in range(length)],
        "status": status,
        "status_reason": reason,
        "version_oldest": step - 1,
        "version_newest": step - 1,
        "sample": i,
        "score": exact + 0.1 * short if scored else None,
        "parts": json.dumps({"exact": exact, "format": short} if scored else {}),
        "score_reason": "" if exact or not scored else f"expected {a + b}, found {given}",
        "score_error": score_error,
        "flags": ["many_numbers"] if wordy and status == "done" else [],
        "advantage": None,
        "columns": json.dumps({"a": a, "b": b}),
    }


SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("prompt_id", "prompt_text", "answer", "text")]
    + [("tokens", pa.list_(pa.int32())), ("mask", pa.list_(pa.bool_())), ("logprobs", pa.list_(pa.float32()))]
    + [("step", pa.list_(pa.int32())), ("status", pa.string()), ("status_reason", pa.string())]
    + [(name, pa.int32()) for name in ("version_oldest", "version_newest", "sample")]
    + [("score", pa.float64()), ("parts", pa.string()), ("score_reason", pa.string()), ("score_error", pa.string())]
    + [("flags", pa.list_(pa.string())), ("advantage", pa.float64()), ("columns", pa.string())]
)


def write_rollouts(path: Path, step: int, rows: list[dict[str, Any]]) -> Path:
    file = path / "rollouts" / f"step-{step:06d}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)
    return file


def train_line(step: int, steps: int, rows: list[dict[str, Any]], rng: random.Random) -> dict[str, Any]:
    scores = [row["score"] for row in rows if row["score"] is not None]
    lengths = sorted(sum(row["mask"]) for row in rows)
    mean = sum(scores) / len(scores)
    parts = [json.loads(row["parts"]) for row in rows if row["score"] is not None]
    groups: dict[str, set[float | None]] = {}
    for row in rows:
        groups.setdefault(row["prompt_id"], set()).add(row["score"])
    generate, update = rng.gauss(7.0, 0.7) * (1.3 - 0.5 * step / steps), rng.gauss(5.0, 0.4)
    extra = {"reward": 0.04, "sync": rng.gauss(0.35, 0.03), "checkpoint": 1.4 if step % 10 == 0 else 0.0}
    total = generate + update + sum(extra.values()) + 0.2
    return {
        "kind": "train",
        "step": step,
        "loss": None if step == 17 else rng.gauss(0.0, 0.03),
        "grad_norm": rng.lognormvariate(0.0, 0.4) * (0.6 if step > 4 else 1.4),
        "lr": 2e-5 * min(1.0, step / 5) * (1 - 0.9 * step / steps),
        "reward/mean": mean,
        "reward/std": math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores)),
        "reward/exact": sum(p["exact"] for p in parts) / len(parts),
        "reward/format": sum(p["format"] for p in parts) / len(parts),
        "reward/errored": sum(bool(row["score_error"]) for row in rows),
        "reward/timed_out": 0,
        "length/mean": sum(lengths) / len(lengths),
        "length/max": lengths[-1],
        "length/p95": lengths[int(0.95 * (len(lengths) - 1))],
        "rollout/truncated": sum(row["status"] == "truncated" for row in rows),
        "rollout/errored": sum(row["status"] == "error" for row in rows),
        "group/uniform": sum(len(values) == 1 for values in groups.values()) / len(groups),
        "mismatch/mean_abs_logprob": 0.012 + rng.random() * 0.006,
        **{f"flag/{name}": 0.0 for name in ("answer_stuffing", "empty_reasoning", "test_tampering", "truncated")},
        "flag/many_boxes": 0.25 if step > 3 else 0.0,
        "policy/entropy": 0.9 * math.exp(-1.6 * step / steps) + rng.gauss(0.0, 0.02),
        "algo/clip_low": rng.random() * 0.01,
        "algo/clip_high": rng.random() * 0.02,
        "time/generate": generate,
        "time/update": update,
        **{f"time/{name}": seconds for name, seconds in extra.items()},
        "time/step": total,
        "tokens/sampled": sum(lengths),
        "tokens/trained": sum(sum(row["mask"]) for row in rows if row["advantage"]),
        "tokens/per_s": sum(lengths) / total,
    }


def eval_line(step: int, steps: int, rng: random.Random, n: int = 200) -> dict[str, Any]:
    accuracy = sum(rng.random() < skill(step, steps) for _ in range(n)) / n
    low, high = wilson(accuracy, n)
    values = {"accuracy": accuracy, "low": low, "high": high, "n": n, "length_mean": 12.0, "truncated": 1}
    return {"kind": "eval", "step": step, **{f"eval/{k}": v for k, v in values.items()}, "time/eval": 9.5}


def wilson(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share `p` seen in `n` trials."""
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def summary(lines: list[dict[str, Any]], steps: int, seed: int) -> dict[str, Any]:
    train = [line for line in lines if line["kind"] == "train"]
    evals = [line for line in lines if line["kind"] == "eval"]
    names = ("generate", "reward", "update", "sync", "checkpoint")
    wall = sum(line["time/step"] for line in train)
    return {
        "accuracy_before": evals[0]["eval/accuracy"],
        "accuracy_after": evals[-1]["eval/accuracy"],
        "accuracy_before_interval": [evals[0]["eval/low"], evals[0]["eval/high"]],
        "accuracy_after_interval": [evals[-1]["eval/low"], evals[-1]["eval/high"]],
        "n_eval": 200,
        "train_wall_s": wall,
        "seconds": {name: sum(line[f"time/{name}"] for line in train) for name in names}
        | {"eval": sum(line["time/eval"] for line in evals)},
        "tokens_per_s": sum(line["tokens/sampled"] for line in train) / wall if wall else 0.0,
        "steps": steps,
        "seed": seed,
        "completed_steps": steps,
        "status": "finished",
    }
