"""Writes a run's `report.html`, a page that loads nothing (html.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from llmrl.atomic import write_text
from llmrl.report.embedded import RIGHT_FROM, embedded_samples
from llmrl.report.figures import distributions, metric_columns
from llmrl.report.filmstrip import filmstrips
from llmrl.report.html import document
from llmrl.report.read import Run, finite, full_summary, phases, read_run
from llmrl.report.stored import rollout_files
from llmrl.report.summary import count_text, duration_text, interval_of, phase_shares, steps_text
from llmrl.rollout.store import read_rollouts

GOOD = frozenset({"finished", "done", "complete", "completed"})
SCRIPTS = ("charts.js", "page.js", "browser.js")
STAGES = '<section id="stages"><h2>Stages before</h2><div class="charts" id="stage-charts"></div></section>'
SECTIONS = {
    "stages": "Stages",
    "learning": "Learning",
    "optimisation": "Optimisation",
    "time": "Time",
    "distributions": "Distributions",
    "health": "Health",
    "samples": "Samples",
    "recipe": "Recipe",
}


def write_report(run: Path) -> Path:
    """Write `run/report.html` and return its path. Works on a run that is still going on. Raises as read_run."""
    data = read_run(run)
    file = run / "report.html"
    write_text(file, page(data), errors="replace")  # a lone surrogate is no reason to fail
    return file


def page(run: Run) -> str:
    """The whole HTML page of `run`."""
    summary = full_summary(run)
    notes = list(run.notes)
    payload: dict[str, Any] = {
        "train": metric_columns(run.train),
        "evals": metric_columns(run.evals),
        "phases": phases(run),
        "distributions": distributions(run.path, notes),
        "samples": embedded_samples(run.path, notes),
        "outcome": outcome(summary),
        "stages": [
            {"name": stage.name, "train": metric_columns(stage.train), "evals": metric_columns(stage.evals)}
            for stage in run.stages
        ],
    }
    if bucket := payload["train"]["bucket"] - 1:
        notes.append(f"long run: each point of the curves is the mean of {bucket + 1} steps")
    status = str(summary.get("status", ""))
    return document(
        title=run.name,
        kind="report",
        sections={key: title for key, title in SECTIONS.items() if key != "stages" or run.stages},
        body=("llmrl.report", "page.html"),
        values={
            "name": escape(run.name),
            "status": escape(status),
            "tone": "good" if status in GOOD else "",
            "about": escape(" · ".join(f"{key} {value}" for key, value in facts(run).items())),
            "stages": STAGES if run.stages else "",
            "numbers": _numbers(summary),
            "tiles": _tiles(summary),
            "notes": _notes(notes),
            "extent": _extent(run, payload["samples"]) + _films(run),
            "recipe": escape(run.recipe_text) or "not stored",
            "environment": escape(json.dumps(run.environment, indent=2, ensure_ascii=False)),
        },
        styles=[("llmrl.report", "page.css")],
        scripts=[("llmrl.report", name) for name in SCRIPTS],
        data=payload,
    )


def outcome(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The known ones of the accuracy before and after, each with its interval or None."""
    found = []
    for name in ("before", "after"):
        value = finite(summary.get(f"accuracy_{name}"))
        if value is not None:
            found.append(
                {"name": name, "value": value, "interval": interval_of(summary.get(f"accuracy_{name}_interval"))}
            )
    return found


def facts(run: Run) -> dict[str, str]:
    """What the recipe says of itself: model, algorithm, engine, precision; only what is there."""
    found = {"model": _named(run.recipe.get("model")), "algorithm": _named(run.recipe.get("algo"))}
    found["engine"] = _named(run.recipe.get("rollout"))
    model, chosen = run.recipe.get("model"), run.environment.get("chosen")
    why = chosen.get("model.dtype") if isinstance(chosen, Mapping) else None
    found["precision"] = str(why or (model.get("dtype", "") if isinstance(model, Mapping) else ""))
    return {key: value for key, value in found.items() if value}


def _named(section: Any) -> str:
    """The name in a recipe section, which is a string or a mapping that has it under one of the usual keys."""
    if isinstance(section, str):
        return section
    if isinstance(section, Mapping):
        for key in ("name", "id", "path", "kind", "engine"):
            if isinstance(section.get(key), str):
                return str(section[key])
    return ""


def _tiles(summary: Mapping[str, Any]) -> str:
    tiles = {
        "steps": steps_text(summary),
        "training wall time": duration_text(finite(summary.get("train_wall_s"))),
        "tokens/s": count_text(summary.get("tokens_per_s")),
        "held-out problems": count_text(summary.get("n_eval")),
        "seed": str(summary.get("seed", "–")),
    }
    for phase, _, share in phase_shares(summary)[:1]:
        tiles["longest phase"] = f"{phase} {share:.0%}"
    return "".join(f'<div class="card"><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in tiles.items())


def _numbers(summary: Mapping[str, Any]) -> str:
    ends = {end["name"]: end for end in outcome(summary)}
    if not ends:
        return '<p class="muted">not evaluated yet</p>'
    parts = []
    for name, mark in (("before", " before"), ("after", "")):
        value = f"{ends[name]['value']:.1%}" if name in ends else "–"
        parts.append(f'<span class="big{mark}">{value}</span>')
    text = '<span class="arrow" aria-label="to">→</span>'.join(parts)
    if len(ends) == 2:
        gain = 100 * (ends["after"]["value"] - ends["before"]["value"])
        text += f'<span class="gain{" down" if gain < 0 else ""}">{gain:+.1f} points</span>'
    spans = [f"{name} {i[0]:.1%} to {i[1]:.1%}" for name, end in ends.items() if (i := end["interval"])]
    said = f'<p class="muted small">interval {escape(", ".join(spans))}</p>' if spans else ""
    return f'<div class="numbers">{text}</div>{said}'


def _notes(notes: list[str]) -> str:
    if not notes:
        return ""
    return f'<div class="notes"><ul>{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul></div>'


def _films(run: Run) -> str:
    """Episodes of the last stored step, if its rows are environment steps."""
    files = rollout_files(run.path)
    if not run.recipe.get("env") or not files:
        return ""
    step = max(files)
    strips = filmstrips(read_rollouts(files[step]))
    return f"<details open><summary>Episodes of step {step}</summary>{strips}</details>" if strips else ""


def _extent(run: Run, samples: Mapping[str, Any]) -> str:
    steps = samples["steps"]
    if not steps:
        return ""
    shown, total = sum(step["shown"] for step in steps), sum(step["of"] for step in steps)
    command = escape(f"llmrl samples {run.path} --step N")
    return (
        f"<p>On this page: {shown:,} of the {total:,} samples of {len(steps)} of {samples['stored']} stored steps, "
        f"whole groups first. <code>{command}</code> shows the others. "
        f"Right means a reward of at least {RIGHT_FROM:g}.</p>"
    )
