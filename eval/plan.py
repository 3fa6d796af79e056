"""From options to plans: settles everything a task's numbers depend on before any engine starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llmrl.errors import EvalError
from llmrl.eval.load import Questions, load_questions, load_shots
from llmrl.eval.models import Model
from llmrl.eval.prompts import build_prompts, choose_mode, default_shots
from llmrl.eval.scorers import ScorerSpec
from llmrl.eval.strategies.rewriting import Rewrite
from llmrl.eval.task import Mode, Task
from llmrl.hardware import best_precision, dtype_here, warning_for
from llmrl.rollout.engine import EngineSettings
from llmrl.types import Prompt, Sampling

Say = Callable[[str], None]

GPU_MEMORY = 0.9  # share of a GPU; an evaluation has it to itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to evaluate; None means the task's own default.

    With one sample per question and no temperature set, decoding is greedy. `limit` asks that many questions of each
    task (a subset that depends on their ids alone; `first` takes the first ones). `max_length` bounds prompt plus
    completion in tokens (None: what the task needs, at most what the model was made for). `endpoints` are URLs of
    OpenAI-compatible servers that are asked instead of an engine; `engines` is how many run side by side here (None: one
    per GPU). `dtype` auto is the faster one on this machine. `ks` are further k of pass@k and the like, besides powers of
    two. `scorers` score every sample;
    `strategies` choose by them (of no name: all of strategies.STRATEGIES), or ask again, with `strategy_args`.
    """

    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int = -1
    min_p: float = 0.0
    max_tokens: int | None = None
    seed: int = 0
    mode: Mode | None = None
    shots: int | None = None
    system: str | None = None
    template: str | None = None
    limit: int | None = None
    first: bool = False
    data_dir: Path | None = None
    engine: Literal["vllm", "hf"] = "vllm"
    endpoints: tuple[str, ...] = ()
    engines: int | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_length: int | None = None
    max_sequences: int = 128
    restart: bool = False
    ks: tuple[int, ...] = ()
    scorers: tuple[ScorerSpec, ...] = ()
    strategies: tuple[str, ...] = ()
    strategy_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A task, ready to run. `settings` is all that its numbers depend on."""

    task: Task
    mode: Mode
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    samples: int
    settings: Mapping[str, Any]


def make_plan(task: Task, tokenizer: Any, options: Options, *, model: Model, say: Say = print) -> Plan:
    """Load a task's questions and settle everything its numbers depend on. EvalError or DataError if that fails."""
    mode, note = choose_mode(task, tokenizer, options.mode)
    if note:
        say(note)
    if options.template is not None:
        task = replace(task, template=options.template, plain_template=options.template)
    count = default_shots(task, mode) if options.shots is None else options.shots
    shots = load_shots(task, count, data_dir=options.data_dir)
    loaded = load_questions(task, data_dir=options.data_dir, limit=options.limit, first=options.first)
    prompts = build_prompts(task, loaded.questions, tokenizer, mode=mode, shots=shots, system=options.system)
    samples = task.samples if options.samples is None else options.samples
    sampling = _sampling(task, mode, samples, options)
    return Plan(
        task=task,
        mode=mode,
        prompts=tuple(prompts),
        sampling=sampling,
        samples=samples,
        settings=_settings(task, mode, count, samples, sampling, loaded, options, model),
    )


def _sampling(task: Task, mode: Mode, samples: int, options: Options) -> Sampling:
    if samples < 1:
        raise EvalError(f"samples={samples}; ask at least one per question")
    greedy = samples == 1 and options.temperature is None
    temperature = 0.0 if greedy else task.temperature if options.temperature is None else options.temperature
    if temperature < 0:
        raise EvalError(f"temperature={temperature:g}; it must be 0 (greedy) or more")
    for k in options.ks:
        if not 1 <= k <= samples:
            raise EvalError(f"k={k} with samples={samples}: pass@k and maj@k need at least k samples; raise --samples")
    if temperature == 0 and samples > 1:
        raise EvalError(f"samples={samples} at temperature 0 would all be the same; raise --temperature or ask for one")
    top_p = task.top_p if options.top_p is None else options.top_p
    max_tokens = options.max_tokens or task.max_tokens
    if max_tokens < 1:
        raise EvalError(f"max_tokens={max_tokens}; let the model say at least one token")
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=1.0 if temperature == 0 else top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        stop=task.plain_stop if mode == "plain" else (),
    )


def _settings(
    task: Task,
    mode: Mode,
    shots: int,
    samples: int,
    sampling: Sampling,
    loaded: Questions,
    options: Options,
    model: Model,
) -> dict[str, Any]:
    scorers = [{"path": spec.path, "args": dict(spec.args)} for spec in options.scorers]
    return {
        "task": task.name,
        "model": model.path,
        "data": {"origin": loaded.origin, "sha256": loaded.sha256, "available": loaded.available},
        "questions": {"asked": len(loaded.questions), "limit": options.limit, "first": options.first},
        "prompt": {
            "mode": mode,
            "template": task.template if mode == "chat" else task.plain_template,
            "shots": shots,
            "system": options.system,
        },
        "sampling": {
            "samples": samples,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "max_tokens": sampling.max_tokens,
            "stop": list(sampling.stop),
            "seed": options.seed,
        },
        "verifier": {"name": task.verifier, "options": dict(task.options)},
        "engine": {
            "kind": "endpoint" if options.endpoints else options.engine,
            "dtype": options.dtype,
            "max_length": options.max_length,
        },
        **({"scorers": scorers} if scorers else {}),
    }


def with_dtype(options: Options, say: Say = print) -> Options:
    """The options with a precision for the engine here, and a word to the user about it. A server has its own."""
    if options.endpoints:
        return options
    if options.dtype != "auto":
        if warning := warning_for(options.dtype):
            say(f"warning: {warning}")
        return options
    best = best_precision()
    say(f"dtype: {best.dtype}, by auto: {best.reason}")
    return replace(options, dtype=best.dtype)


def engine_settings(
    model: Model, plans: Sequence[Plan], options: Options, say: Say = print, *, rewrites: Sequence[Rewrite] = ()
) -> EngineSettings:
    """The engine that fits all plans. EvalError if a prompt is longer than the model can read."""
    import torch

    longest = max(len(prompt.tokens) for plan in plans for prompt in plan.prompts)
    asked = [(max(len(p.tokens) for p in plan.prompts), plan.sampling.max_tokens) for plan in plans]
    wanted = max(length for size in asked for length in (sum(size), *(again.length(*size) for again in rewrites)))
    made_for = _context(model.path)
    length = min(options.max_length or wanted, made_for)
    if longest >= length:
        raise EvalError(f"the longest prompt has {longest} tokens, and prompt plus completion may have {length}")
    if length < wanted:
        say(f"prompt plus completion are cut at {length} tokens, fewer than the {wanted} that the tasks could use")
    return EngineSettings(
        kind=options.engine,
        model=model.path,
        dtype=dtype_here(options.dtype),
        max_length=length,
        max_sequences=options.max_sequences,
        seed=options.seed,
        gpu_memory=GPU_MEMORY,
        eager=not torch.cuda.is_available(),  # compiled, a GPU is much faster; a CPU hardly, after a long start
    )


def _context(path: str) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    return int(getattr(config, "max_position_embeddings", None) or 2**31)
