"""Benchmarks during training: what a recipe's `eval.tasks` names, run with the training engine at its evaluations.

The command line hands a `Benchmarks` to the training loop, which calls it with its engine and gets metrics back
(eval/<task>/score and so on). The samples go to <run>/benchmarks/step-N/<task>.jsonl, in the format of `llmrl eval`;
they are always made anew, so that a resumed run records what its own weights say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmrl.errors import EvalError
from llmrl.eval.models import Model
from llmrl.eval.plan import Options, Plan, Say, make_plan
from llmrl.eval.records import Record, open_records, to_line
from llmrl.eval.results import Metric, budgets, summarise
from llmrl.eval.run import Judge, run_task, windows
from llmrl.eval.tasks import find_task
from llmrl.hardware import dtype_here
from llmrl.rollout.engine import RolloutEngine
from llmrl.settings.recipe import BenchmarkConfig, Recipe
from llmrl.train.world import World
from llmrl.types import Completion, Request

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One task, ready to run; `every` in steps (0: only before and after training)."""

    plan: Plan
    judge: Judge
    seed: int
    every: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmarks:
    """A run's benchmarks; `last` is the run's last step, `folder` where samples go."""

    benchmarks: tuple[Benchmark, ...]
    folder: Path
    last: int

    def __call__(self, engine: RolloutEngine, world: World, step: int) -> dict[str, float]:
        """Metrics of the benchmarks that are due at `step`, the same on every rank; questions are shared out."""
        found: dict[str, float] = {}
        for one in self.benchmarks:
            if step in (0, self.last) or (one.every and step % one.every == 0):
                found |= metrics(one.plan.task.name, self._records(one, engine, world, step))
        return found

    def _records(self, one: Benchmark, engine: RolloutEngine, world: World, step: int) -> list[Record]:
        plan, folder = one.plan, self.folder / f"step-{step:06d}"
        path = folder / f"{plan.task.name}.jsonl"
        own = path if world.size == 1 else folder / f"{plan.task.name}.rank-{world.rank}.jsonl"
        own.unlink(missing_ok=True)
        mine = world.share(list(plan.prompts))
        asked = engine if world.size == 1 and hasattr(engine, "stream") else _Collective(engine)
        made = run_task(
            mine,
            engine=asked,
            judge=one.judge,
            sampling=plan.sampling,
            samples=plan.samples,
            seed=one.seed,
            path=own,
            settings=plan.settings,
        )
        if isinstance(asked, _Collective):
            largest = -(-len(plan.prompts) // world.size)
            asked.call_until(windows(largest, plan.samples))
        if world.size == 1:
            return made
        place = {prompt.id: i for i, prompt in enumerate(plan.prompts)}
        records = [replace(record, index=place[record.question]) for record in world.gather(made)]
        records.sort(key=lambda record: record.index)
        if world.main:
            path.unlink(missing_ok=True)
            with open_records(path, plan.settings) as (file, _):
                file.writelines(map(to_line, records))
        own.unlink()
        return records


class _Collective:
    """An engine that all ranks call together, if rank 0 asks it for everybody: every rank calls it equally often."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine, self._calls = engine, 0

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        yield from enumerate(self.generate(requests))

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self._calls += 1
        return self._engine.generate(requests)

    def call_until(self, calls: int) -> None:
        """Take part in what the others still ask."""
        while self._calls < calls:
            self.generate([])

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        self._engine.load(weights, version=version)

    def close(self) -> None:
        self._engine.close()


def training_benchmarks(recipe: Recipe, source: str, *, say: Say = print) -> Benchmarks:
    """What `recipe.eval.tasks` names, with prompts made for the model in `source`.

    EvalError or DataError for anything wrong with names, settings or data; nothing has run by then.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    model = Model(name=recipe.name, path=source)
    found = [_benchmark(config, recipe, tokenizer, model, say) for config in recipe.eval.tasks]
    names = [one.plan.task.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EvalError(f"task {twice[0]} is named twice; its results would overwrite each other")
    return Benchmarks(benchmarks=tuple(found), folder=recipe.run_dir / "benchmarks", last=recipe.train.steps)


def _benchmark(config: BenchmarkConfig, recipe: Recipe, tokenizer: object, model: Model, say: Say) -> Benchmark:
    options = Options(
        samples=config.samples,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        seed=config.seed,
        mode=config.mode,
        shots=config.shots,
        limit=config.limit,
        data_dir=None if recipe.eval.data_dir is None else Path(recipe.eval.data_dir),
        engine="hf" if recipe.rollout.engine == "hf" else "vllm",
        dtype=dtype_here(recipe.model.dtype),
        max_length=recipe.model.max_length,
    )
    plan = make_plan(find_task(config.name), tokenizer, options, model=model, say=say)
    needed = max(len(prompt.tokens) for prompt in plan.prompts) + plan.sampling.max_tokens
    if needed > recipe.model.max_length:
        raise EvalError(
            f"{config.name} needs {needed} tokens for its longest prompt and max_tokens={plan.sampling.max_tokens}, more "
            f"than model.max_length={recipe.model.max_length}; set max_tokens lower or model.max_length higher"
        )
    every = recipe.eval.every if config.every is None else config.every
    return Benchmark(plan=plan, judge=Judge.of(plan.task, plan.mode), seed=config.seed, every=every)


def metrics(task: str, records: Sequence[Record]) -> dict[str, float]:
    """What goes to metrics.jsonl: score with its interval, pass@n and maj@n, lengths, and what could not be scored."""
    samples = [sample for record in records for sample in record.samples]
    unscored = sum(sample.value is None for sample in samples) / len(samples)
    found = {"n": float(len(records)), "unscored": unscored}
    if unscored < 1:
        result = summarise(task, {}, records)
        found |= _interval("score", result.score)
        k = budgets(result.samples)[-1]
        for name in (f"pass@{k}", f"maj@{k}") if k > 1 else ():
            if name in result.metrics:
                found |= _interval(name, result.metrics[name])
        found |= {"length_mean": result.tokens.mean, "truncated": result.health.truncated}
    return {f"eval/{task}/{name}": value for name, value in found.items()}


def _interval(name: str, metric: Metric) -> dict[str, float]:
    prefix = "" if name == "score" else f"{name}_"
    found = {name: metric.value}
    if metric.low is not None and metric.high is not None:
        found |= {f"{prefix}low": metric.low, f"{prefix}high": metric.high}
    return found
