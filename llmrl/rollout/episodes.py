"""Prompt -> trajectories of an episode: the policy acts, its environment answers, one row an environment step.

All live episodes move together: one `generate` a round over those that are not over. Every draw is keyed by (run seed,
step, prompt, sample, turn), so an episode depends neither on the others nor on how often the run was killed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from llmrl.data.conversation import Renderer, Talk
from llmrl.envs.host import Answer, Call, Failure
from llmrl.envs.protocol import Ask, Turn
from llmrl.errors import DataError
from llmrl.rollout.engine import RolloutEngine
from llmrl.rollout.partners import Partner
from llmrl.rollout.roll import single_turn
from llmrl.seeding import key
from llmrl.types import (
    Completion,
    Ending,
    Observation,
    Prompt,
    Request,
    Sampling,
    Score,
    Status,
    StatusKind,
    Trajectory,
)

MOST_QUESTIONS = 8  # to other engines in one turn


class Host(Protocol):
    """Where environments live: `envs.host.Inline` or `envs.host.Hosted`."""

    def answer(self, calls: Sequence[Call]) -> list[Answer]: ...

    def forget(self, episodes: Sequence[str]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What episodes are played on: where environments live, how observations become tokens, who else answers.

    `turns` and `max_length` (tokens of context and completion) bound an episode; `window` is how many observations the
    policy sees, None all of them. `partners` are the other engines, by the recipe's names.
    """

    host: Host
    renderer: Renderer
    turns: int
    max_length: int
    window: int | None = None
    partners: Mapping[str, Partner] = field(default_factory=dict)


@dataclass(slots=True)
class _Episode:
    name: str
    prompt: Prompt
    sample: int
    talk: Talk
    rows: list[Trajectory] = field(default_factory=list)
    over: bool = False

    def end(self, ending: Ending, *, final: Prompt | None = None) -> None:
        self.over = True
        if self.rows:
            self.rows[-1] = replace(self.rows[-1], ending=ending, final=final)

    def fail(self, reason: str) -> None:
        """A broken episode is data: all its rows say so and none trains."""
        self.over = True
        status = Status.error(f"environment: {reason}")
        if not self.rows:
            self.rows = [Trajectory.of(self.prompt, (), (), status=status, sample=self.sample, episode=self.name)]
        self.rows = [replace(row, status=status) for row in self.rows]
        self.rows[-1] = replace(self.rows[-1], ending=Ending.TERMINATED)


def play(
    engine: RolloutEngine, prompts: Sequence[Prompt], stage: Stage, *, sampling: Sampling, samples: int, seed: int,
    step: int | str, version: int,
) -> list[Trajectory]:  # fmt: skip
    """`samples` episodes of each prompt; the rows of one episode together, in order, siblings after each other.

    Siblings get environments of the same seed: one task, tried several times. `sampling` holds for every turn; its seed is
    replaced. An environment that fails makes all rows of its episode ERROR.
    """
    episodes = [
        _Episode(f"{prompt.id}#{sample}", prompt, sample, Talk(stage.renderer, prompt, stage.window))
        for prompt in prompts
        for sample in range(samples)
    ]
    calls = [
        Call(episode=one.name, prompt=one.prompt, seed=key(seed, step, "environment", one.prompt.id))
        for one in episodes
    ]
    try:
        opened = _settled(stage, episodes, stage.host.answer(calls), keys=(seed, step), turn=-1)
        for one, answer in zip(episodes, opened, strict=True):
            if answer is None or isinstance(answer, Observation):
                one.talk.shows(answer)
            else:
                one.fail(_wrong(answer, "an Observation"))
        for turn in range(stage.turns):
            live = [one for one in episodes if not one.over]
            if not live:
                break
            _round(engine, live, stage, sampling, keys=(seed, step), turn=turn, version=version)
    finally:
        stage.host.forget([one.name for one in episodes])
    return [row for one in episodes for row in one.rows]


def _round(
    engine: RolloutEngine, live: Sequence[_Episode], stage: Stage, sampling: Sampling, *, keys: tuple[int | str, ...],
    turn: int, version: int,
) -> None:  # fmt: skip
    """One turn of every live episode."""
    asked: list[tuple[_Episode, Prompt, Request]] = []
    for one in live:
        try:
            context = one.talk.context()
        except DataError as error:
            one.fail(str(error))
            continue
        room = stage.max_length - len(context.tokens)
        if room < 1:
            if one.rows:
                one.end(Ending.TRUNCATED)
            else:
                one.fail(f"its first observation of {len(context.tokens)} tokens leaves no room in {stage.max_length}")
            continue
        draw = key(*keys, "sample", one.prompt.id, one.sample, turn)
        settings = replace(sampling, seed=draw, max_tokens=min(sampling.max_tokens, room))
        asked.append((one, context, Request(tokens=context.tokens, media=context.media, sampling=settings)))
    completions = engine.generate([request for _, _, request in asked])
    acting = []
    for (one, context, _), completion in zip(asked, completions, strict=True):
        if completion.status.kind is StatusKind.ERROR:
            one.rows.append(_row(one, context, completion, turn, version))
            one.fail(completion.status.reason)
            continue
        one.talk.said.append(completion)
        acting.append((one, context, completion))
    calls = [Call(episode=one.name, given=completion) for one, _, completion in acting]
    answers = _settled(stage, [one for one, _, _ in acting], stage.host.answer(calls), keys=keys, turn=turn)
    for (one, context, completion), answer in zip(acting, answers, strict=True):
        one.rows.append(_row(one, context, completion, turn, version))
        if isinstance(answer, Turn):
            _apply(one, answer, last=turn + 1 == stage.turns)
            if answer.action_at:
                thought = stage.renderer.tokens_before(completion, answer.action_at)
                one.rows[-1] = replace(one.rows[-1], thought=thought)
        else:
            one.fail(_wrong(answer, "a Turn"))


def _wrong(answer: Answer, wanted: str) -> str:
    if isinstance(answer, Failure):
        return answer.reason
    if isinstance(answer, Ask):
        return "it asked other engines without end"
    return f"it answered with {type(answer).__name__} instead of {wanted}"


def _settled(
    stage: Stage, episodes: Sequence[_Episode], answers: list[Answer], *, keys: tuple[int | str, ...], turn: int
) -> list[Answer]:
    """What the environments say in the end, once their questions to other engines are answered."""
    for question in range(MOST_QUESTIONS):
        asking = {place: answer for place, answer in enumerate(answers) if isinstance(answer, Ask)}
        if not asking:
            break
        told: dict[int, tuple[str, ...]] = {}
        for name in sorted({ask.engine for ask in asking.values()}):
            mine = {place: ask for place, ask in asking.items() if ask.engine == name}
            if name not in stage.partners:
                known = ", ".join(stage.partners) or "none"
                for place in mine:
                    answers[place] = Failure(f"it asks engine {name!r}; the recipe's engines: {known}")
                continue
            seeds = {
                place: key(*keys, "ask", one.prompt.id if mine[place].shared else one.name, turn, question)
                for place, one in ((place, episodes[place]) for place in mine)
            }
            heard = stage.partners[name].answers([(ask, seeds[place]) for place, ask in mine.items()])
            for place, texts in zip(mine, heard, strict=True):
                if texts is None:
                    answers[place] = Failure(f"engine {name!r} did not answer")
                else:
                    told[place] = texts
        calls = [Call(episode=episodes[place].name, given=texts) for place, texts in told.items()]
        for place, answer in zip(told, stage.host.answer(calls), strict=True):
            answers[place] = answer
    return answers


def _apply(one: _Episode, turn: Turn, *, last: bool) -> None:
    """Put the environment's answer on the newest row, and show what comes next."""
    row = one.rows[-1]
    score = Score(value=float(turn.reward), parts=dict(turn.parts), flags=tuple(turn.flags))
    mask = row.mask if turn.learns else [False] * row.length
    steps = row.step if turn.learns else [-1] * row.length
    one.rows[-1] = replace(row, scores=(score,), info={**row.info, **turn.info}, mask=mask, step=steps)
    if turn.next is None:
        one.end(Ending.TERMINATED)
        return
    one.talk.shows(turn.next)
    if turn.truncated or last:
        try:
            one.end(Ending.TRUNCATED, final=one.talk.context())
        except DataError as error:
            one.fail(str(error))


def _row(one: _Episode, context: Prompt, completion: Completion, turn: int, version: int) -> Trajectory:
    named = {"episode": one.name, "turn": turn, "ending": Ending.CONTINUES}
    return single_turn(context, completion, sample=one.sample, version=version, **named)
