"""llmrl from Python, in a script or a notebook: one call trains, another measures.

    trained = llmrl.train("smollm2-135m", rows, reward, algo="grpo", steps=50)
    trained.model.generate(...)
    llmrl.evaluate(trained, ["gsm8k"], limit=100)

The same as `llmrl train` with a recipe: a run folder under runs/, checkpoints, `resume=True`. Everything that a recipe can
say is said with `settings`, by dotted keys.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrl.errors import ConfigError
from llmrl.nearest import nearest

if TYPE_CHECKING:
    from llmrl.eval.results import Results

PLACEHOLDER = {"reward": {"name": "llmrl.rewards.combine:no_outcome", "isolated": False}}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run: its folder, its summary, and the policy of its last checkpoint as a Hugging Face folder."""

    run: Path
    policy: Path
    summary: dict[str, Any]

    @cached_property
    def model(self) -> Any:
        """The policy, loaded by transformers, in evaluation mode; the same object at every look."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.policy).eval()

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, which pads on the left, as `generate` wants it."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.policy, padding_side="left")


def train(
    model: str, data: Any, reward: Callable[..., Any] | str, *, algo: str | Mapping[str, Any] = "grpo", name: str = "python",
    steps: int = 50, settings: Mapping[str, Any] | None = None, resume: bool = False, fresh: bool = False,
) -> Trained:  # fmt: skip
    """Train `model` (a folder, a name of `llmrl models list`, a hub id) on `data`.

    `data` is a `datasets.Dataset` or any iterable of dicts with a prompt (text or chat messages) and whatever the reward
    reads; a tenth of it is held out. `reward` is a function of a `Trajectory`, a TRL reward function, or an import path.
    `settings` are recipe keys, such as {"rollout.max_tokens": 64, "train.lr": 1e-5}. An interrupt (Ctrl-C, a notebook's
    stop button) ends the step, saves, and raises KeyboardInterrupt; the same call with `resume=True` goes on. Raises what
    `llmrl train` reports, errors of `llmrl.errors` with a message for the user.
    """
    from rich.console import Console

    from llmrl.compose import resolve
    from llmrl.rewards.scoring import score_all
    from llmrl.rewards.telemetry import Watched
    from llmrl.rewards.trl_adapter import TRLReward
    from llmrl.settings.load import parse_recipe
    from llmrl.start import run
    from llmrl.train.checkpoint import newest_valid

    sections: dict[str, Any] = {
        "name": name,
        "model": {"path": model},
        "reward": {"reward": {"name": reward}} if isinstance(reward, str) else PLACEHOLDER,
        "algo": {"name": algo} if isinstance(algo, str) else dict(algo),
        "train": {"steps": steps},
        "rollout": {"engine": "native"},
    }
    for key, value in (settings or {}).items():
        _put(sections, key, value)
    sections.setdefault("data", {})["source"] = str(_written(data, Path(sections.get("runs_dir", "runs")), name))
    recipe = parse_recipe(sections)
    parts = resolve(recipe)
    if not isinstance(reward, str):
        trl = inspect.isfunction(reward) and "completions" in inspect.signature(reward).parameters
        judge = Watched(reward=TRLReward(function=reward) if trl else reward)
        parts = replace(parts, score=lambda trajectories: score_all(judge, trajectories))
    console = Console(force_jupyter=False, soft_wrap=True)  # lines of text in a notebook, a bar in a terminal
    with _torch_as_before():
        outcome = run(recipe, parts, console=console, resume=resume, fresh=fresh)
    if outcome.exit_code:
        raise KeyboardInterrupt(f"stopped by {outcome.interrupted_by}, saved; go on with resume=True")
    newest, _ = newest_valid(recipe.run_dir)
    assert newest is not None  # a run that finished has saved
    return Trained(run=recipe.run_dir, policy=newest / "policy", summary=outcome.summary)


def evaluate(
    model: str | Path | Trained, tasks: str | Sequence[str], *, out: str | Path | None = None, **options: Any
) -> Results:
    """Measure a model (a folder, a run, a name, a hub id, what `train` returned) on benchmarks of `llmrl eval tasks`.

    `options` are those of `llmrl.eval.plan.Options`, such as limit=100, samples=4, engine="hf". Samples and results stay
    in `out` (default: evaluations/), and a stopped call goes on there. Raises EvalError, DataError or EngineError.
    """
    from llmrl.eval.evaluate import evaluate as measure
    from llmrl.eval.plan import Options

    known = [field.name for field in fields(Options)]
    for name in options:
        if name not in known:
            raise ConfigError(f"evaluate has no option {name!r}; {nearest(name, known)}")
    path = model.policy if isinstance(model, Trained) else model
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    folder = Path(out) if out is not None else Path("evaluations") / re.sub(r"[^\w.-]+", "_", str(path)).strip("_")
    return measure(str(path), names, out=folder, options=Options(**options))


@contextmanager
def _torch_as_before() -> Iterator[None]:
    """A run sets torch's threads and determinism for its process; a notebook goes on after it."""
    import torch

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def _put(sections: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        sections = sections.setdefault(parent, {})
        if not isinstance(sections, dict):
            raise ConfigError(f"settings: {key!r} goes through {parent!r}, which is no section")
    sections[last] = value


def _written(data: Iterable[Mapping[str, Any]], folder: Path, name: str) -> Path:
    """The rows as a JSONL file beside the run, so that a resumed run finds what it was started with."""
    if isinstance(data, Mapping):
        raise ConfigError(f"data holds several splits ({', '.join(map(str, data))}); give one of them, data[...]")
    rows = [dict(row) for row in data]
    if not rows:
        raise ConfigError("data is empty; give a datasets.Dataset or dicts with a prompt")
    folder.mkdir(parents=True, exist_ok=True)
    file, lines = folder / f"{name}.data.jsonl", []
    for number, row in enumerate(rows):
        try:
            lines.append(json.dumps(row, default=_plain) + "\n")
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"row {number} of data cannot be stored: {error}; give text, numbers, lists or dicts"
            ) from error
    file.write_text("".join(lines))
    return file


def _plain(value: Any) -> Any:
    """What JSON lacks: numpy's numbers and arrays, and dates. Raises TypeError for anything else, pictures among them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__} is no JSON")
