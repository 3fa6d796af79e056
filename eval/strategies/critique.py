"""Critique and refine: the model drafts, a critic says what is wrong, the model writes the draft anew.

    first samples (drafts)  ->  critic: critique with a verdict  ->  model: refinement      `rounds` times

The critic is the evaluated model itself (self-refine) or another one; with `stop` a draft whose verdict is "correct" is
kept as it is, which saves the refinement. A new sample's tokens are those of draft, critiques and refinements together, so
that its budget compares with plain sampling and voting. Critique-RL, Xi et al. 2025, arXiv:2510.24320; Self-Refine, Madaan
et al. 2023, arXiv:2303.17651.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llmrl.data.critiques import CRITIC, REFINE, filled
from llmrl.envs.critique import refine_messages
from llmrl.eval.metrics import critique_metrics
from llmrl.eval.records import Record, Sample
from llmrl.eval.strategies.rewriting import Tools
from llmrl.rewards.critique import verdict
from llmrl.seeding import key
from llmrl.types import Completion, Message, Prompt, Request, Sampling

FULL_MARKS = 1.0
VERDICT = "verdict_"  # + correct, wrong or malformed: a flag of the new sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique:
    """`--strategy critique`.

    critic        folder, catalog name or run of the critic; None: the evaluated model.
    rounds        critiques and refinements of a draft.
    stop          keep a draft with the verdict "correct".
    max_tokens    longest critique.
    temperature   of critiques and refinements; 0 is greedy.
    critic_prompt, refine_with   the prompts, as the environment `critique` has them.
    """

    critic: str | None = None
    rounds: int = 1
    stop: bool = False
    max_tokens: int = 512
    temperature: float = 0.0
    critic_prompt: str = CRITIC
    refine_with: str = REFINE

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.max_tokens < 1 or self.temperature < 0:
            raise ValueError(
                f"rounds={self.rounds}, max_tokens={self.max_tokens}, temperature={self.temperature}: at least 1, 1 and 0"
            )

    @property
    def name(self) -> str:
        return "critique"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def length(self, prompt: int, completion: int) -> int:
        """The refinement's: the question, draft and critique with their prompts, and as long a refinement."""
        around = len(self.critic_prompt) + len(self.refine_with)  # characters: more than its tokens
        return prompt + 2 * completion + self.max_tokens + around

    def __call__(self, asked: Sequence[tuple[Prompt, Record]], tools: Tools) -> list[Record]:
        paths = [
            _Path(prompt, record, number, sample.text, spent=sample.tokens)
            for prompt, record in asked
            for number, sample in enumerate(record.samples)
            if sample.value is not None
        ]
        for turn in range(self.rounds):
            self._round(paths, tools, turn)
        new = {(path.record.question, path.number): path.sample(tools) for path in paths}
        return [
            replace(record, samples=tuple(new.get((record.question, n), s) for n, s in enumerate(record.samples)))
            for _, record in asked
        ]

    def metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """`critique_metrics` of the first round, over all samples that could be judged, and how often refining was saved."""
        samples = [s for record in records for s in record.samples if s.value is not None and "draft_right" in s.parts]
        if not samples:
            return {}
        rows = [(s.parts["draft_right"] >= FULL_MARKS, (s.value or 0) >= FULL_MARKS, _verdict_of(s)) for s in samples]
        return critique_metrics(rows) | {"kept": sum("kept" in s.flags for s in samples) / len(samples)}

    def _round(self, paths: Sequence[_Path], tools: Tools, turn: int) -> None:
        """One critique of every draft that is not kept, and its refinement."""
        going = [path for path in paths if not path.kept]
        shown = [
            tools.renderer.first(({"role": "user", "content": path.shown(self.critic_prompt)},))[0] for path in going
        ]
        said = tools.ask(
            [self._request(p, tokens, tools, turn, "critique") for p, tokens in zip(going, shown, strict=True)],
            model=self.critic,
        )
        for path, completion in zip(going, said, strict=True):
            path.criticised(completion, stop=self.stop)
        going = [path for path in going if not path.kept]
        turns = [refine_messages(path.question, path.draft, path.critique, self.refine_with) for path in going]
        prompts = [tools.renderer.first(messages)[0] for messages in turns]
        written = tools.ask(
            [self._request(p, tokens, tools, turn, "refine") for p, tokens in zip(going, prompts, strict=True)]
        )
        for path, completion in zip(going, written, strict=True):
            path.refined(completion)

    def _request(self, path: _Path, tokens: tuple[int, ...], tools: Tools, turn: int, what: str) -> Request:
        seed = key(tools.seed, "strategy", tools.task, path.record.question, path.number, turn, what)
        longest = self.max_tokens if what == "critique" else tools.sampling.max_tokens
        return Request(tokens=tokens, sampling=Sampling(max_tokens=longest, temperature=self.temperature, seed=seed))


class _Path:
    """What becomes of one draft."""

    def __init__(self, prompt: Prompt, record: Record, number: int, draft: str, *, spent: int) -> None:
        self.prompt, self.record, self.number, self.draft, self.spent = prompt, record, number, draft, spent
        self.critique, self.kept, self.verdict = "", False, "unasked"
        self.said: dict[str, str] = {}
        self.last: Completion | None = None

    @property
    def question(self) -> tuple[Message, ...]:
        return self.prompt.messages or ({"role": "user", "content": self.prompt.text},)

    def shown(self, template: str) -> str:
        return filled(template, question=str(self.question[-1]["content"]), attempt=self.draft)

    def criticised(self, completion: Completion, *, stop: bool) -> None:
        self.critique = completion.text
        self.spent += len(completion.tokens)
        found = verdict(completion.text)
        if not self.said:
            self.verdict = found or "malformed"
        self._note(draft=self.draft, critique=completion.text)
        self.kept = stop and found == "correct"

    def refined(self, completion: Completion) -> None:
        self.spent += len(completion.tokens)
        self.draft, self.last = completion.text, completion

    def _note(self, **texts: str) -> None:
        turn = f"_{len(self.said) // 2 + 1}" if self.said else ""
        self.said |= {f"{name}{turn}": text for name, text in texts.items()}

    def sample(self, tools: Tools) -> Sample:
        """The last refinement as a sample; a draft that was kept is judged already."""
        first = self.record.samples[self.number]
        sample = tools.judge(self.prompt, [self.last])[0] if self.last is not None else first
        flags = (*sample.flags, f"{VERDICT}{self.verdict}", *(("kept",) if self.kept else ()))
        parts = {**sample.parts, "draft_right": float(first.value is not None and first.value >= FULL_MARKS)}
        return replace(sample, tokens=self.spent, flags=flags, parts=parts, info=self.said)


def _verdict_of(sample: Sample) -> str | None:
    """The first critique's verdict."""
    found = next((flag.removeprefix(VERDICT) for flag in sample.flags if flag.startswith(VERDICT)), "malformed")
    return found if found in ("correct", "wrong") else None
