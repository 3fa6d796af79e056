"""The model card of a run: what was trained, how well it did with intervals, and the whole recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmrl.report.read import finite, full_summary, read_run
from llmrl.report.summary import accuracy_text, duration_text


def model_card(run: Path, *, base: str, adapter: bool = False) -> str:
    """README.md of an exported model, as Markdown with the hub's front matter. `base` is the model it was trained from.

    Raises as `read_run`.
    """
    data = read_run(run)
    summary = full_summary(data)
    front = [
        "---",
        "library_name: peft" if adapter else "library_name: transformers",
        "tags: [llmrl, reinforcement-learning]",
    ]
    if "/" in base and not Path(base).exists():
        front.append(f"base_model: {base}")
    what = "A LoRA adapter" if adapter else "A language model"
    rows = "\n".join(f"| {name} | {value} |" for name, value in results(summary).items())
    return "\n".join([
        *front, "---", "", f"# {data.name}", "",
        f"{what}, trained from {base} by {summary.get('algorithm', 'llmrl')} with llmrl.", "",
        "| | |", "|---|---|", rows, "",
        "Accuracies are on held-out problems of the training task, scored by the training reward; intervals are Wilson's, "
        "95 %.", "", "## Recipe", "", "```yaml", data.recipe_text.rstrip(), "```", "",
    ])  # fmt: skip


def results(summary: Mapping[str, Any]) -> dict[str, str]:
    """What the run reached, in words; only what is known."""
    found = {}
    for when in ("before", "after"):
        if (value := finite(summary.get(f"accuracy_{when}"))) is not None:
            found[f"held-out accuracy {when}"] = accuracy_text(value, summary.get(f"accuracy_{when}_interval"))
        if (loss := finite(summary.get(f"eval_loss_{when}"))) is not None:
            found[f"held-out loss {when}"] = f"{loss:.4f}"
    found["held-out problems"] = f"{summary.get('n_eval') or 0:g}"
    found["steps"] = f"{summary.get('completed_steps')} of {summary.get('steps')}"
    found["training wall time"] = duration_text(finite(summary.get("train_wall_s")))
    found["seed"] = str(summary.get("seed"))
    return found
