"""Methods for agents under one budget of episodes: `python -m tests.bench.compare_agents`, or `make compare-agents`.

One small vision-language model is made and taught the form of answers in all environments, by examples of little skill: it
can say what it sees, and chooses the best action somewhat more often than others. Every method plays as many episodes from
there, with three seeds, two runs at a time; finished runs are skipped and a stopped one is resumed. NumberLine is played in
pictures (its last policies are also shown pictures of other levels), the others in words. Every last policy plays held-out
levels of its own environment, those of vl_dac the others' too, and RESULTS.md is written from what is there, beside the
recipes, or into an `--out` of your own. `--model` takes another start, such as vlm-135m; `--report` trains nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from llmrl.atomic import write_text
from llmrl.envs.demos import write_demonstrations
from llmrl.eval.agents import AgentOptions, Success, evaluate_agents
from llmrl.settings.env import EnvConfig
from llmrl.settings.load import parse_recipe
from llmrl.train.folder import read_metrics
from tests.envs import oracles

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "runs" / "agents"
SKILL = 0.3  # of the examples: the share of actions that are the best, the others are drawn at random
LESSONS = 2000  # steps of the supervised start
HELD_OUT = 48  # levels of an evaluation during training
ANSWER = 72  # tokens of an answer at most
STEPS, LR = 30, 2e-4
EPISODES = 16  # a step: 16 levels, or 4 levels four times for methods that compare siblings
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "numberline": {"name": "numberline", "args": {"high": 5, "penalty": 1.0, "view": "image"}, "turns": 6},
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
    "loop": Method(algo={"name": "loop", "kl_coef": 0.05}, group=4),
    "grpo": Method(algo={"name": "grpo", "kl_coef": 0.05}, group=4),
    "vl_dac without stop-gradient": Method(algo=VL_DAC, critic={**CRITIC, "stop_gradient": False}),
    "vl_dac without warm-up": Method(algo=VL_DAC, critic={**CRITIC, "warmup_steps": 0}),
    "vl_dac without KL": Method(algo={**VL_DAC, "kl_coef": 0.0}, critic=CRITIC),
}
ABLATED = "numberline"  # where the methods called "... without ..." are played


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--model", default="", help="default: a small one, made and taught here")
    parser.add_argument("--environments", nargs="*", default=["numberline", "frozen_lake", "minigrid"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--hours", type=float, default=2.0, help="start no further run after this long")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, of one thread each")
    parser.add_argument("--levels", type=int, default=60, help="held-out levels of the final test")
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    if not options.report:
        until = time.time() + 3600 * options.hours
        if not options.model:
            start(options.out / "start")
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(partial(train, options=options, until=until), planned(options)))
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
            played = [method for method in options.methods if environment == ABLATED or "without" not in method]
            yield from (Place(environment, method, seed) for method in played)


def recipe_of(place: Place, model: str, options: argparse.Namespace) -> Any:
    method = METHODS[place.method]
    folder = place.folder(options.out)
    sections = {} if method.critic is None else {"critic": method.critic}
    return parse_recipe(
        {
            "name": folder.name, "runs_dir": str(folder.parent), "seed": place.seed,
            "model": {"path": model, "dtype": "float32", "max_length": 256},
            "data": {"source": "episodes", "limit": 4000, "max_prompt_tokens": 64},
            "env": {**ENVIRONMENTS[place.environment], **PLAYED},
            "rollout": {
                "engine": "native", "prompts_per_step": EPISODES // method.group, "group_size": method.group,
                "max_tokens": ANSWER,
            },
            "algo": method.algo, **sections,
            "train": {
                "steps": options.steps, "lr": options.lr, "epochs": 2, "minibatches": 4, "threads": 1,
                "save_every": options.steps, "keep_best": False, "keep_last": 1,
            },
            "eval": {"every": 10, "data": {"n": HELD_OUT}, "temperature": 1.0, "threshold": 0.5},
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


def train(place: Place, *, options: argparse.Namespace, until: float) -> None:
    folder = place.folder(options.out)
    if finished(folder) or time.time() > until:
        return
    model = options.model or str(start(options.out / "start"))
    begin = time.monotonic()
    trained(recipe_of(place, model, options), resume=(folder / "recipe.yaml").exists())
    last = [row for row in read_metrics(folder) if row["kind"] == "eval"][-1]
    print(f"{place.environment} {place.method} seed {place.seed}: {last['eval/accuracy']:.2f} "
          f"({time.monotonic() - begin:.0f} s)", flush=True)  # fmt: skip


def start(folder: Path) -> Path:
    """The small model that knows the form of answers in all environments, made in `folder` if it is not there."""
    run = folder / "sft"
    if not finished(run):
        examples = {name: folder / f"{name}.jsonl" for name in ENVIRONMENTS}
        for name, file in examples.items():
            if not file.is_file():
                write_demonstrations(EnvConfig(**ENVIRONMENTS[name]), file, rows=4000, choose=partial(skilled, name))
        recipe = parse_recipe(
            {
                "name": run.name, "runs_dir": str(folder),
                "model": {
                    "path": str(blank(folder, examples.values())), "dtype": "float32", "max_length": 256, "vision_tower": True
                },
                "data": {"sources": [{"source": str(file)} for file in examples.values()], "max_prompt_tokens": 200},
                "algo": {"name": "sft"},
                "rollout": {"prompts_per_step": 24, "group_size": 1, "max_tokens": 8},
                "train": {"steps": LESSONS, "lr": 2e-3, "schedule": "cosine", "warmup_steps": 50, "threads": 1,
                          "save_every": LESSONS, "tokens_per_microbatch": 8192},
                "eval": False,
            }
        )  # fmt: skip
        begin = time.monotonic()
        trained(recipe, resume=False)
        print(f"the start is taught the form of answers ({time.monotonic() - begin:.0f} s)", flush=True)
    return sorted((run / "checkpoints").glob("step-*"))[-1] / "policy"


def skilled(name: str, game: Any, draw: random.Random) -> int:
    """The best action with probability `SKILL`, else one drawn at random."""
    best = oracles.to_the_goal if name == "minigrid" else oracles.hint
    return best(game) if draw.random() < SKILL else draw.randrange(len(game.actions))


def blank(folder: Path, examples: Iterable[Path]) -> Path:
    """A small Llama behind a small vision tower, first weights, with a vocabulary of what the examples say."""
    from llmrl.policy.build_vlm import Eyes, build_vlm
    from tests.bench.small import small_llama

    text, eyes = folder / "text", folder / "eyes"
    if not (eyes / "config.json").is_file():
        small_llama(text, (file.read_text() for file in examples), words=600, width=96, layers=3)
        build_vlm(text, eyes, seed=0, eyes=Eyes(width=64, layers=2, heads=2))
    return eyes


def report(options: argparse.Namespace) -> None:
    """Play held-out levels with every last policy and write RESULTS.md."""
    runs = [place for place in planned(options) if finished(place.folder(options.out))]
    settings = AgentOptions(levels=options.levels, max_tokens=ANSWER, max_length=256, dtype="float32", temperature=1.0)
    found: dict[Place, list[Success]] = {}
    if not runs:
        raise SystemExit(f"{options.out} holds no finished run")
    begin = options.model or str(start(options.out / "start"))
    environments = [json.dumps({**ENVIRONMENTS[name], **PLAYED}) for name in options.environments]
    for place in runs:
        folder = place.folder(options.out)
        wanted = (
            environments
            if place.method == "vl_dac"
            else environments[options.environments.index(place.environment) :][:1]
        )
        if shows_pictures(place.environment):
            wanted = [*wanted, json.dumps(scrambled(place.environment))]
        found[place] = evaluate_agents(
            [str(folder)], wanted, out=folder / "held_out", options=settings, say=lambda text: None
        )
    begun = evaluate_agents(
        [begin], environments, out=options.out / "start" / "held_out", options=settings, say=lambda text: None
    )
    at_start = {name: next(o.success for o in begun if o.environment.startswith(name)) for name in options.environments}
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
            lines += [_row(method, own, found, at_start[name])] if own else []
        said = f"Reward of at least 0.5 on {HELD_OUT} levels after 0, 10, 20, ... steps of 16 episodes (mean of seeds):"
        lines += ["", said, "", *filter(None, (_curve(method, name, runs, options) for method in options.methods))]
    lines += _looking({place: results for place, results in found.items() if shows_pictures(place.environment)})
    lines += ["", "## Transfer", "", "vl_dac, trained on the row's environment, played in the column's.", ""]
    lines += _transfer(found, options)
    file = (ROOT / "recipes" / "agents" if options.out == OUT and not options.model else options.out) / "RESULTS.md"
    write_text(file, "\n".join(lines) + "\n")
    plot(file.with_name("compare.png"), runs, options)
    print(f"wrote {file}")


def plot(file: Path, runs: Sequence[Place], options: argparse.Namespace) -> None:
    """Episodes with a reward of at least 0.5 over steps of the environment; a panel an environment, a line a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = len(options.environments)
    figure, axes = pyplot.subplots(1, panels, figsize=(4.2 * panels, 3.4), squeeze=False)
    for axis, name in zip(axes[0], options.environments, strict=True):
        for method in options.methods:
            own = [place for place in runs if (place.environment, place.method) == (name, method)]
            if not own:
                continue
            lived = [_lived(place, options) for place in own]
            x, y = ([sum(column) / len(column) for column in zip(*part)] for part in zip(*lived, strict=True))
            axis.plot(x, y, label=method, linestyle="--" if "without" in method else "-", marker=".")
        axis.set_title(name)
        axis.set_xlabel("environment steps")
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("reward of at least 0.5")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _lived(place: Place, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """(steps of the environment played before each evaluation, its success)."""
    turns, played, success = 0.0, [], []
    for row in read_metrics(place.folder(options.out)):
        if row["kind"] == "eval":
            played.append(turns)
            success.append(float(row["eval/accuracy"]))
        elif "episode/turns" in row:
            turns += EPISODES * row["episode/turns"]
    return played, success


def shows_pictures(environment: str) -> bool:
    return ENVIRONMENTS[environment]["args"].get("view") == "image"


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
    small = "a Llama of 0.4 M parameters with a vision tower of 0.1 M, taught by examples of little skill"
    return [
        f"`make compare-agents`: {len(runs)} finished runs of {len(list(planned(options)))}. Model: "
        f"{options.model or small}. NumberLine is shown in pictures, the others in words. {options.steps} steps of "
        f"{EPISODES} episodes, two epochs of four minibatches, lr {options.lr:g}. Held-out success is at temperature 1, on "
        f"{options.levels} levels a seed; +- is the 95 % interval over seeds (t), where there are two or more. During "
        "training an episode counts that ends with a reward of at least 0.5: in NumberLine, one without a wrong step.",
    ]


def _row(method: str, own: Sequence[Place], found: dict[Place, list[Success]], start: float) -> str:
    values = [next(o.success for o in found[place] if o.environment.startswith(place.environment)) for place in own]
    each = ", ".join(f"{value:.2f}" for value in values)
    return f"| {method} | {len(own)} | {start:.2f} | {interval(values)} | {each} |"


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
