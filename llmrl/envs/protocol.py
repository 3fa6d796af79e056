"""What an environment is: one task, played once. It answers what the policy writes with a reward and what it sees next.

    observation = environment.start()
    while observation:  completion = policy(observation);  turn = environment.act(completion);  observation = turn.next

An environment is built for one prompt and one seed, and given the same completions it answers the same: an episode can be
played again in another process, or after a kill. It knows nothing of engines, tokens or batches. One that needs another
model (a frozen actor, a judge, another player) answers with an `Ask`; the driver has the named engine write, and hands the
text back through `told`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmrl.types import Completion, Message, Observation, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The answer to one action. `next` is None if the task is over.

    With `truncated` the environment cuts the episode itself (a step limit of its own): `next` is then what would have
    been seen, for a value model to judge, and nothing more is asked. `learns` False leaves the step out of the policy's
    loss (an action that the environment drew in the policy's place). `action_at` is the character of the completion where
    its action begins, if the environment tells thoughts and action apart. `info` reaches the reward, with `success` (a
    bool) counted in the metrics.
    """

    reward: float = 0.0
    next: Observation | None = None
    truncated: bool = False
    learns: bool = True
    action_at: int | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A question to the engine that the recipe calls `engine`, before the environment can answer its own policy.

    `samples` answers are drawn. With `shared` the draws are those of the prompt, not of the episode: all siblings that ask
    the same hear the same.
    """

    engine: str
    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    samples: int = 1
    shared: bool = False


class Environment(Protocol):
    """One task, single-use: there is no reset. Exceptions are the episode's failure, never the run's."""

    def start(self) -> Observation | Ask | None:
        """What the policy sees first; None shows it the data row's own prompt."""
        ...

    def act(self, completion: Completion) -> Turn | Ask:
        """What follows the policy's completion."""
        ...


class Asking(Environment, Protocol):
    """An environment that asks other models."""

    def told(self, *texts: str) -> Observation | Turn | Ask:
        """What follows the answers to the last `Ask`, as many as its samples; an Observation if `start` asked."""
        ...


class MakeEnvironment(Protocol):
    """A class or function that a recipe names: `env.name`; further keywords are `env.args`."""

    def __call__(self, *, prompt: Prompt, seed: int, **args: Any) -> Environment: ...
