"""What a trained policy, and its outcome critic, are worth on held-out programs: samples, predictions, critic sampling.

Everything is written to <runs>/<name>.samples.json, .critic.json and sampling-<seed>.json, and not made again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llmrl.compose import rewards_of
from llmrl.policy.model import load_policy, load_tokenizer
from llmrl.policy.outcome_critic import open_outcome_critic, pass_probabilities
from llmrl.rewards.code_tests import CodeTests
from llmrl.rewards.scoring import score_all
from llmrl.rollout.build import build_engine
from llmrl.rollout.critic_sampling import CriticSampling, Program, Verdict, plain, without_end
from llmrl.rollout.engine import EngineSettings
from llmrl.rollout.roll import roll, sampling, single_turn
from llmrl.settings.load import load_recipe
from llmrl.settings.recipe import Recipe
from llmrl.train.collate import outcome
from llmrl.train.problems import load_problems
from llmrl.types import Completion, Prompt, Request, Score, Status, Trajectory

SAMPLES = 5
ROUND = 8  # programs of a round of critic sampling
SEARCHED = 32  # problems of which programs are searched: every one costs hundreds of runs of tests
PREFIXES = (0.25, 0.5, 0.75)


def measure(
    recipe_file: Path, changes: Sequence[str], base: Path, runs: dict[str, Path], *, repairing: Path | None
) -> None:
    """Sample the base and every run of `runs` (name -> run folder); judge with and without the critics of those that have
    one. `changes` are the overrides that all runs share; `repairing` is the repair model, by default the policy itself.
    """
    folder = next(iter(runs.values())).parent
    recipe = load_recipe(recipe_file, [*changes, "stages=[]", f"model.path={base}", f"rollout.group_size={SAMPLES}"])
    prompts = load_problems(recipe, load_tokenizer(str(base))).held_out
    policies = {"base": base} | {name: newest(run) / "policy" for name, run in runs.items()}
    engine = repairer = None
    for name, policy in policies.items():
        samples, critic = (
            folder / f"{name}.samples.json",
            newest(runs[name]) / "outcome_critic" if name in runs else None,
        )
        searches = folder / f"{name}.sampling.json"
        wants_search = critic is not None and critic.is_dir() and name.startswith("critic-")
        if samples.is_file() and (searches.is_file() or not wants_search):
            continue
        if engine is None:
            engine = _engine(base, recipe)
        engine.load(
            load_policy(recipe.model, source=str(policy), device=torch.device("cpu"), seed=0).weights(), version=0
        )
        rows = _scored(roll(engine, prompts, recipe.rollout, seed=1, step=10**6, version=0), recipe)
        samples.write_text(json.dumps(_counts(rows)))
        if wants_search:
            repairer = repairer or (engine if repairing is None else _engine(repairing, recipe))
            judge = _Desk(engine, repairer, str(critic))
            (folder / f"{name}.critic.json").write_text(json.dumps(_judged(judge, rows)))
            searches.write_text(json.dumps(_searched(judge, prompts[:SEARCHED], recipe)))
        print(f"{name}: sampled", flush=True)
    for open_engine in {id(one): one for one in (engine, repairer) if one is not None}.values():
        open_engine.close()


def _engine(model: Path, recipe: Recipe) -> Any:
    return build_engine(
        EngineSettings(kind="native", model=str(model), max_length=recipe.model.max_length, max_sequences=256)
    )


def newest(run: Path) -> Path:
    """The last checkpoint of a run."""
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def _scored(rows: Sequence[Trajectory], recipe: Recipe) -> list[Trajectory]:
    scores: list[Score] = score_all(rewards_of(recipe), rows)
    return [row.with_outcome(score) for row, score in zip(rows, scores, strict=True)]


def _counts(rows: Sequence[Trajectory]) -> list[list[int]]:
    """The outcomes of each prompt's samples."""
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(row.prompt.id, []).append(outcome(row))
    return list(found.values())


class _Desk:
    """The tools of a search: engines for programs and for repairs, the example tests, one critic."""

    def __init__(self, engine: Any, repairer: Any, critic: str) -> None:
        self.engine, self.repairer = engine, repairer
        self.critic = open_outcome_critic(critic, dtype="bfloat16", device=torch.device("cpu"))
        assert self.critic.model is not None
        self.tokenizer = self.critic.model.tokenizer
        self.ends = frozenset(self.tokenizer.all_special_ids)
        self.generated = 0
        self._tested: dict[tuple[str, str, str], tuple[bool, str]] = {}  # tests, problem, program: pools share programs

    def ask(self, requests: Sequence[Request], *, repair: bool) -> list[Completion]:
        found: list[Completion] = (self.repairer if repair else self.engine).generate(list(requests))
        self.generated += sum(len(one.tokens) for one in found)
        return found

    def test(self, programs: Sequence[tuple[Prompt, str]]) -> list[tuple[bool, str]]:
        return self.run(programs, "example_tests")

    def run(self, programs: Sequence[tuple[Prompt, str]], tests: str) -> list[tuple[bool, str]]:
        """Of each program whether it passes the tests in column `tests`, and what was said of it."""
        wanted = [(tests, prompt.id, text) for prompt, text in programs]
        new = {key: pair for key, pair in zip(wanted, programs, strict=True) if key not in self._tested}
        self._tested |= dict(zip(new, _run(list(new.values()), tests), strict=True))
        return [self._tested[key] for key in wanted]

    def judge(self, programs: Sequence[tuple[Prompt, tuple[int, ...]]]) -> list[Verdict]:
        found = pass_probabilities(self.critic, [(prompt.tokens, own) for prompt, own in programs])
        return [Verdict(prefixes=prefixes, whole=whole) for prefixes, whole in found]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def render(self, prompt: Prompt, message: str) -> tuple[int, ...]:
        chat = [{"role": "user", "content": message}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _run(programs: Sequence[tuple[Prompt, str]], tests: str) -> list[tuple[bool, str]]:
    said = [Completion(tokens=(0,), logprobs=(0.0,), text=text, status=Status.done()) for _, text in programs]
    rows = [single_turn(prompt, one, sample=0, version=0) for (prompt, _), one in zip(programs, said, strict=True)]
    return [((score.value or 0.0) >= 1.0, score.reason) for score in score_all(CodeTests(tests=tests), rows)]


def _judged(desk: _Desk, rows: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Of each sampled program: whether it passed, and the critic's probability on the whole and after shares of it."""
    programs = [(row.prompt, without_end(row.tokens[len(row.prompt.tokens) :].tolist(), desk.ends)) for row in rows]
    found = []
    for row, verdict in zip(rows, desk.judge(programs), strict=True):
        if not verdict.prefixes:
            continue
        at = {str(share): verdict.prefixes[max(0, int(share * len(verdict.prefixes)) - 1)] for share in PREFIXES}
        found.append({"passed": outcome(row) == 3, "whole": verdict.whole, "prefix": at})
    return found


def _searched(desk: _Desk, prompts: Sequence[Prompt], recipe: Recipe) -> dict[str, list[dict[str, Any]]]:
    """Ways to spend the same tokens on each problem: plain programs, or a round of them and one more made from it.

    Plain programs are drawn until a problem has cost as much as refining and repairing cost it, to within a program.
    """
    how = sampling(recipe.rollout, 0)
    first = plain(prompts, ROUND, desk, sampling=how, seed=0)
    more = plain(prompts, ROUND, desk, sampling=how, seed=1)
    refined = CriticSampling(repair=False).search(prompts, first, desk, sampling=how, seed=2)
    both = CriticSampling().search(prompts, first, desk, sampling=how, seed=2)
    pools = {
        "plain": [_within(a + b, _cost(_union(a, c))) for a, b, c in zip(first, more, both, strict=True)],
        "refine": [_union(a, b) for a, b in zip(first, refined, strict=True)],
        "refine + repair": [_union(a, b) for a, b in zip(first, both, strict=True)],
    }
    found = {name: _lists(desk, prompts, programs) for name, programs in pools.items()}
    return found


def _union(old: Sequence[Program], new: Sequence[Program]) -> list[Program]:
    """All programs that were generated; one that stayed as it was is there once."""
    return [*old, *(program for program in new if program.kind != "plain")]


def _cost(programs: Sequence[Program]) -> int:
    """Tokens generated for these programs: what was kept of another is counted there; the end of sequence counts."""
    return sum(len(program.tokens) - program.kept + 1 for program in programs)


def _within(programs: Sequence[Program], budget: int) -> list[Program]:
    return [program for n, program in enumerate(programs) if n < ROUND or _cost(programs[: n + 1]) <= budget]


def _lists(desk: _Desk, prompts: Sequence[Prompt], pools: Sequence[Sequence[Program]]) -> list[dict[str, Any]]:
    flat = [(prompt, program) for prompt, pool in zip(prompts, pools, strict=True) for program in pool]
    hidden = desk.run([(prompt, program.text) for prompt, program in flat], "tests")
    shown = desk.run([(prompt, program.text) for prompt, program in flat], "example_tests")
    whole = [verdict.whole for verdict in desk.judge([(prompt, program.tokens) for prompt, program in flat])]
    found, at = [], 0
    for pool in pools:
        part = slice(at, at + len(pool))
        at += len(pool)
        found.append(
            {
                "hidden": [passed for passed, _ in hidden[part]],
                "examples": [passed for passed, _ in shown[part]],
                "critic": whole[part],
                "tokens": _cost(pool),
            }
        )
    return found
