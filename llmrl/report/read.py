"""Reads a run folder but its rollouts: metrics, summary, recipe, environment.

A run may still be going on, may have been killed in the middle of a line, may have been resumed (so that steps repeat)
and may lack any metric. What cannot be read is left out and named in `Run.notes`, so that it is seen, not guessed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RUN_FILES = ("metrics.jsonl", "summary.json", "recipe.yaml")
NOT_PHASES = frozenset({"step", "total"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The metrics of one step. A value is None where the run wrote a non-finite number."""

    step: int
    values: Mapping[str, float | None]

    def get(self, key: str) -> float | None:
        return self.values.get(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All of a run folder but its rollouts. `notes` say in words what was missing or unreadable; `stages` are the
    supervised stages before the reinforcement learning.
    """

    path: Path
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    recipe_text: str
    recipe: Mapping[str, Any]
    train: tuple[Point, ...]
    evals: tuple[Point, ...]
    notes: tuple[str, ...]
    stages: tuple[Run, ...] = ()

    @property
    def name(self) -> str:
        return self.path.resolve().name


def read_run(path: Path) -> Run:
    """Read the run folder `path`.

    Raises FileNotFoundError if there is no such folder, ValueError if it holds none of a run's files.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no run folder at {path}{_neighbours(path)}")
    if not any((path / name).is_file() for name in RUN_FILES):
        raise ValueError(f"{path} is not a run folder: it holds none of {', '.join(RUN_FILES)}")
    notes: list[str] = []
    train, evals = _read_metrics(path / "metrics.jsonl", notes)
    recipe_text = _read_text(path / "recipe.yaml", notes)
    stages = tuple(_read_stage(folder, notes) for folder in sorted((path / "stages").glob("*/")))
    return Run(
        path=path,
        summary=_read_object(path / "summary.json", json.loads, notes),
        environment=_read_object(path / "environment.json", json.loads, notes),
        recipe_text=recipe_text,
        recipe=_read_object(path / "recipe.yaml", yaml.safe_load, notes) if recipe_text else {},
        train=train,
        evals=evals,
        notes=tuple(notes),
        stages=stages,
    )


def _read_stage(path: Path, notes: list[str]) -> Run:
    """A supervised stage's folder: metrics, and a summary once it ended."""
    problems: list[str] = []
    train, evals = _read_metrics(path / "metrics.jsonl", problems)
    summary = _read_object(path / "summary.json", json.loads, problems)
    notes.extend(f"stage {path.name}: {problem}" for problem in problems)
    return Run(
        path=path, summary=summary, environment={}, recipe_text="", recipe={}, train=train, evals=evals, notes=()
    )


def columns(points: Sequence[Point]) -> list[str]:
    """Every metric name that occurs in `points`, sorted."""
    return sorted({key for point in points for key in point.values})


def series(points: Sequence[Point], key: str) -> tuple[list[int], list[float]]:
    """The steps and values at which `key` is a finite number."""
    pairs = [(point.step, value) for point in points if (value := point.get(key)) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def finite(value: Any) -> float | None:
    """`value` as a float if it is a finite number, else None. Booleans are not numbers.

    >>> finite(3), finite(float("nan")), finite("3"), finite(True)
    (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def spread(items: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of `items`, evenly spread, the first and last among them.

    >>> spread([0, 1, 2, 3, 4, 5, 6], 3)
    [0, 3, 6]
    """
    if limit < 1:
        raise ValueError(f"limit={limit}; it must be at least 1")
    if len(items) <= limit:
        return list(items)
    if limit == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def full_summary(run: Run) -> dict[str, Any]:
    """The run's summary; what it lacks (a run still going on writes none) is worked out from the metrics."""
    seconds = {phase: sum(values) for phase in phases(run) if (values := series(_all(run), f"time/{phase}")[1])}
    _, wall = series(run.train, "time/step")
    _, trained = series(run.train, "tokens/per_s")
    derived: dict[str, Any] = {
        "steps": None,
        "completed_steps": max((point.step for point in run.train), default=0),
        "train_wall_s": sum(wall) if wall else None,
        "seconds": seconds,
        "tokens_per_s": sum(trained) / len(trained) if trained else None,
        "seed": run.recipe.get("seed"),
        "status": "running or stopped" if run.train or run.evals else "no steps yet",
    }
    scored = [point for point in run.evals if point.get("eval/accuracy") is not None]
    ends = [("before", scored[0])] if scored and scored[0].step == 0 else []
    ends += [("after", scored[-1])] if scored and scored[-1].step > 0 else []
    for name, point in ends:
        derived[f"accuracy_{name}"] = point.get("eval/accuracy")
        derived[f"accuracy_{name}_interval"] = [point.get("eval/low"), point.get("eval/high")]
        derived["n_eval"] = point.get("eval/n")
    return derived | {key: value for key, value in run.summary.items() if value is not None}


def phases(run: Run) -> list[str]:
    """The names of the timed phases (`time/<phase>` without the whole step), longest first."""
    names = {key[len("time/") :] for key in columns(_all(run)) if key.startswith("time/")} - NOT_PHASES
    return sorted(names, key=lambda name: (-sum(series(_all(run), f"time/{name}")[1]), name))


def _all(run: Run) -> tuple[Point, ...]:
    return run.train + run.evals


def _neighbours(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return ""
    runs = sorted(f.name for f in parent.iterdir() if any((f / name).is_file() for name in RUN_FILES))
    return f"; {parent} has: {', '.join(runs[:10])}" if runs else ""


def _read_text(file: Path, notes: list[str]) -> str:
    if not file.is_file():
        notes.append(f"{file.name} is not there")
        return ""
    return file.read_text(encoding="utf-8", errors="replace")


def _read_object(file: Path, parse: Callable[[str], Any], notes: list[str]) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = parse(file.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, yaml.YAMLError) as error:
        notes.append(f"{file.name} cannot be parsed: {str(error).splitlines()[0]}")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{file.name} is not a mapping")
        return {}
    return value


def _read_metrics(file: Path, notes: list[str]) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """Train and eval points in step order. A resumed run repeats steps: the last one written counts."""
    if not file.is_file():
        notes.append("metrics.jsonl is not there")
        return (), ()
    found: dict[str, dict[int, Point]] = {"train": {}, "eval": {}}
    unreadable: list[int] = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        parsed = _parse_line(line)
        if parsed is None or parsed[0] not in found:
            unreadable.append(number)
            continue
        kind, point = parsed
        found[kind][point.step] = point
    if unreadable:
        shown = ", ".join(map(str, unreadable[:5])) + (", …" if len(unreadable) > 5 else "")
        notes.append(f"metrics.jsonl: {len(unreadable)} unreadable line(s) left out (line {shown})")
    return _in_order(found["train"].values()), _in_order(found["eval"].values())


def _parse_line(line: str) -> tuple[str, Point] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int) or isinstance(row["step"], bool):
        return None
    numeric = {k: finite(v) for k, v in row.items() if k not in ("kind", "step") and _numeric(v)}
    return str(row.get("kind", "train")), Point(step=row["step"], values=numeric)


def _numeric(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _in_order(points: Iterable[Point]) -> tuple[Point, ...]:
    return tuple(sorted(points, key=lambda point: point.step))
