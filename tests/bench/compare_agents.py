"""Methods for agents under one budget of episodes: `python -m tests.bench.compare_agents`, or `make compare-agents`.

A small model is taught the form of an answer by examples with actions drawn at random (so it starts at chance), and every
method then plays the same number of episodes from there, with three seeds, in one process. Finished runs are skipped and a
stopped one is resumed, so the command can be stopped and repeated. With `--view image` the small model sees: its new vision
tower first learns words for parts of rendered frames, then the examples, and the last policies are also shown pictures of
other levels. Afterwards every last policy plays held-out levels of its
own environment and of the others, and RESULTS.md is written from what is there. `--model` takes another start, such as
smollm2-135m or vlm-135m; `--report` trains nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrl.atomic import write_text
from llmrl.envs.demos import write_demonstrations
from llmrl.eval.agents import AgentOptions, Success, evaluate_agents
from llmrl.settings.env import EnvConfig
from llmrl.settings.load import parse_recipe
from llmrl.train.folder import read_metrics

ROOT = Path(__file__).resolve().parents[2]
LESSONS = 300  # of the vision tower, 64 frames each
STEPS, EPISODES = 20, 16  # a step's episodes: 16 levels, or 4 levels four times for methods that compare siblings
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "numberline": {"name": "numberline", "args": {"high": 5, "penalty": 1.0}, "turns": 6},
    "frozen_lake": {"name": "frozen_lake", "args": {"edge": 3, "holes": 0.2}, "turns": 8},
    "minigrid": {
        "name": "minigrid",
        "args": {"level": "MiniGrid-Empty-Random-5x5-v0", "names": ["left", "right", "forward"]},
        "turns": 12,
    },
}
PLAYED = {"memory": "window(1)", "isolated": False}
CRITIC = {"hidden": [256], "lr": 3e-3, "stop_gradient": True, "warmup_steps": 2}
PLAIN = {**CRITIC, "stop_gradient": False, "warmup_steps": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method's sections of the recipe; `group` is how often a step plays each level."""

    algo: dict[str, Any]
    critic: dict[str, Any] | None = None
    group: int = 1


VL_DAC = {"name": "vl_dac", "gamma": 0.95}
METHODS = {
    "vl_dac": Method(algo=VL_DAC, critic=CRITIC),
    "rl4vlm-0.3": Method(algo={"name": "rl4vlm", "gamma": 0.95, "thought_weight": 0.3}, critic=PLAIN),
    "rl4vlm-1.0": Method(algo={"name": "rl4vlm", "gamma": 0.95, "thought_weight": 1.0}, critic=PLAIN),
    "loop": Method(algo={"name": "loop"}, group=4),
    "grpo": Method(algo={"name": "grpo"}, group=4),
    "vl_dac without stop-gradient": Method(algo=VL_DAC, critic={**CRITIC, "stop_gradient": False}),
    "vl_dac without warm-up": Method(algo=VL_DAC, critic={**CRITIC, "warmup_steps": 0}),
    "vl_dac without KL": Method(algo={**VL_DAC, "kl_coef": 0.0}, critic=CRITIC),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "agents")
    parser.add_argument("--model", default="", help="default: a small one, made and taught here")
    parser.add_argument("--view", default="text")
    parser.add_argument("--environments", nargs="*", default=["numberline", "frozen_lake", "minigrid"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--hours", type=float, default=2.0, help="start no further run after this long")
    parser.add_argument("--levels", type=int, default=100, help="held-out levels of the final test")
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    for name in options.environments:
        ENVIRONMENTS[name]["args"]["view"] = options.view
    begin = time.monotonic()
    for place in planned(options):
        if options.report or time.monotonic() - begin > 3600 * options.hours:
            break
        train(place, options)
    report(options)


@dataclass(frozen=True, slots=True)
class Place:
    """One run of the comparison."""

    environment: str
    method: str
    seed: int

    def folder(self, out: Path) -> Path:
        return out / self.environment / f"{self.method.replace(' ', '_')}-{self.seed}"


def planned(options: argparse.Namespace) -> Iterator[Place]:
    """All runs, the first seed of every environment and method first."""
    for seed in options.seeds:
        for environment in options.environments:
            yield from (Place(environment, method, seed) for method in options.methods)


def recipe_of(place: Place, model: str, options: argparse.Namespace) -> Any:
    method = METHODS[place.method]
    folder = place.folder(options.out)
    sections = {} if method.critic is None else {"critic": method.critic}
    return parse_recipe(
        {
            "name": folder.name, "runs_dir": str(folder.parent), "seed": place.seed,
            "model": {"path": model, "dtype": "float32", "max_length": 512},
            "data": {"source": "episodes", "limit": 4000, "max_prompt_tokens": 64},
            "env": {**ENVIRONMENTS[place.environment], **PLAYED},
            "rollout": {
                "engine": "native", "prompts_per_step": EPISODES // method.group, "group_size": method.group,
                "max_tokens": 72,
            },
            "algo": method.algo, **sections,
            "train": {
                "steps": options.steps, "lr": 1e-4, "epochs": 2, "minibatches": 4, "threads": 1, "save_every": options.steps,
                "keep_best": False, "keep_last": 1,
            },
            "eval": {"every": 5, "data": {"n": 24}, "threshold": 0.5},
            "limits": {"max_mismatch": 5.0, "max_rollout_error_rate": 0.5},
        }
    )  # fmt: skip


def trained(recipe: Any, *, resume: bool) -> None:
    from rich.console import Console

    from llmrl.compose import resolve
    from llmrl.start import run

    outcome = run(recipe, resolve(recipe), console=Console(file=io.StringIO()), resume=resume, fresh=not resume)
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)


def finished(folder: Path) -> bool:
    summary = folder / "summary.json"
    return summary.is_file() and json.loads(summary.read_text()).get("status") == "finished"


def train(place: Place, options: argparse.Namespace) -> None:
    folder = place.folder(options.out)
    if finished(folder):
        return
    model = options.model or str(base(place.environment, options))
    begin = time.monotonic()
    trained(recipe_of(place, model, options), resume=(folder / "recipe.yaml").exists())
    last = [row for row in read_metrics(folder) if row["kind"] == "eval"][-1]
    print(f"{place.environment} {place.method} seed {place.seed}: {last['eval/accuracy']:.2f} "
          f"({time.monotonic() - begin:.0f} s)", flush=True)  # fmt: skip


def base(environment: str, options: argparse.Namespace) -> Path:
    """The small model that knows the form of answers in `environment`, made if it is not there."""
    folder, sees = options.out / "start" / environment, options.view != "text"
    done = folder / "checkpoints"
    if not finished(folder):
        examples = folder.parent / f"{environment}.jsonl"
        config = EnvConfig(**ENVIRONMENTS[environment])
        if not examples.is_file():
            write_demonstrations(config, examples, rows=4000)
        recipe = parse_recipe(
            {
                "name": environment, "runs_dir": str(folder.parent),
                "model": {
                    "path": str(blank(folder.parent / "blank", sees=sees)), "dtype": "float32", "max_length": 512,
                    "vision_tower": sees,
                },
                "data": {"source": str(examples), "max_prompt_tokens": 500}, "algo": {"name": "sft"},
                "rollout": {"prompts_per_step": 16, "group_size": 1, "max_tokens": 8},
                "train": {"steps": 1000, "lr": 3e-3, "schedule": "cosine", "warmup_steps": 20, "threads": 1,
                          "save_every": 1000, "tokens_per_microbatch": 8192},
                "eval": False,
            }
        )  # fmt: skip
        begin = time.monotonic()
        trained(recipe, resume=False)
        print(f"{environment}: taught the form of answers ({time.monotonic() - begin:.0f} s)", flush=True)
    return sorted(done.glob("step-*"))[-1] / "policy"


def blank(folder: Path, *, sees: bool) -> Path:
    """A small Llama with one token a byte and ordinary first weights; with eyes, after their first lessons, if it `sees`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.tiny import SIZES, SPECIAL, save_model

    if not (folder / "config.json").is_file():
        sizes = {**SIZES, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 3}
        config = AutoConfig.for_model("llama", **sizes, vocab_size=len(SPECIAL) + 256, num_key_value_heads=3)
        config.max_position_embeddings = 512
        torch.manual_seed(0)
        save_model(folder, AutoModelForCausalLM.from_config(config))
    return with_eyes(folder, folder.with_name("blank-eyes")) if sees else folder


def with_eyes(text: Path, folder: Path) -> Path:
    """The model behind a vision tower that has learnt words for parts of rendered frames."""
    from llmrl.commands.build_model import first_lessons
    from llmrl.policy.build_vlm import Eyes

    if not (folder / "config.json").is_file():
        eyes = Eyes(width=64, layers=2, heads=2)
        first_lessons(text, folder, eyes=eyes, seed=0, steps=LESSONS, say=lambda line: print(line, flush=True))
    return folder


def report(options: argparse.Namespace) -> None:
    """Play held-out levels with every last policy and write RESULTS.md."""
    runs = [place for place in planned(options) if finished(place.folder(options.out))]
    settings = AgentOptions(levels=options.levels, max_tokens=96, max_length=512, dtype="float32", temperature=1.0)
    found: dict[Place, list[Success]] = {}
    environments = [json.dumps({**ENVIRONMENTS[name], **PLAYED}) for name in options.environments]
    for place in runs:
        folder = place.folder(options.out)
        wanted = (
            environments
            if place.method == "vl_dac"
            else environments[options.environments.index(place.environment) :][:1]
        )
        if options.view != "text":
            wanted = [*wanted, json.dumps(scrambled(place.environment))]
        found[place] = evaluate_agents(
            [str(folder)], wanted, out=folder / "held_out", options=settings, say=lambda text: None
        )
    lines = ["# Agents compared", "", *about(options, runs)]
    for name in options.environments:
        lines += [
            "",
            f"## {name}",
            "",
            "| method | seeds | start | success, mean of seeds | each |",
            "|---|---|---|---|---|",
        ]
        for method in options.methods:
            own = [place for place in runs if (place.environment, place.method) == (name, method)]
            if own:
                lines.append(_row(method, own, found, options))
        lines += ["", "Success on 24 levels, greedy, after 0, 5, 10, ... steps of 16 episodes (mean of seeds):", ""]
        lines += [
            _curve(method, name, runs, options) for method in options.methods if _curve(method, name, runs, options)
        ]
    if options.view != "text":
        lines += _looking(found)
    lines += ["", "## Transfer", "", "vl_dac, trained on the row's environment, played in the column's.", ""]
    lines += _transfer(found, options)
    name = "RESULTS.md" if options.view == "text" else f"RESULTS_{options.view}.md"
    file = options.out / name if options.model else ROOT / "recipes" / "agents" / name
    write_text(file, "\n".join(lines) + "\n")
    print(f"wrote {file}")


def scrambled(environment: str) -> dict[str, Any]:
    """The environment with pictures of other levels."""
    own = ENVIRONMENTS[environment]
    args = {**own["args"], "of": own["name"]}
    return {**own, "name": "tests.bench.scrambled:scrambled", "args": args, "isolated": False}


def _looking(found: dict[Place, list[Success]]) -> list[str]:
    """Success of every last policy on its own levels, with their pictures and with those of other levels."""
    lines = [
        "",
        "## Do they look?",
        "",
        "| environment | method | own pictures | of other levels |",
        "|---|---|---|---|",
    ]
    for environment, method in dict.fromkeys((place.environment, place.method) for place in found):
        runs = [found[place] for place in found if (place.environment, place.method) == (environment, method)]
        own, other = (
            interval([next(r.success for r in results if r.environment.startswith(name)) for results in runs])
            for name in (environment, "tests.bench.scrambled")
        )
        lines.append(f"| {environment} | {method} | {own} | {other} |")
    return lines


def about(options: argparse.Namespace, runs: Sequence[Place]) -> list[str]:
    model = (
        options.model or "a Llama of 0.4 M parameters (one token a byte), taught the form of answers on random actions"
    )
    return [
        f"`make compare-agents`: {len(runs)} finished runs of {len(list(planned(options)))}. Model: {model}. View: "
        f"{options.view}. {options.steps} steps of {EPISODES} episodes, two epochs of four minibatches, lr 1e-4. Held-out "
        f"success is at temperature 1, on {options.levels} levels a seed; +- is the 95 % interval over seeds (t), where "
        "there are two or more.",
    ]


def _row(method: str, own: Sequence[Place], found: dict[Place, list[Success]], options: argparse.Namespace) -> str:
    values = [next(o.success for o in found[place] if o.environment.startswith(place.environment)) for place in own]
    start = [next(r["eval/accuracy"] for r in _evals(place, options)) for place in own]
    each = ", ".join(f"{value:.2f}" for value in values)
    return f"| {method} | {len(own)} | {sum(start) / len(start):.2f} | {interval(values)} | {each} |"


def interval(values: Sequence[float]) -> str:
    """Mean and half-width of the t interval."""
    from scipy.stats import t

    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.2f} +- {t.ppf(0.975, len(values) - 1) * spread / math.sqrt(len(values)):.2f}"


def _evals(place: Place, options: argparse.Namespace) -> list[dict[str, Any]]:
    return [row for row in read_metrics(place.folder(options.out)) if row["kind"] == "eval"]


def _curve(method: str, name: str, runs: Sequence[Place], options: argparse.Namespace) -> str:
    curves = [
        [row["eval/accuracy"] for row in _evals(p, options)]
        for p in runs
        if (p.environment, p.method) == (name, method)
    ]
    if not curves:
        return ""
    means = [sum(column) / len(column) for column in zip(*curves)]
    return f"* {method}: " + " ".join(f"{value:.2f}" for value in means)


def _transfer(found: dict[Place, list[Success]], options: argparse.Namespace) -> list[str]:
    lines = [
        "| trained on | " + " | ".join(options.environments) + " |",
        "|---" * (len(options.environments) + 1) + "|",
    ]
    for name in options.environments:
        own = [results for place, results in found.items() if (place.environment, place.method) == (name, "vl_dac")]
        if own:
            columns = [
                [r.success for rs in own for r in rs if r.environment.startswith(e)] for e in options.environments
            ]
            lines.append(f"| {name} | " + " | ".join(interval(values) for values in columns) + " |")
    return lines


if __name__ == "__main__":
    main()
