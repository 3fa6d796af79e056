"""Seconds of a step on another cluster, predicted from what measured runs cost. Behind `llmrl plan --scale`.

    generate = slowdown * (generate_step_s * decode steps + generate_token_s * sampled tokens)     of the slowest engine
    update   = slowdown * (update_s * optimizer updates   + update_token_s   * tokens run)         of the slowest trainer

The costs are fitted by least squares to the runs' steps without the first one, which warms up. Prompts and lengths are
drawn from the runs, whole groups at a time, so the long tail stays. As in `rollout.max_staleness`, the batch of step n is
sampled by version n - staleness. Only layouts whose recipe `train` accepts are predicted. Not in it: memory bandwidth
that processes share, and the network unless its speed is given.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from llmrl.errors import ConfigError
from llmrl.nearest import nearest
from llmrl.seeding import generator
from llmrl.settings.load import load_recipe
from llmrl.settings.recipe import Recipe

WARM_UP = 3  # simulated steps that are not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of one worker on `cores` cores (or one GPU, `cores` 1).

    generate_step_s    one decode step of an engine, whatever runs in it.
    generate_token_s   one sampled token, its share of reading the prompt included.
    generate_serial    share of generation that more cores do not speed up (Amdahl's law).
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
class Group:
    """One prompt of a step: tokens of the prompt, of each completion, and of what its update ran (prompt included)."""

    prompt: int
    lengths: tuple[int, ...]
    trained: int

    def scaled(self, factor: float, *, longest: int) -> Group:
        """This group with completions `factor` times as long, at most `longest` tokens."""
        lengths = tuple(min(longest, max(1, round(length * factor))) for length in self.lengths)
        trained = round(self.prompt + (self.trained - self.prompt) * factor) if self.trained else 0
        return replace(self, lengths=lengths, trained=trained)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run's steps after the first. `columns` hold one number a step: means over the run's workers."""

    run: Path
    recipe: Recipe
    workers: int
    engine_cores: float  # of each worker
    trainer_cores: float
    columns: Mapping[str, np.ndarray]
    groups: tuple[Group, ...]

    @property
    def step_s(self) -> float:
        return float(self.columns["step_s"].mean())


def read_run(run: Path) -> Measured:
    """What a run folder says. Raises ConfigError for a folder that is no run, stores no rollouts, or is too short."""
    for name in ("recipe.yaml", "metrics.jsonl", "environment.json"):
        if not (run / name).is_file():
            raise ConfigError(f"--measured {run}: there is no {name}, so this is not a run folder")
    recipe, by_step = load_recipe(run / "recipe.yaml"), _stored_groups(run)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in metrics if row["kind"] == "train" and row["step"] in by_step][1:]
    if not rows:
        raise ConfigError(f"--measured {run}: it has no stored steps after the first, which warms up; run more")
    workers = len(list(run.glob("engine-*.log"))) or 1
    recorded = json.loads((run / "environment.json").read_text())
    seen, bound = int(recorded["cpus"]), Path(recorded["command"][0]).name == "rank.py"
    own = seen if bound else seen / workers  # `llmrl launch` binds each worker to its part of the cores
    decoded = [
        np.mean([decode_steps(_lengths(by_step[row["step"]][rank::workers]), recipe.rollout.max_sequences)
                 for rank in range(workers)])
        for row in rows
    ]  # fmt: skip
    columns = {
        "tokens": [row["tokens/sampled"] / workers for row in rows],
        "decode_steps": decoded,
        "run_tokens": [row["tokens/packed"] / workers for row in rows],
        "updates": [recipe.train.updates_per_step for _ in rows],
        "samples": [len(_lengths(by_step[row["step"]])) / workers for row in rows],
        **{f"{name}_s": [row[f"time/{name}"] for row in rows] for name in ("generate", "update", "reward", "sync")},
        "step_s": [row["time/step"] - row["time/checkpoint"] for row in rows],
    }
    return Measured(
        run=run, recipe=recipe, workers=workers, engine_cores=min(recipe.rollout.threads or seen, own),
        trainer_cores=min(recipe.train.threads or seen, own),
        columns={name: np.array(values, dtype=float) for name, values in columns.items()},
        groups=tuple(group for row in rows for group in by_step[row["step"]]),
    )  # fmt: skip


def _stored_groups(run: Path) -> dict[int, list[Group]]:
    import pyarrow.parquet as pq

    found: dict[int, list[Group]] = {}
    for file in sorted((run / "rollouts").glob("step-*.parquet")):
        members: dict[str, list[tuple[int, int, bool]]] = {}
        for row in pq.read_table(file, columns=["prompt_id", "prompt_tokens", "mask", "advantage"]).to_pylist():
            trains = row["advantage"] is None or row["advantage"] != 0
            members.setdefault(row["prompt_id"], []).append((row["prompt_tokens"], sum(row["mask"]), trains))
        found[int(file.stem.rpartition("-")[2])] = [_group(rows) for rows in members.values()]
    if not found:
        raise ConfigError(f"--measured {run}: no rollouts are stored there, so completion lengths are not known")
    return found


def _group(rows: Sequence[tuple[int, int, bool]]) -> Group:
    prompt, own = rows[0][0], sum(length for _, length, trains in rows if trains)
    return Group(prompt=prompt, lengths=tuple(length for _, length, _ in rows), trained=prompt + own if own else 0)


def _lengths(groups: Sequence[Group]) -> list[int]:
    return [length for group in groups for length in group.lengths]


def decode_steps(lengths: Sequence[int], slots: int) -> int:
    """Steps of an engine that runs `slots` requests at once and starts the next as one ends.

    >>> decode_steps([4, 1, 2, 2], slots=2)
    5
    """
    ends: list[int] = []
    for length in lengths:
        begin = heapq.heappop(ends) if len(ends) == slots else 0
        heapq.heappush(ends, begin + length)
    return max(ends, default=0)


def fit(runs: Sequence[Measured]) -> tuple[Costs, list[str]]:
    """(costs, what the runs could not tell) from the steps of all runs together."""
    from scipy.optimize import nnls

    column = {name: np.concatenate([run.columns[name] for run in runs]) for name in runs[0].columns}
    cores = max(1, round(max(max(run.engine_cores, run.trainer_cores) for run in runs)))
    own = {
        side: np.concatenate([np.full(len(run.columns["step_s"]), getattr(run, side)) for run in runs])
        for side in ("engine_cores", "trainer_cores")
    }
    # more cores speed a phase up in full, unless --cost generate_serial and update_serial say otherwise
    generate = np.stack([column["decode_steps"], column["tokens"]], 1) * (cores / own["engine_cores"])[:, None]
    update = np.stack([column["updates"], column["run_tokens"]], 1) * (cores / own["trainer_cores"])[:, None]
    (step, token), _ = nnls(generate, column["generate_s"])
    (fixed, each), _ = nnls(update, column["update_s"])
    notes = ["more cores are taken to speed a phase up in full; --cost generate_serial and update_serial say otherwise"]
    ratio = column["tokens"] / np.maximum(1.0, column["decode_steps"])
    if ratio.max() < 1.5 * ratio.min():
        notes.append(
            "the runs are alike in size: a decode step's fixed cost is a guess; add one with fewer prompts_per_step"
        )
    known = sum(column[f"{name}_s"] for name in ("generate", "update", "reward", "sync"))
    return Costs(
        generate_step_s=float(step), generate_token_s=float(token), update_s=float(fixed), update_token_s=float(each),
        reward_s=float(column["reward_s"].sum() / column["samples"].sum()), sync_s=float(column["sync_s"].mean()),
        other_s=max(0.0, float((column["step_s"] - known).mean())), cores=cores,
    ), notes  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Who does what, and how to ask for it: `options` and `changes` of the recipe for `llmrl launch`.

    Every trainer has its own engine, unless `apart`. `engine_cores` and `trainer_cores` are those of one worker on a CPU,
    0 on a GPU of its own.
    """

    trainers: int
    engines: int
    apart: bool = False
    staleness: int = 0
    engine_cores: float = 0
    trainer_cores: float = 0
    options: str = ""
    changes: tuple[str, ...] = ()

    @property
    def mode(self) -> str:
        when = {0: "synchronous", 1: "one step off"}.get(self.staleness, f"{self.staleness} steps off")
        return f"{'apart' if self.apart else 'together'}, {when}"


def on_gpus(nodes: int, gpus_per_node: int, max_staleness: int) -> list[Layout]:
    """All GPUs with trainer and engine, and every split into trainers and vLLM servers that a launch can start."""
    devices = nodes * gpus_per_node
    found = [Layout(trainers=devices, engines=devices, options=f"--nodes {nodes} --gpus-per-node {gpus_per_node}")]
    for staleness in sorted({0, 1, max_staleness}):
        for count in range(1, devices):
            if count > gpus_per_node and count % gpus_per_node:
                continue  # every node of a launch has the same number of processes
            own = min(count, gpus_per_node)
            urls = ",".join(f"http://engine-{number}:8000" for number in range(1, devices - count + 1))
            changes = (
                "rollout.placement=server",
                f"rollout.max_staleness={staleness}",
                f"rollout.servers.urls=[{urls}]",
            )
            found.append(
                Layout(
                    trainers=count, engines=devices - count, apart=True, staleness=staleness, changes=changes,
                    options=f"--nodes {count // own} --gpus-per-node {own}",
                )
            )  # fmt: skip
    return found


def on_cores(cores: int, counts: Sequence[int], max_staleness: int) -> list[Layout]:
    """Workers of one CPU machine, each bound to its part of the cores; if it samples ahead, each side to half of them."""
    found = []
    for count in counts:
        for staleness in sorted({0, 1, max_staleness}):
            mine = max(1, cores // count)
            each = max(1, mine // 2) if staleness else mine
            if staleness and mine < 2:
                continue  # both sides would want the same core
            changes = (
                f"rollout.max_staleness={staleness}", f"rollout.threads={each}", f"train.threads={each}"
            ) if staleness else ()  # fmt: skip
            found.append(
                Layout(
                    trainers=count, engines=count, staleness=staleness, engine_cores=each, trainer_cores=each,
                    options=f"--gpus-per-node 0 --processes {count}", changes=changes,
                )
            )  # fmt: skip
    return found


def accepted(layouts: Sequence[Layout], check: Callable[[Layout], object]) -> tuple[list[Layout], list[str]]:
    """(layouts that `check` lets pass, for each mode of the others why it refused the first)."""
    kept, reasons = [], dict[str, str]()
    for layout in layouts:
        try:
            check(layout)
            kept.append(layout)
        except ConfigError as error:
            reasons.setdefault(layout.mode, f"left out {layout.mode}, {layout.trainers} trainers: {error}")
    return kept, list(reasons.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a step asks for. Gradients of `parameters` are exchanged at `bytes_per_s`, at no cost if that is not known."""

    prompts_per_step: int
    slots: int
    updates: int = 1
    parameters: int = 0
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Means over the counted steps; `*_busy` are shares of the time."""

    layout: Layout
    step_s: float
    tokens_per_s: float
    trainers_busy: float
    engines_busy: float


def predict(
    layout: Layout, costs: Costs, work: Work, groups: Sequence[Group], *, steps: int = 40, seed: int = 0
) -> Predicted:
    """Play `steps` counted steps with groups drawn from `groups`."""
    draw, k = generator(seed, "scale"), layout.staleness
    sampled, released, done = [0.0], [0.0], [0.0]  # when batches were sampled, weights ready, steps over
    busy, tokens = {"engine": 0.0, "trainer": 0.0}, 0
    for number in range(1, steps + WARM_UP + 1):
        batch = [groups[draw.randrange(len(groups))] for _ in range(work.prompts_per_step)]
        generate = [_generate_s(batch[e :: layout.engines], layout, costs, work) for e in range(layout.engines)]
        update = [_update_s(batch[t :: layout.trainers], layout, costs, work) for t in range(layout.trainers)]
        trained_s = max(update) + work.updates * allreduce_s(work, layout.trainers)
        begin = max(sampled[-1], released[max(0, number - 1 - k)] if k else done[-1])
        sampled.append(begin + max(generate) + (costs.sync_s if k else 0))
        released.append(max(done[-1], sampled[-1]) + trained_s)
        done.append(released[-1] + costs.other_s + (0 if k else costs.sync_s))
        if number > WARM_UP:
            tokens += sum(_lengths(batch))
            busy["engine"] += float(np.mean(generate))
            busy["trainer"] += float(np.mean(update))
    elapsed = done[-1] - done[WARM_UP]
    return Predicted(
        layout=layout, step_s=elapsed / steps, tokens_per_s=tokens / elapsed, trainers_busy=busy["trainer"] / elapsed,
        engines_busy=busy["engine"] / elapsed,
    )  # fmt: skip


def _generate_s(groups: Sequence[Group], layout: Layout, costs: Costs, work: Work) -> float:
    lengths = _lengths(groups)
    own = costs.generate_step_s * decode_steps(lengths, work.slots) + costs.generate_token_s * sum(lengths)
    return own * (slowdown(layout.engine_cores, costs.cores, costs.generate_serial) if layout.engine_cores else 1)


def _update_s(groups: Sequence[Group], layout: Layout, costs: Costs, work: Work) -> float:
    own = costs.update_s * work.updates + costs.update_token_s * sum(group.trained for group in groups)
    slower = slowdown(layout.trainer_cores, costs.cores, costs.update_serial) if layout.trainer_cores else 1
    return costs.reward_s * len(_lengths(groups)) + own * slower


def slowdown(cores: float, reference: float, serial: float) -> float:
    """How many times longer work takes on `cores` than on `reference` cores (Amdahl's law).

    >>> slowdown(1, 2, 0.0), slowdown(1, 2, 1.0)
    (2.0, 1.0)
    """
    return (serial + (1 - serial) / cores) / (serial + (1 - serial) / reference)


def allreduce_s(work: Work, trainers: int) -> float:
    """Seconds of a ring all-reduce of float32 gradients: 2 (n - 1) / n of them through each link."""
    if work.bytes_per_s is None:
        return 0.0
    return 4 * work.parameters * 2 * (trainers - 1) / trainers / work.bytes_per_s
