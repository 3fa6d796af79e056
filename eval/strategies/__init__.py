"""Ways to spend more than one completion on a question, by the names of `--strategy`: one file a strategy.

choosing    among the samples that are there: best_of_n, weighted_vote, majority; of your own: a function with the
            signature of `Choose`, named by its import path
rewriting   asking the engine again, from what was said first (`rewriting.Rewrite`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmrl.errors import EvalError
from llmrl.eval.metrics import maj_at_k
from llmrl.eval.strategies.choosing import as_weights, best_of_k, weighted_vote, weighted_vote_at_k
from llmrl.eval.strategies.rewriting import Rewrite
from llmrl.importing import load
from llmrl.nearest import nearest

__all__ = [
    "REWRITES", "STRATEGIES", "Choose", "Rewrite", "Strategy", "as_weights", "best_of_k", "find_rewrites",
    "find_strategies", "weighted_vote", "weighted_vote_at_k",
]  # fmt: skip

# (answer classes, scores, verdicts, k) of one question's n samples -> expected correctness of choosing among k of them
Choose = Callable[[Sequence[str | None], Sequence[float], Sequence[bool], int], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A way to choose one answer of k samples. `scored`: it needs a scorer; `voted`: it needs answer classes."""

    name: str
    choose: Choose
    scored: bool = True
    voted: bool = False


STRATEGIES: Mapping[str, Strategy] = {
    "best_of_n": Strategy(name="best_of_n", choose=lambda answers, scores, correct, k: best_of_k(scores, correct, k)),
    "weighted_vote": Strategy(name="weighted_vote", choose=weighted_vote_at_k, voted=True),
    "majority": Strategy(
        name="majority",
        choose=lambda answers, scores, correct, k: maj_at_k(answers, correct, k),
        scored=False,
        voted=True,
    ),
}
# name -> import path of a dataclass that is a `Rewrite`; its fields are `--strategy-args`
REWRITES: Mapping[str, str] = {
    "critic_sampling": "llmrl.eval.strategies.critic_sampling:CriticSampled",
    "critique": "llmrl.eval.strategies.critique:Critique",
}


def find_strategies(names: Sequence[str], *, scorers: bool) -> tuple[Strategy, ...]:
    """The strategies called `names` that choose among samples; of no name all that the scorers (if any) permit.

    EvalError for an unknown name, and for one that needs a scorer where there is none.
    """
    if not names:
        return tuple(STRATEGIES.values()) if scorers else ()
    choosing = [name for name in names if name not in REWRITES]
    found = tuple(STRATEGIES[name] if name in STRATEGIES else _imported(name) for name in choosing)
    for strategy in found:
        if strategy.scored and not scorers:
            raise EvalError(
                f"strategy {strategy.name} chooses by a score; give --scorer, for example --scorer likelihood or "
                "--scorer llmrl.rewards.reward_model:RewardModel --scorer-args '{model: folder}'"
            )
    return found


def find_rewrites(names: Sequence[str], args: Mapping[str, Any]) -> tuple[Rewrite, ...]:
    """The strategies called `names` that ask the engine again, built with `args`. EvalError for arguments they have not."""
    found = []
    for name in names:
        if name in REWRITES:
            try:
                found.append(load(REWRITES[name], key="strategy")(**args))
            except (TypeError, ValueError) as error:
                raise EvalError(f"--strategy-args: {name}: {error}") from error
    if args and not found:
        raise EvalError(f"--strategy-args={dict(args)}: only {', '.join(REWRITES) or 'no strategy'} takes arguments")
    return tuple(found)


def _imported(name: str) -> Strategy:
    if ":" not in name:
        known = [*STRATEGIES, *REWRITES, "package.module:function"]
        raise EvalError(f"unknown strategy {name!r}; {nearest(name, known)}")
    return Strategy(name=name.rpartition(":")[2], choose=load(name, key="strategy"))
