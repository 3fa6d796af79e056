"""Critic sampling: new programs from judged ones (CodeRL, arXiv:2207.01780, section 3.4).

    n programs -> example tests -> some pass: refine  each is cut where the critic thinks best of it, and continued
                                   none does: repair  the failing ones that the critic thinks best of, shown with their
                                                      error, and written anew
               -> n new programs -> example tests -> ... `rounds` times

The tests are those that the problem shows; hidden tests are for whoever judges the result. Without a critic a program is
cut at the end of a line that is drawn, and the first failing ones are repaired. A seed is continued from its token ids,
which are never encoded anew. Every generated token is counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from llmrl.data.critiques import filled
from llmrl.seeding import generator, key
from llmrl.types import Completion, Prompt, Request, Sampling

REPAIR = """{problem}

This program was written for it:
{program}

It does not pass the examples. {error}

Write the whole program again, without the mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program for a prompt: `tokens` after the prompt, and `spent`, the tokens generated for it and its forebears.

    `passed` says whether it passes the example tests, `said` what they said; None before they ran.
    """

    tokens: tuple[int, ...]
    text: str
    spent: int
    kind: Literal["plain", "refined", "repaired"] = "plain"
    kept: int = 0  # leading tokens that are those of its forebear
    passed: bool | None = None
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a critic says of a program: that it passes, after each token [T] and on the whole."""

    prefixes: Sequence[float]
    whole: float


class Tools(Protocol):
    """What a search works with: the engine, the tests that the problem shows, the critic, the tokenizer."""

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end a completion and are no part of a program."""
        ...

    def ask(self, requests: Sequence[Request], *, repair: bool) -> list[Completion]: ...

    def test(self, programs: Sequence[tuple[Prompt, str]]) -> list[tuple[bool, str]]: ...

    def judge(self, programs: Sequence[tuple[Prompt, tuple[int, ...]]]) -> list[Verdict] | None:
        """None: there is no critic."""
        ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def render(self, prompt: Prompt, message: str) -> tuple[int, ...]:
        """The tokens of a prompt in which `message` takes the place of the problem."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticSampling:
    """How programs are made from programs.

    rounds    refinements and repairs of each program.
    refine, repair   whether passing programs are continued, and failing ones written anew; else they stay as they are.
    failing   how many failing programs are repaired; the paper's best is 1.
    chop      end a seed before the first token after which failing is likelier than passing.
    budget    tokens that may be generated for a problem, first programs included; None: no bound but the rounds.

    Raises ValueError for numbers below 1.
    """

    rounds: int = 1
    refine: bool = True
    repair: bool = True
    failing: int = 1
    chop: bool = False
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.failing < 1 or (self.budget is not None and self.budget < 1):
            raise ValueError(f"rounds={self.rounds}, failing={self.failing}, budget={self.budget}: at least 1 each")

    def search(
        self,
        prompts: Sequence[Prompt],
        first: Sequence[Sequence[Program]],
        tools: Tools,
        *,
        sampling: Sampling,
        seed: int,
    ) -> list[list[Program]]:
        """As many programs a prompt as `first` has, tested on the examples: of each the newest that came of it.

        `first` may be tested already. A program that the budget, or a switch, leaves alone stays. The same seed gives the
        same requests, whatever other prompts are searched beside.
        """
        pools = _tested(prompts, first, tools)
        for number in range(self.rounds):
            plans = self._plans(prompts, pools, tools, sampling, seed=seed, number=number)
            if not plans:
                break
            pools = _tested(prompts, _carried_out(prompts, pools, plans, tools), tools)
        return pools

    def _plans(
        self, prompts: Sequence[Prompt], pools: Sequence[Sequence[Program]], tools: Tools, sampling: Sampling, *,
        seed: int, number: int,
    ) -> list[_Plan]:  # fmt: skip
        """What is generated in a round."""
        chosen: list[tuple[int, list[int]]] = []  # (prompt, the programs that are looked at)
        for place, pool in enumerate(pools):
            passing = [i for i, program in enumerate(pool) if program.passed]
            looked = passing if passing else list(range(len(pool)))
            if self._room(pool, sampling) and (self.refine if passing else self.repair):
                chosen.append((place, looked))
        verdicts = iter(tools.judge([(prompts[p], pools[p][i].tokens) for p, looked in chosen for i in looked]) or ())
        found: list[_Plan] = []
        for place, looked in chosen:
            pool, prompt = pools[place], prompts[place]
            said = {i: next(verdicts, None) for i in looked}
            refines = bool(pool[looked[0]].passed)
            if refines:
                seeds = looked
            elif chances := [verdict.whole for verdict in said.values() if verdict is not None]:  # of all, or of none
                seeds = [looked[i] for i in best_failing(chances, self.failing)]
            else:
                seeds = looked[: self.failing]
            room = self._room(pool, sampling)
            owners = [i for i, count in zip(seeds, copies(room, len(seeds)), strict=True) for _ in range(count)]
            for target, owner in enumerate(owners):
                draw = key(seed, "critic sampling", prompt.id, number, target)
                made = replace(sampling, seed=draw)
                kept = self._kept(pool[owner], said[owner], tools, draw) if refines else 0
                if refines:
                    made = replace(made, max_tokens=max(1, sampling.max_tokens - kept), min_tokens=0)
                found.append(_Plan(place, target, owner, kept, made, refines))
        return found

    def _room(self, pool: Sequence[Program], sampling: Sampling) -> int:
        """How many programs may be made of this pool in a round, if each is as long as it can be."""
        if self.budget is None:
            return len(pool)
        left = self.budget - sum(program.spent for program in pool)
        return max(0, min(len(pool), left // sampling.max_tokens))

    def _kept(self, program: Program, verdict: Verdict | None, tools: Tools, draw: int) -> int:
        if verdict is not None:
            failing = [1 - p for p in verdict.prefixes] if self.chop else None
            return split_point(verdict.prefixes, p_fail=failing)
        ends = [k for k in range(1, len(program.tokens)) if tools.decode(program.tokens[:k]).endswith("\n")]
        return generator(draw, "line").choice(ends) if ends else 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """One request: it makes program `target` of prompt `place` anew, from program `owner`."""

    place: int
    target: int
    owner: int
    kept: int
    sampling: Sampling
    refines: bool


def plain(prompts: Sequence[Prompt], count: int, tools: Tools, *, sampling: Sampling, seed: int) -> list[list[Program]]:
    """`count` first programs of each prompt."""
    places = [(prompt, i) for prompt in prompts for i in range(count)]
    drawn = [replace(sampling, seed=key(seed, "first", prompt.id, i)) for prompt, i in places]
    requests = [Request(tokens=prompt.tokens, sampling=draw) for (prompt, _), draw in zip(places, drawn, strict=True)]
    made = [
        Program(tokens=without_end(said.tokens, tools.ends), text=said.text, spent=len(said.tokens))
        for said in tools.ask(requests, repair=False)
    ]
    return [made[start : start + count] for start in range(0, len(made), count)]


def without_end(tokens: Sequence[int], ends: frozenset[int]) -> tuple[int, ...]:
    """`tokens` without ids of `ends` at their end: nothing can be continued behind those.

    >>> without_end((5, 6, 2), frozenset({2}))
    (5, 6)
    """
    size = len(tokens)
    while size and tokens[size - 1] in ends:
        size -= 1
    return tuple(tokens[:size])


def _carried_out(
    prompts: Sequence[Prompt], pools: Sequence[Sequence[Program]], plans: Sequence[_Plan], tools: Tools
) -> list[list[Program]]:
    new = [list(pool) for pool in pools]
    for refines in (True, False):
        mine = [plan for plan in plans if plan.refines == refines]
        requests = []
        for plan in mine:
            prompt, owner = prompts[plan.place], pools[plan.place][plan.owner]
            if refines:
                before = (*prompt.tokens, *owner.tokens[: plan.kept])
            else:
                before = tools.render(prompt, repair_message(problem_of(prompt), owner.text, owner.said))
            requests.append(Request(tokens=before, sampling=plan.sampling))
        said = tools.ask(requests, repair=not refines) if requests else []
        for plan, completion in zip(mine, said, strict=True):
            pool = pools[plan.place]
            whole = (*pool[plan.owner].tokens[: plan.kept], *without_end(completion.tokens, tools.ends))
            new[plan.place][plan.target] = Program(
                tokens=whole, text=tools.decode(whole) if refines else completion.text,
                spent=pool[plan.target].spent + len(completion.tokens), kind="refined" if refines else "repaired",
                kept=plan.kept,
            )  # fmt: skip
    return new


def _tested(prompts: Sequence[Prompt], pools: Sequence[Sequence[Program]], tools: Tools) -> list[list[Program]]:
    """The programs with what the example tests say; those that were tested before are not run again."""
    waiting = [(p, i) for p, pool in enumerate(pools) for i, program in enumerate(pool) if program.passed is None]
    found = [list(pool) for pool in pools]
    said = tools.test([(prompts[p], found[p][i].text) for p, i in waiting]) if waiting else []
    for (p, i), (passed, why) in zip(waiting, said, strict=True):
        found[p][i] = replace(found[p][i], passed=passed, said=why)
    return found


def problem_of(prompt: Prompt) -> str:
    """The last message of a chat, or the text of a plain prompt."""
    return str(prompt.messages[-1]["content"]) if prompt.messages else prompt.text


def repair_message(problem: str, program: str, error: str) -> str:
    """What is asked of a repair model; the same text makes its training data."""
    return filled(REPAIR, problem=problem, program=program, error=error)


def split_point(p_pass: Sequence[float], *, p_fail: Sequence[float] | None = None) -> int:
    """How many tokens of a program to keep as the seed of a refinement: 0 to T.

    `p_pass[t]` is the probability of passing given the tokens up to and including t. The kept part ends with the first
    token of the highest probability. With `p_fail` [T] it also ends before the first token where failing is likelier
    than passing. An empty program keeps 0. ValueError if the lengths differ.

    >>> split_point([0.2, 0.7, 0.7, 0.1])
    2
    >>> split_point([0.2, 0.3, 0.7], p_fail=[0.1, 0.6, 0.2])
    1
    """
    passing = [float(p) for p in p_pass]
    known = [t for t, p in enumerate(passing) if not math.isnan(p)]
    kept = 1 + max(known, key=lambda t: passing[t]) if known else 0
    if p_fail is None:
        return kept
    failing = [float(p) for p in p_fail]
    if len(failing) != len(passing):
        raise ValueError(f"{len(passing)} probabilities of passing but {len(failing)} of failing; one each per token")
    worse = (t for t in range(kept) if failing[t] > passing[t])
    return next(worse, kept)


def copies(total: int, seeds: int) -> list[int]:
    """How often each of `seeds` seeds is continued so that `total` programs come out: [seeds], sums to `total`.

    As even as it goes; the first seeds get the remainder. ValueError for seeds < 1 or total < 0.

    >>> copies(10, 3)
    [4, 3, 3]
    """
    if seeds < 1 or total < 0:
        raise ValueError(f"{total} programs from {seeds} seeds; there must be at least one seed and no negative total")
    each, more = divmod(total, seeds)
    return [each + (i < more) for i in range(seeds)]


def best_failing(p_pass: Sequence[float], m: int) -> list[int]:
    """The indices of the `m` programs most likely to pass, best first; equal ones in their order, all if fewer than m.

    `p_pass[i]` is the critic's probability that failing program i passes. ValueError for m < 1.

    >>> best_failing([0.1, 0.4, 0.3, 0.4], 3)
    [1, 3, 2]
    """
    if m < 1:
        raise ValueError(f"m={m}; repair at least one program")
    likely = [float(p) for p in p_pass]
    ranked = sorted((i for i, p in enumerate(likely) if not math.isnan(p)), key=lambda i: -likely[i])
    return ranked[:m]
