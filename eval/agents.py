"""Policies in environments: success rates with intervals, models times environments, episodes as filmstrips.

Episodes are those of training (`rollout/episodes.py`). The seeds of their levels are keyed apart from training's, so no
level is one that was trained on, unless the environment has only so many.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Literal

from llmrl.atomic import write_text
from llmrl.automatic import engine_to_play
from llmrl.data.conversation import Renderer
from llmrl.data.pictures import load_pictures
from llmrl.envs.build import open_host
from llmrl.errors import EvalError
from llmrl.eval.environments import find_environment
from llmrl.eval.metrics import clustered_interval
from llmrl.eval.models import Model, find_models
from llmrl.eval.tables import table
from llmrl.hardware import dtype_here
from llmrl.policy.model import load_tokenizer, model_length
from llmrl.report.filmstrip import filmstrips
from llmrl.rollout.build import build_engine
from llmrl.rollout.engine import EngineSettings, RolloutEngine
from llmrl.rollout.episodes import Stage, play
from llmrl.rollout.store import write_rollouts
from llmrl.settings.env import EnvConfig
from llmrl.train.sample import judged
from llmrl.types import Prompt, Sampling, Score, StatusKind, Trajectory, by_episode, total

RESULTS = "agents.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """How episodes are played: `levels` of each environment, each `samples` times."""

    levels: int = 100
    samples: int = 1
    seed: int = 0
    temperature: float = 0.0
    max_tokens: int = 128
    max_length: int | None = None
    engine: Literal["auto", "vllm", "hf", "native"] = "auto"
    dtype: str = "auto"
    max_sequences: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """One model in one environment. The interval (95 %) takes levels as clusters."""

    model: str
    environment: str
    success: float
    low: float
    high: float
    levels: int
    samples: int
    reward: float
    turns: float
    invalid: float  # share of steps without a valid action
    errored: float  # share of episodes that failed; they count as not solved


def evaluate_agents(
    models: Sequence[str],
    environments: Sequence[str],
    *,
    out: Path,
    options: AgentOptions,
    checkpoints: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Success]:
    """Play every model in every environment; what `out` holds already is not played again. Writes agents.json, report.md
    and report.html there. Raises EvalError, ConfigError or EngineError.
    """
    found = [find_environment(text) for text in environments]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise EvalError(f"two environments are called alike: {', '.join(names)}")
    chosen = [model for text in models for model in find_models(text, checkpoints=checkpoints)]
    labels = {model: model.name if model.step is None else f"{model.name}@{model.step}" for model in chosen}
    asked = json.dumps(asdict(options), sort_keys=True)
    done = _read(out / RESULTS, asked)
    films: dict[tuple[str, str], Sequence[Trajectory]] = {}
    for model in chosen:
        label = labels[model]
        missing = [(name, config) for name, config in found if (label, name) not in done]
        if not missing:
            continue
        with ExitStack() as stack:
            engine = _engine(model, options)
            stack.callback(engine.close)
            for name, config in missing:
                say(f"{label} in {name}: {options.levels} levels, {options.samples} times each")
                rows = played(engine, model, config, options)
                films[label, name] = rows
                done[label, name] = measured(rows, label, name, options)
                out.mkdir(parents=True, exist_ok=True)
                file = out / "rollouts" / f"{_file(label)}-{_file(name)}.parquet"
                write_rollouts(file, rows, [None] * len(rows))
                stored = {"options": asked, "results": [asdict(one) for one in done.values()]}
                write_text(out / RESULTS, json.dumps(stored, indent=1))
    order = {label: place for place, label in enumerate(labels.values())}
    results = [one for one in done.values() if one.model in order and one.environment in names]
    results.sort(key=lambda one: (order[one.model], names.index(one.environment)))
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "report.md", agents_table(results) + "\n")
    if films or not (out / "report.html").exists():
        write_text(out / "report.html", _page(results, films), errors="replace")
    return results


def played(engine: RolloutEngine, model: Model, config: EnvConfig, options: AgentOptions) -> list[Trajectory]:
    """The rows of all episodes."""
    tokenizer = load_tokenizer(model.path)
    host = open_host(config)
    try:
        stage = Stage(
            host=host,
            renderer=Renderer(tokenizer, reader=load_pictures(model.path)),
            turns=config.turns,
            max_length=_length(model, options),
            window=config.window,
        )
        prompts = [Prompt(id=f"level/{number}", tokens=(), text="") for number in range(options.levels)]
        sampling = Sampling(max_tokens=options.max_tokens, temperature=options.temperature)
        rows = play(
            engine, prompts, stage, sampling=sampling, samples=options.samples, seed=options.seed, step="held out",
            version=0,
        )  # fmt: skip
    finally:
        host.close()
    return judged(rows, lambda ends: [Score(value=0.0) for _ in ends])


def measured(rows: Sequence[Trajectory], model: str, environment: str, options: AgentOptions) -> Success:
    """Success and its interval. Raises EvalError if the environment never says whether an episode succeeded."""
    episodes = by_episode(rows)
    if not any("success" in one[-1].info for one in episodes if one[-1].status.kind is not StatusKind.ERROR):
        reasons = {one[-1].status.reason for one in episodes if one[-1].status.reason}
        told = f": {sorted(reasons)[0]}" if reasons else ", and its episodes have no info 'success'"
        raise EvalError(f"{environment} does not tell success{told}")
    by_level: dict[str, list[float]] = defaultdict(list)
    for one in episodes:
        ok = one[-1].status.kind is not StatusKind.ERROR and bool(one[-1].info.get("success"))
        by_level[one[0].prompt.id].append(float(ok))
    clusters = list(by_level.values())
    low, high = clustered_interval(clusters) if len(clusters) > 1 else (0.0, 1.0)
    rewards = [reward for one in episodes if (reward := total(one)) is not None]
    invalid = sum(any("invalid_action" in score.flags for score in row.scores) for row in rows)
    return Success(
        model=model, environment=environment, low=low, high=high, levels=len(clusters), samples=options.samples,
        success=sum(map(sum, clusters)) / len(episodes), reward=sum(rewards) / max(1, len(rewards)),
        turns=len(rows) / len(episodes), invalid=invalid / len(rows),
        errored=sum(one[-1].status.kind is StatusKind.ERROR for one in episodes) / len(episodes),
    )  # fmt: skip


def agents_table(results: Sequence[Success]) -> str:
    """Markdown: models down, environments across; below, what else was counted."""
    environments = list(dict.fromkeys(one.environment for one in results))
    models = list(dict.fromkeys(one.model for one in results))
    cells = {(one.model, one.environment): f"{one.success:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in results}
    success = [[model, *(cells.get((model, name), "") for name in environments)] for model in models]
    counted = [
        [
            one.model, one.environment, f"{one.levels} x {one.samples}",
            *(f"{number:.2f}" for number in (one.reward, one.turns, one.invalid, one.errored)),
        ]
        for one in results
    ]  # fmt: skip
    head = ["model", "environment", "levels", "reward", "turns", "invalid", "errored"]
    tables = table(["model", *environments], success), table(head, counted)
    return "\n\n".join(["Success rates with 95 % intervals over levels.", *tables])


def _page(results: Sequence[Success], films: dict[tuple[str, str], Sequence[Trajectory]]) -> str:
    parts = [f"<pre>{escape(agents_table(results))}</pre>"]
    for (model, name), rows in films.items():
        parts.append(f"<h2>{escape(model)} in {escape(name)}</h2>{filmstrips(rows)}")
    head = '<!doctype html><meta charset="utf-8"><title>Episodes</title><style>body{font:15px system-ui;margin:2em}</style>'
    return head + "".join(parts)


def _engine(model: Model, options: AgentOptions) -> RolloutEngine:
    return build_engine(
        EngineSettings(
            kind=engine_to_play(model.path) if options.engine == "auto" else options.engine,
            model=model.path,
            dtype=dtype_here(options.dtype),
            max_length=_length(model, options),
            max_sequences=options.max_sequences,
            seed=options.seed,
        )
    )


def _length(model: Model, options: AgentOptions) -> int:
    return min(options.max_length or 2048, model_length(model.path) or 2048)


def _file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_@." else "_" for c in name)


def _read(file: Path, asked: str) -> dict[tuple[str, str], Success]:
    if not file.is_file():
        return {}
    stored = json.loads(file.read_text(encoding="utf-8"))
    if stored["options"] != asked:
        raise EvalError(f"{file} was played with other options; choose another --out, or delete it")
    return {(one["model"], one["environment"]): Success(**one) for one in stored["results"]}
