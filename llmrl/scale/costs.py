"""Seconds of each phase of one worker, fitted by least squares to what runs measured.

    generate = speed(cores) * (generate_step_s * decode steps + generate_token_s * sampled tokens)
    update   = speed(cores) * (update_s * optimizer updates   + update_token_s   * tokens run)
    speed(c) = (serial + (1 - serial) / c) / (serial + (1 - serial) / cores)           Amdahl's law

Reward, weight transfer and the rest are means. The first step of a run is left out: it warms up. One run alone says
little about what is fixed and what grows with tokens; give several that differ in rollout.prompts_per_step, and on CPUs
in the number of cores, and `notes` gets shorter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from llmrl.errors import ConfigError
from llmrl.scale.workload import Group, decode_steps, read_groups
from llmrl.settings.explain import nearest
from llmrl.settings.load import load_recipe
from llmrl.settings.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of one worker on `cores` cores (or one GPU, `cores` 1).

    generate_step_s    one decode step of an engine, whatever runs in it.
    generate_token_s   one sampled token, its share of reading the prompt included.
    generate_serial    share of generation that more cores do not speed up.
    update_s           one optimizer update: gradients, Adam, rounding.
    update_token_s     one token through forward and backward passes, all passes of a step together.
    update_serial      share of the update that more cores do not speed up.
    reward_s           scoring one sample.
    sync_s             handing the weights to the engine.
    other_s            what is left of a step: storing, logging.
    """

    generate_step_s: float = 0.0
    generate_token_s: float = 0.0
    generate_serial: float = 0.0
    update_s: float = 0.0
    update_token_s: float = 0.0
    update_serial: float = 0.0
    reward_s: float = 0.0
    sync_s: float = 0.0
    other_s: float = 0.0
    cores: int = 1

    def with_given(self, given: Sequence[str]) -> Costs:
        """These costs with `name=seconds` texts in place. Raises ConfigError for an unknown name or no number."""
        known = [field.name for field in fields(self)]
        values: dict[str, float] = {}
        for text in given:
            name, _, value = text.partition("=")
            if name not in known:
                raise ConfigError(f"--cost {text}: there is no such cost; {nearest(name, known)}")
            try:
                values[name] = int(value) if name == "cores" else float(value)
            except ValueError as error:
                raise ConfigError(f"--cost {text}: {value!r} is not a number") from error
            if not 0 <= values[name] < float("inf"):
                raise ConfigError(f"--cost {text}: a cost is not below zero")
        return replace(self, **values)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured step of one worker (means over a run's workers)."""

    engine_cores: float
    trainer_cores: float
    tokens: float
    decode_steps: float
    run_tokens: float
    updates: int
    samples: float
    generate_s: float
    update_s: float
    reward_s: float
    sync_s: float
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run's files say."""

    run: Path
    recipe: Recipe
    workers: int
    machine: int  # cores that all workers share
    engine_threads: int  # of each worker
    trainer_threads: int
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]

    @property
    def step_s(self) -> float:
        return float(np.mean([row.step_s for row in self.rows]))


def read_run(run: Path, *, skip: int = 1) -> Measured:
    """Steps after the first `skip` of a run. Raises ConfigError for a folder that is no run or too short."""
    for name in ("recipe.yaml", "metrics.jsonl", "environment.json"):
        if not (run / name).is_file():
            raise ConfigError(f"--measured {run}: there is no {name}, so this is not a run folder")
    recipe, by_step = load_recipe(run / "recipe.yaml"), read_groups(run)
    workers = len(list(run.glob("engine-*.log"))) or 1
    machine, engine_threads, trainer_threads = _threads(run, recipe, workers)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in metrics if row["kind"] == "train" and row["step"] in by_step][skip:]
    if not train:
        raise ConfigError(f"--measured {run}: it has no stored steps after the first {skip}, which warm up; run more")
    slots = recipe.rollout.max_sequences
    rows = []
    for row in train:
        shares = [by_step[row["step"]][rank::workers] for rank in range(workers)]
        steps = [decode_steps([n for group in share for n in group.lengths], slots) for share in shares]
        rows.append(
            Row(
                engine_cores=min(engine_threads, machine / workers),
                trainer_cores=min(trainer_threads, machine / workers),
                tokens=row["tokens/sampled"] / workers,
                decode_steps=float(np.mean(steps)),
                run_tokens=row["tokens/packed"] / workers,
                updates=recipe.updates_per_step,
                samples=sum(len(group.lengths) for share in shares for group in share) / workers,
                generate_s=row["time/generate"],
                update_s=row["time/update"],
                reward_s=row["time/reward"],
                sync_s=row["time/sync"],
                step_s=row["time/step"] - row["time/checkpoint"],
            )
        )
    groups = tuple(group for row in train for group in by_step[row["step"]])
    return Measured(
        run=run, recipe=recipe, workers=workers, machine=machine, engine_threads=engine_threads,
        trainer_threads=trainer_threads, rows=tuple(rows), groups=groups,
    )  # fmt: skip


def _threads(run: Path, recipe: Recipe, workers: int) -> tuple[int, int, int]:
    """(cores that all workers share, threads of each engine, threads of each trainer), from what the run recorded.

    The recorded cores are those the first worker might use: its own part if `llmrl launch` bound it, else all.
    """
    recorded = json.loads((run / "environment.json").read_text())
    seen, bound = int(recorded["cpus"]), Path(recorded["command"][0]).name == "rank.py"
    machine = seen * workers if bound else seen
    return machine, recipe.rollout.threads or seen, recipe.train.threads or max(1, seen // workers)


def fit(runs: Sequence[Measured]) -> tuple[Costs, list[str]]:
    """(costs, what the runs could not tell) from the rows of all runs together."""
    rows = [row for run in runs for row in run.rows]
    engines, trainers = [row.engine_cores for row in rows], [row.trainer_cores for row in rows]
    cores = max(1, round(max(*engines, *trainers)))
    notes = []
    for what, seen in (("generation", engines), ("the update", trainers)):
        if len(set(seen)) == 1:
            notes.append(f"all runs had as many cores for {what}: it is taken to speed up with cores in full")
    ratio = [row.tokens / max(1.0, row.decode_steps) for row in rows]
    if max(ratio) < 1.5 * min(ratio):
        notes.append(
            "the runs are alike in size: a decode step's fixed cost is a guess; add one with fewer prompts_per_step"
        )
    generate = np.array([[row.decode_steps, row.tokens] for row in rows])
    update = np.array([[float(row.updates), row.run_tokens] for row in rows])
    (step, token), generate_serial = _amdahl(generate, [row.generate_s for row in rows], engines, cores)
    (fixed, each), update_serial = _amdahl(update, [row.update_s for row in rows], trainers, cores)
    known = [row.generate_s + row.update_s + row.reward_s + row.sync_s for row in rows]
    return Costs(
        generate_step_s=step,
        generate_token_s=token,
        generate_serial=generate_serial,
        update_s=fixed,
        update_token_s=each,
        update_serial=update_serial,
        reward_s=float(np.sum([row.reward_s for row in rows]) / np.sum([row.samples for row in rows])),
        sync_s=float(np.mean([row.sync_s for row in rows])),
        other_s=max(0.0, float(np.mean([row.step_s - part for row, part in zip(rows, known, strict=True)]))),
        cores=cores,
    ), notes


def _amdahl(
    features: np.ndarray, seconds: Sequence[float], seen: Sequence[float], cores: int
) -> tuple[tuple[float, float], float]:
    """(coefficients, serial share) with the least squared error; the share is 0 if all rows have the same cores."""
    target = np.array(seconds)
    best: tuple[float, tuple[float, float], float] | None = None
    for serial in np.linspace(0, 1, 21) if len(set(seen)) > 1 else [0.0]:
        slower = np.array([slowdown(own, cores, float(serial)) for own in seen])
        found = nonnegative(features * slower[:, None], target)
        error = float(((features * slower[:, None]) @ found - target) @ ((features * slower[:, None]) @ found - target))
        if best is None or error < best[0] - 1e-12:
            best = error, (float(found[0]), float(found[1])), float(serial)
    assert best is not None
    return best[1], best[2]


def slowdown(cores: float, reference: float, serial: float) -> float:
    """How many times longer work takes on `cores` than on `reference` cores (Amdahl's law).

    Less than one core is a share of one core's time.

    >>> slowdown(1, 2, 0.0), slowdown(1, 2, 1.0), slowdown(0.5, 1, 1.0)
    (2.0, 1.0, 2.0)
    """
    return _time(cores, serial) / _time(reference, serial)


def _time(cores: float, serial: float) -> float:
    return 1 / cores if cores < 1 else serial + (1 - serial) / cores


def nonnegative(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares with coefficients >= 0, for the few columns there are here: features [n, k], target [n] -> [k]."""
    columns = range(features.shape[1])
    best, least = np.zeros(features.shape[1]), float(target @ target)
    for size in range(1, features.shape[1] + 1):
        for chosen in combinations(columns, size):
            part, *_ = np.linalg.lstsq(features[:, chosen], target, rcond=None)
            gap = features[:, chosen] @ part - target
            if (part >= 0).all() and float(gap @ gap) < least:
                best, least = np.zeros(features.shape[1]), float(gap @ gap)
                best[list(chosen)] = part
    return best
