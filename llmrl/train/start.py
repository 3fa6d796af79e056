"""From a recipe to a finished run: build every part, train, and leave a summary. What `llmrl train` calls.

Names in the recipe that stand for objects (rewards, the algorithm) and the interval of the evaluation are handed in as
`Parts`, because this package never imports rewards or evaluation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from llmrl.algos.build import check_siblings
from llmrl.batch import Algorithm, Batch
from llmrl.config import ConfigError, Recipe
from llmrl.data.prompts import PromptReport, to_prompts
from llmrl.data.source import load_train_eval
from llmrl.data.stream import PromptStream
from llmrl.policy.forward import ForwardMode, check_forward, window_is_short
from llmrl.policy.model import Policy, load_policy, load_tokenizer, model_length
from llmrl.rollout.engine import EngineSettings, RolloutEngine, build_engine
from llmrl.rollout.process import EngineFaults, ProcessEngine
from llmrl.rollout.roll import single_turn
from llmrl.seeding import key
from llmrl.train.checkpoint import CheckpointError, TrainState, Writer, read_optimizer, read_state, set_aside
from llmrl.train.collate import collate
from llmrl.train.evaluate import Interval, held_out
from llmrl.train.folder import open_folder, storage_errors, write_summary
from llmrl.train.interrupts import SIGNALS, Interrupts
from llmrl.train.job import Job, ScoreAll
from llmrl.train.log import Log
from llmrl.train.loop import train
from llmrl.train.update import Scorer
from llmrl.train.updater import Updater
from llmrl.train.world import World
from llmrl.types import Completion, Prompt, Score, Status

SELF_CHECK_NATS = {"float32": 1e-3, "bfloat16": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the composition root resolved from the recipe's names."""

    algo: Algorithm
    score: ScoreAll
    interval: Interval
    source: str  # model folder or hub id


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    summary: dict[str, Any]
    exit_code: int = 0
    interrupted_by: str = ""


def run(recipe: Recipe, parts: Parts, *, console: Console, resume: bool = False, fresh: bool = False) -> Outcome:
    """Train `recipe` to its end, or until interrupted. Raises ConfigError, DataError, RunFolderError, EngineError,
    CheckpointError, StorageError, RankLost or LimitExceeded, each with a message for the user.
    """
    accelerator, world = _start_processes(recipe)
    _make_repeatable(recipe, world)
    check_siblings(recipe, parts.algo)
    if recipe.rollout.prompts_per_step % (world.size * recipe.train.minibatches):
        raise ConfigError(
            f"rollout.prompts_per_step={recipe.rollout.prompts_per_step} cannot be shared equally by {world.size} processes "
            f"and train.minibatches={recipe.train.minibatches}; make it a multiple of {world.size * recipe.train.minibatches}"
        )
    if world.size > 1 and "whole_batch" in parts.algo.needs:
        raise ConfigError(
            f"algo.name={recipe.algo['name']} whitens over the whole batch, which is not gathered over {world.size} "
            "processes yet; run it with one process, or use grpo or rloo"
        )
    with storage_errors(recipe.run_dir), ExitStack() as stack:
        world.on_main(lambda: _hold_folder(recipe, stack, resume=resume, fresh=fresh))
        with Interrupts() as interrupts:
            job, state = _build(recipe, parts, world, accelerator, interrupts, console, stack)
            state = _train_to_end(job, state)
            status = "finished" if state.step == recipe.train.steps else "interrupted"
            summary = {}
            if world.main:
                late = job.log.unaccounted_s
                summary = write_summary(recipe.run_dir, recipe=recipe, status=status, checkpoint_s=late)
            code = 0 if status == "finished" else max(world.gather([interrupts.exit_code]))
        return Outcome(summary=summary, exit_code=code, interrupted_by=SIGNALS.get(code, ""))


def _hold_folder(recipe: Recipe, stack: ExitStack, *, resume: bool, fresh: bool) -> None:
    stack.callback(open_folder(recipe, resume=resume, fresh=fresh).release)


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

    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=recipe.limits.rank_timeout_s))],
        log_with=recipe.tracking.to or None,
        project_dir=str(recipe.run_dir) if recipe.tracking.to else None,
    )
    world = World(rank=accelerator.process_index, size=accelerator.num_processes, device=accelerator.device)
    return accelerator, world


def _make_repeatable(recipe: Recipe, world: World) -> None:
    threads = recipe.train.threads or max(1, len(os.sched_getaffinity(0)) // _local_ranks(world))
    torch.set_num_threads(threads)
    torch.manual_seed(key(recipe.seed, "torch"))
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs 2 % of a step


def _local_ranks(world: World) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", world.size))


def _build(
    recipe: Recipe, parts: Parts, world: World, accelerator: Any, interrupts: Interrupts, console: Console,
    stack: ExitStack,
) -> tuple[Job, TrainState]:  # fmt: skip
    """Load data, start the engine, load the model, restore a checkpoint; what must be closed goes on `stack`."""
    _check_length(recipe, parts.source)
    train_prompts, eval_prompts, notes = load_prompts(recipe, load_tokenizer(parts.source))
    stream, spare = (
        PromptStream(
            train_prompts,
            seed=key(recipe.seed, name),
            prompts_per_step=recipe.rollout.prompts_per_step,
            shuffle=recipe.data.shuffle,
        )
        for name in ("prompts", "spare prompts")
    )
    started = None if recipe.rollout.engine == "native" else _start_engine(recipe, parts.source, world)
    if started is not None:
        stack.callback(started[0].close)  # it starts while the model loads
    policy = load_policy(recipe.model, source=parts.source, device=world.device, seed=key(recipe.seed, "adapter"))
    scorer = make_scorer(recipe, policy, train_prompts, notes)
    engine, faults = started or native_engine(recipe, policy, scorer)
    updater = make_updater(recipe, policy, world)
    reference = reference_logprobs(recipe, parts.algo, policy, scorer, parts.source)
    state, found = _restore(recipe, updater, world)
    tracker = None
    if recipe.tracking.to:
        accelerator.init_trackers(recipe.tracking.project)
        tracker = accelerator
    log = Log(recipe, world, console, state=state, tracker=tracker)
    stack.callback(log.close)
    for note in [*notes, *found]:
        log.say(note)
    writer = None
    if world.main:
        writer = Writer(recipe.run_dir, keep_last=recipe.train.keep_last, keep_best=recipe.train.keep_best)
        stack.callback(writer.close)
    evaluate = held_out(engine, eval_prompts, parts.score, recipe, world, parts.interval)
    job = Job(
        recipe=recipe, world=world, policy=policy, scorer=scorer, reference=reference, updater=updater,
        algo=parts.algo, engine=engine, engine_faults=faults, score=parts.score, stream=stream, spare=spare,
        evaluate=evaluate, writer=writer, log=log, interrupts=interrupts,
    )  # fmt: skip
    return job, state


def load_prompts(recipe: Recipe, tokenizer: Any) -> tuple[list[Prompt], list[Prompt], list[str]]:
    """(training prompts, held-out prompts, what a user should know about them)."""
    train_rows, eval_rows = load_train_eval(recipe.data, recipe.eval.data, seed=key(recipe.seed, "data"))
    train_prompts, report = to_prompts(train_rows, tokenizer, recipe.data)
    eval_prompts, eval_report = to_prompts(eval_rows, tokenizer, recipe.eval.data.over(recipe.data))
    notes = [_prompt_note(report, "training"), _prompt_note(eval_report, "held-out")]
    return train_prompts, eval_prompts, notes


def _prompt_note(report: PromptReport, part: str) -> str:
    dropped = f", {len(report.too_long)} dropped as too long" if report.too_long else ""
    return f"{part}: {report.kept} prompts of {report.mean_tokens:.0f} tokens on average, {report.longest} at most{dropped}"


def _check_length(recipe: Recipe, source: str) -> None:
    longest = model_length(source)
    if longest is not None and recipe.model.max_length > longest:
        raise ConfigError(
            f"model.max_length={recipe.model.max_length} is more than the {longest} tokens of {source}; lower it"
        )


def engine_settings(recipe: Recipe, source: str) -> EngineSettings:
    rollout = recipe.rollout
    return EngineSettings(
        kind=rollout.engine,
        model=source,
        dtype=recipe.model.dtype,
        max_length=recipe.model.max_length,
        max_sequences=rollout.max_sequences,
        kv_cache_gib=rollout.kv_cache_gib,
        gpu_memory=rollout.gpu_memory,
        eager=rollout.eager,
    )


def _start_engine(recipe: Recipe, source: str, world: World) -> tuple[RolloutEngine, Callable[[], EngineFaults]]:
    """The engine, and what tells (and forgets) how often it had to be replaced."""
    settings, rollout = engine_settings(recipe, source), recipe.rollout
    if not rollout.isolated:
        return build_engine(settings), EngineFaults
    engine = ProcessEngine(
        settings,
        log=recipe.run_dir / ("engine.log" if world.size == 1 else f"engine-{world.rank}.log"),
        start_timeout_s=rollout.start_timeout_s,
        stall_timeout_s=rollout.stall_timeout_s,
        max_restarts=recipe.limits.max_engine_restarts,
    )
    return engine, engine.take_faults


def native_engine(recipe: Recipe, policy: Policy, scorer: Scorer) -> tuple[RolloutEngine, Callable[[], EngineFaults]]:
    """An engine that samples with `policy` itself. Raises ConfigError for a model that does not pack."""
    from llmrl.rollout.native import NativeEngine

    if scorer.mode != "packed":
        raise ConfigError(
            f"rollout.engine=native needs model.forward=packed, and {recipe.model.path} runs {scorer.mode}; "
            "set rollout.engine=vllm"
        )
    settings = engine_settings(recipe, policy.source)
    return NativeEngine(settings, model=policy.causal_lm, tokenizer=policy.tokenizer), EngineFaults


def make_scorer(recipe: Recipe, policy: Policy, prompts: list[Prompt], notes: list[str]) -> Scorer:
    return Scorer(
        model=policy.causal_lm,
        mode=forward_mode(recipe, policy.causal_lm, _probe(prompts), notes),
        temperature=recipe.rollout.temperature,
        tokens_per_microbatch=recipe.train.tokens_per_microbatch,
    )


def forward_mode(recipe: Recipe, model: nn.Module, probe: Batch, notes: list[str]) -> ForwardMode:
    """The forward pass that agrees with the model itself on `probe`: what the recipe says, or with auto the fastest.

    Raises ConfigError if none does: such a model would train on wrong probabilities.
    """
    asked = recipe.model.forward
    probe = probe.to(next(model.parameters()).device)
    problems: list[str] = []
    modes: tuple[ForwardMode, ...] = ("packed", "plain") if asked == "auto" else (asked,)
    for mode in modes:
        problem = check_forward(model, probe, mode=mode, tolerance=SELF_CHECK_NATS[recipe.model.dtype])
        if problem is None and mode == "packed" and window_is_short(model, recipe.model.max_length):
            problem = f"its sliding window is shorter than model.max_length={recipe.model.max_length}"
        if problem is None:
            notes.extend(f"model.forward: using {mode}, because {reason}" for reason in problems)
            return mode
        problems.append(problem)
    raise ConfigError(f"{recipe.model.path} cannot be trained with model.forward={asked}: {'; '.join(problems)}")


def _probe(prompts: list[Prompt]) -> Batch:
    """A few rows for the self-check: two prompts, each continued by pieces of other prompts."""
    rows = []
    for prompt in prompts[:2]:
        for number, other in enumerate(prompts[2:5] or prompts):
            tokens = other.tokens[: 5 + 4 * number]
            made = Completion(tokens=tokens, logprobs=(0.0,) * len(tokens), text="", status=Status.done())
            rows.append(single_turn(prompt, made, sample=number, version=0))
    return collate([replace(row, scores=(Score(value=0.0),)) for row in rows])


def make_updater(recipe: Recipe, policy: Policy, world: World) -> Updater:
    """The recipe's optimizer over the policy's trainable weights."""
    return Updater(
        policy.trainable(),
        betas=recipe.train.betas,
        eps=recipe.train.eps,
        weight_decay=recipe.train.weight_decay,
        max_grad_norm=recipe.train.max_grad_norm,
        reduce=world.sum_ if world.size > 1 else None,
    )


def reference_logprobs(
    recipe: Recipe, algo: Algorithm, policy: Policy, scorer: Scorer, source: str
) -> Callable[[Batch], Tensor] | None:
    """Log-probabilities of the model as it was before training, if the algorithm needs them.

    With LoRA that is the model without its adapter; otherwise a frozen second copy is loaded.
    """
    if "ref_logprobs" not in algo.needs:
        return None
    if policy.lora:

        def without_adapter(batch: Batch) -> Tensor:
            with policy.model.disable_adapter():  # type: ignore[operator]
                return scorer.logprobs(batch)

        return without_adapter
    device = next(policy.model.parameters()).device
    frozen = load_policy(recipe.model, source=source, device=device, seed=0)
    return replace(scorer, model=frozen.causal_lm.requires_grad_(False)).logprobs


def _restore(recipe: Recipe, updater: Updater, world: World) -> tuple[TrainState, list[str]]:
    """The state to go on from, and what to tell the user. Rank 0 chooses the checkpoint, every rank reads that one."""
    folder, complaints = world.on_main(lambda: set_aside(recipe.run_dir))
    if folder is None:
        return TrainState(step=0, metrics_bytes=0), complaints
    state = read_state(folder)
    try:
        updater.load(read_optimizer(folder))
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} does not fit this recipe's model: {error}") from error
    return state, [*complaints, f"resuming after step {state.step}"]
