"""Functions of plain values against their slow definitions: programs, critiques, actions, one environment's steps.

Tensors, masks and padding do not come into them, so their checks differ from those in `functions`: the definition on
random arguments, and a change of the arguments that must not change the result (`alike`). llmrl/ does not import
rewards/ and eval/; who runs the checks hands in their functions by name.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch

from llmrl import credit
from llmrl.conformance import plain_definitions as slow
from llmrl.conformance.measure import Finding
from llmrl.envs.actions import parse_action
from llmrl.rollout.critic_sampling import best_failing, copies, split_point

Arguments = dict[str, Any]
DRAWS = 40  # random arguments for each seed
PIECES = (
    *(
        "Correctness of the final answer: Correct",
        "Correctness of the final answer: Wrong",
        "Correctness of the step: Wrong",
    ),
    *("**correctness of the final answer:** [incorrect]", "Correctness of the final answer: Correctly solved", "Fine."),
    *("Correctness of the final answer: Correct | Wrong", "CORRECTNESS OF THE FINAL ANSWER\n`not correct`", ""),
)
ACTION_PIECES = (
    '{"action": 1}',
    '{"thoughts": "a } b", "action": "2"}',
    "{left}",
    "{",
    "}",
    '"',
    "go ",
    '{"action": 9}',
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """`fast(**arguments)` must equal `slow(**arguments)`, and stay what it is when the arguments become `alike`."""

    name: str
    fast: Callable[..., Any]
    slow: Callable[..., Any]
    draw: Callable[[random.Random], Arguments]
    alike: Callable[[Arguments, random.Random], Arguments] | None = None


def own_functions() -> dict[str, Callable[..., Any]]:
    """The functions of plain values inside llmrl/."""
    return {
        "episode_gae": _episode_gae,
        "split_point": split_point,
        "copies": copies,
        "best_failing": best_failing,
        "parse_action": parse_action,
    }


def plain_subjects(outside: Mapping[str, Callable[..., Any]]) -> list[Plain]:
    """llmrl's own and those of `outside` (name -> function of rewards/ and eval/). KeyError for an unknown name."""
    draws, functions = _draws(), own_functions() | dict(outside)
    return [
        Plain(name=name, fast=fast, slow=getattr(slow, name), draw=draws[name], alike=ALIKE.get(name))
        for name, fast in functions.items()
    ]


def check_plain(subject: Plain, seed: int) -> Iterator[Finding]:
    """All checks of one function on `DRAWS` random arguments."""
    draw = random.Random(f"{subject.name} {seed}")
    for _ in range(DRAWS):
        arguments = subject.draw(draw)
        result = subject.fast(**arguments)
        yield Finding(subject.name, "definition", difference(result, subject.slow(*arguments.values())))
        if subject.alike is not None:
            changed = subject.fast(**subject.alike(arguments, draw))
            yield Finding(subject.name, "invariance", difference(changed, result))


def difference(got: Any, expected: Any) -> float:
    """The largest |got - expected| / (1 + |expected|) of numbers anywhere inside; infinite if anything else differs."""
    if isinstance(expected, dict):
        if not isinstance(got, dict) or got.keys() != expected.keys():
            return math.inf
        return max((difference(got[key], expected[key]) for key in expected), default=0.0)
    if isinstance(expected, list | tuple):
        if not isinstance(got, list | tuple) or len(got) != len(expected):
            return math.inf
        return max((difference(a, b) for a, b in zip(got, expected)), default=0.0)
    if isinstance(expected, float) and isinstance(got, float):
        if math.isnan(expected) or math.isnan(got):
            return 0.0 if math.isnan(expected) and math.isnan(got) else math.inf
        return abs(got - expected) / (1 + abs(expected))
    got, expected = (int(x) if isinstance(x, IntEnum) else x for x in (got, expected))
    return 0.0 if type(got) is type(expected) and got == expected else math.inf


def _episode_gae(
    rewards: list[float],
    values: list[float],
    terminated: list[bool],
    truncated: list[bool],
    final_values: list[float],
    gamma: float,
    lam: float,
    truncation: credit.Truncation,
) -> tuple[list[float], list[float]]:
    advantages, returns = credit.episode_gae(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(values, dtype=torch.float64),
        terminated=torch.tensor(terminated, dtype=torch.bool),
        truncated=torch.tensor(truncated, dtype=torch.bool),
        final_values=torch.tensor(final_values, dtype=torch.float64),
        gamma=gamma,
        lam=lam,
        truncation=truncation,
    )
    return advantages.tolist(), returns.tolist()


def _draws() -> dict[str, Callable[[random.Random], Arguments]]:
    return {
        "episode_gae": _steps,
        "split_point": _split,
        "copies": lambda draw: {"total": draw.randrange(30), "seeds": draw.randint(1, 9)},
        "best_failing": lambda draw: {"p_pass": _shares(draw, draw.randrange(9)), "m": draw.randint(1, 6)},
        "parse_action": lambda draw: {
            "text": "".join(draw.choices(ACTION_PIECES, k=4)),
            "n_actions": draw.randint(1, 4),
        },
        "n_at_k": _programs,
        "critique_metrics": lambda draw: {"rows": [_row(draw) for _ in range(draw.randint(1, 12))]},
        "verdict": lambda draw: {"text": _critique(draw)},
        "credited": lambda draw: {
            "text": _critique(draw),
            "origin_correct": _coin(draw),
            "parser": draw.choice(["strict", "released"]),
        },
        "discrimination_reward": lambda draw: {"credited": _coin(draw), "scheme": draw.choice(["paper", "released"])},
        "refinement_reward": lambda draw: {
            "origin_correct": _coin(draw),
            "refined_correct": _coin(draw),
            "credited": _coin(draw),
            "mode": draw.choice(list(slow.HELP)),
            "scheme": draw.choice(["paper", "released"]),
            "beta": draw.random(),
        },
        "outcome_of": lambda draw: {"results": draw.choices([-2, -1, False, True, True, True], k=draw.randrange(5))},
        "outcome_return": lambda draw: {
            "outcome": draw.randrange(4),
            "passed": draw.random() if _coin(draw) else None,
        },
        "graded_discrimination": lambda draw: {
            "critic_score": draw.uniform(-3, 3),
            "oracle_score": draw.uniform(-3, 3),
            "delta": draw.uniform(0.1, 5),
        },
    }


def _steps(draw: random.Random) -> Arguments:
    count = draw.randint(1, 12)
    return {
        "rewards": [draw.gauss(0, 1) for _ in range(count)],
        "values": [draw.gauss(0, 1) for _ in range(count)],
        "terminated": [draw.random() < 0.2 for _ in range(count)],
        "truncated": [draw.random() < 0.2 for _ in range(count)],
        "final_values": [draw.gauss(0, 1) for _ in range(count)],
        "gamma": draw.random(),
        "lam": draw.random(),
        "truncation": draw.choice(["bootstrap", "drop", "terminal"]),
    }


def _unread_final_values(steps: Arguments, draw: random.Random) -> Arguments:
    last = len(steps["rewards"]) - 1
    flags = zip(steps["terminated"], steps["truncated"])
    read = [
        not over and (steps["truncation"] == "bootstrap" if cut else n == last) for n, (over, cut) in enumerate(flags)
    ]
    values = [x if used else draw.choice([math.nan, math.inf]) for x, used in zip(steps["final_values"], read)]
    return steps | {"final_values": values}


def _split(draw: random.Random) -> Arguments:
    count = draw.randrange(9)
    return {"p_pass": _shares(draw, count), "p_fail": _shares(draw, count) if _coin(draw) else None}


def _programs(draw: random.Random) -> Arguments:
    count = draw.randrange(9)
    return {
        "hidden": [_coin(draw) for _ in range(count)],
        "example": [_coin(draw) for _ in range(count)],
        "n": draw.randint(1, 5),
    }


def _shuffled_programs(programs: Arguments, draw: random.Random) -> Arguments:
    order = draw.sample(range(len(programs["hidden"])), k=len(programs["hidden"]))
    return programs | {name: [programs[name][i] for i in order] for name in ("hidden", "example")}


def _row(draw: random.Random) -> tuple[bool, bool, str | None]:
    return _coin(draw), _coin(draw), draw.choice(["correct", "wrong", None])


def _critique(draw: random.Random) -> str:
    return "\n".join(draw.choices(PIECES, k=draw.randint(1, 3)))


def _shares(draw: random.Random, count: int) -> list[float]:
    """Few different values, so that ties happen."""
    return [draw.randrange(6) / 5 for _ in range(count)]


def _coin(draw: random.Random) -> bool:
    return draw.random() < 0.5


ALIKE: dict[str, Callable[[Arguments, random.Random], Arguments]] = {
    "episode_gae": _unread_final_values,
    "n_at_k": _shuffled_programs,
    "critique_metrics": lambda a, draw: {"rows": draw.sample(a["rows"], k=len(a["rows"]))},
    "verdict": lambda a, draw: {"text": f"Step sentence: 1 + 1 = 2\n{a['text']}\nExplanation: none"},
    "outcome_of": lambda a, draw: {"results": [*a["results"], *([True] if a["results"] else [])]},
    "best_failing": lambda a, draw: a | {"p_pass": [*a["p_pass"], math.nan]},
    "split_point": lambda a, draw: {name: p and [*p, math.nan] for name, p in a.items()},
    "graded_discrimination": lambda a, draw: a | {"critic_score": a["oracle_score"], "oracle_score": a["critic_score"]},
}
