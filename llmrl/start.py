"""From a recipe to a finished run: build every part, train, and leave a summary. What `llmrl train` calls.

Names in the recipe that stand for objects (rewards, the algorithm) and the interval of the evaluation are handed in as
`Parts`, because this package never imports rewards or evaluation.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from rich.console import Console

from llmrl.algos.build import check_run, warnings
from llmrl.automatic import Settled, settle
from llmrl.batch import Algorithm, Controller
from llmrl.data.conversation import Renderer
from llmrl.data.gold import reference_rows
from llmrl.data.pictures import load_pictures
from llmrl.data.stream import MixedStream, PromptStream, Stream
from llmrl.envs.build import open_host
from llmrl.errors import CheckpointError, ConfigError
from llmrl.hardware import cores
from llmrl.policy.model import Policy, check_vocabulary, load_tokenizer, model_length
from llmrl.privacy.build import make_private, public_notes
from llmrl.rollout.engine import NoEngine, RolloutEngine
from llmrl.rollout.engines import TakeFaults, native_engine, place_engine
from llmrl.rollout.episodes import Stage
from llmrl.rollout.partners import open_partners
from llmrl.rollout.process import EngineFaults
from llmrl.seeding import key
from llmrl.settings.recipe import Recipe
from llmrl.settings.stages import LoopStage
from llmrl.stages.pairs import load_stage_rows, named
from llmrl.stages.run import Stopped, Train, leave_model, run_stages
from llmrl.train.checkpoint import TrainState, Writer, folder_of, read_pending, read_state, read_tensors, set_aside
from llmrl.train.evaluate import Benchmarks, Interval, held_out, held_out_loss
from llmrl.train.folder import open_folder, storage_errors, write_summary
from llmrl.train.interrupts import SIGNALS, Interrupts
from llmrl.train.job import Evaluate, Job, finished
from llmrl.train.log import Log, open_trackers
from llmrl.train.loop import train
from llmrl.train.models import Models, Sources, build_models
from llmrl.train.problems import Problems, load_problems, problems_of, with_stored
from llmrl.train.rollout_queue import RolloutQueue
from llmrl.train.sample import Sampler, ScoreAll, this_rank
from llmrl.train.world import World
from llmrl.types import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the composition root resolved from the recipe's names."""

    algo: Algorithm
    score: ScoreAll
    interval: Interval
    sources: Sources
    benchmarks: Benchmarks | None = None
    controller: Callable[[], Controller] | None = None  # makes a new one; private training makes its own
    of_stages: Mapping[str, Parts] = field(default_factory=dict)  # the same for stages on the training loop, by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    summary: dict[str, Any]
    exit_code: int = 0
    interrupted_by: str = ""
    stopped_in: Stopped | None = None  # the supervised stage, if it was one


def run(recipe: Recipe, parts: Parts, *, console: Console, resume: bool = False, fresh: bool = False) -> Outcome:
    """Train `recipe` to its end, or until interrupted. Raises ConfigError, DataError, RunFolderError, EngineError,
    CheckpointError, StorageError, RankLost or LimitExceeded, each with a message for the user.
    """
    settled = settle(recipe, resume=resume)
    recipe = settled.recipe
    accelerator, world = _start_processes(recipe)
    _same_on_all(settled, world)
    if world.main:
        for line in settled.lines:
            console.print(line, markup=False, highlight=False)
    _make_repeatable(recipe, world)
    check_run(recipe, parts.algo, ranks=world.size)
    with storage_errors(recipe.run_dir), ExitStack() as stack:
        world.on_main(lambda: _hold_folder(settled, stack, resume=resume, fresh=fresh))
        with Interrupts() as interrupts:
            base, runner = parts.sources.policy, Runner(world, accelerator, interrupts, console)
            if recipe.before:
                _check_length(recipe, base)
                prepare = partial(_prepared, recipe, base, parts.of_stages, runner)
                stopped = run_stages(recipe, base, world=world, console=console, interrupts=interrupts, prepare=prepare)
                if stopped is not None:
                    return _stopped_early(recipe, world, interrupts, stopped)
            parts = replace(parts, sources=replace(parts.sources, policy=str(recipe.start_of(None) or base)))
            summary, done = _trained(recipe, parts, runner)
            code = 0 if done else max(world.gather([interrupts.exit_code]))
    world.leave()
    return Outcome(summary=summary, exit_code=code, interrupted_by=SIGNALS.get(code, ""))


def _stopped_early(recipe: Recipe, world: World, interrupts: Interrupts, stopped: Stopped) -> Outcome:
    summary = write_summary(recipe.run_dir, recipe=recipe, status="interrupted") if world.main else {}
    code = max(world.gather([interrupts.exit_code]))
    world.leave()
    return Outcome(summary=summary, exit_code=code, interrupted_by=SIGNALS.get(code, ""), stopped_in=stopped)


@dataclass(frozen=True, slots=True)
class Runner:
    """What every loop of a process shares."""

    world: World
    accelerator: Any
    interrupts: Interrupts
    console: Console

    def say(self, text: str) -> None:
        if self.world.main:
            self.console.print(text, markup=False, highlight=False)


def _trained(
    recipe: Recipe, parts: Parts, runner: Runner, problems: Problems | None = None, *, stage: str = "",
    more: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], bool]:  # fmt: skip
    """Train in the recipe's folder, which is held; returns rank 0's summary and whether all steps were done."""
    with ExitStack() as stack:
        job, state = _build(recipe, parts, runner, stack, problems, stage=stage)
        state = _train_to_end(job, state)
        done, summary = finished(job, state), {}
        if state.ended:
            job.log.say(f"ended after step {state.step}: {state.ended}")
            more = {**(more or {}), "ended": state.ended}
        if runner.world.main:
            status = "finished" if done else "interrupted"
            more = {**(more or {}), **job.claim()}
            late = job.log.unaccounted_s
            summary = write_summary(recipe.run_dir, recipe=recipe, status=status, checkpoint_s=late, more=more)
    return summary, done


def _prepared(recipe: Recipe, base: str, parts: Mapping[str, Parts], runner: Runner, stage: LoopStage) -> Train:
    """Read the data of a stage on this loop; returns what trains it, in a run folder of its own, and leaves its model."""
    own, world = recipe.of_stage(stage), runner.world
    begun = (own.run_dir / "recipe.yaml").is_file()
    settled = settle(own, resume=begun)
    own, its = settled.recipe, parts[stage.title]
    check_run(own, its.algo, ranks=world.size)
    with named(stage):
        tokenizer = load_tokenizer(base)
        rows = load_stage_rows(stage, recipe)
        problems = problems_of(
            *rows, tokenizer, gold=its.algo.needs.gold, length=own.model.max_length, reader=load_pictures(base)
        )

    def train_from(source: str) -> tuple[int, bool]:
        with ExitStack() as stack:
            world.on_main(lambda: _hold_folder(settled, stack, resume=begun, fresh=False))
            mine = replace(its, sources=replace(its.sources, policy=source))
            told = {"name": stage.title, "kind": stage.kind, "started_from": source}
            summary, done = _trained(own, mine, runner, problems, stage=stage.title, more=told)
            if done:
                world.on_main(lambda: _leave_policy(own, summary["completed_steps"]))
        return world.on_main(lambda: summary["completed_steps"]), done

    return train_from


def _leave_policy(recipe: Recipe, last: int) -> None:
    """A finished stage's model: with train.best the best saved policy, else the last."""
    folder = recipe.run_dir
    best = read_state(folder_of(folder, last)).best_step if recipe.train.best else None
    step = last if best is None else best
    leave_model(folder, partial(shutil.copytree, folder_of(folder, step) / "policy"), drop="checkpoints")


def _same_on_all(settled: Settled, world: World) -> None:
    """Every process decided for itself, by its own machine; one model cannot be trained in two ways."""
    for name, value in (
        ("model.dtype", settled.recipe.model.dtype),
        ("rollout.engine", settled.recipe.rollout.engine),
    ):
        found = sorted(set(world.gather([value])))
        if len(found) > 1:
            raise ConfigError(
                f"{name}=auto means {' and '.join(found)} on this run's machines; set one of them for all"
            )


def _hold_folder(settled: Settled, stack: ExitStack, *, resume: bool, fresh: bool) -> None:
    stack.callback(open_folder(settled.recipe, resume=resume, fresh=fresh, chosen=settled.chosen).release)


def _train_to_end(job: Job, state: TrainState) -> TrainState:
    """Train and wait for the last checkpoint; a run that fails leaves its summary too, unless that fails as well."""
    try:
        state = train(job, state)
        if job.writer is not None:
            job.writer.finish()
    except BaseException:
        if job.world.main:
            with suppress(OSError):  # what is being raised says more
                write_summary(job.recipe.run_dir, recipe=job.recipe, status="failed")
        raise
    return state


def _start_processes(recipe: Recipe) -> tuple[Any, World]:
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    # Every process loads the whole model and its back-end cuts it; otherwise transformers would leave some weights empty.
    os.environ |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false"}
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=recipe.limits.rank_timeout_s))],
        log_with=recipe.tracking.to or None,
        project_dir=str(recipe.run_dir) if recipe.tracking.to else None,
    )
    world = World(rank=accelerator.process_index, size=accelerator.num_processes, device=accelerator.device)
    return accelerator, world


def _make_repeatable(recipe: Recipe, world: World) -> None:
    threads = recipe.train.threads or max(1, cores() // _local_ranks(world))
    torch.set_num_threads(threads)
    torch.manual_seed(key(recipe.seed, "torch"))
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # A debugging aid that costs 2 % of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _local_ranks(world: World) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", world.size))


def _build(
    recipe: Recipe, parts: Parts, runner: Runner, stack: ExitStack, problems: Problems | None, *, stage: str
) -> tuple[Job, TrainState]:
    """Load data, start the engine, load the model, restore a checkpoint; what must be closed goes on `stack`."""
    world, needs = runner.world, parts.algo.needs
    _check_length(recipe, parts.sources.policy)
    if problems is None:
        runner.say("reading data and tokenizer")
        source = parts.sources.policy
        problems = load_problems(recipe, load_tokenizer(source), gold=needs.gold, reader=load_pictures(source))
    problems, stored = with_stored(problems, recipe, parts.sources.policy)
    notes = [*problems.notes, *warnings(recipe, parts.algo)]
    samples = not needs.gold or bool(recipe.reward) or recipe.env is not None
    models, engine, faults = _open_models(recipe, parts, runner, stack, problems, notes, samples=samples)
    references, about = None, list[str]()
    if needs.references:
        references, about = reference_rows(problems.train, models.policy.tokenizer, max_length=recipe.model.max_length)
    controller = parts.controller() if parts.controller is not None else None
    private: dict[str, Any] = {}
    if recipe.privacy is not None:
        own = make_private(recipe, models, problems, recipe.run_dir)
        models, controller, problems = own.models, own.controller, replace(problems, gold=own.gold)
        streams: list[Stream] = [own.stream] * 2  # nothing is ever drawn in another's place
        notes, private = public_notes(notes), {"admits": own.admits, "claim": own.claim}
    else:
        streams = _streams(recipe, problems)
    state, pending, found = _restore(recipe, models, controller, world)
    tracker = open_trackers(recipe, recipe.run_dir, None if stage else runner.accelerator)
    log = Log(recipe, world, runner.console, state=state, tracker=tracker, stage=stage)
    stack.callback(log.close)
    for note in [*notes, *found, *about]:
        log.say(note)
    writer = _open_writer(recipe, stack) if world.main else None
    host = open_stage(recipe, models.policy, parts.sources, stack, rank=world.rank) if recipe.env is not None else None
    measures: list[Evaluate] = []
    if samples and problems.held_out:
        measures += [
            held_out(
                engine, problems.held_out, parts.score, recipe, world, parts.interval, parts.benchmarks, host, log.counted
            )
        ]  # fmt: skip
    if needs.gold and problems.held_out:
        measures += [held_out_loss(models, list(problems.held_out_gold.values()))]
    sampler = Sampler(
        recipe=recipe, world=world, engine=engine, score=parts.score, stream=streams[0], spare=streams[1], stage=host,
        gold=problems.gold if needs.gold else None,
        references=references, greedy=needs.greedy, stored=stored,
    )  # fmt: skip
    rollouts = RolloutQueue(
        engine, sampler, staleness=recipe.rollout.max_staleness, steps=recipe.train.steps, step=state.step,
        pending=pending,
    )  # fmt: skip
    stack.callback(rollouts.close)
    job = Job(
        recipe=recipe, world=world, models=models, algo=parts.algo, controller=controller, rollouts=rollouts,
        engine_faults=faults, evaluate=_together(measures) if measures else None, writer=writer, log=log,
        interrupts=runner.interrupts, **private,
    )  # fmt: skip
    return job, state


def _open_models(
    recipe: Recipe, parts: Parts, runner: Runner, stack: ExitStack, problems: Problems, notes: list[str], *, samples: bool
) -> tuple[Models, RolloutEngine, TakeFaults]:  # fmt: skip
    """The models and the engine, which starts while they load, or is the policy itself, or none if nothing `samples`."""
    beside = samples and recipe.rollout.engine != "native"
    engine = f"starting the engine ({recipe.rollout.engine}) while the model loads"
    runner.say(engine if beside else "loading the model")
    started = place_engine(recipe, parts.sources.policy, runner.world) if beside else None
    if started is not None:
        stack.callback(started[0].close)
    models = build_models(recipe, parts.algo, parts.sources, problems.train, notes, runner.world)
    check_vocabulary(models.policy, (token for row in problems.gold.values() for token in row.tokens))
    if started is None:
        mode = models.logprob_model.mode
        started = native_engine(recipe, models.policy, mode) if samples else (NoEngine(), EngineFaults)
    return models, *started


def _open_writer(recipe: Recipe, stack: ExitStack) -> Writer:
    writer = Writer(recipe.run_dir, keep_last=recipe.train.keep_last, keep_best=recipe.train.keep_best)
    stack.callback(writer.close)
    return writer


def _together(measures: Sequence[Evaluate]) -> Evaluate:
    return lambda version: {name: value for measure in measures for name, value in measure(version).items()}


def _streams(recipe: Recipe, problems: Problems) -> list[Stream]:
    """The prompts of steps, and those that take the place of groups that teach nothing."""
    how: dict[str, Any] = {"prompts_per_step": recipe.rollout.prompts_per_step, "shuffle": recipe.data.shuffle}
    seeds = [key(recipe.seed, name) for name in ("prompts", "spare prompts")]
    if not recipe.data.sources:
        return [PromptStream(problems.train, seed=seed, **how) for seed in seeds]
    weights = recipe.data.weights
    sources = {name: [prompt for prompt in problems.train if prompt.source == name] for name in weights}
    return [MixedStream(sources, weights, seed=seed, **how) for seed in seeds]


def open_stage(recipe: Recipe, policy: Policy, sources: Sources, stack: ExitStack, *, rank: int = 0) -> Stage:
    """Where the recipe's episodes are played: its environments, and the other engines that they may ask."""
    assert recipe.env is not None
    host = open_host(recipe.env)
    stack.callback(host.close)
    partners = open_partners(recipe, sources.partners, policy, rank=rank)
    for partner in partners.values():
        stack.callback(partner.close)
    chat = None if recipe.data.chat == "auto" else recipe.data.chat
    renderer = Renderer(policy.tokenizer, chat=chat, reader=policy.pictures)
    return Stage(
        host=host, renderer=renderer, turns=recipe.env.turns, max_length=recipe.model.max_length,
        window=recipe.env.window, partners=partners,
    )  # fmt: skip


def _check_length(recipe: Recipe, source: str) -> None:
    longest = model_length(source)
    if longest is not None and recipe.model.max_length > longest:
        raise ConfigError(
            f"model.max_length={recipe.model.max_length} is more than the {longest} tokens of {source}; lower it"
        )


def _restore(
    recipe: Recipe, models: Models, controller: Controller | None, world: World
) -> tuple[TrainState, dict[int, list[Trajectory]], list[str]]:
    """The state to go on from, batches sampled and not trained yet, and what to tell the user.

    Rank 0 chooses the checkpoint, every rank reads that one.
    """
    folder, complaints = world.on_main(lambda: set_aside(recipe.run_dir))
    if folder is None:
        return TrainState(step=0, metrics_bytes=0), {}, complaints
    state = read_state(folder)
    try:
        models.load(lambda name: read_tensors(folder, name))
        if controller is not None:
            controller.load(read_tensors(folder, "controller"))
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise CheckpointError(f"{folder} does not fit this recipe's model: {error}") from error
    return state, this_rank(read_pending(folder), world), [*complaints, f"resuming after step {state.step}"]
