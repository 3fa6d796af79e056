"""The real command line, killed by itself at a chosen place: `python -m tests.durability.driver POINT train ...`.

POINT is "when module:name n": SIGKILL at the n-th call of that function, `before` it, `after` it, or with its file
`torn`, that is half written.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# In the order of a step. Each is a moment that random kills rarely hit; the number skips calls of finished steps.
POINTS = (
    "before llmrl.train.folder:write_text 1",
    "before llmrl.start:_build 1",
    "before llmrl.train.loop:evaluated 1",
    "torn llmrl.train.folder:Metrics.append 1",
    "after llmrl.train.sample:roll 3",
    "after llmrl.rewards.scoring:score_all 3",
    "before torch:Tensor.backward 4",
    "after torch:Tensor.backward 4",
    "before torch.optim:AdamW.step 3",
    "after torch.optim:AdamW.step 3",
    "after llmrl.train.updater:Updater.step 3",
    "before llmrl.rollout.hf:HFEngine.load 4",
    "after llmrl.rollout.hf:HFEngine.load 4",
    "after llmrl.rollout.store:pq.write_table 3",
    "after llmrl.train.job:write_rollouts 3",
    "torn llmrl.train.folder:Metrics.append 4",
    "after llmrl.train.folder:Metrics.append 4",
    "after llmrl.policy.model:Policy.save 2",
    "torn llmrl.train.checkpoint:save_file 2",
    "before llmrl.train.checkpoint:seal 2",
    "before llmrl.train.checkpoint:sync 5",
    "after llmrl.train.checkpoint:seal 2",
    "before llmrl.train.checkpoint:Writer._prune 2",
    "before llmrl.train.checkpoint:shutil.rmtree 2",
    "before llmrl.start:write_summary 1",
)

# The same for a run of episodes: kills while an episode is being played.
EPISODE_POINTS = (
    "before llmrl.envs.host:Hosted.answer 2",  # episodes have started, nobody has answered
    "after llmrl.rollout.episodes:_round 5",  # between two turns
    "before llmrl.envs.host:Hosted.answer 17",
    "after llmrl.rollout.episodes:_apply 40",  # some environments of a turn have answered
    "before llmrl.rollout.episodes:_row 90",
    "before llmrl.train.job:write_rollouts 2",
)


def die() -> NoReturn:
    """What the out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def install(point: str) -> None:
    """Replace the named function by one that kills this process at its n-th call."""
    when, target, number = point.split()
    module, _, path = target.partition(":")
    *outer, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in outer:
        owner = getattr(owner, part)
    setattr(owner, name, _deadly(getattr(owner, name), when=when, number=int(number)))


def _deadly(function: Callable[..., Any], *, when: str, number: int) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != number:
            return function(*args, **kwargs)
        if when == "before":
            die()
        file = args[0]._file if function.__name__ == "append" else None
        start = file.tell() if file else 0
        function(*args, **kwargs)
        if when == "torn":
            _tear(Path(file.name) if file else Path(args[1]), keep=start)
        die()

    return wrapper


def _tear(file: Path, *, keep: int) -> None:
    """Leave half of what was written behind the first `keep` bytes."""
    os.truncate(file, keep + (file.stat().st_size - keep) // 2)


if __name__ == "__main__":
    install(sys.argv.pop(1))
    from llmrl.cli import main

    main()
