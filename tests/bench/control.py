"""Controllers against each other and stable-baselines3: `python -m tests.bench.control` (resumable, prints its table).

pendulum    Pendulum-v1, 3,000 steps: stable-baselines3's SAC, ours, and each member of the family as one change to ours
discrete    CartPole-v1, 4,000 steps: discrete SAC, and stable-baselines3's DQN (its SAC has no discrete actions)
low_data    80 decisions of a made-up training run: which parts help, against constant, random and bandit
objectives  a two-objective toy with a known Pareto front: hypervolume against the true one
speed       CPU seconds per update against stable-baselines3's SAC, taking turns in one process

Networks have two hidden layers of 64, batch 64, learning rate 1e-3, gamma 0.99, tau 0.005, one update a step after 100
random ones; boosted trees have that batch, gamma and pace. The score is the return of training, of the last five episodes
(pendulum) or fifteen (discrete). Agents of numbers are then run without exploration at one decision in 1, 2, 4 and 8 steps;
the second line of a contestant is its frequency-averaged score.
Finished runs are kept, a line each, in runs/control/results.jsonl; --only task runs one task, --report only prints.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from scipy import stats

from llmrl.control.agent import SAC
from llmrl.control.config import Actions, benchmark
from llmrl.control.gbrl import BoostedActorCritic, BoostedConfig
from llmrl.control.gym import Interface, evaluate, train
from llmrl.control.protocol import Agent
from llmrl.control.srl import SequenceSAC, frequency_averaged_score
from llmrl.control.yann import Piecewise, saturated_law

RESULTS = Path("runs/control/results.jsonl")
SEEDS = range(5)
NETWORK: dict[str, Any] = {"hidden": (64, 64), "batch_size": 64, "learning_rate": 1e-3}
STEPS = {"pendulum": 3000, "discrete": 4000}
ENVIRONMENT = {"pendulum": "Pendulum-v1", "discrete": "CartPole-v1"}
LAST = {"pendulum": 5, "discrete": 15}
FAMILY: dict[str, dict[str, Any]] = {
    "DSAC-T (released_2024)": {"distributional": "released_2024"},
    "DSAC-T (released)": {"distributional": "released"},
    "DSAC-T (nll)": {"distributional": "nll"},
    "DSAC-T (released_2024), risk 0.5": {"distributional": "released_2024", "risk": 0.5},
    "PMOE (2 experts, max)": {"experts": 2},
    "PMOE (2 experts, all)": {"experts": 2, "expert_update": "all"},
    "fading replay": {"fading_replay": True},
    "temporal advantage": {"temporal_advantage": True},
    "5 critics, lcb target, ucb actor": {"critics": 5, "target_value": "lcb", "actor_value": "ucb"},
}
Row = dict[str, Any]


def sac(see: Interface, seed: int, changes: dict[str, Any]) -> SAC:
    config = benchmark(**{**NETWORK, **changes})
    return SAC(obs_size=see.obs_size, actions=see.actions, config=config, seed=seed)


def sequences(see: Interface, seed: int, length: int) -> Agent:
    config = benchmark(**NETWORK)
    return SequenceSAC(obs_size=see.obs_size, actions=see.actions, length=length, config=config, seed=seed)


def known_law(see: Interface, seed: int) -> Agent:
    """From a law that holds the pendulum at the top and cannot swing it up: torque / 2 = -5 sin - 1.3 velocity, cut."""
    law = Piecewise(saturated_law(torch.tensor([[0.0, -5.0, -1.3]])))
    return SAC(obs_size=see.obs_size, actions=see.actions, config=benchmark(**NETWORK), seed=seed, law=law)


def half_offline(see: Interface, seed: int) -> Agent:
    """Half of each batch from the 3,000 transitions that another seed's agent met while it learnt."""
    earlier = sac(see, seed + 1000, {})
    train(earlier, gymnasium.make(ENVIRONMENT["pendulum"]), steps=STEPS["pendulum"], seed=seed + 1000)
    agent = SAC(obs_size=see.obs_size, actions=see.actions, config=benchmark(**NETWORK, offline_share=0.5), seed=seed)
    agent.offline.load(earlier.replay.state())
    return agent


def boosted(see: Interface, seed: int) -> Agent:
    config = BoostedConfig(gamma=0.99, batch_size=64, warmup=100)
    return BoostedActorCritic(obs_size=see.obs_size, actions=see.actions, config=config, seed=seed)


def run_ours(task: str, make: Callable[[Interface, int], Agent], seed: int) -> Row:
    env = gymnasium.make(ENVIRONMENT[task])
    see = Interface(env.observation_space, env.action_space)
    agent, begin = make(see, seed), time.process_time()
    returns = train(agent, env, steps=STEPS[task], seed=seed).returns
    found = {"score": statistics.fmean(returns[-LAST[task] :]), "seconds": time.process_time() - begin}
    if see.actions.discrete:
        return found
    shown = {k: statistics.fmean(evaluate(agent, env, episodes=5, seed=1000, decide_every=k)) for k in (1, 2, 4, 8)}
    return found | {"averaged": frequency_averaged_score(shown), "by_frequency": shown}


def run_sb3(task: str, seed: int) -> Row:
    begin = time.process_time()
    model, monitor = sb3_model(task, seed)
    model.learn(STEPS[task])
    returns = monitor.get_episode_rewards()
    return {"score": statistics.fmean(returns[-LAST[task] :]), "seconds": time.process_time() - begin}


def sb3_model(task: str, seed: int) -> tuple[Any, Any]:
    from stable_baselines3 import DQN
    from stable_baselines3 import SAC as Judge
    from stable_baselines3.common.monitor import Monitor

    monitor = Monitor(gymnasium.make(ENVIRONMENT[task]))
    shared: dict[str, Any] = {
        "learning_rate": 1e-3, "batch_size": 64, "buffer_size": 20_000, "learning_starts": 100, "gamma": 0.99,
        "train_freq": 1, "gradient_steps": 1, "policy_kwargs": {"net_arch": [64, 64]}, "seed": seed, "device": "cpu",
    }  # fmt: skip
    if task == "pendulum":
        return Judge("MlpPolicy", monitor, tau=0.005, **shared), monitor
    more: dict[str, Any] = {"target_update_interval": 250, "exploration_fraction": 0.2, "exploration_final_eps": 0.05}
    return DQN("MlpPolicy", monitor, **shared, **more), monitor


def run_speed(seed: int) -> Row:
    """CPU milliseconds of an update, ours and stable-baselines3's, medians of six turns of 40; same networks and batch."""
    judge, _ = sb3_model("pendulum", seed)
    judge.learn(150)
    env = gymnasium.make("Pendulum-v1")
    agent = SAC(obs_size=3, actions=Actions(size=1), config=benchmark(**NETWORK), seed=seed)
    train(agent, env, steps=150, seed=seed)
    turns: dict[str, list[float]] = {"ours": [], "sb3": []}
    for _ in range(6):
        for name, work in (
            ("ours", lambda: [agent.update() for _ in range(40)]),
            ("sb3", lambda: judge.train(gradient_steps=40, batch_size=64)),
        ):
            begin = time.process_time()
            work()
            turns[name].append((time.process_time() - begin) / 40 * 1e3)
    ours, theirs = (statistics.median(turns[name]) for name in ("ours", "sb3"))
    return {"score": theirs / ours, "ours_ms": ours, "sb3_ms": theirs}


def jobs() -> list[tuple[str, str, int, Callable[[], Row]]]:
    """(task, contestant, seed, what to run), a whole round for each seed, the family last."""
    from tests.bench import control_low_data, control_objectives

    found: list[tuple[str, str, int, Callable[[], Row]]] = []
    small = [*control_low_data.jobs(), *control_objectives.jobs()]
    for seed in SEEDS:
        found.append(("speed", "stable-baselines3's time / ours", seed, partial(run_speed, seed)))
        found.append(("pendulum", "stable-baselines3 SAC", seed, partial(run_sb3, "pendulum", seed)))
        found.append(("pendulum", "SAC", seed, partial(run_ours, "pendulum", partial(sac, changes={}), seed)))
        found += [job for job in small if job[2] == seed]
        found.append(("discrete", "stable-baselines3 DQN", seed, partial(run_sb3, "discrete", seed)))
        found.append(("discrete", "discrete SAC", seed, partial(run_ours, "discrete", partial(sac, changes={}), seed)))
        found.append(("discrete", "GBRL", seed, partial(run_ours, "discrete", boosted, seed)))
    others: dict[str, Callable[[Interface, int], Agent]] = {
        **{name: partial(sac, changes=changes) for name, changes in FAMILY.items()},
        "YANN (stabilising law)": known_law,
        "half offline": half_offline,
        "SRL (4 actions)": partial(sequences, length=4),
        "GBRL": boosted,
    }
    found += [
        ("pendulum", name, seed, partial(run_ours, "pendulum", make, seed))
        for seed in SEEDS
        for name, make in others.items()
    ]
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and the half-width of its 95 % t interval over seeds (NaN for one)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, float("nan")
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def stored() -> list[Row]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def print_table(rows: Sequence[Row]) -> None:
    print("| task | contestant | score (95 % interval) | seeds | CPU s |\n|---|---|---|---|---|")
    for task, name in dict.fromkeys((row["task"], row["name"]) for row in rows):
        own = [row for row in rows if (row["task"], row["name"]) == (task, name)]
        mean, half = interval([row["score"] for row in own])
        seconds = statistics.median(row["seconds"] for row in own)
        print(f"| {task} | {name} | {mean:.4g} ± {half:.2g} | {len(own)} | {seconds:.1f} |")
        if "averaged" in own[0]:
            mean, half = interval([row["averaged"] for row in own])
            print(f"| {task} | {name}, frequency-averaged | {mean:.4g} ± {half:.2g} | {len(own)} | |")


PLOTTED = {
    "pendulum": "Pendulum-v1: return of training",
    "low_data": "80 decisions: mean progress",
}


def plot(rows: Sequence[Row], path: Path) -> None:
    """Two tasks' contestants with their 95 % intervals over seeds, best on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, (task, title) in zip(figure.subplots(1, 2), PLOTTED.items(), strict=True):
        names = dict.fromkeys(row["name"] for row in rows if row["task"] == task)
        found = {n: interval([r["score"] for r in rows if (r["task"], r["name"]) == (task, n)]) for n in names}
        order = sorted(found, key=lambda name: found[name][0])
        centres, halves = zip(*(found[name] for name in order), strict=True)
        axes.errorbar(centres, range(len(order)), xerr=halves, fmt="o", capsize=3)
        axes.set_yticks(range(len(order)), order)
        axes.set_title(title, fontsize="medium")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one task")
    parser.add_argument("--report", action="store_true", help="print the table of what was run")
    parser.add_argument("--plot", type=Path, help="also draw pendulum and low_data to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["task"], row["name"], row["seed"]) for row in stored()}
    for task, name, seed, work in [] if options.report else jobs():
        if (task, name, seed) in done or options.only not in (None, task):
            continue
        begin = time.process_time()
        row = {"task": task, "name": name, "seed": seed, "seconds": 0.0, **work()}
        row["seconds"] = row["seconds"] or time.process_time() - begin
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{task} {name} seed {seed}: {row['score']:.4g}", flush=True)
    print_table(stored())
    if options.plot is not None:
        plot(stored(), options.plot)


if __name__ == "__main__":
    main()
