"""Critic sampling: programs that pass the shown tests are cut and continued, failing ones are repaired.

    first samples -> example tests -> refine or repair -> as many new samples -> hidden tests

The task's own verifier judges the new samples; the search sees the example tests alone (column `example_tests`) and, if
there is one, an outcome critic. A new sample's tokens are those of the first one too. See `rollout.critic_sampling`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from llmrl.errors import EvalError
from llmrl.eval.metrics import n_at_k
from llmrl.eval.records import Record, Sample
from llmrl.eval.strategies.rewriting import Tools
from llmrl.rewards.scoring import load_reward, score_all
from llmrl.rollout.critic_sampling import CriticSampling, Program, Verdict, without_end
from llmrl.rollout.roll import single_turn
from llmrl.types import Completion, Prompt, Request, Reward, Status

FULL_MARKS = 1.0


@dataclass(frozen=True, kw_only=True)
class CriticSampled(CriticSampling):
    """`--strategy critic_sampling`.

    critic        an outcome critic's folder (runs/<name>/checkpoints/step-N/outcome_critic); None: lines are drawn.
    rounds, refine, repair, failing, chop, budget   as in `rollout.critic_sampling.CriticSampling`; the budget is a
                  problem's, in generated tokens.
    repair_model  folder or name of the model that repairs; None: the evaluated one.
    examples, examples_args   the reward that runs the tests that a problem shows; from 1.0 on a program passes.
    dtype         precision of the critic.
    """

    critic: str | None = None
    repair_model: str | None = None
    examples: str = "llmrl.rewards.code_tests:CodeTests"
    examples_args: Mapping[str, Any] = field(default_factory=lambda: {"tests": "example_tests"})
    dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        load_reward(self.examples, dict(self.examples_args))

    @property
    def name(self) -> str:
        return "critic_sampling"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def length(self, prompt: int, completion: int) -> int:
        """A repair's: the problem, a program, what the tests said, and a program again."""
        return prompt + 2 * completion + 256

    def __call__(self, asked: Sequence[tuple[Prompt, Record]], tools: Tools) -> list[Record]:
        """A problem that shows no test keeps its samples. EvalError if none shows any."""
        searched = [(prompt, record) for prompt, record in asked if self._shown(prompt)]
        if not searched:
            raise EvalError(
                f"critic_sampling runs a problem's example tests, and no row of {tools.task} has any (column "
                f"{self.examples_args.get('tests')!r}); use a task with example tests, such as programs or mbpp_hidden"
            )
        mine = _Tools(tools, self, self._judge(tools))
        first = [[_program(sample, tools, mine.ends) for sample in record.samples] for _, record in searched]
        prompts = [prompt for prompt, _ in searched]
        tested = self.search(prompts, first, mine, sampling=tools.sampling, seed=tools.seed)
        new = {
            prompt.id: replace(record, samples=self._samples(prompt, record, programs, tools))
            for (prompt, record), programs in zip(searched, tested, strict=True)
        }
        return [new.get(prompt.id, record) for prompt, record in asked]

    def metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """What the first samples and the new ones are worth after the filter by example tests, and how they were made."""
        samples = [sample for record in records for sample in record.samples]
        count = max(1, len(samples))
        found = {kind: sum(kind in sample.flags for sample in samples) / count for kind in ("refined", "repaired")}
        for n in (1, 5):
            rows = [_right(record) for record in records if len(record.samples) >= n]
            if rows:
                found[f"{n}_at_k"] = math.fsum(n_at_k(*row, n=n) for row in rows) / len(rows)
        return found

    def _shown(self, prompt: Prompt) -> bool:
        return bool(prompt.columns.get(str(self.examples_args.get("tests", "tests"))))

    def _judge(self, tools: Tools) -> Any:
        if self.critic is None:
            return None
        critic = self._opened
        if critic.model.tokenizer.get_vocab() != tools.tokenizer.get_vocab():
            raise EvalError(
                f"the critic {self.critic} has another tokenizer than the evaluated model; it reads its tokens"
            )
        return critic

    @cached_property
    def _opened(self) -> Any:
        import torch

        from llmrl.policy.outcome_critic import open_outcome_critic

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return open_outcome_critic(str(self.critic), dtype=self.dtype, device=device)

    def _samples(self, prompt: Prompt, record: Record, programs: Sequence[Program], tools: Tools) -> tuple[Sample, ...]:
        """A judged sample of each program; one that stayed as it was is judged already."""
        new = [n for n, program in enumerate(programs) if program.kind != "plain"]
        said = [Completion(tokens=programs[n].tokens, logprobs=(0.0,) * len(programs[n].tokens), text=programs[n].text,
                           status=Status.done()) for n in new]  # fmt: skip
        judged = dict(zip(new, tools.judge(prompt, said) if said else (), strict=True))
        found = []
        for n, (program, old) in enumerate(zip(programs, record.samples, strict=True)):
            sample = judged.get(n, old)
            parts = {
                **sample.parts,
                "examples": float(bool(program.passed)),
                "first_right": float((old.value or 0) >= 1),
            }
            flags = (*sample.flags, *((program.kind,) if n in judged else ()))
            logprob = sample.logprob if n not in judged else None
            found.append(replace(sample, tokens=program.spent, parts=parts, flags=flags, logprob=logprob))
        return tuple(found)


def _right(record: Record) -> tuple[list[bool], list[bool]]:
    """(passes the hidden tests, passes the example tests) of each sample."""
    return (
        [(sample.value or 0.0) >= FULL_MARKS for sample in record.samples],
        [sample.parts.get("examples", 0.0) >= FULL_MARKS for sample in record.samples],
    )


def _program(sample: Sample, tools: Tools, ends: frozenset[int]) -> Program:
    """A first sample as a program; its stored text is encoded once, and cut and continued in tokens from there on."""
    tokens = tools.tokenizer(sample.text, add_special_tokens=False)["input_ids"]
    return Program(tokens=without_end(tokens, ends), text=sample.text, spent=sample.tokens)


class _Tools:
    """The evaluation's tools as a search wants them."""

    def __init__(self, tools: Tools, how: CriticSampled, critic: Any) -> None:
        self._tools, self._how, self._critic = tools, how, critic
        self._examples: Reward = load_reward(how.examples, dict(how.examples_args))
        self.ends = frozenset(tools.tokenizer.all_special_ids)

    def ask(self, requests: Sequence[Request], *, repair: bool) -> list[Completion]:
        return self._tools.ask(requests, model=self._how.repair_model if repair else None)

    def test(self, programs: Sequence[tuple[Prompt, str]]) -> list[tuple[bool, str]]:
        said = [Completion(tokens=(0,), logprobs=(0.0,), text=text, status=Status.done()) for _, text in programs]
        rows = [single_turn(prompt, one, sample=0, version=0) for (prompt, _), one in zip(programs, said, strict=True)]
        scores = score_all(self._examples, rows)
        return [((score.value or 0.0) >= FULL_MARKS, score.reason or score.error) for score in scores]

    def judge(self, programs: Sequence[tuple[Prompt, tuple[int, ...]]]) -> list[Verdict] | None:
        if self._critic is None:
            return None
        from llmrl.policy.outcome_critic import pass_probabilities

        found = pass_probabilities(self._critic, [(prompt.tokens, own) for prompt, own in programs])
        return [Verdict(prefixes=prefixes, whole=whole) for prefixes, whole in found]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tools.tokenizer.decode(list(tokens), skip_special_tokens=False))

    def render(self, prompt: Prompt, message: str) -> tuple[int, ...]:
        before = tuple(prompt.messages[:-1]) if prompt.messages else ()
        return self._tools.renderer.first((*before, {"role": "user", "content": message}))[0]
